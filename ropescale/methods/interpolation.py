"""What methods share that interpolate positions by a factor of its own for each layer, or for each head."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ropescale.checks import as_float
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.late import LateMethod, Region, causal


@dataclass(frozen=True, kw_only=True)
class LocalInterpolation(LateMethod):
    """Positions divided by a factor that differs by layer or head; a layer whose factor is 1 is left as it is.

    A `factor` is the target length that the config states, and divides nothing.
    """

    abstract: ClassVar[bool] = True

    @abstractmethod
    def head_factors(self, geometry: Geometry, heads: int) -> Tensor:
        """As `LateMethod.head_factors`."""

    @abstractmethod
    def span(self, geometry: Geometry, layer: int) -> tuple[float, float]:
        """The least and the largest factor that a layer has, whatever its heads.

        Raises:
            InvalidArgumentError: knobs for other layers than the model has.
        """

    def left(self, geometry: Geometry) -> frozenset[int]:
        """As `LateMethod.left`."""
        return frozenset(number for number in range(geometry.layers) if self.span(geometry, number) == (1, 1))

    def target_length(self, geometry: Geometry) -> int:
        """As `LateMethod.target_length`: what the least factor brings back to the original length."""
        least = min(self.span(geometry, number)[0] for number in range(geometry.layers))
        return min(int(least * geometry.original_length), LONGEST)

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        """As `LateMethod.regions`."""
        return [causal(self.base_spectrum(geometry))]

    def require_factors(self, knob: str, *, at_least: int, what: str) -> None:
        """Check a knob that lists factors, and store it as a tuple of floats.

        Raises:
            InvalidArgumentError: no list, too short a one, or entries that are no finite numbers of at least 1.
        """
        given = getattr(self, knob)
        numbers = [as_float(one) for one in given] if isinstance(given, (list, tuple)) else []
        if len(numbers) < at_least or not all(1 <= number <= LONGEST for number in numbers):
            raise InvalidArgumentError(
                f"{self.name}: {knob} must be {what}, each of at least 1, got {shortened(given)}; 1 leaves positions "
                f"as they are"
            )
        object.__setattr__(self, knob, tuple(numbers))
