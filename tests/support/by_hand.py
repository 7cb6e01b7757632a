"""Attention of DeepSeek and Llama 4 written out by hand: every score in float64, from the angle between two tokens.

It reads a layer's weights and sizes and nothing else of it, and shares no code with what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Law = Callable[[Tensor, Tensor], Tensor]  # [n, 1] and [1, n] positions -> [n, n, pairs] angles


@dataclass(frozen=True)
class Rule:
    """What one layer does with positions."""

    angles: Law
    sharper: float = 1.0  # what scores of rotated elements are multiplied by: an attention factor, squared
    scale: float = 1.0  # what all scores are multiplied by besides
    growth: Callable[[Tensor], Tensor] | None = None  # of [n, 1] positions: what queries of layers that rotate are


@contextmanager
def by_hand(model: nn.Module, rule: Callable[[int], Rule]) -> Iterator[None]:
    """A model whose layers attend as `rule` says of each layer's number."""
    decoder: Any = next(module for module in model.modules() if hasattr(module, "embed_tokens"))
    layers = decoder.layers
    for number, layer in enumerate(layers):
        read = _latent if hasattr(layer.self_attn, "kv_lora_rank") else _chunked
        layer.self_attn.__dict__["forward"] = _forward(layer.self_attn, read, rule(number))
    try:
        yield
    finally:
        for layer in layers:
            del layer.self_attn.__dict__["forward"]


def straight(inv_freq: Tensor) -> Law:
    return lambda i, j: (i - j)[..., None] * inv_freq


def grouped(inv_freq: Tensor, size: int, window: int) -> Law:
    """Self-Extend."""

    def angles(i: Tensor, j: Tensor) -> Tensor:
        far = i // size - j // size + window - window // size
        return torch.where(i - j < window, i - j, far)[..., None] * inv_freq

    return angles


def capped(inv_freq: Tensor, window: int) -> Law:
    """ReRoPE."""
    return lambda i, j: (i - j).clamp(max=window)[..., None] * inv_freq


def slowing(inv_freq: Tensor, length: int) -> Law:
    """Dynamic linear, by the power of two that holds a query's text."""

    def angles(i: Tensor, j: Tensor) -> Tensor:
        scale = 2.0 ** ((i + 1) / length).log2().ceil().clamp(min=0)
        return (i - j)[..., None] * inv_freq / scale[..., None]

    return angles


def still(i: Tensor, j: Tensor) -> Tensor:
    """No position."""
    return torch.zeros(*(i - j).shape, 1, dtype=torch.float64)


def pretrained(pairs: int, theta: float) -> Tensor:
    return theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def yarn(pairs: int, theta: float, length: int, factor: float) -> Tensor:
    """YaRN's frequencies with bounds of 32 turns and 1."""
    bounds = [pairs * math.log(length / (turns * 2 * math.pi)) / math.log(theta) for turns in (32, 1)]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), 2 * pairs - 1)
    kept = 1 - ((torch.arange(pairs, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    own = pretrained(pairs, theta)
    return own * kept + own / factor * (1 - kept)


def llama3(pairs: int, theta: float, length: int, factor: float) -> Tensor:
    """Llama 3's frequencies with bounds of 4 turns and 1."""
    own = pretrained(pairs, theta)
    kept = ((length * own / (2 * math.pi) - 1) / 3).clamp(0, 1)
    return own * kept + own / factor * (1 - kept)


def mscale(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1


def _forward(layer: Any, read: Any, rule: Rule) -> Any:
    def forward(hidden_states: Tensor, *_: Any, **kwargs: Any) -> tuple[Tensor, None]:
        hidden = hidden_states.double()
        n = hidden.shape[1]
        given = kwargs.get("position_ids")
        places = (torch.arange(n) if given is None else given[0]).double()
        attended = read(layer, hidden, rule, places)
        return _linear(layer.o_proj, attended.flatten(2)).to(hidden_states.dtype), None

    return forward


def _latent(layer: Any, hidden: Tensor, rule: Rule, places: Tensor) -> Tensor:
    """Multi-head latent attention: a part of each head rotates, and all heads share the rotated part of the key."""
    still_dim, turned_dim, value_dim = layer.qk_nope_head_dim, layer.qk_rope_head_dim, layer.v_head_dim
    if layer.q_lora_rank is None:
        query = _linear(layer.q_proj, hidden)
    else:
        query = _linear(layer.q_b_proj, _normalised(layer.q_a_layernorm, _linear(layer.q_a_proj, hidden)))
    query = query.unflatten(-1, (layer.num_heads, still_dim + turned_dim))
    latent, key = _linear(layer.kv_a_proj_with_mqa, hidden).split([layer.kv_lora_rank, turned_dim], dim=-1)
    both = _linear(layer.kv_b_proj, _normalised(layer.kv_a_layernorm, latent))
    still_key, value = both.unflatten(-1, (layer.num_heads, -1)).split([still_dim, value_dim], dim=-1)
    scores = torch.einsum("bihd,bjhd->bhij", query[..., :still_dim], still_key)
    turned = query[..., still_dim:]
    scores = scores + rule.sharper * _turned_scores(turned, key[:, :, None].expand_as(turned), rule.angles, places)
    scores = scores * rule.scale / math.sqrt(still_dim + turned_dim)
    return _read(_grown(scores, rule, places), value, _causal(len(places)))


def _chunked(layer: Any, hidden: Tensor, rule: Rule, places: Tensor) -> Tensor:
    """Llama 4: layers that rotate and see their chunk; those without rotation multiply queries by position."""
    config, heads = layer.config, layer.num_attention_heads
    projections = [_linear(one, hidden) for one in (layer.q_proj, layer.k_proj, layer.v_proj)]
    query, key, value = (one.unflatten(-1, (-1, layer.head_dim)) for one in projections)
    if layer.use_rope and config.use_qk_norm:
        query, key = (one / (one.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() for one in (query, key))
    key, value = (one.repeat_interleave(heads // one.shape[2], dim=2) for one in (key, value))
    visible, index = _causal(len(places)), torch.arange(len(places))
    if layer.use_rope:
        chunk = index // config.attention_chunk_size
        visible = visible & (chunk[:, None] == chunk)
        scores = rule.sharper * _turned_scores(query, key, rule.angles, places)
        scores = _grown(scores, rule, places)
    else:
        steps = ((index + 1) // config.floor_scale).double()
        grown = 1 + config.attn_scale * (1 + steps).log() if config.attn_temperature_tuning else 1 + 0 * steps
        scores = torch.einsum("bihd,bjhd->bhij", query, key) * grown[:, None]
    return _read(scores / math.sqrt(layer.head_dim), value, visible)


def _turned_scores(query: Tensor, key: Tensor, angles: Law, places: Tensor) -> Tensor:
    """[batch, heads, n, n] products of [batch, n, heads, dim] queries and keys turned by the angle between them.

    A pair is two neighbours.
    """
    query, key = (one.unflatten(-1, (-1, 2)) for one in (query, key))
    angle = angles(places[:, None], places[None])
    plain = torch.einsum("bihpc,bjhpc->bhijp", query, key)
    across = torch.einsum("bihp,bjhp->bhijp", query[..., 0], key[..., 1])
    across = across - torch.einsum("bihp,bjhp->bhijp", query[..., 1], key[..., 0])
    return (plain * angle.cos() + across * angle.sin()).sum(-1)


def _grown(scores: Tensor, rule: Rule, places: Tensor) -> Tensor:
    return scores if rule.growth is None else scores * rule.growth(places[:, None])


def _read(scores: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, value)


def _causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _linear(layer: Any, hidden: Tensor) -> Tensor:
    return hidden @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())


def _normalised(layer: Any, hidden: Tensor) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + layer.variance_epsilon).sqrt() * layer.weight.double()
