"""Layer-specific scaling of positional encodings."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError
from ropescale.geometry import Geometry
from ropescale.methods.interpolation import LocalInterpolation


@dataclass(frozen=True, kw_only=True)
class LPES(LocalInterpolation, name="lpes"):
    """Positions divided by a factor of its own in each layer, which a Bézier curve over the layers gives.

    Wang et al. 2025, arXiv:2503.04355 (section 3; LPES in arXiv:2606.27705). Layer l of N has the curve's value at
    t = l / (N - 1): sum_k C(n, k) (1 - t)^(n - k) t^k points_k, with n + 1 control points that stand side by side over
    the layers. The authors find a curve for each model by a genetic search on retrieval of values by keys; here
    `ropescale search --space knobs --method lpes` finds one. `factors` gives each layer its own instead.
    """

    # Factors at the control points, from the first layer to the last; by default a straight line over the span of
    # Ms-PoE (arXiv:2403.04797): of LPES none holds for all models
    points: tuple[float, ...] = (1.2, 1.8)
    factors: tuple[float, ...] | None = None  # or one for each layer of the model

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_factors("points", at_least=1, what="a list of factors at control points")
        if self.factors is not None:
            self.require_factors("factors", at_least=1, what="a list of factors, one for each layer")
            if self.points != type(self).points:
                raise InvalidArgumentError(
                    f"lpes: points and factors must not be given together, got {list(self.points)} and "
                    f"{list(self.factors)}; give one"
                )

    def by_layer(self, geometry: Geometry) -> list[float]:
        """The factor of each layer."""
        layers = geometry.layers
        if self.factors is None:
            return [_bezier(self.points, number / max(1, layers - 1)) for number in range(layers)]
        if len(self.factors) != layers:
            raise InvalidArgumentError(
                f"lpes: factors must be one for each layer of the model ({layers}), got {len(self.factors)}; give "
                f"points for a curve over all layers"
            )
        return list(self.factors)

    def span(self, geometry: Geometry, layer: int) -> tuple[float, float]:
        """As `LocalInterpolation.span`."""
        factor = self.by_layer(geometry)[layer]
        return factor, factor

    def head_factors(self, geometry: Geometry, heads: int) -> Tensor:
        return torch.tensor([[factor] for factor in self.by_layer(geometry)], dtype=torch.float32)


def _bezier(points: tuple[float, ...], t: float) -> float:
    """The value of a Bézier curve at t from 0 to 1, whose control points stand side by side."""
    degree = len(points) - 1
    terms = (math.comb(degree, k) * (1 - t) ** (degree - k) * t**k * point for k, point in enumerate(points))
    return min(max(math.fsum(terms), min(points)), max(points))  # which rounding leaves
