"""Multi-scale positional encoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropescale.checks import is_whole, require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.interpolation import LocalInterpolation


@dataclass(frozen=True, kw_only=True)
class MsPoE(LocalInterpolation, name="ms_poe"):
    """Positions divided by a factor of its own in each head.

    Zhang et al. 2024, arXiv:2403.04797, section 3: the head of rank h of H has the factor low + (high - low) h / H, in
    layers from `start` on; rank 0 is the head that is most aware of positions. Every head of the queries reads the
    keys of its group by its own factor.

    The ranks are fixed: given by `ranks`, found once on your texts by `ropescale.ranking.head_ranks`, or else the
    heads' own order. The released code ranks anew by the last token of each prompt and keeps that order over the
    cache, so that the tokens of a prompt are read otherwise after more of it is known; it looks factors up by the
    order of heads rather than by their ranks, which is the inverse permutation; and in grouped-query attention it
    rotates keys by the factor of their group's first head, so that scores depend on where a text begins. None of this
    is followed here.
    """

    low: float = 1.2  # the factor of the head of rank 0
    high: float = 1.8  # what the factors of the other heads approach
    start: int | None = None  # the first layer, from 0; 2, or a quarter of the layers if that is less
    ranks: tuple[Any, ...] | None = None  # of the heads from 0, one list for all layers, or a list for each layer

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("low", "high"):
            self.require_number(knob, at_least=1, at_most=LONGEST, hint="1 leaves positions as they are")
        self.require_order("low", "high")
        if self.start is not None:
            whole = f"the number of a layer, from 0 to {LONGEST}"
            require_whole("ms_poe: start", self.start, 0, LONGEST, rule=whole, remedy="leave it out for the third")
        if self.ranks is None:
            return
        nested = isinstance(self.ranks, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in self.ranks)
        if not all(map(_is_ranking, self.ranks)) if nested else not _is_ranking(self.ranks):
            raise InvalidArgumentError(
                f"ms_poe: ranks must hold each number from 0 to below the number of heads once, in one list or in one "
                f"for each layer, got {shortened(self.ranks)}; take those of ropescale.ranking.head_ranks"
            )
        object.__setattr__(self, "ranks", tuple(map(tuple, self.ranks)) if nested else tuple(self.ranks))

    def first(self, geometry: Geometry) -> int:
        """The first layer that it acts in."""
        if self.start is not None and self.start >= geometry.layers:
            raise InvalidArgumentError(
                f"ms_poe: start must be below the number of layers ({geometry.layers}), got {self.start}; give less"
            )
        return min(2, geometry.layers // 4) if self.start is None else self.start

    def span(self, geometry: Geometry, layer: int) -> tuple[float, float]:
        """As `LocalInterpolation.span`."""
        return (1, 1) if layer < self.first(geometry) else (self.low, self.high)

    def head_factors(self, geometry: Geometry, heads: int) -> Tensor:
        rows = []
        for number in range(geometry.layers):
            low, high = self.span(geometry, number)
            rows.append([low + (high - low) * rank / heads for rank in self._ranks_in(number, geometry, heads)])
        return torch.tensor(rows, dtype=torch.float32)

    def _ranks_in(self, layer: int, geometry: Geometry, heads: int) -> Sequence[int]:
        """[heads]: the ranks of a layer's heads."""
        if self.ranks is None:
            return range(heads)
        nested = isinstance(self.ranks[0], tuple)
        if nested and len(self.ranks) != geometry.layers:
            raise InvalidArgumentError(
                f"ms_poe: ranks must be one list, or one for each layer of the model ({geometry.layers}), got "
                f"{len(self.ranks)}; take those of ropescale.ranking.head_ranks"
            )
        own: Sequence[int] = self.ranks[layer] if nested else self.ranks
        if len(own) != heads:
            raise InvalidArgumentError(
                f"ms_poe: ranks must hold one for each head of the queries ({heads}), got {len(own)}; take those of "
                f"ropescale.ranking.head_ranks"
            )
        return own


def _is_ranking(ranks: Any) -> bool:
    """Whether this holds each number from 0 to below its length once."""
    if not isinstance(ranks, (list, tuple)) or not ranks or not all(is_whole(one, 0) for one in ranks):
        return False
    return sorted(ranks) == list(range(len(ranks)))
