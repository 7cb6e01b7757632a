"""Checkpoints in folders, written whole or not at all."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ropescale.checkpoint import raise_limits, size_of
from ropescale.destinations import written_whole
from ropescale.export.rotation import Canonical
from ropescale.export.source import COMPANIONS, INDEX, POOLING, Source
from ropescale.export.stated import Stated
from ropescale.files import read_json
from ropescale.records import EXPORT_FIELD, RECORD_FIELD
from ropescale.shards import bring, index_without, left_out
from ropescale.version import __version__

ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta")


def write(destination: Path, source: Source, stated: Stated, canonical: Canonical, engine: str) -> None:
    """Writes weights, tokenizer and, last, the config, without which no engine loads a folder.

    Rotary tables of the old length among the weights are left out, with a warning.

    Raises:
        CheckpointError: a broken source, or a destination that cannot be written.
    """
    files = source.weight_files()
    config = config_of(source, stated, canonical, engine)
    model = None if files else source.model()
    size = sum(file.stat().st_size for file in files) if model is None else size_of(model)
    with written_whole(destination, size) as work:
        work.mkdir()
        tables: dict[str, int] = {}
        for file in files:
            tables |= bring(file, work / file.name)
        if model is not None:
            assert isinstance(model, PreTrainedModel)
            _save_weights(model, work)
        elif len(files) > 1:
            assert source.folder is not None
            shutil.copyfile(source.folder / INDEX, work / INDEX)
            if tables:
                index = index_without(read_json(source.folder / INDEX), tables)
                (work / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _copy_companions(source, work)
        record, original = canonical.record, canonical.main.original_length
        before = original if record is None else record.before.get("max_position_embeddings", original)
        generation = raise_limits(work, before, canonical.main.target_length)  # engines cap what they serve by them
        if record is not None:
            record = dataclasses.replace(record, generation=generation or record.generation)
            config[RECORD_FIELD] = json.loads(json.dumps(record.to_dict()))
        (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if said := left_out(tables):
        warnings.warn(said, stacklevel=3)


def _save_weights(model: PreTrainedModel, work: Path) -> None:
    """The model's weights without its config, which may be one that Transformers refuses to save."""
    model.save_pretrained(work)
    (work / "config.json").unlink()


def _copy_companions(source: Source, work: Path) -> None:
    """Tokenizer and generation settings, and the pooling of an embedding model."""
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(work)
    if source.folder is None:
        return
    names = COMPANIONS if source.tokenizer is None else ()
    found = [source.folder / name for name in names]
    for file in [*found, *(file for pattern in POOLING for file in sorted(source.folder.glob(pattern)))]:
        if file.is_file():
            end = work / file.relative_to(source.folder)
            end.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, end)


def config_of(source: Source, stated: Stated, canonical: Canonical, engine: str) -> dict[str, Any]:
    """The entries of config.json."""
    config: dict[str, Any] = json.loads(source.config.to_json_string())
    for name in (*ROPE_FIELDS, "_name_or_path", EXPORT_FIELD):
        config.pop(name, None)
    config |= stated.fields
    label: dict[str, Any] = {"engine": engine, "version": __version__}
    if stated.flags:
        label["flags"] = list(stated.flags)
    if canonical.approximation:
        label["approximation"] = canonical.approximation
    config[EXPORT_FIELD] = label
    if source.live is not None:  # a model that was built, not loaded, does not say what it is
        config["architectures"] = [type(source.model()).__name__]
    return config
