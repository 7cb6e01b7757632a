"""What methods share that read far keys in groups of positions whose size follows the query's own position."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.late import LateMethod, Region, after, causal, nowhere, same

Places = TypeVar("Places", int, Tensor)  # positions of tokens

MOST_SIZES = 128  # of groups, for each of which keys are rotated: beyond, every query rotates its own


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How near keys are read as they are, and in which groups all others."""

    near: int  # tokens: distances below it are as they are
    free: int  # tokens that need no group
    room: int  # groups that there are for all other tokens
    joined: bool  # whether far distances go on where the near ones end

    def size(self, query: Places) -> Places:
        """Tokens of a group that hold those up to a query: ceil((i + 1 - free) / room)."""
        return -((self.free - 1 - query) // self.room)

    def place(self, query: Tensor, size: Tensor | int) -> Tensor:
        """Where a query stands among groups of a size."""
        return query // size + (self.near - self.near // size if self.joined else 0)


@dataclass(frozen=True, kw_only=True)
class GrowingGroups(LateMethod):
    """Distances near the query as they are, far ones in groups that grow with the query's position, 1 within L.

    A query at position i reads far keys in groups that would hold i + 1 tokens within the original length. A `factor`
    is a ceiling: groups stop growing at so many times the original length.
    """

    abstract: ClassVar[bool] = True

    window: int | None = None  # tokens that are read as they are

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            self.require_tokens("window")

    @abstractmethod
    def groups(self, geometry: Geometry) -> Groups:
        """What the method's formula is at this original length."""

    def window_for(self, geometry: Geometry, share: int) -> int:
        """Tokens of the window, by default that share of the original length.

        Raises:
            InvalidArgumentError: a window that leaves nothing of the original length to groups.
        """
        if self.window is None:
            return geometry.original_length // share
        if self.window >= geometry.original_length:
            raise InvalidArgumentError(
                f"{self.name}: window must be below the original length ({geometry.original_length}), got "
                f"{self.window}; leave it out for 1/{share} of that"
            )
        return self.window

    def sizes(self, geometry: Geometry, query: Tensor) -> Tensor:
        """Positions that count as one for queries at these positions; int64, of query's shape."""
        return self.groups(geometry).size(query).clamp(min=1, max=self._largest(geometry, LONGEST))

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As `LateMethod.distance`."""
        groups, size, distance = self.groups(geometry), self.sizes(geometry, query), query - key
        far = groups.place(query, size) - key // size
        return torch.where((distance < groups.near) | (size == 1), distance, far), key <= query

    def regions(self, geometry: Geometry, longest: int) -> list[Region] | None:
        """As `LateMethod.regions`: one for each size of a group, and one for what is read as it is."""
        spectrum, largest = self.base_spectrum(geometry), self._largest(geometry, longest)
        near = self.groups(geometry).near
        if largest > MOST_SIZES:
            return None
        if largest == 1:
            return [causal(spectrum)]

        def first_near(i: Tensor) -> Tensor:
            return torch.where(self.sizes(geometry, i) > 1, (i - near + 1).clamp(min=0), 0)

        return [
            Region(query=same, key=same, start=first_near, stop=after, spectrum=spectrum),
            *(self._far(geometry, size) for size in range(2, largest + 1)),
        ]

    def _far(self, geometry: Geometry, size: int) -> Region:
        """The far keys of queries that read them in groups of one size."""
        groups = self.groups(geometry)

        def stop(i: Tensor) -> Tensor:
            return torch.where(self.sizes(geometry, i) == size, (i - groups.near + 1).clamp(min=0), 0)

        return Region(
            query=lambda i: groups.place(i, size),
            key=lambda j: j // size,
            start=nowhere,
            stop=stop,
            spectrum=self.base_spectrum(geometry),
        )

    def _largest(self, geometry: Geometry, longest: int) -> int:
        """Positions that count as one for a query at `longest - 1`, within the ceiling."""
        length = longest if self.factor is None else min(longest, int(self.factor * geometry.original_length))
        return max(1, self.groups(geometry).size(length - 1))
