"""What is to be explained: the rotary facts in a checkpoint's config, and the methods that were asked for."""

import dataclasses
from collections.abc import Sequence

from ropescale.checkpoints import resolve
from ropescale.contents import read_config
from ropescale.errors import InvalidArgumentError
from ropescale.families.parts import rescaled_parts, text_of
from ropescale.families.reading import part_geometry
from ropescale.families.support import require_supported
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods import Method, get_method
from ropescale.request import Request

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
    names: Sequence[str], geometry: Geometry, *, factor: float | None = None, length: int | None = None
) -> tuple[list[Method], int]:
    """The methods of these names for a context of `length` tokens, or of `factor` original lengths; and the length.

    Raises:
        InvalidArgumentError: a method that needs a knob of its own, or a length or factor that is none.
        UnknownMethodError: a name that is not in the registry.
    """
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
        for field in dataclasses.fields(get_method(name)):
            if field.name != "factor" and field.default is field.default_factory is dataclasses.MISSING:
                raise InvalidArgumentError(
                    f"methods: must be methods that need no knob of their own, got {name!r}, which needs "
                    f"{field.name}; give an instance to ropescale.explain.readings.readings"
                )
        method, reach = Request(method=name, factor=factor).resolved(geometry)
        methods.append(method)
    return methods, reach
