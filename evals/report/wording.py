"""How the report says things: numbers as text, arms, figures and their intervals, the same in every format.

Plain text throughout; HTML and Markdown escape it themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

from ropescale.evals.decision.comparison import FIND, Difference
from ropescale.evals.decision.lengths import Bounds
from ropescale.evals.decision.measures import too_long
from ropescale.evals.report.findings import Findings, Share, main_score, share
from ropescale.evals.results import UNPATCHED, Arm, Cell
from ropescale.evals.statistics import Estimate
from ropescale.evals.tasks.base import Loss, Short, Task
from ropescale.pages.elements import shown

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def base_text(findings: Findings) -> str:
    """The arm without a method as the report names it: unpatched, or what the checkpoint was saved or published as."""
    return shown(findings.settings.base, 60) or "unpatched"


def base_model(findings: Findings) -> str:
    """The same within a sentence."""
    how, _, what = base_text(findings).partition(": ")
    return f"the model {how} ({what})" if what else "the unpatched model"


def arm_text(arm: Arm, findings: Findings) -> str:
    """An arm as the report names it."""
    return base_text(findings) if arm == UNPATCHED else shown(arm.label, 60)


def method_text(arm: Arm, findings: Findings) -> str:
    """The method of an arm as the report names it."""
    return base_text(findings) if arm == UNPATCHED else shown(arm.name, 50)


def factor_text(arm: Arm) -> str:
    """The factor of an arm for a column; nothing of one that is not extended."""
    return "" if arm.unextended else f"{arm.factor:g}"


def group_text(arms: Iterable[Arm], factor: float) -> str:
    """What the arms of a group have in common, as a heading or within a sentence."""
    return "no method" if all(arm.unextended for arm in arms) else f"factor {factor:g}"


def perplexity_text(value: float | None) -> str:
    """Three digits or more, short enough for a column."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def tokens_text(value: int | None) -> str:
    """A length in tokens."""
    return NOTHING if value is None else f"{value:,}"


def reach_text(value: int | None, least: int | None) -> str:
    """An effective length in tokens, where `least` is the shortest that was tested: what misses there reads below."""
    return f"below {least:,}" if value == 0 and least else tokens_text(value)


def bounds_text(bounds: Bounds | None, least: int | None) -> str:
    """Bounds of an effective length for a column; `least` is the shortest length that was tested."""
    if bounds is None:
        return ""
    if bounds.told:
        return reach_text(bounds.low, least)
    if bounds.high is None:
        return f"at least {bounds.low:,}" if bounds.low else "not told"
    return f"{bounds.low:,} to {bounds.high:,}" if bounds.low else f"at most {bounds.high:,}"


def length_text(length: int) -> str:
    """A length in tokens for the head of a narrow column: multiples of 1,024 from 4,096 on as 4k, 8k ..."""
    return f"{length // 1024:,}k" if length >= 4096 and length % 1024 == 0 else f"{length:,}"


def rate_text(value: float | None) -> str:
    """A share as a percentage; one that is not quite all or none does not read as such."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if 0 < value < 0.005 or 0.995 < value < 1:
        return f"{value:.1%}" if 0.0005 <= value <= 0.9995 else ("< 0.1%" if value < 0.5 else "> 99.9%")
    return f"{value:.0%}"


def share_text(share: Share | None) -> str:
    """A rate with its count."""
    return NOTHING if share is None or not share.asked else f"{rate_text(share.rate)} ({count_text(share)})"


def count_text(share: Share) -> str:
    """Found of asked."""
    return f"{share.found:.4g}/{share.asked}"


def interval_text(share: Share) -> str:
    """The Wilson interval in percent."""
    low, high = share.interval
    return NOTHING if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f}%"


def ratio_text(change: Estimate | None) -> str:
    """A ratio as a change in percent: 1.02 is +2.0%."""
    if change is None or not math.isfinite(change.value):
        return NOTHING
    return _ratio(change.value)


def ratio_interval_text(change: Estimate | None) -> str:
    """The interval of a ratio, as changes."""
    if change is None or not math.isfinite(change.low):
        return ""
    low, high = _ratio(change.low), _ratio(change.high)
    return f"{low.removesuffix('%') if high.endswith('%') else low} to {high}"


def gain_text(gain: Estimate | None) -> str:
    """A difference of shares in percentage points."""
    return NOTHING if gain is None else f"{_points(gain.value)} points"


def points_text(gain: Estimate) -> str:
    """A difference of shares in percentage points, where the column says so."""
    return _points(gain.value)


def gain_interval_text(gain: Estimate | None) -> str:
    """The interval of a difference, in percentage points."""
    if gain is None or not math.isfinite(gain.low) or gain.low == gain.high:
        return ""
    return f"{_points(gain.low)} to {_points(gain.high)}"


def estimate_text(value: str, interval: str) -> str:
    """A value with its interval, where it has one."""
    return f"{value} ({interval})" if interval else value


def difference_text(difference: Difference) -> str:
    """A difference with its interval: points of what is found, or a change of perplexity."""
    estimate = difference.estimate
    if difference.measure == FIND:
        return estimate_text(gain_text(estimate), gain_interval_text(estimate))
    ratio = ratio_of(estimate)
    return f"perplexity {estimate_text(ratio_text(ratio), ratio_interval_text(ratio) or 'too few windows')}"


def dropped_text(difference: Difference, arm: Arm, name: Callable[[Arm], str]) -> str:
    """What put an arm out: how much better another one is, or how little the arm itself is better."""
    if difference.arm == arm:
        return f"no gain that counts over {name(difference.against)}: {difference_text(difference)}"
    return f"{name(difference.arm)} over it: {difference_text(difference)}"


def ratio_of(estimate: Estimate) -> Estimate:
    """A gain in nats per token as a ratio of perplexities; without an interval where there is none."""
    if not math.isfinite(estimate.low):
        return Estimate(_exp(-estimate.value), math.nan, math.nan)
    return Estimate(_exp(-estimate.value), _exp(-estimate.high), _exp(-estimate.low))


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def band_text(band: tuple[int, int]) -> str:
    """What a column of perplexities is about."""
    low, high = band
    return f"at {length_text(high)}" if low == high else f"{length_text(low)} to {length_text(high)}"


def basis_text(findings: Findings) -> str:
    """The tasks that the effective length by retrieval averages over."""
    names = ", ".join(shown(task.name, 40) for task in findings.basis)
    groups = {task.group.title if task.group else "" for task in findings.basis}
    if len(findings.basis) > 2 and groups != {""} and len(groups) == 1:
        return f"{len(findings.basis)} {groups.pop()} tasks ({names})"
    return names


def filled(sentence: str, findings: Findings, task: Task) -> str:
    """A sentence of a task's own, with what is known of its cells in the place of names in braces."""
    facts = {"base": base_model(findings)}
    if isinstance(task, Loss):
        facts |= _loss_facts(findings, task)
    if isinstance(task, Short):
        facts["chance"] = rate_text(task.chance)
    for name, fact in facts.items():  # nothing else in braces is touched
        sentence = sentence.replace(f"{{{name}}}", fact)
    return sentence


def _loss_facts(findings: Findings, task: Loss) -> dict[str, str]:
    """How many windows and documents were read, in which pieces, and which of their tokens count, as who judges."""
    cells = [cell for _, cell in findings.cells(UNPATCHED, task)]
    strides = sorted({(cell.stated["window"], cell.stated["stride"]) for cell in cells if "stride" in cell.stated})
    read = {
        length: len(findings.cell(UNPATCHED, task, length).samples)
        for length in panel_lengths(findings, task).values()
    }
    keys = (
        f"{sum(one['tokens'] for one in cell.samples):,} of {sum(one['of'] for one in cell.samples):,} at "
        f"{cell.length:,}"
        for cell in cells
        if all("of" in one for one in cell.samples)
    )
    judges = dict.fromkeys(shown(cell.stated.get("evaluator", "not stated"), 80) for cell in cells)
    return {
        "documents": str(len({str(one["document"]) for cell in cells for one in cell.samples})),
        "windows": ", ".join(f"{count} of {length:,} tokens" for length, count in sorted(read.items())),
        "strides": "; ".join(f"{window:,} / {stride:,}" for window, stride in strides),
        "keys": "; ".join(keys),
        "evaluators": ", ".join(judges),
    }


def panel_lengths(findings: Findings, task: Loss) -> dict[float, int]:
    """Factor -> the largest length that all its arms ran a task at."""
    found = {}
    for factor, arms in findings.panels.items():
        common = set.intersection(*(set(findings.lengths(arm, task)) for arm in arms))
        if common:
            found[factor] = max(common)
    return found


def command_text(arm: Arm, findings: Findings) -> str:
    """The call that makes a model this arm."""
    if not arm.adapter:
        return _patch_text(arm, findings)
    folder = json.dumps(_adapter_folder(arm, findings))
    if not is_plain(arm, findings):
        return f"ropescale.load_adapter(model, {folder})"
    model = "model" if arm.unextended else _patch_text(arm, findings)
    return f"peft.PeftModel.from_pretrained({model}, {folder})"


def is_plain(arm: Arm, findings: Findings) -> bool:
    """Whether the adapter of an arm carries no record: then it has an arm on the model as it is."""
    return f"{UNPATCHED.method}+{arm.adapter}" in findings.settings.adapters


def _patch_text(arm: Arm, findings: Findings) -> str:
    settings, method = findings.settings, arm.method.partition("+")[0]
    start = f", original_length={settings.original_length}"  # stated always: the config may say another one
    if settings.existing != "error":
        start += f', existing="{settings.existing}"'
    if settings.layers != "global":
        start += f', layers="{settings.layers}"'
    knobs = settings.knobs.get(method, {})
    more = f", **{shown(dict(knobs), 400)}" if knobs else ""
    return f'ropescale.patch(model, "{shown(method, 50)}", factor={arm.factor:g}{start}{more})'


def _adapter_folder(arm: Arm, findings: Findings) -> str:
    """Where an arm's adapter was when it ran last; a placeholder in results that do not say."""
    folders = [session.adapters.get(arm.method) for session in findings.results.sessions]
    known = [str(folder) for folder in folders if folder]
    return shown(known[-1] if known else f"path/to/{arm.adapter}", 200)


def score_text(cell: Cell | None) -> str:
    """The main figure of a cell: a perplexity, or the first score of the harness; nothing where it has none."""
    if cell is not None and cell.of_losses:
        return perplexity_text(cell.perplexity)
    main = main_score(cell)
    if main is None:
        return ""
    return f"{main[1]:.1%}" if 0 <= main[1] <= 1 else f"{main[1]:.4g}"


def tells(findings: Findings, task: Short) -> bool:
    """Whether a short task can show a loss: not where the unpatched model guesses, so that it has none to show."""
    return task.chance is None or share(findings.cell(UNPATCHED, task)).interval[0] > task.chance


def left_out(findings: Findings) -> list[str]:
    """What is not in the report, in sentences."""
    said = []
    if findings.unfinished:
        said.append(f"Not finished, so left out: {', '.join(arm_text(arm, findings) for arm in findings.unfinished)}.")
    if findings.not_run:
        said.append(f"Not run yet: {', '.join(shown(name, 60) for name in findings.not_run)}.")
    fewer = [arm for arm in findings.arms if _has_fewer(findings, arm)]
    if fewer:
        said.append(
            f"With fewer prompts or windows than other arms, and compared on those that both have: "
            f"{', '.join(arm_text(arm, findings) for arm in fewer)}."
        )
    for arm in findings.arms:
        for task in findings.short:
            cell = findings.at(arm, task)
            if cell is not None and (beyond := too_long(cell)):
                said.append(
                    f"{len(beyond)} of {len(cell.samples)} prompts of {shown(task.name, 40)} are longer than the "
                    f"{tokens_text(cell.stated.get('limit'))} tokens that {arm_text(arm, findings)} reads, and are "
                    f"left out of its score."
                )
    return said


def _has_fewer(findings: Findings, arm: Arm) -> bool:
    """Whether another arm has more samples of the same cell: where arms raced, or some were given more."""
    return any(
        len(cell.samples) < len(other.samples)
        for task, cell in findings.cells(arm)
        for one in findings.arms
        if (other := findings.at(one, task, cell.length)) is not None
    )


def _ratio(value: float) -> str:
    change = value - 1
    if change >= 10:
        return f"x{value:,.0f}" if value < 1e6 else f"x{value:.0e}"
    return f"{change:+.1%}".replace("-", MINUS) if abs(change) >= 0.0005 else "±0.0%"


def _points(value: float) -> str:
    return f"{100 * value:+.0f}".replace("-", MINUS) if abs(value) >= 0.005 else "±0"
