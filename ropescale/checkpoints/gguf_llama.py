"""A llama-architecture GGUF file as a plain Transformers checkpoint in float32.

Transformers loads such a file too, but refuses to save what it loaded, and every load dequantises again. This
room knows the two formats; where the file comes from is none of its business.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ropescale.console import Console
from ropescale.errors import CheckpointError

MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes config, weights and tokenizer of `gguf_file` into `folder`, which is made if missing.

    Raises:
        CheckpointError: not a GGUF file, not of a plain llama, or its tensors do not fit its metadata.
    """
    try:
        reader = gguf.GGUFReader(gguf_file)
    except (ValueError, IndexError, KeyError) as error:  # what the reader meets in bytes that are not GGUF
        raise CheckpointError(
            f"{gguf_file.name}: must be a whole GGUF file, got one that cannot be read ({error}); fetch it again"
        ) from error
    config = read_config(reader)
    parameters = read_parameters(reader, config)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(parameters, folder / "model.safetensors", metadata={"format": "pt"})
    _save_tokenizer(gguf_file, _metadata(reader, "tokenizer.ggml.pre", "default"), config, folder)


def read_config(reader: gguf.GGUFReader) -> LlamaConfig:
    """The config that the metadata describe.

    Raises:
        CheckpointError: another architecture, scaled positions, or a missing entry.
    """
    architecture = _metadata(reader, "general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"gguf: general.architecture must be 'llama', got {architecture!r}; give Transformers the file "
            f"itself (gguf_file=...)"
        )
    if scaled := sorted(key for key in reader.fields if key.startswith("llama.rope.scaling.")):
        raise CheckpointError(
            f"gguf: positions must be as pretrained, got {', '.join(scaled)}; take the file of the unscaled model"
        )
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(_metadata(reader, "tokenizer.ggml.tokens")),
        hidden_size=_metadata(reader, "llama.embedding_length"),
        intermediate_size=_metadata(reader, "llama.feed_forward_length"),
        num_hidden_layers=_metadata(reader, "llama.block_count"),
        num_attention_heads=_metadata(reader, "llama.attention.head_count"),
        num_key_value_heads=_metadata(reader, "llama.attention.head_count_kv"),
        head_dim=_metadata(reader, "llama.rope.dimension_count"),
        max_position_embeddings=_metadata(reader, "llama.context_length"),
        rms_norm_eps=_as_typed(_metadata(reader, "llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _as_typed(_metadata(reader, "llama.rope.freq_base")),
        },
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
        bos_token_id=_metadata(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_metadata(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_metadata(reader, "tokenizer.ggml.padding_token_id", None),
    )


def read_parameters(reader: gguf.GGUFReader, config: LlamaConfig) -> dict[str, Tensor]:
    """All parameters under their Transformers names, float32, dequantised.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape than the config's model has.
    """
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    parameters: dict[str, Tensor] = {}
    console = Console(stderr=True)
    for tensor in track(reader.tensors, description="dequantising", console=console, transient=True):
        name = _parameter_name(tensor.name)
        # the file is mapped read-only, so the values are copied out of it
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        if name not in shapes or tuple(values.shape) != shapes[name]:
            raise CheckpointError(
                f"gguf: tensors must be those of the llama its metadata describe, got {tensor.name!r} of "
                f"shape {tuple(values.shape)}; give Transformers the file itself (gguf_file=...)"
            )
        if name.endswith("q_proj.weight"):
            values = unpermuted(values, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            values = unpermuted(values, config.num_key_value_heads)
        parameters[name] = values
    if missing := sorted(shapes.keys() - parameters.keys()):
        raise CheckpointError(
            f"gguf: tensors must be those of the llama its metadata describe, got none for {missing[0]!r} "
            f"({len(missing)} missing); fetch the file again"
        )
    return parameters


def unpermuted(rows: Tensor, heads: int) -> Tensor:
    """[heads * head_dim, columns]: query or key rows in the order of Transformers, from that of llama.cpp.

    Both rotate the same pairs. llama.cpp stores the two rows of a pair next to each other; Transformers stores
    the first rows of all pairs of a head, then the second ones.
    """
    return rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _parameter_name(tensor_name: str) -> str:
    """The Transformers name of a GGUF tensor; an unknown name comes back unchanged, and fits none."""
    if tensor_name in MODEL_NAMES:
        return MODEL_NAMES[tensor_name]
    match tensor_name.split(".", 2):
        case ["blk", layer, name] if name in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[name]}"
    return tensor_name


def _save_tokenizer(gguf_file: Path, pre_tokenizer: str, config: LlamaConfig, folder: Path) -> None:
    """Writes the tokenizer, chat template included, as the original model had it."""
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    if pre_tokenizer == "smollm":
        # Transformers 5.23 takes every byte-level BPE of a GGUF file for GPT-2's. SmolLM splits digits off
        # first, which changes the tokens of white space in front of a digit ("\n\n1").
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


_REQUIRED = object()


def _metadata(reader: gguf.GGUFReader, key: str, default: Any = _REQUIRED) -> Any:
    """The value of a metadata entry."""
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default is _REQUIRED:
        raise CheckpointError(f"gguf: metadata must hold {key!r}, got none; fetch a file with complete metadata")
    return default


def _as_typed(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
