"""A saved model given a longer context on disk: another folder with another config and the same weights, unread."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ropescale.checkpoints import resolve
from ropescale.checks import require_flag, require_path
from ropescale.console import Console
from ropescale.contents import CONFIG, read_config
from ropescale.destinations import require_new, written_whole
from ropescale.errors import CheckpointError, InvalidArgumentError, first_line
from ropescale.extension import extended
from ropescale.families.parts import text_of
from ropescale.files import read_json
from ropescale.limits import GENERATION, LIMITS, raise_limits
from ropescale.methods import Method
from ropescale.request import Request
from ropescale.shards import (
    INDEX,
    SAFE,
    TORCH,
    bring,
    files_of_index,
    index_without,
    left_out,
    require_whole,
    tables_in,
)


def rescale_checkpoint(
    source: str | Path,
    destination: str | Path,
    method: str | Method = "yarn",
    *,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    existing: str = "error",
    layers: str = "global",
    link: bool = False,
    **knobs: Any,
) -> Path:
    """A checkpoint with a longer context beside an existing one; returns its folder.

    Writes the config that `patch` and `save_pretrained` would write, without loading a weight. Every other file comes
    along: the limits that would stop a tokenizer or generation at the old length are raised to the new one, and the
    rotary tables of the old length that old checkpoints hold among their weights are left out, with a warning. The
    source is only read. The folder is filled under another name and renamed at the end, so a run that is stopped
    leaves nothing that loads.

    Arguments:
        source: a folder, a hub id (downloaded into the hub's cache), `tiny` or `smollm2`.
        destination: a folder that is not there or empty.
        method: a registry name or a `Method` instance, of fixed frequencies.
        factor: target length / original length, at least 1.
        target_length: tokens wanted; instead of `factor`, or agreeing with it.
        original_length: tokens the model was pretrained for; read from the config where it is not given.
        existing: what to do with a checkpoint that is scaled already: "error", "replace" or "compose", as in `patch`.
        layers: "global", "full" or "all", as in `patch`; "full" where the config states a rotation for each layer type
            or no layer looks at a window.
        link: hard-link safetensors files where the file system can, which takes no room and no time; everything else
            is copied, because it may be edited later.
        **knobs: fields of the method, such as `beta_fast=16`.

    Example:
        >>> import ropescale
        >>> folder = ropescale.rescale_checkpoint("tiny", "tiny-512", method="yarn", target_length=512)
        >>> ropescale.load(folder).config.max_position_embeddings
        512

    Raises:
        CheckpointError: no checkpoint at the source, or the destination cannot be written.
        InvalidArgumentError: an argument that breaks its rule, or a method that acts in attention: how a family's
            layers take it is tried on the loaded model.
        RopescaleError: whatever else `patch` raises about the config.
    """
    request = Request.of(locals())
    require_flag("link:", link, default=False)
    for name, value in (("source", source), ("destination", destination)):
        require_path(f"{name}:", value)
    folder = source_folder(source)
    config = read_config(str(folder), trust_remote_code=False)
    target = Path(destination)
    require_new(target, folder)
    text = text_of(config)
    extension = extended(text, request)
    if extension.late is not None and extension.late.kept and layers == "full":
        raise InvalidArgumentError(
            f"layers: must be 'global' or 'all' for a {text.model_type} on disk, where one rotary module serves all "
            f"layers and a config states one rotation for it, got {layers!r}; load, patch and save it with "
            f"save_pretrained"
        )
    if extension.two_lists:
        raise InvalidArgumentError(
            f"existing: must be 'replace' for a {text.model_type} on disk that is scaled by two lists, of which each "
            f"query reads by that of its own position as no config says, got {existing!r}; load, patch and save it "
            f"with save_pretrained"
        )
    if extension.late is not None:
        raise InvalidArgumentError(
            f"method: must be one of fixed frequencies, which a config states, got {extension.record.method!r}, which "
            f"acts in attention and is tried on a loaded model; load, patch and save it with save_pretrained"
        )
    settings = {name: read_json(folder / name) for name in LIMITS}  # before anything is copied: one may be damaged
    files = files_of(folder)
    for file in files:
        if file.suffix in (SAFE, TORCH):
            require_whole(folder / file)
        elif file.name.endswith(INDEX):
            files_of_index(folder / file)
    before = text.max_position_embeddings
    extension = extension.raising(settings[GENERATION], before)
    extension.write(text)
    for name in config.sub_configs:  # as loading a model does
        inner = getattr(config, name, None)
        if inner is not None and inner.dtype is None:
            inner.dtype = config.dtype
    copied = [file for file in files if not (link and _linkable(folder / file))]
    with written_whole(target, sum((folder / file).stat().st_size for file in copied)) as partial:
        partial.mkdir()
        tables = _bring(files, folder, partial, link=link)
        raise_limits(partial, before, extension.record.target_length)
        config.save_pretrained(partial)  # last: a folder without it is no checkpoint
    for said in filter(None, (extension.warning, left_out(tables))):
        warnings.warn(said, stacklevel=2)
    return target


def source_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; a hub id is downloaded into the hub's cache.

    Raises:
        CheckpointError: no folder there, and no hub that has it.
    """
    resolved = resolve(str(source))
    try:
        if Path(resolved).is_dir():
            return Path(resolved)
        return Path(huggingface_hub.snapshot_download(resolved))
    except Exception as error:  # the hub's client lets the errors of its HTTP library through, whichever that is
        raise CheckpointError(
            f"{source}: must be a folder with a Transformers checkpoint, or a hub id that can be reached, got "
            f"{type(error).__name__}: {first_line(error)}; check the path or the "
            f"connection"
        ) from error


def files_of(folder: Path) -> list[Path]:
    """The files of a checkpoint, relative to its folder; hidden ones (caches, version control) are left behind.

    Raises:
        CheckpointError: a link that leads nowhere or in a circle, or no weights.
    """
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted(name for name in names if not name.startswith(".")) + linked:
            path = Path(place) / name
            if not path.is_file():
                raise CheckpointError(
                    f"source: every entry must be a file or a folder of files, got {str(path)!r}, which is a link to "
                    f"a folder or to nothing; replace it by what it stands for"
                )
            files.append(path.relative_to(folder))
    if not any(path.suffix in (SAFE, TORCH) for path in files):
        raise CheckpointError(
            f"source: must hold the weights of the model, got {str(folder)!r} without a .safetensors or .bin file; "
            f"save or download the whole checkpoint"
        )
    return files


def _bring(files: list[Path], source: Path, partial: Path, *, link: bool) -> dict[str, int]:
    """Every file but the config into the new folder, copied or linked, under a progress bar; what was left out."""
    total = sum((source / file).stat().st_size for file in files)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    tables: dict[str, int] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copying", total=total)
        for file in files:
            if file == Path(CONFIG):
                continue
            start, end = (source / file).resolve(), partial / file
            end.parent.mkdir(parents=True, exist_ok=True)
            if link and _linkable(start) and _linked(start, end):
                bar.advance(task, start.stat().st_size)
            else:
                tables |= bring(start, end, lambda count: bar.advance(task, count))
    if tables:
        for file in files:
            if file.name.endswith(INDEX) and "weight_map" in (index := read_json(source / file)):
                text = json.dumps(index_without(index, tables), indent=2, ensure_ascii=False)
                (partial / file).write_text(text + "\n", encoding="utf-8")
    return tables


def _linkable(file: Path) -> bool:
    """Whether a file may be shared: nobody writes into one of safetensors, it is replaced."""
    return file.suffix == SAFE and not tables_in(file)


def _linked(start: Path, end: Path) -> bool:
    """Whether the file system made a hard link."""
    try:
        os.link(start, end)
    except OSError:  # another device, or a file system without links: a copy does as well
        return False
    return True
