"""The embedded model and its tokenizer, for every test of evaluation."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import ropescale
from ropescale.evals.tokens import named_tokenizer


@pytest.fixture
def model() -> PreTrainedModel:
    return ropescale.load("tiny").eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return named_tokenizer("tiny")


@pytest.fixture
def leading() -> PreTrainedTokenizerFast:
    """The tokenizer with a beginning-of-sequence token of its own, which it adds by itself."""
    made = copy.deepcopy(named_tokenizer("tiny"))
    made.bos_token = made.convert_ids_to_tokens(7)
    made._tokenizer.post_processor = TemplateProcessing(
        single=f"{made.bos_token} $A", special_tokens=[(made.bos_token, 7)]
    )
    assert made("The")["input_ids"][0] == 7 == made.bos_token_id
    return made
