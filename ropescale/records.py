"""The record: what was done to a model. Lives with the patched model, its saved config and its adapters."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from ropescale.errors import CheckpointError, RopescaleError
from ropescale.methods import Method, get_method
from ropescale.version import __version__


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
    theta: float
    rotary_dim: int
    attention_factor: float
    before: dict[str, Any]
    added: tuple[str, ...]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**dataclasses.asdict(self), "added": list(self.added)}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The record that `to_dict` gave.

        Raises:
            CheckpointError: not a record, or one of a later version with fields that this one does not know.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            missing = sorted(known - set(values)) if isinstance(values, dict) else sorted(known)
            extra = sorted(set(values) - known) if isinstance(values, dict) else []
            raise CheckpointError(
                f"config: the ropescale record must hold the fields of version {__version__}, got "
                f"missing {missing} and unknown {extra}; load with the version of ropescale that saved it"
            )
        return cls(**{**values, "added": tuple(values["added"])})

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
                f"{self.method!r} with {self.knobs!r} ({error}); load with the version of ropescale that saved it"
            ) from error
