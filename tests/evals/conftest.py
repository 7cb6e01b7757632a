"""The embedded model and its tokenizer, for every test of evaluation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from evaluations import write_evaluation
from reports import HOSTILE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import ropescale
from ropescale.evals.plan import Options
from ropescale.evals.tokens import named_tokenizer


@pytest.fixture
def model() -> PreTrainedModel:
    return ropescale.load("tiny").eval()


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """A small Llama with random weights and the embedded tokenizer, on disk."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def options(checkpoint):
    return Options(model=str(checkpoint), methods=("yarn",), depths=(0.0, 1.0), windows=2, samples=2, texts="sample")
