"""Every sentence of the verdict, against results planted to call for it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import Planted, lines, plant, rewrite
from pages import Page
from reports import findings_of, page_of

from ropescale import cli
from ropescale.evals import report
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.verdict import reasons, rules, verdict
from ropescale.evals.report.wording import left_out
from ropescale.evals.results import read

UNPATCHED, YARN, NTK = ("none", 1.0), ("yarn", 2.0), ("ntk", 2.0)
LOST = Planted(found=(50, 5), perplexity=(20, 60))  # what an unpatched model does beyond its length
SMOLLM2 = Path(__file__).parents[2] / "docs" / "results" / "smollm2"


def said(folder: Path, target_length: int | None = None) -> tuple[str, list[str]]:
    """The verdict and its reasons; and that every form has them."""
    findings = read_findings(read(folder).wanted_for(target_length))
    report.write(folder, target_length=target_length)
    told = json.loads((folder / "report.json").read_text())
    assert (told["verdict"], told["reasons"]) == (verdict(findings), reasons(findings))
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("report.md", "model-card.md")}
    texts = {name: re.sub(r"\\([_~*])", r"\1", text) for name, text in texts.items()}
    texts["report.html"] = Page((folder / "report.html").read_text(encoding="utf-8")).text
    for name, text in texts.items():
        assert [one for one in (verdict(findings), *reasons(findings)) if one not in text] == [], name
    return verdict(findings), reasons(findings)


def test_a_clear_winner_is_taken_and_what_it_beats_is_out_with_the_figure(tmp_path):
    arms = {UNPATCHED: LOST, YARN: Planted(found=(50, 48), perplexity=(20.5, 21)),
            NTK: Planted(found=(50, 15), perplexity=(20.5, 25))}  # fmt: skip
    sentence, why = said(plant(tmp_path / "results", arms))
    assert sentence == (
        "Take yarn at factor 2: beyond 128 and up to 256 tokens it finds 96% (unpatched: 10%); perplexity of text "
        "there \N{MINUS SIGN}65.0%; inside the original length +2.5%."
    )
    assert why[0] == (
        "yarn x2 against the unpatched model, beyond 128 and up to 256 tokens: +86 points (+55 to +98); perplexity "
        "\N{MINUS SIGN}65.0% (\N{MINUS SIGN}65.1 to \N{MINUS SIGN}64.9%)."
    )
    assert why[1] == "Out: ntk x2 (yarn x2 over it: +66 points (+35 to +88))."
    assert "The unpatched model retrieves to at most 128 tokens and keeps its perplexity to 128 tokens." in why
    assert (
        "Inside its original length the unpatched model itself scores 100%, beside the 85.6% that an effective length "
        "asks for." in why
    )
    assert why[-1] == "It was not tested beyond 256 tokens."


def test_what_is_lost_inside_the_original_length_stands_in_the_verdict(tmp_path):
    folder = plant(tmp_path / "results", {UNPATCHED: LOST, YARN: Planted(found=(20, 48), perplexity=(20.5, 21))})
    assert said(folder)[0].endswith(
        "; inside the original length +2.5%; \N{MINUS SIGN}60 points of what is found there."
    )


@pytest.mark.parametrize(
    ("other", "planted", "why"),
    [
        (NTK, Planted(found=(50, 43), perplexity=(20.6, 21), shift=5), "it loses less inside the original length"),
        (NTK, Planted(found=(50, 37), perplexity=(20.1, 21), shift=13), "it was seen to find more"),
        (NTK, Planted(found=(50, 43), perplexity=(20.1, 22), noise=0.3), "it was seen to read better"),
        (("yarn", 4.0), Planted(found=(50, 45), perplexity=(20.1, 21), shift=5), "its factor is smaller"),
        (
            ("self_extend", 2.0),
            Planted(found=(50, 45), perplexity=(20.1, 21), shift=5),
            "it needs no change of how attention reads",
        ),
        (("yarn+mine", 2.0), Planted(found=(50, 45), perplexity=(20.1, 21), shift=5), "it needs no adapter"),
    ],
    ids=["inside", "finds", "reads", "factor", "late", "adapter"],
)  # fmt: skip
def test_of_a_tie_the_cheaper_and_safer_one_is_taken_with_the_reason(tmp_path, other, planted, why):
    arms = {UNPATCHED: LOST, YARN: Planted(found=(50, 43), perplexity=(20.5, 21)), other: planted}
    sentence, given = said(plant(tmp_path / "results", arms))
    named = f"{other[0]} x{other[1]:g}".removeprefix("yarn+") if "+" not in other[0] else "yarn+mine x2"
    assert sentence.startswith(f"Take yarn at factor 2 (tied with {named}): ")
    [tie] = [one for one in given if "cannot be told from it" in one]
    assert tie.startswith(f"{named} cannot be told from it (")
    assert tie.endswith(f"): yarn x2 is taken since {why}.")


def test_the_one_that_is_shown_to_help_is_taken_before_one_that_is_not(tmp_path):
    arms = {UNPATCHED: Planted(found=(50, 20)), NTK: Planted(found=(50, 36), shift=10), YARN: Planted(found=(50, 45))}
    sentence, why = said(plant(tmp_path / "results", arms, tasks=("passkey",)))
    assert sentence == (
        "Take yarn at factor 2 (tied with ntk x2): beyond 128 and up to 256 tokens it finds 90% (unpatched: 40%)."
    )
    assert any(
        one.endswith("since it alone of the two is shown to do better than the unpatched model.") for one in why
    )
    assert (
        "At the rates seen so far, about 37 more prompts of each length and depth (74 in all, 4 s) would tell ntk x2 "
        "and yarn x2 apart." in why
    )
    assert "No perplexity was measured." in why


def test_where_no_arm_makes_a_difference_nothing_is_scaled(tmp_path):
    alike = Planted(found=(300, 150))
    folder = plant(tmp_path / "results", {UNPATCHED: alike, YARN: alike, NTK: alike}, prompts=300)
    sentence, why = said(folder)
    assert sentence == (
        "Scale nothing: up to 256 tokens no arm does better than the unpatched model by more than 5 points of what is "
        "found or 2% of perplexity."
    )
    assert why[0].startswith(
        "Out: yarn x2 (no gain that counts over the unpatched model: ±0 points (\N{MINUS SIGN}3 to +3)); ntk x2 ("
    )
    assert 'recommended": null' in (folder / "report.json").read_text()


def test_where_the_unpatched_model_gets_there_itself_nothing_is_scaled(tmp_path):
    arms = {UNPATCHED: Planted(found=(60, 60)), YARN: Planted(found=(60, 58)), NTK: Planted(found=(60, 55))}
    assert said(plant(tmp_path / "results", arms, prompts=60))[0] == (
        "Scale nothing: the unpatched model itself retrieves and keeps its perplexity to at least 256 tokens, and no "
        "arm is shown to do better."
    )


@pytest.mark.parametrize(("others", "named"), [((YARN,), "yarn x2"), ((YARN, NTK), "every arm")])
def test_where_the_unpatched_model_does_better_nothing_is_scaled(tmp_path, others, named):
    arms = {UNPATCHED: Planted(found=(50, 48)), **dict.fromkeys(others, Planted(found=(50, 5), perplexity=(20, 30)))}
    sentence, why = said(plant(tmp_path / "results", arms))
    assert sentence == f"Scale nothing: the unpatched model does better than {named} up to 256 tokens."
    assert why[0].startswith("Out: yarn x2 (the unpatched model over it: +86 points (+")


def test_too_few_prompts_and_windows_are_said_with_how_many_more_would_tell_and_what_they_cost(tmp_path):
    arms = {UNPATCHED: Planted(found=(5, 0), perplexity=(20, 60), noise=0.1),
            YARN: Planted(found=(5, 3), perplexity=(20, 30), noise=0.1),
            NTK: Planted(found=(5, 1), perplexity=(20, 30), noise=0.1)}  # fmt: skip
    sentence, why = said(plant(tmp_path / "results", arms, prompts=5, windows=2))
    assert sentence == (
        "Too few prompts and windows of text to tell what does better up to 256 tokens: beyond 128 yarn x2 finds 60%, "
        "the unpatched model 0%; that may be chance."
    )
    assert why[0].startswith(
        "yarn x2 against the unpatched model, beyond 128 and up to 256 tokens: +60 points (\N{MINUS SIGN}68 to +99); "
    )
    assert why[0].endswith("% (too few windows).")
    assert why[1] == "Nor can be told from the unpatched model: ntk x2."
    assert why[2].startswith(
        "At the rates seen so far, about 15 more prompts of each length and depth (30 in all, 17 s) or "
    )
    assert why[2].endswith(" would tell yarn x2 and the unpatched model apart.")


@pytest.mark.parametrize(
    ("tasks", "sentence", "need"),
    [
        (
            ("passkey",),
            "Too few prompts to tell what does better up to 256 tokens: beyond 128 yarn x2 finds 0%, as the unpatched "
            "model does.",
            "So far yarn x2 and the unpatched model do alike, so no number of prompts can be named that would tell "
            "them apart.",
        ),
        (
            ("position",),
            "Too few windows of text to tell what does better up to 256 tokens: yarn x2 was seen to do best, "
            "perplexity \N{MINUS SIGN}65.0% (too few windows).",
            "At the rates seen so far, about 1 more window of text (3 s) would tell yarn x2 and the unpatched model "
            "apart.",
        ),
    ],
)
def test_too_few_of_one_kind_are_said_too(tmp_path, tasks, sentence, need):
    arms = {UNPATCHED: Planted(perplexity=(20, 60)), YARN: Planted(perplexity=(20, 21))}
    found, why = said(plant(tmp_path / "results", arms, prompts=5, windows=2, tasks=tasks))
    assert found == sentence
    assert need in why


def test_measures_that_contradict_one_another_name_no_arm(tmp_path):
    arms = {UNPATCHED: Planted(found=(50, 5)), YARN: Planted(found=(50, 48), perplexity=(20, 30))}
    sentence, why = said(plant(tmp_path / "results", arms))
    assert sentence == (
        "No arm can be named for 256 tokens: yarn x2 finds more than the unpatched model (+86 points (+59 to +98)) "
        "and reads text worse (perplexity +50.0% (+49.5 to +50.4%))."
    )
    assert why[0].startswith("yarn x2 against the unpatched model, ")


def test_two_arms_of_which_one_finds_more_and_the_other_reads_better_are_both_named(tmp_path):
    arms = {UNPATCHED: LOST, YARN: Planted(found=(50, 48), perplexity=(20, 30)),
            NTK: Planted(found=(50, 25), perplexity=(20, 22))}  # fmt: skip
    assert said(plant(tmp_path / "results", arms))[0].startswith(
        "No arm can be named for 256 tokens: yarn x2 finds more than ntk x2 (+46 points (+18 to +73)) and reads text "
        "worse (perplexity +36.3% ("
    )


def test_an_arm_that_is_not_finished_is_named_and_the_others_are_decided_between(tmp_path):
    arms = {UNPATCHED: LOST, YARN: Planted(found=(50, 48)), NTK: Planted(found=(50, 50))}
    folder = plant(tmp_path / "results", arms)
    rewrite(folder, lines(folder)[:-1])
    sentence, why = said(folder)
    assert sentence.startswith("Take yarn at factor 2: ")
    assert "Decided without ntk x2: not finished." in why


def test_an_arm_that_dropped_out_of_a_race_is_out_with_its_figure_and_not_unfinished(tmp_path):
    arms = {UNPATCHED: LOST, YARN: Planted(found=(50, 48)), NTK: Planted(found=(50, 5), shift=30)}
    folder = plant(tmp_path / "results", arms)
    fewer = [
        {**cell, "samples": cell["samples"][:30]} if cell["method"] == "ntk" and cell["task"] == "passkey" else cell
        for cell in lines(folder)
    ]
    rewrite(folder, fewer)
    sentence, why = said(folder)
    assert sentence.startswith("Take yarn at factor 2: ")
    assert any(one.startswith("Out: ntk x2 (yarn x2 over it: +100 points (+") for one in why)
    findings = findings_of(folder)
    assert findings.unfinished == ()
    assert left_out(findings) == [
        "With fewer prompts or windows than other arms, and compared on those that both have: ntk x2."
    ]
    assert "0/30" in page_of(folder).text


def test_a_smaller_factor_is_not_compared_beyond_what_it_was_run_to_and_is_for_a_shorter_target(folder):
    sentence, why = said(folder)
    assert sentence.startswith("Take yarn at factor 4: beyond 128 and up to 512 tokens it finds 92% (unpatched: ")
    assert "Not run up to 512 tokens, so not compared there: linear x2, ntk x2, yarn x2." in why
    shorter, why = said(folder, 256)
    assert shorter.startswith(
        "Take yarn at factor 2 (tied with ntk x4, yarn x4): beyond 128 and up to 256 tokens it finds 96% "
    )
    assert not any("not compared" in one for one in why)


def test_the_target_length_is_what_the_verdict_is_about(tmp_path):
    folder = plant(tmp_path / "results", {UNPATCHED: LOST, YARN: Planted(found=(50, 48))})
    assert said(folder, 100)[0] == "Scale nothing: 100 tokens lie within the original length of 128."
    assert said(folder, 200)[0] == (
        "Nothing can be said of 200 tokens: no prompt or text longer than the original 128 tokens was tested up to "
        "there."
    )
    sentence, why = said(folder, 300)
    assert sentence == said(folder)[0]
    assert "Asked for were 300 tokens; the longest length tested up to there is 256." in why


def test_the_target_length_of_an_evaluation_is_that_of_its_report(tmp_path, capsys):
    folder = plant(tmp_path / "results", {UNPATCHED: LOST, YARN: Planted(found=(50, 48))})
    told = json.loads((folder / "run.json").read_text())
    told["settings"]["target_length"] = 100
    (folder / "run.json").write_text(json.dumps(told))
    assert said(folder)[0].startswith("Scale nothing: 100 tokens")
    assert cli.main(["report", str(folder), "--target-length", "256"]) == 0
    assert (folder / "report.md").read_text().startswith("# Take yarn at factor 2")
    assert cli.main(["report", str(folder), "--target-length", "0"]) == 2
    assert "--target-length must be at least 1, got 0" in capsys.readouterr().err


def test_without_a_retrieval_task_perplexity_alone_decides_and_is_said_not_to_show_use(tmp_path):
    arms = {UNPATCHED: LOST, YARN: Planted(perplexity=(20.5, 21))}
    sentence, why = said(plant(tmp_path / "results", arms, tasks=("position",)))
    assert sentence == (
        "Take yarn at factor 2: perplexity of text beyond 128 and up to 256 tokens \N{MINUS SIGN}65.0%; inside the "
        "original length +2.5%."
    )
    assert "No retrieval task was run, and perplexity alone does not show that the context is used." in why


@pytest.mark.parametrize(
    ("planted", "prompts", "windows", "said_of_it"),
    [
        (Planted(found=(60, 60)), 60, 12, "retrieves and keeps its perplexity to at least 256 tokens"),
        (Planted(found=(60, 0), perplexity=(20, 60)), 60, 12, "retrieves and keeps its perplexity to 128 tokens"),
        (
            Planted(found=(0, 0), perplexity=(20, 25)),
            60,
            12,
            "retrieves only below 128 tokens and keeps its perplexity to at least 128 tokens",
        ),
        (
            Planted(found=(4, 0)),
            10,
            3,
            "retrieves to at most 128 tokens and keeps its perplexity to at least 128 tokens",
        ),
    ],
    ids=["both", "told", "nowhere", "few"],
)
def test_without_a_method_the_unpatched_model_is_described_with_bounds(
    tmp_path, planted, prompts, windows, said_of_it
):
    folder = plant(tmp_path / "results", {UNPATCHED: replace(planted, noise=0.02)}, prompts=prompts, windows=windows)
    assert said(folder)[0] == f"Unpatched, the model {said_of_it}; no method has been evaluated yet."


def test_the_rules_say_what_the_thresholds_are_and_which_intervals_hold_together(folder):
    said_of_it = " ".join(rules(findings_of(folder)))
    assert "the score of Llama-2-7B at 4,096 tokens, which a small model may reach nowhere" in said_of_it
    assert "the factor is a convention" in said_of_it
    assert "of 95% each, for one look" in said_of_it
    assert "holds together with 95%, however often one looks and adds prompts" in said_of_it


# the published results


@pytest.fixture
def smollm2(tmp_path):
    folder = tmp_path / "smollm2"
    shutil.copytree(SMOLLM2, folder)
    return folder


def change(folder: Path, method: str, length: int, found: int) -> None:
    """So many of the passkeys of an arm are found at a length."""
    cells = lines(folder)
    for cell in cells:
        if (cell["method"], cell["task"], cell.get("length")) == (method, "passkey", length):
            cell["samples"] = [{**one, "score": float(i < found)} for i, one in enumerate(cell["samples"])]
    rewrite(folder, cells)


def test_five_prompts_of_smollm2_do_not_tell_which_method_is_better(smollm2):
    sentence, why = said(smollm2)
    assert sentence == (
        "Too few prompts and windows of text to tell what does better up to 16,384 tokens: beyond 8,192 by_parts x2 "
        "finds 60%, the unpatched model 0%; that may be chance."
    )
    assert "Nor can be told from the unpatched model: linear x2, ntk x2, yarn x2." in why
    assert any(one.startswith("At the rates seen so far, about 4 more prompts of each length") for one in why)
    assert "by_parts x2 retrieves and keeps its perplexity to a length that cannot be told." in why
    assert (
        "Inside its original length the unpatched model itself scores 70%, beside the 85.6% that an effective length "
        "asks for." in why
    )


def test_an_arm_that_extends_nothing_is_not_taken_for_a_lucky_prompt_inside(smollm2):
    """Only ntk, with the losses of the unpatched model and 0 of 5 at 16,384, but one more passkey inside."""
    cells = lines(smollm2)
    unpatched = next(c for c in cells if (c["method"], c["task"], c.get("length")) == ("none", "position", 16384))
    for cell in cells:
        if (cell["method"], cell["task"]) == ("ntk", "position"):
            cell["samples"] = unpatched["samples"]
    rewrite(smollm2, [c for c in cells if c["method"] in ("none", "ntk")])
    change(smollm2, "ntk", 16384, 0)
    sentence, _ = said(smollm2)
    assert not sentence.startswith("Take ")
    assert sentence.startswith("Too few prompts and windows of text to tell")


@pytest.mark.parametrize("copies", [1, 5])
def test_five_of_five_are_not_beaten_by_two_hundredths_of_perplexity_inside(smollm2, copies):
    """Neither as published, where nothing is told, nor with five times the prompts and windows."""
    change(smollm2, "by_parts", 16384, 5)
    change(smollm2, "ntk", 16384, 0)
    cells = lines(smollm2)
    for cell in cells:
        if cell["task"] in ("passkey", "position"):
            cell["samples"] = [
                {**one, **({"document": f"{one['document']} {i}"} if "nll" in one else {})}
                for one in cell["samples"]
                for i in range(copies)
            ]
    rewrite(smollm2, cells)
    sentence, _ = said(smollm2)
    if copies == 1:
        assert ": beyond 8,192 by_parts x2 finds 100%, the unpatched model 0%" in sentence
    else:
        assert sentence.startswith("Take by_parts at factor 2: beyond 8,192 and up to 16,384 tokens it finds 100% ")
