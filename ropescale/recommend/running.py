"""`recommend`: a race of the unpatched model against a short list, a search where the budget has room, and a promise.

Runs in one folder, each of which goes on where it was stopped: `race` decides among the short list; `search` looks for
factors of the model's own; `promise` asks what was taken and what was found the prompts of another seed, which have
picked nothing. Whatever can fail fails before the first of them writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropescale.contents import read_config, read_tokenizer
from ropescale.destinations import require_ordinary, try_folder, write_file
from ropescale.errors import ExportError, InvalidArgumentError
from ropescale.evals import grid, plan, results
from ropescale.evals.decision import decide
from ropescale.evals.decision.verdict import Decision, Verdict
from ropescale.evals.race import RACE
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.verdict import reasons, verdict
from ropescale.evals.results import UNPATCHED, Arm, Results
from ropescale.evals.tasks.base import defaults
from ropescale.export.writing import held
from ropescale.families.parts import text_of
from ropescale.families.reading import read_geometry
from ropescale.geometry import Geometry
from ropescale.recommend import cost, figures, wording
from ropescale.recommend.advice import Advice, Line, Promise
from ropescale.recommend.commands import Command, Written, ropescale_line
from ropescale.recommend.options import Options
from ropescale.recommend.page import page
from ropescale.recommend.shortlist import RACED, Shortlist, shortlist
from ropescale.recommend.training import Trained, nearest
from ropescale.records import saved_record
from ropescale.request import Request, split_knobs
from ropescale.search import Found, search

RACE_FOLDER = "race"  # a folder; those of what follows it are named after the budget, which a later run may raise
RESULT, PAGE = "recommend.json", "recommend.html"
RACING = 0.5  # of the budget
SEARCHING = 0.5  # of what the race leaves of it
LEAST = 0.6  # of the budget, that has to be left for a search to begin
PROMISE = {"samples": 20, "windows": 15}  # of each length and depth, and of text, for what is promised


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is known of a model before the race."""

    geometry: Geometry
    listed: Shortlist

    @property
    def original_length(self) -> int:
        """Tokens of pretraining."""
        return self.geometry.original_length


def recommend(options: Options, folder: Path, command: str = "") -> Advice:
    """What to do with a model that is to read so many tokens; goes on where it was stopped in the same folder.

    The folder gets recommend.json and recommend.html, each whole or not at all, beside the runs they are made of.

    Raises:
        InvalidArgumentError: a target within the original length, texts that are too short, methods that are all
            refused, a folder of other settings.
        AlreadyScaledError: scaled in its config, and `existing` is "error".
        CheckpointError: no checkpoint there, or a folder that cannot be written.
        RopescaleError: whatever an evaluation raises.
    """
    for name in (RESULT, PAGE):
        require_ordinary(folder / name, name="output")
    try_folder(folder)  # before a model is loaded and raced
    start = started(options)
    _require_same_target(folder / RACE_FOLDER, options.target_length)
    asked = evaluation(options, start)
    raced = _among(grid.run(asked, folder / RACE_FOLDER, command), asked.arms)
    decision = decide(raced)
    later = f"{options.minutes:g}m"
    found, searched = _searched(options, start, raced, folder / f"search-{later}", command)
    knobs = dict(start.listed.knobs)
    if found is not None:
        knobs[found.method.name] = found.knobs
    confirming = _confirming(asked, _first(decision), found, knobs)
    confirmed = _among(grid.run(confirming, folder / f"promise-{later}", command), confirming.arms)
    taken = _taken(decision, confirmed, found)
    advice = _advice(options, start, (raced, decision), (confirming, confirmed, taken), knobs, searched)
    write_file(folder / RESULT, json.dumps(advice.to_dict(), indent=2, default=str) + "\n", name="output")
    write_file(folder / PAGE, page(advice), name="output")
    return advice


def started(options: Options) -> Start:
    """What is known of a model before the race; nothing is written.

    Raises:
        InvalidArgumentError: a target within the original length, a model that was saved patched, methods that are all
            refused.
        AlreadyScaledError: scaled in its config, and `existing` is "error".
        CheckpointError: no checkpoint there.
    """
    config = read_config(options.loading.path(options.model))
    if (done := saved_record(text_of(config))) is not None:
        raise InvalidArgumentError(
            f"recommend: a model must be as it was published, got {options.model!r}, which was saved with "
            f"{done.method} to {done.target_length:,} tokens; name the checkpoint that it was made from"
        )
    geometry = read_geometry(config, original_length=options.original_length, existing=options.existing)
    original = geometry.original_length
    if options.target_length <= original:
        raise InvalidArgumentError(
            f"recommend: target_length must be above the original length ({original} tokens), got "
            f"{options.target_length}; within it the model needs nothing"
        )
    listed = shortlist(
        options.loading.model(options.model),
        _request(options, Request.method, {}, original),
        geometry,
        named=options.methods,
        source=options.source,
        engine=options.serve_with,
    )
    if not listed.methods:
        raced = options.methods or RACED
        raise InvalidArgumentError(
            f"recommend: a method at least must be taken by the model and what serves it, got none of "
            f"{', '.join(raced)} ({raced[0]}: {listed.left_out[raced[0]]}); name others with methods"
        )
    return Start(geometry=geometry, listed=listed)


def factor_to(target: int, original: int) -> float:
    """The factor that reaches a target: the quotient, or the next number where that is rounded below it."""
    factor = target / original
    return factor if int(factor * original) >= target else math.nextafter(factor, math.inf)


def _require_same_target(folder: Path, target: int) -> None:
    """Refuse the race of another target, whose arms would be decided between together with these.

    Raises:
        InvalidArgumentError: such a one, or a folder that cannot be read.
    """
    if (folder / "run.json").exists() and (longest := max(results.read(folder).settings.lengths)) != target:
        raise InvalidArgumentError(
            f"output: a recommendation to another target_length must have a folder of its own, got "
            f"{str(folder.parent)!r}, which holds one to {longest}; choose another folder with output=DIR"
        )


def evaluation(options: Options, start: Start) -> plan.Options:
    """The race: every method of the short list to the target, on needles and texts."""
    return plan.Options(
        model=options.model,
        methods=start.listed.methods,
        factors=(factor_to(options.target_length, start.original_length),),
        tasks=defaults(quick=True),
        lengths=lengths_to(options.target_length, start.original_length),
        samples=RACE["samples"],
        windows=RACE["windows"],
        until="decided",
        budget=RACING * options.minutes,
        texts=options.texts,
        seed=options.seed,
        target_length=options.target_length,
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
        quantization=options.quantization,
        revision=options.revision,
        attention=options.attention,
        knobs=start.listed.knobs,
        existing=options.existing,
        original_length=options.original_length,
        layers=options.layers,
    )


def lengths_to(target: int, original: int) -> tuple[int, ...]:
    """The original length, the target, and between them half of the target where that is longer than the original."""
    return tuple(sorted({original, target, *(half for half in [target // 2] if half > original)}))


def _searched(options: Options, start: Start, raced: Results, folder: Path, command: str) -> tuple[Found | None, str]:
    """Factors of the model's own, where the budget has room and the engine holds them; and what came of it."""
    spent = sum(one.seconds for one in raced.timings) / 60
    left = options.minutes - spent
    if left < LEAST * options.minutes:
        return None, f"No search: the race took {spent:.1f} of {options.minutes:g} minutes."
    found = search(
        options.loading.model(options.model),
        read_tokenizer(options.loading.path(options.model)),
        data=plan.Options(model=options.model, texts=options.texts).source,
        output=folder,
        command=command,
        quiet=False,
        target_length=options.target_length,
        budget=round(SEARCHING * left, 2),
        seed=options.seed,
        existing=options.existing,
        original_length=options.original_length,
        layers=options.layers,
    )
    told = f"A search of {found.seconds:.0f} s found factors of the model's own"
    if options.serve_with is not None:
        request = _request(options, found.method.name, found.knobs, start.original_length)
        try:
            held(options.source, request, to=options.serve_with)
        except ExportError as error:
            return None, f"{told}, which are not taken: {error}."
    return found, f"{told}, which are asked the prompts of the promise; {folder / 'search.html'} has its curve."


def _request(options: Options, method: Any, knobs: Mapping[str, Any], original: int) -> Request:
    """A method to the target, from what a user says that it starts."""
    own, beside = split_knobs(knobs)
    return Request.of(
        {**vars(options), "target_length": None},
        method=method,
        factor=factor_to(options.target_length, original),
        knobs=own,
        **beside,
    )


def _first(decision: Decision) -> Arm:
    """The arm that is taken as far as the race goes: where it cannot tell, the one that did best so far."""
    if decision.verdict in (Verdict.NOTHING, Verdict.WORSE):
        return UNPATCHED
    return decision.arm or decision.leader


def _among(found: Results, arms: Collection[Arm]) -> Results:
    """The results of these arms: a folder may hold others, which were asked for earlier and are not now."""
    cells = {key: cell for key, cell in found.cells.items() if cell.arm in arms}
    return Results(found.folder, found.settings, found.sessions, cells, found.timings)


def _confirming(
    asked: plan.Options, first: Arm, found: Found | None, knobs: Mapping[str, Mapping[str, Any]]
) -> plan.Options:
    """What was taken and what was found, on prompts of another seed."""
    methods = tuple(dict.fromkeys([first.method, *([] if found is None else [found.method.name])]))
    return dataclasses.replace(
        asked,
        methods=methods,
        knobs={name: knobs[name] for name in methods if name in knobs},
        samples=PROMISE["samples"],
        windows=PROMISE["windows"],
        until="finished",
        budget=None,
        lengths=(asked.lengths[0], asked.lengths[-1]),
        seed=asked.seed + 1,
    )


def _taken(decision: Decision, confirmed: Results, found: Found | None) -> Arm:
    """What is taken in the end: what the search found only where it is shown to be better than what was raced."""
    if found is not None:
        again = decide(confirmed)
        if again.arm is not None and again.arm.method == found.method.name and not again.ties:
            return again.arm
    return _first(decision)


def _advice(
    options: Options,
    start: Start,
    race: tuple[Results, Decision],
    confirmed: tuple[plan.Options, Results, Arm],
    knobs: Mapping[str, Mapping[str, Any]],
    searched: str,
) -> Advice:
    """Everything that was found out, in one place."""
    (raced, decision), (confirming, again, taken) = race, confirmed
    findings = read_findings(raced if taken in raced.arms() else again)
    original, target = start.original_length, options.target_length
    given = {} if taken == UNPATCHED else knobs.get(taken.method, {})
    written = Written(
        model=options.source,
        method=None if taken == UNPATCHED else taken.method,
        knobs=given,
        target_length=target,
        existing=options.existing,
        layers=options.layers,
        original_length=options.original_length,
    )
    promise = Promise(
        arm=taken,
        found=figures.found_at(again, taken, target),
        own=figures.found_at(again, taken, original),
        unpatched=figures.found_at(again, UNPATCHED, target),
        perplexity=figures.perplexity_between(again, taken, original, target),
        inside=figures.change_between(again, taken, 0, original),
    )
    request, form = _request(options, written.name, given, original), ""
    if options.serve_with is not None:
        form = held(options.source, request, to=options.serve_with).form
    worth, training = wording.training_text(promise, run := nearest(target / original))
    return Advice(
        model=options.model,
        original_length=original,
        target_length=target,
        serve_with=options.serve_with,
        verdict=[verdict(findings), *reasons(findings)],
        lines=_lines(raced, decision, again, taken, knobs, target),
        left_out=start.listed.left_out,
        taken=written,
        promise=promise,
        memory=cost.memory_at(options.source, (original, target)),
        slower=cost.slower(options.loading.model(options.model), request, target),
        form=form,
        training=training,
        searched=searched,
        commands=_commands(options, written, run if worth else None, confirming),
    )


def _lines(
    raced: Results,
    decision: Decision,
    again: Results,
    taken: Arm,
    knobs: Mapping[str, Mapping[str, Any]],
    target: int,
) -> list[Line]:
    """The arms of the race, best first, and what a search found beside them."""
    original = raced.settings.original_length

    def line(results: Results, arm: Arm, standing: str) -> Line:
        return Line(
            arm=arm,
            knobs=knobs.get(arm.method, {}),
            found=figures.found_at(results, arm, target),
            perplexity=figures.perplexity_between(results, arm, original, target),
            inside=figures.change_between(results, arm, 0, original),
            standing=standing,
        )

    lines = [line(raced, arm, wording.standing_text(arm, decision, taken)) for arm in raced.arms()]
    more = [arm for arm in again.arms() if arm not in raced.arms()]
    lines += [line(again, arm, "taken" if arm == taken else "found by the search, on other prompts") for arm in more]
    worst = math.inf
    return sorted(
        lines, key=lambda one: (one.arm != taken, -one.found.rate, one.perplexity if one.perplexity else worst)
    )


def _commands(options: Options, written: Written, run: Trained | None, confirming: plan.Options) -> list[Command]:
    """What to type next."""
    commands = [written.write(options.serve_with)]
    if options.serve_with is None:
        commands.append(written.check(dataclasses.replace(confirming, seed=confirming.seed + 1)))
    if run is not None:
        method = written.name if written.in_config and written.method else run.method
        words = run.again(options.source, method, options.target_length, options.texts)
        commands.append(Command(purpose=f"train it by the recipe {run.recipe}", line=ropescale_line(words)))
    return commands
