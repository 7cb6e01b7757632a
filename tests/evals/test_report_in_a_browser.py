"""The page in a real browser: no error, no request."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from evaluations import DEPTHS
from pages import Page
from reports import json_of

import ropescale
from ropescale.evals import report
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.evaluation import yardstick

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
