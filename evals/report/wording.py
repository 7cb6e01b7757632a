"""How the report says things: numbers as text, the verdict, its reason and its rules, the same in every format.

Plain text throughout; HTML and Markdown escape it themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from ropescale.evals.decision.measures import too_long
from ropescale.evals.report.findings import Findings, Row, Share, main_score, share
from ropescale.evals.results import UNPATCHED, Arm, Cell
from ropescale.evals.statistics import PERPLEXITY_TOLERANCE, RULER_THRESHOLD, Estimate
from ropescale.evals.tasks.base import Foreign, Loss, Short, Task
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


def verdict(findings: Findings) -> str:
    """One sentence: what to take, how far it reaches, what it costs; or that nothing helped."""
    alone, best = findings.alone, findings.best
    named = base_text(findings)
    how, _, what = named.partition(": ")
    is_what = f"{how} ({what})" if what else named
    opening = is_what[:1].upper() + is_what[1:]
    if not findings.tested:
        return _of_short_prompts(findings, opening)
    if best is None and not findings.patched:
        rest = "" if what else "; no method has been evaluated yet"
        return f"{opening}, the model {_reach(alone)}{rest}."
    if best is None:
        nothing = "No adapter" if all(row.arm.unextended for row in findings.patched) else "No method"
        return (
            f"{nothing} made the context longer: {is_what}, the model {_reach(alone)}, and no arm gets further in one "
            f"without losing in the other."
        )
    at = "without a method" if best.arm.unextended else f"at factor {best.arm.factor:g}"
    sentence = f"Take {shown(best.arm.name, 50)} {at}: it {_reach(best, alone, named)}"
    if best.change is None or not math.isfinite(best.change.value):
        return f"{sentence}."
    return f"{sentence}; perplexity inside the original length: {ratio_text(best.change)}."


def _of_short_prompts(findings: Findings, opening: str) -> str:
    """The verdict where no length was tested: the scores of what was."""
    said = []
    for task in findings.tasks:
        for arm in findings.arms:
            for _, cell in findings.cells(arm, task):
                if score := score_text(cell):
                    at = "" if cell.length is None else f" at {cell.length:,} tokens"
                    said.append(
                        f"{score} with {shown(arm.label, 60)}"
                        if arm != UNPATCHED
                        else f"{score} in {shown(task.name, 40)}{at}"
                    )
    return f"{opening}, the model scores {', '.join(said)}; no effective length was measured."


def score_text(cell: Cell | None) -> str:
    """The main figure of a cell: a perplexity, or the first score of the harness; nothing where it has none."""
    if cell is not None and cell.of_losses:
        return perplexity_text(cell.perplexity)
    main = main_score(cell)
    if main is None:
        return ""
    return f"{main[1]:.1%}" if 0 <= main[1] <= 1 else f"{main[1]:.4g}"


def _reach(row: Row, other: Row | None = None, named: str = "") -> str:
    """What a row's two effective lengths say, as a verb phrase; also against another row's, which is `named`."""
    reads = (row.reads, row.reads_from, None if other is None else other.reads)
    keeps = (row.keeps, row.keeps_from, None if other is None else other.keeps)
    said = [
        (
            verb,
            f"{'to' if length else 'only'} {reach_text(length, least)} tokens"
            + ("" if theirs is None else f" ({named}: {reach_text(theirs, least)})"),
        )
        for verb, (length, least, theirs) in (("retrieves", reads), ("keeps its perplexity", keeps))
        if length is not None
    ]
    if len(said) == 2 and said[0][1] == said[1][1]:
        said = [(f"{said[0][0]} and {said[1][0]}", said[0][1])]
    return " and ".join(map(" ".join, said))


def reasons(findings: Findings) -> list[str]:
    """Sentences behind the verdict: gain beyond, cost inside, what else is known, what is not."""
    best = findings.best
    said = [] if best is None else _reasons_for(findings, best)
    if best is not None:
        said.append(f"It was not tested beyond {best.reach:,} tokens.")
    elif findings.settings.base and findings.tested:
        said.append(f"It was not tested beyond {findings.alone.reach:,} tokens.")
    said += findings.settings.notes
    if findings.patched and not findings.basis:
        said.append("No retrieval task was run, and perplexity alone does not show that the context is used.")
    if findings.patched and findings.source is None:
        said.append("No perplexity was measured.")
    return said


def _reasons_for(findings: Findings, best: Row) -> list[str]:
    original = findings.settings.original_length
    same = findings.groups[best.arm.factor][0]  # unpatched, on the same prompts
    said = []
    if best.retrieval_beyond is not None and best.gain_beyond is not None:
        said.append(
            f"In prompts longer than the original {original:,} tokens it scores "
            f"{rate_text(best.retrieval_beyond.rate)} where {base_model(findings)} scores "
            f"{rate_text(same.retrieval_beyond.rate if same.retrieval_beyond else None)}: "
            f"{estimate_text(gain_text(best.gain_beyond), gain_interval_text(best.gain_beyond))}."
        )
    if best.retrieval_inside is not None and best.gain_inside is not None:
        said.append(
            f"In prompts that fit the original length it scores {rate_text(best.retrieval_inside.rate)}, "
            f"{estimate_text(gain_text(best.gain_inside), gain_interval_text(best.gain_inside))}."
        )
    if best.change is not None and math.isfinite(best.change.value):
        said.append(
            f"Perplexity inside the original length is {perplexity_text(best.inside)} instead of "
            f"{perplexity_text(same.inside)}: "
            f"{estimate_text(ratio_text(best.change), ratio_interval_text(best.change))}."
        )
    return [*said, *(_short_reason(findings, best, task) for task in findings.short if not isinstance(task, Foreign))]


def tells(findings: Findings, task: Short) -> bool:
    """Whether a short task can show a loss: not where the unpatched model guesses, so that it has none to show."""
    return task.chance is None or share(findings.cell(UNPATCHED, task)).interval[0] > task.chance


def _short_reason(findings: Findings, best: Row, task: Short) -> str:
    """What short prompts lost."""
    if not tells(findings, task):
        return (
            f"{task.heading} cannot tell what short prompts lost: {base_model(findings)} scores "
            f"{rate_text(share(findings.cell(UNPATCHED, task)).rate)}, and chance is {rate_text(task.chance)}."
        )
    cell = findings.cell(best.arm, task)
    gain = findings.gain(cell)
    return (
        f"{task.heading}, on short prompts: {rate_text(share(cell).rate)}, "
        f"{estimate_text(gain_text(gain), gain_interval_text(gain))}."
    )


def rules(findings: Findings) -> list[str]:
    """The definitions behind the verdict, for the small print."""
    said = []
    if findings.basis:
        said.append(
            f"Effective length by retrieval is RULER's rule: the largest length at which the average score, and that "
            f"of every shorter length tested, is at least {RULER_THRESHOLD:.1%} (Llama-2-7B at 4,096 tokens). The "
            f"average is over {basis_text(findings)}; the score is the share of answers found in the reply as text."
        )
    if findings.source is not None and findings.source.by_position:
        said.append(
            f"Effective length by perplexity: positions up to the original length, then bands that double; the "
            f"end of the last band before perplexity first exceeds {PERPLEXITY_TOLERANCE:g} times that of "
            f"{base_model(findings)} inside the original length, on the same windows."
        )
    elif findings.source is not None:
        said.append(
            f"Effective length by perplexity: the largest context length at which {findings.source.noun}, and that of "
            f"every shorter one tested beyond the original length, is at most {PERPLEXITY_TOLERANCE:g} times that of "
            f"{base_model(findings)} at the largest length inside it."
        )
    names = sorted({arm.adapter for arm in findings.arms if arm.adapter and is_plain(arm, findings)})
    if names:
        said.append(
            f"An adapter that carries no record ({', '.join(shown(name, 40) for name in names)}) was put on the model "
            f"as it is, and on the model extended by each method, for which it was not trained."
        )
    if any(length_text(length).endswith("k") for length in findings.settings.lengths):
        said.append("In tables and figures, k is 1,024 tokens.")
    if findings.patched:
        said.append(
            f"Intervals are of 95%; changes and gains are against {base_model(findings)} on the same samples. Those "
            "over few documents or windows are too narrow, and so are those of samples that all changed alike; over a "
            "single window there is none."
        )
        said.append(
            f"An arm is recommended only if one of its effective lengths is longer than that of "
            f"{base_model(findings)}, neither is shorter, and over all prompts it does not retrieve less (an interval "
            f"wholly below 0). Of those, the longest by retrieval is taken, then by perplexity, then the lowest "
            f"perplexity inside the original length, then the smaller factor."
        )
    return said


def left_out(findings: Findings) -> list[str]:
    """What is not in the report, in sentences."""
    said = []
    if findings.unfinished:
        said.append(f"Not finished, so left out: {', '.join(arm_text(arm, findings) for arm in findings.unfinished)}.")
    if findings.not_run:
        said.append(f"Not run yet: {', '.join(shown(name, 60) for name in findings.not_run)}.")
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


def _ratio(value: float) -> str:
    change = value - 1
    if change >= 10:
        return f"x{value:,.0f}" if value < 1e6 else f"x{value:.0e}"
    return f"{change:+.1%}".replace("-", MINUS) if abs(change) >= 0.0005 else "±0.0%"


def _points(value: float) -> str:
    return f"{100 * value:+.0f}".replace("-", MINUS) if abs(value) >= 0.005 else "±0"
