"""What the results of an evaluation say about a goal: which arm to take, how sure that is, what would make it surer.

Numbers and no words. `measures` holds what cells say, `comparison` two arms side by side, `lengths` how far an arm
reaches, `preference` what is cheaper, `need` what would tell more and costs, `verdict` what it all comes to. All
claims of one decision hold together with 95 %, however often and whenever somebody looks: half of the error is for
comparisons between arms, half for effective lengths.
"""

from __future__ import annotations

import dataclasses

from ropescale.evals.decision.measures import beyond, evidence_of, is_finished, is_within, lengths_of
from ropescale.evals.decision.verdict import Decision, Verdict, judge
from ropescale.evals.results import UNPATCHED, Results

__all__ = ["Decision", "decide"]


def decide(results: Results, *, goal: int | None = None, entrants: int | None = None) -> Decision:
    """What the finished arms say about a goal.

    Arms may have fewer prompts or windows than others: each pair is compared on those that both have.

    Arguments:
        results: of an evaluation, in which the unpatched model is finished.
        goal: the length asked for, in tokens; that of the settings if not given, else the largest tested.
        entrants: how many arms that are made for the goal take part in all, the unpatched model among them, where some
            have no results yet.
    """
    settings = results.settings
    asked = goal or settings.target_length or max(settings.lengths)
    patched = [arm for arm in results.arms() if arm != UNPATCHED]
    finished = [arm for arm in patched if is_finished(results, arm)]
    tested = max(beyond(results, asked), default=0)
    decision = judge(
        [evidence_of(results, arm, asked) for arm in (UNPATCHED, *finished)],
        goal=asked,
        tested=tested,
        entrants=max(entrants or 0, 1 + sum(is_within(arm, settings.original_length, tested) for arm in patched)),
        unfinished=[arm for arm in patched if arm not in finished],
    )
    if asked <= settings.original_length:
        return _without_arm(decision, Verdict.WITHIN)
    met = {n for task in settings.tasks for n in lengths_of(results, UNPATCHED, task)}
    if not met & {*beyond(results, asked)}:
        return _without_arm(decision, Verdict.UNTESTED)
    return decision


def _without_arm(decision: Decision, verdict: Verdict) -> Decision:
    """A decision that takes no arm, whatever was compared."""
    return dataclasses.replace(
        decision, verdict=verdict, arm=None, leader=UNPATCHED, ties=(), opposed=None, need=None, settled=True
    )
