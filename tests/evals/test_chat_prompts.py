"""Prompts in a chat template, and folders that were damaged."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from grids import YARN, run
from transformers import AutoTokenizer, LlamaForCausalLM

import ropescale
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.evals import report
from ropescale.evals.chat import chat_frame
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.plan import Options
from ropescale.evals.results import Arm
from ropescale.evals.tasks import base

CHAT = (
    "{% for m in messages %}{{m['role']}}: {{m['content']}}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


# thinks whatever it is told, and takes no reply that was begun
THINKER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('the user has the last word') }}"
    "{% endif %}{{m['role']}}: {{m['content']}}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>{% endif %}{# </think> #}"
)


def chatty(checkpoint, folder, tokenizer, template):
    LlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(folder)
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    made.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("template", "length"), [(CHAT, 200), (THINKER, 800)])
def test_in_a_chat_template_a_prompt_and_its_reply_have_the_length_asked_for(
    options, tmp_path, checkpoint, tokenizer, monkeypatch, template, length
):
    model = chatty(checkpoint, tmp_path / "chatty", tokenizer, template)
    asked = []
    generate = RopescaleLM.generate_until

    def seen(lm, requests, *rest):
        asked.extend((request.args[0], lm.tokens_of(request)) for request in requests)
        return generate(lm, requests, *rest)

    monkeypatch.setattr(RopescaleLM, "generate_until", seen)
    few = replace(options, model=model, tasks=("passkey",), factors=(8.0,), lengths=(length,), samples=1, chat=True)
    found = run(few, tmp_path / "out")
    assert len(found.cell(Arm(method="yarn", factor=8.0), "passkey", length).samples) == 2
    assert {tokens for _, tokens in asked} == {length}
    assert all(text.startswith("user: There is an important info") for text, _ in asked)
    ends = {text.rpartition("key?")[2].strip() for text, _ in asked}
    assert ends == ({"assistant: The pass key is"} if template == CHAT else {"The pass key is\nassistant: <think>"})


def test_what_stands_before_the_end_of_a_thought_is_no_answer(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.chat_template = THINKER
    frame = chat_frame(made)
    lm = RopescaleLM(ropescale.load("tiny"), made, think_end_token=frame.end_of_thought)
    reply = tokenizer.encode("12345?</think> 54321", add_special_tokens=False)
    assert (frame.begins, frame.end_of_thought, lm._cleaned(reply, ["\n"])) == (False, "</think>", "54321")


def test_chat_without_a_template_is_one_sentence(options, tmp_path, tokenizer):
    assert tokenizer.chat_template is None
    with pytest.raises(InvalidArgumentError, match="chat: the tokenizer must have a chat template, got none"):
        run(replace(options, chat=True, tasks=("cloze",)), tmp_path / "out")


@pytest.mark.parametrize("file", ["timings.jsonl", "run.json"])
def test_a_folder_that_was_damaged_is_one_sentence(options, tmp_path, file):
    run(replace(options, tasks=("cloze",), limit=2), tmp_path / "out")
    path = tmp_path / "out" / file
    if file == "timings.jsonl":
        path.write_text(path.read_text() + "{}\n")
    else:
        told = json.loads(path.read_text())
        told["settings"]["lengths"] = []
        path.write_text(json.dumps(told))
    with pytest.raises(InvalidArgumentError, match="as an evaluation wrote it"):
        report.write(tmp_path / "out")


@pytest.mark.slow
def test_the_stock_harness_answers_smollm2_s_passkeys_as_this_evaluation_does(tmp_path):
    """On a checkpoint that was saved patched, with no code of ours but the task."""
    saved = tmp_path / "saved"
    ropescale.patch(ropescale.load("smollm2", dtype=torch.float32), "yarn", factor=2).save_pretrained(saved)
    AutoTokenizer.from_pretrained(resolve("smollm2")).save_pretrained(saved)
    options = Options(
        model="smollm2", methods=("yarn",), tasks=("passkey",), lengths=(1024,), depths=(0.0, 0.5, 1.0), samples=2
    )
    cell = run(options, tmp_path / "ours").cell(YARN, "passkey", 1024)
    metadata = {"lengths": [1024], "depths": [0.0, 0.5, 1.0], "samples": 2}
    command = [Path(sys.executable).with_name("lm_eval"), "run", "--model", "hf", "--device", "cpu", "--log_samples"]
    given = ["--model_args", f"pretrained={saved},dtype=float32", "--include_path", str(base.FOLDER)]
    chosen = [
        "--tasks",
        "ropescale_passkey",
        "--metadata",
        json.dumps(metadata),
        "--output_path",
        str(tmp_path / "stock"),
    ]
    done = subprocess.run([*command, *given, *chosen], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "stock").rglob("samples_*.jsonl")
    rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["filtered_resps"][0] for row in rows] == [sample["reply"] for sample in cell.samples]
    assert [row["score"] for row in rows] == [sample["score"] for sample in cell.samples]
    assert len(rows) == 6
