"""The page of a training run: training.html, one file that opens from disk, with what training changed first.

In the look of the evaluation's report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ropescale.evals.report.wording import NOTHING, rate_text
from ropescale.pages.chart import Axis, Chart, Curve, drawn, legend
from ropescale.pages.document import document
from ropescale.pages.elements import Line, Value, details, facts, paragraph, table
from ropescale.recipes.run import Figures, Run

POINTS = 400  # of a loss curve at most
SHARES = (0, 0.2, 0.4, 0.6, 0.8, 1)  # ticks


def page(run: Run) -> str:
    """The whole page as HTML."""
    settings = run.settings
    sections = {
        "change": ("Before and after", _change(run)),
        "position": ("Perplexity by position", _by_position(run)),
        "curves": ("While it trained", _curves(run.log)),
        "scale": ("Logit scale", _logit_scale(run.logit_scale)),
        "data": ("Data", _data(run.account)),
        "made": ("How this was made", _provenance(run)),
    }
    return document(
        title=f"ropescale: {settings['recipe']} on {settings['model']}",
        kicker=f"ropescale train {settings['recipe']} · {settings['model']} · {run.date}",
        heading=verdict(run),
        sections=sections,
        closing="Written by ropescale from training.json beside this file.",
    )


def verdict(run: Run) -> str:
    """What training changed at the longest length, in a sentence."""
    before, after = run.before, run.after
    longest = list(after.perplexity)[-1]
    said = f"perplexity {_number(before.perplexity[longest])} → {_number(after.perplexity[longest])}"
    if longest in after.passkey:
        said += f", passkeys {_share(before.passkey[longest])} → {_share(after.passkey[longest])}"
    record = run.record
    method = f"{record['method']} to {record['target_length']:,} tokens"
    return f"{method}, {run.steps:,} steps: at {int(longest):,} tokens {said}"


def _arms(run: Run) -> dict[str, Figures]:
    return {"unpatched": run.unpatched, "patched": run.before, "trained": run.after}


def _change(run: Run) -> str:
    """Three columns of figures: the model as it was, patched, and trained."""
    arms = _arms(run)
    groups = []
    for name, shown in (("perplexity", _number), ("passkey", _share)):
        groups.append(
            [
                Line(
                    heads=[f"{name}, {int(length):,} tokens"],
                    values=[
                        Value(text=shown(figures[length]) if length in figures else NOTHING)
                        for figures in (getattr(arm, name) for arm in arms.values())
                    ],
                )
                for length in getattr(run.after, name)
            ]
        )
    depths = [
        Line(
            heads=[f"passkey, {int(length):,} tokens, depth {float(depth):.0%}"],
            values=[
                Value(text=NOTHING),
                Value(text=_share(run.before.passkey_by_depth[length][depth])),
                Value(text=_share(after)),
            ],
        )
        for length, row in run.after.passkey_by_depth.items()
        for depth, after in row.items()
    ]
    said = [
        "Perplexity over whole windows of texts that training did not see; a passkey counts if the model's first "
        "choice is right at every digit. The unpatched model is read within its original length alone. Perplexity at "
        "a length is over the first tokens of the same windows, every token scored. The report of an evaluation has "
        "windows of its own, and its strided perplexity scores the last part of each alone, so its figures for the "
        "unpatched model at the same length are others.",
        *([run.note] if run.note else []),
    ]
    return (
        paragraph(said)
        + table("Before and after training", ["", *arms], [group for group in groups if group])
        + (details("Passkeys by depth", table("Passkeys by depth", ["", *arms], [depths])) if depths else "")
    )


def _by_position(run: Run) -> str:
    curves = {}
    for series, (name, figures) in enumerate(_arms(run).items()):
        buckets = figures.perplexity_by_position  # empty where it was not measured
        middles = [sum(map(int, ends.split("-"))) / 2 for ends in buckets]
        curves[name] = Curve(series=series, x=middles, y=list(buckets.values()))
    figure = _figure(
        "Perplexity by position, before and after training", curves, "position (tokens)", Axis(label="perplexity")
    )
    return f'{legend(curves)}<div class="grid">{figure}</div>'


def _figure(label: str, curves: Mapping[str, Curve], x: str, y: Axis, under: str = "") -> str:
    """A chart whose x axis begins at 0 and ends at the last point, and what stands beneath it."""
    reach = max((value for curve in curves.values() for value in curve.x), default=1)
    chart = Chart(label=label, curves=[*curves.values()], x=Axis(label=x, limits=(0, reach)), y=y)
    return f"<figure>{drawn(chart)}{under}</figure>"


def _curves(log: Sequence[Mapping[str, Any]]) -> str:
    """Loss, and whatever was measured meanwhile, by step."""
    loss = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    loss = loss[:: 1 + len(loss) // POINTS]
    figures = []
    if loss:
        steps, values = zip(*loss, strict=True)
        curve = Curve(series=1, x=steps, y=values)
        figures.append(_figure("Training loss by step", {"loss": curve}, "step", Axis(label="loss (nats)")))
    for name in ("perplexity", "passkey"):
        prefix = f"eval_{name}_"
        series: dict[str, list[tuple[int, float]]] = {}
        for entry in log:
            for key, value in entry.items():
                if key.startswith(prefix):
                    series.setdefault(f"{int(key.removeprefix(prefix)):,} tokens", []).append((entry["step"], value))
        if not series:
            continue
        curves = {
            label: Curve(series=1 + i, x=[step for step, _ in points], y=[value for _, value in points])
            for i, (label, points) in enumerate(series.items())
        }
        y = Axis(label=name)
        if name == "passkey":
            y = Axis(label=name, limits=(0, 1.03), ticks=SHARES, written=rate_text)  # room for symbols at 100 %
        figures.append(_figure(f"{name} by step", curves, "step", y, legend(curves)))
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _logit_scale(fitted: Mapping[str, Any] | None) -> str:
    if fitted is None:
        return ""
    tried = fitted["tried"]
    curve = Curve(series=1, x=[trial["coefficient"] for trial in tried], y=[trial["perplexity"] for trial in tried])
    figure = _figure(
        "Perplexity by coefficient of the logit scale",
        {"scale": curve},
        "coefficient of ln(factor)",
        Axis(label=f"perplexity at {fitted['length']:,}"),
    )
    said = (
        f"Logits are multiplied by 1 + {fitted['coefficient']:.4f} x ln({fitted['factor']:g}), which gave the least "
        f"perplexity at {fitted['length']:,} tokens of {len(tried)} coefficients tried."
    )
    return paragraph([said]) + f'<div class="grid">{figure}</div>'


def _data(account: Mapping[str, Any]) -> str:
    lines = []
    for source in account["sources"]:
        fates = {"trained": source["trained"], "held out": source["held_out"], **source["dropped"]}
        lines += [
            Line(
                heads=[source["source"], fate],
                values=[Value(text=f"{n['documents']:,}"), Value(text=f"{n['tokens']:,}")],
            )
            for fate, n in fates.items()
        ]
    caption = f"{account['rows']['train']:,} rows of {account['length']:,} tokens"
    return table(caption, ["source", "", "documents", "tokens"], [lines])


def _provenance(run: Run) -> str:
    parameters = run.parameters
    rows = {
        "command": run.command,
        "steps": f"{run.steps:,} of {run.settings['max_steps']:,}",
        "tokens read": f"{run.tokens:,}",
        "loss": str(run.settings.get("loss", "plain")),  # which runs of earlier versions do not say
        "seconds": f"{run.seconds:,.0f} on {run.device}, {run.threads} threads",
        "parameters trained": f"{parameters['trained']:,} of {parameters['all']:,}",
        "versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
    }
    settings = facts("Settings", {name: str(value) for name, value in run.settings.items()})
    return facts("The run", rows) + details("All settings", settings)


def _number(value: float) -> str:
    return f"{value:,.2f}"


def _share(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")
