"""Extension: what a request makes of a config, worked out from the config alone."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
import transformers
from transformers import PreTrainedConfig

from ropescale.errors import InvalidArgumentError
from ropescale.families.catalogue import family_of
from ropescale.families.entries import as_it_is, as_reloaded, late_spelling, limit_fields, spelling
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.layers import kept_layers, layers_meant, require_effect
from ropescale.families.parts import UNSCALED, rescaled_parts
from ropescale.families.reading import part_geometry, read_original_length, require_fixed
from ropescale.families.support import require_supported
from ropescale.families.today import (
    depends_on_length,
    length_of_switch,
    rope_type_of,
    softmax_factor,
    todays_spectrum,
)
from ropescale.geometry import Geometry
from ropescale.injection.forward_pass import Late
from ropescale.injection.rotation import Rotation
from ropescale.limits import GENERATION, outdated
from ropescale.methods import FixedMethod, Method
from ropescale.methods.late import Fixed, LateMethod, with_spectrum
from ropescale.records import RECORD_FIELD, Record
from ropescale.request import Request
from ropescale.spectrum import Spectrum, base_inv_freq
from ropescale.temperature import LOG_N, Temperature
from ropescale.version import __version__


@dataclass(frozen=True)
class Extension:
    """What a method makes of a config, and what a model with that config is to do."""

    rotations: list[Rotation]  # of the parts that are rescaled
    fields: dict[str, Any]  # of the config
    record: Record
    warning: str
    late: Late | None  # what acts in attention, if anything does

    @property
    def two_lists(self) -> bool:
        """Whether fixed frequencies alone are asked for, and act in attention since what they scale is two lists."""
        return self.late is not None and self.late.near is not None and isinstance(self.late.method, Fixed)

    def write(self, config: PreTrainedConfig) -> None:
        """Put the fields and the record into a config; `record.restore` takes them out."""
        for name, value in {**self.fields, RECORD_FIELD: self.record.to_dict()}.items():
            setattr(config, name, value)

    def raising(self, settings: dict[str, Any], before: int) -> Self:
        """The same, with those of the settings of generation in its record that stop a text at the old maximum."""
        old = outdated(GENERATION, settings, before, self.record.target_length)
        return dataclasses.replace(self, record=dataclasses.replace(self.record, generation=old))


def extended_again(config: PreTrainedConfig, done: Record) -> tuple[PreTrainedConfig, Extension]:
    """A copy of a text config as it was before a patch, and what the record of that patch makes of it.

    Raises:
        CheckpointError: a method or knobs that this version does not have.
        RopescaleError: whatever `extended` raises.
    """
    plain = copy.deepcopy(config)
    done.restore(plain)
    return plain, extended(plain, Request.again(done, layers=layers_meant(done, plain)))


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Whatever the default device: a figure of a config belongs to no accelerator, and has a value."""
    with torch.device("cpu"):
        yield


@on_the_cpu()
def extended(config: PreTrainedConfig, request: Request) -> Extension:
    """Work out what a request makes of a text config.

    Raises:
        InvalidArgumentError: what is asked does not fit the config.
        UnsupportedModelError: a family that is not patched.
        AlreadyScaledError: scaled in its config, and `existing` is "error".
    """
    require_supported(config)
    layers, existing, temperature = request.layers, request.existing, request.multiplied
    parts = rescaled_parts(config, layers)
    start = partial(part_geometry, parts[0], original_length=request.original_length, existing=existing)
    switch = length_of_switch(parts[0]) if existing == "compose" else 0
    geometry = start(beyond=switch > 0)
    chosen, target = request.resolved(geometry)
    warning = require_effect(config, chosen.name, geometry.original_length, layers, temperature)
    factor = target / geometry.original_length
    if temperature is not None and temperature.by_factor and not (request.target_length or chosen.knobs()["factor"]):
        raise InvalidArgumentError(
            f"temperature: {temperature.rule} needs a factor, got {chosen.name} without one; give factor or "
            f"target_length"
        )
    late = late_of(
        chosen,
        geometry,
        temperature=temperature,
        factor=factor,
        kept=kept_layers(config, layers),
        near=start(beyond=False) if switch else None,
        near_length=switch,
        heads=parts[0].config.num_attention_heads,  # of those layers, where they differ in more than rotation
    )
    divided = family_of(config.model_type).divides_factor(config)
    if late is not None and divided:
        late = _unfactored(late)
    if late is not None and late.kept and parts[0].label:
        raise InvalidArgumentError(
            f"{chosen.name}: must act in every layer of a {config.model_type}, whose layer types have rotations of "
            f"their own, got {chosen}; leave out which layers"
        )
    if late is not None and len(parts) > 1:
        raise InvalidArgumentError(
            f"layers: must be 'global' for {chosen.name}, which acts in attention, where layer types have rotations "
            f"of their own, got {layers!r}; leave it out"
        )
    fields: dict[str, Any] = {"rope_parameters": config.rope_parameters, **limit_fields(config, target)}
    rotations = []
    for part in parts:
        own = geometry
        if part.label != parts[0].label:
            own = part_geometry(part, original_length=geometry.original_length, existing=existing)
        goes_on = existing == "compose" and depends_on_length(part.config) and not (switch and late is not None)
        if goes_on and (late is not None or not leaves_rotation(chosen)):
            require_fixed(part, left_by_factor=late is None)
        if goes_on:
            stated = as_it_is(part, target)
            spectrum = Spectrum(base_inv_freq(own), own.attention_factor)
        elif late is None:
            assert isinstance(chosen, FixedMethod)
            stated = {**spelling(part, chosen, own), "max_position_embeddings": target}
            spectrum = as_reloaded(part, stated, chosen, own)
        else:
            stated = late_spelling(part, chosen, geometry)
            spectrum = Spectrum(torch.zeros(geometry.pairs, dtype=torch.float32))  # the identity: attention rotates
        rotations.append(Rotation(part, spectrum, stated["rope_parameters"]["rope_type"], as_it_is=goes_on))
        parameters = part.in_whole(stated["rope_parameters"], fields["rope_parameters"])
        fields |= {**stated, "rope_parameters": parameters}
    if late is None and all(rotation.as_it_is or _unchanged(rotation) for rotation in rotations):
        warning = ""  # at factor 1, say: nothing is rescaled
    if isinstance(chosen, FixedMethod) and (late is None or isinstance(late.method, Fixed)):
        said = _unsharpened(parts[0].config, chosen, geometry, existing, divided)
        warning = "; ".join(filter(None, (warning, *said)))
    done = Record(
        method=chosen.name,
        knobs=chosen.knobs(),
        original_length=geometry.original_length,
        original_length_source=length_source(parts[0].config, request.original_length, geometry),
        target_length=target,
        existing=existing,
        layers=layers,
        log_n=temperature == LOG_N,
        temperature=temperature,
        theta=geometry.theta,
        rotary_dim=geometry.rotary_dim,
        attention_factor=rotations[0].spectrum.attention_factor,
        before={
            name: copy.deepcopy(getattr(config, name)) for name in (*fields, RECORD_FIELD) if hasattr(config, name)
        },
        added=tuple(name for name in (*fields, RECORD_FIELD) if not hasattr(config, name)),
        versions={
            "ropescale": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    return Extension(rotations, fields, done, warning, late)


def _unsharpened(
    config: PreTrainedConfig, method: FixedMethod, geometry: Geometry, existing: str, divided: bool
) -> Iterator[str]:
    """Where a method sharpens attention less than it says, in words."""
    factor = method.spectrum(geometry).attention_factor / geometry.attention_factor
    if divided and factor != 1:
        yield (
            f"{config.model_type}: layers normalise queries and keys after they rotate them, so the attention factor "
            f"of {method.name} ({factor:.4g}) has no effect"
        )
    before = softmax_factor(config)
    if existing == "replace" and before != 1 and factor != 1 and hasattr(method, "mscale_all_dim"):
        scale = config.rope_parameters["mscale_all_dim"]
        yield (
            f"{config.model_type}: the scale of the softmax that mscale_all_dim={scale:g} gave ({before:.4g}) is "
            f"replaced by an attention factor of {factor:.4g} on the part of each head that rotates; give "
            f"mscale={scale:g} and mscale_all_dim={scale:g} to have it in the softmax, as the checkpoint had"
        )


def _unchanged(rotation: Rotation) -> bool:
    """Whether layers rotate after a patch as they did before."""
    if rope_type_of(rotation.part.config) == LATE_TYPE:  # saved with what acts in attention, which this replaces
        return False
    inv_freq, attention_factor = todays_spectrum(rotation.part)
    return torch.equal(rotation.spectrum.inv_freq, inv_freq) and rotation.spectrum.attention_factor == attention_factor


def stated_for(rotation: Rotation, extension: Extension) -> dict[str, Any]:
    """The new `rope_parameters` of the layers of one part."""
    parameters: dict[str, Any] = extension.fields["rope_parameters"]
    return parameters[rotation.part.label] if rotation.part.label else parameters


def late_of(
    method: Method,
    geometry: Geometry,
    *,
    temperature: Temperature | None = None,
    factor: float = 1.0,
    kept: frozenset[int] = frozenset(),
    near: Geometry | None = None,
    near_length: int = 0,
    heads: int = 1,
) -> Late | None:
    """What a method does when attention reads; None where it only changes frequencies.

    `factor` is target length / original length, which a temperature may go by. `kept` numbers the layers that keep
    their rotation while those beside them are rescaled, which no frequencies of a module that serves both can do.
    `near` is what queries within `near_length` start from, where that is something else: each by its own position.
    `heads` is how many queries have, of which a method may tell one from another.

    Raises:
        InvalidArgumentError: knobs that do not fit this geometry, or layers that a method cannot leave alone.
    """
    fixed = isinstance(method, FixedMethod) and method.when_read(geometry) is None
    if fixed and temperature is None and (leaves_rotation(method) or not (kept or near)):
        return None
    acting, base = _acting(method, geometry)
    if kept and acting.embeds:
        raise InvalidArgumentError(
            f"layers: must be 'global' or 'all' for {method.name}, which changes what enters every layer, got "
            f"'full'; leave it out"
        )
    left = acting.left(geometry)
    if kept and left:
        raise InvalidArgumentError(
            f"layers: must be 'global' or 'all' for {method.name} in some layers, which its knobs say, got "
            f"'full'; leave it out"
        )
    late = Late(
        name=method.name,
        method=acting,
        geometry=base,
        temperature=temperature,
        factor=factor,
        kept=kept | left,
        heads=heads,
    )
    if near is None or not late.rotates:
        return late
    acting, base = _acting(method, near)
    near_late = Late(name=method.name, method=acting, geometry=base, heads=heads)
    return replace(late, near=near_late, near_length=near_length)


def _acting(method: Method, geometry: Geometry) -> tuple[LateMethod, Geometry]:
    """What acts in attention for a method, and what it starts from: rotation alone where its frequencies are fixed.

    Raises:
        InvalidArgumentError: knobs that do not fit this geometry.
    """
    acting = method.when_read(geometry) if isinstance(method, FixedMethod) else method
    if isinstance(acting, LateMethod):
        acting.regions(geometry, 2 * geometry.original_length)  # refuses knobs that do not fit
        return acting, geometry
    assert isinstance(method, FixedMethod)
    return Fixed(), with_spectrum(geometry, method.spectrum(geometry))


def _unfactored(late: Late) -> Late:
    """What acts in attention where layers divide out what multiplies cos and sin.

    Neither a base nor fixed frequencies have an attention factor then, whether a module rotates by them or attention.
    """
    near = None if late.near is None else _unfactored(late.near)
    return replace(late, geometry=replace(late.geometry, attention_factor=1.0), near=near)


def leaves_rotation(method: Method) -> bool:
    """Whether a method leaves every frequency and the attention factor as they are."""
    if not isinstance(method, FixedMethod) or "identity" in method.laws_broken():
        return False
    return method.factor == 1 or method.name == UNSCALED


def length_source(config: Any, given: int | None, geometry: Geometry) -> str:
    """Where the original length was read; a composed patch starts from today's maximum."""
    if geometry.inv_freq and given is None:
        return "max_position_embeddings"
    return read_original_length(config, given)[1]
