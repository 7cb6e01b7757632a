"""What a decision reads in a folder of results: which prompts and windows, of which arms, up to which length."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import Planted, lines, plant, rewrite, write_evaluation
from synthetic import GOAL, LENGTHS, ORIGINAL, World, world

from ropescale.evals.decision import decide
from ropescale.evals.decision.comparison import Comparison, Comparisons
from ropescale.evals.decision.lengths import error_of
from ropescale.evals.decision.measures import evidence_of
from ropescale.evals.decision.verdict import Verdict, judge
from ropescale.evals.results import UNPATCHED, Arm, read

YARN = Arm(method="yarn", factor=2.0)


def written(folder: Path, made: World) -> Path:
    """The prompts of a world as a folder of results has them: depth by depth."""
    arms = [(truth.arm.method, truth.arm.factor) for truth in made.truths]
    depths = [i / 4 for i in range(made.answers[UNPATCHED].shape[2])]
    write_evaluation(
        folder, arms=arms, tasks=("passkey",), lengths=LENGTHS, original_length=ORIGINAL, samples=1, depths=depths
    )
    cells: list[dict[str, Any]] = []
    for truth in made.truths:
        axes = {"method": truth.arm.method, "factor": truth.arm.factor}
        cells.append({"task": "record", **axes, "record": None})
        for place, length in enumerate(LENGTHS):
            samples = [
                {"depth": depth, "score": float(score), "target": ["7"], "reply": "7"}
                for i, depth in enumerate(depths)
                for score in made.answers[truth.arm][:, place, i]
            ]
            cells.append({"task": "passkey", **axes, "length": length, "scores": {}, "samples": samples})
    rewrite(folder, cells)
    return folder


@pytest.mark.parametrize("seed", range(8))
def test_a_folder_of_results_is_decided_as_its_prompts_are(seed: int, tmp_path: Path) -> None:
    made = world(seed, most=30)
    decision = decide(read(written(tmp_path / "results", made)))
    rounds = {arm: len(answers) for arm, answers in made.answers.items()}
    bare = [replace(one, read={}, losses={}, inside=math.nan) for one in made.evidence(rounds, 1)]
    expected = judge(bare, goal=GOAL, tested=GOAL)
    assert (decision.verdict, decision.arm, decision.leader) == (expected.verdict, expected.arm, expected.leader)
    for own, other in zip(decision.standings, expected.standings, strict=True):
        assert (own.arm, own.find, own.gain, own.found_to) == (other.arm, other.find, other.gain, other.found_to)
        assert (own.can_win, own.dropped_by) == (other.can_win, other.dropped_by)


def test_only_whole_rounds_count_and_each_pair_those_that_both_have(tmp_path: Path) -> None:
    folder = write_evaluation(
        tmp_path / "results", arms=[("none", 1.0), ("yarn", 2.0)], tasks=("passkey",), lengths=(128, 256), samples=6
    )
    cells = lines(folder)
    for cell in cells:
        if cell["method"] == "yarn" and cell.get("length") == 256:  # the last of five depths has four of six
            cell["samples"] = cell["samples"][:28]
    rewrite(folder, cells)
    results = read(folder)
    unpatched, yarn = (evidence_of(results, arm, 256).found for arm in (UNPATCHED, YARN))
    assert (unpatched.shape, yarn.shape) == ((6, 5), (4, 5))
    [cell] = [one for one in cells if one["method"] == "none" and one.get("length") == 256]
    scores = [one["score"] for one in cell["samples"]]
    np.testing.assert_array_equal(unpatched, np.reshape(scores, (5, 6)).T)
    gain = decide(results).standing(YARN).gain
    assert gain is not None
    assert gain.compared == 20


def test_depths_that_are_drawn_are_one_stratum(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "results", arms=[("none", 1.0)], tasks=("niah_single_1",), lengths=(128, 256))
    cells = lines(folder)
    for cell in cells:
        cell["samples"] = [{**one, "depth": i / 10} for i, one in enumerate(cell.get("samples", []))]
    rewrite(folder, [{**cell, "samples": cell["samples"]} if cell["task"] != "record" else cell for cell in cells])
    assert evidence_of(read(folder), UNPATCHED, 256).found.shape == (5, 1)


def test_of_positions_those_between_the_original_length_and_the_target_are_read(tmp_path: Path) -> None:
    folder = plant(tmp_path / "results", {("none", 1.0): Planted(perplexity=(20, 60)), ("yarn", 2.0): Planted()})
    [cell] = [one for one in lines(folder) if one["task"] == "position" and one["method"] == "none"]
    for target, buckets in ((256, slice(2, 4)), (200, slice(2, 3))):
        nats = [sum(one["nll"][buckets]) / sum(one["tokens"][buckets]) for one in cell["samples"]]
        assert [*evidence_of(read(folder), UNPATCHED, target).read.values()] == pytest.approx(nats)
    assert evidence_of(read(folder), UNPATCHED, 128).read == {}


def test_of_context_lengths_the_longest_up_to_the_target_is_read_and_pieces_of_a_window_are_one(folder: Path) -> None:
    cells = lines(folder)
    for cell in cells:
        if cell["task"] == "perplexity":  # each window in two pieces
            cell["samples"] = [{**one, "nll": part * one["nll"]} for one in cell["samples"] for part in (0.5, 1.5)]
    rewrite(folder, [cell for cell in cells if cell["task"] != "position"])
    results = read(folder)
    [cell] = [one for one in cells if (one["task"], one["method"], one.get("length")) == ("perplexity", "none", 256)]
    nats = [one["nll"] / one["tokens"] for one in cell["samples"]]
    expected = [(first + second) / 2 for first, second in zip(nats[::2], nats[1::2], strict=True)]
    assert [*evidence_of(results, UNPATCHED, 500).read.values()] == pytest.approx(expected)


def test_more_arms_make_every_interval_wider_and_those_to_come_may_be_counted(tmp_path: Path) -> None:
    arms = {("none", 1.0): Planted(found=(50, 10)), ("yarn", 2.0): Planted(found=(50, 40))}
    results = read(plant(tmp_path / "results", arms))
    gains = [decide(results, entrants=entrants).standing(YARN).gain for entrants in (None, 2, 8)]
    alone, two, eight = (one.estimate.high - one.estimate.low for one in gains if one is not None)
    assert alone == two < eight
    evidence = [evidence_of(results, arm, 256) for arm in (UNPATCHED, YARN)]
    assert [Comparisons(evidence, entrants).error for entrants in (2, 8)] == [0.025 / 2, 0.025 / (28 * 2)]
    assert error_of(2) == 0.025 / (2 * 2 * 2)


def test_what_another_length_asks_for_changes_who_is_compared(folder: Path) -> None:
    results = read(folder)
    at = {goal: decide(results, goal=goal) for goal in (100, 256, 512, 1000)}
    assert [one.verdict for one in at.values()] == [Verdict.WITHIN, Verdict.TAKE, Verdict.TAKE, Verdict.TAKE]
    assert [one.tested for one in at.values()] == [0, 256, 512, 512]
    reach = {goal: {one.arm.factor for one in d.standings if one.reaches} for goal, d in at.items() if goal > 128}
    assert reach == {256: {1.0, 2.0, 4.0}, 512: {1.0, 4.0}, 1000: {1.0, 4.0}}
    assert decide(results).goal == 512
    assert decide(results.wanted_for(256)).goal == 256


def test_what_more_rounds_cost_is_what_earlier_ones_took(tmp_path: Path) -> None:
    arms = {("none", 1.0): Planted(found=(4, 0)), ("yarn", 2.0): Planted(found=(4, 2))}
    folder = plant(tmp_path / "results", arms, prompts=4, tasks=("passkey",))
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    for timing in timings:
        timing["seconds"] = 80.0 if (timing["task"], timing["length"]) == ("passkey", 256) else 1.0
    (folder / "timings.jsonl").write_text("".join(json.dumps(one) + "\n" for one in timings))
    need = decide(read(folder)).need
    assert need is not None
    assert need.rounds is not None
    assert need.prompts == 2 * need.rounds
    assert need.rounds_minutes == pytest.approx(need.rounds * 2 * 80 / 4 / 60)
    (folder / "timings.jsonl").write_text("")
    told = decide(read(folder)).need
    assert told is not None
    assert (told.rounds, told.rounds_minutes) == (need.rounds, None)


def test_as_many_more_rounds_as_are_named_do_tell(tmp_path: Path) -> None:
    few = {("none", 1.0): Planted(found=(4, 0)), ("yarn", 2.0): Planted(found=(4, 2))}
    need = decide(read(plant(tmp_path / "few", few, prompts=4, tasks=("passkey",)))).need
    assert need is not None
    assert need.rounds is not None
    for more, verdict in ((need.rounds, Verdict.TAKE), (need.rounds - 2, Verdict.FEW)):
        prompts = 4 + more
        enough = {("none", 1.0): Planted(found=(4, 0)), ("yarn", 2.0): Planted(found=(4, prompts // 2))}
        found = decide(read(plant(tmp_path / f"{more}", enough, prompts=prompts, tasks=("passkey",))))
        assert found.verdict is verdict


def test_a_difference_in_reading_below_the_margin_counts_for_nothing(tmp_path: Path) -> None:
    """Though windows tell it: a cheaper arm is not given up for a thousandth of perplexity."""
    alike = {"found": (50, 45), "noise": 0.0001}
    arms = {("none", 1.0): Planted(found=(50, 5), perplexity=(20, 60)),
            ("yarn", 2.0): Planted(perplexity=(20, 20.1), **alike),
            ("yarn", 4.0): Planted(perplexity=(20, 20.0), **alike)}  # fmt: skip
    decision = decide(read(plant(tmp_path / "results", arms)))
    assert decision.arm == YARN
    [tie] = decision.ties
    assert isinstance(tie, Comparison)
    assert tie.read is not None
    assert tie.read.estimate.low > 0
