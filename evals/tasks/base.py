"""What an evaluation task is: one frozen object a task, and the registry where all are found by name.

A folder of tasks holds YAML and Python for the harness and a `task.py`, which says the rest: what the plan, the grid,
the report and the command line have to know. It imports nothing heavy, so that names and sentences can be asked for
at once. A folder of a user's own is the same, and what it defines is a task like those that ship.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ropescale.checks import did_you_mean, require_choice
from ropescale.errors import InvalidArgumentError
from ropescale.outside import TASKS, run_file

if TYPE_CHECKING:
    from ropescale.evals.plan import Options

FOLDER = Path(__file__).parent
# What the figure of a loss is drawn over; nothing for a table, from which no effective length is read
CURVES = ("length", "position", "")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tasks that are reported together: one section, a line a task in its heat maps."""

    title: str  # of the section, and what sentences call its tasks: "RULER"
    text: str  # the paragraph that opens the section: what is asked, and what a cell of the heat maps says
    # a name by which several tasks are asked for -> theirs
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    # lines of `ropescale eval --help`: names -> what they are
    summary: Mapping[str, str] = field(default_factory=dict, hash=False)
    place: int = 100  # of these lines among those of tasks
    alone: bool = False  # the effective length by retrieval averages over these tasks alone where any of them was run


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of an evaluation, of one of the three kinds below; `register` makes it known.

    Its rows are those of the harness's task `ropescale_<name>`, whose YAML lies in the same folder.
    """

    name: str  # as `--tasks`, results and figures have it
    title: str = ""  # of its section, and at the beginning of sentences; the name if not given
    summary: str = ""  # its line of `ropescale eval --help`; tasks of a group have theirs there
    text: str = ""  # the paragraph that opens its section; what the report knows of the kind if not given
    group: Group | None = None
    place: int = 100  # among the tasks, wherever they are listed
    default: bool = False  # it runs where no tasks are named
    quick: bool = False  # it says most for its time: run by `--quick`, and kept longest by `--budget`

    scoring: ClassVar[str]  # "loss" (nats of windows of text), "retrieval" (a score a prompt) or "short"
    has_length: ClassVar[bool] = True  # its result is at a length
    reads_all: ClassVar[bool] = False  # its result at one length holds those of all shorter ones
    fields: ClassVar[tuple[str, ...]] = ("score",)  # what every sample of its cells holds

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        """What its rows depend on besides length and seed, as metadata of the harness's task.

        `original` and `longest` are tokens. A knob that is named as an option is what the task reads of it.
        """
        raise NotImplementedError

    def tokens(self, options: Options, length: int, longest: int) -> float:
        """Tokens that one cell reads, roughly; 0 where nobody can know without the rows."""
        raise NotImplementedError

    def reads(self, options: Options) -> set[str]:
        """The names of the options that its rows depend on, and others of its knobs."""
        return {*self.knobs(options, 1, 1)}

    @property
    def heading(self) -> str:
        """Its title; without one its name."""
        return self.title or self.name


@dataclass(frozen=True, kw_only=True)
class Loss(Task):
    """Windows of text that are scored token by token. A row has `document`, `window`, `tokens` (scored, a span)."""

    noun: str = "perplexity"  # what sentences and tables call its figure
    metric: str = "perplexity"  # what evaluate.json calls it
    brief: str = ""  # the sentence that opens its section of report.md
    told: str = ""  # the sentence on it in the section of all arms, where the rows of the comparison hold its figures
    curve: str = "length"  # one of `CURVES`

    scoring = "loss"
    fields: ClassVar[tuple[str, ...]] = ("document", "nll", "tokens")

    def __post_init__(self) -> None:
        require_choice(f"task {self.name}: curve", self.curve, CURVES, remedy="leave it out for 'length'")

    @property
    def by_position(self) -> bool:
        """Whether its figures are of buckets of positions."""
        return self.curve == "position"

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        """Windows and texts."""
        return {"windows": options.windows, "texts": options.source}

    def tokens(self, options: Options, length: int, longest: int) -> float:
        """One reading of every window."""
        return options.windows * length

    def stated(self, options: Options, length: int) -> dict[str, Any]:
        """What a cell says of itself besides its axes."""
        return {}

    def sample(self, row: Mapping[str, Any], nats: Sequence[float]) -> dict[str, Any]:
        """What is stored of a row whose spans have these losses."""
        return {
            "document": row["document"],
            "window": row["window"],
            "nll": sum(nats),
            "tokens": sum(row["tokens"]),
        }


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Prompts of exactly a length, each with a score from 0 to 1."""

    depths: bool = False  # every prompt has a depth, so that scores are a map of depth and length

    scoring = "retrieval"

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        """Samples, and depths where it has any."""
        return {"samples": options.samples, **({"depths": list(options.depths)} if self.depths else {})}

    def tokens(self, options: Options, length: int, longest: int) -> float:
        """Every prompt once."""
        return options.samples * (len(options.depths) if self.depths else 1) * length

    def reads(self, options: Options) -> set[str]:
        """The seed too, by which prompts are drawn."""
        return {*super().reads(options), "seed"}


@dataclass(frozen=True, kw_only=True)
class Short(Task):
    """Questions far shorter than any context: what a longer one costs where none was needed."""

    chance: float | None = None  # what guessing scores, where that is known

    scoring = "short"
    has_length = False

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        """How many rows at most."""
        return {"limit": options.limit} if options.limit else {}

    def tokens(self, options: Options, length: int, longest: int) -> float:
        """Few."""
        return 2000


@dataclass(frozen=True, kw_only=True)
class Foreign(Short):
    """A task of the harness, of which nothing more is known than its name."""

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        """How many rows at most, also where nobody says it."""
        return {"limit": options.limit}

    def tokens(self, options: Options, length: int, longest: int) -> float:
        """Nobody knows."""
        return 0.0

    def reads(self, options: Options) -> set[str]:
        """What any task of the harness may depend on."""
        return {"include_path", "limit", "seed"}


@dataclass(frozen=True)
class _Entry:
    task: Task
    folder: Path


_REGISTERED: dict[str, _Entry] = {}


def register(*tasks: Task, file: str) -> None:
    """Make tasks known; `file` is the `__file__` of the `task.py` that defines them, beside which their YAML lies.

    Raises:
        InvalidArgumentError: a name that another folder's task has already.
    """
    folder = Path(file).resolve().parent
    for task in tasks:
        taken = _REGISTERED.get(task.name)
        if taken is not None and taken.folder != folder:
            raise InvalidArgumentError(
                f"task: name must be new, got {task.name!r}, which {str(taken.folder)!r} defines; choose another"
            )
        _REGISTERED[task.name] = _Entry(task, folder)


@cache
def _load_shipped() -> None:
    for path in sorted(FOLDER.glob(f"*/{TASKS}")):
        import_module(f"{__package__}.{path.parent.name}.task")


def load(folder: str | Path) -> list[str]:
    """Run every `task.py` in a folder and those below it; the names of the tasks that these define.

    Raises:
        InvalidArgumentError: no folder, a file that fails, or a name that is taken.
    """
    _load_shipped()
    root = Path(os.path.realpath(folder))  # which a loop of links does not stop
    if os.path.lexists(folder) and not os.path.isdir(root):
        raise InvalidArgumentError(f"include_path: must be a folder with tasks, got {str(folder)!r}; check the path")
    for path in sorted(root.rglob(TASKS)):
        run_file(path, name=f"task in {path.parent}", what="include_path")
    return [name for name, entry in _REGISTERED.items() if entry.folder.is_relative_to(root)]


def every() -> list[Task]:
    """All tasks that are known, in the order in which they are listed."""
    _load_shipped()
    return sorted((entry.task for entry in _REGISTERED.values()), key=lambda task: task.place)


def find(name: str) -> Task:
    """The task of that name; one of the harness where none is known."""
    _load_shipped()
    entry = _REGISTERED.get(name)
    return Foreign(name=name) if entry is None else entry.task


def folder_of(task: Task) -> Path | None:
    """Where the YAML of a task lies; None for one of the harness."""
    entry = _REGISTERED.get(task.name)
    return None if entry is None else entry.folder


def groups() -> list[Group]:
    """The groups that tasks are of, in the order of the tasks."""
    found: list[Group] = []
    for task in every():
        if task.group is not None and task.group not in found:
            found.append(task.group)
    return found


def defaults(*, quick: bool = False) -> tuple[str, ...]:
    """The names of the tasks that run where none are named; with `quick` of those that say most for their time."""
    return tuple(task.name for task in every() if (task.quick if quick else task.default))


def spelled_out(names: Iterable[str]) -> list[str]:
    """Names of tasks, with those that stand for several spelled out; twice the same counts once."""
    members = {name: tasks for group in groups() for name, tasks in group.members.items()}
    return list(dict.fromkeys(member for name in names for member in members.get(name, (name,))))


def listed() -> list[tuple[str, str]]:
    """The lines of `ropescale eval --help`: names and what they are."""
    lines = [(task.place, task.name, task.summary) for task in every() if task.summary]
    lines += [(group.place, names, summary) for group in groups() for names, summary in group.summary.items()]
    return [(name, summary) for _, name, summary in sorted(lines, key=lambda line: line[0])]


def unknown(name: str, of_harness: Iterable[str]) -> InvalidArgumentError:
    """The error for a task that neither is known here nor is one of the harness."""
    ours = sorted({*(task.name for task in every()), *(name for group in groups() for name in group.members)})
    hint = did_you_mean(name, [*ours, *of_harness], otherwise=f"ours are {', '.join(ours)}")
    return InvalidArgumentError(f"eval: tasks must be ours or the harness's, got {name!r}; {hint}")


def of_cells(name: str, *, length: bool, losses: bool) -> Task:
    """The task of that name; where none is known, what its cells say: whether they have a length, and hold losses.

    For results of a folder of tasks that is not there where they are read.
    """
    task = find(name)
    if not isinstance(task, Foreign) or not length:
        return task
    return Loss(name=name) if losses else Retrieval(name=name)
