"""LongReD (arXiv:2502.07365): short texts read as the model before its extension read them.

Beside the loss of its rows a step distils hidden states of short texts, the beginnings of the same rows: those of six
layers where the extended model reads a text at its own positions, and the last where it reads it at positions that
skip, as `pose` lays them. The teacher is the model as it was, in both: the adapter switched off and the rotation of
pretraining put back for the pass, so no second model is held.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ropescale.evals.forward import resting
from ropescale.recipes.options import RecipeOptions
from ropescale.recipes.rotation import MixedRotation
from ropescale.recipes.schedules import Schedule, skipped_positions
from ropescale.recipes.tuning import unpack
from ropescale.recipes.weighting import short_context
from ropescale.wrappers import bare

LAYERS = 6  # whose hidden states are distilled, evenly spread, the last among them
CHUNKS = 3  # of skipped positions: head, middle and tail, as in the authors' code


class Restoration:
    """What a step adds to its loss."""

    def __init__(self, model: Any, *, length: int, target: int, weights: tuple[float, float]) -> None:
        """`model` is patched and under PEFT; `length` tokens of each row are read, skipped up to `target`.

        Raises:
            InvalidArgumentError: a method whose rotation of pretraining cannot be put back for a pass.
        """
        self.length, self.target, self.weights = length, target, weights
        self._model, self._rotation = model, MixedRotation(model)

    def loss(self, ids: Tensor) -> Tensor:
        """Of the rows of `ids` [batch, n]: what hidden states lack, the mean over tokens, each part times its weight.

        Positions are drawn by the tokens themselves, so that a run that goes on draws the same.
        """
        ids = ids[:, : self.length]
        whole = torch.zeros(self.length, dtype=torch.long)
        drawn = [skipped_positions(whole, self.target, CHUNKS, random.Random(str(row))) for row in ids.tolist()]
        places = torch.arange(self.length, device=ids.device).expand_as(ids)
        pretrained = self._rotation.keeping(torch.ones_like(ids, dtype=torch.bool))
        with torch.no_grad(), self._model.disable_adapter(), resting(self._model), pretrained:
            taught = self._states(ids, places)
        unpack(self._model)  # 4-bit weights, which were read in evaluation mode
        short = self._states(ids, places)
        layers = sorted({max(1, round(k * (len(taught) - 1) / LAYERS)) for k in range(1, LAYERS + 1)})
        restored = sum((lacking(short[layer], taught[layer]) for layer in layers), torch.zeros((), device=ids.device))
        skipped = lacking(self._states(ids, torch.stack(drawn).to(ids.device))[-1], taught[-1])
        return self.weights[0] * restored + self.weights[1] * skipped

    def _states(self, ids: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Hidden states [batch, n, width] before each layer, and after the last one with its norm."""
        base: Any = bare(self._model)
        # a mask of ones: without it, jumps of positions are taken for beginnings of documents
        given = {"attention_mask": torch.ones_like(ids), "use_cache": False, "output_hidden_states": True}
        states: tuple[Tensor, ...] = base.get_decoder()(input_ids=ids, position_ids=places, **given).hidden_states
        return states


def restoration(options: RecipeOptions, schedule: Schedule, model: nn.Module) -> Restoration | None:
    """What adds to the loss of a run; None where nothing does.

    Raises:
        InvalidArgumentError: a method whose rotation of pretraining cannot be put back for a pass.
    """
    if options.loss != "longred":
        return None
    return Restoration(
        model,
        length=short_context(options, schedule),
        target=schedule.target_length,
        weights=(options.loss_restored, options.loss_skipped),
    )


def lacking(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos of hidden states [batch, n, width], the mean over tokens."""
    return 1 - functional.cosine_similarity(one.float(), other.float(), dim=-1).mean()
