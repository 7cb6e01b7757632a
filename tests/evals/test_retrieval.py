"""Passkey and needle as tasks of the harness: exact lengths, the same samples anywhere, scores, worded errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from readers import TASKS, TINY, TOKENIZERS, chance, evaluated, joined, perfect_memory, rows_elsewhere
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals.passkey import FILLER, TASK
from ropescale.evals.tasks.haystack import haystack
from ropescale.evals.tasks.needle.samples import Needle
from ropescale.evals.tasks.passkey.samples import PASSKEY, results
from ropescale.evals.tasks.retrieval import PromptSampler, mean_by_length, scores, scores_of_any
from ropescale.evals.tokens import Cuts, named_tokenizer, token_counts

FAMILY: dict[str, PromptSampler] = {"passkey": PASSKEY, "needle": Needle(), "three needles": Needle(3)}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """One of the tokenizers, built once."""
    return TOKENIZERS[kind]()


def rows(task: PromptSampler, **metadata: Any) -> list[dict[str, Any]]:
    """The rows of a task."""
    return [dict(row) for row in task.dataset({"tokenizer": "tiny", **metadata})["test"]]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FAMILY)
def test_prompt_and_reply_together_have_the_asked_length(name: str, kind: str) -> None:
    task, tokenizer = FAMILY[name], tokenizer_of(kind)
    least = task.minimum(tokenizer)
    lengths = [least, least + 1, least + 37, least + 600]
    for row in rows(task, tokenizer=tokenizer, lengths=lengths, samples=2):
        assert len(tokenizer(joined(row))["input_ids"]) + task.reply_tokens == row["length"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_prompt_and_reply_have_the_asked_length_with_smollm2(name: str) -> None:
    task, tokenizer = FAMILY[name], named_tokenizer("smollm2")
    for row in rows(task, tokenizer=tokenizer, lengths=[256, 1024, 4096], samples=3):
        assert len(tokenizer(joined(row))["input_ids"]) + task.reply_tokens == row["length"]


@pytest.mark.parametrize("name", ["passkey", "needle"])
def test_the_yaml_lets_a_reply_be_as_long_as_the_lengths_count_it(name: str) -> None:
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={"tokenizer": "tiny", "lengths": [256], "samples": 1}
    )
    task = manager.load([f"ropescale_{name}"])["tasks"][f"ropescale_{name}"]
    assert task.config.generation_kwargs["max_gen_toks"] == FAMILY[name].reply_tokens
    assert task.config.metadata["version"] == 1


def test_samples_do_not_depend_on_what_else_is_asked_for() -> None:
    for task in FAMILY.values():
        alone = rows(task, lengths=[300], depths=[0.5], samples=2)
        among = rows(task, lengths=[400, 300], depths=[1, 0.5, 0], samples=5)
        assert alone == [row for row in among if (row["length"], row["depth"]) == (300, 0.5) and row["sample"] < 2]
        assert alone == rows(task, lengths=300, depths=0.5, samples=2, seed=0)
        assert alone != rows(task, lengths=[300], depths=[0.5], samples=2, seed=1)


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_samples_are_the_same_in_another_process() -> None:
    metadata = {"tokenizer": "tiny", "lengths": [256, 300], "samples": 2, "depths": [0, 0.5]}
    elsewhere = rows_elsewhere(["ropescale_passkey", "ropescale_needle"], metadata)
    assert elsewhere["ropescale_passkey"] == rows(PASSKEY, **metadata)
    assert elsewhere["ropescale_needle"] == rows(Needle(), **metadata)


def test_prompts_of_a_length_begin_alike_up_to_the_needle() -> None:
    prompts = [row["prompt"] for row in rows(PASSKEY, lengths=[512], samples=3)]
    trunk = TASK + " ".join([FILLER] * 40)
    for prompt in prompts:
        before = prompt[: prompt.index("\nThe pass key is")]
        assert before in (TASK.removesuffix("\n"), TASK) or trunk.startswith(before)
    stack = " ".join(haystack(tokenizer_of("tiny")).sentences(0, 40))
    for row in rows(Needle(), lengths=[900], samples=2):
        _, context = row["prompt"].split("\n", 1)
        assert stack.startswith(context[: context.index("The special magic")])


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_passkey_lies_at_its_depth(depth: float) -> None:
    for row in rows(PASSKEY, lengths=[640], depths=[depth], samples=3):
        before, after = re.split(r"\nThe pass key is \d{5}\. Remember it\. \d{5} is the pass key\.\n", row["prompt"])
        before, after = before.removeprefix(TASK), after.removesuffix("\nWhat is the pass key?")
        share = len(before) / len(before + after)
        assert share == pytest.approx(depth, abs=0.01)


def test_needles_stand_between_sentences_and_the_first_at_its_depth() -> None:
    tokenizer = tokenizer_of("tiny")
    stack = haystack(tokenizer)
    for row in rows(Needle(2), lengths=[2500], depths=[0.0, 0.4, 1.0], samples=2):
        context = row["prompt"].split("\n")[1]
        found = re.findall(r"The special magic number for \w+ is: (\d{7})\.", context)
        assert sorted(found) == sorted(row["target"])
        before = re.split(r" ?The special magic number for \w+ is: \d{7}\.", context)[0]
        sentences = next(n for n in range(200) if " ".join(stack.sentences(0, n)) == before)  # whole ones
        total = token_counts(tokenizer, [context])[0]
        longest = max(stack.size(n + 1) - stack.size(n) for n in range(120))
        assert row["depth"] * total - 2 * longest <= stack.size(sentences) <= row["depth"] * total


def test_the_haystack_begins_again_where_the_speeches_end() -> None:
    stack = haystack(tokenizer_of("tiny"))
    everything = stack.sentences(0, 3916)
    assert everything[0].startswith("Fellow-Citizens of the Senate and House of Representatives:")
    count = next(i for i in range(1, 10_000) if stack.sentences(i, i + 1) == everything[:1] and i > 1000)
    assert stack.sentences(count, count + 5) == everything[:5]
    assert stack.size(count + 2) == stack.size(count) + stack.size(2)
    assert len({s for s in everything if not s.endswith((".", "!", "?", '"', "”", ":", ")"))}) < 60


@pytest.mark.parametrize(
    ("reply", "score", "exact"),
    [
        (" 12345.", 1.0, 1.0),
        (" 12345 and 67890", 1.0, 1.0),
        (" 67890, no, 12345", 1.0, 0.0),
        (" 123456", 1.0, 0.0),
        (" 1234", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
    ids=["the key", "the key first", "another first", "one digit too many", "one digit too few", "nothing"],
)
def test_the_first_integer_of_a_passkey_s_reply_counts(reply: str, score: float, exact: float) -> None:
    doc = {"target": ["12345"], "length": 512}
    assert results(doc, [reply]) == {"score": score, "exact": exact, "by_length": (512, score)}


@pytest.mark.parametrize(
    ("reply", "score", "exact"),
    [
        ("12 and ART.", 1.0, 1.0),
        ("123 and party", 1.0, 0.0),
        ("12, art-dealer", 1.0, 0.5),
        ("12", 0.5, 0.5),
        ("- art\n- 12\n", 1.0, 1.0),
        ("twelve", 0.0, 0.0),
    ],
)
def test_the_exact_rule_wants_whole_words_and_numbers(reply: str, score: float, exact: float) -> None:
    doc = {"target": ["12", "art"], "length": 64}
    assert scores(doc, [reply]) == {"score": score, "exact": exact, "by_length": (64, score)}
    either = {"score": float(score > 0), "exact": float(exact > 0), "by_length": (64, float(score > 0))}
    assert scores_of_any(doc, [reply]) == either


def test_scores_by_length_are_means_in_the_order_of_the_lengths() -> None:
    assert mean_by_length([(1024, 1.0), (256, 0.5), (1024, 0.0), (256, 1.0)]) == {"256": 0.75, "1024": 0.5}


def test_perfect_memory_scores_in_full_and_chance_nothing() -> None:
    asked = {"tokenizer": "tiny", "lengths": [320, 700], "samples": 4}
    names = ["ropescale_passkey", "ropescale_needle"]
    for needles in (1, 3):
        best = evaluated(perfect_memory(), names, **asked, needles=needles)["results"]
        worst = evaluated(chance(1), names, **asked, needles=needles)["results"]
        for name in names:
            assert best[name]["score,none"] == best[name]["exact,none"] == 1.0
            assert best[name]["by_length,none"] == {"320": 1.0, "700": 1.0}
            assert worst[name]["score,none"] <= 0.05


def test_the_embedded_model_answers_inside_its_window_with_the_stock_harness() -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY).eval()
    reader = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(TINY), batch_size=20)
    found = evaluated(reader, ["ropescale_passkey"], tokenizer="tiny", lengths=[100, 128], samples=8)
    assert found["results"]["ropescale_passkey"]["exact,none"] >= 0.97
    # the harness's default bootstrap: the metric that is a dictionary has no error, and breaks nothing
    assert found["results"]["ropescale_passkey"]["by_length_stderr,none"] == "N/A"


@pytest.mark.slow  # test_perplexity.py runs the same command line on the other tasks
def test_the_command_line_of_the_harness_runs_the_task_on_a_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={TINY}"),
            *("--include_path", str(TASKS), "--tasks", "ropescale_passkey", "--device", "cpu", "--batch_size", "10"),
            *("--metadata", json.dumps({"lengths": [128], "samples": 4}), "--output_path", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"\|ropescale_passkey\|\s+1\|none\s+\|\s+0\|by_length\|↑\s+\|\{'128': 1.0\}\|", done.stdout)
    written = json.loads(next(tmp_path.rglob("results_*.json")).read_text(encoding="utf-8"))
    assert written["results"]["ropescale_passkey"]["score,none"] == 1.0
    assert "Left truncation" not in done.stderr


def test_a_chat_template_leaves_the_answer_prefix_to_the_assistant() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = AutoModelForCausalLM.from_pretrained(TINY).eval()
    reader = HFLM(pretrained=model, tokenizer=tokenizer)
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={"tokenizer": "tiny", "lengths": [128], "samples": 1}
    )
    task = manager.load(["ropescale_passkey"])["tasks"]["ropescale_passkey"]
    task.set_fewshot_seed(0)
    task.build_all_requests(apply_chat_template=True, chat_template=reader.apply_chat_template)
    for instance in task.instances:
        text = instance.args[0]
        assert text.startswith("[user]There is an important info")
        assert text.endswith("What is the pass key?[assistant]The pass key is")


@pytest.mark.parametrize("kind", ["with a leading token", "sentencepiece-like"])
def test_a_leading_token_stands_once_in_the_stock_harness_s_prompt(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    model = AutoModelForCausalLM.from_pretrained(TINY).eval()
    reader = HFLM(pretrained=model, tokenizer=tokenizer, max_length=2048)
    row = rows(PASSKEY, tokenizer=tokenizer, lengths=[512], depths=[0.5], samples=1)[0]
    ids, _ = reader.tok_batch_encode([joined(row)], left_truncate_len=512 - PASSKEY.reply_tokens)
    assert ids.shape == (1, 512 - PASSKEY.reply_tokens)
    assert ids[0].tolist().count(tokenizer.bos_token_id) == 1
    assert ids[0, 0] == tokenizer.bos_token_id


def test_cuts_end_at_words_where_they_can() -> None:
    tokenizer = tokenizer_of("tiny")
    text = "The grass is green. The sky is blue."
    cuts = Cuts(tokenizer, text)
    assert [cuts.cut(n) for n in range(4)] == ["", "The", "The grass", "The grass is"]
    endless = Cuts(tokenizer, FILLER, repeated=True)
    for tokens in (1, 20, 21, 22, 43, 500, 10_001):
        assert token_counts(tokenizer, [endless.cut(tokens)]) == [tokens]
    inside = Cuts(tokenizer_of("bytes"), text)
    assert [inside.cut(n) for n in range(len(text) + 1)] == [text[:n] for n in range(len(text) + 1)]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {},
            "tokenizer: a task that fits its texts to a length must know the tokenizer, got none; "
            'name it in the task\'s metadata, as in metadata={"tokenizer": "tiny"}',
        ),
        (
            {"tokenizer": "tiny", "lengths": [512, 77]},
            "passkey: length must hold the task without haystack, got 77; "
            "ask for at least 78 tokens with this tokenizer",
        ),
        (
            {"tokenizer": "tiny", "lengths": "512"},
            "passkey: lengths must be a list of numbers, got '512'; write them as in [1, 2] or leave it out",
        ),
        (
            {"tokenizer": "tiny", "lengths": [512.5]},
            "passkey: lengths must be whole numbers of tokens, got [512.5]; ask for lengths such as [1024]",
        ),
        (
            {"tokenizer": "tiny", "depths": [50]},
            "passkey: depths must be shares from 0 (first) to 1 (last), got [50]; divide a percentage by 100",
        ),
        (
            {"tokenizer": "tiny", "samples": 0},
            "passkey: samples must be a whole number of at least 1, got 0; leave it out",
        ),
    ],
    ids=["no tokenizer", "too short", "text", "half a token", "percent", "no samples"],
)
def test_wrong_metadata_says_the_rule_and_the_remedy(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        PASSKEY.dataset(metadata)
    assert str(caught.value) == message


def test_too_many_needles_and_an_unknown_tokenizer_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Needle(57)
    assert str(caught.value) == "needle: needles must be a whole number from 1 to 56, got 57; leave it out"
    with pytest.raises(CheckpointError, match=r"must hold a tokenizer, got ValueError"):
        named_tokenizer(str(tmp_path))
