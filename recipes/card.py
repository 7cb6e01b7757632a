"""The README.md of a trained folder: what training made of the base, and what it changed. Pure."""

from __future__ import annotations

from pathlib import Path

from ropescale import cards
from ropescale.recipes.run import Run

SHOWN = {"perplexity": "{:.2f}", "passkey": "{:.0%}"}


def card(run: Run, *, adapter: bool) -> str:
    """The text; of a base that is a folder here, its name alone is told."""
    settings = run.settings
    loss = settings.get("loss", "plain")  # runs of earlier versions do not say it
    by = "" if loss == "plain" else f" with loss {loss}"
    recipe = Path(str(settings["recipe"])).stem
    return cards.card(
        dict(run.record),
        base=str(settings["model"]),
        adapter=adapter,
        trained=f"for {run.steps:,} steps by `ropescale train {recipe}`{by}",
        figures=[
            (said, SHOWN[name].format(before), SHOWN[name].format(after))
            for name, said, before, after in run.compared()
        ],
    )
