"""comparison.md, from the same sentences and tables as the page."""

from __future__ import annotations

from collections.abc import Sequence

from ropescale.evals.paired.differences import Differences
from ropescale.evals.paired.tables import COLUMNS, lines, settings
from ropescale.evals.paired.wording import arms_text, heading, left_out, reasons, rules
from ropescale.evals.report.markdown import plain


def differences_markdown(made: Differences) -> str:
    """The whole comparison."""
    one, other = made.pairing.folders
    parts = [
        f"# {plain(heading(made))}",
        f"A: {plain(one.folder)}  \nB: {plain(other.folder)}",
        "\n".join(f"- {plain(sentence)}" for sentence in reasons(made)),
        " ".join(map(plain, left_out(made))),
    ]
    for arms in made.pairing.arms:
        if found := lines(made, arms):
            parts += [f"## {plain(arms_text(made.pairing, arms))}", _table(COLUMNS, [line.cells for line in found])]
    unlike = settings(made)
    parts += [
        "## What differs besides",
        _table(("setting", "A", "B"), unlike) if unlike else "All settings are the same.",
        *(f"<sub>{plain(rule)}</sub>" for rule in rules(made)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lined = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        f"| {' | '.join(plain(cell) if row is not lined[1] else cell for cell in row)} |" for row in lined
    )
