"""What comes of a config: what Transformers computes, builds and leaves unread, and what its record says."""

import copy
from collections.abc import Iterator
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ropescale.contents import CONFIG
from ropescale.doctor.built import EXACT, built_rotation, unlike
from ropescale.doctor.finding import Finding
from ropescale.doctor.lengths import ORIGINAL, whole
from ropescale.doctor.unread import unread, unread_shares
from ropescale.errors import RopescaleError, first_line, shortened
from ropescale.extension import extended_again
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.layers import rotating_window, unrotated
from ropescale.families.parts import UNSCALED, parts_of
from ropescale.families.reading import part_geometry
from ropescale.families.support import require_supported
from ropescale.families.today import rope_type_of, todays_spectrum
from ropescale.records import EXPORT_FIELD, RECORD_FIELD, saved_record

# What stands in a config about rotation and length; the rest of it can be read without
ABOUT_ROTATION = (
    ORIGINAL,
    RECORD_FIELD,
    "max_position_embeddings",
    "partial_rotary_factor",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
)
# Findings after which nothing can be computed from the entries that they name
BLOCKING = ("bad-number", "missing-key", "rope-parameters", "unknown-type")


def blocked(findings: list[Finding]) -> bool:
    """Whether something was found after which frequencies cannot be computed."""
    return any(
        finding.check in BLOCKING or (finding.check == "theta-lost" and finding.where != "rope_scaling")
        for finding in findings
    )


def of_config(
    config: PreTrainedConfig, text: dict[str, Any], findings: list[Finding], where: str
) -> Iterator[Finding]:
    """What comes of a config that can be read, beside what was found by its own words."""
    unfit = blocked(findings)
    if not unfit:
        computed = list(_computed(config, where))
        yield from computed
        unfit = bool(computed)
    record, pretrained = None, config
    try:
        record = saved_record(config)
        if record is not None:
            pretrained = copy.deepcopy(config)
            record.restore(pretrained)
    except RopescaleError:
        unfit = True  # the record's own check tells of it
    if stating_types(config) and stating_types(pretrained):
        yield from unread(text, config, pretrained, record)
        yield from _unturned(config, text)
    if not unfit:
        shares = list(unread_shares(text, config))
        yield from shares
        if not shares:
            yield from _as_built(config, where)


def stating_types(config: PreTrainedConfig) -> bool:
    """Whether every part of a config states a rotation by a named type."""
    ropes = [getattr(part.config, "rope_parameters", None) for part in parts_of(config)]
    return all(isinstance(rope, dict) and isinstance(rope.get("rope_type", ""), str) for rope in ropes)


def unread_beside(text: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with a config that Transformers refuses, beside its rotation, which has a fault of its own."""
    model_type = text.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return
    rest = {name: value for name, value in text.items() if name not in ABOUT_ROTATION}
    if maximum := whole(text.get("max_position_embeddings")):
        rest["max_position_embeddings"] = maximum
    try:
        config = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(rest))
    except Exception as error:  # config classes raise whatever their own code runs into
        yield Finding(
            check="config",
            where=CONFIG,
            rule=f"must be one that Transformers reads, got {type(error).__name__}: {first_line(error)}",
            remedy="write the value that the checkpoint was published with",
        )
        return
    if stating_types(config):
        yield from unread(text, config, config, None)


def _computed(config: PreTrainedConfig, where: str) -> Iterator[Finding]:
    """Whether frequencies come out of the config."""
    try:
        require_supported(config)
        for part in parts_of(config):
            # whatever the original length: not every type needs one to compute from
            part_geometry(part, original_length=whole(config.max_position_embeddings) or 1, existing="replace")
            if rope_type_of(part.config) != LATE_TYPE:
                todays_spectrum(part)
    except RopescaleError as error:
        yield Finding.of(error, check="rope-parameters", where=where)


def _unturned(config: PreTrainedConfig, text: dict[str, Any]) -> Iterator[Finding]:
    """A rotation that is stated for layers that do not rotate."""
    reason = unrotated(config)
    if not reason:
        return
    scaled = {rope_type_of(part.config) for part in parts_of(config)} - {"default"}
    if not scaled and "rope_theta" not in text:
        return  # the default that Transformers writes into every config
    yield Finding(
        check="no-rotation",
        where="rope_theta" if not scaled else "rope_parameters",
        rule=f"must act on layers that rotate, got {reason}: no layer has positions from a rotation, and nothing of "
        f"it is used",
        remedy="remove it, and for a longer context write max_position_embeddings alone",
    )


def _as_built(config: PreTrainedConfig, where: str) -> Iterator[Finding]:
    """Whether Transformers builds the rotation that the config states."""
    for part in parts_of(config):
        if rope_type_of(part.config) == LATE_TYPE:
            continue
        try:
            built = built_rotation(part)
        except RopescaleError as error:
            yield Finding.of(error, check="rope-parameters", where=where)
            continue
        if built is None:
            continue
        inv_freq, attention_factor = todays_spectrum(part)
        fault = unlike(built[0], inv_freq)
        if not fault and abs(built[1] - attention_factor) > EXACT * attention_factor:
            fault = f"attention factor {built[1]:g} in the place of {attention_factor:g}"
        if fault:
            yield Finding(
                check="rope-parameters",
                where=f"{where}: {part.label or 'rope_parameters'}",
                rule=f"must state the rotation that Transformers builds for {config.model_type}, got {fault}",
                remedy="remove the entries that this family does not read",
            )


def of_record(config: PreTrainedConfig, where: str) -> Iterator[Finding]:
    """Whether the record and the rest of the config say one thing."""
    if hasattr(config, EXPORT_FIELD):  # the same rotation, in the words of one engine
        return
    place = f"{where}: {RECORD_FIELD}"
    try:
        record = saved_record(config)
        if record is None:
            if any(rope_type_of(part.config) == LATE_TYPE for part in parts_of(config)):
                yield Finding(
                    check="record",
                    where=place,
                    rule=f"must say what was done where rope_type is {LATE_TYPE!r}, got none",
                    remedy="restore the config.json that ropescale saved",
                )
            return
        fresh, extension = extended_again(config, record)
    except RopescaleError as error:
        yield Finding.of(error, check="record", where=place)
        return
    window = rotating_window(fresh, record.original_length)
    if record.layers == "global" and window and record.method != UNSCALED:
        yield Finding(
            check="no-effect",
            where=place,
            rule=f"must act on layers that read the whole context, got {record.method} in a {config.model_type}, "
            f"where only layers of a window of {window} tokens rotate: an earlier version did not refuse it",
            remedy=f"load it with ropescale.load, unpatch it, and patch with method {UNSCALED!r}, which raises the "
            f"limit alone",
        )
    for name, value in extension.fields.items():
        if getattr(config, name, None) != value:
            yield Finding(
                check="double-scaling",
                where=f"{where}: {name}",
                rule=f"must be what the ropescale record ({record.method_instance()}) gives, "
                f"{shortened(value)}, got {shortened(getattr(config, name, None))}: it was edited or scaled again",
                remedy=f"write it back, or remove the entry {RECORD_FIELD!r} to keep the config as it is",
            )
