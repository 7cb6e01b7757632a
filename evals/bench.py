"""A model on the bench: loaded once, made each arm in turn, with the harness's tasks around it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel

import ropescale
from ropescale.adapter_files import files_of, record_of, tokenizer_of
from ropescale.adapters import put_on
from ropescale.checkpoints import note_on
from ropescale.contents import read_config
from ropescale.errors import CheckpointError, InvalidArgumentError, first_line
from ropescale.evals import results
from ropescale.evals.cells import answer, digest_of, nats_of, window_of
from ropescale.evals.chat import PLAIN, chat_frame
from ropescale.evals.engine import RopescaleLM, require_vllm
from ropescale.evals.exact import ExactLM
from ropescale.evals.forward import place_of
from ropescale.evals.plan import Options, Plan, PlannedCell, Round, original_length_of, scaling_text
from ropescale.evals.provenance import (
    fingerprint,
    fingerprint_of_files,
    fingerprint_of_parameters,
    fingerprint_of_tokenizer,
)
from ropescale.evals.results import UNPATCHED, Arm, Cell, Results, Settings
from ropescale.evals.served import Served
from ropescale.evals.tasks import base
from ropescale.evals.tasks.base import Foreign, Loss, Retrieval, Task
from ropescale.evals.texts import documents
from ropescale.evals.tokens import named_tokenizer
from ropescale.families.parts import text_of
from ropescale.families.reading import scaling
from ropescale.heads import require_language_model
from ropescale.merging import lent, require_in_layers
from ropescale.patching import put_in
from ropescale.records import saved_record

T = TypeVar("T")
PROBE_LENGTH = 1024  # tokens of the forward that is timed for the estimate
PACKAGES = ("ropescale", "torch", "transformers", "lm_eval")


class Bench:
    """A loaded model with the harness around it, and the tasks that were built for it."""

    def __init__(self, options: Options):
        self.options = options
        self.path = options.loading.path(options.model)
        self.model: PreTrainedModel | None = None
        self.frame = chat_frame(named_tokenizer(self.path)) if options.chat else PLAIN
        self._thought: dict[str, Any] = {}  # what a language model's class has to know of thinking
        if options.chat:
            self._thought = {"enable_thinking": False, "think_end_token": self.frame.end_of_thought}
        self.served: Served | None = None
        self._lm: ExactLM | None = None
        if options.served:
            config = read_config(self.path)
            require_language_model(config, options.model)
            self._saved = saved_record(text_of(config))
            self._require_unpatched()
            self._require_tokenizers()
            self.plan = self._planned(config)
            self.served = Served(options, self.path, self.plan)
            _require_one_process()
            require_vllm(options.engine_args)
        else:
            self.model = options.loading.model(options.model)
            self._saved = ropescale.record(self.model)
            self._require_unpatched()
            self._require_tokenizers()
            self.plan = self._planned(self.model.config)
            # the unpatched model is read beyond its length on purpose, so the longest length is every arm's limit
            longest = self.plan.lengths[-1]
            self._lm = RopescaleLM(pretrained=self.model, tokenizer=self.path, max_length=longest, **self._thought)
        # everything at once, until a round asks for less
        self.round = Round(arms=tuple(options.arms), samples=options.samples, windows=options.windows)
        self._rows: dict[tuple[str, int | None, int, int], Any] = {}

    @property
    def lm(self) -> Any:
        """The language model as the harness knows it: of one that is served, that of the arm whose turn it is."""
        assert self._lm is not None
        return self._lm

    @property
    def first(self) -> bool:
        """Whether this is the first process of a launch, or the only one."""
        return self._lm is None or self._lm.rank == 0

    def _require_unpatched(self) -> None:
        """Refuse methods on a model that has one.

        Raises:
            InvalidArgumentError: such a one.
        """
        extended = [arm.method for arm in self.options.arms if not arm.unextended]
        if self._saved is not None and extended:
            raise InvalidArgumentError(
                f"eval: a model that was saved patched is evaluated as it is, got {self.options.model!r} with methods "
                f"{', '.join(dict.fromkeys(extended))}; give methods=['none'], or the checkpoint that it was made "
                f"from"
            )

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
        """A context in which the model is this arm; one that is served is loaded for it."""
        if self.served is not None:
            return self._served_as(arm)
        if arm == UNPATCHED:
            return nullcontext()
        assert self.model is not None
        if arm.adapter:
            return self._with_adapter(arm)
        return self._extended(arm)

    @contextmanager
    def _served_as(self, arm: Arm) -> Iterator[None]:
        assert self.served is not None
        with self.served.serving(arm, self._thought) as self._lm:
            try:
                yield
            finally:
                self._lm = None

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
        return self.options.loading.model(self.options.model)

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

    def agreed(self, told: T) -> T:
        """What the first process of a launch says, in all of them."""
        said = [told]
        if self._lm is not None and self.lm.world_size > 1:
            torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def record(self, arm: Arm) -> Cell:
        """The cell that says what patch did for an arm."""
        if self.served is not None:
            record = self.served.record(arm)
        else:
            assert self.model is not None
            with self.patched(arm):
                record = ropescale.record(self.model)
        return Cell(task=results.RECORD, arm=arm, record=None if record is None else record.to_dict())

    def settings(self) -> Settings:
        """What the cells' figures depend on besides their axes."""
        options, plan = self.options, self.plan
        return Settings(
            model=options.model,
            weights=fingerprint_of_parameters(self.model)
            if self.model is not None
            else fingerprint_of_files(Path(self.path)),
            dtype=options.dtype_name,
            original_length=plan.original_length,
            existing=options.existing,
            layers=options.layers,
            target_length=options.target_length,
            base=self.base,
            notes=tuple(filter(None, [note_on(options.model)])),
            backend=options.backend,
            loading={**options.loading.stated, **self._engine_args()},
            tasks=plan.knobs,
            lengths=plan.lengths,
            seed=options.seed,
            tokenizer=fingerprint_of_tokenizer(named_tokenizer(self.path)),
            texts=fingerprint([document.text.encode() for document in documents(options.source)]),
            versions={name: version(name) for name in PACKAGES} | self._engine_version(),
            knobs={name: dict(given) for name, given in options.knobs.items()},
            adapters={
                arm.method: fingerprint(path.read_bytes() for path in files_of(folder))
                for arm, folder in options.trained.items()
            },
        )

    def _engine_args(self) -> dict[str, str]:
        given = dict(self.options.engine_args)
        return {"engine_args": json.dumps(given, sort_keys=True)} if given else {}

    def _engine_version(self) -> dict[str, str]:
        if self.served is None:
            return {}
        (package, *_) = packages_distributions()["vllm"]  # builds for CPUs are named otherwise
        return {"vllm": version(package)}

    def depths(self, task: Task) -> int:
        """In how many depths a task has its samples."""
        return len(self.plan.knobs[task.name].get("depths", [None]))

    def rows(self, task: Task, length: int | None, first: int = 0) -> Any:
        """The harness's task with its rows, built once for all arms; of retrieval, the round's from `first` on.

        Of texts all windows that are asked for at most, so that those of one round are among those of the next.

        Raises:
            InvalidArgumentError: no such task, or a length that it cannot be asked for.
        """
        key = task.name, length, first, self.round.samples if isinstance(task, Retrieval) else 0
        if key not in self._rows:
            self._rows[key] = self._built(task, length, first)
        return self._rows[key]

    def rows_of_texts(self, task: Task, length: int | None) -> list[Any]:
        """The rows of the windows of the round."""
        rows = list(self.rows(task, length).eval_docs)
        windows = [*dict.fromkeys((row["document"], row["window"]) for row in rows)]
        if self.round.windows >= self.options.windows:
            return rows
        return [row for row in rows if (row["document"], row["window"]) in windows[: self.round.windows]]

    def _built(self, task: Task, length: int | None, first: int) -> Any:
        knobs = {key: value for key, value in self.plan.knobs[task.name].items() if key != "version"}
        metadata = {**knobs, "tokenizer": self.path, "pretrained": self.path, "seed": self.options.seed}
        if length is not None:
            metadata["lengths"] = [length]
        if first:
            metadata["first_sample"] = first
        if isinstance(task, Retrieval):
            metadata["samples"] = self.round.samples
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
            tasks: dict[str, Any] = manager.load([name])["tasks"]
        except (OSError, datasets.exceptions.DatasetsError) as error:  # ConnectionError is an OSError
            raise CheckpointError(
                f"eval: tasks must have their data here or on a hub that is reached, got {name!r} "
                f"({type(error).__name__}: {first_line(error)}); run it once where the hub is reached, or name tasks "
                f"that need no download: {', '.join(task.name for task in base.every()[:5])}"
            ) from error
        return tasks

    def try_tasks(self) -> None:
        """Build the rows of every task, so that what cannot be asked for is known before the first costly cell."""
        for task, length in dict.fromkeys((cell.task, cell.length) for cell in self.plan.cells):
            self.rows(task, length)

    def finished(self, stored: Results, planned: PlannedCell) -> int | None:
        """From which sample on a cell has to be run, or row of text; None where it is finished."""
        task, earlier = planned.task, stored.cell(planned.arm, planned.task.name, planned.length)
        if earlier is None:
            return 0
        if isinstance(task, Loss):
            rows = [*map(window_of, self.rows_of_texts(task, planned.length))]
            had = [*map(window_of, earlier.samples)]
            if had == rows[: len(had)]:
                return len(had) if len(had) < len(rows) else None
            return None if rows == had[: len(rows)] else 0  # more windows may be other ones, of longer documents
        done, rest = divmod(len(earlier.samples), self.depths(task))
        asked = not isinstance(task, Retrieval) or (done >= self.round.samples and not rest)
        return None if asked else 0 if rest else done

    def share(self, planned: PlannedCell, first: int) -> float:
        """Which share of a cell is run in the round, from sample or row `first` on."""
        if isinstance(planned.task, Retrieval):
            return (self.round.samples - first) / self.options.samples
        if isinstance(planned.task, Loss):
            rows = self.rows_of_texts(planned.task, planned.length)
            return (len(rows) - first) / len(self.rows(planned.task, planned.length).eval_docs)
        return 1.0

    def cell(self, planned: PlannedCell, first: int = 0) -> Cell | None:
        """Run one cell on a model that is its arm, from sample or row `first` on; None in all processes but the first.

        Raises:
            RopescaleError: the model returned something that is not a number.
        """
        task = planned.task
        texts = isinstance(task, Loss)
        built = self.rows(task, planned.length, 0 if texts else first)
        stop = len(self.rows_of_texts(task, planned.length)) if texts else 0
        rows = [*range(first, stop)] if texts and (first or stop < len(built.eval_docs)) else []
        name = built.config.task
        limit = self.options.limit if task.scoring == "short" else None
        reach = self._limited_to(planned.arm)
        left_out, fitting = self._measured(built, limit, reach) if isinstance(task, Foreign) else ({}, [])
        made = partial(Cell, task=task.name, arm=planned.arm, length=planned.length)
        if left_out and not fitting:
            samples = [{"id": i, "score": None, "left_out": size} for i, size in left_out.items()]
            return made(stated={"limit": reach}, scores={}, samples=samples) if self.lm.rank == 0 else None
        outcome = evaluator.evaluate(
            self.lm,
            {"tasks": {name: built}, "groups": {}, "group_map": {}},
            limit=None if left_out else limit,
            samples={name: chosen} if (chosen := rows or (fitting if left_out else None)) else None,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=self.options.chat,
        )
        if outcome is None:
            return None
        # of several processes the harness has those of the first one first
        answered = sorted(outcome["samples"][name], key=lambda sample: int(sample["doc_id"]))
        if isinstance(task, Loss):
            stated = task.stated(self.options, planned.length or 0)
            windows = [
                {**task.sample(sample["doc"], nats_of(sample)), "digest": digest_of(sample)} for sample in answered
            ]
            return made(stated=stated, samples=windows)
        scores = {
            key.partition(",")[0]: value
            for key, value in outcome["results"][name].items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "stderr" not in key
            and key not in ("sample_len",)
        }  # fmt: skip
        main = next(iter(scores))
        if not left_out:
            return made(scores=scores, samples=[answer(i, sample, main) for i, sample in enumerate(answered)])
        answers = {int(sample["doc_id"]): answer(int(sample["doc_id"]), sample, main) for sample in answered}
        answers |= {i: {"id": i, "score": None, "left_out": size} for i, size in left_out.items()}
        return made(stated={"limit": reach}, scores=scores, samples=[row for _, row in sorted(answers.items())])

    def _limited_to(self, arm: Arm) -> int:
        """Tokens that the model reads as this arm, which the harness is told."""
        reach = self.plan.reach(arm) if self.served is None else self.served.reach(arm)
        self.lm.limit(reach)
        return reach

    def _measured(self, built: Any, limit: int | None, reach: int) -> tuple[dict[int, int], list[int]]:
        """Rows of a task of the harness: those too long for the arm, by number, with their tokens; and the others."""
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

    @property
    def timed(self) -> bool:
        """Whether its speed is known before anything is run."""
        return self.model is not None

    def seconds(self, plan: Plan, rate: float) -> float:
        """How long a plan takes on this model at so many operations per second, roughly."""
        return sum(map(self.operations, plan.cells)) / max(rate, 1.0)

    def operations(self, cell: PlannedCell) -> float:
        """Floating-point operations of a cell, roughly: two per parameter and token, and the attention's square."""
        return cell.tokens * self._operations_per_token(cell.length or 32)

    def operations_of(self, missing: Mapping[PlannedCell, int]) -> float:
        """Those of what is run of cells in the round, each from a sample or row on."""
        return sum(self.operations(cell) * self.share(cell, first) for cell, first in missing.items())

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
        probe = torch.zeros(1, PROBE_LENGTH, dtype=torch.long, device=place_of(self.model))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            self.model(input_ids=probe, use_cache=False)
            seconds.append(time.perf_counter() - began)
        return self._operations_per_token(PROBE_LENGTH) * PROBE_LENGTH / min(seconds)


def _require_one_process() -> None:
    """Refuse a launch of several processes: an engine that serves has its own.

    Raises:
        InvalidArgumentError: such a launch.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidArgumentError(
            f"eval: backend vllm must be started as one process, got WORLD_SIZE {os.environ['WORLD_SIZE']}; leave the "
            f"launcher out: tensor_parallel_size among the engine_args is for several devices"
        )
