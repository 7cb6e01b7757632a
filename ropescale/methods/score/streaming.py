"""StreamingLLM."""

from dataclasses import dataclass

from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, after, nowhere, same


@dataclass(frozen=True, kw_only=True)
class Streaming(LateMethod, name="streaming"):
    """Sees the first tokens and the latest ones, as if the first stood right before the latest.

    Xiao et al. 2023, arXiv:2309.17453, with distances by place among the visible tokens. It masks, and frees no
    cache; it reads no more than `sinks + recent` tokens at a time, so it is fluent at any length and extends nothing.
    The released code reads a whole prompt unmasked and drops keys after it; here a prompt is read as it would be token
    by token. Its `recent_size` counts keys of the cache, to which the query's own comes: one less than `recent`.
    """

    sinks: int = 4  # first tokens, always visible
    recent: int | None = None  # latest tokens, the query among them; the original length less the sinks if not given

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_tokens("sinks", at_least=0)
        if self.recent is not None:
            self.require_tokens("recent")

    def _recent(self, geometry: Geometry) -> int:
        return self.recent or max(1, geometry.original_length - self.sinks)

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        recent, distance = self._recent(geometry), query - key
        near = distance < recent
        # a first token that is not near: the tokens between it and the latest ones are not there
        return distance.where(near, self._place(geometry, query) - key), (key <= query) & (near | (key < self.sinks))

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        recent, spectrum = self._recent(geometry), self.base_spectrum(geometry)

        def near(i: Tensor) -> Tensor:
            return (i - recent + 1).clamp(min=0)

        return [
            Region(query=lambda i: self._place(geometry, i), key=same, start=nowhere,
                   stop=lambda i: near(i).clamp(max=self.sinks), spectrum=spectrum),
            Region(query=same, key=same, start=near, stop=after, spectrum=spectrum),
        ]  # fmt: skip

    def _place(self, geometry: Geometry, query: Tensor) -> Tensor:
        """The place of a query among the visible tokens."""
        return query.clamp(max=self.sinks + self._recent(geometry) - 1)
