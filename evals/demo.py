"""The main job in small: what `ropescale demo` compares on a model, with the engine and report of `ropescale eval`.

What it trains beforehand, on the embedded model alone, is the recipe `demo`.
"""

from __future__ import annotations

from ropescale.evals.plan import Options
from ropescale.evals.tasks.base import every


def default_options(model: str) -> Options:
    """The defaults for a model: the embedded one affords more than a real one does on a CPU."""
    if model == "tiny":
        return Options(model=model, factors=(2.0, 4.0, 8.0), windows=15)
    if model == "smollm2":
        # 12,288: unpatched it breaks beyond 10,000
        return Options(
            model=model,
            tasks=tuple(task.name for task in every() if task.default and (task.quick or not task.has_length)),
            lengths=(4096, 12288),
            depths=(0.0, 0.5, 1.0),
            samples=1,
        )
    return Options(model=model)
