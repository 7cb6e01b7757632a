"""What an evaluation will run: options checked, arms, tasks and lengths laid out as cells, and what they cost.

Everything that can be wrong with a command is found here, before a model is loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

import ropescale
from ropescale.adapter_files import record_of
from ropescale.checks import as_float, require_choice, require_flag, require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals.results import UNPATCHED, Arm, Key
from ropescale.evals.tasks import base
from ropescale.evals.tasks.base import Task
from ropescale.families.parts import parts_of, text_of
from ropescale.families.reading import read_geometry, scaling
from ropescale.loading import DTYPES, Loading
from ropescale.request import Request, require_knobs_by_method, split_knobs

BACKENDS = ("transformers", "vllm")
UNTIL = ("finished", "decided")
# What vLLM is told otherwise -> what to do instead
TOLD = {
    **dict.fromkeys(("model", "tokenizer", "hf_overrides"), "every arm has its own, by methods and factors"),
    **dict.fromkeys(("dtype", "revision", "trust_remote_code"), "it is an option of its own"),
    "max_model_len": "it follows from lengths",
    "data_parallel_size": "give the same command to several processes, each with its own CUDA_VISIBLE_DEVICES: they "
    "divide the cells",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and on how much.

    Raises:
        InvalidArgumentError: a value out of bounds.
        UnknownMethodError: a method that is not in the registry.
    """

    model: str  # a short name, a path or a hub id
    methods: tuple[str, ...] = ("linear", "ntk", "by_parts", "yarn")  # the unpatched model always runs too
    factors: tuple[float, ...] = (2.0,)
    tasks: tuple[str, ...] = base.defaults()
    lengths: tuple[int, ...] = ()  # tokens; empty stands for the original length and every factor times it
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 10  # of a retrieval task: per length, and per depth where the task has depths
    windows: int = 3  # of a perplexity task, at most
    stride: float = 0.5  # of strided perplexity: share of the window that is scored
    texts: str = ""  # sample, speeches or a path; empty: sample for the embedded model, speeches for others
    evaluator: str | None = None  # of longppl
    limit: int | None = None  # rows of cloze and of a task of the harness, at most
    seed: int = 0
    dtype: str = "auto"  # float32 on a CPU, bfloat16 on an accelerator
    device: str = "auto"  # the accelerator if torch sees one, else the CPU
    device_map: str | None = None  # auto, balanced ... or an object as JSON: where the parts of a larger model are
    quantization: str | None = None  # bnb-4bit, bnb-8bit or torchao-int8
    revision: str | None = None  # of a hub id
    attention: str | None = None  # Transformers' attn_implementation; the model's own if not given
    backend: str = "transformers"
    engine_args: Mapping[str, Any] = field(default_factory=dict)  # of vllm.EngineArgs, such as tensor_parallel_size
    chat: bool = False  # put prompts into the tokenizer's chat template
    include_path: str | None = None  # a folder with further tasks: of the harness, and with a task.py like ours
    metadata: Mapping[str, Any] = field(default_factory=dict)  # further keys for the tasks, such as squad
    knobs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> its knobs, log_n, temperature
    adapters: tuple[str, ...] = ()  # folders: with its record an arm each; a plain one alone, and with every method
    existing: str = "error"  # what methods start from on a checkpoint that is scaled already: replace or compose
    original_length: int | None = None  # tokens; read from the config where it is not given
    layers: str = "global"  # or full or all, where layers have rotations of their own
    target_length: int | None = None  # tokens that the model is wanted for; the longest tested if not given
    until: str = "finished"  # or decided: samples and windows are then the most, asked in rounds
    budget: float | None = None  # minutes in which no further round begins, of an evaluation until it is decided

    def __post_init__(self) -> None:
        for name, smallest in (("samples", 1), ("windows", 1), ("seed", 0), ("limit", 1), ("target_length", 1)):
            if (value := getattr(self, name)) is not None:
                rule = f"a whole number of at least {smallest}"
                require_whole(f"eval: {name}", value, smallest, rule=rule, remedy="leave it out for the default")
        for name, what in (("factors", "factor"), ("depths", "depth"), ("tasks", "task")):
            if not getattr(self, name):
                raise InvalidArgumentError(f"eval: {name} must hold at least one {what}, got none; leave it out")
        if "" in self.tasks:  # which would be looked for among all of the harness
            raise InvalidArgumentError("eval: tasks must be names, got ''; leave it out")
        for name in self.methods:
            if name != UNPATCHED.method:
                ropescale.get_method(name)
        require_knobs_by_method("eval: knobs", self.knobs, self.methods)
        for name in self.methods:
            if name != UNPATCHED.method:
                own, beside = self._knobs_of(name)
                require_flag(f"{name}: log_n", beside.get("log_n", False), default=False)
                Request(method=name, knobs=own, **beside)
        for factor in self.factors:
            if not 1 <= as_float(factor) < math.inf:
                raise InvalidArgumentError(
                    f"eval: factors must be finite and at least 1, got {shortened(factor)}; "
                    f"a factor is target length / original length"
                )
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise InvalidArgumentError(
                    f"eval: depths must be shares from 0 (first) to 1 (last), got {depth!r}; "
                    f"divide a percentage by 100"
                )
        for length in self.lengths:
            if length < 16:
                raise InvalidArgumentError(
                    f"eval: lengths must be at least 16 tokens, got {length!r}; a window needs tokens to predict"
                )
        if not 0 < self.stride <= 1:
            raise InvalidArgumentError(
                f"eval: stride must be a share of the window, above 0 and at most 1, got {self.stride!r}; "
                f"0.5 scores the second half of every window"
            )
        for name, choices in (
            ("dtype", DTYPES),
            ("backend", BACKENDS),
            ("existing", ("error", "compose", "replace")),
            ("layers", ("global", "full", "all")),
            ("until", UNTIL),
        ):
            require_choice(f"eval: {name}", getattr(self, name), choices, remedy=f"leave it out for {choices[0]}")
        if self.budget is not None and (self.until == "finished" or not 0 < self.budget < math.inf):
            raise InvalidArgumentError(
                f"eval: budget must be minutes above 0 of an evaluation until it is decided, got {self.budget!r} with "
                f"until={self.until!r}; give until='decided', or leave it out"
            )
        if self.until == "decided" and self.arms == [UNPATCHED]:
            raise InvalidArgumentError(
                "eval: until must be 'finished' where only the model as it is runs, got 'decided'; name methods to "
                "decide between, or leave it out"
            )
        if len(set(map(_name_of, self.adapters))) < len(self.adapters):
            raise InvalidArgumentError(
                f"eval: adapters must be in folders of different names, got {', '.join(self.adapters)}; rename one"
            )
        for folder in self.adapters:
            record_of(folder)
        if self.include_path is not None:
            base.load(self.include_path)
        if self.limit is not None and not any(task.scoring == "short" for task in self.asked):
            short = ", ".join(task.name for task in base.every() if task.scoring == "short")
            raise InvalidArgumentError(
                f"eval: limit is about {short} and tasks of the harness, got {self.limit} with "
                f"{', '.join(self.task_names)}; give samples for tasks of retrieval, windows for perplexity"
            )
        if self.backend == "vllm" and self.until == "decided":
            raise InvalidArgumentError(
                "eval: until must be 'finished' with backend vllm, which would load every arm in every round, got "
                "'decided'; leave it out"
            )
        if self.engine_args and self.backend != "vllm":
            raise InvalidArgumentError(
                f"eval: engine_args are of the backend vllm, got {', '.join(self.engine_args)} with {self.backend}; "
                f"give backend='vllm', or leave them out"
            )
        for name in self.engine_args:
            if name in TOLD:
                raise InvalidArgumentError(f"eval: engine_args must leave out {name}, got it; {TOLD[name]}")
        for name in ("device_map", "quantization", "attention"):
            if self.backend == "vllm" and getattr(self, name) is not None:
                raise InvalidArgumentError(
                    f"eval: {name} is of the backend transformers, got {getattr(self, name)!r} with vllm, which loads "
                    f"in its own way; leave it out"
                )
        self.loading  # noqa: B018  # refuses what cannot be

    @property
    def loading(self) -> Loading:
        """How the model is loaded."""
        return Loading.of(self)

    @property
    def dtype_name(self) -> str:
        """The dtype of the weights."""
        return self.loading.dtype_name

    @property
    def served(self) -> bool:
        """Whether an engine serves the arms, each in its turn."""
        return self.backend != BACKENDS[0]

    @property
    def source(self) -> str:
        """Where texts come from."""
        return self.texts or ("sample" if self.model == "tiny" else "speeches")

    @property
    def arms(self) -> list[Arm]:
        """Unpatched, then method by method within each factor; twice the same counts once."""
        return [UNPATCHED, *self._patched, *self.trained]

    @property
    def _patched(self) -> list[Arm]:
        methods = [method for method in dict.fromkeys(self.methods) if method != UNPATCHED.method]
        factors = sorted({float(factor) for factor in self.factors})
        return [Arm(method=method, factor=factor) for factor in factors for method in methods]

    def request(self, arm: Arm) -> Request:
        """What is asked of `patch` for an arm: its method, beneath an adapter where it has one."""
        method = arm.method.partition("+")[0]
        own, beside = self._knobs_of(method)
        return Request.of(vars(self), method=method, factor=arm.factor, knobs=own, **beside)

    def _knobs_of(self, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a method is given of its own, and what goes with any."""
        return split_knobs(self.knobs.get(method, {}))

    @property
    def trained(self) -> dict[Arm, str]:
        """The arms of adapters, with their folders: named after the method and the folder.

        An adapter with a record is one arm, as it was trained; a plain one stands on the model as it is, and on every
        method at every factor.
        """
        folders: dict[Arm, str] = {}
        for folder in self.adapters:
            name, record = _name_of(folder), record_of(folder)
            if record is not None:
                arms = [Arm(method=record.method, factor=record.target_length / record.original_length)]
            else:
                arms = [UNPATCHED, *self._patched]
            folders |= {Arm(method=f"{arm.method}+{name}", factor=arm.factor): folder for arm in arms}
        return folders

    @property
    def task_names(self) -> list[str]:
        """The tasks, with groups spelled out; twice the same counts once."""
        return base.spelled_out(self.tasks)

    @property
    def asked(self) -> list[Task]:
        """What these are."""
        return [*map(base.find, self.task_names)]


def _name_of(folder: str) -> str:
    """What an adapter is called in the name of its arm."""
    return Path(os.path.realpath(folder)).name  # which a loop of links does not stop


# Options that some tasks read and others do not, and whose they are; those of few are named
PART = {
    "depths": "",
    "samples": "tasks of retrieval",
    "seed": "tasks of retrieval and of the harness",
    "windows": "tasks of perplexity",
    "stride": "",
    "texts": "tasks of perplexity",
    "evaluator": "",
    "include_path": "tasks of your own and of the harness",
}


def unread(options: Options, names: Iterable[str]) -> list[str]:
    """Of these options, in the order of `PART`, those that none of the tasks reads."""
    read = set().union(*(task.reads(options) for task in options.asked))
    if options.include_path is not None and {*base.load(options.include_path)} & {*options.task_names}:
        read.add("include_path")
    return [name for name in PART if name in {*names} - read]


def _part(options: Options, name: str) -> str:
    """Whose an option is."""
    return PART[name] or " and ".join(task.name for task in base.every() if name in task.reads(options))


def require_read(options: Options, names: Iterable[str]) -> None:
    """Refuse options that were given and would change nothing.

    Raises:
        InvalidArgumentError: names the first of them.
    """
    for name in unread(options, names):
        raise InvalidArgumentError(
            f"eval: {name} must be left out where no task reads it, got {getattr(options, name)!r} with tasks "
            f"{', '.join(options.task_names)}; it is about {_part(options, name)}"
        )
    if options.layers != "global" and {*options.methods} == {UNPATCHED.method}:
        raise InvalidArgumentError(
            f"eval: layers must be left out where no method rescales any, got {options.layers!r} with methods "
            f"{UNPATCHED.method}; name a method, or leave it out"
        )


def original_length_of(options: Options, config: PreTrainedConfig) -> int:
    """The tokens that arms are factors of.

    Those of pretraining, or on a checkpoint that is scaled already what `existing` starts from. Where such a
    checkpoint is evaluated as it is, the length that it was extended to is its own.

    Raises:
        AlreadyScaledError: scaled, methods are asked for, and `existing` does not say what they start from.
    """
    text = text_of(config)
    as_it_is = options.existing == "error" and all(arm.unextended for arm in options.arms) and scaling(text)
    if as_it_is and options.original_length is None:
        return int(text.max_position_embeddings)
    existing = "replace" if as_it_is else options.existing
    return read_geometry(config, original_length=options.original_length, existing=existing).original_length


def scaling_text(text: PreTrainedConfig) -> str:
    """What a published config is scaled by, as an arm is named: its type and its factor."""
    part = parts_of(text)[0].config.rope_parameters
    factor = part.get("factor")
    return f"{part.get('rope_type')} x{factor:g}" if isinstance(factor, (int, float)) else str(part.get("rope_type"))


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is asked together: which arms have how much, when it is over."""

    arms: tuple[Arm, ...]
    samples: int  # of a retrieval task, for each length and depth
    windows: int  # of a perplexity task, at most


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One cell to run."""

    arm: Arm
    task: Task
    length: int | None  # tokens
    tokens: float = 0.0  # that it reads, roughly; 0 where nobody can know without the rows (tasks of the harness)

    @property
    def key(self) -> Key:
        """That of the finished cell."""
        return (self.task.name, self.arm.method, self.arm.factor, self.length)

    @property
    def label(self) -> str:
        """How progress names it."""
        return f"{self.arm.label} {self.task.name}" + ("" if self.length is None else f" {self.length:,}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What options come to on a model: the lengths, the cells with what each reads, and what the rows depend on."""

    options: Options
    original_length: int  # tokens
    own_length: int | None  # tokens that the checkpoint was extended to already, if it was
    lengths: tuple[int, ...]  # tokens, ascending
    cells: tuple[PlannedCell, ...]  # arm by arm
    knobs: Mapping[str, Mapping[str, Any]]  # task -> its version and what its rows depend on besides length and seed

    @classmethod
    def of(cls, options: Options, original_length: int, own_length: int | None = None) -> Plan:
        """The plan of options for a model of these lengths.

        Raises:
            InvalidArgumentError: a length beyond what any arm is made for.
        """
        lengths = _lengths(options, original_length, own_length)
        # all that can change a row stands in the settings, so that no two runs of a folder differ unseen
        shared = {**({"chat": True} if options.chat else {}), **dict(options.metadata)}
        knobs = {task.name: task.knobs(options, original_length, lengths[-1]) for task in options.asked}
        return cls(
            options=options,
            original_length=original_length,
            own_length=own_length,
            lengths=lengths,
            cells=tuple(_cells(options, original_length, lengths)),
            knobs={name: {"version": 1, **own, **shared} for name, own in knobs.items()},
        )

    def reach(self, arm: Arm) -> int:
        """Tokens that the model reads as an arm.

        The model as it is, with an adapter or without, is read beyond its length on purpose: as far as any arm.
        """
        reaches = {one: int(one.factor * self.original_length) for one in self.options.arms}
        own = max(reaches.values()) if arm.unextended else reaches[arm]
        return max(*self.lengths, self.own_length or 0, own)

    def with_options(self, options: Options) -> Plan:
        """The plan of other options for the same model."""
        return Plan.of(options, self.original_length, self.own_length)


def _lengths(options: Options, original_length: int, own_length: int | None) -> tuple[int, ...]:
    """The lengths in tokens; a checkpoint that is extended already is tested to factors of its own length."""
    factors = [*options.factors, *(arm.factor for arm in options.trained)]
    reach = int(max(factors) * original_length)
    own = own_length or original_length
    products = [original_length, own, *(int(factor * own) for factor in factors)]
    if options.target_length is not None and options.target_length <= reach:
        products.append(options.target_length)
    lengths = sorted(set(options.lengths or products))
    if lengths[-1] > reach and not all(arm.unextended for arm in options.arms):
        raise InvalidArgumentError(
            f"eval: lengths must be at most the largest factor x the original length ({reach}), got {lengths[-1]}; "
            f"ask for a larger factor or for shorter lengths"
        )
    return tuple(lengths)


def _cells(options: Options, original_length: int, lengths: Sequence[int]) -> Iterator[PlannedCell]:
    """Every cell, arm by arm: the model as it is at all lengths, the others up to factor x the original length.

    A task whose result at one length holds all shorter ones runs at an arm's largest length alone, and on the
    unpatched model at each of these, so that every comparison is of the same tokens.
    """
    reaches = {
        arm: [n for n in lengths if arm.unextended or n <= arm.factor * original_length] for arm in options.arms
    }
    whole = sorted({fitting[-1] for arm, fitting in reaches.items() if fitting and arm != UNPATCHED} | {lengths[-1]})
    for arm, fitting in reaches.items():
        for task in options.asked:
            if not task.has_length:
                chosen: list[int | None] = [None]
            elif task.reads_all:
                chosen = [*(whole if arm == UNPATCHED else fitting[-1:])]
            else:
                chosen = [*fitting]
            for length in chosen:
                read = task.tokens(options, length or 0, lengths[-1])
                yield PlannedCell(arm=arm, task=task, length=length, tokens=read)
