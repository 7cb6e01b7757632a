"""Two folders of results beside one another: what was planted is claimed, nothing else is, and bad input refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import untouched
from evaluations import Planted, lines, plant, rewrite
from pages import Page

import ropescale
from ropescale import cli
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals.paired import compare, differences
from ropescale.evals.paired.differences import Differences
from ropescale.evals.paired.tables import settings
from ropescale.evals.paired.wording import heading, left_out, reasons, untold

UNPATCHED, YARN, NTK = ("none", 1.0), ("yarn", 2.0), ("ntk", 2.0)
PLAIN = Planted(found=(48, 5), perplexity=(20, 60))
FOLDERS = ("run.json", "results.jsonl")


def folder_of(path: Path, arms: Mapping[tuple[str, float], Planted], *, seed: int = 0, **more: Any) -> Path:
    """A planted folder whose samples say what was asked: other prompts for another seed, the same windows."""
    plant(path, {UNPATCHED: PLAIN, **arms}, **more)
    change(path, lambda settings: settings.update(seed=seed, tokenizer="cafe"))

    def told(cell: dict[str, Any]) -> None:
        for place, one in enumerate(cell["samples"]):
            one["digest"] = f"w{place}" if "nll" in one else f"{seed}-{cell['length']}-{place}"

    edit(path, told)
    return path


def edit(folder: Path, change_cell: Callable[[dict[str, Any]], object]) -> None:
    cells = lines(folder)
    for cell in cells:
        if "samples" in cell:
            change_cell(cell)
    rewrite(folder, cells)


def change(folder: Path, changed: Callable[[dict[str, Any]], object]) -> None:
    run = json.loads((folder / "run.json").read_text())
    changed(run["settings"])
    (folder / "run.json").write_text(json.dumps(run))


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "before", {YARN: Planted(found=(48, 20), perplexity=(20, 24))})


def told(made: Differences, method: str = "yarn", about: str = "beyond") -> str:
    """What is claimed of one arm, in a word."""
    (claim,) = [one for one in made.claims if one.arms[1].method == method and one.about == about]
    return "better" if claim.better_by else "worse" if claim.worse_by else "alike" if claim.alike else "nothing"


@pytest.mark.parametrize(
    ("after", "wanted", "said"),
    [
        (Planted(found=(48, 45), perplexity=(20, 24)), "better", "B finds more than A: +50 points"),
        (Planted(found=(48, 20), perplexity=(20, 21)), "better", "B reads text better than A"),
        (Planted(found=(48, 2), perplexity=(20, 24)), "worse", "B finds less than A: \N{MINUS SIGN}36 points"),
        (Planted(found=(48, 20), perplexity=(20, 30)), "worse", "B reads text worse than A"),
        (Planted(found=(48, 22), perplexity=(20, 24)), "nothing", "B cannot be told from A"),
        (Planted(found=(48, 20), perplexity=(20, 24)), "nothing", "B cannot be told from A"),
        (Planted(found=(48, 45), perplexity=(20, 30)), "nothing", "B finds more and reads text worse than A"),
    ],
    ids=["finds more", "reads better", "finds less", "reads worse", "chance", "same", "opposed"],
)
def test_what_was_planted_is_told(before: Path, tmp_path: Path, after: Planted, wanted: str, said: str) -> None:
    made = differences(before, folder_of(tmp_path / "after", {YARN: after}))
    assert told(made) == wanted
    assert told(made, "none") == "nothing"  # the unpatched model answered alike in both
    every = {*reasons(made), *untold(made)}
    (sentence,) = [one for one in every if one.startswith("With yarn x2, beyond 128 and up to 256 tokens, ")]
    assert said in sentence
    if wanted in ("better", "worse"):
        assert f"B (after) does {wanted} than A (before) beyond 128 tokens with yarn x2." == heading(made)


def test_enough_prompts_of_which_none_differs_show_that_the_two_do_alike(tmp_path: Path) -> None:
    alike = Planted(found=(480, 200), perplexity=(20, 24))
    folders = [
        folder_of(tmp_path / name, {YARN: alike, UNPATCHED: alike}, prompts=500) for name in ("before", "after")
    ]
    made = differences(*folders)
    assert {told(made, arm, about) for arm in ("none", "yarn") for about in ("within", "beyond")} == {"alike"}
    assert heading(made) == "B (after) and A (before) do alike."


def test_rows_in_another_order_are_the_same_rows(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: Planted(found=(48, 45), perplexity=(20, 21))})
    straight = differences(before, after)
    shuffled = random.Random(0)
    edit(after, lambda cell: shuffled.shuffle(cell["samples"]))
    rewrite(after, lines(after)[::-1])
    again = differences(before, after)
    assert reasons(again) == reasons(straight)
    assert {(row.task.name, row.length, row.band, row.change.value, row.count) for row in again.rows} == {
        (row.task.name, row.length, row.band, row.change.value, row.count) for row in straight.rows
    }


def test_the_difference_is_that_of_the_prompts_that_both_have(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: Planted(found=(48, 45), perplexity=(20, 24))})

    def without(cell: dict[str, Any]) -> None:
        if cell["task"] == "passkey":  # the first 30 of B are missing, and one of A is another
            cell["samples"] = cell["samples"][30:]

    edit(after, without)
    made = differences(before, after)
    (row,) = [
        row for row in made.rows if row.task.name == "passkey" and row.length == 256 and row.arms[0].method == "yarn"
    ]
    assert (row.count, row.alone) == (20, (30, 0))
    assert (row.before, row.after) == (0.0, 0.75)  # of prompts 30 to 49 A found none (0 to 19), B 15 (0 to 44)
    assert "120 of A and 0 of B" in " ".join(left_out(made))


def test_prompts_of_another_seed_are_no_samples_of_these_while_windows_are(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: Planted(found=(48, 45), perplexity=(20, 21))}, seed=1)
    made = differences(before, after)
    assert {row.task.name for row in made.rows} == {"position"}
    assert "passkey was asked otherwise in A and B, so it is not compared: seed 0 and 1." in left_out(made)
    with pytest.raises(InvalidArgumentError, match=r"must hold the same prompts .*passkey: seed 0 and 1\); evaluate"):
        differences(*(plant_alone(tmp_path / f"alone-{seed}", seed) for seed in (0, 1)))


def plant_alone(path: Path, seed: int) -> Path:
    return folder_of(path, {YARN: PLAIN}, seed=seed, tasks=("passkey",))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda settings: settings["tasks"]["passkey"].update(version=2), "passkey: version 1 and 2"),
        (lambda settings: settings.update(tokenizer="beef"), "passkey: tokenizer cafe and beef"),
        (lambda settings: settings["tasks"]["passkey"].update(chat=True), "passkey: chat  and True"),
    ],
    ids=["version", "tokenizer", "chat"],
)
def test_what_keeps_two_folders_apart_is_named(tmp_path: Path, changed: Any, said: str) -> None:
    folders = [plant_alone(tmp_path / name, seed) for seed, name in enumerate(("before", "after"))]
    change(folders[1], lambda settings: (settings.update(seed=0), changed(settings)))
    with pytest.raises(InvalidArgumentError, match=said):
        differences(*folders)


def test_a_task_of_another_version_is_scored_otherwise_also_where_it_asks_the_same(
    before: Path, tmp_path: Path
) -> None:
    after = folder_of(tmp_path / "after", {YARN: PLAIN})
    change(after, lambda settings: settings["tasks"]["passkey"].update(version=2))
    made = differences(before, after)
    assert "passkey was asked otherwise in A and B, so it is not compared: version 1 and 2." in left_out(made)
    assert {row.task.name for row in made.rows} == {"position"}


def test_arms_of_other_names_are_compared_where_it_is_asked(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {NTK: Planted(found=(48, 45), perplexity=(20, 24))})
    made = differences(before, after)
    assert "In A alone, so not compared: yarn x2." in left_out(made)
    assert "In B alone, so not compared: ntk x2." in left_out(made)
    made = differences(before, after, arms=[("yarn x2", "ntkx2"), ("unpatched", "ntk")])
    assert [(one.method, other.method) for one, other in made.pairing.arms] == [("yarn", "ntk"), ("none", "ntk")]
    assert reasons(made)[0].startswith(
        "With yarn x2 in A and ntk x2 in B, beyond 128 and up to 256 tokens, B finds more than A: +50 points"
    )
    for arms, said in (
        (("yarn", "nkt"), "got 'nkt'; it has none, ntk x2"),
        (("x", "ntk"), "got 'x'; it has none, yarn x2"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            differences(before, after, arms=[arms])


def test_a_folder_that_is_not_finished_is_compared_and_said(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: Planted(found=(48, 45), perplexity=(20, 24))})
    rewrite(after, [c for c in lines(after) if (c["task"], c["method"], c.get("length")) != ("passkey", "yarn", 128)])
    made = differences(before, after)
    assert "B is not finished: yarn x2." in left_out(made)
    assert told(made) == "better"


def test_results_without_digests_are_paired_by_what_they_say_where_the_weights_are_the_same(
    before: Path, tmp_path: Path
) -> None:
    after = folder_of(tmp_path / "after", {YARN: Planted(found=(48, 45), perplexity=(20, 21))})
    wanted = {(row.task.name, row.change) for row in differences(before, after).rows}
    for folder in (before, after):
        edit(folder, lambda cell: [one.pop("digest") for one in cell["samples"]])
        change(folder, lambda settings: settings.pop("tokenizer"))
    made = differences(before, after)
    assert {(row.task.name, row.change) for row in made.rows} == wanted
    change(after, lambda settings: settings.update(weights="fedc"))
    with pytest.raises(InvalidArgumentError, match="passkey: weights 0123456789abcdef and fedc"):
        differences(before, after)


def test_what_differs_besides_stands_in_a_table(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: PLAIN})
    change(after, lambda settings: settings.update(dtype="bfloat16", weights="fedc", adapters={"yarn+mine": "12"}))
    change(after, lambda settings: settings["versions"].update(torch="2.14.0"))
    compare(before, after, output=tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["settings"]
    assert rows == {
        "parameters": {"a": "0123456789abcdef", "b": "fedc"},
        "dtype": {"a": "float32", "b": "bfloat16"},
        "torch": {"a": "2.13.0", "b": "2.14.0"},
        "adapter of yarn+mine": {"a": "", "b": "12"},
    }
    assert "| dtype | float32 | bfloat16 |" in (tmp_path / "out" / "comparison.md").read_text()


def test_the_command_writes_page_markdown_and_numbers_beside_and_nothing_within(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    after = folder_of(tmp_path / "after", {YARN: Planted(found=(48, 45), perplexity=(20, 24))})
    with untouched(before), untouched(after):
        assert cli.main(["report", "before", "after"]) == 0
    printed = capsys.readouterr().out
    made = tmp_path / "out" / "compare-before-after"
    assert {path.name for path in made.iterdir()} == {"comparison.html", "comparison.md", "comparison.json"}
    said = "B (after) does better than A (before) beyond 128 tokens with yarn x2."
    page = Page((made / "comparison.html").read_text())
    assert said in printed
    assert said in page.text
    assert "+50 points" in printed
    assert printed.endswith("next: ropescale report after\n")
    assert len(page.all("svg")) == 4  # two arms, by what is found and by perplexity
    first = {path: path.read_bytes() for path in made.iterdir()}
    assert cli.main(["report", "before", "after", "--output", str(made)]) == 0
    assert {path: path.read_bytes() for path in made.iterdir()} == first


def test_a_wrong_command_is_refused_with_nothing_written(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = folder_of(tmp_path / "after", {YARN: PLAIN})
    (tmp_path / "empty").mkdir()
    a, b = str(before), str(after)
    with untouched(tmp_path):
        for words, said in (
            ([a, a], "must be two"),
            ([a, f"{a}/../before"], "must be two"),
            ([a, str(tmp_path / "gone")], "must hold the run.json of an evaluation"),
            ([a, str(tmp_path / "empty")], "must hold the run.json of an evaluation"),
            ([a, b, "--output", a], "--output must be a folder apart"),
            ([a, b, "--output", f"{b}/within"], "--output must be a folder apart"),
            ([a, b, "--output", f"{b}/run.json"], "--output"),
            ([a, b, "--target-length", "512"], "--target-length must be left out for two folders"),
            ([a, b, "--arms", "yarn"], "--arms must be one of each folder"),
            ([a, b, "--arms", "yarn=gone"], "--arms must name one of"),
            ([a, "--arms", "yarn=yarn"], "--arms must be left out for one folder"),
            ([a, "--output", "elsewhere"], "--output must be left out for one folder"),
        ):
            assert cli.main(["report", *words]) == 2, words
            assert said in capsys.readouterr().err, words


def test_a_damaged_cell_is_refused(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: PLAIN})
    edit(after, lambda cell: [one.pop("score", None) for one in cell["samples"]])
    with pytest.raises(InvalidArgumentError, match="a sample without score in 'passkey'"):
        differences(before, after)


def test_a_place_that_cannot_be_written_is_named(before: Path, tmp_path: Path) -> None:
    after = folder_of(tmp_path / "after", {YARN: PLAIN})
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(CheckpointError, match="taken"):
        compare(before, after, output=tmp_path / "taken" / "out")


def drawn(
    path: Path, rates: Mapping[tuple[str, float], tuple[float, float]], rng: np.random.Generator, **more: Any
) -> Path:
    """A folder whose arms find prompts at these rates, within the original length and beyond; losses with noise."""
    prompts, windows = more["prompts"], more["windows"]
    folder_of(path, dict.fromkeys(rates, PLAIN), prompts=prompts, windows=windows)

    def by_chance(cell: dict[str, Any]) -> None:
        rate = rates[cell["method"], cell["factor"]]
        for one in cell["samples"]:
            if "nll" in one:
                one["nll"] = [
                    nats + tokens * rng.normal(0, 0.02) for nats, tokens in zip(one["nll"], one["tokens"], strict=True)
                ]
            else:
                one["score"] = float(rng.random() < rate[cell["length"] > 128])

    edit(path, by_chance)
    return path


def wrongly_claimed(tmp_path: Path, trials: int) -> float:
    """In how many of simulated comparisons anything is claimed that is not so.

    Every arm finds as much in both folders, but for one that finds less in B; text is read alike by all. So whatever
    says that B is better is wrong, and so is whatever says that another arm is worse.
    """
    wrong = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        rate = {arm: tuple(rng.choice([0.1, 0.5, 0.9], 2)) for arm in (UNPATCHED, YARN, NTK)}
        lower = {**rate, NTK: tuple(0.6 * one for one in rate[NTK])}
        more = {"prompts": int(rng.choice([8, 40])), "windows": int(rng.choice([4, 12]))}
        made = differences(
            drawn(tmp_path / f"a{trial}", rate, rng, **more), drawn(tmp_path / f"b{trial}", lower, rng, **more)
        )
        wrong += any(claim.better_by or (claim.worse_by and claim.arms[0].method != "ntk") for claim in made.claims)
    return wrong / trials


def test_what_is_not_so_is_claimed_in_few_of_simulated_comparisons(tmp_path: Path) -> None:
    assert wrongly_claimed(tmp_path, 20) <= 0.05


@pytest.mark.slow
def test_what_is_not_so_is_claimed_in_few_of_many_simulated_comparisons(tmp_path: Path) -> None:
    assert wrongly_claimed(tmp_path, 400) <= 0.05


@pytest.mark.slow
def test_real_evaluations_share_what_they_asked_in_other_types_and_not_by_other_seeds(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "methods": ["none"],
        "tasks": ["position", "perplexity", "passkey", "cloze"],
        "lengths": [128, 256],
        "depths": [0.5],
        "samples": 2,
        "windows": 2,
        "limit": 6,
    }
    for name, more in (("a", {}), ("b", {"dtype": "bfloat16"}), ("c", {"seed": 1})):
        ropescale.evaluate("tiny", output=tmp_path / name, **asked, **more)
    made = differences(tmp_path / "a", tmp_path / "b")
    assert {row.task.name for row in made.rows} == {*asked["tasks"]}
    assert {row.alone for row in made.rows} == {(0, 0)}
    assert made.pairing.digests
    assert "dtype" in {name for name, _, _ in settings(made)}
    made = differences(tmp_path / "a", tmp_path / "c")
    assert {row.task.name for row in made.rows} == {"position", "perplexity", "cloze"}
    assert {*made.pairing.apart.values()} == {"seed 0 and 1"}
