"""No scaling."""

from dataclasses import dataclass

from torch import Tensor

from ropescale.geometry import Geometry
from ropescale.methods.base import FixedMethod


@dataclass(frozen=True, kw_only=True)
class Unscaled(FixedMethod, name="unscaled"):
    """The rotation as pretrained, and the limit raised alone.

    For models whose layers that read the whole context have no positions, as in Cohere 2, EXAONE 4 and Llama 4: what
    rotates there looks at a window, where no distance grows with the context. (Yang et al. 2025, arXiv:2501.18795)
    """

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        return base
