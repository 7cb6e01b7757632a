"""What may come next, as a line to paste: a verb that went well ends with it."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ropescale import listing, outside

if TYPE_CHECKING:
    from ropescale.evals.results import Results


def say_next(*words: object) -> int:
    """Say what may come next; returns the exit code of what went well."""
    print(f"next: {shlex.join(['ropescale', *outside.options(), *map(str, words)])}")
    return 0


def say_again(command: str, *, without: str) -> int:
    """Say the command itself without the option that had it only tell; returns the exit code of what went well."""
    print(f"next: {shlex.join(word for word in shlex.split(command) if word != without)}")
    return 0


def after_results(results: "Results", adapters: Sequence[str]) -> list[str]:
    """What follows from an evaluation: to write the arm that is recommended, or to train one."""
    from ropescale.evals.report.findings import read_findings
    from ropescale.methods import FixedMethod, get_method

    best, model = read_findings(results).best, results.settings.model
    if best is None:
        factor = max((arm.factor for arm in results.arms()), default=1.0)
        if factor == 1:
            return ["eval", model, "--methods", "yarn", "--factors", "2", "--quick"]
        return ["train", "pose", "--model", model, "--method", "yarn", "--factor", f"{factor:g}"]
    method, trained = best.arm.method.partition("+")[0], best.arm.adapter
    longer = f"out/{Path(model).name}-{method if not best.arm.unextended else trained}-x{best.arm.factor:g}"
    folder = next((one for one in adapters if Path(one).resolve().name == trained), trained)
    if trained and (best.arm.unextended or f"none+{trained}" not in results.settings.adapters):
        return ["merge", folder, longer, "--base", model]
    at_best = ["--factor", f"{best.arm.factor:g}"]
    if not issubclass(get_method(method), FixedMethod):  # which is tried on a loaded model, and saved from there
        return ["explain", model, "--methods", method, *at_best]
    knobs = results.settings.knobs.get(method)
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
