"""Request: what somebody asks of `patch`, whichever door it came through; pure."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ropescale.checks import did_you_mean, require_choice, require_flag, require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.families.parts import LAYERS
from ropescale.families.reading import require_existing
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods import Method, get_method
from ropescale.methods.late import LateMethod
from ropescale.records import Record
from ropescale.temperature import LOG_N, Temperature


@dataclass(frozen=True, kw_only=True)
class Request:
    """A method and what it is asked for; the fields are the arguments of `patch`, and mean what they mean there.

    Raises:
        InvalidArgumentError: a value that breaks its rule, an unknown or missing knob.
        UnknownMethodError: no method of that name.
    """

    method: str | Method = "yarn"
    factor: float | None = None
    target_length: int | None = None  # tokens
    original_length: int | None = None  # tokens
    existing: str = "error"
    layers: str = "global"
    log_n: bool = False  # another spelling of temperature="log_n"
    temperature: Temperature | str | Mapping[str, Any] | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_choice("layers:", self.layers, LAYERS, remedy="leave it out for 'global'")
        require_flag("log_n:", self.log_n, default=False)
        if self.temperature is not None:
            object.__setattr__(self, "temperature", Temperature.of(self.temperature))
        if self.temperature is not None and self.log_n:
            raise InvalidArgumentError(
                f"temperature: must be left out with log_n=True, which is a temperature itself, got "
                f"'{self.temperature}' beside it; give one of the two"
            )
        require_existing(self.existing)
        if isinstance(self.method, str):
            require_knobs(self.method, self.knobs)
        elif not isinstance(self.method, Method):
            raise InvalidArgumentError(
                f"method: must be a registry name or a Method instance, got {self.method!r}; see "
                f"ropescale.list_methods()"
            )

    @classmethod
    def of(cls, arguments: Mapping[str, Any], **others: Any) -> Self:
        """What a function's arguments ask, as `locals()` has them where it begins, or options as `vars` does.

        `others` come before them.
        """
        stated = {item.name: arguments[item.name] for item in dataclasses.fields(cls) if item.name in arguments}
        return cls(**{**stated, **others})

    @classmethod
    def again(cls, done: Record, *, layers: str | None = None) -> Self:
        """What gives a config what a record says was done to it; `layers` where the record means others than it says.

        Raises:
            CheckpointError: a method or knobs that this version does not have.
        """
        return cls(
            method=done.method_instance(),
            target_length=done.target_length,
            original_length=done.original_length,
            existing=done.existing,
            layers=done.layers if layers is None else layers,
            temperature=done.temperature,
        )

    def resolved(self, geometry: Geometry) -> tuple[Method, int]:
        """The method instance that is asked for, and its target length in tokens.

        Raises:
            InvalidArgumentError: a missing, surplus or contradictory factor, target length or knob.
        """
        original, target = geometry.original_length, self.target_length
        given = self.method if isinstance(self.method, Method) else None
        factor = self.factor if given is None else self._factor_of(given)
        if target is not None:
            require_whole(
                "target_length:",
                target,
                original,
                LONGEST,
                rule=f"a whole number of tokens, from the original length ({original}) to {LONGEST}",
                remedy="give the context length you want",
            )
        if factor is None and target is not None and given is None:
            factor = target / original
        kind = get_method(self.name)
        if factor is None and not issubclass(kind, LateMethod):
            raise InvalidArgumentError(
                f"{self.name}: factor or target_length is required, got neither; give factor=4 for four times the "
                f"original length ({original})"
            )
        method = given or kind(factor=factor, **self.knobs)
        if factor is None:
            assert isinstance(method, LateMethod)
            return method, target or method.target_length(geometry)
        if factor * original > LONGEST:
            raise InvalidArgumentError(
                f"factor: must give a target length of at most {LONGEST} tokens, up to which float32 tells "
                f"neighbouring positions apart, got {factor:g} times the original length ({original}); give a "
                f"smaller one"
            )
        reached = round(factor * original)
        if target is not None and target != reached:
            raise InvalidArgumentError(
                f"target_length: must agree with factor {factor:g} times the original length ({original}), which is "
                f"{reached}, got {target}; give only one of the two"
            )
        return method, reached

    def asked(self) -> dict[str, Any]:
        """What is asked for beside the method: arguments with other values than their defaults, and knobs."""
        plain = [item for item in dataclasses.fields(self) if item.name not in ("method", "knobs")]
        values = {item.name: getattr(self, item.name) for item in plain if getattr(self, item.name) != item.default}
        return {**values, **self.knobs}

    @property
    def multiplied(self) -> Temperature | None:
        """The temperature that is asked for, in whichever spelling; None for none."""
        assert self.temperature is None or isinstance(self.temperature, Temperature)
        return LOG_N if self.log_n else self.temperature

    @property
    def name(self) -> str:
        """The registry name of the method."""
        return self.method if isinstance(self.method, str) else self.method.name

    def _factor_of(self, given: Method) -> float | None:
        """The factor of an instance, with which nothing else may be given that it says itself."""
        if self.knobs:
            raise InvalidArgumentError(
                f"{given.name}: knobs must be set on the Method instance, got {', '.join(sorted(self.knobs))} beside "
                f"it; give the name {given.name!r} with knobs, or the instance alone"
            )
        stated: float | None = given.knobs()["factor"]
        if self.factor is not None and (isinstance(self.factor, bool) or self.factor != stated):
            raise InvalidArgumentError(
                f"factor: must agree with the Method instance ({'none' if stated is None else f'{stated:g}'}), got "
                f"{shortened(self.factor)}; leave it out"
            )
        return stated


def split_knobs(knobs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The knobs of a method alone, and what stands among them that goes with any method: log_n and temperature."""
    own = dict(knobs)
    return own, {name: own.pop(name) for name in ("log_n", "temperature") if name in own}


def require_knobs_by_method(what: str, knobs: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse knobs that are not an object for each of some methods; `what` names them in the message.

    Raises:
        InvalidArgumentError: no objects by names, another name, or something else than an object.
    """
    if not isinstance(knobs, Mapping):
        raise InvalidArgumentError(
            f"{what} must hold an object for a method, got {shortened(knobs)}; write it as in "
            f'{{"yarn": {{"beta_fast": 16}}}}'
        )
    for name, given in knobs.items():
        if name not in methods or not isinstance(given, Mapping):
            raise InvalidArgumentError(
                f"{what} must hold an object for a method that is asked for ({', '.join(methods)}), got {given!r} for "
                f'{name!r}; write it as in {{"yarn": {{"beta_fast": 16}}}}'
            )


def require_knobs(name: str, knobs: Mapping[str, Any]) -> None:
    """Refuse knobs that the method of that name does not have, and the lack of one that it needs.

    Raises:
        InvalidArgumentError: an unknown or missing knob.
        UnknownMethodError: no method of that name.
    """
    fields = {item.name: item for item in dataclasses.fields(get_method(name)) if item.name != "factor"}
    arguments = {item.name for item in dataclasses.fields(Request)} - {"method", "knobs"}
    for knob in knobs:
        if knob in arguments:
            raise InvalidArgumentError(
                f"{name}: knobs must be the method's own, got {knob!r}, an argument of ropescale.patch; give it "
                f"there, beside the knobs"
            )
        if knob not in fields:
            there = f"available: {', '.join(sorted(fields))}"
            raise InvalidArgumentError(
                f"{name}: unknown knob {knob!r}; {did_you_mean(knob, [*fields, *arguments], then=there)}"
            )
    for knob, item in fields.items():
        if item.default is item.default_factory is dataclasses.MISSING and knob not in knobs:
            raise InvalidArgumentError(
                f"{name}: {knob} is required, got none; give it as a keyword, see `ropescale methods`"
            )
