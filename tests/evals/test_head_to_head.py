"""The head-to-head: its grid is the registry's, its figures are Transformers' own, its page is what they say."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM

import ropescale
from ropescale.checkpoints import resolve

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
KEPT = json.loads((RESULTS / "head-to-head.json").read_text(encoding="utf-8"))
CELLS = {cell["name"]: cell for cell in KEPT["cells"]}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location("head_to_head", ROOT / "scripts" / "head_to_head.py")
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules["head_to_head"] = made  # dataclasses look their module up
        spec.loader.exec_module(made)
        return made
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_every_method_is_measured_or_left_out_for_a_reason(script: ModuleType) -> None:
    measured = {cell.method for cell in script.grid() if cell.stage == "untrained"} - {"unpatched"}
    assert not measured & script.LEFT_OUT.keys()
    assert measured | script.LEFT_OUT.keys() == set(ropescale.list_methods())
    assert set(KEPT["missing"]) == {cell.name for cell in script.grid()} - CELLS.keys()


@pytest.mark.slow  # half a minute to cut the texts
def test_a_figure_is_what_transformers_own_yarn_gives(script: ModuleType) -> None:
    """Without ropescale: Transformers' rope type, its logits, its cross-entropy."""
    cell = CELLS["yarn-x2-untrained-0"]
    texts, asked = script.samples(256, 0)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}
    model = AutoModelForCausalLM.from_pretrained(
        resolve("tiny"), rope_parameters=yarn, max_position_embeddings=256
    ).eval()
    with torch.no_grad():
        logits = model(input_ids=texts).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), texts[:, 1:], reduction="none")
        keys = torch.tensor([one.input_ids for one in asked[256]])
        count = asked[256][0].answer_length
        firsts = model(input_ids=keys).logits[:, -count - 1 : -1].argmax(-1)
    assert cell["perplexity"]["0-256"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert cell["perplexity"]["0-128"] == pytest.approx(math.exp(losses[:, :127].mean()), rel=1e-5)
    assert cell["perplexity"]["128-256"] == pytest.approx(math.exp(losses[:, 127:].mean()), rel=1e-5)
    assert cell["passkeys"]["256"] == [int((firsts == keys[:, -count:]).all(1).sum()), len(keys)]


@pytest.mark.slow  # half a minute to cut the texts
def test_seeds_read_other_windows_and_other_passkeys(script: ModuleType) -> None:
    (texts, asked), (others, other) = script.samples(256, 0), script.samples(256, 1)
    assert not {tuple(row) for row in texts.tolist()} & {tuple(row) for row in others.tolist()}
    assert not {one.input_ids for one in asked[256]} & {one.input_ids for one in other[256]}


def test_a_summary_is_what_its_cells_hold() -> None:
    for line in KEPT["summary"]:
        rows = [CELLS[f"{line['method']}-x{line['factor']}-{line['stage']}-{seed}"] for seed in line["seeds"]]
        nats = sum(sum(v) for row in rows for name, v in row["nats"].items() if name != "0-128")
        tokens = sum(
            len(v) * row["tokens"][name] for row in rows for name, v in row["nats"].items() if name != "0-128"
        )
        assert line["perplexity_beyond"] == pytest.approx(math.exp(nats / tokens), rel=1e-6)
        marks = "".join(row["hits"][str(128 * line["factor"])] for row in rows)
        assert line["passkeys"] == [marks.count("1"), len(marks)]
        assert line["interval"][0] <= line["passkeys"][0] / line["passkeys"][1] <= line["interval"][1]


def test_nobody_of_the_first_rank_is_surely_beaten_and_every_other_is() -> None:
    """By the ratio of perplexities of windows that both have read, resampled here by other code."""
    for factor, stage in {(line["factor"], line["stage"]) for line in KEPT["summary"]}:
        lines = [line for line in KEPT["summary"] if (line["factor"], line["stage"]) == (factor, stage)]
        assert min(line["rank_text"] for line in lines) == 1
        assert min(line["rank_passkeys"] for line in lines) == 1
        first, last = (pick(lines, key=lambda line: line["perplexity_beyond"]) for pick in (min, max))
        assert first["rank_text"] == 1
        if first["seeds"] == last["seeds"] and first["perplexity_beyond"] * 1.2 < last["perplexity_beyond"]:
            assert last["rank_text"] > 1


def test_the_page_holds_the_tables_of_the_figures(script: ModuleType) -> None:
    page = (RESULTS / "head-to-head.md").read_text(encoding="utf-8")
    made = sys.modules["head_to_head_page"]
    assert page.partition(made.BEGIN)[2].partition(made.END)[0] == made.tables(KEPT)
    assert (RESULTS / "head-to-head.svg").read_text(encoding="utf-8").count("<svg") == 1
