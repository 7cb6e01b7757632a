"""LM-Infinite."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, after, nowhere, same


@dataclass(frozen=True, kw_only=True)
class LMInfinite(LateMethod, name="lm_infinite"):
    """Sees the nearest tokens and the first ones, at distances that never exceed a limit.

    Han et al. 2023, arXiv:2308.16137. Tokens in between are not read: fluent at any length, and blind in the middle.
    As in the paper, no distance exceeds the limit, and none is lengthened. The released code differs where `limit` is
    not `local`: near tokens keep distances beyond the limit, and first tokens that are not near stand at the limit
    exactly, also where they are nearer. Its authors' settings have one number for both, where it is the same. Its
    tokens of the middle that score highest (`top_k`) are not offered.
    """

    local: int | None = None  # tokens nearer than this are visible; the original length if not given
    sinks: int = 10  # first tokens, always visible
    limit: int | None = None  # the largest distance; the original length if not given

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("local", "limit"):
            if getattr(self, knob) is not None:
                self.require_tokens(knob)
        self.require_tokens("sinks", at_least=0)

    def _bounds(self, geometry: Geometry) -> tuple[int, int]:
        return self.local or geometry.original_length, self.limit or geometry.original_length

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        local, limit = self._bounds(geometry)
        distance = query - key
        return distance.clamp(max=limit), (key <= query) & ((distance < local) | (key < self.sinks))

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        local, limit = self._bounds(geometry)
        spectrum = self.base_spectrum(geometry)

        def nearer(i: Tensor, tokens: int) -> Tensor:
            """The first position nearer than so many tokens."""
            return (i - tokens + 1).clamp(min=0)

        def first(i: Tensor) -> Tensor:
            """Where the first tokens end that are not near."""
            return nearer(i, local).clamp(max=self.sinks)

        def within(i: Tensor) -> Tensor:
            """The first position at a distance of at most the limit."""
            return nearer(i, limit + 1)

        def at_limit(i: Tensor) -> Tensor:
            return torch.full_like(i, limit)

        def near_start(i: Tensor) -> Tensor:
            return torch.maximum(nearer(i, local), within(i))

        return [
            Region(query=at_limit, key=nowhere, start=nowhere, stop=lambda i: torch.minimum(first(i), within(i)),
                   spectrum=spectrum),
            Region(query=same, key=same, start=lambda i: torch.minimum(within(i), first(i)), stop=first,
                   spectrum=spectrum),
            Region(query=at_limit, key=nowhere, start=lambda i: nearer(i, local), stop=near_start, spectrum=spectrum),
            Region(query=same, key=same, start=near_start, stop=after, spectrum=spectrum),
        ]  # fmt: skip
