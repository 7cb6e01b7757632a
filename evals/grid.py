"""`ropescale eval`: a model unpatched against methods at factors, over tasks and lengths.

The grid is a list of cells; each is appended to `results.jsonl` when it is finished, and a run that was stopped goes
on with the next one. Every arm gets the same rows in the same order, so that every comparison is paired.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

import ropescale
from ropescale.adapter_files import files_of, record_of, tokenizer_of
from ropescale.adapters import put_on
from ropescale.checkpoint import load_language_model
from ropescale.checkpoints import note_on, resolve
from ropescale.console import Console
from ropescale.contents import read_config
from ropescale.destinations import sole_writer, try_writer
from ropescale.errors import CheckpointError, InvalidArgumentError, first_line
from ropescale.evals import budget, results
from ropescale.evals.chat import PLAIN, chat_frame
from ropescale.evals.engine import RopescaleLM, vllm_model
from ropescale.evals.plan import Options, Plan, PlannedCell, original_length_of, scaling_text
from ropescale.evals.results import UNPATCHED, Arm, Cell, Results, Settings
from ropescale.evals.tasks import base
from ropescale.evals.tasks.base import Foreign, Loss, Task
from ropescale.evals.texts import documents
from ropescale.evals.tokens import named_tokenizer
from ropescale.families.parts import text_of
from ropescale.families.reading import scaling
from ropescale.heads import require_language_model
from ropescale.merging import lent, require_in_layers
from ropescale.patching import put_in
from ropescale.records import saved_record

LONG = 3600.0  # seconds, from which a dry run says what to leave out
PROBE_LENGTH = 1024  # tokens of the forward that is timed for the estimate
PACKAGES = ("ropescale", "torch", "transformers", "lm_eval")


def run(options: Options, folder: Path, command: str) -> Results:
    """Run what is missing in `folder`, with a progress bar, and return all results.

    A kill loses at most the running cell. Under `accelerate launch` the rows of a cell are shared among the
    processes, and the first one writes.

    Raises:
        InvalidArgumentError: options that do not fit the model or one another, or a folder of other settings.
        CheckpointError: results that cannot be written.
        RopescaleError: the model returned something that is not a number.
    """
    with _quiet_harness():
        bench = Bench(options)
        first = bench.lm.rank == 0
        # Patching is cheap, so every arm is tried before the first costly cell: a method that this model refuses
        # ends the run at once, and nothing is written.
        records = [bench.record(arm) for arm in options.arms]
        bench.try_tasks()
        lock: AbstractContextManager[Any] = sole_writer(folder) if first else nullcontext()
        with lock:
            found = results.start(folder, bench.settings(), _session(command, options)) if first else None
            if found:
                for record in records:
                    if record.key not in found.cells:
                        found.append(record, seconds=0.0, tokens=0)
            _run_missing(bench, found)
    return found.first_windows() if found is not None else results.read(folder)


def print_cost(options: Options, console: Console, folder: Path) -> None:
    """The dry run: every cell with the tokens it reads, and how long all of them will take on this machine.

    Raises:
        InvalidArgumentError: whatever `run` would refuse, the folder among it, which stays as it is.
        CheckpointError: a folder that cannot be written.
    """
    try_writer(folder)
    with _quiet_harness():
        bench = Bench(options)
        for arm in options.arms:  # what the run refuses is refused here
            bench.record(arm)
        bench.try_tasks()
        results.begun(folder, bench.settings())
        rate = bench.operations_per_second()
    cells = bench.plan.cells
    title = f"{options.model}: {len(cells)} cells"
    table = Table("arm", "task", "length", "tokens", "estimate", box=None, title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    total = 0.0
    for cell in cells:
        seconds = bench.operations(cell) / rate
        total += seconds
        table.add_row(
            cell.arm.label,
            cell.task.name,
            "" if cell.length is None else f"{cell.length:,}",
            f"{cell.tokens:,.0f}" if cell.tokens else "?",
            _duration(seconds) if cell.tokens else "?",
        )
    console.print(table)
    console.print(
        f"about {_duration(total)} in all, if nothing can be shared between prompts; nothing was run", highlight=False
    )
    if total > LONG and (fewer := budget.advice(bench.plan, lambda plan: bench.seconds(plan, rate), LONG)):
        console.print(f"for less than {_duration(LONG)}: {fewer}", highlight=False, soft_wrap=True)


def fitted(options: Options, minutes: float, folder: Path) -> tuple[str, Options]:
    """The options that fit into so many minutes on this machine, and what was changed, as the command line writes it.

    A folder with results keeps what was chosen for it, so that the same command goes on where it was.

    Raises:
        InvalidArgumentError: not even the smallest evaluation fits, or a budget that is none.
        RopescaleError: whatever a grid raises before its first cell.
    """
    if not 0 < minutes < float("inf"):
        raise InvalidArgumentError(f"budget: must be minutes, above 0, got {minutes:g}; leave it out for no limit")
    with _quiet_harness():
        bench = Bench(options)
        rate = bench.operations_per_second()
        candidates = [("", bench.plan), *budget.smaller(bench.plan)]
        earlier = results.read(folder).settings if (folder / "run.json").exists() else None
        for said, fewer in candidates:
            if earlier and (fewer.knobs, fewer.lengths) == (earlier.tasks, earlier.lengths):
                return said, fewer.options
            if not earlier and bench.seconds(fewer, rate) <= minutes * 60:
                return said, fewer.options
        if earlier:  # of another command: starting it says so
            return "", options
        least = bench.seconds(candidates[-1][1], rate) / 60
    raise InvalidArgumentError(
        f"budget: must be at least {least:.2g} minutes on this machine, for {candidates[-1][0] or 'what was asked'}, "
        f"got {minutes:g}; give more, or a shorter context with lengths"
    )


class Bench:
    """A loaded model with the harness around it, and the tasks that were built for it."""

    def __init__(self, options: Options):
        self.options = options
        self.path = resolve(options.model)
        self.model: PreTrainedModel | None = None
        self.frame = chat_frame(named_tokenizer(self.path)) if options.chat else PLAIN
        if options.backend == "vllm":
            config = read_config(self.path)
            require_language_model(config, options.model)
            self.lm: LM = vllm_model(self.path, dtype=options.dtype_name)
            self._saved = saved_record(text_of(config))
            self.plan = self._planned(config)
        else:
            dtype = getattr(torch, options.dtype_name)
            self.model = load_language_model(options.model, dtype=dtype).to(options.device_name)
            self._saved = ropescale.record(self.model)
            extended = [arm.method for arm in options.arms if not arm.unextended]
            if self._saved is not None and extended:
                raise InvalidArgumentError(
                    f"eval: a model that was saved patched is evaluated as it is, got {options.model!r} with methods "
                    f"{', '.join(dict.fromkeys(extended))}; give methods=['none'], or the checkpoint that it was made "
                    f"from"
                )
            self._require_tokenizers()
            self.plan = self._planned(self.model.config)
            # the unpatched model is read beyond its length on purpose, so the longest length is every arm's limit
            longest = self.plan.lengths[-1]
            thought: dict[str, Any] = {}
            if options.chat:
                thought = {"enable_thinking": False, "think_end_token": self.frame.end_of_thought}
            self.lm = RopescaleLM(pretrained=self.model, tokenizer=self.path, max_length=longest, **thought)
        self._rows: dict[tuple[str, int | None, int], Any] = {}

    def _planned(self, config: Any) -> Plan:
        """The plan for the lengths of the checkpoint, which may be extended; then `base` says what it is called."""
        saved, text = self._saved, text_of(config)
        self.base = ""
        if saved is not None:
            self.base = f"as saved: {saved.method} x{saved.target_length / saved.original_length:.4g}"
            return Plan.of(self.options, saved.original_length, saved.target_length)
        if scaling(text):
            self.base = f"as published: {scaling_text(text)}"
        return Plan.of(self.options, original_length_of(self.options, config))

    def patched(self, arm: Arm) -> AbstractContextManager[Any]:
        """A context in which the model is this arm."""
        if arm == UNPATCHED:
            return nullcontext()
        assert self.model is not None
        if arm.adapter:
            return self._with_adapter(arm)
        return self._extended(arm)

    @contextmanager
    def _extended(self, arm: Arm) -> Iterator[None]:
        assert self.model is not None
        put_in(self.model, self.options.request(arm))
        try:
            yield
        finally:
            ropescale.unpatch(self.model)

    @contextmanager
    def _with_adapter(self, arm: Arm) -> Iterator[None]:
        assert self.model is not None
        folder = self.options.trained[arm]
        carried = record_of(folder) is not None
        with ExitStack() as undoing:
            undoing.enter_context(lent(self.model, self._loaded_again))
            if carried:
                wrapped: Any = ropescale.load_adapter(self.model, folder)
                undoing.callback(ropescale.unpatch, self.model)
            else:
                if not arm.unextended:
                    undoing.enter_context(self._extended(arm))
                wrapped = put_on(self.model, folder)
            require_in_layers(wrapped, folder)
            undoing.callback(wrapped.unload)
            yield

    def _loaded_again(self) -> PreTrainedModel:
        """The model as it was loaded: for weights that an adapter wrote over."""
        return load_language_model(self.options.model, dtype=getattr(torch, self.options.dtype_name))

    def _require_tokenizers(self) -> None:
        """Refuse an adapter for which the prompts of the other arms would be other tokens.

        Raises:
            InvalidArgumentError: another vocabulary, or with `chat` another template.
        """
        ours = named_tokenizer(self.path)
        for folder in self.options.adapters:
            theirs = tokenizer_of(folder)
            if theirs is None:
                continue
            what = "tokens"
            same = all(theirs.get_vocab().get(token) == number for token, number in ours.get_vocab().items())
            if same and self.options.chat:
                what, same = "template", theirs.chat_template in (None, ours.chat_template)
            if not same:
                raise InvalidArgumentError(
                    f"eval: adapters must have the {what} of the model, so that all arms get the same prompts, got "
                    f"{folder!r} whose tokenizer has others; run `ropescale merge {folder} merged`, and evaluate that "
                    f"with methods=['none']"
                )

    def record(self, arm: Arm) -> Cell:
        """The cell that says what patch did for an arm."""
        with self.patched(arm):
            record = self._saved if self.model is None else ropescale.record(self.model)
        return Cell(task=results.RECORD, arm=arm, record=None if record is None else record.to_dict())

    def settings(self) -> Settings:
        """What the cells' figures depend on besides their axes."""
        options, plan = self.options, self.plan
        return Settings(
            model=options.model,
            weights=_digest_of_files(Path(self.path)) if self.model is None else _digest_of_parameters(self.model),
            dtype=options.dtype_name,
            original_length=plan.original_length,
            existing=options.existing,
            layers=options.layers,
            base=self.base,
            notes=tuple(filter(None, [note_on(options.model)])),
            backend=options.backend,
            tasks=plan.knobs,
            lengths=plan.lengths,
            seed=options.seed,
            texts=_digest([document.text.encode() for document in documents(options.source)]),
            versions={name: version(name) for name in PACKAGES},
            knobs={name: dict(given) for name, given in options.knobs.items()},
            adapters={
                arm.method: _digest(path.read_bytes() for path in files_of(folder))
                for arm, folder in options.trained.items()
            },
        )

    def depths(self, task: Task) -> int:
        """In how many depths a task has its samples."""
        return len(self.plan.knobs[task.name].get("depths", [None]))

    def rows(self, task: Task, length: int | None, first: int = 0) -> Any:
        """The harness's task with its rows, built once for all arms; of retrieval, from sample `first` on.

        Raises:
            InvalidArgumentError: no such task, or a length that it cannot be asked for.
        """
        if (task.name, length, first) not in self._rows:
            self._rows[task.name, length, first] = self._built(task, length, first)
        return self._rows[task.name, length, first]

    def _built(self, task: Task, length: int | None, first: int) -> Any:
        knobs = {key: value for key, value in self.plan.knobs[task.name].items() if key != "version"}
        metadata = {**knobs, "tokenizer": self.path, "pretrained": self.path, "seed": self.options.seed}
        if length is not None:
            metadata["lengths"] = [length]
        if first:
            metadata["first_sample"] = first
        folder = base.folder_of(task)
        folders = filter(None, [base.FOLDER, self.options.include_path]) if folder is None else [folder]
        manager = TaskManager(include_path=[*map(str, folders)], include_defaults=folder is None, metadata=metadata)
        known = task.name if folder is None else f"ropescale_{task.name}"
        if known not in manager.all_tasks:
            raise base.unknown(task.name, manager.all_tasks)
        loaded = self._loaded(manager, known)
        if len(loaded) != 1:
            raise InvalidArgumentError(
                f"eval: tasks of the harness must be single tasks, got the group {task.name!r} of {len(loaded)}; "
                f"name its tasks"
            )
        built = next(iter(loaded.values()))
        if built.get_config("num_fewshot") is None:
            built.set_config(key="num_fewshot", value=0)
        built.set_fewshot_seed(seed=self.options.seed)
        if folder is not None and self.frame.room and built.config.output_type == "generate_until":
            # a reply that the model begins itself has lines of its own, and ends where the model ends it
            room = int(built.config.generation_kwargs["max_gen_toks"]) + self.frame.room
            built.set_config(key="generation_kwargs", value={"max_gen_toks": room, "until": []}, update=True)
        return built

    def _loaded(self, manager: TaskManager, name: str) -> dict[str, Any]:
        """The harness's tasks of that name, with their data.

        Raises:
            CheckpointError: data that cannot be had.
        """
        try:
            found: dict[str, Any] = manager.load([name])["tasks"]
        except (OSError, datasets.exceptions.DatasetsError) as error:  # ConnectionError is an OSError
            raise CheckpointError(
                f"eval: tasks must have their data here or on a hub that is reached, got {name!r} "
                f"({type(error).__name__}: {first_line(error)}); run it once where the hub is reached, or name tasks "
                f"that need no download: {', '.join(task.name for task in base.every()[:5])}"
            ) from error
        return found

    def try_tasks(self) -> None:
        """Build the rows of every task, so that what cannot be asked for is known before the first costly cell."""
        for task, length in dict.fromkeys((cell.task, cell.length) for cell in self.plan.cells):
            self.rows(task, length)

    def cell(self, planned: PlannedCell, first: int = 0) -> Cell | None:
        """Run one cell on a model that is its arm, from sample or row `first` on; None in all processes but the first.

        Raises:
            RopescaleError: the model returned something that is not a number.
        """
        task = planned.task
        texts = isinstance(task, Loss)
        built = self.rows(task, planned.length, 0 if texts else first)
        rows = [*range(first, len(built.eval_docs))] if texts and first else []
        name = built.config.task
        limit = self.options.limit if task.scoring == "short" else None
        reach = self._limited_to(planned.arm)
        left_out, fitting = self._measured(built, limit, reach) if isinstance(task, Foreign) else ({}, [])
        made = partial(Cell, task=task.name, arm=planned.arm, length=planned.length)
        if left_out and not fitting:
            samples = [{"id": i, "score": None, "left_out": size} for i, size in left_out.items()]
            return made(stated={"limit": reach}, scores={}, samples=samples) if self.lm.rank == 0 else None
        found = evaluator.evaluate(
            self.lm,
            {"tasks": {name: built}, "groups": {}, "group_map": {}},
            limit=None if left_out else limit,
            samples={name: chosen} if (chosen := rows or (fitting if left_out else None)) else None,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=self.options.chat,
        )
        if found is None:
            return None
        samples = found["samples"][name]
        if isinstance(task, Loss):
            in_order = sorted(samples, key=lambda sample: int(sample["doc_id"]))
            stated = task.stated(self.options, planned.length or 0)
            return made(stated=stated, samples=[task.sample(one["doc"], _nats(one)) for one in in_order])
        scores = {
            key.partition(",")[0]: value
            for key, value in found["results"][name].items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "stderr" not in key
            and key not in ("sample_len",)
        }  # fmt: skip
        main = next(iter(scores))
        if not left_out:
            return made(scores=scores, samples=[_answer(i, one, main) for i, one in enumerate(samples)])
        answers = {int(one["doc_id"]): _answer(int(one["doc_id"]), one, main) for one in samples}
        answers |= {i: {"id": i, "score": None, "left_out": size} for i, size in left_out.items()}
        return made(stated={"limit": reach}, scores=scores, samples=[row for _, row in sorted(answers.items())])

    def _limited_to(self, arm: Arm) -> int:
        """Tokens that the model reads as this arm, which the harness is told.

        The model as it is, with an adapter or without, is read beyond its length on purpose: as far as any arm.
        """
        reaches = {one: int(one.factor * self.plan.original_length) for one in self.options.arms}
        reach = max(
            *self.plan.lengths, self.plan.own_length or 0, max(reaches.values()) if arm.unextended else reaches[arm]
        )
        if isinstance(self.lm, RopescaleLM):
            self.lm.limit(reach)
        return reach

    def _measured(self, built: Any, limit: int | None, reach: int) -> tuple[dict[int, int], list[int]]:
        """Rows of a task of the harness: those too long for the arm, by number, with their tokens; and the others."""
        if not isinstance(self.lm, RopescaleLM):
            return {}, []
        built.build_all_requests(
            limit=limit,
            rank=0,
            world_size=1,
            apply_chat_template=self.options.chat,
            chat_template=self.lm.apply_chat_template if self.options.chat else None,
            tokenizer_name=self.lm.tokenizer_name if self.options.chat else "",
        )
        sizes: dict[int, int] = {}
        for request in built.instances:
            sizes[request.doc_id] = max(sizes.get(request.doc_id, 0), self.lm.tokens_of(request))
        left_out = {number: size for number, size in sizes.items() if size > reach}
        return left_out, [number for number in sizes if number not in left_out]

    def seconds(self, plan: Plan, rate: float) -> float:
        """How long a plan takes on this model at so many operations per second, roughly."""
        return sum(map(self.operations, plan.cells)) / max(rate, 1.0)

    def operations(self, cell: PlannedCell) -> float:
        """Floating-point operations of a cell, roughly: two per parameter and token, and the attention's square."""
        return cell.tokens * self._operations_per_token(cell.length or 32)

    def _operations_per_token(self, length: int) -> float:
        if self.model is None:
            return 1.0
        config = self.model.config.get_text_config()
        return float(2 * self.model.num_parameters() + 2 * config.num_hidden_layers * config.hidden_size * length)

    @torch.inference_mode()
    def operations_per_second(self) -> float:
        """Measured on one short sequence: the best of three, since the first also warms up."""
        if self.model is None:
            return 1.0
        probe = torch.zeros(1, PROBE_LENGTH, dtype=torch.long, device=self.model.device)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            self.model(input_ids=probe, use_cache=False)
            seconds.append(time.perf_counter() - began)
        return self._operations_per_token(PROBE_LENGTH) * PROBE_LENGTH / min(seconds)


def _nats(sample: dict[str, Any]) -> list[float]:
    """The losses of a row's spans."""
    return [-float(loglikelihood) for loglikelihood, _ in sample["filtered_resps"]]


def _answer(number: int, sample: dict[str, Any], main: str) -> dict[str, Any]:
    """One row of any other task: its score, and for what was generated also the reply."""
    row, reply = sample["doc"], sample["filtered_resps"][0]
    score = sample.get(main)
    kept: dict[str, Any] = {"id": number, "score": float(score) if isinstance(score, (int, float)) else None}
    if isinstance(reply, str):
        kept |= {"reply": reply, "target": sample["target"]}
    if "exact" in sample:
        kept["exact"] = float(sample["exact"])
    if "depth" in row:
        kept["depth"] = row["depth"]
    return kept


def _run_missing(bench: Bench, found: Results | None) -> None:
    """Run and append every cell that is missing, arm by arm, with an estimate first and a bar meanwhile."""
    console, cells = Console(stderr=True, quiet=found is None), bench.plan.cells
    finished = [None if found is None else _finished_samples(bench, found, cell) for cell in cells]
    if bench.lm.world_size > 1:
        torch.distributed.broadcast_object_list(finished, src=0)
    missing = {cell: done for cell, done in zip(cells, finished, strict=True) if done is not None}
    folder = found.folder if found else ""
    if not missing:
        console.print(f"all {len(cells)} cells are finished already; results in {folder}", highlight=False)
        return
    total = sum(bench.operations(cell) for cell in missing) or 1.0
    about = _duration(total / bench.operations_per_second())
    console.print(
        f"{len(missing)} cells to run ({len(cells) - len(missing)} finished), about {about}; results in {folder}",
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
        before = 0.0
        for arm in dict.fromkeys(cell.arm for cell in missing):
            with bench.patched(arm):
                for cell in (cell for cell in missing if cell.arm == arm):
                    progress.update(bar, description=cell.label)
                    share = bench.operations(cell)
                    expected = max(1.0, cell.tokens)
                    seen = [0]

                    def advance(tokens: int, at: float = before, of: float = share / expected, up_to: float = share,
                                seen: list[int] = seen) -> None:  # fmt: skip
                        seen[0] += tokens
                        progress.update(bar, completed=at + min(up_to, seen[0] * of))

                    if isinstance(bench.lm, RopescaleLM):
                        bench.lm.on_progress = advance
                    began = time.perf_counter()
                    done = bench.cell(cell, missing[cell])
                    if done is not None and found is not None:
                        if missing[cell]:
                            done = _topped_up(found.cells[done.key], done, bench.depths(cell.task))
                        found.append(done, seconds=time.perf_counter() - began, tokens=seen[0])
                    before += share
                    progress.update(bar, completed=before)
            if not console.is_terminal:  # a log has no bar
                progress.console.print(f"{arm.label}: finished", highlight=False)


def _finished_samples(bench: Bench, found: Results, cell: PlannedCell) -> int | None:
    """From which sample on a cell has to be run, or row of text; None where it is finished."""
    earlier = found.cell(cell.arm, cell.task.name, cell.length)
    if earlier is None:
        return 0
    if isinstance(cell.task, Loss):
        rows = [*map(_window, bench.rows(cell.task, cell.length).eval_docs)]
        had = [*map(_window, earlier.samples)]
        if had == rows[: len(had)]:
            return len(had) if len(had) < len(rows) else None
        return None if rows == had[: len(rows)] else 0  # more windows may be other ones, of longer documents
    wanted = found.settings.tasks[cell.task.name].get("samples")
    depths = bench.depths(cell.task)
    done, rest = divmod(len(earlier.samples), depths)
    return None if wanted is None or (done >= wanted and not rest) else 0 if rest else done


def _window(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """What tells a row of text from others, or its sample."""
    tokens = row["tokens"]
    return row["document"], row["window"], tokens if isinstance(tokens, int) else sum(tokens)


def _topped_up(earlier: Cell, more: Cell, depths: int) -> Cell:
    """A cell with more rows of text, or more samples of every depth, numbered as if all had been run at once."""
    old, new = earlier.samples, more.samples
    if more.scores is None or earlier.scores is None:
        return dataclasses.replace(more, samples=[*old, *new])
    before, after = len(old) // depths, len(new) // depths
    samples = [
        one
        for depth in range(depths)
        for one in (*old[depth * before : (depth + 1) * before], *new[depth * after : (depth + 1) * after])
    ]
    scores = {
        name: (earlier.scores[name] * len(old) + value * len(new)) / len(samples)
        for name, value in more.scores.items()
    }
    return dataclasses.replace(more, scores=scores, samples=[{**one, "id": i} for i, one in enumerate(samples)])


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """The harness without its notices: what a user should know is said by the errors and the progress bar."""
    # Transformers too: that the unpatched model is read beyond its length is the point here
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers.generation")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    """The first 16 hex digits of the SHA-256 over all pieces."""
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
    return seen.hexdigest()[:16]


def _digest_of_parameters(model: PreTrainedModel) -> str:
    def content(tensor: Tensor) -> memoryview:
        return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return _digest(content(parameter) for _, parameter in sorted(model.named_parameters()))


def _digest_of_files(folder: Path) -> str:
    return _digest(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def _session(command: str, options: Options) -> dict[str, Any]:
    """Who ran when and on what, for the report."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "adapters": {arm.method: str(folder) for arm, folder in options.trained.items()},
        "device": torch.cuda.get_device_name() if options.device_name.startswith("cuda") else options.device_name,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
