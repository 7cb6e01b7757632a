"""What may come next, as a line to paste: a verb that went well ends with it."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ropescale import listing, outside

if TYPE_CHECKING:
    from ropescale.evals.decision.need import Need
    from ropescale.evals.results import Results


def say_next(*words: object) -> int:
    """Say what may come next; returns the exit code of what went well."""
    print(f"next: {shlex.join(['ropescale', *outside.options(), *map(str, words)])}")
    return 0


def say_eval(model: object, *words: object) -> int:
    """Say to evaluate a checkpoint next, or to inspect it where it has no head over the vocabulary to evaluate.

    Returns the exit code of what went well.
    """
    from ropescale.checkpoints import resolve
    from ropescale.contents import read_config
    from ropescale.errors import RopescaleError
    from ropescale.heads import require_language_model
    from ropescale.trust import trusted

    try:
        require_language_model(read_config(resolve(str(model))), str(model), trusted=trusted())
    except RopescaleError:  # which evaluating would refuse
        return say_next("inspect", model)
    return say_next("eval", model, *words)


def say_again(command: str, *, without: str) -> int:
    """Say the command itself without the option that had it only tell; returns the exit code of what went well."""
    print(f"next: {shlex.join(word for word in shlex.split(command) if word != without)}")
    return 0


def _more(results: "Results", need: "Need") -> list[str]:
    """The command of an evaluation with as many more prompts, or windows where these cost less, as would decide it.

    Nothing where its last command cannot be given again, or no number of either is known.
    """
    words = shlex.split(results.session.command or "")
    if words[:1] != ["ropescale"] or "eval" not in words:
        return []
    given = words[words.index("eval") :]
    wanted = [
        (minutes if minutes is not None else math.inf, f"--{name}", more)
        for name, more, minutes in (
            ("samples", need.rounds, need.rounds_minutes),
            ("windows", need.windows, need.windows_minutes),
        )
        if more is not None
    ]
    if not wanted:
        return []
    _, option, more = min(wanted)
    for name in (option, "--output"):
        if name in given:
            at = given.index(name)
            given = [*given[:at], *given[at + 2 :]]
    had = [knobs.get(option[2:], 0) for knobs in results.settings.tasks.values()]
    return [*given, option, str(max(had) + more), "--output", str(results.folder)]


def after_results(results: "Results", adapters: Sequence[str]) -> list[str]:
    """What follows from an evaluation: to write the arm to take, to ask more where none is told, or to train one."""
    from ropescale.evals.decision.verdict import Verdict
    from ropescale.evals.report.findings import read_findings
    from ropescale.methods import FixedMethod, get_method
    from ropescale.request import split_knobs

    findings, model = read_findings(results), results.settings.model
    best, decision = findings.best, findings.decision
    if best is None:
        if decision.verdict is Verdict.FEW and decision.need is not None and (more := _more(results, decision.need)):
            return more
        if decision.verdict in (Verdict.NOTHING, Verdict.WITHIN):
            return ["chat", model]
        factor = max((arm.factor for arm in results.arms()), default=1.0)
        if factor == 1:
            return ["eval", model, "--methods", "yarn", "--factors", "2", "--quick"]
        return ["train", "pose", "--model", model, "--method", "yarn", "--factor", f"{factor:g}"]
    method, trained = best.arm.method.partition("+")[0], best.arm.adapter
    longer = f"out/{Path(model).name}-{method if not best.arm.unextended else trained}-x{best.arm.factor:g}"
    folder = next((adapter for adapter in adapters if Path(adapter).resolve().name == trained), trained)
    if trained and (best.arm.unextended or f"none+{trained}" not in results.settings.adapters):
        return ["merge", folder, longer, "--base", model]
    at_best = ["--factor", f"{best.arm.factor:g}"]
    knobs = results.settings.knobs.get(method)
    beside = split_knobs(knobs or {})[1]
    if beside or not issubclass(get_method(method), FixedMethod):  # tried on a loaded model, and saved from there
        more = ["--knobs", json.dumps({method: knobs})] if knobs else []
        return ["explain", model, "--methods", method, *at_best, *more]
    more = ["--knobs", json.dumps(knobs)] if knobs else []
    for name, value, default in (
        ("--existing", results.settings.existing, "error"),
        ("--layers", results.settings.layers, "global"),
    ):
        more += [name, value] if value != default else []
    if trained:
        plain = next(name for name, engine in listing.engines().items() if engine.plain)
        at_best = ["--to", plain, "--adapter", folder, *at_best]
    return ["export" if trained else "rescale", model, longer, "--method", method, *at_best, *more]
