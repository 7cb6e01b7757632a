"""Dimension-wise positional embeddings manipulation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.checks import is_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.late import LateMethod, Region, two_regions

PARTS = 8  # of the pairs, from the fastest to the slowest


@dataclass(frozen=True, kw_only=True)
class DPE(LateMethod, name="dpe"):
    """Self-Extend with a group size for each eighth of the pairs.

    Lu et al. 2025, arXiv:2504.18857: pair p of eighth e has a distance of floor(i / G_e) - floor(j / G_e) + W -
    floor(W / G_e) beyond a window W. The group sizes are found by a search on needles; these are the published ones of
    Llama 3 8B, from 8,192 to 131,072 tokens (the authors' configuration; their README has others). As in Self-Extend
    the released code shifts by W - W / G in one pass and by the floor over a cache, and drops the shift while no query
    has reached the window; here it is always the floor. It can leave a head's pairs with the least products of norms
    as they are, which is not offered.
    """

    groups: tuple[int, ...] = (2, 8, 2, 8, 32, 32, 32, 4)  # positions that count as one, for each eighth of the pairs
    window: int | None = None  # tokens; 1,024, or half the original length if that is less

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.groups
        if (
            not isinstance(given, (list, tuple))
            or len(given) != PARTS
            or not all(is_whole(size, 1, LONGEST) for size in given)
        ):
            raise InvalidArgumentError(
                f"dpe: groups must be {PARTS} whole numbers from 1 to {LONGEST}, one for each eighth of the pairs, "
                f"got {shortened(given)}; leave it out for the published ones"
            )
        object.__setattr__(self, "groups", tuple(given))
        if self.window is not None:
            self.require_tokens("window")

    def window_for(self, geometry: Geometry) -> int:
        """Tokens of the window."""
        return self.window or min(1024, max(1, geometry.original_length // 2))

    def target_length(self, geometry: Geometry) -> int:
        window = self.window_for(geometry)
        return max(geometry.original_length, (geometry.original_length - window) * max(self.groups) + window)

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As `LateMethod.distance`: the largest one that a pair has, which is that of the smallest groups."""
        return self._seen(geometry, query, key, min(self.groups)), key <= query

    def angles(self, geometry: Geometry, query: Tensor, key: Tensor, distance: Tensor, inv_freq: Tensor) -> Tensor:
        seen = self._seen(geometry, query[..., None], key[..., None], self._sizes(query))
        return _by_pair(seen.float(), geometry) * inv_freq[..., None, :]

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        return two_regions(
            self.base_spectrum(geometry),
            self.window_for(geometry),
            lambda i: _by_pair(self._place(geometry, i[..., None], self._sizes(i)), geometry),
            lambda j: _by_pair(j[..., None] // self._sizes(j), geometry),
        )

    def _sizes(self, positions: Tensor) -> Tensor:
        """[8] int64: the group sizes, where positions are."""
        return torch.tensor(self.groups, dtype=torch.int64, device=positions.device)

    def _seen(self, geometry: Geometry, query: Tensor, key: Tensor, sizes: Tensor | int) -> Tensor:
        distance = query - key
        far = self._place(geometry, query, sizes) - key // sizes
        return torch.where(distance < self.window_for(geometry), distance, far)

    def _place(self, geometry: Geometry, query: Tensor, sizes: Tensor | int) -> Tensor:
        """Where a query stands among groups, which go on where the window ends."""
        window = self.window_for(geometry)
        return query // sizes + (window - window // sizes)


def _by_pair(parts: Tensor, geometry: Geometry) -> Tensor:
    """[..., pairs] of what is [..., 8], one for each eighth of the pairs."""
    return parts[..., torch.arange(geometry.pairs, device=parts.device) * PARTS // geometry.pairs]
