"""What a search writes: its result as JSON, the knobs alone, and a page.

The page shows the curve of the search, the found stretches beside those of formulas, and the comparison on held-out
samples.
"""

from __future__ import annotations

import json
from pathlib import Path

from ropescale.destinations import write_file
from ropescale.evals.statistics import Estimate
from ropescale.methods import FixedMethod, Method
from ropescale.pages.chart import Axis, Chart, Curve, drawn, legend
from ropescale.pages.document import document
from ropescale.pages.elements import Line, Value, details, facts, number, paragraph, table
from ropescale.search.result import FOUND, MEASURES, UNPATCHED, Found
from ropescale.search.space import stretches_of, usual

RESULT, KNOBS, PAGE = WRITTEN = "search.json", "knobs.json", "search.html"


def write(found: Found, folder: Path) -> Path:
    """Write search.json, knobs.json and search.html into a folder, and return the path of the page.

    Raises:
        InvalidArgumentError: a folder, a link or a device is in the way.
        CheckpointError: the folder cannot be written.
    """
    texts = {
        RESULT: json.dumps(found.to_dict(), indent=2) + "\n",
        KNOBS: json.dumps(found.knobs) + "\n",
        PAGE: page(found),
    }
    for name, text in texts.items():
        write_file(folder / name, text, name="output")
    return folder / PAGE


def page(found: Found) -> str:
    """The whole page as HTML."""
    sections = {
        "compared": ("Against formulas", _compared(found)),
        "stretches": ("What was found", _stretches(found)),
        "curve": ("How it was found", _curve(found)),
        "made": ("How this was made", _made(found)),
    }
    return document(
        title=f"ropescale: a search at {found.target_length:,} tokens",
        kicker=f"ropescale search · {found.target_length:,} tokens · {found.method.name}",
        heading=verdict(found),
        sections=sections,
        closing="Written by ropescale from search.json beside this file.",
    )


def verdict(found: Found) -> str:
    """What was found in a sentence: each difference with whether its interval tells it from nothing."""
    said = []
    for measure in found.measures:
        if measure == "short":
            continue
        other = found.best(measure)
        estimate = found.against(other, measure)
        told = (
            "less than" if estimate.high < 0 else "more than" if estimate.low > 0 else "what cannot be told from that"
        )
        said.append(f"{MEASURES[measure]} costs {told} under {other} ({_difference(estimate)} nats)")
    return f"{found.method.name} x{found.method.factor:.4g}, found by search: {'; '.join(said)}"


def _difference(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f}, {estimate.low:+.3f} to {estimate.high:+.3f}"


def _compared(found: Found) -> str:
    """A line for every arm, and beneath each loss how much less the found method costs."""
    lines = []
    for name, arm in found.arms.items():
        values = []
        for measure in found.measures:
            mean = arm.mean(measure)
            best = mean == min(one.mean(measure) for one in found.arms.values())
            small = [] if name == FOUND else [f"found: {_difference(found.against(name, measure))}"]
            values.append(Value(text=f"{mean:.3f}", small=small, best=best))
        lines.append(Line(heads=[name], values=values, css="pick" if name == FOUND else ""))
    arm = found.arms[FOUND]
    return paragraph(
        [
            f"Loss in nats a token on {len(arm.text)} windows and {len(arm.needle)} needles that no candidate was "
            f"judged by; less is better. Beneath each, how much more the found method costs on the same samples, with "
            f"the 95 % interval: one that does not hold 0 tells the two apart. The formulas are those that cost least "
            f"on the samples of the search."
        ]
    ) + table("Held-out samples", ["", *(MEASURES[measure] for measure in found.measures)], [lines])


def _stretches(found: Found) -> str:
    """By how much each pair is slowed, beside formulas; the knobs alone where nothing is slowed."""
    said = details("knobs", facts("Knobs", {name: str(value) for name, value in found.knobs.items()}))
    if not isinstance(found.method, FixedMethod):
        return said
    factor = float(found.method.factor)
    methods: dict[str, Method | None] = {FOUND: found.method, **{name: usual(name, factor) for name in found.formulas}}
    rows = {
        name: stretches_of(method, found.geometry).tolist()
        for name, method in methods.items()
        if isinstance(method, FixedMethod)
    }
    pairs = range(found.geometry.pairs)
    curves = {name: Curve(series=1 + i, x=pairs, y=row) for i, (name, row) in enumerate(rows.items())}
    ceiling = 4 * factor  # a pair without position has no stretch to draw
    chart = Chart(
        label="By how much each pair is slowed, found and by formula",
        curves=[*curves.values()],
        x=Axis(label="pair, the fastest first"),
        y=Axis(label="stretch", logarithmic=True, limits=(0.8, ceiling)),
    )
    lines = [
        Line(heads=[str(pair)], values=[Value(text=number(row[pair])) for row in rows.values()]) for pair in pairs
    ]
    factors = {
        f"attention factor, {name}": number(method.spectrum(found.geometry).attention_factor)
        for name, method in methods.items()
        if isinstance(method, FixedMethod)
    }
    return (
        legend(curves)
        + f'<div class="grid"><figure>{drawn(chart)}</figure></div>'
        + facts("Attention factors", factors)
        + details("numbers", table("Stretch of each pair", ["pair", *rows], [lines]))
        + said
    )


def _curve(found: Found) -> str:
    """The best and the median candidate of each generation, by candidates so far."""
    x = [step.candidates for step in found.steps]
    curves = {
        "best of a generation": Curve(series=1, x=x, y=[step.best for step in found.steps]),
        "median": Curve(series=2, x=x, y=[step.middle for step in found.steps]),
    }
    chart = Chart(
        label="How much less candidates cost than the start, by candidates judged",
        curves=[*curves.values()],
        x=Axis(label="candidates"),
        y=Axis(label="nats less than the start"),
    )
    return (
        paragraph(
            [
                f"Begun at {found.start}. A candidate is held against the start on the same batch of samples; batches "
                f"take turns, so neighbouring points differ by their samples too. A candidate whose first half of a "
                f"batch is among the worse ones is read no further. What came of it was chosen on all batches among "
                f"the start, the mean of the last generation and the best candidates."
            ]
        )
        + legend(curves)
        + f'<div class="grid"><figure>{drawn(chart)}</figure></div>'
    )


def _made(found: Found) -> str:
    rows = {
        "command": found.command or "ropescale.search.search",
        "candidates": f"{found.steps[-1].candidates:,}",
        "seconds": f"{found.seconds:,.0f}",
        "unpatched": f"{found.arms[UNPATCHED].mean('short'):.3f} nats a token within the original length",
    }
    settings = facts("Settings", {name: str(value) for name, value in found.settings.items()})
    return facts("The search", rows) + details("All settings", settings)
