"""Which arms, tasks, lengths and samples of two folders stand beside one another, and what keeps others apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ropescale.checks import did_you_mean
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.evals.decision.measures import is_finished, lengths_of
from ropescale.evals.paired.samples import Shared, have_digests, shared_by
from ropescale.evals.report.findings import require_sound
from ropescale.evals.results import RECORD, UNPATCHED, Arm, Cell, Results, Settings
from ropescale.evals.tasks.base import Task, of_cells

Arms = tuple[Arm, Arm]
COUNTS = ("samples", "windows", "limit")  # knobs that say how many rows there are, and change none of them


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Two folders, and what of them is compared."""

    one: Results
    other: Results
    arms: tuple[Arms, ...]  # of the first folder, of the second
    tasks: tuple[Task, ...]  # with samples that both folders hold
    cells: dict[tuple[Arms, str, int | None], Shared]  # arms, task, length
    apart: dict[str, str]  # task that both ran -> why nothing of it is compared
    digests: bool  # whether samples are known by their digests

    @property
    def folders(self) -> tuple[Results, Results]:
        """Both."""
        return self.one, self.other

    @property
    def original_length(self) -> int:
        """Tokens: the smaller one of both, beyond which at least one model is extended."""
        return min(results.settings.original_length for results in self.folders)

    def lengths(self, arms: Arms, task: Task) -> list[int | None]:
        """At which lengths a task has samples of two arms that both folders hold, ascending; None: without one."""
        met = [length for paired, name, length in self.cells if (paired, name) == (arms, task.name)]
        return sorted(met, key=lambda length: length or 0)

    @property
    def arms_alone(self) -> tuple[list[Arm], list[Arm]]:
        """The arms of each folder that stand beside none."""
        used: tuple[set[Arm], set[Arm]] = ({ours for ours, _ in self.arms}, {theirs for _, theirs in self.arms})
        return (
            [arm for arm in self.one.arms() if arm not in used[0]],
            [arm for arm in self.other.arms() if arm not in used[1]],
        )

    @property
    def tasks_alone(self) -> tuple[list[str], list[str]]:
        """The tasks that one folder alone was asked."""
        ours, theirs = (results.settings.tasks for results in self.folders)
        return [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]


def paired(one: Results, other: Results, *, arms: Sequence[tuple[str, str]] = ()) -> Pairing:
    """What two folders share.

    Raises:
        InvalidArgumentError: damaged cells, an arm that is not there, or nothing that both were asked.
    """
    for results in (one, other):
        require_sound(results)
    beside = tuple((_arm(one, ours), _arm(other, theirs)) for ours, theirs in arms) or tuple(
        (arm, arm) for arm in one.arms() if arm in other.arms()
    )
    if not beside:
        raise InvalidArgumentError(
            f"report: two folders must have arms of the same name, got {_names(one)} in {str(one.folder)!r} and "
            f"{_names(other)} in {str(other.folder)!r}; say by arms which are compared with which"
            if one.arms() and other.arms()
            else f"report: two folders must have finished cells, got none in "
            f"{str((other if one.arms() else one).folder)!r}; give the command of its evaluation again"
        )
    digests = all(have_digests(cell) for results in (one, other) for cell in _cells(results))
    cells: dict[tuple[Arms, str, int | None], Shared] = {}
    apart: dict[str, str] = {}
    tasks: list[Task] = []
    for name in (name for name in one.settings.tasks if name in other.settings.tasks):
        fault = _made_otherwise(one.settings, other.settings, name, digests)
        found = {} if fault else dict(_shared(one, other, beside, name, digests))
        if any(shared.count for shared in found.values()):
            cells |= {key: shared for key, shared in found.items() if shared.count}
            first = next(shared.one for shared in found.values() if shared.count)
            tasks.append(of_cells(name, length=first.length is not None, losses=first.of_losses))
        elif found or fault:
            apart[name] = fault or _unlike(one.settings, other.settings, name)
    if not cells:
        ours, theirs = (shortened([*results.settings.tasks]) for results in (one, other))
        why = "; ".join(f"{name}: {reason}" for name, reason in apart.items())
        raise InvalidArgumentError(
            f"report: two folders must hold the same prompts or windows of text, got none that are in both "
            f"{str(one.folder)!r} and {str(other.folder)!r} ({why or f'tasks {ours} and {theirs}'}); evaluate both "
            f"with the same tasks, lengths, texts and seed, and a tokenizer that both models share"
        )
    return Pairing(one=one, other=other, arms=beside, tasks=tuple(tasks), cells=cells, apart=apart, digests=digests)


def unfinished(results: Results) -> list[Arm]:
    """The arms of a folder that lack a cell which they were to have."""
    settings = results.settings
    lacking = [name for name in settings.tasks if not lengths_of(results, UNPATCHED, name)]
    arms = [arm for arm in results.arms() if arm != UNPATCHED and not is_finished(results, arm)]
    return [*([UNPATCHED] if lacking else []), *arms]


def unlike(one: Results, other: Results) -> dict[str, tuple[str, str]]:
    """What the settings and the machine of two folders differ in: its name -> as each has it."""
    ours, theirs = (dict(_stated(results)) for results in (one, other))
    names = [*ours, *(name for name in theirs if name not in ours)]
    met = {name: (ours.get(name, ""), theirs.get(name, "")) for name in names}
    return {name: values for name, values in met.items() if values[0] != values[1]}


def _stated(results: Results) -> Iterator[tuple[str, str]]:
    """Every setting by its name, and the device; what holds several has a name for each."""
    titles = {"original_length": "original length", "target_length": "target length", "weights": "parameters"}
    for item in fields(Settings):
        value = getattr(results.settings, item.name)
        if item.name == "notes":
            continue
        if not isinstance(value, dict):
            yield titles.get(item.name, item.name), _text(value)
        for name, inner in value.items() if isinstance(value, dict) else ():
            kind = {"tasks": "task ", "knobs": "knobs of ", "adapters": "adapter of ", "versions": ""}.get(
                item.name, ""
            )
            yield kind + name, _text(inner)
    yield "device", results.session.device or ""
    yield "processor", results.session.processor or ""


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _cells(results: Results) -> Iterator[Cell]:
    return (cell for cell in results.cells.values() if cell.task != RECORD)


def _shared(
    one: Results, other: Results, arms: Sequence[Arms], task: str, digests: bool
) -> Iterator[tuple[tuple[Arms, str, int | None], Shared]]:
    """What two folders have in common of a task, by arms and length."""
    for ours, theirs in arms:
        for length in lengths_of(one, ours, task):
            cells = one.cell(ours, task, length), other.cell(theirs, task, length)
            if cells[0] is not None and cells[1] is not None:
                yield ((ours, theirs), task, length), shared_by(cells[0], cells[1], digests=digests)


def _made_otherwise(one: Settings, other: Settings, task: str, digests: bool) -> str:
    """Why samples of a task cannot be told to be the same, or are not scored alike; empty where they can."""
    versions = [settings.tasks[task].get("version", 1) for settings in (one, other)]
    if versions[0] != versions[1]:
        return f"version {versions[0]} and {versions[1]}"
    if digests:
        return ""
    return _unlike(one, other, task, alike="")


def _unlike(one: Settings, other: Settings, task: str, *, alike: str = "other rows") -> str:
    """What rows of a task depend on and two folders differ in; `alike` where they do not."""
    knobs = [
        {name: value for name, value in settings.tasks[task].items() if name not in COUNTS}
        for settings in (one, other)
    ]
    names = [name for name in {**knobs[0], **knobs[1]} if knobs[0].get(name) != knobs[1].get(name)]
    said = [f"{name} {_text(knobs[0].get(name))} and {_text(knobs[1].get(name))}" for name in names]
    # a folder of an earlier version does not say its tokenizer: then the same weights say that it is the same
    known = "tokenizer" if one.tokenizer and other.tokenizer else "weights"
    for name in (known, "seed", "texts"):
        ours, theirs = asdict(one)[name], asdict(other)[name]
        if ours != theirs:
            said.append(f"{name} {_text(ours)} and {_text(theirs)}")
    return ", ".join(said) or alike


def _names(results: Results) -> str:
    return ", ".join(arm.label for arm in results.arms())


def _arm(results: Results, name: str) -> Arm:
    """The arm of a folder by its name as reports have it, with or without the space; or by its method alone.

    Raises:
        InvalidArgumentError: no such arm, or several.
    """
    arms = results.arms()
    asked = "none" if name == "unpatched" else name.replace(" ", "")
    found = [arm for arm in arms if arm.label.replace(" ", "") == asked] or [
        arm for arm in arms if arm.name.replace(" ", "") == asked
    ]
    if len(found) != 1:
        labels = [arm.label for arm in arms]
        hint = did_you_mean(name, labels, otherwise=f"it has {', '.join(labels) or 'none'}")
        raise InvalidArgumentError(
            f"report: arms must name one of {str(results.folder)!r}, got {name!r}"
            f"{f' for {len(found)} of them' if found else ''}; {hint}"
        )
    return found[0]
