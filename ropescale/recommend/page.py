"""The page of an advice: one HTML file that opens from disk."""

from __future__ import annotations

from ropescale.pages.document import document
from ropescale.pages.elements import Line as Row
from ropescale.pages.elements import Value, facts, paragraph, table, text
from ropescale.recommend import wording
from ropescale.recommend.advice import Advice
from ropescale.version import __version__


def page(advice: Advice) -> str:
    """The whole page."""
    original, target = advice.original_length, advice.target_length
    rows = [
        Row(
            heads=[wording.arm_text(one.arm)],
            values=[
                Value(text=entry, small=[wording.knobs_text(one.knobs)] if not number and one.knobs else [])
                for number, entry in enumerate(wording.entries(one))
            ],
            css="pick" if one.arm == advice.promise.arm else "",
        )
        for one in advice.lines
    ]
    commands = "".join(
        f"<p>{text(one.purpose)}</p><pre><code>{text(one.line)}</code></pre>" for one in advice.commands
    )
    promised = wording.promise_text(advice.promise, original, target)
    served = wording.serving_text(advice.serve_with, advice.form)
    return document(
        title=f"{advice.model} to {target:,} tokens",
        kicker=f"ropescale {__version__}, recommend",
        heading=f"What to do with {advice.model}, to read {target:,} tokens",
        opening=paragraph(advice.verdict[:1]),
        sections={
            "promise": ("What is promised", paragraph(promised)),
            "next": ("What to type next", commands),
            "race": (
                "What was raced",
                table("The arms, best first", wording.columns(original, target), [rows])
                + "".join(paragraph([sentence]) for sentence in (*advice.verdict[1:], advice.searched)),
            ),
            "cost": (
                "What it costs",
                paragraph([*wording.memory_text(advice), wording.time_text(advice), *filter(None, [served])]),
            ),
            "training": ("Whether to train", paragraph(advice.training)),
            "left-out": ("What was not raced", facts("Method, and why", advice.left_out)),
        },
    )
