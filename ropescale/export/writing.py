"""One call: a source, extended by a method or as it is, written for one engine."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ropescale import outside
from ropescale.checkpoints import resolve
from ropescale.checks import require_path
from ropescale.destinations import require_new
from ropescale.errors import ExportError
from ropescale.export import folder
from ropescale.export.canonical import canonical
from ropescale.export.engines.base import Engine, able, engine_of
from ropescale.export.exported import Exported, exported
from ropescale.export.origin import origin_of
from ropescale.export.source import AS_IT_IS, Source, requested, source_of
from ropescale.export.stated import Stated, reaching
from ropescale.export.weights import local_folder
from ropescale.heads import headless, require_language_model
from ropescale.methods import Method
from ropescale.request import Request
from ropescale.temperature import Temperature
from ropescale.trust import takes_trust


@takes_trust
def export(
    model: str | Path | nn.Module,
    destination: str | Path,
    *,
    to: str,
    method: str | Method | None = None,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    existing: str = "error",
    layers: str = "global",
    log_n: bool = False,
    temperature: Temperature | str | Mapping[str, Any] | None = None,
    adapter: str | Path | None = None,
    tokenizer: Any = None,
    outtype: str | None = None,
    lossy: bool = False,
    trust_remote_code: bool = False,
    **knobs: Any,
) -> Exported:
    """Write a model for an engine: weights and tokenizer as they are, and its rotation in the engine's own words.

    The engine's native type is written where it is exact, otherwise the form in which it takes any fixed
    frequencies. What it cannot hold exactly is refused, with the nearest method that it can. The destination is
    written whole or not at all.

    Args:
        model: a folder saved patched, or as published; `tiny`, `smollm2`, a hub id; or a live model, patched or not.
        destination: a folder that is not there or empty, or for "gguf" a new file.
        to: "transformers", "vllm", "sglang", "mlx" or "gguf".
        method: extends the model as `ropescale.patch` does, with `factor` or `target_length` and the knobs; left out
            of a model that is extended already, and "none" to write one as it is that is not.
        factor: as in `patch`, and so are `target_length`, `original_length`, `existing`, `layers`, `log_n`,
            `temperature`, `knobs`.
        target_length: see `factor`.
        original_length: see `factor`.
        existing: see `factor`.
        layers: see `factor`.
        log_n: see `factor`.
        temperature: see `factor`.
        adapter: a folder with a PEFT adapter, merged into the weights. Where it carries a record, the model is
            patched as it was when the adapter was trained, and the method is left out.
        tokenizer: of a live model.
        outtype: of GGUF's matrices: "f32", "f16", "bf16" or "q8_0"; left out, that of the checkpoint.
        lossy: write the nearest fixed frequencies of a method that no engine carries out, with a label that says so.
        trust_remote_code: run Python code that lies in the checkpoint.
        **knobs: of the method.

    Raises:
        ExportError: what the engine cannot hold.
        CheckpointError: a broken source, or a destination that cannot be written.
        InvalidArgumentError: arguments that break their rules.
        UnsupportedModelError: a model without a head over the vocabulary, for an engine that has no other.
        RopescaleError: whatever `patch` and `load_adapter` raise.
    """
    asked = locals()
    require_path("destination:", destination)
    engine, path = engine_of(to), Path(destination).expanduser()
    engine.require(path, outtype)
    require_new(path, None if isinstance(model, nn.Module) else local_folder(str(model)))
    request = requested(asked)
    source = source_of(model, request, as_it_is=method == AS_IT_IS, adapter=adapter, tokenizer=tokenizer)
    if not engine.every_head:
        _require_language_model(source)
    _require_read_within(engine, source)
    rotation = canonical(source.text, lossy=lossy)
    stated = engine.write(path, source, rotation, outtype)
    if source.place:
        stated = dataclasses.replace(stated, overrides={source.place: stated.overrides})
    target, overrides, unmodified = rotation.main.target_length, "", ""
    if adapter is None:
        before, behind = engine.overrides(stated, target, source.tokenizer_limit())
        overrides = f"{before} {behind}".strip()
        if overrides and not isinstance(model, nn.Module):
            unmodified = f"{before} {_served(engine, resolve(str(model)), behind)}".strip()
    return exported(
        engine,
        path,
        rotation,
        stated,
        overrides=overrides,
        commands=(_served(engine, str(path), *stated.flags),) if engine.program else (),
        unmodified=unmodified,
        verifying=_verifying(engine, path, source),
        lacking="; ".join(_lacking(source)),
    )


def held(model: str, request: Request | None, *, to: str, length: int = 0) -> Stated:
    """What an engine would be told of a model that is extended so, or stays as it is; nothing is written.

    Args:
        model: a folder, a short name or a hub id.
        request: what extends it; None for a model as it is.
        to: the engine.
        length: tokens that it is read to, where that may be more than it is made for.

    Raises:
        ExportError: what the engine cannot hold, or a length beyond what it has positions for.
        RopescaleError: whatever `export` raises before weights are read.
    """
    engine = engine_of(to)
    source = source_of(model, request, as_it_is=request is None)
    if not engine.every_head:
        _require_language_model(source)
    _require_read_within(engine, source)
    rotation = canonical(source.text)
    return reaching(engine.held(source.text, rotation), source.text, rotation, length)


def linked(
    model: str, destination: Path, request: Request | None, *, to: str, length: int, adapter: str | None = None
) -> Stated:
    """Write what `export` would write, with links in the place of copies of weights; returns what the engine is told.

    It is for this machine, and as long as the source stays. Weights that an adapter is merged into are written, and so
    are those that are not in files of safetensors.

    Args:
        model: a folder, a short name or a hub id.
        destination: a folder that is not there or empty.
        request: what extends it; None for a model as it is, or as an adapter with a record has it.
        to: the engine.
        length: tokens that it is read to.
        adapter: a folder with a PEFT adapter, merged into the weights.

    Raises:
        ExportError: what the engine cannot hold, or a length beyond what it has positions for.
        RopescaleError: whatever `export` raises.
    """
    engine = engine_of(to)
    source = source_of(model, request, as_it_is=request is None, adapter=adapter)
    _require_language_model(source)
    _require_read_within(engine, source)
    rotation = canonical(source.text)
    stated = reaching(engine.held(source.text, rotation), source.text, rotation, length)
    folder.write(destination, source, stated, rotation, engine.name, linked=True)
    return stated


def _require_read_within(engine: Engine, source: Source) -> None:
    """Refuse a text decoder that the engine does not find within its model.

    Raises:
        ExportError: such a one.
    """
    family = source.config.model_type
    if source.place and engine.wholes is not None and family not in engine.wholes:
        raise ExportError(
            f"{family}: a model must be a text decoder alone to be exported to {engine.title}, got a "
            f"{source.text.model_type} with what sees or hears beside it; {engine.instead or f'export to {able()}'}"
        )


def _require_language_model(source: Source) -> None:
    if source.live is None:
        require_language_model(source.config, source.name)
    elif isinstance(source.live, PreTrainedModel) and not source.live.can_generate():
        raise headless(source.name, type(source.live).__name__)


def _lacking(source: Source) -> list[str]:
    """What an engine will want that the export has not."""
    lacking = [] if source.has_tokenizer() else [f"no tokenizer in {source.name}, and so none in the export"]
    if source.without_sight:
        lacking.append("nothing that sees or hears in the export, since the adapter is one of the text decoder alone")
    return lacking


def _served(engine: Engine, place: str, *flags: str) -> str:
    """The command that serves what is there."""
    return " ".join((engine.program.format(shlex.quote(place)), *flags))


def _verifying(engine: Engine, path: Path, source: Source) -> str:
    """What verifies an export; it names what the export does not say of itself."""
    if not engine.running:
        return ""
    asked = ["ropescale", *outside.options(), "verify-export", str(path), "--engine", engine.called]
    origin = origin_of(source.name, source.adapter, path)
    wanted = engine.suffix or source.adapter is not None  # a folder without one holds the model's weights
    if wanted and "source" not in origin:
        asked += ["--reference", source.name if source.folder is not None else "SRC"]
    if source.adapter is not None and not origin["adapter"]["path"]:
        asked += ["--adapter", str(source.adapter)]
    return shlex.join(asked)
