"""Whether the lengths of a config say one thing: the original one, the factor and the maximum."""

import math
from collections.abc import Iterator
from typing import Any

from ropescale.checks import as_float, is_whole
from ropescale.doctor.finding import Finding
from ropescale.errors import shortened
from ropescale.families.today import QUERY_GROWTH

ORIGINAL = "original_max_position_embeddings"


def whole(value: Any) -> int | None:
    """A number of tokens, whether it is written as a whole number or as a float; None where it is neither."""
    number = as_float(value)
    return int(number) if number >= 1 and number.is_integer() else None


def of_lengths(where: str, rope_type: str, block: dict[str, Any], text: dict[str, Any]) -> Iterator[Finding]:
    """Whether original length, maximum and factor say one thing."""
    if rope_type == "longrope" and QUERY_GROWTH in block:
        return  # the length that queries grow from, which is not what pairs stated one by one were scaled from
    top, inner = text.get(ORIGINAL), block.get(ORIGINAL)
    maximum = text.get("max_position_embeddings")
    factor = as_float(block.get("factor"))
    stated = [value for value in (top, inner) if value is not None]
    if not stated:
        reached = as_float(maximum)
        before = f": {maximum} if that was left as it was, {reached / max(factor, 1):g} if the factor is in it"
        yield Finding(
            check="original-length",
            where=f"{where}.{ORIGINAL}",
            rule=f"must be stated for rope_type {rope_type!r}, got none: Transformers takes max_position_embeddings "
            f"({shortened(maximum)}) for the length before scaling",
            remedy="write the length that the model was pretrained for"
            + (before if factor > 1 and math.isfinite(reached) else ""),
        )
        return
    if len(stated) == 2 and top != inner:
        yield Finding(
            check="original-length",
            where=ORIGINAL,
            rule=f"must agree with {where}.{ORIGINAL}, which it overrides, got {shortened(top)} beside "
            f"{shortened(inner)}",
            remedy="write the length that the model was pretrained for in both places",
        )
    for name, value in ((ORIGINAL, top), (f"{where}.{ORIGINAL}", inner)):
        if value is not None and not is_whole(value, 1):
            tokens = whole(value)
            yield Finding(
                check="original-length",
                where=name,
                rule=f"must be a whole number of tokens, got {shortened(value)}",
                remedy=f"write {tokens}" if tokens else "write the length that the model was pretrained for",
            )
    lengths = [length for value in stated if (length := whole(value))]
    at_fault = [_maximum(rope_type, length, factor, whole(maximum)) for length in lengths]
    faults = [fault for fault in at_fault if fault is not None]
    if faults and len(faults) == len(at_fault):  # where two lengths are stated, one that agrees is enough
        yield faults[0]


def _maximum(rope_type: str, original: int, factor: float, maximum: int | None) -> Finding | None:
    """Whether the maximum is what this original length and factor make."""
    if maximum is None or not (factor > 1 and factor * original < math.inf):
        return None
    reached = round(factor * original)
    if maximum < original:
        rule, remedy = f"must be at least the original length ({original}), got {maximum}", f"write {reached}"
    elif maximum == original:
        rule = (
            f"must be factor {factor:g} times the original length ({original}), got the original length itself: "
            f"generation and evaluation stop there, unless the original length was left out and this was filled in"
        )
        remedy = f"write {reached}, or {ORIGINAL} {maximum / factor:g} if the factor is in the maximum already"
    elif rope_type != "llama3" and maximum > reached + 1 and maximum >= 1.01 * reached:
        # Llama 3.1 is published with factor 8, 8,192 tokens before and 131,072 after
        rule = (
            f"must be factor {factor:g} times the original length ({original}), which is {reached}, got {maximum}: it "
            f"was multiplied twice, or the original length is wrong"
        )
        remedy = f"write {reached}, or the {ORIGINAL} that the factor started from"
    elif rope_type != "llama3" and maximum < 0.99 * reached - 1:
        rule = f"must be factor {factor:g} times the original length ({original}), which is {reached}, got {maximum}"
        remedy = f"write {reached}, or the factor that was meant ({maximum / original:g})"
    else:
        return None
    check = "double-scaling" if maximum > reached else "maximum"
    return Finding(check=check, where="max_position_embeddings", rule=rule, remedy=remedy)
