"""What is wrong in one block of rope parameters: its type, its theta, entries that are missing, ignored or no use."""

import math
from collections.abc import Iterator
from typing import Any

from ropescale.checks import as_float, nearest
from ropescale.doctor.finding import Finding
from ropescale.doctor.lengths import ORIGINAL, of_lengths
from ropescale.errors import shortened
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.today import RENAMED, yarn_mscale
from ropescale.records import EXPORT_FIELD

ANCHORED = ("llama3", "longrope", "yarn")  # types that count turns over the original length
# What Transformers reads for each type beside what it reads for all (its validation, modeling_rope_utils.py)
READ = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim", ORIGINAL, "truncate"),
    "longrope": ("short_factor", "long_factor", ORIGINAL, "attention_factor", "factor"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "proportional": ("factor",),
    LATE_TYPE: (),
}
READ_ALWAYS = ("mrope_interleaved", "mrope_section", "partial_rotary_factor", "rope_theta", "rope_type", "type")
# Entries that some families read beside these
FAMILY_KEYS = frozenset({"alpha", "llama_4_scaling_beta", "long_mscale", "max_position_embeddings", "short_mscale"})
# What latent attention makes its softmax scale of, whatever type is scaled by
SOFTMAX = ("factor", "mscale_all_dim")
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("long_factor", "short_factor"),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor"),
}
# Entries that other code writes for itself and that change nothing where Transformers computes
HARMLESS = {"attn_factor": (1,), "extrapolation_factor": (1,), "finetuned": (False, True)}
# Beside HunYuan's alpha, which raises theta alone: entries that it is published with, at what changes nothing
HARMLESS_BESIDE_ALPHA = {"beta_fast": (32,), "beta_slow": (1,), "mscale": (1,), "mscale_all_dim": (1,)}


def of_block(
    where: str, block: dict[str, Any], rope_type: Any, text: dict[str, Any], *, nested: bool, legacy: bool
) -> Iterator[Finding]:
    """What is wrong with the rope parameters of one part, which Transformers takes for `rope_type`."""
    if "rope_type" in block and block.get("type") not in (None, block["rope_type"], rope_type):
        yield Finding(
            check="two-types",
            where=f"{where}.type",
            rule=f"must agree with rope_type, which alone counts, got {shortened(block['type'])} beside "
            f"{shortened(block['rope_type'])}",
            remedy="remove the one that is wrong",
        )
    if not isinstance(rope_type, str) or rope_type not in READ:
        known = RENAMED.get(rope_type) if isinstance(rope_type, str) else None
        near = known or nearest(str(rope_type), READ)
        yield Finding(
            check="unknown-type",
            where=f"{where}.rope_type",
            rule=f"must be one of {', '.join(sorted(READ))}, got {shortened(rope_type)}"
            + (", another name, with which Transformers does not load this family" if known else ""),
            remedy=f"write {near!r}" + ("" if known else " if that is meant")
            if near
            else "restore the config of the checkpoint",
        )
        return
    yield from _theta(where, block, text.get("rope_theta"), legacy=legacy, nested=nested)
    latent = text.get("kv_lora_rank") is not None and rope_type != "default" and block.get("mscale_all_dim")
    yield from _keys(where, rope_type, block, nested=nested, besides=SOFTMAX if latent else ())
    yield from _numbers(where, rope_type, block)
    if rope_type in ANCHORED and not text.get(EXPORT_FIELD):  # engines are told lengths in words of their own
        yield from of_lengths(where, rope_type, block, text)


def _theta(where: str, block: dict[str, Any], top: Any, *, legacy: bool, nested: bool) -> Iterator[Finding]:
    """Whether theta is there, once, and a number; `top` is the one beside the rope parameters, as in old configs."""
    if "rope_theta" not in block and top is None:
        if legacy:  # families have defaults, which old configs leave out
            return
        rule = "must be stated, got none: Transformers 5 takes the default of the family"
    elif not 1 < as_float(block.get("rope_theta", top)) < math.inf:
        rule = f"must be a number above 1, got {shortened(block.get('rope_theta', top))}"
    elif "rope_theta" in block and top not in (None, block["rope_theta"]) and not nested:
        yield Finding(
            check="two-thetas",
            where="rope_theta",
            rule=f"must agree with {where}.rope_theta, which alone counts, got {shortened(top)} beside "
            f"{shortened(block['rope_theta'])}",
            remedy="remove the one that is wrong",
        )
        return
    else:
        return
    yield Finding(
        check="theta-lost",
        where=f"{where}.rope_theta",
        rule=rule,
        remedy="write the theta of the checkpoint as it was published",
    )


def _keys(
    where: str, rope_type: str, block: dict[str, Any], *, nested: bool, besides: tuple[str, ...]
) -> Iterator[Finding]:
    """Entries that are ignored, and ones that are missing; `besides` are read whatever the type."""
    read = (*READ_ALWAYS, *READ[rope_type], *besides)
    needed = NEEDED.get(rope_type, ())
    for name in needed:
        if block.get(name) is None:
            yield Finding(
                check="missing-key",
                where=f"{where}.{name}",
                rule=f"must be stated for rope_type {rope_type!r}, got none",
                remedy="write it as the checkpoint was published or trained",
            )
    known = {name for names in READ.values() for name in names}
    harmless = HARMLESS | HARMLESS_BESIDE_ALPHA if "alpha" in block else HARMLESS
    for name, value in block.items():
        if name in read or name in FAMILY_KEYS or value is None or value in harmless.get(name, ()):
            continue
        # queries grow beyond it, and PhiMoE changes factors at it, whatever the type
        if name == ORIGINAL and ("llama_4_scaling_beta" in block or "short_mscale" in block):
            continue
        if name == "attn_factor" and rope_type == "yarn" and as_float(value) > 0:
            yield _attn_factor(where, block)
            continue
        near = nearest(name, read, cutoff=0.7)
        instead = "remove it" if near is None or near in block or name in known else f"rename it to {near}"
        if name == "factor" and not {"rope_type", "type"} & set(block):
            instead = "write the rope_type that it belongs to ('linear', 'dynamic', 'yarn')"
        yield Finding(
            check="ignored-key",
            where=f"{where}.{name}",
            rule=f"must be an entry that Transformers reads for rope_type {rope_type!r}, got {shortened(value)}, "
            f"which it ignores",
            remedy=f"{instead}; it reads {', '.join(sorted({*READ[rope_type], 'rope_theta'}))}",
        )
    if rope_type != "yarn":
        return
    scales = [name for name in ("mscale", "mscale_all_dim") if block.get(name)]
    if len(scales) == 1 and block.get("attention_factor") is None:
        # DeepSeek's own code takes 1 for mscale and 0 for mscale_all_dim where they are not stated
        over = _sharpened(block, block.get("mscale") or 1.0)
        under = _sharpened(block, block.get("mscale_all_dim") or 0.0)
        yield Finding(
            check="ignored-key",
            where=f"{where}.{scales[0]}",
            rule="must come with its fellow (mscale and mscale_all_dim), got one alone, which Transformers ignores in "
            "the attention factor",
            remedy=f"state both, or write attention_factor {_written(over / under)}, as DeepSeek's code reads it",
        )
    if nested and block.get("truncate") is False:
        yield Finding(
            check="ignored-key",
            where=f"{where}.truncate",
            rule="must be true where each layer type has parameters of its own, got False, which Transformers looks "
            "for elsewhere",
            remedy="remove it, or patch with ropescale, which states the frequencies pair by pair",
        )


def _sharpened(block: dict[str, Any], mscale: Any) -> float:
    """YaRN's attention factor, 0.1 mscale ln(factor) + 1."""
    factor = as_float(block.get("factor"))
    return yarn_mscale(factor, as_float(mscale)) if factor < math.inf else 1.0


def _written(number: float) -> str:
    """A number as a config holds it, a float, without the last bits of the arithmetic."""
    return repr(float(f"{number:.10g}"))


def _attn_factor(where: str, block: dict[str, Any]) -> Finding:
    """A multiplier on YaRN's own attention factor, which Transformers' attention_factor replaces as a whole."""
    own = _sharpened(block, 1.0)
    if block.get("mscale") and block.get("mscale_all_dim"):
        own = _sharpened(block, block["mscale"]) / _sharpened(block, block["mscale_all_dim"])
    meant = own * as_float(block["attn_factor"])
    stated = block.get("attention_factor")
    return Finding(
        check="ignored-key",
        where=f"{where}.attn_factor",
        rule=f"must be stated as attention_factor, got {shortened(block['attn_factor'])}, which multiplies yarn's own "
        f"attention factor ({own:.10g}) where it is read, as in the YaRN code and vLLM, and which Transformers "
        f"ignores: it takes {own if stated is None else as_float(stated):.10g}",
        remedy=f"write attention_factor {_written(meant)} in its place"
        if stated is None
        else f"remove it if {shortened(stated)} is meant, or write attention_factor {_written(meant)}",
    )


def _numbers(where: str, rope_type: str, block: dict[str, Any]) -> Iterator[Finding]:
    """Values that no frequencies can be computed from."""

    def wrong(name: str, rule: str) -> Finding:
        return Finding(
            check="bad-number",
            where=f"{where}.{name}",
            rule=f"must be {rule}, got {shortened(block[name])}",
            remedy="write the value that the checkpoint was published or trained with",
        )

    if block.get("factor") is not None and "factor" in READ[rope_type]:
        factor = as_float(block["factor"])
        if not (factor >= 1 and math.isfinite(factor)):
            yield wrong("factor", "a number of at least 1")
    if block.get("attention_factor") is not None and not 0 < as_float(block["attention_factor"]) < math.inf:
        yield wrong("attention_factor", "a number above 0")
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        # equal bounds are a step in the place of a ramp, as Kimi K2 and Llama 4 Scout have it
        both = block.get(low) is not None and block.get(high) is not None
        if both and not 0 < as_float(block[low]) <= as_float(block[high]) < math.inf:
            yield wrong(high, f"a number of at least {low} ({shortened(block[low])})")
    for name in ("short_factor", "long_factor"):
        if rope_type == "longrope" and block.get(name) is not None:
            values = block[name]
            if not isinstance(values, list) or not values or not all(0 < as_float(item) < math.inf for item in values):
                yield wrong(name, "a list of numbers above 0, one per pair")
