"""What recipes brought, as the package says it, against the results that it was taken from."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from ropescale.recipes.reading import read_recipe
from ropescale.recommend import training

ROOT = Path(__file__).parents[2]


def test_what_ships_is_what_the_results_say():
    told = runpy.run_path(str(ROOT / "scripts" / "trained.py"))["told"]
    runs = json.loads((ROOT / training.source()).read_text(encoding="utf-8"))["runs"]
    written = [kept for name, run in runs.items() if (kept := told(name, run))]
    assert json.loads(training.SHIPPED.read_text(encoding="utf-8"))["runs"] == written
    assert len(written) == len(training.shipped()) >= 8


@pytest.mark.parametrize(("factor", "target", "found"), [(2, 512, "68% to 100%"), (8, 1024, "28% to 100%")])
def test_the_nearest_factor_is_cited_with_its_source(factor, target, found):
    run = training.nearest(factor)
    assert run.target_length == target
    assert f"from {found} of passkeys at {target:,} tokens" in run.told
    assert "docs/results/training.json" in run.told


@pytest.mark.parametrize(("model", "steps"), [("tiny", 400), ("smollm2", 1000)])
def test_the_command_is_one_that_the_recipe_reads(model, steps, tmp_path):
    verb, recipe, *given = training.nearest(4).again(model, "by_parts", 1024, str(tmp_path))
    assert verb == "train"
    read = read_recipe(recipe, [*given, "--output", str(tmp_path)])
    asked = read.options
    assert (asked.model, asked.method, asked.target_length) == (model, "by_parts", 1024)
    assert asked.tuning == "full"
    assert str(tmp_path) in given
    assert "sotu" not in given
    if model == "tiny":
        assert read.training.max_steps == steps
    else:
        assert "--max-steps" not in given
