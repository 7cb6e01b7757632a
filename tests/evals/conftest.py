"""The embedded model and its tokenizer, for every test of evaluation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from evaluations import write_evaluation
from reports import HOSTILE
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "results")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Hostile strings wherever a string can come from outside, the method's name among them."""
    arms = [("none", 1.0), ("yarn", 2.0), (HOSTILE, 2.0), ("yarn", 4.0)]
    return write_evaluation(tmp_path / "results", arms=arms, text=HOSTILE)
