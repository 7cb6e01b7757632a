"""Pieces of HTML that every page has. Everything that is text is escaped here and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Characters that a page would drop, or that would reorder what stands beside them
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


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


def shown(text: object, limit: int = 4000) -> str:
    """Text from outside, at most `limit` characters of it, without what cannot be written or would hide the rest."""
    plain = INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", str(text))
    return plain if len(plain) <= limit else f"{plain[:limit]} […]"


def text(value: object, limit: int = 4000) -> str:
    """Text from outside as HTML."""
    return escape(shown(value, limit))


def number(value: float) -> str:
    """A number as short as three digits allow, whole ones in full."""
    if not math.isfinite(value):
        return "none" if math.isnan(value) else "∞"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    if value == round(value) and abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """Name, value and a small line of each, as a row of cards; nothing where there are none."""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(small)}</small></dd></div>"
        for name, value, small in facts
    )
    return f'<dl class="tiles">{items}</dl>' if items else ""


def paragraph(sentences: Sequence[str], css: str = "") -> str:
    """Sentences as one paragraph; nothing where there are none."""
    return f"<p{class_of(css)}>{text(' '.join(sentences))}</p>" if sentences else ""


def section(identifier: str, title: str, *parts: str) -> str:
    """A part of the page with its heading."""
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{identifier}"><h2 id="{identifier}">{text(title)}</h2>\n{body}\n</section>'


def details(summary: str, *parts: str, long: bool = False) -> str:
    """What is folded away until somebody asks; on paper it is open unless it is long."""
    return (
        f"<details{class_of('long' if long else '')}><summary>{text(summary)}</summary>\n{''.join(parts)}\n</details>"
    )


def table(caption: str, columns: Sequence[str], groups: Sequence[Sequence[Line]], css: str = "") -> str:
    """A table in a region of its own, which scrolls where the screen is narrow and can be reached by the keyboard."""
    heads = max((len(line.heads) for lines in groups for line in lines), default=1)
    head = "".join(
        f'<th scope="col"{class_of("text") if i < heads else ""}>{text(name)}</th>' for i, name in enumerate(columns)
    )
    bodies = "".join(f"<tbody>{''.join(map(_line, lines))}</tbody>" for lines in groups)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
        f"<table{class_of(css)}><caption><span>{text(caption)}</span></caption><thead><tr>{head}</tr></thead>{bodies}</table></div>"
    )


def facts(caption: str, rows: Mapping[str, str]) -> str:
    """Names and what they stand for, in two columns."""
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows.items()
    )
    return f'<table class="facts"><caption class="aside">{text(caption)}</caption><tbody>{lines}</tbody></table>'


def _line(line: Line) -> str:
    first, *others = line.heads
    picked = '<span class="aside"> (recommended)</span>' if line.css == "pick" else ""
    heads = f'<th scope="row">{text(first, 60)}{picked}</th>' + "".join(
        f'<td class="text">{text(name, 60)}</td>' for name in others
    )
    cells = "".join(cell.html if isinstance(cell, Raw) else _value(cell) for cell in line.values)
    return f"<tr{class_of(line.css)}>{heads}{cells}</tr>"


def _value(value: Value) -> str:
    css = " ".join(name for name in (value.css, "best" if value.best else "") if name)
    said = '<span class="aside"> (best)</span>' if value.best else ""
    small = "".join(f"<small>{text(note)}</small>" for note in value.small)
    return f"<td{class_of(css)}>{text(value.text)}{said}{small}</td>"


def class_of(css: str) -> str:
    """The attribute of a style, where there is one."""
    return f' class="{css}"' if css else ""
