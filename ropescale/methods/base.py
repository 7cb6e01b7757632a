"""What a method is, the laws that rotation methods obey, and the registry where all are found by name."""

import dataclasses
import math
from abc import ABCMeta
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropescale.checks import as_float, require_flag, require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.listing import unknown_method
from ropescale.registry import entered
from ropescale.spectrum import Spectrum, base_inv_freq, resonant, tapered, theta_inv_freq, theta_series

_METHODS: dict[str, type["Method"]] = {}
_KINDS: list[type["Method"]] = []

# Transformers divides by the factors of its longrope form: dividing by this one leaves no rotation at all,
# and 1e30 * theta^x stays below the largest float32 (3.4e38) for every theta in use.
WITHOUT_POSITION = 1e30


class _OfItsKind(ABCMeta):
    """Makes a class that names the root alone one of the kind whose definition it holds."""

    def __new__(cls, named: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **given: Any) -> "_OfItsKind":
        if bases and Method in bases and not namespace.get("abstract", False):
            kind = next((candidate for candidate in _KINDS if namespace.keys() & set(candidate.defined_by)), Method)
            bases = tuple(kind if base is Method else base for base in bases)
        return super().__new__(cls, named, bases, namespace, **given)


@dataclass(frozen=True, kw_only=True)
class Method(metaclass=_OfItsKind):
    """A way to give a model a longer context: a registry name and knobs.

    A subclass is a frozen dataclass; defining it registers it. There are two kinds: `FixedMethod`, for frequencies
    that are fixed, and `ropescale.methods.late.LateMethod`, for all that acts when attention reads. A class that names
    this root alone is of the kind that its definition belongs to: `inv_freq` or `spectrum`, or `distance`.

    Example:
        >>> import dataclasses, ropescale
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class HalfAsFast(ropescale.Method, name="half_as_fast"):
        ...     def inv_freq(self, base, geometry):
        ...         return base / 2
        >>> model = ropescale.patch(ropescale.load("tiny"), method="half_as_fast", factor=2)
        >>> ropescale.record(model).method
        'half_as_fast'
    """

    name: ClassVar[str]
    abstract: ClassVar[bool] = True  # a kind of method, which has no name; each class says so for itself
    defined_by: ClassVar[tuple[str, ...]] = ()  # what a class of that kind defines, one of them at least
    optional: ClassVar[tuple[str, ...]] = ()  # knobs that are off by default, and in records only where they are on

    factor: float | None  # target length / original length, at least 1

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("abstract", False):
            if cls.__dict__.get("defined_by"):
                _KINDS.append(cls)
            return
        cls.abstract = False
        cls.name = entered("method", cls, name, _METHODS)
        cls.require_definition()
        _METHODS[cls.name] = cls

    @classmethod
    def require_definition(cls) -> None:
        """Refuse a class that does not define what its kind needs.

        Raises:
            InvalidArgumentError: the message names what is missing.
        """
        if not any(issubclass(cls, kind) for kind in _KINDS):
            needed = [f"{' or '.join(kind.defined_by)} ({kind.__name__})" for kind in _KINDS]
            raise InvalidArgumentError(
                f"method class {cls.__qualname__}: {', or '.join(needed)} must be defined, got none of them; define "
                f"one of them"
            )

    def knobs(self) -> dict[str, Any]:
        """Every field with its value, as JSON can hold it; without optional ones that are off."""
        values = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in self.optional or getattr(self, item.name) != item.default
        }
        return {name: _as_json(value) for name, value in values.items()}

    def require_number(
        self,
        knob: str,
        *,
        at_least: float = -math.inf,
        above: float = -math.inf,
        at_most: float = math.inf,
        hint: str = "",
    ) -> None:
        """Check a numeric knob and store it as a float.

        Raises:
            InvalidArgumentError: not a finite number within the bounds.
        """
        value = getattr(self, knob)
        number = as_float(value)
        if not (math.isfinite(number) and above < number and at_least <= number <= at_most):
            bounds = [
                f"{word} {bound:.9g}"
                for word, bound in (("of at least", at_least), ("above", above), ("at most", at_most))
                if math.isfinite(bound)
            ]
            rule = f"a number {' and '.join(bounds)}" + (f" ({hint})" if hint else "")
            raise InvalidArgumentError(
                f"{self.name}: {knob} must be {rule}, got {shortened(value)}; "
                f"`ropescale methods` lists the knobs with their defaults"
            )
        object.__setattr__(self, knob, number)

    def require_order(self, low: str, high: str) -> None:
        """Check that one knob is at most another.

        Raises:
            InvalidArgumentError: it is above.
        """
        least, most = getattr(self, low), getattr(self, high)
        if least > most:
            raise InvalidArgumentError(
                f"{self.name}: {low} must be at most {high} ({most:g}), got {least:g}; lower {low} or raise {high}"
            )

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{knob}={value!r}' for knob, value in self.knobs().items())})"


@dataclass(frozen=True, kw_only=True)
class FixedMethod(Method):
    """A method of fixed frequencies: a name, knobs, and one function to a spectrum.

    A subclass is a frozen dataclass with a registry name, and defines `inv_freq` (and `attention_factor_for`
    where it has one), or `spectrum` itself. Defining the class registers it.

    Laws, tested for every registered method: `spectrum` is the identity at factor 1, its frequencies strictly
    descend, and every pair's stretch lies within [1, factor]. What a method does not obey it declares in
    `lawless`, with the reason.

    Two knobs go with every method. `resonance` rounds wavelengths (`ropescale.spectrum.resonant`); `clipped` lets the
    frequencies of that many of the slowest pairs fall to 0 (`ropescale.spectrum.tapered`), before they are rounded.
    """

    abstract: ClassVar[bool] = True
    defined_by: ClassVar[tuple[str, ...]] = ("inv_freq", "spectrum")
    optional: ClassVar[tuple[str, ...]] = ("clipped",)
    lawless: ClassVar[dict[str, str]] = {}  # law -> why this method does not obey it

    factor: float  # target length / original length, at least 1
    resonance: bool = False  # round wavelengths to whole tokens
    clipped: int = 0  # pairs, the slowest, whose frequencies fall along a cosine to 0

    @classmethod
    def require_definition(cls) -> None:
        """Refuse a class that defines no frequencies.

        Raises:
            InvalidArgumentError: the message names what is missing.
        """
        if cls.inv_freq is FixedMethod.inv_freq and cls.spectrum is FixedMethod.spectrum:
            raise InvalidArgumentError(
                f"method class {cls.__qualname__}: inv_freq or spectrum must be defined, got neither; "
                f"define one of them"
            )

    def __post_init__(self) -> None:
        self.require_number("factor", at_least=1, at_most=LONGEST, hint="1 leaves the model as it is")
        require_flag(f"{self.name}: resonance", self.resonance, default=False)
        require_whole(
            f"{self.name}: clipped",
            self.clipped,
            0,
            LONGEST,
            rule="a whole number of pairs, of at least 0",
            remedy="leave it out for none",
        )
        for knob, off in (("resonance", False), ("clipped", 0)):
            if getattr(self, knob) != off and type(self).spectrum is not FixedMethod.spectrum:
                raise InvalidArgumentError(
                    f"{self.name}: {knob} must be {off} for a method that defines spectrum itself, got "
                    f"{getattr(self, knob)}; define inv_freq instead"
                )

    @property
    def modified(self) -> bool:
        """Whether resonance or a taper changes what `inv_freq` gives, so that no formula of the method states it."""
        return self.resonance or self.clipped > 1

    def inv_freq(self, base: Tensor, geometry: Geometry) -> Tensor:
        """[pairs], in the dtype of `base`: the rescaled inverse frequencies; pure."""
        raise NotImplementedError

    def attention_factor_for(self, geometry: Geometry) -> float:
        """What multiplies cos and sin."""
        return 1.0

    def at_length(self, geometry: Geometry, length: float) -> "FixedMethod":
        """What this method is in a context of `length` tokens: itself, where frequencies do not depend on that."""
        return self

    def when_read(self, geometry: Geometry) -> Method | None:
        """The method that acts for this one when attention reads; None where its frequencies are fixed."""
        return None

    def spectrum(self, geometry: Geometry, length: float | None = None) -> Spectrum:
        """The rescaled spectrum of `geometry`: pure, and the identity at factor 1 where that law holds.

        Arguments:
            geometry: the rotary facts of a model.
            length: tokens of the context, which matters to a method whose frequencies depend on it; the target
                length if not given.

        Raises:
            InvalidArgumentError: knobs that do not fit this geometry.
        """
        if not isinstance(geometry, Geometry):
            raise InvalidArgumentError(
                f"{self.name}: spectrum must be asked of a Geometry, got {type(geometry).__name__}; "
                f"read it with ropescale.read_geometry(config)"
            )
        if length is not None and (other := self.at_length(geometry, length)) is not self:
            return other.spectrum(geometry)
        if self.factor == 1 and "identity" not in self.laws_broken():
            return Spectrum(base_inv_freq(geometry), geometry.attention_factor)
        # float64 under resonance, because rounding a wavelength of 1e4 tokens needs more than seven digits
        base = base_inv_freq(geometry, torch.float64 if self.resonance else torch.float32)
        rescaled = self.inv_freq(base, geometry)
        if not isinstance(rescaled, Tensor) or rescaled.shape != base.shape:
            shown = f"shape {tuple(rescaled.shape)}" if isinstance(rescaled, Tensor) else type(rescaled).__name__
            raise InvalidArgumentError(
                f"{self.name}: inv_freq must return a tensor with one entry per pair ({geometry.pairs}), got {shown}; "
                f"correct the method"
            )
        if self.clipped > geometry.pairs:
            raise InvalidArgumentError(
                f"{self.name}: clipped must be at most the pairs of a head ({geometry.pairs}), got {self.clipped}; "
                f"give fewer"
            )
        if self.clipped:
            rescaled = tapered(rescaled, self.clipped)
        return Spectrum(
            (resonant(rescaled) if self.resonance else rescaled).float(),
            self.attention_factor_for(geometry) * geometry.attention_factor,
        )

    def laws_broken(self) -> dict[str, str]:
        """Law -> reason, of this instance."""
        broken = dict(self.lawless)
        if self.clipped > 1:
            broken |= dict.fromkeys(("identity", "stretch"), "clipped pairs lose their position")
        if self.resonance:
            reason = "rounding a wavelength to whole tokens moves it to either side"
            broken |= dict.fromkeys(("identity", "descending", "stretch"), reason)
        return broken

    def rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        """How Transformers spells this spectrum in config.json, so that a saved model loads without ropescale.

        The native type where one is exact; the default here states the spectrum pair by pair.
        """
        return self.pairwise_rope_parameters(geometry)

    def pairwise_rope_parameters(self, geometry: Geometry) -> dict[str, Any]:
        """The spectrum in Transformers' longrope form with equal lists, which can state any fixed spectrum."""
        spectrum = self.spectrum(geometry)
        theirs = theta_inv_freq(geometry.theta, geometry.rotary_dim)
        if torch.equal(spectrum.inv_freq, theirs) and spectrum.attention_factor == 1:
            return {"rope_type": "default", "rope_theta": geometry.theta}
        return self.pair_by_pair(geometry)

    def pair_by_pair(self, geometry: Geometry) -> dict[str, Any]:
        """The same also where theta alone would state it."""
        spectrum = self.spectrum(geometry)
        factors = divisors(spectrum.inv_freq, geometry).tolist()
        return {
            "rope_type": "longrope",
            "rope_theta": geometry.theta,
            "factor": self.factor,
            "short_factor": factors,
            "long_factor": list(factors),
            "attention_factor": spectrum.attention_factor,
            "original_max_position_embeddings": geometry.original_length,
        }

    def native_rope_parameters(self, geometry: Geometry, rope_type: str, **keys: Any) -> dict[str, Any]:
        """The spectrum as a native type with these keys, or pair by pair where that type would not be exact.

        A native type is exact on theta's own base, without a modifier, and at a factor that changes something.
        """
        if self.modified or geometry.inv_freq or geometry.attention_factor != 1 or self.factor == 1:
            return self.pairwise_rope_parameters(geometry)
        return {"rope_type": rope_type, "rope_theta": geometry.theta, "factor": self.factor, **keys}


def _as_json(value: Any) -> Any:
    """A knob as JSON gives it back."""
    return [_as_json(one) for one in value] if isinstance(value, tuple) else value


def divisors(inv_freq: Tensor, geometry: Geometry) -> Tensor:
    """[pairs] float32: the longrope factors f for which Transformers' 1 / (f theta^x) comes out as `inv_freq`.

    It rounds twice, so the exact quotient can miss by a bit: of the quotient and its neighbours, the one that comes
    nearest is taken, so that nearly every pair reloads bit for bit.
    """
    series = theta_series(geometry.theta, geometry.rotary_dim)
    nearest = (1 / (inv_freq.double() * series.double())).float()
    below = torch.nextafter(nearest, torch.zeros((), dtype=torch.float32))
    above = torch.nextafter(nearest, torch.full((), math.inf, dtype=torch.float32))
    candidates = torch.stack((nearest, below, above))
    misses = (1.0 / (candidates * series) - inv_freq).abs()
    best = candidates.gather(0, misses.argmin(dim=0, keepdim=True)).squeeze(0)
    return torch.where(inv_freq > 0, best, WITHOUT_POSITION)


def get_method(name: str) -> type[Method]:
    """The method class of that registry name.

    Example:
        >>> import ropescale
        >>> ropescale.get_method("yarn")(factor=4, beta_fast=16).beta_fast
        16.0

    Raises:
        UnknownMethodError: not in the registry; the message names what is near and what there is.
    """
    if isinstance(name, str) and name in _METHODS:
        return _METHODS[name]
    raise unknown_method(name, _METHODS)


def list_methods() -> list[str]:
    """The registry names, sorted.

    Example:
        >>> import ropescale
        >>> "yarn" in ropescale.list_methods()
        True
    """
    return sorted(_METHODS)
