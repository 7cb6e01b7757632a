"""What is to be explained: the rotary facts in a checkpoint's config, and the methods that were asked for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ropescale.checkpoints import resolve
from ropescale.contents import read_config
from ropescale.errors import InvalidArgumentError
from ropescale.families.parts import rescaled_parts, text_of
from ropescale.families.reading import part_geometry
from ropescale.families.support import require_supported
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods import Method, get_method
from ropescale.request import Request, require_knobs_by_method, split_knobs
from ropescale.temperature import Temperature

METHODS = ("linear", "ntk", "yarn", "dynamic_ntk", "rerope", "self_extend", "lm_infinite")
FACTOR = 4.0


def facts_by_layers(
    model: str, *, original_length: int | None = None, existing: str = "replace", layers: str = "global"
) -> list[tuple[str, Geometry, int]]:
    """The layer type, geometry and number of attention heads of every rotation that `layers` means.

    One without a layer type, unless the config states a rotation for each.

    Raises:
        AlreadyScaledError: scaled, and the config does not say from what length.
        CheckpointError: no checkpoint there.
        InvalidArgumentError: no layer of these has a rotation, or layers of a model whose layers have one rotation.
        UnsupportedModelError: not a family of this version.
    """
    config = text_of(read_config(resolve(model)))
    require_supported(config)
    parts = rescaled_parts(config, layers)
    if layers != "global" and not parts[0].label:
        raise InvalidArgumentError(
            f"layers: must be left out for a {config.model_type} whose layers have one rotation, which is the picture "
            f"of them all, got {layers!r}; leave it out"
        )
    return [
        (
            part.label,
            part_geometry(part, original_length=original_length, existing=existing),
            part.config.num_attention_heads,
        )
        for part in parts
    ]


def chosen_methods(
    names: Sequence[str],
    geometry: Geometry,
    *,
    factor: float | None = None,
    length: int | None = None,
    knobs: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Method], int]:
    """The methods of these names for a context of `length` tokens, or of `factor` original lengths; and the length.

    `knobs` are those of methods by their names; what stands among them for `temperatures` is left out here.

    Raises:
        InvalidArgumentError: a method that lacks a knob that it needs, knobs that it does not have, or a length or
            factor that is none.
        UnknownMethodError: a name that is not in the registry.
    """
    knobs = knobs or {}
    require_knobs_by_method("knobs:", knobs, names)
    original = geometry.original_length
    if length is not None and not original <= length <= LONGEST:
        raise InvalidArgumentError(
            f"length: must be a number of tokens from the original length ({original}) to {LONGEST}, got {length}; "
            f"give the context length you want"
        )
    if factor is None:
        factor = FACTOR if length is None else length / original
    methods, reach = [], original
    for name in names:
        own = split_knobs(knobs.get(name, {}))[0]
        for field in dataclasses.fields(get_method(name)):
            needed = field.name != "factor" and field.default is field.default_factory is dataclasses.MISSING
            if needed and field.name not in own:
                raise InvalidArgumentError(
                    f"methods: must be methods that need no knob of their own, or come with it, got {name!r}, which "
                    f"needs {field.name}; give it in knobs"
                )
        method, reach = Request(method=name, factor=factor, knobs=own).resolved(geometry)
        methods.append(method)
    return methods, reach


def temperatures(names: Sequence[str], knobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Temperature]:
    """What queries are multiplied by besides, by the name of the method, where its knobs hold log_n or temperature.

    Raises:
        InvalidArgumentError: knobs of other methods, a temperature that there is not, or two of them.
    """
    require_knobs_by_method("knobs:", knobs, names)
    asked = {name: Request(**split_knobs(own)[1]).multiplied for name, own in knobs.items()}
    return {name: one for name, one in asked.items() if one is not None}
