"""The comparison of two folders in a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from ropescale.console import Console
from ropescale.evals.paired.differences import Differences
from ropescale.evals.paired.tables import COLUMNS, lines
from ropescale.evals.paired.wording import arms_text, heading, left_out, reasons


def print_differences(made: Differences, console: Console) -> None:
    """A line for every figure, by arms; then what is claimed, and what is left out."""
    for arms in made.pairing.arms:
        if not (found := lines(made, arms)):
            continue
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
        table.title = Text(arms_text(made.pairing, arms), style="bold")
        for name in COLUMNS[:-1]:
            table.add_column(name, justify="left" if name in ("task", "tokens") else "right")
        for line in found:
            table.add_row(*map(Text, line.cells[:-1]))
        console.print(table)
    for sentence in (heading(made), *reasons(made), *left_out(made)):
        console.print(sentence, highlight=False, markup=False)
