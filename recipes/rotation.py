"""The rotation of pretraining for some tokens of a patched model: what the schedule mixed_window reads short documents
with (LongRoPE2, arXiv:2502.20082, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.injection.rotation import substitution_in
from ropescale.patching import LATE_FIELD, patched_rotary


class MixedRotation:
    """The rotary module of a patched model, told for which tokens to turn as before the patch.

    A method that acts in attention and is let in here leaves queries within the original length alone by itself, so
    there is nothing to mix.
    """

    def __init__(self, model: nn.Module) -> None:
        rotary = patched_rotary(model)
        assert rotary is not None
        self._rotary = rotary
        self._short: Tensor | None = None  # [batch, n] bool
        if LATE_FIELD not in rotary.__dict__:
            rotary.register_forward_hook(self._mixed, with_kwargs=True)

    @contextmanager
    def keeping(self, short: Tensor) -> Iterator[None]:
        """Within the block, these tokens [batch, n] are rotated as in pretraining."""
        self._short = short
        try:
            yield
        finally:
            self._short = None

    def _mixed(self, rotary: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], waves: Any) -> Any:
        if self._short is None:
            return waves
        substitution = substitution_in(rotary)
        assert substitution is not None
        with substitution.lifted():
            pretrained = type(rotary).forward(rotary, *inputs, **named)
        short = self._short[..., None]
        return tuple(torch.where(short, before, after) for before, after in zip(pretrained, waves, strict=True))
