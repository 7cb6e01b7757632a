"""Evaluations of checkpoints that are saved patched or published scaled, and of tasks and knobs of a user's own."""

import json
from dataclasses import replace

import pytest
import torch
from grids import YARN, run
from transformers import LlamaForCausalLM

import ropescale
from ropescale.errors import AlreadyScaledError, InvalidArgumentError, RopescaleError
from ropescale.evals import report
from ropescale.evals.report.findings import read_findings
from ropescale.evals.report.wording import command_text
from ropescale.evals.results import UNPATCHED, Arm, read


def test_a_model_saved_patched_runs_as_it_is_and_not_against_methods(options, tmp_path, checkpoint, tokenizer):
    saved = tmp_path / "saved"
    ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=2).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    with pytest.raises(InvalidArgumentError) as caught:
        run(replace(options, model=str(saved)), tmp_path / "out")
    assert str(caught.value) == (
        f"eval: a model that was saved patched is evaluated as it is, got {str(saved)!r} with methods yarn; "
        f"give methods=['none'], or the checkpoint that it was made from"
    )
    live = run(options, tmp_path / "live")
    alone = run(replace(options, model=str(saved), methods=("none",), lengths=(128, 256)), tmp_path / "alone")
    assert alone.settings.original_length == 128
    assert alone.cell(UNPATCHED, "record").record["method"] == "yarn"
    for task, length in (("passkey", 256), ("perplexity", 256)):
        assert alone.cell(UNPATCHED, task, length).samples == live.cell(YARN, task, length).samples


def test_a_model_that_returns_nan_is_named_and_finished_cells_are_kept(options, tmp_path, checkpoint, tokenizer):
    broken = LlamaForCausalLM.from_pretrained(checkpoint)  # where it was damaged, no proof of a patch looks
    with torch.no_grad():
        broken.model.embed_tokens.weight[40:400] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(RopescaleError, match=r"nan|NaN"):
        run(replace(options, model=str(tmp_path / "broken"), tasks=("position",)), tmp_path / "out")
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {cell["task"] for cell in kept} == {"record"}


@pytest.fixture
def extended(checkpoint, tokenizer, tmp_path):
    """The same checkpoint as somebody would publish it: scaled natively by yarn to four times its length."""
    model = ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=4)
    model.save_pretrained(tmp_path / "extended")
    tokenizer.save_pretrained(tmp_path / "extended")
    config = json.loads((tmp_path / "extended" / "config.json").read_text())
    del config["ropescale"]
    (tmp_path / "extended" / "config.json").write_text(json.dumps(config))
    return tmp_path / "extended"


def test_a_checkpoint_that_is_scaled_natively_is_evaluated_as_it_is(options, extended, tmp_path):
    """Its figures are those of the method on the original, and its length is the one that it was extended to."""
    few = replace(options, tasks=("position",), lengths=(512,))
    method = run(replace(few, factors=(4.0,)), tmp_path / "of the original")
    plain = run(replace(few, model=str(extended), methods=("none",)), tmp_path / "as it is")
    assert plain.settings.original_length == 512
    theirs = method.cell(Arm(method="yarn", factor=4.0), "position", 512).samples
    ours = plain.cell(UNPATCHED, "position", 512).samples
    assert [sum(one["nll"]) for one in ours] == pytest.approx([sum(one["nll"]) for one in theirs], rel=1e-6)


def test_methods_on_a_checkpoint_that_is_scaled_natively_say_what_they_start_from(options, extended, tmp_path):
    few = replace(options, tasks=("position",), factors=(4.0,), lengths=(512,))
    with pytest.raises(AlreadyScaledError, match="replace"):
        run(replace(few, model=str(extended)), tmp_path / "neither")
    original = run(few, tmp_path / "original")
    replaced = replace(few, model=str(extended), existing="replace")
    found = run(replaced, tmp_path / "replaced")
    assert found.settings.original_length == 128
    arm = Arm(method="yarn", factor=4.0)
    assert found.cell(arm, "position", 512).samples == original.cell(arm, "position", 512).samples
    composed = run(replace(few, model=str(extended), existing="compose", lengths=(512,)), tmp_path / "composed")
    assert composed.settings.original_length == 512
    with pytest.raises(InvalidArgumentError, match="existing"):
        run(replace(replaced, existing="compose", original_length=128), tmp_path / "replaced")
    with pytest.raises(InvalidArgumentError, match="existing must be one of error, compose, replace"):
        replace(few, existing="keep")


@pytest.mark.parametrize(
    ("start", "scaled"),
    [
        ({"original_length": 64}, False),
        ({"existing": "replace", "original_length": 64}, True),
        ({"existing": "compose"}, True),
    ],
)
def test_the_call_in_the_report_makes_the_model_that_was_evaluated(
    options, checkpoint, extended, tmp_path, start, scaled
):
    source = str(extended if scaled else checkpoint)
    # llama3, since its frequencies differ between these lengths also with so few pairs
    asked = replace(options, model=source, methods=("llama3",), tasks=("position",), factors=(2.0,), **start)
    run(asked, tmp_path / "out")
    findings = read_findings(read(tmp_path / "out"))
    call = command_text(Arm(method="llama3", factor=2.0), findings)
    printed = eval(call, {"ropescale": ropescale, "model": LlamaForCausalLM.from_pretrained(source)})
    meant = ropescale.patch(LlamaForCausalLM.from_pretrained(source), "llama3", factor=2.0, **start)
    assert printed.config.max_position_embeddings == meant.config.max_position_embeddings
    tokens = torch.randint(0, printed.config.vocab_size, (1, 120), generator=torch.Generator().manual_seed(0))
    assert torch.equal(printed(tokens).logits, meant(tokens).logits)


def test_methods_take_knobs_and_a_folder_keeps_to_them(options, tmp_path):
    asked = replace(options, methods=("abf",), knobs={"abf": {"theta": 40_000}}, tasks=("passkey",))
    found = run(asked, tmp_path / "out")
    assert found.cell(Arm(method="abf", factor=2.0), "record").record["knobs"]["theta"] == 40_000
    with pytest.raises(InvalidArgumentError, match="must be of the same knobs"):
        run(replace(asked, knobs={"abf": {"theta": 50_000}}), tmp_path / "out")


def test_log_n_goes_with_any_method_among_its_knobs(options, tmp_path):
    asked = replace(options, tasks=("passkey",), methods=("rerope",), knobs={"rerope": {"window": 32, "log_n": True}})
    record = run(asked, tmp_path / "out").cell(Arm(method="rerope", factor=2.0), "record").record
    assert (record["log_n"], record["knobs"]["window"]) == (True, 32)
    with pytest.raises(InvalidArgumentError, match="rerope: log_n must be True or False, got 1; leave it out for Fal"):
        replace(asked, knobs={"rerope": {"log_n": 1}})


TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: ["red", "blue"]
doc_to_target: answer
"""


def test_a_task_of_the_users_own_runs_beside_ours(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Colour {number}:", "answer": number % 2} for number in range(5)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.replace("DATA", str(tmp_path / "rows.json")))
    asked = replace(options, tasks=("colours",), limit=3, include_path=str(tmp_path / "tasks"))
    found = run(asked, tmp_path / "out")
    for arm in (UNPATCHED, YARN):
        cell = found.cell(arm, "colours")
        assert cell.scores.keys() == {"acc", "acc_norm"}
        assert len(cell.samples) == 3
        assert cell.scores["acc"] == pytest.approx(sum(sample["score"] for sample in cell.samples) / 3)


def test_a_checkpoint_that_was_saved_patched_is_named_and_tested_to_twice_what_it_was_extended_to(
    options, tmp_path, checkpoint, tokenizer
):
    saved = tmp_path / "saved"
    ropescale.patch(LlamaForCausalLM.from_pretrained(checkpoint), "yarn", factor=2).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    few = replace(options, model=str(saved), methods=("none",), tasks=("perplexity", "passkey"), samples=1, windows=1)
    found = run(few, tmp_path / "out")
    assert found.settings.lengths == (128, 256, 512)
    report.write(tmp_path / "out")
    for name in ("report.html", "report.md", "model-card.md", "report.json"):
        said = (tmp_path / "out" / name).read_text()
        assert "as saved: yarn x2" in said
        assert "npatched" not in said.replace('"unpatched": {', "")
    verdict = (tmp_path / "out" / "report.md").read_text().splitlines()[0]
    assert verdict.startswith("# As saved (yarn x2), the model ")
    assert "name: accuracy" in (tmp_path / "out" / "model-card.md").read_text()
    assert json.loads((tmp_path / "out" / "evaluate.json").read_text())["base"] == "as saved: yarn x2"


def test_a_checkpoint_that_was_published_scaled_is_named_so(options, extended, tmp_path):
    few = replace(options, model=str(extended), methods=("none",), tasks=("cloze",), limit=2)
    assert run(few, tmp_path / "out").settings.base == "as published: yarn x4"
