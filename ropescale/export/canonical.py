"""The canonical form of a rotation: one divisor per pair and one attention factor, whatever method made it.

Every engine is told the same rotation in words of its own. What no set of fixed frequencies can say (a rotation that
depends on length, a method that acts in attention) is refused here, with the nearest method that can be said.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.extension import extended
from ropescale.families.entries import kept_parameters, long_list_alone
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.layers import kept_layers
from ropescale.families.parts import Part, parts_of
from ropescale.families.reading import read_geometry
from ropescale.families.today import (
    depends_on_length,
    length_of_switch,
    rope_type_of,
    softmax_factor,
    todays_spectrum,
)
from ropescale.geometry import Geometry
from ropescale.methods import ABF, FixedMethod, LongRoPE, Method, NoPE, get_method
from ropescale.methods.base import divisors
from ropescale.methods.late import UNBOUNDED, LengthDependent
from ropescale.records import RECORD_FIELD, Record, saved_record
from ropescale.request import Request
from ropescale.spectrum import Spectrum, theta_inv_freq
from ropescale.temperature import with_temperature

# An inverse frequency below this one turns by less than 1e-12 radians over a million tokens: Transformers states a
# pair without position as a divisor of 1e30
WITHOUT_POSITION_BELOW = 1e-18
# The static method that has, at one length, the spectrum of a length-dependent one at that length
STATIC = {"dynamic_linear": "linear", "dynamic_ntk": "ntk", "dynamic_yarn": "yarn"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """How the layers of one part rotate."""

    part: Part
    parameters: dict[str, Any]  # as Transformers' config states it
    spectrum: Spectrum
    original_length: int  # tokens
    target_length: int  # tokens

    @property
    def theta(self) -> float:
        """The base of the series that the divisors divide."""
        return float(self.parameters["rope_theta"])

    @property
    def rotary_dim(self) -> int:
        """Rotated elements of one head."""
        return 2 * len(self.spectrum.inv_freq)

    @property
    def factor(self) -> float:
        """Target length / original length."""
        return self.target_length / self.original_length

    @property
    def rope_type(self) -> str:
        """How Transformers calls it."""
        return str(self.parameters.get("rope_type", "default"))

    @property
    def divisors(self) -> Tensor:
        """[pairs] float32: theta's inverse frequency / this one's, 1e30 for a pair without position."""
        return divisors(self.spectrum.inv_freq, self.geometry)

    @property
    def geometry(self) -> Geometry:
        """Theta's own frequencies."""
        return Geometry(rotary_dim=self.rotary_dim, theta=self.theta, original_length=self.original_length)

    def pairwise(self) -> dict[str, Any]:
        """The longrope form with equal lists, which states any fixed rotation."""
        factors = self.divisors.tolist()
        sharper = ("factor", "mscale_all_dim") if softmax_factor(self.part.config) != 1 else ()
        return {
            "rope_type": "longrope",
            "rope_theta": self.theta,
            "factor": self.factor,
            "short_factor": factors,
            "long_factor": list(factors),
            "attention_factor": self.spectrum.attention_factor,
            "original_max_position_embeddings": self.original_length,
            **kept_parameters(self.part.config),
            **{name: self.parameters[name] for name in sharper},  # which state the softmax scale, whatever the type
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """What an export is to state: the rotation of every part, and how near that comes to what was asked for."""

    rotations: list[Rotation]
    record: Record | None  # of the method that was asked for
    approximation: str = ""  # what is not exact about it; empty where everything is

    @property
    def main(self) -> Rotation:
        """The rotation of the layers that read the whole context."""
        return self.rotations[0]

    @property
    def method(self) -> str:
        """What made it, in words."""
        if self.record is None:
            return (
                "positions as pretrained" if self.main.rope_type == "default" else f"rope_type {self.main.rope_type}"
            )
        return f"{self.record.method} x{self.main.factor:g}{with_temperature(self.record.temperature)}"


def canonical(config: PreTrainedConfig, *, lossy: bool = False) -> Canonical:
    """The rotations that a config states, or those that come nearest to it where `lossy` allows that.

    Raises:
        ExportError: no fixed frequencies are what the config states.
        RopescaleError: a config that cannot be read.
    """
    record = saved_record(config)
    if record is not None and rope_type_of(parts_of(config)[0].config) == LATE_TYPE:
        return _of_late(config, record, lossy=lossy)
    original = read_original(config, record)
    target = int(getattr(config, "max_position_embeddings", None) or original)
    rotations = []
    for part in parts_of(config):
        _require_fixed(part)
        inv_freq, attention_factor = todays_spectrum(part)
        inv_freq = torch.where(inv_freq > WITHOUT_POSITION_BELOW, inv_freq, torch.zeros_like(inv_freq))
        rotations.append(
            Rotation(
                part=part,
                parameters=copy.deepcopy(part.config.rope_parameters),
                spectrum=Spectrum(inv_freq, attention_factor),
                original_length=original,
                target_length=target,
            )
        )
    return Canonical(rotations=rotations, record=record)


def read_original(config: PreTrainedConfig, record: Record | None) -> int:
    """The original length in tokens; without any scaling it is what the config serves."""
    if record is not None:
        return record.original_length
    stated = parts_of(config)[0].config.rope_parameters.get("original_max_position_embeddings")
    stated = stated or getattr(config, "original_max_position_embeddings", None)
    return int(stated or config.max_position_embeddings)


def _require_fixed(part: Part) -> None:
    """Refuse what Transformers switches or grows by length, where no record says what was meant."""
    rope_type = rope_type_of(part.config)
    if depends_on_length(part.config):
        nearest = "ntk" if rope_type == "dynamic" else "longrope with its long list alone"
        raise ExportError(
            f"{part.config.model_type}: rope_parameters must state fixed frequencies to be exported, got "
            f"rope_type {rope_type!r}, which depends on length; extend it with a method of fixed frequencies "
            f"(nearest: {nearest}) and existing='replace'"
        )


def _of_late(config: PreTrainedConfig, record: Record, *, lossy: bool) -> Canonical:
    """What a method that acts in attention comes to without it."""
    before = copy.deepcopy(config)
    record.restore(before)
    for name in [RECORD_FIELD]:
        if hasattr(before, name):
            delattr(before, name)
    if kept_layers(before, record.layers):
        raise ExportError(
            f"{record.method}: must rescale every layer that one rotary module serves to be exported, got layers="
            f"{record.layers!r}, which leaves layers of a window as they are; patch with layers='global', or keep it "
            f"in Transformers with ropescale.load"
        )
    geometry = read_geometry(before, original_length=record.original_length, existing=record.existing)
    method = record.method_instance()
    if isinstance(method, NoPE) and (left := method.left(geometry)):
        raise ExportError(
            f"{record.method}: must act in every layer to be exported, got {method}, which leaves "
            f"{len(left)} of {geometry.layers} rotating; export it without, or keep it in Transformers with "
            f"ropescale.load"
        )
    if isinstance(method, NoPE) and record.temperature is None:
        return Canonical(rotations=[_without_rotation(config, record, method, geometry)], record=record)
    part = parts_of(before)[0]
    switching = record.existing == "compose" and length_of_switch(part) > 0
    static, why = _nearest(method, geometry, record, switching=switching)
    if static is None:
        factor = record.target_length / record.original_length
        near = "method='yarn'"
        if factor > 1 and record.target_length < UNBOUNDED:
            near += f" with factor={factor:g} and existing='replace'"
        raise ExportError(
            f"{record.method}: must be a method of fixed frequencies to be exported, got {why}, which no engine does; "
            f"nearest that every engine holds exactly: {near}, or keep it in Transformers with ropescale.load"
        )
    named = f"{static.name} over the long list" if switching else static.name
    if not lossy:
        near = f"{named} x{record.target_length / record.original_length:g}"
        raise ExportError(
            f"{record.method}: must be a method of fixed frequencies to be exported, got {why}; nearest that engines "
            f"hold exactly: {near}, which lossy=True writes, with a label that says so"
        )
    if switching:
        before.rope_parameters = part.in_whole(long_list_alone(part), before.rope_parameters)
    extension = extended(
        before,
        Request(
            method=static,
            original_length=record.original_length,
            existing=record.existing,
            layers=record.layers,
        ),
    )
    for name, value in extension.fields.items():
        setattr(before, name, value)
    stated = canonical(before)
    return Canonical(
        rotations=[
            dataclasses.replace(rotation, original_length=record.original_length, target_length=record.target_length)
            for rotation in stated.rotations
        ],
        record=record,
        approximation=f"{named} at every length in the place of {record.method}: {why}",
    )


def _nearest(method: Method, geometry: Geometry, record: Record, *, switching: bool) -> tuple[FixedMethod | None, str]:
    """The method of fixed frequencies that comes nearest, if any is near, and what the other one does besides.

    `switching` says that it scales two lists.
    """
    factor = record.target_length / record.original_length
    if isinstance(method, LengthDependent) and method.name in STATIC and record.temperature is None:
        why = "frequencies that depend on length"
        if method.factor is None:
            return None, f"{why} without a ceiling"
        knobs = {name: value for name, value in method.knobs().items() if name not in ("growth", "alpha", "factor")}
        alpha = getattr(method, "alpha", None)
        if alpha is None:
            return get_method(STATIC[method.name])(factor=factor, **knobs), why  # type: ignore[return-value]
        grown = (alpha * factor - (alpha - 1)) ** (geometry.rotary_dim / (geometry.rotary_dim - 2))
        return ABF(factor=factor, theta=geometry.theta * grown), why
    if isinstance(method, LongRoPE) and method.when_read(geometry) is not None and record.temperature is None:
        static = dataclasses.replace(method, short_factor=method.long_factor, unscaled_prefix=0)
        return static, "frequencies that depend on length (a short and a long list)"
    if isinstance(method, FixedMethod) and record.temperature is not None and method.when_read(geometry) is None:
        by = "the factor" if record.temperature.by_factor else "their position"
        return method, f"queries multiplied by a logarithm of {by} ({record.temperature})"
    if isinstance(method, FixedMethod) and switching and method.when_read(geometry) is None:
        return method, "two lists, of which each query reads by that of its own position"
    return None, "positions that act in attention"


def _without_rotation(config: PreTrainedConfig, record: Record, method: NoPE, geometry: Geometry) -> Rotation:
    """NoPE: no pair rotates, and a constant on the logits is the square of one on queries and keys."""
    scale = method.query_scale(geometry, torch.zeros(1, dtype=torch.float32))
    spectrum = Spectrum(
        torch.zeros(geometry.pairs, dtype=torch.float32), 1.0 if scale is None else math.sqrt(float(scale))
    )
    part = parts_of(config)[0]
    rotation = Rotation(
        part=part,
        parameters={"rope_type": "longrope", "rope_theta": geometry.theta},
        spectrum=spectrum,
        original_length=record.original_length,
        target_length=record.target_length,
    )
    return dataclasses.replace(rotation, parameters=rotation.pairwise())


def is_base(rotation: Rotation) -> bool:
    """Whether these are theta's own frequencies."""
    same = torch.equal(rotation.spectrum.inv_freq, theta_inv_freq(rotation.theta, rotation.rotary_dim))
    return same and rotation.spectrum.attention_factor == 1
