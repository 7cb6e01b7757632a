"""Where a generation stops, and where a reply ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria


class NotFiniteError(Exception):
    """Logits that are not numbers, in this row of a batch."""

    def __init__(self, row: int):
        super().__init__(row)
        self.row = row


class Finite(LogitsProcessor):  # type: ignore[misc] # transformers' types are not followed
    """Stops a generation whose logits are not numbers, which would go on with the first token of the vocabulary."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are; raises `NotFiniteError`."""
        bad = ~scores.amax(-1).isfinite()
        if bad.any():
            raise NotFiniteError(int(bad.nonzero()[0]))
        return scores


class StopStrings(StoppingCriteria):  # type: ignore[misc] # as above
    """Stops each row for itself as soon as its reply holds a stop string; the prompt is no part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt: int):
        self._tokenizer, self._stops, self._prompt = tokenizer, stops, prompt
        # a token has at least one byte; two more, as the stop may begin and end inside tokens
        self._reach = max((len(stop.encode()) for stop in stops), default=0) + 2

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """[batch] bool: finished."""
        tails = input_ids[:, self._prompt :][:, -self._reach :]
        texts = self._tokenizer.batch_decode(tails, skip_special_tokens=False)
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def ends_of(model: PreTrainedModel) -> set[int]:
    """Ids at which generate ends a sequence."""
    return ends_given(model.generation_config)


def ends_given(settings: GenerationConfig) -> set[int]:
    """Ids at which settings of generation have it ended."""
    given = settings.eos_token_id
    return set() if given is None else {given} if isinstance(given, int) else set(given)


def before_end(ids: Sequence[int], ends: set[int]) -> Sequence[int]:
    """A reply up to its end, without the padding of a batch that went on."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
