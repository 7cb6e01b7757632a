"""The passkey task: exact lengths, one key, the needle where it was asked for, worded errors."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.passkey import (
    NEEDLE,
    QUESTION,
    TASK,
    passkey_sample,
    passkey_samples,
    shortest_length,
)

TINY = Path(__file__).resolve().parents[2] / "ropescale" / "checkpoints" / "tiny"
TOKENIZER = AutoTokenizer.from_pretrained(TINY)
SHORTEST = 74


@pytest.fixture
def leading_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that puts its beginning-of-sequence token first by itself, as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    token = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.bos_token_id)]
    )
    return tokenizer


@settings(max_examples=60, deadline=None)
@given(length=st.integers(SHORTEST, 700), depth=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_sample_has_its_length_one_key_and_the_needle_at_its_depth(length: int, depth: float, seed: int) -> None:
    made = passkey_sample(TOKENIZER, length=length, depth=depth, rng=random.Random(seed))
    assert len(made.input_ids) == length
    assert made.depth == depth
    assert 10_000 <= int(made.key) <= 99_999
    text = TOKENIZER.decode(made.input_ids)
    assert text.startswith(TASK)
    assert text.endswith(f"{QUESTION} {made.key}")
    assert TOKENIZER.decode(made.input_ids[-made.answer_length :]) == f" {made.key}"
    prompt = TOKENIZER.decode(made.input_ids[: -made.answer_length])
    needle = NEEDLE.format(key=made.key)
    assert prompt.count(needle) == 1
    # nothing but the needle tells the key: no other digit is in the prompt
    assert re.findall(r"\d+", prompt) == [made.key, made.key]
    before = len(TOKENIZER.encode(prompt[: prompt.index(needle)])) - len(TOKENIZER.encode(TASK))
    # one token of slack: a cut through "again. The" may decode to text that encodes one token shorter
    assert abs(before - depth * (length - SHORTEST)) <= 1.5


def test_samples_are_the_same_for_the_same_seed_and_differ_by_seed() -> None:
    depths = (0.0, 0.5, 1.0)
    first = passkey_samples(TOKENIZER, length=128, depths=depths, count=4, seed=7)
    assert first == passkey_samples(TOKENIZER, length=128, depths=depths, count=4, seed=7)
    assert first != passkey_samples(TOKENIZER, length=128, depths=depths, count=4, seed=8)
    assert len({made.key for made in first}) == 12
    assert [made.depth for made in first] == [0.0] * 4 + [0.5] * 4 + [1.0] * 4


def test_samples_of_a_depth_do_not_depend_on_the_other_depths() -> None:
    forwards = passkey_samples(TOKENIZER, length=128, depths=[0, 0.5, 1], count=3, seed=7)
    backwards = passkey_samples(TOKENIZER, length=128, depths=[1.0, 0.0], count=3, seed=7)
    assert backwards == forwards[6:] + forwards[:3]


def test_more_samples_begin_with_the_same_ones() -> None:
    few = passkey_samples(TOKENIZER, length=128, depths=[0.5], count=2, seed=7)
    assert passkey_samples(TOKENIZER, length=128, depths=[0.5], count=5, seed=7)[:2] == few


def test_a_leading_token_is_included_once(leading_tokenizer: PreTrainedTokenizerBase) -> None:
    made = passkey_sample(leading_tokenizer, length=128, depth=0.5, rng=random.Random(0))
    assert len(made.input_ids) == 128
    assert made.input_ids.count(leading_tokenizer.bos_token_id) == 1
    assert made.input_ids[0] == leading_tokenizer.bos_token_id
    assert shortest_length(leading_tokenizer) == SHORTEST + 1


def test_the_tiny_tokenizer_adds_no_leading_token() -> None:
    made = passkey_sample(TOKENIZER, length=128, depth=0.5, rng=random.Random(0))
    assert TOKENIZER.bos_token_id not in made.input_ids


def test_the_shortest_length_is_the_shortest() -> None:
    assert shortest_length(TOKENIZER) == SHORTEST
    assert len(passkey_sample(TOKENIZER, length=SHORTEST, depth=1, rng=random.Random(0)).input_ids) == SHORTEST


@pytest.mark.parametrize(
    ("length", "depth", "message"),
    [
        (
            73,
            0.5,
            "passkey: length must hold the task without filler, got 73; ask for at least 74 tokens",
        ),
        (
            0,
            0.5,
            "passkey: length must hold the task without filler, got 0; ask for at least 74 tokens",
        ),
        (
            128,
            50,
            "passkey: depth must be a share from 0 (first) to 1 (last), got 50; divide a percentage by 100",
        ),
        (
            128,
            -0.5,
            "passkey: depth must be a share from 0 (first) to 1 (last), got -0.5; divide a percentage by 100",
        ),
    ],
    ids=["one token short", "no length", "depth in percent", "negative depth"],
)
def test_wrong_calls_say_the_rule_and_the_remedy(length: int, depth: float, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        passkey_sample(TOKENIZER, length=length, depth=depth, rng=random.Random(0))
    assert str(caught.value) == message
