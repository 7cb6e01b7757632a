"""What an adapter's folder says, held against the base that the adapter will be put on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropescale.adapter_files import CONFIG_FILE, RECORD_FILE
from ropescale.checkpoints import resolve
from ropescale.contents import read_config
from ropescale.doctor.finding import Finding
from ropescale.errors import CheckpointError, shortened
from ropescale.families.parts import text_of
from ropescale.families.support import require_supported
from ropescale.files import read_json
from ropescale.records import RECORD_FIELD, Record, saved_record

# Types of adapters that act beside the layers of their base, where PEFT alone runs them
BESIDE = (
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter's folder says of it."""

    kind: str  # PEFT's name of its type
    base: str  # as its config names it; empty where it does not
    record: Record | None  # None of a plain one

    def __str__(self) -> str:
        of = f"a PEFT adapter of type {self.kind} for {self.base or 'a base that it does not name'}"
        if self.record is not None:
            return f"{of}, trained with {self.record.method} to {self.record.target_length:,} tokens"
        if self.kind in BESIDE:
            return f"{of}, which acts beside the layers of its base: PEFT alone runs it"
        return (
            f"{of}, without a {RECORD_FILE}: it stands on its base as that is, and eval --adapters, export "
            f"--adapter and train --adapter extend the base under it"
        )


def adapter_in(path: str | Path) -> Adapter | None:
    """What an adapter says of itself; None of what is none.

    Raises:
        CheckpointError: a damaged config or record.
    """
    folder = Path(resolve(str(path)))
    if not (folder / CONFIG_FILE).is_file():
        return None
    said = read_json(folder / CONFIG_FILE)
    kind, base = said.get("peft_type"), said.get("base_model_name_or_path")
    there = (folder / RECORD_FILE).is_file()
    return Adapter(
        kind=kind if isinstance(kind, str) else "unknown",
        base=base if isinstance(base, str) else "",
        record=Record.from_dict(read_json(folder / RECORD_FILE)) if there else None,
    )


def of_adapter(folder: Path) -> Iterator[Finding]:
    """An adapter beside its base: what it was trained on must be what it will be put on."""
    base = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        yield Finding(
            check="adapter-base",
            where=f"{CONFIG_FILE}: base_model_name_or_path",
            rule=f"must name the model that the adapter belongs to, got {shortened(base)}",
            remedy="write the path or hub id of the base there",
        )
        return
    try:
        config = text_of(read_config(resolve(base), trust_remote_code=False))
    except CheckpointError:
        yield Finding(
            check="adapter-base",
            where=f"{CONFIG_FILE}: base_model_name_or_path",
            rule=f"must name a model that is found here or on a hub that is reached, got {shortened(base)}",
            remedy="write the path or hub id of the base there, or give it to merge and export",
        )
        return
    require_supported(config)
    on_base = saved_record(config)
    if not (folder / RECORD_FILE).is_file():
        if on_base is not None:
            yield Finding(
                check="adapter-record",
                where=RECORD_FILE,
                rule=f"must say how the base was scaled when the adapter was trained, got no such file beside a base "
                f"that is saved with {on_base.method_instance()}",
                remedy=f"copy the record (the entry {RECORD_FIELD!r} of the config that it was trained on) into it",
            )
        return
    trained = Record.from_dict(read_json(folder / RECORD_FILE))
    before, today = trained.before["rope_parameters"], config.rope_parameters
    if on_base is None and before != today:
        yield Finding(
            check="adapter-scaling",
            where=RECORD_FILE,
            rule=f"must start from the rope_parameters of the base, got {shortened(before)} for a base with "
            f"{shortened(today)}",
            remedy="put the adapter on the base that it was trained on",
        )
    elif on_base is not None and _deeds(trained) != _deeds(on_base):
        yield Finding(
            check="adapter-scaling",
            where=RECORD_FILE,
            rule=f"must be the record of the base, got an adapter trained with {trained.method_instance()} from "
            f"{trained.original_length} to {trained.target_length} tokens for a base saved with "
            f"{on_base.method_instance()} from {on_base.original_length} to {on_base.target_length}",
            remedy="put it on the base that it was trained on, or name the unscaled base in adapter_config.json",
        )


def _deeds(record: Record) -> tuple[Any, ...]:
    """What a record says was done, without when and by which versions."""
    return record.method, record.knobs, record.original_length, record.target_length, record.layers, record.temperature
