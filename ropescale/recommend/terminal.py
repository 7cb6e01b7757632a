"""An advice in a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from ropescale.console import Console
from ropescale.recommend import wording
from ropescale.recommend.advice import Advice


def print_advice(advice: Advice, console: Console) -> None:
    """The verdict, the ranked table, what is promised, what it costs, and every next command."""
    original, target = advice.original_length, advice.target_length
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    *figures, _ = wording.columns(original, target)
    for name in figures:
        table.add_column(name, justify="left" if name == figures[0] else "right")
    for one in advice.lines:
        style = "bold" if one.arm == advice.promise.arm else ""
        *entries, _ = wording.entries(one)
        table.add_row(*(Text(entry, style=style) for entry in (wording.arm_text(one.arm), *entries)))
    console.print(table)
    for one in advice.lines:
        given = f" ({wording.knobs_text(one.knobs)})" if one.knobs else ""
        console.print(f"{wording.arm_text(one.arm)}{given}: {one.standing}", highlight=False, markup=False)
    said = [
        advice.verdict[0],
        *wording.promise_text(advice.promise, original, target),
        *wording.memory_text(advice),
        wording.time_text(advice),
        wording.serving_text(advice.serve_with, advice.form),
        *advice.training,
        advice.searched,
    ]
    for sentence in filter(None, said):
        console.print(sentence, highlight=False, markup=False)
    for command in advice.commands:
        console.print(f"\n{command.purpose}:", highlight=False, markup=False)
        console.print(f"  {command.line}", highlight=False, markup=False, soft_wrap=True)
