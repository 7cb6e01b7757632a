"""Pieces of HTML: tables, heat maps, figures. Everything that is text is escaped here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ropescale.evals.report.wording import NOTHING, rate_text, reach_text, shown


@dataclass(frozen=True, kw_only=True)
class Value:
    """What stands in one cell of a table."""

    text: str
    small: Sequence[str] = ()  # lines beneath it: intervals, counts
    best: bool = False  # of its group and column: in bold, and said
    css: str = ""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A cell that is HTML already."""

    html: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table."""

    heads: Sequence[str]  # the first names the row
    values: Sequence[Value | Raw]
    css: str = ""  # "pick" for the recommended arm


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One cell of a heat map."""

    rate: float  # from 0 to 1
    small: str
    said: str  # its interval and count in words, as a tooltip


def text(value: object, limit: int = 4000) -> str:
    """Text from outside as HTML."""
    return escape(shown(value, limit))


def paragraph(sentences: Sequence[str], css: str = "") -> str:
    """Sentences as one paragraph; nothing where there are none."""
    return f"<p{_class(css)}>{text(' '.join(sentences))}</p>" if sentences else ""


def section(identifier: str, title: str, *parts: str) -> str:
    """A part of the page with its heading."""
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{identifier}"><h2 id="{identifier}">{text(title)}</h2>\n{body}\n</section>'


def details(summary: str, *parts: str, long: bool = False) -> str:
    """What is folded away until somebody asks; on paper it is open unless it is long."""
    return f"<details{_class('long' if long else '')}><summary>{text(summary)}</summary>\n{''.join(parts)}\n</details>"


def table(caption: str, columns: Sequence[str], groups: Sequence[Sequence[Line]], css: str = "") -> str:
    """A table in a region of its own, which scrolls where the screen is narrow and can be reached by the keyboard."""
    heads = max((len(line.heads) for lines in groups for line in lines), default=1)
    head = "".join(
        f'<th scope="col"{_class("text") if i < heads else ""}>{text(name)}</th>' for i, name in enumerate(columns)
    )
    bodies = "".join(f"<tbody>{''.join(map(_line, lines))}</tbody>" for lines in groups)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
        f"<table{_class(css)}><caption><span>{text(caption)}</span></caption><thead><tr>{head}</tr></thead>{bodies}</table></div>"
    )


def facts(caption: str, rows: Mapping[str, str]) -> str:
    """Names and what they stand for, in two columns."""
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows.items()
    )
    return f'<table class="facts"><caption class="aside">{text(caption)}</caption><tbody>{lines}</tbody></table>'


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


def _line(line: Line) -> str:
    first, *others = line.heads
    picked = '<span class="aside"> (recommended)</span>' if line.css == "pick" else ""
    heads = f'<th scope="row">{text(first, 60)}{picked}</th>' + "".join(
        f'<td class="text">{text(name, 60)}</td>' for name in others
    )
    cells = "".join(one.html if isinstance(one, Raw) else _value(one) for one in line.values)
    return f"<tr{_class(line.css)}>{heads}{cells}</tr>"


def _value(value: Value) -> str:
    css = " ".join(name for name in (value.css, "best" if value.best else "") if name)
    said = '<span class="aside"> (best)</span>' if value.best else ""
    small = "".join(f"<small>{text(one)}</small>" for one in value.small)
    return f"<td{_class(css)}>{text(value.text)}{said}{small}</td>"


def _heat(cell: Heat | None) -> str:
    if cell is None or math.isnan(cell.rate):
        return f'<td class="none">{NOTHING}</td>'
    return (
        f'<td style="--share: {cell.rate:.2f}" title="{text(cell.said)}">{rate_text(cell.rate)}'
        f"<small>{text(cell.small)}</small></td>"
    )


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""
