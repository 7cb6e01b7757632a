"""Checkpoints in folders, written whole or not at all."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ropescale.checkpoint import require_complete, size_of
from ropescale.destinations import written_whole
from ropescale.errors import CheckpointError
from ropescale.export.canonical import Canonical
from ropescale.export.origin import origin_of
from ropescale.export.source import Source
from ropescale.export.stated import Stated
from ropescale.export.weights import INDEX
from ropescale.files import read_json
from ropescale.limits import raise_limits
from ropescale.merging import reads_embedding
from ropescale.records import EXPORT_FIELD, RECORD_FIELD
from ropescale.shards import bring, index_without, left_out, link, require_as_indexed, tables_in
from ropescale.version import __version__

ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta")


def write(
    destination: Path, source: Source, stated: Stated, canonical: Canonical, engine: str, *, linked: bool = False
) -> None:
    """Writes weights, tokenizer and, last, the config, without which no engine loads a folder.

    Rotary tables of the old length among the weights are left out, with a warning. `linked` makes links to the files
    of weights in the place of copies, where they are as the source has them.

    Raises:
        CheckpointError: a broken source, or a destination that cannot be written.
    """
    files = source.weight_files()
    if files:
        assert source.folder is not None
        if source.indexed:
            require_as_indexed(source.folder / INDEX)
        require_complete(source.folder, source.folder_config())
    source.pooling()  # whose links may lead elsewhere, which is known before anything is written
    config = config_of(source, stated, canonical, engine)
    config[EXPORT_FIELD] |= origin_of(source.name, source.adapter, destination)
    model = None if files else source.model()
    copied = [file for file in files if not linked or tables_in(file)]
    size = sum(file.stat().st_size for file in copied) if model is None else size_of(model)
    with written_whole(destination, size) as work:
        work.mkdir()
        tables: dict[str, int] = {}
        for file in files:
            assert source.folder is not None
            end = work / file.relative_to(source.folder)  # shards may lie in folders of their own
            end.parent.mkdir(parents=True, exist_ok=True)
            tables |= link(file, end) if linked else bring(file, end)
        if model is not None:
            assert isinstance(model, PreTrainedModel)
            _save_weights(model, work)
        elif source.indexed:
            assert source.folder is not None
            shutil.copyfile(source.folder / INDEX, work / INDEX)
            if tables:
                index = index_without(read_json(source.folder / INDEX), tables)
                (work / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            require_as_indexed(work / INDEX)
        _copy_companions(source, work)
        record, original = canonical.record, canonical.main.original_length
        before = original if record is None else record.before.get("max_position_embeddings", original)
        generation = raise_limits(work, before, canonical.main.target_length)  # engines cap what they serve by them
        if record is not None:
            record = dataclasses.replace(record, generation=generation or record.generation)
            text = config[source.place] if source.place else config
            text[RECORD_FIELD] = json.loads(json.dumps(record.to_dict()))
        (work / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if said := left_out(tables):
        warnings.warn(said, stacklevel=3)


def _save_weights(model: PreTrainedModel, work: Path) -> None:
    """The model's weights without its config, which may be one that Transformers refuses to save."""
    tied = getattr(model.config, "tie_word_embeddings", None)
    if tied and model.get_output_embeddings() is not None and not reads_embedding(model):
        raise CheckpointError(
            "source: a live model whose head is not its embedding must say so in its config, got "
            "tie_word_embeddings=True, with which Transformers would not save the head; set it to False"
        )
    type(model).save_pretrained(model, work)  # a patched one would write a card that is of no export
    (work / "config.json").unlink()


def _copy_companions(source: Source, work: Path) -> None:
    """Tokenizer and generation settings, and the pooling of an embedding model."""
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(work)
    if source.folder is None:
        return
    files = source.companions() if source.tokenizer is None else {}
    for name, file in (files | source.pooling()).items():
        end = work / name
        end.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, end)


def config_of(source: Source, stated: Stated, canonical: Canonical, engine: str) -> dict[str, Any]:
    """The entries of config.json."""
    config: dict[str, Any] = json.loads(source.config.to_json_string())
    text = config[source.place] if source.place else config
    for entries in (config, text):
        for name in (*ROPE_FIELDS, "_name_or_path", EXPORT_FIELD):
            entries.pop(name, None)
    # old configs of models that see images state their text's lengths beside it too
    config |= {name: value for name, value in stated.fields.items() if name in config}
    text |= {name: config[name] for name in stated.of_whole if name in config} | stated.fields
    label: dict[str, Any] = {"engine": engine, "version": __version__}
    if stated.flags:
        label["flags"] = list(stated.flags)
    if canonical.approximation:
        label["approximation"] = canonical.approximation
    config[EXPORT_FIELD] = label
    if source.live is not None:  # a model that was built, not loaded, does not say what it is
        config["architectures"] = [type(source.model()).__name__]
    return config
