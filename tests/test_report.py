"""The report: one well-formed file that loads nothing, whatever the results hold."""

import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from ropescale import cli
from ropescale.evals import report, results
from ropescale.evals.results import UNPATCHED, Arm

HOSTILE = "</pre><script>alert('x')</script>\"'&<img src=http://example.org onerror=alert(1)>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers what the page would load or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def folder(tmp_path):
    """Finished results with hostile strings wherever a string can come from outside."""
    settings = results.Settings(
        model=HOSTILE,
        weights="0123456789abcdef",
        dtype="float32",
        original_length=128,
        lengths=(128, 256, 512),
        depths=(0.0, 1.0),
        samples=5,
        seed=0,
        documents=((HOSTILE, 2), ("b", 1)),
        texts="0123456789abcdef",
        versions=(("torch", HOSTILE),),
    )
    session = {"command": f"ropescale demo {HOSTILE}", "date": HOSTILE, "processor": HOSTILE, "system": HOSTILE}
    found = results.start(tmp_path, settings, session)
    arms = [Arm(method=method, factor=factor) for factor in (2.0, 4.0) for method in ("linear", "yarn", HOSTILE)]
    for arm in (UNPATCHED, *arms):
        for key in settings.keys(arm):
            cell = {"task": key[0], "method": arm.method, "factor": arm.factor}
            if key[0] == "record":
                cell["record"] = {"method": HOSTILE, "knobs": {"k": 1}}
            elif key[0] == "perplexity":
                edges = list(range(0, settings.reach(arm) + 1, 16))
                losses = [48 + 0.1 * i for i in range(len(edges) - 1)]
                cell |= {"document": key[3], "edges": edges, "nll_sum": losses, "count": [16] * len(losses)}
            else:
                cell |= {"length": key[3], "depth": key[4], "samples": 5, "correct": 4}
            found.append(cell)
    return tmp_path


def test_the_report_is_well_formed_small_and_loads_nothing(folder):
    text = report.write(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 1_500_000
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    loading = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "data", "srcset"}]
    assert all(value.startswith("#") for value in loading)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", text)


def test_hostile_strings_stay_text(folder):
    text = report.write(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert HOSTILE in "".join(Page(text).text)


def test_no_identifier_stands_twice_and_every_reference_has_its_target(folder):
    text = report.write(folder).read_text(encoding="utf-8")
    ids = Page(text).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(ids)


def test_the_report_of_the_same_results_is_the_same_bytes(folder):
    assert report.write(folder).read_bytes() == report.write(folder).read_bytes()


def test_the_verdict_the_figures_and_the_record_are_in_it(folder):
    found = results.read(folder)
    page = Page(report.write(folder).read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert results.verdict(results.table(found), found.settings) in text
    assert results.RULE in text
    assert "80%4/5" in text
    assert text.count('"knobs"') == 6
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert [label.partition(",")[0] for label in labels] == [
        "Perplexity by position at factor 2",
        "Perplexity by position at factor 4",
    ]
    assert not re.search("#0[123][0-9a-f]{4}", "".join(text)), "a stand-in colour was not replaced"


def test_an_unfinished_arm_is_named_and_left_out(folder):
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    text = "".join(Page(report.write(folder).read_text(encoding="utf-8")).text)
    assert f"Not finished, so left out: {Arm(method=HOSTILE, factor=4.0).label}." in text


def test_the_command_writes_it_and_prints_where(folder, capsys):
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"


def test_settings_survive_the_disk(folder):
    found = results.read(folder)
    assert asdict(found.settings)["documents"] == ((HOSTILE, 2), ("b", 1))
    assert found.settings.reach(UNPATCHED) == 512
