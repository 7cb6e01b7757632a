"""What a training run is measured by: perplexity by position and passkeys, on texts that it does not train on.

The wording of passkeys and the scoring are those of `ropescale eval`; a passkey counts if the model's first choice is
right at every token of the answer, which is what greedy decoding would write.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.forward import resting, scores, token_losses
from ropescale.evals.passkey import PasskeySample, passkey_samples, shortest_length
from ropescale.evals.tasks.windows import windows
from ropescale.evals.texts import documents
from ropescale.recipes.run import Figures

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 0  # of the passkeys: every run is asked the same
AT_ONCE = 8192  # tokens of a forward pass
BUCKETS = 8  # of positions, per window


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Texts and passkeys of given lengths."""

    lengths: tuple[int, ...]  # tokens, ascending
    windows: Tensor  # [windows, longest length] ids
    passkeys: dict[int, list[PasskeySample]]  # by length; without those too short for the task

    def measured(self, model: nn.Module, *, longest: int | None = None) -> Figures:
        """The figures of a model, at lengths up to `longest`."""
        lengths = [length for length in self.lengths if longest is None or length <= longest]
        if not lengths:
            return Figures(perplexity={}, perplexity_by_position={}, passkey={}, passkey_by_depth={})
        reach = lengths[-1]
        with resting(model):
            losses = torch.cat([token_losses(model, ids) for ids in _batches(self.windows[:, :reach])])
            answered = {
                length: _answered(model, samples) for length, samples in self.passkeys.items() if length in lengths
            }
        bucket = max(1, self.lengths[-1] // BUCKETS)  # of every model alike, so that curves can be compared
        return Figures(
            # column i holds the loss of token i + 1
            perplexity={str(n): math.exp(losses[:, : n - 1].mean()) for n in lengths},
            perplexity_by_position={
                f"{start}-{min(start + bucket, reach)}": math.exp(
                    losses[:, max(start - 1, 0) : start + bucket - 1].mean()
                )
                for start in range(0, reach, bucket)
            },
            passkey={str(n): sum(answers) / len(answers) for n, answers in answered.items()},
            passkey_by_depth={str(n): _by_depth(self.passkeys[n], answers) for n, answers in answered.items()},
        )

    def perplexity(self, model: nn.Module, length: int) -> float:
        """Of whole windows of that length."""
        with resting(model):
            return math.exp(torch.cat([token_losses(model, ids) for ids in _batches(self.windows[:, :length])]).mean())


def yardstick(
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int],
    texts: str,
    held_out: Callable[[], Any],
    limit: int,
    passkeys: int,
) -> Yardstick:
    """The yardstick of a run.

    Arguments:
        tokenizer: the model's.
        lengths: tokens.
        texts: "held_out", or what `ropescale eval --texts` takes.
        held_out: gives the held-out rows of the longest length; asked only for "held_out".
        limit: windows, at most.
        passkeys: for each length and depth.

    Raises:
        InvalidArgumentError: no text is as long as the longest length.
    """
    reach = max(lengths)
    if texts == "held_out":
        kept = [row["input_ids"] for row in held_out() if max(row["documents"]) == 0][:limit]
        if not kept:
            raise InvalidArgumentError(
                f"eval_texts: some held-out document must hold {reach:,} tokens, got none; give longer documents, a "
                f"larger held_out, shorter eval_lengths, or another source"
            )
        ids = torch.tensor(kept)
    else:
        cuts = windows(documents(texts), tokenizer, length=reach, limit=limit)
        ids = torch.tensor([cutter.encoding(first, cutter.last(first, reach)) for cutter, _, first in cuts])
    shortest = shortest_length(tokenizer)
    return Yardstick(
        lengths=tuple(sorted(set(lengths))),
        windows=ids,
        passkeys={
            length: passkey_samples(tokenizer, length=length, depths=DEPTHS, count=passkeys, seed=SEED)
            for length in sorted(set(lengths))
            if passkeys and length >= shortest
        },
    )


def digest(measure: Yardstick) -> str:
    """By which the same texts and passkeys are known."""
    asked = sorted((length, [sample.input_ids for sample in samples]) for length, samples in measure.passkeys.items())
    measured = [measure.lengths, measure.windows.tolist(), asked]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]


def flat(figures: Figures) -> dict[str, float]:
    """Perplexities and passkeys by length as a tracker takes them."""
    named = {"perplexity": figures.perplexity, "passkey": figures.passkey}
    return {f"eval_{name}_{length}": value for name, by_length in named.items() for length, value in by_length.items()}


def _batches(ids: Tensor) -> Iterator[Tensor]:
    yield from torch.split(ids, max(AT_ONCE // ids.shape[1], 1))


def _answered(model: nn.Module, samples: Sequence[PasskeySample]) -> list[bool]:
    """Whether every answer token is the model's first choice, sample by sample of one length."""
    answered: list[bool] = []
    count = samples[0].answer_length
    for ids in _batches(torch.tensor([made.input_ids for made in samples])):
        rows = torch.arange(len(ids)).repeat_interleave(count)
        positions = torch.arange(ids.shape[1] - count - 1, ids.shape[1] - 1).repeat(len(ids))
        scored = scores(model, ids[:, :-1], rows, positions, torch.arange(len(rows)), ids[:, -count:].flatten())
        answered += scored.greedy.view(len(ids), count).all(1).tolist()
    return answered


def _by_depth(samples: Sequence[PasskeySample], answered: Sequence[bool]) -> dict[str, float]:
    return {
        f"{depth:g}": sum(right) / len(right)
        for depth in DEPTHS
        if (right := [ok for made, ok in zip(samples, answered, strict=True) if made.depth == depth])
    }
