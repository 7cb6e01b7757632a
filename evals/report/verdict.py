"""The words of the decision: the verdict in one sentence, its reasons and its rules; the same in every form.

Plain text throughout; HTML and Markdown escape it themselves. What is claimed are the decision's figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from ropescale.evals.decision.comparison import FIND, MARGINS, READ, Comparison
from ropescale.evals.decision.lengths import Bounds
from ropescale.evals.decision.need import Need
from ropescale.evals.decision.preference import Means, means_of
from ropescale.evals.decision.verdict import Verdict
from ropescale.evals.report.findings import Findings, Row, share
from ropescale.evals.report.wording import (
    arm_text,
    base_model,
    base_text,
    basis_text,
    difference_text,
    dropped_text,
    estimate_text,
    gain_interval_text,
    gain_text,
    is_plain,
    length_text,
    perplexity_text,
    rate_text,
    ratio_interval_text,
    ratio_of,
    ratio_text,
    reach_text,
    score_text,
    tells,
)
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.evals.statistics import PERPLEXITY_TOLERANCE, RULER_THRESHOLD
from ropescale.evals.tasks.base import Foreign, Short
from ropescale.pages.elements import shown

# Why the first of two arms that do equally well is taken, by what the other is made with
CHEAPER = {
    Means.LATE: "it needs no change of how attention reads",
    Means.ADAPTER: "it needs no adapter",
}


def verdict(findings: Findings) -> str:
    """One sentence: what to take, how far and how well it does; or why nothing is taken."""
    decision = findings.decision
    if not findings.tested:
        return _of_short_prompts(findings)
    if decision.verdict is Verdict.TAKE:
        return _take(findings)
    if decision.verdict is Verdict.FEW:
        return _few(findings)
    if decision.verdict is Verdict.NOTHING:
        return _nothing(findings)
    if decision.verdict is Verdict.WORSE:
        every = [arm for arm in findings.arms if arm != UNPATCHED and decision.standing(arm).reaches]
        named = _name(findings, every[0]) if len(every) == 1 else "every arm"
        return f"Scale nothing: {base_model(findings)} does better than {named} up to {decision.tested:,} tokens."
    if decision.verdict is Verdict.WITHIN:
        return (
            f"Scale nothing: {decision.goal:,} tokens lie within the original length of "
            f"{findings.settings.original_length:,}."
        )
    if decision.verdict is Verdict.ALONE or not findings.patched:
        rest = "" if findings.settings.base else "; no method has been evaluated yet"
        return f"{_opening(findings)}, the model {_reach(findings, findings.alone)}{rest}."
    if decision.verdict is Verdict.CONTRADICTION and decision.opposed is not None:
        return _contradiction(findings, decision.opposed)
    return (
        f"Nothing can be said of {decision.goal:,} tokens: no prompt or text longer than the original "
        f"{findings.settings.original_length:,} tokens was tested up to there."
    )


def _take(findings: Findings) -> str:
    decision = findings.decision
    assert decision.arm is not None
    standing, row = decision.standing(decision.arm), findings.row(decision.arm)
    tied = [_name(findings, tie.one.arm) for tie in decision.ties]
    scope = f"beyond {findings.settings.original_length:,} and up to {decision.tested:,} tokens"
    parts, there = [], scope
    if standing.find is not None:
        other = rate_text(decision.standing(UNPATCHED).find)
        parts.append(f"{scope} it finds {rate_text(standing.find)} ({base_text(findings)}: {other})")
        there = "there"
    if standing.read_gain is not None:
        parts.append(f"perplexity of text {there} {ratio_text(ratio_of(standing.read_gain.estimate))}")
    if row.change is not None and math.isfinite(row.change.value):
        parts.append(f"inside the original length {ratio_text(row.change)}")
        if standing.read_gain is None:
            parts[-1] = f"perplexity {parts[-1]}"
    if row.gain_inside is not None and row.gain_inside.high < 0:
        parts.append(f"{gain_text(row.gain_inside)} of what is found there")
    also = f" (tied with {_listed(tied)})" if tied else ""
    return f"Take {_taken(decision.arm)}{also}: {'; '.join(parts)}."


def _few(findings: Findings) -> str:
    decision = findings.decision
    standing = decision.standing(decision.leader)
    short = [*(["prompts"] if standing.gain else []), *(["windows of text"] if standing.read_gain else [])]
    said = f"Too few {' and '.join(short)} to tell what does better up to {decision.tested:,} tokens"
    if standing.gain is None or standing.find is None:
        seen = difference_text(standing.read_gain) if standing.read_gain else ""
        return f"{said}: {_name(findings, decision.leader)} was seen to do best, {seen}."
    rate, other = rate_text(standing.find), rate_text(decision.standing(UNPATCHED).find)
    said += f": beyond {findings.settings.original_length:,} {_name(findings, decision.leader)} finds {rate}"
    if rate == other:
        return f"{said}, as {base_model(findings)} does."
    return f"{said}, {base_model(findings)} {other}; that may be chance."


def _nothing(findings: Findings) -> str:
    decision = findings.decision
    if any(standing.can_win for standing in decision.standings if standing.arm != UNPATCHED):
        return (
            f"Scale nothing: {base_model(findings)} itself {_reach(findings, findings.alone)}, and no arm is shown to "
            f"do better."
        )
    margins = [
        *([f"{_points(FIND)} points of what is found"] if any(one.gain for one in decision.standings) else []),
        *([f"{_points(READ)}% of perplexity"] if any(one.read_gain for one in decision.standings) else []),
    ]
    return (
        f"Scale nothing: up to {decision.tested:,} tokens no arm does better than {base_model(findings)} by more than "
        f"{' or '.join(margins)}."
    )


def _contradiction(findings: Findings, opposed: Comparison) -> str:
    more, better = _name(findings, opposed.one.arm), _name(findings, opposed.other.arm)
    found, read = opposed.find, opposed.read
    assert found is not None
    assert read is not None
    return (
        f"No arm can be named for {findings.decision.tested:,} tokens: {more} finds more than {better} "
        f"({difference_text(found)}) and reads text worse ({difference_text(read)})."
    )


def _of_short_prompts(findings: Findings) -> str:
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
    return f"{_opening(findings)}, the model scores {', '.join(said)}; no effective length was measured."


def reasons(findings: Findings) -> list[str]:
    """Sentences behind the verdict: what is claimed, what cannot be told, what it costs, what is not known."""
    decision, best = findings.decision, findings.best
    said = []
    if findings.tested and decision.verdict not in (Verdict.WITHIN, Verdict.UNTESTED, Verdict.ALONE):
        said += _compared(findings)
    if best is not None:
        said += _costs(findings, best)
    if findings.tested and findings.patched:
        said += _lengths(findings)
    said += _not_compared(findings)
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


def _compared(findings: Findings) -> list[str]:
    """What was compared: the arm that is taken or leads, those that it ties with, those that are out."""
    decision = findings.decision
    said = []
    if decision.leader != UNPATCHED:
        standing = decision.standing(decision.leader)
        gains = [difference_text(one) for one in (standing.gain, standing.read_gain) if one is not None]
        said.append(
            f"{_sentence(_name(findings, decision.leader))} against {base_model(findings)}, beyond "
            f"{findings.settings.original_length:,} and up to {decision.tested:,} tokens: {'; '.join(gains)}."
        )
    for tie in decision.ties:
        shown_gains = "; ".join(difference_text(one) for one in tie.known)
        said.append(
            f"{_sentence(_name(findings, tie.one.arm))} cannot be told from it ({shown_gains}): "
            f"{_name(findings, tie.other.arm)} is taken since {_why(findings, tie)}."
        )
    if decision.verdict is Verdict.FEW:
        others = [s.arm for s in decision.standings if s.can_win and s.arm not in (UNPATCHED, decision.leader)]
        if others:
            named = _listed(_name(findings, arm) for arm in others)
            said.append(f"Nor can be told from {base_model(findings)}: {named}.")
    if decision.need is not None:
        said.append(_need(findings, decision.need))
    name = partial(_name, findings)
    out = [
        f"{name(standing.arm)} ({dropped_text(standing.dropped_by, standing.arm, name)})"
        for standing in decision.standings
        if standing.dropped_by is not None and standing.arm != UNPATCHED
    ]
    if out:
        said.append(f"Out: {'; '.join(out)}.")
    return said


def _why(findings: Findings, tie: Comparison) -> str:
    """Why the second of a tie is taken and not the first."""
    other, taken = tie.one.arm, tie.other.arm
    if not findings.decision.standing(other).extends:
        return f"it alone of the two is shown to do better than {base_model(findings)}"
    if means_of(taken) < means_of(other):
        return CHEAPER[means_of(other)]
    if taken.factor < other.factor:
        return "its factor is smaller"
    for measure, seen, what in zip(MARGINS, tie.observed, ("find more", "read better"), strict=True):
        if seen < -MARGINS[measure]:
            return f"it was seen to {what}"
    return "it loses less inside the original length"


def _need(findings: Findings, need: Need) -> str:
    """What would tell two arms apart."""
    prompts = windows = ""
    if need.rounds is not None:
        more = f"{need.rounds:,} more prompt{'s' * (need.rounds > 1)} of each length and depth"
        prompts = f"{more} ({need.prompts:,} in all{_time(need.rounds_minutes)})"
    if need.windows is not None:
        time = _time(need.windows_minutes)
        windows = f"{need.windows:,} more window{'s' * (need.windows > 1)} of text"
        windows += f" ({time.removeprefix(', ')})" if time else ""
    which = f"{_name(findings, need.arm)} and {_name(findings, need.against)}"
    if not (prompts or windows):
        return f"So far {which} do alike, so no number of prompts can be named that would tell them apart."
    return f"At the rates seen so far, about {' or '.join(filter(None, (prompts, windows)))} would tell {which} apart."


def _time(minutes: float | None) -> str:
    if minutes is None:
        return ""
    if minutes < 1:
        return f", {60 * minutes:.0f} s"
    return f", {minutes:.0f} min" if minutes < 90 else f", {minutes / 60:.1f} h"


def _costs(findings: Findings, best: Row) -> list[str]:
    """What the arm that is taken costs where no longer context was needed."""
    said = []
    same = findings.groups[best.arm.factor][0]  # unpatched, on the same prompts
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


def _lengths(findings: Findings) -> list[str]:
    """How far the arm that leads reaches, and the unpatched model; and its own score as a second yardstick."""
    decision = findings.decision
    arms = list(dict.fromkeys((decision.leader, UNPATCHED)))
    said = [
        f"{_sentence(base_model(findings) if arm == UNPATCHED else _name(findings, arm))} "
        f"{_reach(findings, findings.row(arm))}."
        for arm in arms
    ]
    inside = findings.alone.retrieval_inside
    if inside is not None and inside.asked:
        said.append(
            f"Inside its original length {base_model(findings)} itself scores {rate_text(inside.rate)}, beside the "
            f"{RULER_THRESHOLD:.1%} that an effective length asks for."
        )
    return said


def _not_compared(findings: Findings) -> list[str]:
    """Which arms the verdict is not about, and of which length it is."""
    decision = findings.decision
    said: list[str] = []
    if not decision.tested:
        return said
    shorter = [standing.arm for standing in decision.standings if not standing.reaches]
    if shorter:
        said.append(
            f"Not run up to {decision.tested:,} tokens, so not compared there: "
            f"{_listed(_name(findings, arm) for arm in shorter)}."
        )
    if decision.unfinished:
        said.append(f"Decided without {_listed(_name(findings, arm) for arm in decision.unfinished)}: not finished.")
    if decision.goal > decision.tested:
        said.append(
            f"Asked for were {decision.goal:,} tokens; the longest length tested up to there is {decision.tested:,}."
        )
    return said


def rules(findings: Findings) -> list[str]:
    """The definitions behind the verdict, for the small print."""
    said = []
    if findings.basis:
        said.append(
            f"Effective length by retrieval is RULER's rule: the largest length at which the average score, and that "
            f"of every shorter length tested, is at least {RULER_THRESHOLD:.1%}, the score of Llama-2-7B at 4,096 "
            f"tokens, which a small model may reach nowhere. The average is over {basis_text(findings)}; the score is "
            f"the share of answers found in the reply as text."
        )
    if findings.source is not None and findings.source.by_position:
        said.append(
            f"Effective length by perplexity: positions up to the original length, then bands that double; the "
            f"end of the last band before perplexity first exceeds {PERPLEXITY_TOLERANCE:g} times that of "
            f"{base_model(findings)} inside the original length, on the same windows; the factor is a convention."
        )
    elif findings.source is not None:
        said.append(
            f"Effective length by perplexity: the largest context length at which {findings.source.noun}, and that of "
            f"every shorter one tested beyond the original length, is at most {PERPLEXITY_TOLERANCE:g} times that of "
            f"{base_model(findings)} at the largest length inside it; the factor is a convention."
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
            f"Intervals of tables, of prompts inside the original length and of short prompts are of 95% each, for "
            f"one look; changes and gains are against {base_model(findings)} on the same samples. Those over few "
            f"documents or windows are too narrow, and so are those of samples that all changed alike; over a single "
            f"window there is none."
        )
        said.append(
            f"What the verdict says is better or worse, and effective lengths at least and at most, holds together "
            f"with 95%, however often one looks and adds prompts: by betting on each prompt's difference in score, "
            f"and by the mixture t interval of each window's difference in loss. An arm does better than another "
            f"where it finds more, and is not shown to have a perplexity more than {_points(READ)}% higher; or where "
            f"what is found cannot be told apart, and its perplexity is more than {_points(READ)}% lower. One that "
            f"does better than {base_model(findings)}, and than which no other does better, is taken; of several the "
            f"one with fixed frequencies before one that acts in attention before an adapter, then the smaller "
            f"factor, then what was seen to find more or read better, then what loses less inside the original "
            f"length. Up to {_points(FIND)} points of what is found "
            f"and {_points(READ)}% of perplexity make no difference."
        )
    return said


def _reach(findings: Findings, row: Row) -> str:
    """How far an arm is shown to reach, by both measures, as a verb phrase."""
    standing = findings.decision.standing(row.arm)
    said = [
        (verb, _bounds(bounds, least))
        for verb, bounds, least in (
            ("retrieves", standing.found_to, row.reads_from),
            ("keeps its perplexity", standing.read_to, row.keeps_from),
        )
        if bounds is not None
    ]
    if len(said) == 2 and said[0][1] == said[1][1]:
        said = [(f"{said[0][0]} and {said[1][0]}", said[0][1])]
    return " and ".join(map(" ".join, said))


def _bounds(bounds: Bounds, least: int | None) -> str:
    """Bounds of an effective length within a sentence."""
    if bounds.told:
        return f"{'to' if bounds.low else 'only'} {reach_text(bounds.low, least)} tokens"
    if bounds.high is None:
        return f"to at least {bounds.low:,} tokens" if bounds.low else "to a length that cannot be told"
    if not bounds.low:
        return f"to at most {bounds.high:,} tokens"
    return f"to at least {bounds.low:,} and at most {bounds.high:,} tokens"


def _points(measure: str) -> str:
    """A margin in points of what is found, or in percent of perplexity."""
    return f"{100 * (MARGINS[measure] if measure == FIND else math.expm1(MARGINS[measure])):.0f}"


def _name(findings: Findings, arm: Arm) -> str:
    """An arm within a sentence."""
    return base_model(findings) if arm == UNPATCHED else arm_text(arm, findings)


def _taken(arm: Arm) -> str:
    """The arm that is taken, in words."""
    return f"{shown(arm.name, 50)} {'without a method' if arm.unextended else f'at factor {arm.factor:g}'}"


def _opening(findings: Findings) -> str:
    """The unpatched model at the beginning of a sentence, whose noun follows."""
    named = base_text(findings)
    how, _, what = named.partition(": ")
    opened = f"{how} ({what})" if what else named
    return opened[:1].upper() + opened[1:]


def _sentence(text: str) -> str:
    """Text at the beginning of a sentence; names of arms stay as they are."""
    return text[:1].upper() + text[1:] if text.startswith(("the ", "unpatched")) else text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
