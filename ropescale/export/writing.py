"""One call: a source, extended by a method or as it is, written for one engine."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ropescale.checkpoints import resolve
from ropescale.destinations import require_new, written_whole
from ropescale.errors import ExportError, InvalidArgumentError
from ropescale.export import folder, hf, mlx, sglang, source, vllm
from ropescale.export.origin import moved, origin_of, public_name
from ropescale.export.origin import read as read_origin
from ropescale.export.reads import require_read
from ropescale.export.rotation import Canonical, canonical
from ropescale.export.stated import Stated, as_argument
from ropescale.extension import extended
from ropescale.heads import headless, require_language_model
from ropescale.methods import Method
from ropescale.request import Request
from ropescale.trust import takes_trust

ENGINES = {"gguf": "llama.cpp", "mlx": "MLX-LM", "sglang": "SGLang", "transformers": "Transformers", "vllm": "vLLM"}
NOT_RUN = {"sglang": "by its source, version 0.5.23"}
STATE = {"mlx": mlx.state, "sglang": sglang.state, "transformers": hf.state, "vllm": vllm.state}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how long the engine will serve it."""

    path: Path
    to: str
    method: str  # in words
    form: str  # how the engine was told, in words
    serves: int  # tokens
    target_length: int  # tokens
    flags: tuple[str, ...] = ()  # that the engine needs to serve the target length
    approximation: str = ""  # what is not exact; empty where everything is
    overrides: str = ""  # flags for an unmodified checkpoint; empty where the engine has none, or weights are merged
    commands: tuple[str, ...] = ()  # what serves it, as a shell takes it
    unmodified: str = ""  # the command that serves the unmodified checkpoint alike, as a shell takes it
    verifying: str = ""  # the command that runs the engine and compares, as a shell takes it
    lacking: str = ""  # what an engine will want that the source has not

    def __str__(self) -> str:
        how = f"approximation ({self.approximation})" if self.approximation else "exact"
        if self.to in NOT_RUN:
            how += f" {NOT_RUN[self.to]}, not run"
        serves = f"{ENGINES[self.to]} will serve {self.serves:,} tokens"
        if self.flags:
            serves += f", {self.target_length:,} with {' '.join(self.flags)}"
        return f"{self.path}: {self.method} as {self.form}, {how}; {serves}"


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
        factor: as in `patch`, and so are `target_length`, `original_length`, `existing`, `layers`, `log_n`, `knobs`.
        target_length: see `factor`.
        original_length: see `factor`.
        existing: see `factor`.
        layers: see `factor`.
        log_n: see `factor`.
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
    if to not in ENGINES:
        raise InvalidArgumentError(f"to: must be one of {', '.join(sorted(ENGINES))}, got {to!r}; name an engine")
    if outtype is not None and to != "gguf":
        raise InvalidArgumentError(
            f"outtype: must be left out for {to}, got {outtype!r}; weights are copied as they are"
        )
    path = Path(destination).expanduser()
    if to == "gguf":
        _require_gguf_name(path)
    require_new(path, None if isinstance(model, nn.Module) else source.local_folder(str(model)))
    request = source.requested(
        method,
        adapter,
        factor=factor,
        target_length=target_length,
        original_length=original_length,
        existing=existing,
        layers=layers,
        log_n=log_n,
        knobs=knobs,
    )
    opened = source.opened(model, request, as_it_is=method == source.AS_IT_IS, adapter=adapter, tokenizer=tokenizer)
    if to in ("gguf", "mlx"):  # the others serve classifiers and embedding models too
        _require_language_model(opened)
    told = canonical(opened.config, lossy=lossy)
    if to == "gguf":
        return _write_gguf(path, opened, told, outtype)
    stated = STATE[to](opened.config, told)
    require_read(to, ENGINES[to], opened.config, told, stated.fields["rope_parameters"])
    folder.write(path, opened, stated, told, to)
    overrides = "" if adapter is not None else _overrides(to, opened, stated, told)
    return Exported(
        path=path,
        to=to,
        method=told.method,
        form=stated.form,
        serves=stated.serves,
        target_length=told.main.target_length,
        flags=stated.flags,
        approximation=told.approximation,
        overrides=overrides,
        commands=_commands(to, path, stated),
        unmodified="" if isinstance(model, nn.Module) else _unmodified(to, resolve(str(model)), overrides),
        verifying=_verifying(to, path, opened),
        lacking="" if opened.has_tokenizer() else f"no tokenizer in {opened.name}, and so none in the export",
    )


def _require_language_model(opened: source.Source) -> None:
    if opened.live is None:
        require_language_model(opened.config, opened.name)
    elif isinstance(opened.live, PreTrainedModel) and not opened.live.can_generate():
        raise headless(opened.name, type(opened.live).__name__)


def _write_gguf(path: Path, opened: source.Source, told: Canonical, outtype: str | None) -> Exported:
    """One file, loaded and written."""
    gguf = _gguf()
    architecture = gguf.architecture_of(opened.config)
    gguf.scaling_of(told.main, divisors=architecture.divisors, name=opened.config.model_type)
    tokenizer, model = opened.tokens(), opened.model()
    chosen = gguf.outtype_for(model, outtype)
    size = sum(parameter.numel() for parameter in model.parameters()) * {"f32": 4, "q8_0": 1}.get(chosen, 2)
    with written_whole(path, size) as work:
        scaling = gguf.write(
            work,
            opened.config,
            model,
            tokenizer,
            told,
            public_name(opened.name),
            chosen,
            json.dumps(origin_of(opened.name, opened.adapter, path)),
        )
    return Exported(
        path=path,
        to="gguf",
        method=told.method,
        form=f"{scaling.form}, {chosen.upper()}",
        serves=told.main.target_length,
        target_length=told.main.target_length,
        approximation=told.approximation,
        verifying=_verifying("gguf", path, opened),
    )


def _gguf() -> Any:
    """The room of GGUF.

    Raises:
        ExportError: the package gguf is not installed.
    """
    try:
        from ropescale.export import gguf
    except ImportError as error:
        raise ExportError(
            f"to: 'gguf' needs the package gguf, got none installed ({error}); pip install ropescale[export]"
        ) from error
    return gguf


def _overrides(to: str, opened: source.Source, stated: Stated, told: Canonical) -> str:
    """The flags that make the engine treat the unmodified checkpoint alike, where it has such flags."""
    if to == "vllm":
        flags = f"--hf-overrides {as_argument(stated.overrides)} --max-model-len {told.main.target_length}"
        limited = opened.tokenizer_limit() < told.main.target_length  # which vLLM does not let a flag exceed
        return f"VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 {flags}" if limited else flags
    if to == "sglang":
        return f"--json-model-override-args {as_argument(stated.overrides)} --context-length {told.main.target_length}"
    return ""


def _commands(to: str, path: Path, stated: Stated) -> tuple[str, ...]:
    """What serves an export."""
    program = {
        "vllm": "vllm serve {}",
        "sglang": "python -m sglang.launch_server --model-path {}",
        "mlx": "mlx_lm.server --model {}",
    }.get(to)
    return (" ".join((program.format(shlex.quote(str(path))), *stated.flags)),) if program else ()


def _verifying(to: str, path: Path, opened: source.Source) -> str:
    """What verifies an export; it names what the export does not say of itself."""
    if to in NOT_RUN:
        return ""
    asked = ["ropescale", "verify-export", str(path), "--engine", {"gguf": "llama.cpp"}.get(to, to)]
    origin = origin_of(opened.name, opened.adapter, path)
    wanted = to == "gguf" or opened.adapter is not None  # a folder without an adapter holds the model's weights
    if wanted and "source" not in origin:
        asked += ["--reference", opened.name if opened.folder is not None else "SRC"]
    if opened.adapter is not None and not origin["adapter"]["path"]:
        asked += ["--adapter", str(opened.adapter)]
    return shlex.join(asked)


def _unmodified(to: str, name: str, overrides: str) -> str:
    """The command for the checkpoint that was exported, with the flags that tell the engine the same."""
    if not overrides:
        return ""
    if to == "sglang":
        return f"python -m sglang.launch_server --model-path {shlex.quote(name)} {overrides}"
    variable, separator, flags = overrides.partition(" ") if overrides.startswith("VLLM_") else ("", "", overrides)
    return f"{variable}{separator}vllm serve {shlex.quote(name)} {flags}"


def patch_gguf(
    path: str | Path,
    destination: str | Path,
    *,
    method: str | Method,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    **knobs: Any,
) -> Exported:
    """Add a scaling to an existing GGUF file: a copy with other metadata, every weight byte for byte as it was.

    Args:
        path: a .gguf file whose positions are as pretrained, of any quantisation.
        destination: a new file.
        method: a method of fixed frequencies, with `factor` or `target_length` and its knobs as in `ropescale.patch`.
        factor: see `method`.
        target_length: see `method`.
        original_length: tokens the model was pretrained for; left out, what the file states.
        **knobs: of the method.

    Raises:
        ExportError: an architecture that is not known here, a file that is scaled already, or a method that
            llama.cpp cannot hold.
        CheckpointError: not a GGUF file, or a destination that cannot be written.
        InvalidArgumentError: arguments that break their rules.
    """
    gguf = _gguf()
    existing, new = Path(path).expanduser(), Path(destination).expanduser()
    _require_gguf_name(new)
    require_new(new)
    reader = gguf.opened(existing)
    config = gguf.file_config(reader, existing)
    request = Request(
        method=method,
        factor=factor,
        target_length=target_length,
        original_length=original_length,
        knobs=knobs,
    )
    extended(config, request).write(config)
    told = canonical(config)
    name = gguf.required(reader, existing, "general.architecture", gguf.TEXT)
    scaling = gguf.scaling_of(told.main, divisors=gguf.reads_divisors(name), name=name)
    told_origin = gguf.contents(reader, existing, gguf.ORIGIN_KEY, gguf.TEXT, "{}")
    origin = moved(read_origin(told_origin), existing, new)
    with written_whole(new, existing.stat().st_size) as work:
        gguf.rewrite(work, reader, existing, scaling, told, json.dumps(origin))
    return Exported(
        path=new,
        to="gguf",
        method=told.method,
        form=f"{scaling.form}, weights as they were",
        serves=told.main.target_length,
        target_length=told.main.target_length,
    )


def _require_gguf_name(path: Path) -> None:
    if path.suffix != ".gguf":
        raise InvalidArgumentError(
            f"destination: must be a file name that ends in .gguf, got {str(path)!r}; give one, such as "
            f"{str(path / 'model.gguf')!r}"
        )
