"""A GGUF file of a small model converted: the model, its config and its tokenizer."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import NEWLINE, TOKENS, write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import ropescale.checkpoints
from ropescale.checkpoints import gguf_llama, resolve
from ropescale.errors import CheckpointError


def test_tiny_is_a_folder_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(resolve("tiny"))
    assert folder.is_absolute()
    assert folder.is_dir()
    assert folder.parent == Path(ropescale.checkpoints.__file__).parent


@pytest.mark.parametrize("name", ["./tiny", "models/llama", "meta-llama/Llama-3.2-1B", "", "Tiny", "/tmp/smollm2"])
def test_other_names_pass_through(name: str) -> None:
    assert resolve(name) == name


def test_naming_imports_nothing_heavy() -> None:
    code = """
import sys
from ropescale.checkpoints import resolve
resolve("tiny"), resolve("some/model")
print(sorted({"torch", "transformers", "gguf", "huggingface_hub", "rich"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_cache_is_in_the_home_folder_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROPESCALE_CACHE", raising=False)
    assert ropescale.checkpoints.cache_folder() == Path.home() / ".cache" / "ropescale"
    monkeypatch.setenv("ROPESCALE_CACHE", "/somewhere/else")
    assert ropescale.checkpoints.cache_folder() == Path("/somewhere/else")


def test_a_converted_model_is_the_model_bit_for_bit(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "converted")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    expected = dict(llama.named_parameters())
    assert {name for name, _ in converted.named_parameters()} == expected.keys()
    for name, parameter in converted.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, expected[name]), name
    tokens = torch.arange(40)[None] + 3
    with torch.no_grad():
        assert torch.equal(converted(tokens).logits, llama(tokens).logits)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0], ids=str)
def test_a_quantised_model_is_what_gguf_dequantises(
    kind: gguf.GGMLQuantizationType, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama, kind), tmp_path / "converted")
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    for name, parameter in llama.named_parameters():
        expected = parameter.detach().numpy()
        if expected.ndim == 2:  # rows are quantised one by one, so their order does not matter to their values
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
            assert not np.array_equal(expected, parameter.detach().numpy())
        assert np.array_equal(converted[name].numpy(), expected), name


def test_a_converted_model_is_what_transformers_loads(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama, gguf.GGMLQuantizationType.Q4_1)
    gguf_llama.convert(path, tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    theirs = dict(loaded.named_parameters())
    for name, parameter in converted.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_the_config_states_what_the_metadata_say(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "converted")
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": len(TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {key: config.get(key) for key in expected} == expected


def test_the_tokenizer_splits_digits_off_first(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    text = "the\n\n12"
    tokens = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(tokens) == ["th", "e", NEWLINE * 2, "1", "2"]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.model_max_length == 512
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|im_end|>"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"architecture": "qwen2"},
            "gguf: general.architecture must be 'llama', got 'qwen2'; give Transformers the file itself "
            "(gguf_file=...)",
        ),
        (
            {"scaled": True},
            "gguf: positions must be as pretrained, got llama.rope.scaling.type; take the file of the unscaled model",
        ),
        (
            {"omit": "blk.1.attn_v.weight"},
            "gguf: tensors must be those of the llama its metadata describe, got none for "
            "'model.layers.1.self_attn.v_proj.weight' (1 missing); fetch the file again",
        ),
        (
            {"extra": "blk.0.attn_q.bias"},
            "gguf: tensors must be those of the llama its metadata describe, got 'blk.0.attn_q.bias' of shape "
            "(64,); give Transformers the file itself (gguf_file=...)",
        ),
    ],
    ids=["another_architecture", "scaled_positions", "missing_tensor", "unknown_tensor"],
)
def test_a_file_that_is_no_plain_llama_is_refused(
    broken: dict[str, object], message: str, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama, **broken)
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        gguf_llama.convert(path, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_missing_metadata_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(TOKENS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message = "gguf: metadata must hold 'llama.embedding_length', got none; fetch a file with complete metadata"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        gguf_llama.convert(tmp_path / "model.gguf", tmp_path / "converted")
