"""What a candidate is judged by: losses on the same needles and the same windows of text, in nats a token.

Five figures: of the tokens of an answer whose needle stands far away (LongRoPE2's objective, arXiv:2502.20082,
section 3.3); of a token of text beyond the original length; of the same, with every doubling of positions counted
alike; of the key tokens of LongPPL; and of a token of text within the original length, which counts by as much as it
is more than that of the model as it is: what short prompts lose.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ropescale.checks import as_float, did_you_mean
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals.forward import token_losses
from ropescale.evals.passkey import passkey_samples, shortest_length
from ropescale.evals.tasks.perplexity.longppl import key_tokens, short_context
from ropescale.evals.tasks.windows import Cutter, longest_first
from ropescale.evals.texts import Document
from ropescale.evals.tokens import leading_tokens

AT_ONCE = 8192  # tokens of a forward pass
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What each objective counts, and by how much
OBJECTIVES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "needle": {"needle": 1.0, "short": 1.0},
        "text": {"text": 1.0, "short": 1.0},
        "position": {"position": 1.0, "short": 1.0},
        "longppl": {"longppl": 1.0, "short": 1.0},
        "sum": {"needle": 0.1, "text": 1.0, "short": 0.3},
    }
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What each figure counts in the sum that is made small."""

    needle: float = 0.0
    text: float = 0.0
    position: float = 0.0
    longppl: float = 0.0
    short: float = 0.0

    @classmethod
    def of(cls, objective: str, given: Mapping[str, float]) -> Self:
        """Those of an objective, with others in the place of some.

        Raises:
            InvalidArgumentError: an unknown figure, a negative weight, or nothing beyond the original length that
                counts.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(given, Mapping):
            raise InvalidArgumentError(
                f"weights: must hold a number for a figure ({', '.join(known)}), got {shortened(given)}; write it as "
                f'in {{"needle": 1}}'
            )
        for name, value in given.items():
            if name not in known:
                there = f"available: {', '.join(known)}"
                raise InvalidArgumentError(
                    f"weights: unknown figure {name!r}; {did_you_mean(name, known, then=there)}"
                )
            if not 0 <= as_float(value) < float("inf"):
                raise InvalidArgumentError(
                    f"weights: {name} must be a number of at least 0, got {shortened(value)}; 0 leaves it out"
                )
        weights = cls(**{**OBJECTIVES[objective], **given})
        if not any(getattr(weights, name) for name in known if name != "short"):
            raise InvalidArgumentError(
                "weights: something beyond the original length must count, got 0 for all of it; give needle, text, "
                "position or longppl a weight"
            )
        return weights


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Sums of losses in nats, and of how many tokens or answers each is, which may be added up."""

    sums: Mapping[str, float]
    counts: Mapping[str, int]

    def mean(self, name: str) -> float:
        """Of one figure; 0 where nothing of it was read."""
        if name == "position":  # every doubling alike, however many tokens it has
            bands = [band for band in self.counts if band.startswith("band") and self.counts[band]]
            return sum(map(self.mean, bands)) / max(len(bands), 1)
        count = self.counts.get(name, 0)
        return self.sums[name] / count if count else 0.0

    def total(self, weights: Weights, before: Figures) -> float:
        """The sum that is made small; `before` is of the model as it is, on the same samples."""
        lost = max(0.0, self.mean("short") - before.mean("short"))
        far = ("needle", "text", "position", "longppl")
        total: float = sum(getattr(weights, name) * self.mean(name) for name in far if getattr(weights, name))
        return total + weights.short * lost

    def __add__(self, other: Figures) -> Figures:
        names = self.sums.keys() | other.sums.keys()
        return Figures(
            sums={name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in sorted(names)},
            counts={name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in sorted(names)},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Needles and windows of one length, as token ids."""

    original_length: int
    needles: Tensor  # [needles, target length] int64; the last `answer` of each are what is scored
    answer: int  # tokens of an answer
    windows: Tensor  # [windows, target length] int64
    keys: Tensor  # [windows, target length] bool: key tokens of LongPPL; none where nobody counts them

    def part(self, needles: slice, read: slice) -> Samples:
        """Some of them."""
        return dataclasses.replace(
            self, needles=self.needles[needles], windows=self.windows[read], keys=self.keys[read]
        )

    def halves(self) -> list[Samples]:
        """The same in two: what all candidates read, and what the better ones read besides."""
        needles, read = (len(self.needles) + 1) // 2, (len(self.windows) + 1) // 2
        cuts = ((slice(needles), slice(read)), (slice(needles, None), slice(read, None)))
        return [one for cut in cuts if len((one := self.part(*cut)).needles) or len(one.windows)]

    def digest(self) -> str:
        """By which the same samples are known."""
        told = [self.original_length, self.answer, self.needles.tolist(), self.windows.tolist()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def losses(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """[needles] of a token of each answer, and [windows, target length - 1] of every token; float32, nats."""
        length = self.windows.shape[1]
        needles = [token_losses(model, ids, length - self.answer).mean(1) for ids in _batches(self.needles)]
        read = [token_losses(model, ids) for ids in _batches(self.windows)]
        return (
            torch.cat(needles) if needles else torch.empty(0),
            torch.cat(read) if read else torch.empty(0, length - 1),
        )

    def figures(self, model: nn.Module) -> Figures:
        """What the model as it is now costs on them."""
        needles, read = (losses.double() for losses in self.losses(model))
        # column i holds the loss of token i + 1
        parts = {
            "needle": needles,
            "text": read[:, self.original_length - 1 :],
            "short": read[:, : self.original_length - 1],
            "longppl": read[self.keys[:, 1:]],
        }
        low = self.original_length
        while low < self.windows.shape[1]:
            parts[f"band {low}"] = read[:, low - 1 : 2 * low - 1]
            low *= 2
        return Figures(
            sums={name: float(values.sum()) for name, values in parts.items()},
            counts={name: values.numel() for name, values in parts.items()},
        )

    def with_keys(self, model: nn.Module) -> Samples:
        """The same with the key tokens that a model, which reads so far, finds in the windows."""
        keys = torch.zeros_like(self.keys)
        for row, ids in zip(keys, self.windows.tolist(), strict=True):
            row[key_tokens(model, ids, short_context(len(ids)))] = True
        return dataclasses.replace(self, keys=keys)


def samples(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    original_length: int,
    length: int,
    needles: int,
    limit: int,
    seed: int,
) -> Samples:
    """Needles of a seed, and windows of the longest documents.

    Arguments:
        tokenizer: the model's.
        documents: texts to read.
        original_length: tokens.
        length: tokens of each needle's prompt with its answer, and of each window.
        needles: of each of five depths.
        limit: windows, at most.
        seed: of the needles.

    Raises:
        InvalidArgumentError: no document is as long, or the length does not hold a needle.
    """
    shortest = shortest_length(tokenizer)
    if needles and length < shortest:
        raise InvalidArgumentError(
            f"target_length: must hold a needle and its question ({shortest} tokens), got {length}; ask for more"
        )
    made = passkey_samples(tokenizer, length=length, depths=DEPTHS, count=needles, seed=seed)
    # depths in turn, so that a part of them holds each
    order = [made[depth * needles + number].input_ids for number in range(needles) for depth in range(len(DEPTHS))]
    read = torch.tensor(_rows(tokenizer, documents, length, limit))
    return Samples(
        original_length=original_length,
        needles=torch.tensor(order, dtype=torch.long).reshape(-1, length),
        answer=min((one.answer_length for one in made), default=0),
        windows=read,
        keys=torch.zeros_like(read, dtype=torch.bool),
    )


def _rows(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], length: int, limit: int
) -> list[list[int]]:
    """At most so many windows as token ids: every document gives its first before any gives its second.

    Nothing has to come back from their texts, as in an evaluation, so they are cut between any two tokens.

    Raises:
        InvalidArgumentError: no document holds a window.
    """
    leading = leading_tokens(tokenizer)
    step = length - len(leading)
    found = []
    for order, document in enumerate(longest_first(documents)[:limit]):
        ids = Cutter(document, tokenizer, length * limit).ids
        starts = range(0, len(ids) - step + 1, step)
        found += [(number, order, [*leading, *ids[first : first + step]]) for number, first in enumerate(starts)]
    if not found:
        raise InvalidArgumentError(
            f"data: at least one text must hold {length:,} tokens, got {len(documents)} that do not; ask for a "
            f"shorter context, or give longer texts"
        )
    return [row for _, _, row in sorted(found)[:limit]]


def batches(whole: Samples, *, needles: int, read: int) -> list[Samples]:
    """The samples in batches of so many needles and windows each, which generations read in turn."""
    count = max(len(whole.windows) // read, 1)
    return [whole.part(slice(i * needles, (i + 1) * needles), slice(i * read, (i + 1) * read)) for i in range(count)]


def _batches(ids: Tensor) -> Iterator[Tensor]:
    if len(ids):
        yield from torch.split(ids, max(AT_ONCE // ids.shape[1], 1))
