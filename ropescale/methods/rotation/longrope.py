"""LongRoPE."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.checks import as_float, require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.base import FixedMethod, Method
from ropescale.methods.late import Switch
from ropescale.spectrum import slowed


@dataclass(frozen=True, kw_only=True)
class LongRoPE(FixedMethod, name="longrope"):
    """LongRoPE: every pair slowed by a stretch of its own, found by search.

    Ding et al. 2024, arXiv:2402.13753, equation 3. The attention factor is sqrt(1 + ln(factor) / ln(L)) unless
    given. Where `short_factor` is another list, queries within the original length see all keys by that one, and later
    queries by the long one: each by its own position, where Transformers and the authors' code switch whole batches.
    The paper's first positions that are not interpolated are `unscaled_prefix`.
    """

    lawless: ClassVar[dict[str, str]] = {
        "descending": "the stretches are the caller's",
        "stretch": "the stretches are the caller's",
    }

    long_factor: tuple[float, ...]  # stretch of each pair
    short_factor: tuple[float, ...] = ()  # the same below the original length; empty stands for long_factor
    attention_factor: float | None = None
    unscaled_prefix: int = 0  # first positions, which keep the angles that they were pretrained with

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("long_factor", "short_factor"):
            object.__setattr__(self, knob, self._stretches(knob))
        if not self.long_factor:
            raise InvalidArgumentError(
                "longrope: long_factor must hold one stretch per pair, got an empty list; give the list"
            )
        if not self.short_factor:
            object.__setattr__(self, "short_factor", self.long_factor)
        if len(self.short_factor) != len(self.long_factor):
            raise InvalidArgumentError(
                f"longrope: short_factor must be as long as long_factor ({len(self.long_factor)}), got "
                f"{len(self.short_factor)}; leave short_factor out for one list at every length"
            )
        if self.attention_factor is not None:
            self.require_number("attention_factor", above=0)
        require_whole(
            "longrope: unscaled_prefix",
            self.unscaled_prefix,
            0,
            LONGEST,
            rule=f"a whole number of tokens, from 0 to {LONGEST}",
            remedy="leave it out",
        )

    def _stretches(self, knob: str) -> tuple[float, ...]:
        value = getattr(self, knob)
        if not isinstance(value, (list, tuple)) or not all(0 < as_float(item) < math.inf for item in value):
            raise InvalidArgumentError(
                f"longrope: {knob} must be a list of finite numbers above 0, one per pair, got {shortened(value)}; "
                f"give the list"
            )
        return tuple(float(item) for item in value)

    def at_length(self, geometry: Geometry, length: float) -> FixedMethod:
        if self.short_factor == self.long_factor or length > geometry.original_length:
            return self
        return replace(self, long_factor=self.short_factor)

    def when_read(self, geometry: Geometry) -> Method | None:
        if self.short_factor == self.long_factor and not self.unscaled_prefix:
            return None
        return Switch(
            below=self.spectrum(geometry, geometry.original_length),
            above=self.spectrum(geometry),
            prefix=self.unscaled_prefix,
        )

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        if len(self.long_factor) != geometry.pairs:
            raise InvalidArgumentError(
                f"longrope: long_factor must hold one stretch per pair ({geometry.pairs}), got "
                f"{len(self.long_factor)}; give a list for this model's head"
            )
        return slowed(base, torch.tensor(self.long_factor, dtype=base.dtype), geometry)

    def attention_factor_for(self, geometry: Geometry) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor == 1:
            return 1.0
        if geometry.original_length < 2:
            raise InvalidArgumentError(
                f"longrope: original_length must be at least 2 to give an attention factor, got "
                f"{geometry.original_length}; give attention_factor"
            )
        return math.sqrt(1 + math.log(self.factor) / math.log(geometry.original_length))
