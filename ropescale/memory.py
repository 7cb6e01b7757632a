"""What a context of some length needs of a device when a model answers, by formula; pure, no weights are read.

In elements, of which a cache entry or an activation takes `element` bytes:

    cache        rows x sum over layers of (kv heads x (key width + value width)) x min(length, window of the layer)
                 of latent attention: rows x layers x (rank of the latent vector + rotated width) x length
    activations  rows x length x (2 x hidden + max(2 x query + 2 x keys, 3 x intermediate)), while a prompt is read
    logits       rows x vocabulary, in float32: those of the last token

Weights are counted on the model itself, built without memory. Attention is taken to be fused (SDPA or flash), which
keeps no scores. What training needs is in `ropescale.recipes.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FLOAT = 4  # bytes
# Layer types that keep a state of fixed size in the place of keys and values
STATES = ("linear_attention", "mamba", "conv", "recurrent")
WINDOWS = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes, by what they are for."""

    weights: float
    cache: float
    activations: float  # at the peak of reading the prompt in one pass, logits included

    @property
    def total(self) -> float:
        """All of them; what a driver and fragmentation take comes on top."""
        return self.weights + self.cache + self.activations


def need(config: Any, *, parameters: int, length: int, rows: int = 1, element: int = 2) -> Need:
    """The memory of answering `rows` prompts of `length` tokens.

    Args:
        config: of a decoder, or of a model with a text decoder.
        parameters: of the model.
        length: tokens of a row, prompt and reply.
        rows: read at a time.
        element: bytes of a weight, an activation and a cache entry: 2 for bfloat16, 4 for float32.
    """
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    key, value = width, getattr(text, "v_head_dim", None) or width
    kept = shared * (key + value)  # elements of a token in a layer
    if latent := getattr(text, "kv_lora_rank", None):  # of which the cache holds the latent vector and what rotates
        key, shared, kept = text.qk_nope_head_dim + text.qk_rope_head_dim, heads, latent + text.qk_rope_head_dim
    cached = sum(kept * tokens for tokens in _kept(text, length))
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    passing = 2 * text.hidden_size + max(heads * (key + value) + shared * (key + value), 3 * wide)
    return Need(
        weights=element * parameters,
        cache=rows * cached * element,
        activations=rows * (length * passing * element + text.vocab_size * FLOAT),
    )


def _kept(text: Any, length: int) -> list[int]:
    """Tokens whose keys and values each layer keeps."""
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None) or length
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return [min(length, window)] * text.num_hidden_layers
    return [
        0 if kind.startswith(STATES) else min(length, window) if kind in WINDOWS else length
        for kind in kinds[: text.num_hidden_layers]
    ]


def said(size: float) -> str:
    """Bytes as people say them."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if size >= 2**power:
            return f"{size / 2**power:,.1f} {unit}"
    return f"{size / 2**10:,.1f} KiB"
