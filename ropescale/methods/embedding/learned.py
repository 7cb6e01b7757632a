"""Learned positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.late import Added, Sizes, WithoutRotation

SPREAD = 0.02  # standard deviation that the vectors begin with, as in GPT-2
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Learned(WithoutRotation, name="learned"):
    """A learned vector per position, added to the vectors that enter the first layer.

    Gehring et al. 2017, arXiv:1705.03122, section 3.1; as in GPT-2, without anything beyond `max_length`.
    """

    max_length: int  # tokens, beyond which there is no vector

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_tokens("max_length")

    def target_length(self, geometry: Geometry) -> int:
        return self.max_length

    def added(self, geometry: Geometry, sizes: Sizes) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        drawn = torch.randn(self.max_length, sizes.hidden, generator=generator, dtype=torch.float32)
        return {"vectors": drawn * SPREAD}

    def embedding(self, position: Tensor, hidden: int, added: Added) -> Tensor:
        # torch names neither the position nor the remedy; under compilation it has to do
        if not torch.compiler.is_compiling() and int(position.max()) >= self.max_length:
            raise InvalidArgumentError(
                f"learned: max_length must be above every position, got {self.max_length} for position "
                f"{int(position.max())}; patch with a larger max_length, or read a shorter text"
            )
        return added["vectors"][position]
