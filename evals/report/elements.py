"""Pieces of HTML that the report alone has: heat maps, lengths with a bar, and comparisons of arms as tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ropescale.evals.report.findings import Findings, Row
from ropescale.evals.report.tables import Comparison, heads
from ropescale.evals.report.wording import NOTHING, rate_text, reach_text
from ropescale.pages.elements import Line, Raw, Value, table, text


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One cell of a heat map."""

    rate: float  # from 0 to 1
    small: str
    said: str  # its interval and count in words, as a tooltip


def heat_map(
    caption: str, corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Heat | None]], css: str = ""
) -> str:
    """A table whose cells are coloured by their share, which also stands in them."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(map(_heat, cells))}</tr>' for name, cells in rows.items()
    )
    return (
        f'<figure><table class="heat{" " + css if css else ""}"><caption>{text(caption)}</caption><thead><tr>'
        f'<th scope="col">{text(corner)}</th>{head}</tr></thead><tbody>{lines}</tbody></table></figure>'
    )


def reach_cell(length: int | None, least: int | None, original: int, longest: int) -> Raw:
    """A length in tokens with a bar as long as its share of the longest one, and a tick at the original length."""
    if length is None:
        return Raw(html=f"<td>{NOTHING}</td>")
    bar = f'<i aria-hidden="true" style="--w: {length / longest:.3f}; --l: {original / longest:.3f}"></i>'
    return Raw(html=f'<td class="reach text"><b>{reach_text(length, least)}</b>{bar}</td>')


def _heat(cell: Heat | None) -> str:
    if cell is None or math.isnan(cell.rate):
        return f'<td class="none">{NOTHING}</td>'
    return (
        f'<td style="--share: {cell.rate:.2f}" title="{text(cell.said)}">{rate_text(cell.rate)}'
        f"<small>{text(cell.small)}</small></td>"
    )


def identifier(name: str) -> str:
    """Of the section of a task or a group by that name."""
    return "task-" + re.sub(r"[^\w-]", "-", name.lower())


def comparison_table(caption: str, made: Comparison, findings: Findings, best: Row | None = None) -> str:
    """A comparison as a table of the page, with the recommended arm ticked."""
    groups = [
        [
            Line(
                heads=heads(arm, findings),
                values=[Value(text=one.text, small=one.small, best=one.best) for one in entries],
                css="pick" if best is not None and arm == best.arm else "",
            )
            for arm, entries in lines
        ]
        for lines in made.groups
    ]
    return table(caption, ["method", "factor", *made.columns], groups)


def code(said: object) -> str:
    """A block of code whose long lines are wrapped."""
    return f'<pre class="wrap"><code>{text(said)}</code></pre>'
