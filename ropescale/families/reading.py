"""Geometry from a config: the rotary facts of a checkpoint as pretraining left them."""

import copy

from transformers import PreTrainedConfig

from ropescale.checks import as_float, is_whole, require_choice, require_whole
from ropescale.errors import (
    AlreadyScaledError,
    CheckpointError,
    UnsupportedModelError,
)
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.parts import Part, parts_of, text_of
from ropescale.families.support import require_supported
from ropescale.families.today import (
    QUERY_GROWTH,
    by_alpha,
    depends_on_length,
    head_dim_of,
    length_of_switch,
    pretrained_proportional,
    rope_type_of,
    theta_of,
    todays_spectrum,
)
from ropescale.geometry import LONGEST, Geometry
from ropescale.records import saved_record

EXISTING = ("compose", "error", "replace")


def read_original_length(config: PreTrainedConfig, given: int | None = None) -> tuple[int, str]:
    """The length that the model was pretrained for, in tokens, and where that was read.

    In this order: the argument, the record in the config, `original_max_position_embeddings` in the config,
    `max_position_embeddings`.

    Raises:
        InvalidArgumentError: the argument is no length.
        UnsupportedModelError: the config states none.
    """
    if given is not None:
        require_whole(
            "original_length:",
            given,
            1,
            LONGEST,
            rule=f"a whole number of tokens, from 1 to {LONGEST}",
            remedy="leave it out to read it from the config",
        )
        return given, "argument"
    rope = config.rope_parameters
    done = saved_record(config)
    places = (
        # composed: the length it started from was somebody's extended one
        ("record", done.original_length if done and done.existing != "compose" else None),
        ("rope_parameters", None if filled_in(config) else rope.get("original_max_position_embeddings")),
        ("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None)),
        ("max_position_embeddings", getattr(config, "max_position_embeddings", None)),
    )
    for source, value in places:
        if is_whole(value, 1):
            return value, source
    raise UnsupportedModelError(
        f"{config.model_type}: the config must state max_position_embeddings, got "
        f"{getattr(config, 'max_position_embeddings', None)!r}; pass original_length=N"
    )


def filled_in(config: PreTrainedConfig) -> bool:
    """Whether the original length in `rope_parameters` is one that Transformers wrote, for want of a stated one.

    It writes the maximum of today, and writes it last: a maximum that `factor` has extended already, or one that
    nobody raised, and there is no telling which.
    """
    rope = config.rope_parameters
    return bool(
        rope
        and rope_type_of(config) in ("llama3", "longrope", "yarn")
        and list(rope)[-1] == "original_max_position_embeddings"
        and rope["original_max_position_embeddings"] == getattr(config, "max_position_embeddings", None)
        and getattr(config, "original_max_position_embeddings", None) is None
        and as_float(rope.get("factor")) > 1
    )


def reach_of(config: PreTrainedConfig) -> int:
    """The tokens that a scaled config reaches: its maximum, or what its scaling says where that is more.

    Model cards have people state a scaling and leave the maximum as it was; Vicuna states its reach as
    `max_sequence_length`.
    """
    reaches = [config.max_position_embeddings, getattr(config, "max_sequence_length", None)]
    original, factor = (
        as_float(config.rope_parameters.get(name)) for name in ("original_max_position_embeddings", "factor")
    )
    # what counts queries from there is stated as the original length, also where a scaling has another; and the factor
    # of Llama 3 is no ratio of lengths (3.1: 8 from 8,192 to 131,072; 3.2: 32 to the same)
    other = QUERY_GROWTH in config.rope_parameters
    other |= rope_type_of(config) == "llama3" and config.max_position_embeddings > original
    if 0 < original * factor <= LONGEST and not filled_in(config) and not other:
        reaches.append(round(original * factor))
    return max(reach for reach in reaches if isinstance(reach, int) and reach <= LONGEST)


def read_geometry(
    config: PreTrainedConfig, *, original_length: int | None = None, existing: str = "error"
) -> Geometry:
    """The rotary facts of a checkpoint, as pretraining left them.

    Where layers of each type have a rotation of their own, those of the layers that read the whole context.

    A checkpoint that is scaled already (rope_type other than "default") is refused unless `existing` says how to
    take it: "replace" starts from theta and the true original length, "compose" takes today's spectrum and
    today's maximum for the base; of two lists, one for short texts and one for long ones, that of long ones.

    Example:
        >>> import ropescale
        >>> geometry = ropescale.read_geometry(ropescale.load("tiny").config)
        >>> geometry.original_length, geometry.pairs
        (128, 16)

    Raises:
        UnsupportedModelError: not a family of this version.
        AlreadyScaledError: scaled, and `existing` is "error"; or "replace", and the config does not say from what.
        InvalidArgumentError: `existing` or `original_length` is not what it must be.
    """
    require_existing(existing)
    if isinstance(config, PreTrainedConfig):
        config = text_of(config)
    require_supported(config)
    part = parts_of(config)[0]
    beyond = existing == "compose" and length_of_switch(part) > 0
    if existing == "compose" and not beyond:
        require_fixed(part)
    return part_geometry(part, original_length=original_length, existing=existing, beyond=beyond)


def require_existing(existing: str) -> None:
    """Refuse what is no choice.

    Raises:
        InvalidArgumentError: `existing` is not what it must be.
    """
    require_choice("existing:", existing, EXISTING, remedy="leave it out for 'error'")


def require_fixed(part: Part, *, left_by_factor: bool = False) -> None:
    """Refuse a base that depends on length; `left_by_factor`: a factor of 1 would leave it as it is.

    Raises:
        AlreadyScaledError: the frequencies are others in longer texts.
    """
    if depends_on_length(part.config):
        raise AlreadyScaledError(
            f"{part.config.model_type}: a base must be a fixed spectrum, got {scaling(part.config)}, which depends on "
            f'length; pass existing="replace"{", or factor=1 to leave it as it is" if left_by_factor else ""}'
        )


def _forgotten(config: PreTrainedConfig, source: str) -> bool:
    """Whether a scaled config does not say from what length; `source` is where one was read."""
    # dynamic scaling alone is anchored at max_position_embeddings
    return source == "max_position_embeddings" and rope_type_of(config) != "dynamic"


def _choices(part: Part) -> str:
    """What `existing` may be for a part that is scaled: what this one can be started from."""
    config = part.config
    forgotten = saved_record(config) is None and _forgotten(config, read_original_length(config)[1])
    replace = f'existing="replace"{" and original_length=N" if forgotten else ""} to start again from theta and the '
    if rope_type_of(config) == LATE_TYPE or (depends_on_length(config) and not length_of_switch(part)):
        return f"{replace}original length"
    return f'{replace}original length, or existing="compose" to scale what it has now'


def part_geometry(
    part: Part, *, original_length: int | None = None, existing: str = "error", beyond: bool = False
) -> Geometry:
    """The rotary facts of one part; the arguments and errors are those of `read_geometry`.

    A base of two lists is that of the first; `beyond` its length, that of the second.
    """
    config = part.config
    rope = config.rope_parameters
    scaled_by = scaling(config)
    if scaled_by and existing == "error":
        raise AlreadyScaledError(
            f"{config.model_type}: the checkpoint is already scaled, got {scaled_by}; pass {_choices(part)}"
        )
    inv_freq: tuple[float, ...] = ()
    attention_factor = 1.0
    if scaled_by and existing == "compose":
        if rope_type_of(config) == LATE_TYPE:
            raise AlreadyScaledError(
                f"{config.model_type}: a base must be a fixed spectrum, got {scaled_by}, which acts in attention; "
                f'pass existing="replace"'
            )
        live, attention_factor = todays_spectrum(part, beyond=beyond)
        inv_freq = tuple(live.tolist())
        length = reach_of(config) if original_length is None else original_length
    else:
        if done := saved_record(config):
            # a scaled theta looks like a pretrained one: only the record tells what it was
            if original_length is None and done.existing != "compose":
                original_length = done.original_length
            whole = copy.deepcopy(part.whole)
            done.restore(whole)
            require_supported(whole)
            before = {part.label: part for part in parts_of(whole)}
            if part.label not in before:
                raise CheckpointError(
                    f"config: the ropescale record must hold the rope_parameters of the same layer types, got "
                    f"{', '.join(before) or 'none'} without {part.label}; restore the config.json that ropescale saved"
                )
            return part_geometry(before[part.label], original_length=original_length, existing="replace")
        length, source = read_original_length(config, original_length)
        if scaled_by and _forgotten(config, source):
            raise AlreadyScaledError(
                f"{config.model_type}: the config must say from what length it was scaled, got {scaled_by} and "
                f"max_position_embeddings={length} alone; pass original_length=N"
            )
    head_dim = head_dim_of(config)
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if pretrained_proportional(config):
        inv_freq, rotary_dim = tuple(todays_spectrum(part)[0].tolist()), head_dim
    return Geometry(
        rotary_dim=rotary_dim,
        theta=theta_of(config),
        original_length=length,
        head_dim=head_dim,
        layers=config.num_hidden_layers,
        inv_freq=inv_freq,
        attention_factor=attention_factor,
    )


def scaling(config: PreTrainedConfig) -> str:
    """How this checkpoint is scaled already, in words; empty where it is as pretrained."""
    if done := saved_record(config):
        return f"a ropescale record of {done.method!r}"
    rope_type = rope_type_of(config)
    as_pretrained = rope_type == "default" or pretrained_proportional(config) or by_alpha(config)
    return "" if as_pretrained else f"rope_type {rope_type!r}"
