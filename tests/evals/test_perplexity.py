"""The perplexity tasks and the cloze through the harness: the stock model class and ours say the same."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

import ropescale
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.evals import tasks
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.passkey import passkey_sample
from ropescale.evals.tasks.perplexity import longppl
from ropescale.evals.tasks.perplexity import rows as perplexity
from ropescale.evals.tasks.spans import weighted

FOLDER = Path(tasks.__file__).parent
PATH = resolve("tiny")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PATH, model_max_length=10**9)


@pytest.fixture(scope="module")
def model():
    return ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)


def evaluated(lm, name, **metadata):
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata={"tokenizer": PATH, "pretrained": PATH, **metadata}
    )
    return simple_evaluate(model=lm, tasks=[f"ropescale_{name}"], task_manager=manager, log_samples=True)


def losses(found, name):
    return [[-answer[0] for answer in sample["filtered_resps"]] for sample in found["samples"][f"ropescale_{name}"]]


@pytest.mark.parametrize(
    ("name", "metadata"), [("position", {"lengths": [512]}), ("perplexity", {"lengths": [128, 512]})]
)
def test_the_stock_class_and_ours_agree_on_every_span(model, tokenizer, name, metadata):
    stock = evaluated(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), name, windows=1, **metadata)
    ours = evaluated(RopescaleLM(pretrained=model, tokenizer=tokenizer), name, windows=1, **metadata)
    for one, other in zip(losses(stock, name), losses(ours, name), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    metrics = [found["results"][f"ropescale_{name}"] for found in (stock, ours)]
    assert metrics[0]["perplexity,none"] == pytest.approx(metrics[1]["perplexity,none"], rel=1e-6)


def test_perplexity_by_position_from_one_forward_equals_a_run_per_length(model, tokenizer):
    from ropescale.evals.tasks.windows import by_position, position_edges, windows
    from ropescale.evals.texts import sample

    found = evaluated(
        RopescaleLM(pretrained=model, tokenizer=tokenizer), "position", lengths=[512], windows=2, bucket=64
    )
    for nats, (cutter, _, first) in zip(
        losses(found, "position"), windows(sample(), tokenizer, length=512, limit=2), strict=True
    ):
        read, total = 1, 0.0
        edges = position_edges(512, 64, 0)
        for loss, span in zip(nats, by_position(cutter, first, 512, edges), strict=True):
            read, total = read + span.tokens, total + loss
            ids = torch.tensor([cutter.ids[first : first + read]])
            with torch.no_grad():
                alone = model(input_ids=ids, labels=ids).loss.item() * (read - 1)
            assert total == pytest.approx(alone, rel=1e-5)


def test_strided_perplexity_is_token_weighted(model, tokenizer):
    found = evaluated(
        RopescaleLM(pretrained=model, tokenizer=tokenizer), "perplexity", lengths=[128], windows=2, tokens=700
    )
    nats = sum(loss for row in losses(found, "perplexity") for loss in row)
    tokens = sum(sum(sample["doc"]["tokens"]) for sample in found["samples"]["ropescale_perplexity"])
    metrics = found["results"]["ropescale_perplexity"]
    assert metrics["perplexity,none"] == pytest.approx(math.exp(nats / tokens))
    assert metrics["by_length,none"] == {"128": pytest.approx(math.exp(nats / tokens))}
    windows_of_means = [row[0] / sample["doc"]["tokens"][0] for row, sample in zip(
        losses(found, "perplexity"), found["samples"]["ropescale_perplexity"], strict=True)]  # fmt: skip
    assert math.exp(sum(windows_of_means) / len(windows_of_means)) != pytest.approx(math.exp(nats / tokens), rel=1e-6)


def test_buckets_add_up_to_the_whole():
    rows = [([1, 4, 8], [3.0, 4.0], [3, 4]), ([1, 4, 8], [6.0, 8.0], [3, 4])]
    assert perplexity.by_bucket(rows) == {"1-4": pytest.approx(math.exp(1.5)), "4-8": pytest.approx(math.exp(1.5))}
    assert weighted([(3.0, 3), (400.0, 100)]) == pytest.approx(math.exp(403 / 103))
    assert weighted([(1e9, 1)]) == math.exp(700)  # no overflow


@pytest.fixture(scope="module")
def passkey_texts(tmp_path_factory, tokenizer):
    """Documents with a passkey and its question: what the embedded model reads far back for."""
    path = tmp_path_factory.mktemp("texts") / "passkeys.jsonl"
    rng = random.Random(0)
    rows = [passkey_sample(tokenizer, length=400, depth=depth, rng=rng) for depth in (0.1, 0.3, 0.5)]
    # more text behind the answer, so that a window of 400 tokens ends after it
    lines = [json.dumps({"text": tokenizer.decode(row.input_ids) + ". The grass is green." * 8}) for row in rows]
    path.write_text("\n".join(lines))
    return path


def test_key_tokens_are_those_that_the_long_context_makes_likely(tokenizer, passkey_texts):
    ids = tokenizer(json.loads(passkey_texts.read_text().splitlines()[0])["text"])["input_ids"][:420]
    with longppl.Evaluator("tiny", tokenizer, 512) as evaluator:
        keys = evaluator.key_tokens(ids, 100)
        losses_of = longppl.token_losses(evaluator._model, torch.tensor([ids]))[0]
    digits = [position for position in range(300, 420) if tokenizer.decode([ids[position]]).strip().isdigit()]
    assert len(digits) == 5
    assert set(keys) & set(digits), "the passkey's digits are far back, so a short context cannot know them"
    assert all(losses_of[key - 1] < longppl.LIKELY for key in keys)
    assert len(keys) < len(ids) / 4


@pytest.mark.parametrize("short", [100, 130])
def test_a_short_context_is_that_of_the_authors(tokenizer, passkey_texts, short):
    """Windows of `short` tokens and a quarter more, moved by that quarter, whose last quarter is judged."""
    ids = tokenizer(json.loads(passkey_texts.read_text().splitlines()[0])["text"])["input_ids"][:420]
    with longppl.Evaluator("tiny", tokenizer, 512) as evaluator:
        keys = evaluator.key_tokens(ids, short)
        model = evaluator._model

    def nats(row):
        with torch.no_grad():
            told = model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        return [-float(told[place, token]) for place, token in enumerate(row[1:])]

    full, slide = nats(ids), short // 4
    expected, closest = [], math.inf
    for start in range(0, len(ids) - short, slide):
        window = ids[start : start + short + slide]
        for place, near in enumerate(nats(window)[short - 1 :], start + short):
            closest = min(closest, abs(near - full[place - 1] - 2), abs(full[place - 1] - 2))
            if near - full[place - 1] > 2 and full[place - 1] < 2:
                expected.append(place)
    assert closest > 1e-4  # none that rounding decides
    assert keys == expected
    assert expected


def test_longppl_scores_the_same_key_tokens_with_both_classes(model, tokenizer, passkey_texts):
    given = {"lengths": [400], "texts": str(passkey_texts), "short": 100}
    stock = evaluated(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), "longppl", **given)
    ours = evaluated(RopescaleLM(pretrained=model, tokenizer=tokenizer), "longppl", **given)
    for one, other in zip(losses(stock, "longppl"), losses(ours, "longppl"), strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
    metrics = ours["results"]["ropescale_longppl"]
    assert 0 < metrics["key_share,none"] < 0.25
    assert metrics["by_length,none"].keys() == {"400"}


def test_texts_without_key_tokens_are_named(passkey_texts, tmp_path):
    (tmp_path / "flat.txt").write_text("The grass is green. " * 100)
    with pytest.raises(InvalidArgumentError) as caught:
        perplexity.longppl_rows([128], str(tmp_path / "flat.txt"), 1, evaluator="tiny", tokenizer=PATH)
    assert str(caught.value) == (
        "longppl: the evaluator must find key tokens (those that a long context makes likely), got none with 'tiny'; "
        "name a model that reads that far, or give texts that refer back"
    )


@pytest.mark.parametrize(
    ("rows", "given", "text"),
    [
        (
            perplexity.strided_rows,
            {"lengths": [8], "windows": 1, "stride": 0.5},
            "perplexity: lengths must be at least 16 tokens, got [8]; a window needs tokens to predict",
        ),
        (
            perplexity.position_rows,
            {"lengths": [64], "windows": 0},
            "position: windows must be at least 1, got 0; leave it out",
        ),
        (
            perplexity.strided_rows,
            {"lengths": [64], "windows": 1, "stride": 1.5},
            "perplexity: stride must be a share of the window, above 0 and at most 1, got 1.5; "
            "0.5 scores the second half of every window",
        ),
        (
            perplexity.strided_rows,
            {"lengths": [64], "windows": 1, "stride": 0.5, "tokens": 32},
            "perplexity: tokens must hold the longest window (64), got 32; leave it out",
        ),
        (
            perplexity.longppl_rows,
            {"lengths": [64], "windows": 1},
            "longppl: evaluator must name a model (tiny, smollm2, a path or a hub id), got None; "
            "give it in the metadata of the task",
        ),
    ],
)
def test_wrong_metadata_is_named(rows, given, text):
    with pytest.raises(InvalidArgumentError) as caught:
        rows(texts="sample", tokenizer=PATH, **given)
    assert str(caught.value) == text


def test_the_cloze_holds_sixty_questions_whose_right_answers_are_spread_evenly(model, tokenizer):
    found = evaluated(RopescaleLM(pretrained=model, tokenizer=tokenizer), "cloze")
    rows = [sample["doc"] for sample in found["samples"]["ropescale_cloze"]]
    assert len(rows) == 60
    assert [sum(row["label"] == place for row in rows) for place in range(4)] == [15] * 4
    assert all(len(set(row["choices"])) == 4 for row in rows)


@pytest.mark.slow
def test_the_command_of_the_harness_runs_all_three_on_a_checkpoint_saved_patched(tmp_path, tokenizer):
    saved = tmp_path / "saved"
    ropescale.patch(ropescale.load("tiny"), "yarn", factor=2).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    harness = Path(sys.executable).with_name("lm_eval")
    command = [harness, "run", "--model", "hf", "--model_args", f"pretrained={saved},dtype=float32", "--device", "cpu"]
    chosen = ["--include_path", str(FOLDER), "--tasks", "ropescale_position,ropescale_perplexity,ropescale_cloze"]
    metadata = ["--metadata", json.dumps({"lengths": [256], "windows": 1}), "--batch_size", "8"]
    done = subprocess.run([*command, *chosen, *metadata], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in ("|ropescale_cloze ", "|ropescale_perplexity", "|ropescale_position"):
        assert row in done.stdout
