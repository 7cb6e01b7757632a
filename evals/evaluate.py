"""`ropescale.evaluate`: what `ropescale eval` does, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ropescale.checks import several
from ropescale.evals import grid, plan, report
from ropescale.evals.results import Results
from ropescale.evals.tasks.base import defaults
from ropescale.trust import takes_trust


@takes_trust
def evaluate(
    model: str | Path,
    *,
    methods: Sequence[str] = ("linear", "ntk", "by_parts", "yarn"),
    factors: Sequence[float] = (2.0,),
    tasks: Sequence[str] = defaults(),
    lengths: Sequence[int] = (),
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    samples: int = 10,
    windows: int = 3,
    output: str | Path | None = None,
    knobs: Mapping[str, Mapping[str, Any]] | None = None,
    adapters: Sequence[str | Path] = (),
    trust_remote_code: bool = False,
    **options: Any,
) -> Results:
    """Evaluate a model unpatched and patched with methods at factors, and write the report beside the results.

    The same as `ropescale eval`, with its options as arguments: results go into a folder, a run that was stopped goes
    on where it was when it is called again, and the folder gets report.html, report.md, report.json, model-card.md and
    evaluate.json.

    Args:
        model: a short name, a path or a hub id.
        methods: names of the registry, or "none" for the model as it is; the unpatched model always runs too.
        factors: target / original length.
        tasks: as `ropescale eval --help` lists them.
        lengths: tokens; the original length and every factor times it if empty.
        depths: of needles, from 0 to 1.
        samples: prompts per length, and per depth where there are any.
        windows: of a perplexity task, at most.
        output: the folder of results; out/eval-MODEL if not given.
        knobs: of methods, by their names.
        adapters: folders of trained adapters: one with a record is an arm, a plain one stands on the model as it is
            and on every method.
        trust_remote_code: run Python code that lies in the checkpoint.
        options: any other field of `ropescale.evals.plan.Options`: stride, texts, evaluator, limit, seed, dtype,
            device, backend, chat, include_path, metadata, existing, original_length ...

    Example:
        >>> import ropescale
        >>> from pathlib import Path
        >>> results = ropescale.evaluate("tiny", methods=["yarn"], tasks=["passkey"], samples=1, output="results")
        >>> Path("results", "report.html").is_file()
        True

    Raises:
        InvalidArgumentError: options that do not fit the model or one another, or a folder of other settings.
        CheckpointError: no checkpoint there, or results that cannot be written.
        RopescaleError: whatever `patch` raises; a model that returns something that is not a number.
        TypeError: an option that there is not.
    """
    chosen = plan.Options(
        model=str(model),
        methods=several("eval: methods", methods, str, "names of methods"),
        factors=several("eval: factors", factors, Real, "numbers"),
        tasks=several("eval: tasks", tasks, str, "names of tasks"),
        lengths=several("eval: lengths", lengths, int, "whole numbers of tokens"),
        depths=several("eval: depths", depths, Real, "shares from 0 to 1"),
        samples=samples,
        windows=windows,
        knobs={} if knobs is None else knobs,
        adapters=tuple(map(str, several("eval: adapters", adapters, (str, Path), "paths of folders"))),
        **options,
    )
    unasked = {field.name: field.default for field in dataclasses.fields(plan.Options)}
    plan.require_read(chosen, {name for name in plan.PART if getattr(chosen, name) != unasked[name]})
    folder = Path("out", f"eval-{Path(model).name}") if output is None else Path(output)
    results = grid.run(chosen, folder, f"ropescale.evaluate({str(model)!r}, ...)")
    report.write(folder)
    return results
