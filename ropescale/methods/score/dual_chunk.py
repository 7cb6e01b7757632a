"""Dual Chunk Attention."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import LateMethod, Region, after, nowhere, sharpened
from ropescale.spectrum import Spectrum


@dataclass(frozen=True, kw_only=True)
class DualChunk(LateMethod, name="dual_chunk"):
    """Positions start again in every chunk; the chunk before keeps its distances near the border, others lie far.

    An et al. 2024, arXiv:2402.17463, with the bounds of the released code: chunks of `chunk - local` tokens, positions
    of queries up to `chunk`, or up to the end of two chunks where that is less (`local` of half of `chunk` and more;
    the paper has the largest one there too). The released code also multiplies cosines and sines by
    0.05 ln(n / L) + 1 for a sequence of n tokens, which the paper's results do not. A factor that grows with the
    sequence would leave what is cached behind, so here `attention_factor` is one for all, and 1 unless given.
    """

    chunk: int | None = None  # the largest distance, tokens; three quarters of the original length if not given
    local: int | None = None  # of these, kept for the border to the chunk before; an eighth of the original length
    attention_factor: float = 1.0  # multiplies cosines and sines, so scores by its square

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob in ("chunk", "local"):
            if getattr(self, knob) is not None:
                self.require_tokens(knob)
        self.require_number("attention_factor", above=0)
        if self.chunk is not None and self.local is not None and self.local >= self.chunk:
            raise InvalidArgumentError(
                f"dual_chunk: local must be below chunk ({self.chunk}), got {self.local}; leave both out"
            )

    def _sizes(self, geometry: Geometry) -> tuple[int, int]:
        """The largest position of a query, and tokens of a chunk."""
        chunk = self.chunk or max(2, geometry.original_length * 3 // 4)
        local = self.local or max(1, min(geometry.original_length // 8, chunk - 1))
        if local >= chunk:
            raise InvalidArgumentError(
                f"dual_chunk: local must be below chunk ({chunk}), got {local}; give both, or leave both out"
            )
        inner = chunk - local
        return min(chunk, 2 * inner - 1), inner

    def stages(self, geometry: Geometry) -> list[Spectrum]:
        return [sharpened(self.base_spectrum(geometry), self.attention_factor)]

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        largest, inner = self._sizes(geometry)
        apart = query // inner - key // inner
        before = (query % inner + inner).clamp(max=largest)
        at = torch.where(apart == 0, query % inner, torch.where(apart == 1, before, largest))
        return at - key % inner, key <= query

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        largest, inner = self._sizes(geometry)
        (spectrum,) = self.stages(geometry)

        def chunk_start(i: Tensor) -> Tensor:
            return i // inner * inner

        def chunk_before(i: Tensor) -> Tensor:
            return (chunk_start(i) - inner).clamp(min=0)

        def within(positions: Tensor) -> Tensor:
            return positions % inner

        return [
            Region(query=lambda i: torch.full_like(i, largest), key=within, start=nowhere, stop=chunk_before,
                   spectrum=spectrum),
            Region(query=lambda i: (i % inner + inner).clamp(max=largest), key=within, start=chunk_before,
                   stop=chunk_start, spectrum=spectrum),
            Region(query=within, key=within, start=chunk_start, stop=after, spectrum=spectrum),
        ]  # fmt: skip
