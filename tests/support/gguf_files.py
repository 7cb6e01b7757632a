"""GGUF files of small models: what the tests of obtaining and converting share."""

from pathlib import Path

import gguf
import numpy as np
from transformers import LlamaForCausalLM

from ropescale.checkpoints import gguf_llama

# GPT-2's alphabet: the printable bytes stand for themselves, the others for the characters from 256 on
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]


ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(256 + i) for i in range(256 - len(PRINTABLE))]


NEWLINE = "Ċ"


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, NEWLINE * 2, "th"]


CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows as llama.cpp stores them, row by row: row 2i and 2i + 1 of a head are its pair i."""
    head_dim = rows.shape[0] // heads
    stored = np.empty_like(rows)
    for head in range(heads):
        for pair in range(head_dim // 2):
            start = head * head_dim
            stored[start + 2 * pair] = rows[start + pair]
            stored[start + 2 * pair + 1] = rows[start + pair + head_dim // 2]
    return stored


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    omit: str = "",
    extra: str = "",
    scaled: bool = False,
) -> Path:
    """`model` as a GGUF file with a byte-level tokenizer; matrices are stored as `kind`, norms as F32."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if scaled:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))  # 3 is a control token, 1 a normal one
    writer.add_token_merges([f"{NEWLINE} {NEWLINE}", "t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    layer = {theirs: ours for ours, theirs in gguf_llama.LAYER_NAMES.items()}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if name == "model.embed_tokens.weight":
            stored = "token_embd.weight"
        elif name == "model.norm.weight":
            stored = "output_norm.weight"
        else:
            _, _, index, rest = name.split(".", 3)
            stored = f"blk.{index}.{layer[rest]}"
        if stored.endswith("attn_q.weight"):
            values = permuted(values, config.num_attention_heads)
        if stored.endswith("attn_k.weight"):
            values = permuted(values, config.num_key_value_heads)
        if stored == omit:
            continue
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    if extra:
        writer.add_tensor(extra, np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
