"""The language-model class: the harness's answers, exactly, with nothing truncated and nothing computed twice."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from asking import TEXT, harness, prompted, reads, rolling, scored
from families import config_of, family, model_of
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import ropescale
from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.evals.engine import RopescaleLM, token_losses, vllm_model

# Log-likelihoods


def test_log_likelihoods_are_those_of_the_harness(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [(TEXT[: 40 * i], TEXT[40 * i : 40 * i + n]) for i in range(7) for n in (4, 25)]
    pairs += [("The people", ending) for ending in (" of", " of the United States", " and", " xyz ")]
    pairs += [("The people ", "of"), ("", "The people of the United States")]
    ours = RopescaleLM(model, tokenizer).loglikelihood(scored(pairs), disable_tqdm=True)
    theirs = harness(model, tokenizer, batch_size=4).loglikelihood(scored(pairs), disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in ours} == {True, False}
    torch.testing.assert_close([a for a, _ in ours], [b for b, _ in theirs], rtol=1e-6, atol=1e-6)


def test_one_forward_answers_all_contexts_and_equals_a_run_for_each(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    cuts = [i for i in range(20, 300, 40) if not TEXT[i - 1].isspace()]
    # every context and continuation begins the last one, and so do their tokens where the text is cut between words
    ends = [TEXT.index(" ", cut + 12) for cut in cuts]
    cuts = [TEXT.index(" ", cut) for cut in cuts]
    pairs = [(TEXT[:cut], TEXT[cut:end]) for cut, end in zip(cuts, ends, strict=True)]
    lm = RopescaleLM(model, tokenizer)
    with reads(model) as seen:
        together = lm.loglikelihood(scored(pairs), disable_tqdm=True)
    longest = len(lm.tok_encode("".join(pairs[-1]))) - 1
    assert [shape for shape in seen if shape[1] > 1 and shape != (2, 8)] == [(1, longest)]  # 2 x 8 tries the head
    alone = [lm.loglikelihood(scored([pair]), disable_tqdm=True)[0][0] for pair in pairs]
    torch.testing.assert_close([a for a, _ in together], alone, rtol=1e-5, atol=1e-5)


def test_where_rotations_depend_on_the_length_every_request_has_a_forward_of_its_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = model_of(config_of("llama", vocab_size=1024, rope_parameters=dynamic))
    words = TEXT.split(" ")
    pairs = [(" ".join(words[:n]), f" {words[n]} {words[n + 1]}") for n in (50, 12, 90, 30)]
    found = RopescaleLM(copy.deepcopy(model), tokenizer, max_length=500).loglikelihood(scored(pairs), True)
    for (logprob, _), (context, continuation) in zip(found, pairs, strict=True):
        before, after = tokenizer.encode(context), tokenizer.encode(continuation)
        with torch.no_grad():  # of the inputs alone: with the last token the sequence would be longer
            logprobs = copy.deepcopy(model)(torch.tensor([before + after[:-1]])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(before) - 1 + i, token]) for i, token in enumerate(after))
        assert logprob == pytest.approx(expected, rel=1e-5)


def test_a_continuation_without_tokens_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        RopescaleLM(model, tokenizer).loglikelihood(scored([("The people", "")]), disable_tqdm=True)
    assert str(error.value) == (
        "request: a continuation must have at least one token, got none in 'The people'; leave the request out"
    )


# Rolling log-likelihoods


def test_windows_side_by_side_give_the_harness_s_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [TEXT[:2000], TEXT[:37], TEXT[2000:3111], ""]
    ours = RopescaleLM(model, tokenizer).loglikelihood_rolling(rolling(texts), disable_tqdm=True)
    theirs = harness(model, tokenizer, add_bos_token=False).loglikelihood_rolling(rolling(texts), disable_tqdm=True)
    for mine, other, text in zip(ours, theirs, texts, strict=True):
        tokens = len(tokenizer.encode(text, verbose=False)) or 1
        assert mine / tokens == pytest.approx(other / tokens, rel=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (32, 32), (70, 1)])
def test_strided_windows_score_every_token_once_after_the_last_ones_before_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, window: int, stride: int
) -> None:
    text = TEXT[:300]
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    lm = RopescaleLM(model, tokenizer, window=window, stride=stride)
    (found,) = lm.loglikelihood_rolling(rolling([text]), disable_tqdm=True)
    expected, scored_so_far = 0.0, window + 1
    expected += float(token_losses(model, torch.tensor([ids[:scored_so_far]])).sum())
    while scored_so_far < len(ids):
        end = min(scored_so_far + stride, len(ids))
        piece = torch.tensor([ids[end - window - 1 : end]])
        expected += float(token_losses(model, piece, first=window + 1 - (end - scored_so_far)).sum())
        scored_so_far = end
    assert -found == pytest.approx(expected, rel=1e-6)


def test_a_shared_beginning_token_is_never_predicted(model: PreTrainedModel, leading: PreTrainedTokenizerFast) -> None:
    plain = TEXT[:200]
    ids = leading.encode(plain, add_special_tokens=False)
    expected = -float(token_losses(model, torch.tensor([[7, *ids]])).sum())
    lm = RopescaleLM(model, leading)
    for text in (plain, f"{leading.bos_token}{plain}"):
        assert lm.loglikelihood_rolling(rolling([text]), disable_tqdm=True)[0] == pytest.approx(expected, rel=1e-6)


# The beginning of a sequence


@pytest.mark.parametrize(
    ("add", "led", "expected"),
    [(None, True, 1), (None, False, 0), (True, True, 1), (True, False, 1), (False, True, 0), (False, False, 0)],
)
def test_a_text_begins_once_or_not_at_all(
    model: PreTrainedModel, leading: PreTrainedTokenizerFast, add: bool | None, led: bool, expected: int
) -> None:
    if not led:
        leading._tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    ids = leading.encode("The people", add_special_tokens=False)
    lm = RopescaleLM(model, leading, add_bos_token=add)
    assert lm.tok_encode("The people") == [7] * expected + ids
    assert lm.tok_encode(f"{leading.bos_token}The people") == [7, *ids]


def test_a_batch_begins_once_in_every_row(model: PreTrainedModel, leading: PreTrainedTokenizerFast) -> None:
    plain = ["The people", "Our country"]
    written = ["The people", f"{leading.bos_token}Our country"]
    lm = RopescaleLM(model, leading)
    assert lm.generate_until(prompted(plain), True) == lm.generate_until(prompted(written), True)
    ids, mask = lm.tok_batch_encode(written)
    assert ((ids == 7).sum(1) == 1).all()
    assert mask.sum(1).tolist() == [len(lm.tok_encode(text)) for text in plain]


def test_a_chat_template_that_writes_the_beginning_has_it_once(
    model: PreTrainedModel, leading: PreTrainedTokenizerFast
) -> None:
    leading.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    lm = RopescaleLM(model, leading)
    ids = lm.tok_encode(lm.apply_chat_template([{"role": "user", "content": "The people"}]))
    assert ids == [7, *leading.encode("The people", add_special_tokens=False)]


def test_a_tokenizer_without_any_end_can_do_all_but_begin(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = bare.pad_token = bare.unk_token = None
    before = len(bare)
    lm = RopescaleLM(model, bare)
    asked = prompted(["The people", "Our own country and its"])
    assert lm.generate_until(asked, True) == RopescaleLM(model, tokenizer).generate_until(asked, True)
    pairs = scored([("The people", " of")])
    assert lm.loglikelihood(pairs, True) == RopescaleLM(model, tokenizer).loglikelihood(pairs, True)
    for refused in (
        lambda: lm.loglikelihood_rolling(rolling(["The people"]), True),
        lambda: lm.loglikelihood(scored([("", "The people")]), True),
    ):
        with pytest.raises(InvalidArgumentError) as error:
            refused()
        assert str(error.value) == (
            "tokenizer: the first token of a text can only be scored after another one, got neither a "
            "beginning-of-sequence nor an end-of-sequence token; give prefix_token_id"
        )
    assert len(bare) == before  # the harness adds a padding token to a tokenizer without one


# Lengths


def test_nothing_is_truncated_and_the_check_comes_before_the_first_forward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = RopescaleLM(model, tokenizer)
    fits, long = "The people", TEXT[:1000]
    tokens = len(tokenizer.encode(long, verbose=False))
    advice = "nothing is truncated here: shorten it, or patch the model with a larger factor"
    cases = [
        (lambda: lm.generate_until(prompted([fits, long]), True), f"{tokens} tokens and 12 to generate"),
        (lambda: lm.loglikelihood(scored([(fits, " of"), (long, " of")]), True), f"{tokens} tokens"),
    ]
    for refused, got in cases:
        with reads(model) as seen, pytest.raises(InvalidArgumentError) as error:
            refused()
        assert (
            str(error.value) == f"request: it must fit into the 128 tokens that the model reads, got {got}; {advice}"
        )
        assert seen == []
    ropescale.patch(model, "yarn", factor=4)  # the length is read when it is needed
    assert len(lm.generate_until(prompted([fits, long]), True)) == 2


def test_the_longest_request_that_fits_is_answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = RopescaleLM(model, tokenizer)
    text = tokenizer.decode(tokenizer.encode(TEXT[:2000], verbose=False)[:116])
    assert len(lm.tok_encode(text)) == 116
    assert len(lm.generate_until(prompted([text]), True)) == 1
    with pytest.raises(InvalidArgumentError, match="got 116 tokens and 13 to generate"):
        lm.generate_until(prompted([text], max_gen_toks=13), True)


def test_a_window_longer_than_the_model_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = RopescaleLM(model, tokenizer, window=200)
    with pytest.raises(
        InvalidArgumentError, match="must fit into the 128 tokens that the model reads, got 200 tokens"
    ):
        lm.loglikelihood_rolling(rolling([TEXT[:2000]]), disable_tqdm=True)


# What goes wrong, and what is kept


def poisoned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Every text with the first token of `text` gives numbers that are none."""
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.encode(text)[0]] = torch.nan


ADVICE = "in float32; use dtype float32, or a smaller factor"


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until", "loglikelihood_rolling"])
def test_numbers_that_are_none_are_an_error_and_what_was_finished_is_kept(
    kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.config.tie_word_embeddings = False  # else the head, and so every text, would be poisoned too
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    poisoned(model, tokenizer, "Q")
    good, bad = "The people of the United States and their own country", "Q of the people"
    asked = {
        "loglikelihood": scored([(good, " is"), (bad, " is")]),
        "generate_until": prompted([good, bad]),
        "loglikelihood_rolling": rolling([good, bad]),
    }[kind]
    lm = RopescaleLM(model, tokenizer, batch_tokens=1)
    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    with pytest.raises(RopescaleError) as error:
        getattr(cached, kind)(asked)
    tokens = len(lm.tok_encode(bad)) + (kind != "generate_until")
    begins = {"loglikelihood": "Q of the people is"}.get(kind, bad)
    assert str(error.value) == (
        f"model: log-probabilities must be finite, got NaN or infinity for the request of {tokens} tokens that begins "
        f"{begins!r}, {ADVICE}"
    )
    assert len(cached.dbdict) == 1  # the good one
    with reads(model) as seen:
        getattr(cached, kind)(asked[:1])
    assert seen == []


def test_progress_counts_every_token_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    counted: list[int] = []
    lm = RopescaleLM(model, tokenizer, on_progress=counted.append)
    lm.loglikelihood(scored([("The people of", " the"), ("The people of the", " United States")]))
    assert sum(counted) == len(lm.tok_encode("The people of the United States")) - 1
    counted.clear()
    lm.generate_until(prompted(["The people of", "Our own country"]))
    assert sum(counted) == sum(len(lm.tok_encode(text)) + 12 for text in ("The people of", "Our own country"))


def test_figures_do_not_depend_on_how_requests_are_batched(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = scored([(TEXT[i * 50 : i * 50 + 40 + i], " the people") for i in range(9)])
    together = RopescaleLM(model, tokenizer).loglikelihood(pairs, True)
    with reads(model) as seen:
        alone = RopescaleLM(model, tokenizer, batch_tokens=1).loglikelihood(pairs, True)
    assert {rows for rows, length in seen if length != 8} == {1}
    torch.testing.assert_close([a for a, _ in together], [b for b, _ in alone], rtol=1e-5, atol=1e-5)
    with reads(model) as seen:
        RopescaleLM(model, tokenizer, batch_size=2).loglikelihood(pairs, True)
    assert max(rows for rows, _ in seen) == 2


# Construction


def test_a_name_is_loaded_and_patched(tokenizer: PreTrainedTokenizerFast) -> None:
    lm = RopescaleLM("tiny", method="yarn", factor=2)
    assert ropescale.record(lm.model) is not None
    assert lm.max_length == 256
    assert lm.model.dtype == torch.float32
    assert lm.tok_encode("The people") == tokenizer.encode("The people")


def test_the_harness_finds_it_by_name_and_its_default_device_need_not_be_there() -> None:
    lm = get_model("ropescale").create_from_arg_string(
        "pretrained=tiny,method=ntk,factor=2", {"batch_size": 1, "device": "cuda:0"}
    )
    assert isinstance(lm, RopescaleLM)
    assert lm.max_length == 256
    assert torch.cuda.is_available() or lm.device.type == "cpu"


def test_an_adapter_answers_like_the_model_that_it_is_merged_into(tokenizer: PreTrainedTokenizerFast) -> None:
    adapter = LoraConfig(init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(0)
    adapted = get_peft_model(ropescale.load("tiny"), adapter)
    asked, pairs = prompted(["The people of", "Our own country"]), scored([("The people of", " the")])
    lm = RopescaleLM(adapted, tokenizer)
    replies, ((logprob, _),) = lm.generate_until(asked, True), lm.loglikelihood(pairs, True)
    merged = RopescaleLM(copy.deepcopy(adapted).merge_and_unload(), tokenizer)
    assert replies == merged.generate_until(asked, True)
    assert logprob == pytest.approx(merged.loglikelihood(pairs, True)[0][0], rel=1e-5)
    assert replies != RopescaleLM("tiny").generate_until(asked, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window: must be at least 1 token, got 0; leave it out"),
        (
            {"window": 8, "stride": 9},
            "stride: must be at most the window of 8 tokens, got 9; leave it out for windows side by side",
        ),
        (
            {"method": "yarn"},
            "factor: must be given with method, and neither alone, got method 'yarn' and factor None; "
            "give both, or neither",
        ),
        ({"dtype": "float31"}, "dtype: must be auto or a type of torch, got 'float31'; leave it out"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        RopescaleLM("tiny", **arguments)
    assert str(error.value) == message


def test_a_live_model_is_taken_as_it_is() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        RopescaleLM(family("llama"), "tiny", factor=2)
    assert str(error.value) == (
        "factor: must be left out for a model that is loaded already, got 2; load and patch it first, or give its path"
    )
    with pytest.raises(InvalidArgumentError) as error:
        RopescaleLM(family("llama"))
    assert str(error.value) == (
        "tokenizer: must be given for a model that was not loaded from somewhere, got None; give tokenizer"
    )


def test_vllm_is_named_when_it_is_not_there() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        vllm_model("tiny")
    assert str(error.value) == (
        "backend: vllm must be installed for this backend, got no such package; "
        "run `pip install vllm`, or use the backend transformers"
    )


# Several devices


@pytest.mark.slow  # two processes load torch and the harness anew
def test_two_processes_share_the_rows_and_find_the_same(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launch, processes.__file__, str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    one = processes.evaluated("tiny")
    assert one is not None
    assert one["world"] == 1
    for two in json.loads((tmp_path / "found.json").read_text()):  # of a name, and of a live model
        assert two["world"] == 2
        assert [len(replies) for replies in two["replies"].values()] == [7, 7, 7]
        assert two["replies"]["reply"] == one["replies"]["reply"]
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-6)


def test_a_model_is_patched_here_as_patch_takes_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """On a checkpoint that was published scaled: `existing`, `original_length` and `layers` reach the patch."""
    published = ropescale.patch(ropescale.load("tiny"), "yarn", factor=2)
    published.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["ropescale"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = {"existing": "replace", "original_length": 64, "layers": "all"}
    lm = RopescaleLM(str(tmp_path), method="ntk", factor=4, **start)
    record = ropescale.record(lm.model)
    assert record is not None
    found = (record.method, record.existing, record.original_length, record.target_length, record.layers)
    assert found == ("ntk", "replace", 64, 256, "all")
    for name, value in start.items():
        with pytest.raises(InvalidArgumentError, match=f"{name}: must be given with a method"):
            RopescaleLM("tiny", **{name: value})
        with pytest.raises(InvalidArgumentError, match=f"{name}: must be left out for a model that is loaded already"):
            RopescaleLM(lm.model, tokenizer, **{name: value})
