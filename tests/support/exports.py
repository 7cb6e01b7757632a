"""Random checkpoints to export, as a user's would be, and what is asked of exports; for tests and export_table.py."""

import json
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from families import FIXED, WHOLES, config_of, config_of_whole, model_of, model_of_whole
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import ropescale
from ropescale.adapters import save_adapter
from ropescale.checkpoints import resolve
from ropescale.export import verify
from ropescale.export.engines import vllm

# Sizes that every engine takes: head_dim 64, the vocabulary of the embedded checkpoint's tokenizer
SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 128,
}
FACTS: dict[str, dict[str, Any]] = {
    "granite": {
        "attention_multiplier": 0.125,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "mistral": {"sliding_window": None},
    "smollm3": {"num_hidden_layers": 4},  # every fourth is without rotation
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TINY = Path(resolve("tiny"))
STATIC = [*FIXED, "nope"]  # nope acts in attention, and comes to frequencies of 0
# Of one log-probability: two attention functions round otherwise, and nope's reference is not the engine's own
NOPE = 1e-4
# Where the frequencies are those of another method under other words, what it is exported as says nothing new
VARIANTS: dict[str, dict[str, Any]] = {
    "attention factor": {"attention_factor": 1.0},
    "betas": {"beta_fast": 16.0, "beta_slow": 2.0},
    "clipped": {"clipped": 12},
    "resonance": {"resonance": True},
    "truncate": {"truncate": False},
    "turns": {"ramp": "turns"},
    "mscale": {"mscale": 0.7, "mscale_all_dim": 0.3},
}
FAMILIES = (
    "gemma",
    "gemma3_text",
    "glm",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "starcoder2",
)
LOSSY: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic_linear": ({}, "linear"),
    "dynamic_ntk": ({}, "ntk"),
    "dynamic_yarn": ({}, "yarn"),
    "longrope": ({"long_factor": [2.0] * 16, "short_factor": [1.5] * 16}, "longrope"),
    "linear": ({"log_n": True}, "linear"),
}
IGNORED = [
    # families with sliding windows say that all their layers are rescaled; the tests of families check that they do
    pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*"),
    pytest.mark.filterwarnings("ignore:.*does not have.*:UserWarning"),
]


def with_entry(source: Path, name: str, value: Any, path: Path) -> Path:
    """A copy with another value in one entry of the metadata: of whatever kind, or a text of these bytes."""
    read = gguf.GGUFReader(source)
    told = gguf.GGUFWriter(path, "llama")
    for field in read.fields.values():
        if field.name != name and not field.name.startswith(("GGUF.", "general.architecture")):
            told.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])
    if name == "general.architecture":
        del told.kv_data[0][name]
    kind = gguf.GGUFValueType.STRING if isinstance(value, bytes) else gguf.GGUFValueType.get_type(value)
    told.kv_data[0][name] = gguf.gguf_writer.GGUFValue(value, kind)
    for tensor in read.tensors:
        told.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    told.write_header_to_file()
    told.write_kv_data_to_file()
    told.write_tensors_to_file()
    told.close()
    return path


def often(values: Iterable[str], *kept: str) -> list[Any]:
    """Values of a parameter, of which those that take the way of another are slow."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in values]


def random_model(name: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random model of a family, with matrices large enough that first choices lead clearly."""
    model = model_of(config_of(name, **{**SIZES, **FACTS.get(name, {}), **changes}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 0.1 / 0.15
    return model


def checkpoint(folder: Path, name: str = "llama", **changes: Any) -> Path:
    """The folder of such a model, with the embedded checkpoint's tokenizer."""
    random_model(name, **changes).save_pretrained(folder)
    for file in TOKENIZER:
        shutil.copy(Path(resolve("tiny"), file), folder / file)
    return folder


def whole_checkpoint(folder: Path, name: str, **changes: Any) -> Path:
    """The folder of a random model that sees images, with a tokenizer and a file that says how images are read."""
    text = WHOLES[name][0]
    each = {"vocab_size_per_layer_input": SIZES["vocab_size"]} if text.startswith("gemma4") else {}
    config = config_of_whole(name, **{**SIZES, **each, **changes})
    if text.startswith("qwen3_5"):
        config.text_config.rope_parameters |= {"mrope_section": [3, 3, 2], "mrope_interleaved": True}
        config.text_config.full_attention_interval = 2  # by which MLX-LM tells its layers apart
    elif "_vl" in text:
        config.text_config.rope_parameters |= {"mrope_section": [12, 10, 10]}
    model = model_of_whole(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 0.1 / 0.15
    model.save_pretrained(folder)
    for file in TOKENIZER:
        shutil.copy(Path(resolve("tiny"), file), folder / file)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    return folder


def source_of(name: str, llama: Path) -> tuple[str, int]:
    """A checkpoint, and its pairs."""
    return ("tiny", 16) if name == "tiny" else (str(llama), 32)


def require_exact(path: Path, engine: str, reference: str, **arguments: Any) -> None:
    """The engine computes what the patched model computes, below the original length, beyond it and at the target."""
    verdict = verify(path, engine=engine, reference=reference, **arguments)
    assert verdict.exact, str(verdict)
    assert [check.agreed for check in verdict.checks] == [16, 16, 16], str(verdict)
    below, beyond, target = verdict.checks
    assert below.length < 128 < beyond.length < target.length == 512 - 16


def config_in(path: Path) -> dict[str, Any]:
    """The entries of an export's config.json."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def recorded(folder: Path, base: Any, beside: str = "", **arguments: Any) -> PreTrainedModel:
    """The adapted model whose adapter is saved in a folder with its record."""
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], r=4, init_lora_weights=False)
    model = get_peft_model(ropescale.patch(ropescale.load(base), **arguments), lora)
    for name, parameter in model.named_parameters():
        if beside and beside in name:
            parameter.requires_grad_(True)
            parameter.data *= 0.9
    save_adapter(model, folder)
    return model.eval()


def vllm_is_there() -> bool:
    """Whether a Python has it."""
    try:
        return bool(vllm.python_with_vllm())
    except ropescale.RopescaleError:
        return False


in_vllm = [pytest.mark.slow, pytest.mark.skipif(not vllm_is_there(), reason="no vLLM: `make vllm` builds it")]
in_mlx = [pytest.mark.slow, pytest.mark.skipif(find_spec("mlx_lm") is None, reason="no mlx-lm: pip install it")]
