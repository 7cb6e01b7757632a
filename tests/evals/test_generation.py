"""Replies: batched, from shared keys, stopped in each row for itself, and those of one `generate` per prompt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from asking import TEXT, harness, prompted, reads
from families import config_of, model_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import ropescale
from ropescale.evals import engine
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.forward import reuses_exactly


def one_by_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """What a fresh copy of the model generates after each prompt alone, cut at the first stop."""
    replies = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt, verbose=False)])
        found = copy.deepcopy(model).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        reply = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=False)
        replies.append(reply.split(".")[0].split(tokenizer.eos_token)[0])
    return replies


TRUNK = " ".join([TEXT[:700]])
SHARING = [TRUNK[:150] + end for end in (" The", " A word")] + [TRUNK[: 200 + 110 * i] for i in range(5)]


def in_turn(lm: RopescaleLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts become long enough to share at any length; what comes back fills when they do."""
    monkeypatch.setattr(engine, "REUSE_LENGTH", 1)
    taken: list[int] = []
    own = lm._written_in_turn
    monkeypatch.setattr(
        lm, "_written_in_turn", lambda ordered, common: taken.append(sum(common)) or own(ordered, common)
    )
    return taken


def test_short_prompts_are_batched_with_the_replies_of_the_harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = prompted([TEXT[i * 31 : i * 31 + 60 + 7 * (i % 4)] for i in range(14)])
    with reads(model) as seen:
        ours = RopescaleLM(model, tokenizer).generate_until(asked, True)
    assert any(shape[0] > 2 for shape in seen)
    assert ours == harness(model, tokenizer, batch_size=1).generate_until(asked, True)
    assert len(set(ours)) > 3


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "qwen3_moe", "tiny"])
def test_prompts_that_begin_alike_share_their_keys_and_get_the_replies_of_each_alone(
    name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ropescale.load("tiny").eval() if name == "tiny" else model_of(config_of(name, vocab_size=1024))
    ropescale.patch(model, "yarn", factor=6)
    lm = RopescaleLM(model, tokenizer, max_length=800)
    shared = in_turn(lm, monkeypatch)
    with reads(model) as seen:
        replies = lm.generate_until(prompted(SHARING), True)
    assert replies == one_by_one(model, tokenizer, SHARING)
    tokens = [len(tokenizer.encode(prompt, verbose=False)) for prompt in SHARING]
    assert shared
    assert shared[0] > sum(tokens) / 3
    # all but what is shared is read, and the tokens that were written
    assert sum(rows * length for rows, length in seen) <= sum(tokens) - shared[0] + 12 * len(SHARING)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("mistral", {"sliding_window": 32}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [4.0] * 8,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 10000.0,
                }
            },
        ),
        ("minimax", {}),
    ],
)
def test_keys_are_not_shared_where_they_would_not_hold(
    name: str, facts: dict[str, Any], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(config_of(name, vocab_size=1024, **facts))
    lm = RopescaleLM(copy.deepcopy(model), tokenizer, max_length=800)
    shared = in_turn(lm, monkeypatch)
    assert lm.generate_until(prompted(SHARING), True) == one_by_one(model, tokenizer, SHARING)
    assert not shared
    assert not reuses_exactly(model, 400)


def test_keys_are_shared_within_a_sliding_window(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(config_of("mistral", vocab_size=1024, sliding_window=512))
    lm = RopescaleLM(model, tokenizer, max_length=800)
    shared = in_turn(lm, monkeypatch)
    assert lm.generate_until(prompted(SHARING), True) == one_by_one(model, tokenizer, SHARING)
    assert shared


def test_a_row_stops_at_its_own_stop_string_and_all_at_their_room(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = ["The people of the", "Our own country is"]
    lm = RopescaleLM(model, tokenizer)
    free = lm.generate_until(prompted(prompts, until=[], max_gen_toks=20), True)
    stop = free[0][5:9]
    assert stop not in free[0][:5]
    stopped = lm.generate_until(prompted(prompts, until=[stop], max_gen_toks=20), True)
    assert stopped[0] == free[0][:5] == harness(model, tokenizer).generate_until(
        prompted(prompts[:1], until=[stop], max_gen_toks=20), True
    )[0]  # fmt: skip
    assert stopped[1] == free[1].split(stop)[0]
    short = lm.generate_until(prompted(prompts, until=[], max_gen_toks=3), True)
    assert [len(tokenizer.encode(reply)) for reply in short] == [3, 3]


def test_a_stop_string_that_begins_in_the_prompt_ends_no_reply(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nor is one that lies in the prompt whole; the prompt is no part of what is answered."""
    lm, prompt = RopescaleLM(model, tokenizer), TEXT[:60]
    (free,) = lm.generate_until(prompted([prompt], until=[], max_gen_toks=12), True)
    begun = prompt[-2:] + free[:2]
    assert begun not in free
    for stop in (begun, prompt[-4:]):
        assert lm.generate_until(prompted([prompt], until=[stop], max_gen_toks=12), True) == [free.split(stop)[0]]


def test_a_stop_string_ends_the_work(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = RopescaleLM(model, tokenizer)
    (free,) = lm.generate_until(prompted(["The people of the"], until=[], max_gen_toks=60), True)
    with reads(model) as seen:
        lm.generate_until(prompted(["The people of the"], until=[free[3:6]], max_gen_toks=60), True)
    assert len(seen) < 12


def test_sampling_is_left_to_the_harness(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = prompted(["The people of the", "Our own"], do_sample=True, temperature=0.9)
    torch.manual_seed(0)
    ours = RopescaleLM(model, tokenizer).generate_until(asked, True)
    torch.manual_seed(0)
    assert ours == harness(model, tokenizer, batch_size=1).generate_until(asked, True)
