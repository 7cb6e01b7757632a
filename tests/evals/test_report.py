"""The report: one well-formed page that loads nothing, and the same findings in Markdown, JSON and a model card."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from evaluations import TASKS, lines, rewrite, write_evaluation
from pages import Page
from reports import FILES, HOSTILE, json_of, page_of

from ropescale.evals import report
from ropescale.evals.results import read

VISIBLE = HOSTILE.replace("\x00", "\ufffd").replace("\u202e", "\ufffd")


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
    assert "it finds 0% (unpatched: 0%)" in json_of(folder)["verdict"]


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
