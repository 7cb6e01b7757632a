"""The record: what was done to a model. Lives with the patched model, its saved config and its adapters."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError, shortened
from ropescale.methods import Method, get_method
from ropescale.temperature import LOG_N, Temperature
from ropescale.version import __version__

RECORD_FIELD = "ropescale"  # where a config keeps the record
EXPORT_FIELD = "ropescale_export"  # where a config says for which engine it was written
# every config field that a patch may change
CONFIG_FIELDS = frozenset(
    {
        "head_dim",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "rope_parameters",
        "use_long_context",
        RECORD_FIELD,
    }
)
# of a config that was written without a model at hand
TO_COME = {"how": "when the model is loaded", "shown": [], "unlike by itself": [], "layers": ""}
FIELD_TYPES = {
    "method": str,
    "knobs": dict,
    "original_length": int,
    "original_length_source": str,
    "target_length": int,
    "existing": str,
    "layers": str,
    "log_n": bool,
    "before": dict,
    "added": list,
    "versions": dict,
    "generation": dict,
    "proof": dict,
    "base": dict,
    "temperature": dict,
}

# Fields that records of earlier versions do not have
LATER = frozenset({"base", "generation", "proof", "temperature"})

LENGTHS = frozenset({"max_position_embeddings", "original_length", "target_length"})  # tokens
NUMBERS = frozenset({"attention_factor", "original_length", "rotary_dim", "target_length", "theta"})


def _is_number(value: Any, *, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= 2**53


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was done to a model: method, knobs, lengths, where they were read, versions.

    `before` holds the config fields that the patch changed, as they were; a field that was absent is not in it, and
    is named in `added`.
    """

    method: str  # registry name
    knobs: dict[str, Any]
    original_length: int  # tokens
    original_length_source: str  # where it was read
    target_length: int  # tokens
    existing: str
    layers: str
    log_n: bool  # whether the temperature is log-n as published
    theta: float
    rotary_dim: int
    attention_factor: float
    before: dict[str, Any]
    added: tuple[str, ...]
    versions: dict[str, str]
    generation: dict[str, int] = field(default_factory=dict)  # limits of generation that were raised, as they were
    # how the patch was shown to do what it claims: "how", what was "shown", in which "layers"
    proof: dict[str, Any] = field(default_factory=lambda: dict(TO_COME), compare=False)

    # of an adapter: a digest of the weights that it was trained on (`ropescale.digest`); empty for a model
    base: dict[str, list[Any]] = field(default_factory=dict, compare=False)
    temperature: Temperature | None = None  # what queries are multiplied by

    def __post_init__(self) -> None:
        if self.log_n and self.temperature is None:  # as earlier versions say it
            object.__setattr__(self, "temperature", LOG_N)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; without a digest, and without a temperature but log-n, as earlier versions read it."""
        values = {**dataclasses.asdict(self), "added": list(self.added)}
        if not self.base:
            del values["base"]
        if self.temperature is None or self.log_n:
            del values["temperature"]
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The record that `to_dict` gave.

        Raises:
            CheckpointError: not a record, or one of a later version with fields that this one does not know.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        needed = known - LATER
        if not isinstance(values, dict) or not needed <= set(values) <= known:
            missing = sorted(needed - set(values)) if isinstance(values, dict) else sorted(needed)
            extra = sorted(set(values) - known) if isinstance(values, dict) else []
            raise CheckpointError(
                f"config: the ropescale record must hold the fields of version {__version__}, got "
                f"missing {missing} and unknown {extra}; load with the version of ropescale that saved it"
            )
        for name, kind in FIELD_TYPES.items():
            if name in values and not isinstance(values[name], kind):
                raise CheckpointError(
                    f"config: {name} of the ropescale record must be a {kind.__name__}, got "
                    f"{shortened(values[name])}; the record was edited: restore the file that ropescale saved"
                )
        digest = values.get("base", {})
        if not all(isinstance(name, str) and _is_entry(entry) for name, entry in digest.items()):
            raise CheckpointError(
                f"config: base of the ropescale record must hold the type, shape and values of tensors, got "
                f"{shortened(digest)}; the record was edited: restore the file that ropescale saved"
            )
        before, added = values["before"], values["added"]
        if not isinstance(before.get("rope_parameters"), dict) or not {*before, *map(str, added)} <= CONFIG_FIELDS:
            raise CheckpointError(
                f"config: before and added of the ropescale record must name the config fields that a patch changes, "
                f"got {shortened(before)} and {shortened(added)}; the record was edited: restore the file that "
                f"ropescale saved"
            )
        if (RECORD_FIELD in before) == (RECORD_FIELD in added):  # or restoring would find this record again
            raise CheckpointError(
                f"config: before or added of the ropescale record must name {RECORD_FIELD!r}, one of the two, got "
                f"{shortened(sorted(before))} and {shortened(added)}; the record was edited: restore the file that "
                f"ropescale saved"
            )
        stated = {**before, **{name: values[name] for name in NUMBERS}}
        stated.setdefault("max_position_embeddings", None)
        for name, value in stated.items():
            if name in LENGTHS | NUMBERS and not _is_number(value, whole=name in LENGTHS):
                raise CheckpointError(
                    f"config: {name} of the ropescale record must be a number above 0, got {shortened(value)}; the "
                    f"record was edited: restore the file that ropescale saved"
                )
        return cls(**{**values, "added": tuple(added), "temperature": _temperature_in(values)})

    def restore(self, config: Any) -> None:
        """Put the config fields back that the patch changed.

        Raises:
            CheckpointError: a value that the config does not take.
        """
        try:
            for name, value in self.before.items():
                setattr(config, name, copy.deepcopy(value))
        except Exception as error:  # classes of configs check what is set, each in its own way
            raise CheckpointError(
                f"config: {name} in before of the ropescale record must be one that the config takes, got "
                f"{shortened(value)}; the record was edited: restore the file that ropescale saved"
            ) from error
        for name in self.added:
            if hasattr(config, name):
                delattr(config, name)

    def method_instance(self) -> Method:
        """The method with its knobs.

        Raises:
            CheckpointError: a method or knobs that this version does not have.
        """
        try:
            return get_method(self.method)(**self.knobs)
        except (RopescaleError, TypeError) as error:
            raise CheckpointError(
                f"config: the ropescale record must name a method of version {__version__}, got "
                f"{self.method!r} with {shortened(self.knobs)} ({error}); "
                f"load with the version of ropescale that saved it"
            ) from error


def _temperature_in(values: dict[str, Any]) -> Temperature | None:
    """The temperature of a saved record.

    Raises:
        CheckpointError: a rule that this version does not have, or one beside log-n.
    """
    saved = values.get("temperature")
    if saved is None:
        return None
    try:
        found = Temperature.of(saved)
    except InvalidArgumentError as error:
        raise CheckpointError(
            f"config: temperature of the ropescale record must be one of version {__version__}, got "
            f"{shortened(saved)} ({error}); load with the version of ropescale that saved it"
        ) from error
    if values["log_n"] or found == LOG_N:
        raise CheckpointError(
            f"config: temperature of the ropescale record must be another one than log_n, which has a field of its "
            f"own, got {shortened(saved)}; the record was edited: restore the file that ropescale saved"
        )
    return found


def _is_entry(entry: Any) -> bool:
    """Whether this is what a digest says of a tensor."""
    match entry:
        case ["float64" | "float32" | "bfloat16" | "float16", [*shape], [_, _, _, _] as values]:
            return all(type(size) is int for size in shape) and all(isinstance(value, float) for value in values)
    return False


def saved_record(config: Any) -> Record | None:
    """The record in a config of Transformers, if it holds one.

    Raises:
        CheckpointError: the record is damaged.
    """
    saved = getattr(config, RECORD_FIELD, None)
    return None if saved is None else Record.from_dict(saved)
