"""The results of an evaluation on disk: settings, sessions, finished cells and what each took.

A folder holds `run.json` (settings, sessions), `results.jsonl` (one line per finished cell) and `timings.jsonl` (one
line per cell, apart because timings differ from run to run). A cell is one task at one length on one arm. Reading
needs neither torch nor a model; this room computes and prints nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ropescale.checks import require_at_least
from ropescale.destinations import append_line, cut_torn_line, require_appendable, require_ordinary, write_file
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals.statistics import perplexity
from ropescale.evals.tasks.base import Loss, find
from ropescale.files import parsed, read_text

Key = tuple[str, str, float, int | None]  # task, method, factor, length
LINES = ("results.jsonl", "timings.jsonl")  # files that are written on
RECORD = "record"  # stands in the place of a task where a cell says what was done to the model
REMEDY = "make room there and give the same command again, finished cells are kept"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a comparison: the model patched with a method at a factor, or left as it is; with an adapter or not.

    That of an adapter is named after the method and the adapter: `yarn+mine`, and `none+mine` on the model as it is.
    """

    method: str
    factor: float

    @property
    def unextended(self) -> bool:
        """Whether positions are as the checkpoint has them."""
        return self.method.partition("+")[0] == UNPATCHED.method

    @property
    def adapter(self) -> str:
        """The name of its adapter; empty where it has none."""
        return self.method.partition("+")[2]

    @property
    def name(self) -> str:
        """Its method and adapter, as tables name them."""
        return self.adapter if self.adapter and self.unextended else self.method

    @property
    def label(self) -> str:
        """How progress, tables and the report name it."""
        return self.name if self.unextended else f"{self.name} x{self.factor:g}"


UNPATCHED = Arm(method="none", factor=1.0)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task at one length on one arm, finished: a line of results.jsonl."""

    task: str  # its name, or `RECORD`
    arm: Arm
    length: int | None = None  # tokens; None where a task has none
    stated: Mapping[str, Any] = field(default_factory=dict)  # what it says of itself: window, stride, evaluator, limit
    scores: Mapping[str, float] | None = None  # metric -> value over all samples; None of windows of text
    samples: Sequence[Mapping[str, Any]] = ()  # what its task keeps of each row
    record: Mapping[str, Any] | None = None  # what was done to the model
    lacks: str = ""  # what a line of its kind has and this one has not

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Cell:
        """The cell of a line."""
        rest = {**line}
        task, arm = str(rest.pop("task")), Arm(method=str(rest.pop("method")), factor=float(rest.pop("factor")))
        needed, fault = ("record", "no record") if task == RECORD else ("samples", "no list of samples")
        named = {name: rest.pop(name) for name in ("length", "scores", "samples", "record") if name in rest}
        return cls(task=task, arm=arm, stated=rest, lacks="" if needed in named else fault, **named)

    @property
    def line(self) -> dict[str, Any]:
        """What is written of it."""
        axes = {"task": self.task, "method": self.arm.method, "factor": self.arm.factor}
        if self.task == RECORD:
            return {**axes, "record": self.record}
        scores = {} if self.scores is None else {"scores": self.scores}
        return {**axes, "length": self.length, **self.stated, **scores, "samples": self.samples}

    @property
    def key(self) -> Key:
        """What tells it from every other one of its folder."""
        return (self.task, self.arm.method, self.arm.factor, self.length)

    @property
    def of_losses(self) -> bool:
        """Whether its samples are losses of windows of text."""
        return any("nll" in sample for sample in self.samples)

    @property
    def perplexity(self) -> float:
        """Token-weighted, over all samples of losses."""
        nats = [loss for sample in self.samples for loss in _list(sample["nll"])]
        return perplexity(math.fsum(nats), sum(count for sample in self.samples for count in _list(sample["tokens"])))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What running a cell took: a line of timings.jsonl."""

    task: str
    arm: Arm
    length: int | None  # tokens
    seconds: float
    tokens: int  # read

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Timing:
        """The timing of a line."""
        arm = Arm(method=line["method"], factor=float(line["factor"]))
        seconds, tokens = float(line["seconds"]), int(line["tokens"])
        return cls(task=line["task"], arm=arm, length=line.get("length"), seconds=seconds, tokens=tokens)

    @property
    def line(self) -> dict[str, Any]:
        """What is written of it."""
        axes = {"task": self.task, "method": self.arm.method, "factor": self.arm.factor, "length": self.length}
        return {**axes, "seconds": self.seconds, "tokens": self.tokens}


@dataclass(frozen=True, kw_only=True)
class Session:
    """Who ran when and on what; None is what an earlier version did not write."""

    line: Mapping[str, Any]  # as run.json has it, where it stays as it was written
    command: str | None = None
    date: str | None = None  # ISO 8601, UTC
    processor: str | None = None
    cores: int | None = None
    threads: int | None = None
    adapters: Mapping[str, Any] = field(default_factory=dict)  # arm's method -> the folder
    device: str | None = None
    system: str | None = None
    python: str | None = None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Session:
        """The session of an entry; what is of another kind than is written counts as not written."""
        words = ("command", "date", "processor", "device", "system", "python")
        kinds: dict[str, type] = {**dict.fromkeys(words, str), "cores": int, "threads": int, "adapters": dict}
        known = {name: line[name] for name, kind in kinds.items() if isinstance(line.get(name), kind)}
        return cls(**known, line=line)


def _list(value: Any) -> list[Any]:
    """One loss of a window, or those of its buckets."""
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a cell's figures depend on besides its arm, task and length.

    Results of other settings cannot be compared, except that a later run may add tasks, lengths, adapters, samples and
    windows; of windows it may ask for fewer, which are the first ones. It may want the model for another length too.
    """

    model: str
    weights: str  # first 16 hex digits of the SHA-256 over all parameters
    dtype: str
    original_length: int  # tokens
    backend: str  # "transformers" or "vllm"
    tasks: Mapping[str, Mapping[str, Any]]  # short name -> version and knobs
    lengths: tuple[int, ...]  # tokens, ascending
    seed: int
    texts: str  # first 16 hex digits of the SHA-256 over the documents
    versions: Mapping[str, str]  # package -> version
    knobs: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # method -> what it was given besides a factor
    existing: str = "error"  # what methods started from, on a checkpoint that was scaled already
    base: str = ""  # what the arm without a method is, on a checkpoint that was saved patched or is scaled already
    notes: tuple[str, ...] = ()  # sentences about the model that belong into every report
    layers: str = "global"  # which layers methods rescaled, where these have rotations of their own
    adapters: Mapping[str, str] = field(default_factory=dict)  # arm's method -> digest of the adapter's weights
    loading: Mapping[str, str] = field(default_factory=dict)  # quantization, revision, attention, where asked for
    tokenizer: str = ""  # first 16 hex digits of the SHA-256 over its vocabulary; empty in earlier results
    target_length: int | None = None  # tokens: the length that the model is wanted for, which changes no figure

    @property
    def form(self) -> str:
        """How the model was held, as the report names it: its type, and what was asked for besides."""
        return ", ".join([self.dtype, *(f"{name} {value}" for name, value in self.loading.items())])

    def joined(self, earlier: Settings, folder: Path) -> Settings:
        """These settings with the tasks, lengths and adapters of an earlier run in the same folder.

        Raises:
            InvalidArgumentError: the earlier run was of other settings.
        """
        # the backend first: another one counts weights and versions in its own way
        for item in sorted(fields(Settings), key=lambda item: item.name != "backend"):
            if item.name in ("tasks", "lengths", "adapters", "base", "notes", "target_length"):
                continue
            ours, theirs = getattr(self, item.name), getattr(earlier, item.name)
            if ours != theirs and not (item.name == "tokenizer" and "" in (ours, theirs)):
                raise _differs(folder, item.name, theirs, ours)
        for name in self.tasks.keys() & earlier.tasks.keys():
            theirs, ours = dict(earlier.tasks[name]), dict(self.tasks[name])
            before, now = theirs.pop("samples", 0), ours.pop("samples", 0)
            if isinstance(find(name), Loss):
                theirs.pop("windows", 0), ours.pop("windows", 0)
            if ours != theirs:
                raise _differs(folder, f"task {name}", dict(earlier.tasks[name]), dict(self.tasks[name]))
            if not (isinstance(now, int) and isinstance(before, int)):
                raise _differs(folder, f"task {name}", before, now)
            if now < before:
                raise InvalidArgumentError(
                    f"samples: results in {str(folder)!r} can be given more samples of {name}, not fewer than "
                    f"{before}, got {now}; give at least {before}, or choose another folder with output=DIR"
                )
        for name in self.adapters.keys() & earlier.adapters.keys():
            if self.adapters[name] != earlier.adapters[name]:
                raise _differs(folder, f"adapter {name}", earlier.adapters[name], self.adapters[name])
        return dataclasses.replace(
            self,
            adapters={**earlier.adapters, **self.adapters},
            tasks={**earlier.tasks, **self.tasks},
            lengths=tuple(sorted({*earlier.lengths, *self.lengths})),
            target_length=self.target_length or earlier.target_length,
        )


def _differs(folder: Path, name: str, theirs: Any, ours: Any) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"output: results in {str(folder)!r} must be of the same {name} ({theirs!r}), got {ours!r}; "
        f"choose another folder with output=DIR"
    )


class Results:
    """The finished cells of one folder, in memory and on disk."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        sessions: list[Session],
        cells: dict[Key, Cell],
        timings: list[Timing],
    ):
        self.folder = folder
        self.settings = settings
        self.sessions = sessions
        self.cells = cells
        self.timings = timings

    def append(self, cell: Cell, *, seconds: float, tokens: int) -> None:
        """Add a finished cell: one line, one write, so that a kill leaves it whole, torn at the end, or absent.

        Raises:
            CheckpointError: the line could not be written; the file is as it was before.
        """
        append_line(self.folder / "results.jsonl", json.dumps(cell.line), name="results", remedy=REMEDY)
        self.cells[cell.key] = cell
        timing = Timing(task=cell.task, arm=cell.arm, length=cell.length, seconds=round(seconds, 3), tokens=tokens)
        append_line(self.folder / "timings.jsonl", json.dumps(timing.line), name="results", remedy=REMEDY)
        self.timings.append(timing)

    def reread(self) -> None:
        """Take in what other processes have added since; a line that one of them is writing is read the next time.

        Raises:
            InvalidArgumentError: not what an evaluation writes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            now = _all_of(self.folder)
        self.cells, self.timings = now.cells, now.timings

    def cut_torn_lines(self) -> None:
        """Remove what a kill left half written.

        Raises:
            CheckpointError: it cannot be removed.
        """
        for name in LINES:
            cut_torn_line(self.folder / name, name="results", remedy=REMEDY)

    def arrange(self, keys: Sequence[Key]) -> None:
        """Put the lines of these cells in this order, behind all others; of several lines of one, the last is left.

        Raises:
            CheckpointError: they cannot be written; the file is as it was.
        """
        path = self.folder / "results.jsonl"
        lines = {Cell.of(line).key: json.dumps(line) for _, line in _lines(path)}
        places = {key: place for place, key in enumerate(keys)}
        ordered = sorted(lines, key=lambda key: places.get(key, -1))
        if ordered != [Cell.of(line).key for _, line in _lines(path)]:
            write_atomically(path, "".join(f"{lines[key]}\n" for key in ordered))

    @property
    def session(self) -> Session:
        """The last one; in a folder without any, one that says nothing."""
        return self.sessions[-1] if self.sessions else Session.of({})

    def first_windows(self) -> Results:
        """The same with as many windows of text in every cell as the settings ask for: those that it has more are kept
        on disk.
        """
        cells = {key: _first_windows(cell, self.settings) for key, cell in self.cells.items()}
        return Results(self.folder, self.settings, self.sessions, cells, self.timings)

    def wanted_for(self, length: int | None) -> Results:
        """The same for a model that is wanted for so many tokens; as it is where none are given.

        Raises:
            InvalidArgumentError: less than one.
        """
        require_at_least("report: target_length", length, 1)
        wanted = dataclasses.replace(self.settings, target_length=length or self.settings.target_length)
        return Results(self.folder, wanted, self.sessions, self.cells, self.timings)

    def arms(self) -> list[Arm]:
        """All arms with a finished cell: unpatched first, then by factor, in the order in which they ran."""
        met = dict.fromkeys(cell.arm for cell in self.cells.values())
        return sorted(met, key=lambda arm: (arm != UNPATCHED, arm.factor))

    def cell(self, arm: Arm, task: str, length: int | None = None) -> Cell | None:
        """The finished cell of that arm, task and length, or None."""
        return self.cells.get((task, arm.method, arm.factor, length))


def start(folder: Path, settings: Settings, session: Session) -> Results:
    """The folder made ready for new cells, with the finished ones of an earlier run.

    Raises:
        InvalidArgumentError: the folder holds results of other settings, or cannot be read.
        CheckpointError: the folder cannot be written.
    """
    results = begun(folder, settings)
    results.cut_torn_lines()
    results.sessions.append(session)
    run = {"settings": asdict(results.settings), "sessions": [session.line for session in results.sessions]}
    write_atomically(folder / "run.json", json.dumps(run, indent=2) + "\n")
    return results


def begun(folder: Path, settings: Settings) -> Results:
    """What `start` would find, where it could start; nothing is written.

    Raises:
        InvalidArgumentError: the folder holds results of other settings, cannot be read, or has something else where
            results are to be written.
        CheckpointError: its files cannot be written.
    """
    if not (folder / "run.json").exists() and (folder / "results.jsonl").exists():
        raise InvalidArgumentError(
            f"output: a folder with results.jsonl must hold its run.json too, got {str(folder)!r}; "
            f"choose another folder with output=DIR"
        )
    results = Results(folder, settings, [], {}, [])
    if (folder / "run.json").exists():
        results = _all_of(folder)
        results.settings = settings.joined(results.settings, folder)
    require_ordinary(folder / "run.json", name="results")
    for name in LINES:
        require_appendable(folder / name, name="results", remedy=REMEDY)
    return results


def read(folder: Path) -> Results:
    """The results in a folder; a line that a kill left torn at the end is dropped with a warning.

    Raises:
        InvalidArgumentError: no results there, or not what an evaluation writes.
    """
    return _all_of(folder).first_windows()


def _first_windows(cell: Cell, settings: Settings) -> Cell:
    """A cell of a perplexity with the first windows alone that its settings ask for."""
    wanted = settings.tasks.get(cell.task, {}).get("windows")
    if not cell.of_losses or not _is_count(wanted):
        return cell
    met: dict[tuple[str, str], int] = {}
    kept = []
    for sample in cell.samples:
        place = met.setdefault((str(sample.get("document")), str(sample.get("window"))), len(met))
        if sample.get("place", place) < wanted:  # LongPPL leaves out windows without a key token
            kept.append(sample)
    return dataclasses.replace(cell, samples=kept)


def _all_of(folder: Path) -> Results:
    """The results in a folder, with all windows that were ever run."""
    run = folder / "run.json"
    try:
        text = read_text(run, remedy="choose another folder")
    except FileNotFoundError as error:
        raise InvalidArgumentError(
            f"results: a folder must hold the run.json of an evaluation, got {str(folder)!r}; "
            f"name the output folder of an evaluation"
        ) from error
    stored = parsed(text, run, remedy="choose another folder")
    try:
        settings = Settings(**{**stored["settings"], "lengths": tuple(stored["settings"]["lengths"])})
        settings = dataclasses.replace(settings, notes=tuple(settings.notes))
        sessions = list(stored["sessions"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            f"results: {str(run)!r} must be as an evaluation wrote it, got {type(error).__name__}; "
            f"choose another folder"
        ) from error
    for name, sound in SETTINGS.items():
        if not sound(getattr(settings, name)):
            raise InvalidArgumentError(
                f"results: {name} in {str(run)!r} must be as an evaluation wrote it, got "
                f"{shortened(getattr(settings, name))}; choose another folder"
            )
    if not all(isinstance(session, dict) for session in sessions):
        raise InvalidArgumentError(
            f"results: sessions in {str(run)!r} must be as an evaluation wrote them, got {shortened(sessions)}; "
            f"choose another folder"
        )
    cells = {}
    for number, line in _lines(folder / "results.jsonl"):
        if not _is_cell(line):
            raise _damaged(folder / "results.jsonl", number, json.dumps(line))
        cell = Cell.of(line)
        cells[cell.key] = cell  # a later line of the same key wins
    timings = []
    for number, line in _lines(folder / "timings.jsonl"):
        if not (_is_cell(line) and _is_number(line.get("seconds")) and _is_whole(line.get("tokens"))):
            raise _damaged(folder / "timings.jsonl", number, json.dumps(line))
        timings.append(Timing.of(line))
    return Results(folder, settings, [*map(Session.of, sessions)], cells, timings)


def write_atomically(path: Path, text: str) -> None:
    """Write beside the place and move there, so that no reader and no kill ever meets half a file.

    Raises:
        InvalidArgumentError: a folder, a link, a device or a pipe is there.
        CheckpointError: it could not be written; what was there before still is.
    """
    write_file(path, text, name="results", remedy=REMEDY)


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    """Line number and value of every whole line."""
    try:
        text = read_text(path, largest=LARGEST, remedy="choose another folder")
    except FileNotFoundError:
        return
    whole, _, torn = text.rpartition("\n")
    if torn:
        warnings.warn(f"{path}: the last line is cut off and is dropped; its cell counts as not run", stacklevel=4)
    for number, line in enumerate(whole.split("\n") if whole else (), start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, number, line) from error
        yield number, value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) > MOST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _are(sound: Callable[[Any], bool], values: Any) -> bool:
    """Whether these are a list or an object of sound values, under names of text."""
    if isinstance(values, dict):
        return all(isinstance(name, str) and sound(value) for name, value in values.items())
    return isinstance(values, (list, tuple)) and all(map(sound, values))


def _one_or_more(sound: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or sound(value) or (isinstance(value, list) and _are(sound, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_sample(sample: Any) -> bool:
    return isinstance(sample, dict) and all(sound(sample[name]) for name, sound in SAMPLE.items() if name in sample)


def _is_cell(cell: Any) -> bool:
    """Whether a line has what every cell has, and nothing of another kind than an evaluation writes."""
    return (
        isinstance(cell, dict)
        and _is_text(cell.get("task"))
        and _is_text(cell.get("method"))
        and _is_number(cell.get("factor"))
        and (cell.get("length") is None or _is_count(cell["length"]))
        and all(sound(cell[name]) for name, sound in CELL.items() if name in cell)
    )


LARGEST = 2**31  # bytes of results: prompts of hundreds of samples come along
MOST = 2**53  # what a float holds exactly
# What an evaluation writes, by name
SETTINGS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", "weights", "dtype", "backend", "texts", "existing", "layers", "base"), _is_text),
    "tokenizer": _is_text,
    "original_length": _is_count,
    "notes": lambda value: _are(_is_text, value),
    "target_length": lambda value: value is None or _is_count(value),
    "seed": _is_whole,
    "lengths": lambda value: bool(value) and _are(_is_count, value),
    "tasks": lambda value: isinstance(value, dict) and _are(lambda entry: isinstance(entry, dict), value),
    "knobs": lambda value: isinstance(value, dict) and _are(lambda entry: isinstance(entry, dict), value),
    "versions": lambda value: isinstance(value, dict) and _are(_is_text, value),
    "adapters": lambda value: isinstance(value, dict) and _are(_is_text, value),
    "loading": lambda value: isinstance(value, dict) and _are(_is_text, value),
}
SAMPLE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("edges", "tokens"), _one_or_more(_is_number)),
    "nll": _one_or_more(lambda value: _is_number(value) or value == math.inf),  # of a model that predicts nothing
    **dict.fromkeys(("score", "exact", "depth"), lambda value: value is None or _is_number(value)),
    "place": _is_whole,
    **dict.fromkeys(("window", "of"), _is_number),
    **dict.fromkeys(("document", "digest"), _is_text),
    "reply": lambda value: isinstance(value, str),  # half of a pair of surrogates too: the report replaces it
    "target": _one_or_more(_is_text),
    "left_out": _is_count,
}
CELL: dict[str, Callable[[Any], bool]] = {
    "samples": lambda value: isinstance(value, list) and _are(_is_sample, value),
    "scores": lambda value: isinstance(value, dict) and _are(_is_number, value),
    **dict.fromkeys(("limit", "window", "stride"), _is_count),
    "evaluator": _is_text,
    "record": lambda value: value is None or isinstance(value, dict),
}


def _damaged(path: Path, number: int, line: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"results: line {number} of {str(path)!r} must be a cell as an evaluation wrote it, got {line[:40]!r}; "
        f"remove the line and run again"
    )
