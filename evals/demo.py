"""The main job in small: a model unpatched against methods at factors, perplexity by position and passkeys.

Every arm reads the same windows and answers the same passkeys, so the comparison is paired. The run is a list of
cells; each is appended to `results.jsonl` when it is finished, and a run that was stopped goes on with the next
one. The lm-eval tasks will take the place of this loop.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

import ropescale
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.evals import results as on_disk
from ropescale.evals.passkey import PasskeySample, passkey_samples
from ropescale.evals.perplexity import bucket_edges, by_bucket, cut_windows, loss_by_position
from ropescale.evals.results import UNPATCHED, Arm, Cell, Key, Results, Settings, perplexity_text, share_text
from ropescale.evals.texts import Document, held_out, sample, speeches

BATCH_TOKENS = 8192  # of one forward, where a single sequence is not longer
DTYPES = ("bfloat16", "float16", "float32")
PROBE_LENGTH = 1024  # tokens of the forward that is timed for the estimate


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and on how much.

    Raises:
        InvalidArgumentError: a value out of bounds.
        UnknownMethodError: a method that is not in the registry.
    """

    model: str  # a short name, a path or a hub id
    methods: tuple[str, ...] = ("linear", "ntk", "by_parts", "yarn")
    factors: tuple[float, ...] = (2.0,)
    lengths: tuple[int, ...] = ()  # tokens; empty stands for the original length and every factor times it
    depths: tuple[float, ...] = (0.0, 0.5, 1.0)
    windows: int = 3  # at most
    samples: int = 1  # passkeys per length and depth
    seed: int = 0
    dtype: str = "float32"  # weights as the hub keeps them are often bfloat16, which costs digits of a perplexity
    device: str = "auto"  # the accelerator if torch sees one, else the CPU

    def __post_init__(self) -> None:
        for name, smallest in (("windows", 1), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < smallest:
                raise InvalidArgumentError(
                    f"demo: {name} must be at least {smallest}, got {getattr(self, name)!r}; "
                    f"leave it out for the default"
                )
        for name, what in (("factors", "factor"), ("depths", "depth")):
            if not getattr(self, name):
                raise InvalidArgumentError(f"demo: {name} must hold at least one {what}, got none; leave it out")
        for name in self.methods:
            if name != UNPATCHED.method:
                ropescale.get_method(name)
        for factor in self.factors:
            if not 1 <= factor < math.inf:
                raise InvalidArgumentError(
                    f"demo: factors must be finite and at least 1, got {factor!r}; "
                    f"a factor is target length / original length"
                )
        if self.dtype not in DTYPES:
            raise InvalidArgumentError(
                f"demo: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}; leave it out for float32"
            )
        try:
            torch.device(_device(self.device))
        except RuntimeError as error:
            raise InvalidArgumentError(
                f"demo: device must be one that torch knows, got {self.device!r}; leave it out, or give cpu or cuda"
            ) from error
        for length in self.lengths:
            if length < 2:
                raise InvalidArgumentError(
                    f"demo: lengths must be at least 2 tokens, got {length!r}; a window needs a token to predict"
                )


def default_options(model: str) -> Options:
    """The defaults for a model: the embedded one affords more than a real one does on a CPU."""
    if model == "tiny":
        return Options(
            model=model, factors=(2.0, 4.0, 8.0), depths=(0.0, 0.25, 0.5, 0.75, 1.0), windows=45, samples=10
        )
    if model == "smollm2":
        return Options(model=model, lengths=(4096, 12288))  # 12,288: unpatched it breaks beyond 10,000
    return Options(model=model)


def run(options: Options, folder: Path, command: str, documents: Sequence[Document] | None = None) -> Results:
    """Run what is missing in `folder`, with a progress bar, and return all results.

    `documents` stands for the held-out speeches. A kill loses at most the running cell.

    Raises:
        InvalidArgumentError: options that do not fit the model or one another, or a folder of other settings.
    """
    model = ropescale.load(options.model, dtype=getattr(torch, options.dtype)).to(_device(options.device))
    if ropescale.record(model) is not None:
        raise InvalidArgumentError(
            f"demo: model must be unpatched, since the demo patches it, got {options.model!r}, which was saved "
            f"patched; name the checkpoint that it was made from"
        )
    # texts are cut after tokenizing, so a tokenizer's warning about the model's length would be false
    tokenizer = AutoTokenizer.from_pretrained(resolve(options.model), model_max_length=10**9)
    arms = _arms(options)
    original_length = ropescale.read_geometry(model.config).original_length
    lengths = _lengths(options, original_length)
    samples = {
        (length, depth): passkey_samples(
            tokenizer, length=length, depths=[depth], count=options.samples, seed=options.seed
        )
        for length in lengths
        for depth in options.depths
    }
    windows = cut_windows(
        _documents(options) if documents is None else documents,
        tokenizer,
        length=lengths[-1],
        limit=options.windows,
    )
    settings = Settings(
        model=options.model,
        weights=_digest(parameter for _, parameter in sorted(model.named_parameters())),
        dtype=str(model.dtype).removeprefix("torch."),
        original_length=original_length,
        lengths=lengths,
        depths=options.depths,
        samples=options.samples,
        seed=options.seed,
        documents=tuple((name, len(rows)) for name, rows in windows),
        texts=_digest(rows for _, rows in windows),
        versions=tuple((name, version(name)) for name in ("ropescale", "torch", "transformers")),
    )
    # Patching is cheap, so every arm is tried before the first costly cell: a method that this model refuses
    # ends the run at once, and nothing is written.
    records = [_record(model, arm) for arm in arms]
    results = on_disk.start(folder, settings, _session(command))
    for record in records:
        if on_disk.key_of(record) not in results.cells:
            results.append(record)
    _run_missing(model, results, arms, dict(windows), samples)
    return results


def _device(name: str) -> str:
    """The device of that name, where "auto" is the accelerator if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _arms(options: Options) -> list[Arm]:
    """Unpatched, then method by method within each factor; twice the same counts once."""
    methods = [method for method in dict.fromkeys(options.methods) if method != UNPATCHED.method]
    factors = sorted({float(factor) for factor in options.factors})
    return [UNPATCHED, *(Arm(method=method, factor=factor) for factor in factors for method in methods)]


def _lengths(options: Options, original_length: int) -> tuple[int, ...]:
    """The lengths in tokens, ascending."""
    reach = int(max(options.factors) * original_length)
    products = [original_length, *(int(factor * original_length) for factor in options.factors)]
    lengths = sorted(set(options.lengths or products))
    if lengths[-1] > reach:
        raise InvalidArgumentError(
            f"demo: lengths must be at most the largest factor x the original length ({reach}), got {lengths[-1]}; "
            f"ask for a larger factor or for shorter lengths"
        )
    return tuple(lengths)


def _documents(options: Options) -> list[Document]:
    """Texts that the embedded model was not trained on; for it without a download."""
    return sample() if options.model == "tiny" else held_out(speeches())


def _digest(tensors: Iterable[Tensor]) -> str:
    """The first 16 hex digits of the SHA-256 over the bytes of all tensors."""
    seen = hashlib.sha256()
    for tensor in tensors:
        seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return seen.hexdigest()[:16]


def _session(command: str) -> dict[str, Any]:
    """Who ran when and on what, for the report."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _patched(model: PreTrainedModel, arm: Arm) -> Any:
    """A context in which the model is this arm."""
    if arm == UNPATCHED:
        return nullcontext(model)
    return ropescale.patched(model, method=arm.method, factor=arm.factor)


def _record(model: PreTrainedModel, arm: Arm) -> Cell:
    """The cell that says what patch did for an arm."""
    with _patched(model, arm):
        record = ropescale.record(model)
    return {
        "task": "record",
        "method": arm.method,
        "factor": arm.factor,
        "record": None if record is None else record.to_dict(),
    }


def _run_missing(
    model: PreTrainedModel,
    results: Results,
    arms: list[Arm],
    windows: dict[str, Tensor],
    samples: dict[tuple[int, float], list[PasskeySample]],
) -> None:
    """Run and append every cell that is missing, arm by arm, with an estimate first and a bar meanwhile."""

    def work(arm: Arm, key: Key) -> float:
        if key[0] == "perplexity":
            return _operations(model, results.settings.reach(arm)) * len(windows[key[3]])
        return _operations(model, key[3]) * results.settings.samples

    console = Console(stderr=True)
    missing = {arm: results.missing(arm) for arm in arms}
    finished = sum(len(results.settings.keys(arm)) - len(keys) for arm, keys in missing.items())
    total = sum(work(arm, key) for arm, keys in missing.items() for key in keys)
    console.print(
        f"{len(arms)} arms, {sum(map(len, windows.values()))} windows of {results.settings.lengths[-1]:,} tokens from "
        f"{len(windows)} documents; results in {results.folder}",
        highlight=False,
    )
    if not total:
        console.print("everything is finished already", highlight=False)
        return
    rate = _operations_per_second(model, next(iter(windows.values())))
    console.print(
        f"{sum(map(len, missing.values()))} cells to run ({finished} finished), about {_duration(total / rate)}",
        highlight=False,
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=24 * 3600,  # seconds: a cell of a real model takes minutes
    ) as progress:
        bar = progress.add_task("", total=total)
        for arm, keys in missing.items():
            if not keys:
                continue
            with _patched(model, arm):
                for key in keys:
                    progress.update(bar, description=f"{arm.label} {key[0]} {key[3]}")
                    began = time.perf_counter()
                    cell = _cell(model, results.settings, arm, key, windows, samples)
                    results.append({**cell, "seconds": round(time.perf_counter() - began, 3)})
                    progress.advance(bar, work(arm, key))
            if not console.is_terminal:  # a log has no bar
                progress.console.print(f"{arm.label}: finished", highlight=False)


def _cell(
    model: PreTrainedModel,
    settings: Settings,
    arm: Arm,
    key: Key,
    windows: dict[str, Tensor],
    samples: dict[tuple[int, float], list[PasskeySample]],
) -> Cell:
    """Run one cell on a model that is this arm."""
    cell: Cell = {"task": key[0], "method": arm.method, "factor": arm.factor}
    if key[0] == "perplexity":
        reach = settings.reach(arm)
        losses = loss_by_position(model, windows[key[3]][:, :reach], max(1, BATCH_TOKENS // reach))
        edges = bucket_edges(settings.original_length, reach)
        sums, counts = by_bucket(losses, edges)
        return {**cell, "document": key[3], "edges": edges, "nll_sum": sums, "count": counts}
    asked = samples[key[3], key[4]]
    found = passkeys_found(model, asked, max(1, BATCH_TOKENS // key[3]))
    return {**cell, "length": key[3], "depth": key[4], "samples": len(asked), "correct": found}


@torch.inference_mode()
def passkeys_found(model: PreTrainedModel, samples: Sequence[PasskeySample], batch_size: int) -> int:
    """How many of the samples, all of one length, the model answers in full.

    The model is given the answer and must predict each of its tokens: what greedy decoding would print, in one
    forward.
    """
    found = 0
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        keep = max(one.answer_length for one in batch) + 1  # the token before the answer predicts its first
        ids = torch.tensor([one.input_ids for one in batch], device=model.device)
        logits = model(input_ids=ids, use_cache=False, **({"logits_to_keep": keep} if keeps else {})).logits
        predicted = logits[:, -keep:].argmax(-1)
        for row, one in enumerate(batch):
            answer = ids[row, -one.answer_length :]
            found += torch.equal(predicted[row, -one.answer_length - 1 : -1], answer)
    return found


def _operations(model: PreTrainedModel, length: int) -> float:
    """Floating-point operations of one forward, roughly: two per parameter and token, and the attention's square."""
    config = model.config.get_text_config()
    attention = 2 * config.num_hidden_layers * config.hidden_size * length**2
    return float(2 * model.num_parameters() * length + attention)


@torch.inference_mode()
def _operations_per_second(model: PreTrainedModel, windows: Tensor) -> float:
    """Measured on one short batch: the best of three, since the first also warms up."""
    probe = windows[: BATCH_TOKENS // PROBE_LENGTH, :PROBE_LENGTH].to(model.device)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        model(input_ids=probe, use_cache=False)
        seconds.append(time.perf_counter() - began)
    return _operations(model, probe.shape[1]) * probe.shape[0] / min(seconds)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_table(results: Results, console: Console) -> None:
    """The table in the terminal, one group of rows per factor, and the verdict."""
    settings = results.settings
    groups = on_disk.table(results)
    reach = max(row.reach for rows in groups.values() for row in rows)
    edges = on_disk.stretch_edges(settings, reach)
    table = Table(
        title=f"{settings.model}: perplexity by stretch of positions, passkeys found",
        caption=f"L: the original length, {settings.original_length:,} tokens; change: to L, against unpatched (none)",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # 80 columns hold the eight of the embedded model
    )
    table.add_column("method", no_wrap=True)
    headings = [f"to {edge:,}" for edge in edges]
    for heading in (headings[0], "change", *headings[1:], "whole", "keys≤L", "keys>L"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rows in groups.values():
        for row in rows:
            stretches = [perplexity_text(value) for value in row.stretches]
            table.add_row(
                row.arm.label,
                perplexity_text(row.inside),
                "" if row.arm == UNPATCHED else f"{row.change:+.1%}",
                *stretches,
                *[""] * (len(edges) - 1 - len(stretches)),
                perplexity_text(row.whole),
                share_text(row.passkeys_inside),
                share_text(row.passkeys_beyond),
            )
        table.add_section()
    console.print(table)
    console.print(on_disk.verdict(groups, settings), highlight=False, markup=False)
