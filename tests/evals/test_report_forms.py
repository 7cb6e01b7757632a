"""The other forms of the report: Markdown, JSON, a model card, metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import evaluate
import pytest
from evaluations import ARMS, RULER
from huggingface_hub import ModelCard
from reports import FILES, findings_of, json_of

from ropescale import cli
from ropescale.evals import report
from ropescale.evals.report.verdict import verdict

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
