"""The page of `ropescale explain`: it says what the theory says, loads nothing and runs nothing."""

from __future__ import annotations

import math
import re

import pytest
from explaining import PLAIN, TINY
from pages import Page

from ropescale import get_method
from ropescale.explain import page, readings, theory
from ropescale.explain.subject import METHODS
from ropescale.pages.elements import number
from ropescale.temperature import Temperature

HOSTILE = "</title></style><script>alert('x')</script>\"'&<img src=http://example.org onerror=alert(1)>\x00\u202e"


def page_of(model: str, names: list[str], length: int = 512) -> str:
    methods = [get_method(name)(factor=length / 128) for name in names]
    return page.page(model, TINY, readings.readings(TINY, methods, length=length, heads=4))


def test_every_method_has_its_place_in_a_page_that_loads_and_runs_nothing():
    text = page_of("tiny", PLAIN)
    parsed = Page(text)
    labels = [attrs["aria-label"] for tag, attrs in parsed.elements if tag == "svg" and attrs.get("role") == "img"]
    for name in PLAIN:
        shown = {"ms_poe": "ms_poe in 3 of 4 layers"}.get(name, name)
        assert f"Score against distance, {shown}" in labels
    assert len(labels) == len(set(labels))
    drawings = [attrs for tag, attrs in parsed.elements if tag == "svg"]
    assert all(attrs.get("role") == "img" or attrs.get("aria-hidden") == "true" for attrs in drawings)
    figures = sum(tag == "figure" for tag, _ in parsed.elements)
    assert figures == len(labels) == sum(tag == "details" for tag, _ in parsed.elements)
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in parsed.elements}
    loading = {"src", "href", "srcset", "action", "data", "xlink:href"}
    for _, attrs in parsed.elements:
        assert all(attrs[name].startswith("#") for name in loading & set(attrs))  # within the page
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in " ".join(parsed.texts)
    assert not re.search(r'd="[^"]*(nan|inf)', text)
    assert len(text) < 500_000


def test_a_hostile_name_is_text():
    parsed = Page(page_of(HOSTILE, ["yarn"]))
    visible = HOSTILE.replace("\x00", "\ufffd").replace("\u202e", "\ufffd")
    assert f"What positions do to a score in {visible}" in parsed.texts
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in Page(page_of("tiny", ["yarn"])).elements]


def test_the_page_says_what_the_theory_says():
    rows = {"theta": "10,000", "pairs": "16", "pairs without a full turn": "10 of 16", "critical pair": "6"}
    found = readings.readings(TINY, [get_method("linear")(factor=4.0)], length=512)
    facts = {name: value for name, (value, _) in readings.facts(TINY, found[0]).items()}
    assert rows.items() <= facts.items()
    first = theory.first_negative(TINY, 10_000)
    assert facts["first negative B(m)"] == str(first)
    # linear stretches distances by the factor: its first whole negative distance lies just below four times as far
    assert 4 * (first - 1) < found[1].first_negative <= 4 * first
    assert readings.effects(found[1], found[0])[1:4] == ["100 %", "511", "4"]


def test_a_method_that_never_turns_negative_says_how_far_that_was_looked_for():
    found = readings.readings(TINY, [get_method("nope")()], length=256)
    assert readings.negative_text(found[1]) == "none to 262,144"


def test_a_method_of_some_layers_says_of_how_many_and_with_which_temperature():
    method, log_n = get_method("nope")(every=2, window=1024), Temperature.of("log_n")
    base, plain = readings.readings(TINY, [method], length=512)
    _, found = readings.readings(TINY, [method], length=512, temperatures={"nope": log_n, "yarn": log_n})
    assert plain.name == "nope in 2 of 4 layers, a window of 1,024 in the others"
    assert found.name == "nope with log_n in 2 of 4 layers, a window of 1,024 in the others"
    assert readings.effects(plain, base)[4] == "1"
    assert found.view.query_scale == pytest.approx(9 / 7)  # ln 512 / ln 128
    assert float((found.view.score - plain.view.score * 9 / 7).abs().max()) < 1e-6


def test_a_temperature_of_the_factor_has_that_of_the_context():
    drope = Temperature.of("drope:0.5")
    _, found = readings.readings(TINY, [get_method("yarn")(factor=4)], length=512, temperatures={"yarn": drope})
    assert found.name == "yarn with drope:0.5"
    assert found.view.query_scale == pytest.approx(1 + 0.5 * math.log(4))


def test_a_page_of_a_context_longer_than_what_is_drawn_stays_small():
    text = page_of("tiny", list(METHODS), length=100_000)
    Page(text)
    assert len(text) < 500_000
    assert "a context of 100,000 tokens" in text


def test_first_tokens_that_stay_visible_are_drawn_however_few_they_are():
    """Ten of the 51 keys in the last stretch of distances: a dot at the end of the picture."""
    text = page_of("tiny", ["lm_infinite"], length=8192)
    dots = re.findall(r'class="line dot"[^>]* d="M([\d.]+) ', text)
    assert len(dots) == 2  # of the score, and of the distance seen
    assert all(float(x) > 345 for x in dots)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.5e-16, "1.5e-16"),
        (0.25, "0.25"),
        (1234.4, "1,234"),
        (math.inf, "∞"),
        (math.nan, "none"),
        (-3, "-3"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text
