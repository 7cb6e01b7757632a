"""Where the tokens of a call stand, by what the call was given: its cache, its mask, its positions.

Names differ between versions of Transformers and between families, so the cache is known by what it can do; and
padding moves nothing in a model that rotates early, but it moves whatever goes by a token's own position.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ropescale.errors import RopescaleError


@dataclass(frozen=True)
class Places:
    """Where the tokens of a call stand, and those before them."""

    queries: Tensor  # [batch or 1, n] int64, at least 0
    slots: (
        Tensor | None
    )  # [batch, tokens so far] int64; None where they stand side by side, or without a cache as queries


def cache_keyword(model: nn.Module) -> str:
    """The name by which a model, out of its wrappers, takes and returns a cache: `cache` from Transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_among(values: Iterable[Any]) -> Any:
    """The cache among the arguments of a call, or None; some families have one that is no `Cache`."""
    for value in values:
        if isinstance(value, Cache):
            return value
        if value is None or isinstance(value, (Tensor, bool, int, float, str, dict, list, tuple)):
            continue
        if hasattr(value, "get_seq_length") and hasattr(value, "update"):
            return value
    return None


def placed(
    given: dict[str, Any], n: int, past: int | Tensor, device: torch.device, *, cached: bool, name: str
) -> Places:
    """Where n new tokens stand after `past` cached ones.

    Without `position_ids` tokens are counted by the mask, so that a padded row is read as the row alone, whichever
    side its padding is on; with them, a mask says where the cached keys stand, provided that it agrees.

    Raises:
        RopescaleError: `position_ids` that are no text's or jump over a cache, or a mask that does not say where
            tokens stand.
    """
    positions: Tensor | None = given.get("position_ids")
    if positions is not None and positions.dim() != 2:
        raise RopescaleError(
            f"position_ids: must be [batch, tokens] with {name}, got {list(positions.shape)}; text has one position a "
            f"token"
        )
    if positions is not None and not cached:
        return Places(positions, None)
    real = _real(given.get("attention_mask"), n, past, counting=positions is None, name=name)
    new = torch.arange(n, device=device) + past
    if real is None:
        if positions is None:
            return Places(new[None], None)
        if not torch.compiler.is_compiling() and past:
            _require_contiguous(positions, name)
        return Places(positions, None)
    slots = _counted(real)
    counted = slots[:, new]
    if positions is None:
        return Places(counted.clamp(min=0), slots)
    agree = (positions == counted) | ~real[:, new]
    if torch.compiler.is_compiling():
        side_by_side = torch.arange(slots.shape[1], device=device) - (past + n - 1) + positions[:, -1:]
        return Places(positions, torch.where(agree.all(), slots, side_by_side))
    if bool(agree.all()):
        return Places(positions, slots)
    if past:
        _require_contiguous(positions, name)
        if bool((slots.diff(dim=1) != 1).any()):
            raise RopescaleError(
                f"position_ids: must count the tokens that the mask shows with {name}, over a cache with padding "
                f"between them, got others; pad on the left, or leave position_ids out"
            )
    return Places(positions, None)


def _real(mask: Any, n: int, past: int | Tensor, *, counting: bool, name: str) -> Tensor | None:
    """[batch, tokens so far or more] bool: which are no padding; None where none is, or the mask does not say.

    `counting` is whether positions have to follow from it.
    """
    if isinstance(mask, dict):  # a mask for each kind of layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor):
        return None
    compiling = torch.compiler.is_compiling()
    if mask.dim() == 2:
        real = mask != 0
        if not isinstance(past, int):
            return real
        if mask.shape[1] < past + n:
            if not counting:
                return None
            raise RopescaleError(
                f"attention_mask: must cover the cached tokens and the new ones with {name}, got {mask.shape[1]} of "
                f"{past + n}; give a mask of [batch, {past + n}], or leave it out"
            )
        real = real[:, : past + n]
        return None if not compiling and bool(real.all()) else real
    if compiling or mask.dim() != 4 or not isinstance(past, int):
        return None
    visible = (mask if mask.dtype == torch.bool else mask == 0 if mask.is_floating_point() else mask != 0)[:, 0]
    if past == 0:  # whatever else it hides, a token sees itself
        real = visible[:, :, :n].diagonal(dim1=-2, dim2=-1)
        return None if bool(real.all()) else real
    if visible.shape[-1] < past + n:  # the window of a sliding layer
        return None
    real = visible.any(1)[:, : past + n]
    if bool(real.all()):
        return None
    if counting:
        raise RopescaleError(
            f"position_ids: must be given with {name} over a cache where a mask of four dimensions hides cached "
            f"tokens, got none; give position_ids, or a mask of [batch, tokens]"
        )
    return real if n == 1 else None


def _counted(real: Tensor) -> Tensor:
    """[batch, slots] int64: the positions of real tokens, counted from 0 in each row.

    Padding before the first is below 0 and padding after the last goes on counting, so that rows padded on one side
    stand side by side throughout.
    """
    trailing = real.flip(1).long().cumsum(1).flip(1) == 0
    count = (real | trailing).long().cumsum(1)
    leading = (count == 0).sum(1, keepdim=True)
    index = torch.arange(real.shape[1], device=real.device)
    return torch.where(count == 0, index - leading, count - 1)


def _require_contiguous(positions: Tensor, name: str) -> None:
    if bool((positions.diff(dim=-1) != 1).any()):
        raise RopescaleError(
            f"position_ids: must be contiguous over a cache with {name}, got jumps; leave position_ids out, or read "
            f"without a cache"
        )
