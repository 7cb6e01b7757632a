"""Attention over un-rotated queries and keys, in ways that give the same scores.

`pairwise` follows a method's definition and rotates every key for every query: right for one query over a cache.
`blockwise` rotates queries and keys once per region and works in blocks of queries, so that no square of scores ever
exists; a block is read by one softmax over its scores, or, where nothing has to be differentiated, by a fused kernel
per region, merged by log-sum-exp. `flexible` does the same on a GPU by flex attention. Where a method comes to plain
causal attention the fused kernel that Transformers would use reads it.

Shapes in this file: queries are [batch, key heads, groups, n, head_dim], keys and values [batch, key heads, slots,
head_dim], what comes back [batch, key heads, groups, n, value_dim].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from ropescale.injection.forward_pass import Block, Blocks, ForwardPass, Late, Pairs
from ropescale.methods.late import Added, Region

BLOCK_ELEMENTS = 2**20  # scores that exist at a time: 4 MiB in float32, which stay in a processor's cache
LONGEST_BLOCK = 256  # queries: the fused kernel of a CPU is at its best there
WIDEST_BIAS = 512  # keys whose bias exists at a time
# A pair is (i, i + pairs), or (2i, 2i + 1), or turns the other way round (nanochat); the pairs are the first elements
# of a head, or the last (multi-head latent attention)
AT_THE_END = " at the end"
LAYOUTS = ("half", "interleaved", "reversed", f"half{AT_THE_END}", f"interleaved{AT_THE_END}")


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a layer asks of attention besides queries, keys and values."""

    scaling: float
    layout: str | None  # None: the layer does not rotate
    mask: Tensor | None  # [batch or 1, 1, n, slots], bool or added to scores
    added: Added  # the parameters that the method added for this layer
    dropout: float
    softcap: float | None
    sinks: Tensor | None  # [heads] logits of nothing

    @property
    def fusible(self) -> bool:
        """Whether scores are products and nothing is done to them before softmax."""
        return self.softcap is None and self.sinks is None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: str, *, fused: bool = False) -> Tensor:
    """[..., head_dim] vectors with their first pairs, or their last, turned; cos and sin are [..., pairs].

    Layouts in halves take cos [..., 2 pairs] too, which is all of it twice, side by side. To the bit what Transformers
    gives, unless `fused`: products are then added without being rounded first.
    """
    pairs = sin.shape[-1]
    if layout.endswith(AT_THE_END):
        rest, turned = x[..., : -2 * pairs], x[..., -2 * pairs :]
        made = rotate(turned, cos, sin, layout.removesuffix(AT_THE_END), fused=fused)
        return torch.cat((rest.expand(*made.shape[:-1], -1), made), dim=-1)
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if layout != "interleaved":
        sin = -sin if layout == "reversed" else sin
        twice = cos if cos.shape[-1] > pairs else torch.cat((cos, cos), dim=-1)
        made = turned * twice  # in place from here on: half the memory that is touched
        first, second = made[..., :pairs], made[..., pairs:]
        if fused:
            first.addcmul_(turned[..., pairs:], sin, value=-1)
            second.addcmul_(turned[..., :pairs], sin)
        else:
            first.sub_(turned[..., pairs:] * sin)
            second.add_(turned[..., :pairs] * sin)
    else:
        one, other = turned[..., 0::2], turned[..., 1::2]
        made = torch.stack((one * cos - other * sin, other * cos + one * sin), dim=-1).flatten(-2)
    return torch.cat((made, rest.expand(*made.shape[:-1], -1)), dim=-1) if rest.shape[-1] else made


def attend(forward_pass: ForwardPass, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """What queries read, by the way that suits them."""
    method = forward_pass.late.method
    n, slots = query.shape[3], key.shape[2]
    if call.layout is None and call.fusible and (call.mask is not None or n in (1, slots)):
        return _fused(query, key, value, call, call.mask)
    if n > 1:
        flex = (
            query.device.type == "cuda"
            and call.fusible
            and not call.dropout
            and not _learning(query, key, value)
            and method.scores_are_products
            and (call.mask is None or call.mask.dtype == torch.bool)
        )
        out = (
            flexible(forward_pass, query, key, value, call)
            if flex
            else blockwise(forward_pass, query, key, value, call)
        )
        if out is not None:
            return out
    return pairwise(forward_pass, query, key, value, call)


def blockwise(forward_pass: ForwardPass, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor | None:
    """By regions, in blocks of queries; None where the method has no regions."""
    batch, key_heads, groups, n, head_dim = query.shape
    slots, method = key.shape[2], forward_pass.late.method
    apart = (
        call.fusible
        and not call.dropout
        and not method.reads_content
        and query.device.type == "cpu"  # whose fused kernel takes masks and gives the log-sum-exp
        and head_dim == value.shape[3]
        and not _learning(query, key, value)
        and not torch.compiler.is_compiling()
    )
    across = slots if not apart else WIDEST_BIAS if method.has_bias else 1
    most = BLOCK_ELEMENTS // max(1, batch * key_heads * groups * across)
    # a compiled graph holds every block
    size = LONGEST_BLOCK if torch.compiler.is_compiling() else max(16, min(LONGEST_BLOCK, most))
    plans = forward_pass.blocks(slots, size, rotating=call.layout is not None)
    if plans is None:
        return None
    plain = (
        call.fusible
        and method.scores_are_products
        and len(plans) == 1
        and plans[0].plain
        and (call.mask is not None or n == slots)
    )
    if plain:
        key = _keys(forward_pass, plans[0].region, key, (slots, 0, slots), call)
        return _fused(_queries(forward_pass, plans[0].region, query, 0, n, call), key, value, call, call.mask)
    turned: dict[int, Tensor] = {}  # by plan: rotated at the last block that reads them, let go after the first
    read = _merged_by_log_sum if apart else _at_once
    outs: dict[int, Tensor] = {}
    # in the layout that the caller wants, so that nothing of this size has to exist twice
    made = query.new_empty(batch, n, key_heads, groups, value.shape[3]).permute(0, 2, 3, 1, 4) if apart else None
    for first in reversed(range(0, n, size)):  # the largest first: later ones fit where it was
        last = min(first + size, n)
        tiles = []
        for plan in (plan for plan in plans if first in plan.blocks):
            block, (low, high) = plan.blocks[first], plan.span
            if id(plan) not in turned:
                turned[id(plan)] = _keys(forward_pass, plan.region, key, (slots, low, high), call)
            tiles.append(
                Tile(
                    plan=plan,
                    block=block,
                    query=_queries(forward_pass, plan.region, query, first, last, call),
                    key=turned[id(plan)][:, :, block.low - low : block.high - low],
                )
            )
            if first == min(plan.blocks):
                del turned[id(plan)]
        out = read(forward_pass, tiles, query[:, :, :, first:last], value, call)
        if made is None:
            outs[first] = out
        else:
            made[:, :, :, first:last] = out
    return torch.cat([outs[first] for first in sorted(outs)], dim=3) if made is None else made


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What a block of queries reads of one region."""

    plan: Blocks
    block: Block
    query: Tensor  # rotated
    key: Tensor  # rotated, slots low to high


def _at_once(forward_pass: ForwardPass, tiles: list[Tile], query: Tensor, value: Tensor, call: Call) -> Tensor:
    """One softmax over the scores of all tiles."""
    _, _, groups, count, _ = query.shape
    scores = []
    for tile in tiles:
        block = tile.block
        score = (tile.query * call.scaling).flatten(2, 3) @ tile.key.transpose(2, 3)
        score = _capped(torch.unflatten(score, 2, (groups, count)), call)
        if call.layout is not None:
            score = forward_pass.late.biased(score, tile.plan.distance(block), call.added)
        score = _masked(score, _cut(call.mask, block.first, block.last, block.low, block.high))
        for low, high in ((block.low, block.inner_low), (block.inner_high, block.high)):
            outside = tile.plan.outside(block, low, high)
            if outside is not None:
                places = score[..., low - block.low : high - block.low]
                places.masked_fill_(outside[:, None, None], torch.finfo(score.dtype).min)
        scores.append(score)
    every = torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0]
    distance = tiles[0].plan.distance(tiles[0].block)  # what content decides has one region
    every = _by_content(forward_pass.late, query, every, distance, call)
    weights = _weights(every, call)
    read = [
        some.flatten(2, 3) @ value[:, :, tile.block.low : tile.block.high]
        for some, tile in zip(torch.split(weights, [tile.key.shape[2] for tile in tiles], dim=-1), tiles, strict=True)
    ]
    out = torch.unflatten(functools.reduce(torch.add, read), 2, (groups, count))
    return _with_content(forward_pass.late, out, weights, distance, call)


def _merged_by_log_sum(
    forward_pass: ForwardPass, tiles: list[Tile], query: Tensor, value: Tensor, call: Call
) -> Tensor:
    """A fused kernel for each tile, merged by log-sum-exp: nothing of the size of the scores exists."""
    _, key_heads, groups, _, _ = query.shape
    heads = key_heads * groups
    biased = call.layout is not None and forward_pass.late.method.has_bias
    outs, sums = [], []
    for tile in tiles:
        block = tile.block
        for low, high in block.cuts(WIDEST_BIAS if biased else None):
            mask = _cut(call.mask, block.first, block.last, low, high)
            if biased:
                bias = forward_pass.late.bias(tile.plan.distance(block, low, high), heads, call.added).to(value.dtype)
                mask = _masked(bias, mask)
            mask = _added(mask, tile.plan.outside(block, low, high), value.dtype)
            out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                tile.query.flatten(1, 2),
                tile.key[:, :, low - block.low : high - block.low],
                value[:, :, low:high],
                attn_mask=mask,
                scale=call.scaling,
            )
            outs.append(out)
            sums.append(log_sum)
    return torch.unflatten(_together(outs, sums), 1, (key_heads, groups))


def _together(outs: list[Tensor], sums: list[Tensor]) -> Tensor:
    """[batch, heads, n, value_dim] of attention over all keys, from that over some keys with its log-sum-exp."""
    if len(outs) == 1:
        return outs[0]
    stacked = torch.stack(sums)
    stacked = stacked.clamp(min=torch.finfo(stacked.dtype).min)  # a query that sees nothing has no sum
    shares = (stacked - stacked.logsumexp(0)).exp()[..., None]
    made = outs[0] * shares[0]
    for out, share in zip(outs[1:], shares[1:], strict=True):
        made = torch.addcmul(made, out.to(made.dtype), share)
    return made.to(outs[0].dtype)


def flexible(
    forward_pass: ForwardPass, query: Tensor, key: Tensor, value: Tensor, call: Call, *, compiled: bool = True
) -> Tensor | None:
    """Flex attention for each region, merged by log-sum-exp; None where the method has no regions."""
    regions = forward_pass.regions()
    if regions is None:
        return None
    _, key_heads, groups, n, _ = query.shape
    slots = key.shape[2]
    at, given = forward_pass.keys(slots), call.mask
    read, mask_of = _flex(compiled)
    outs, sums = [], []
    for region in regions:
        kept = (id(region), slots, id(given))
        if kept not in forward_pass.masks:
            visible = _visible(region, forward_pass.positions, at, given)
            rows = max(len(at), 1 if given is None else len(given))
            forward_pass.masks[kept] = mask_of(visible, rows, None, n, slots, at.device)
        out, more = read(
            _queries(forward_pass, region, query, 0, n, call).flatten(1, 2),
            _keys(forward_pass, region, key, (slots, 0, slots), call),
            value,
            block_mask=forward_pass.masks[kept],
            scale=call.scaling,
            enable_gqa=groups > 1,
            return_aux=AuxRequest(lse=True),
        )
        outs.append(out)
        sums.append(more.lse)
    return torch.unflatten(_together(outs, sums), 1, (key_heads, groups))


def _visible(region: Region, queries: Tensor, keys: Tensor, given: Tensor | None) -> Any:
    """Flex attention's function of batch, head, query and key: whether the pair is of the region, and visible."""
    start, stop = region.start(queries), region.stop(queries)

    def row(table: Tensor, batch: Tensor) -> Tensor:
        return batch if len(table) > 1 else batch * 0

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        where = keys[row(keys, batch), key]
        one = row(start, batch)
        inside = (where >= start[one, query]) & (where < stop[one, query])
        return inside if given is None else inside & given[row(given, batch), 0, query, key]

    return visible


@functools.cache
def _flex(compiled: bool) -> tuple[Any, Any]:
    """Flex attention and the making of its masks; only compiled do they not write out every score."""
    if not compiled:
        return flex_attention, create_block_mask
    return torch.compile(flex_attention), torch.compile(create_block_mask)


def pairwise(forward_pass: ForwardPass, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """By the method's definition: every key rotated for every query."""
    batch, key_heads, groups, n, head_dim = query.shape
    slots, late = key.shape[2], forward_pass.late
    size = n if torch.compiler.is_compiling() else max(1, BLOCK_ELEMENTS // (batch * key_heads * slots * head_dim))
    outs = []
    for first in range(0, n, size):
        queries = query[:, :, :, first : first + size]
        count = queries.shape[3]
        pairs = forward_pass.pairs(slots, first, first + count)
        keys, visible = key[:, :, None], pairs.visible
        if call.layout is None:
            visible = pairs.distance >= 0
        elif late.rotates:
            twice = not call.layout.startswith("interleaved")
            cos, sin = forward_pass.turns(slots, first, first + count, key.dtype, twice=twice)
            keys = rotate(keys, cos, sin, call.layout, fused=True)
        mask = _cut(call.mask, first, first + count, 0, slots)
        if count == 1 and call.fusible and late.method.scores_are_products:  # one rotation of the keys serves it
            outs.append(_fused(queries, keys[:, :, 0], value, call, _seen(mask, pairs, visible)))
            continue
        # [batch, key heads, n, groups, slots], since each query has keys of its own
        scores = ((queries * call.scaling).transpose(2, 3) @ keys.transpose(3, 4)).transpose(2, 3)
        scores = _capped(scores, call)
        if call.layout is not None:
            scores = late.biased(scores, pairs.distance, call.added)
        scores = _masked(scores, mask)
        scores = scores.masked_fill(~visible[:, None, None], torch.finfo(scores.dtype).min)
        scores = _by_content(late, queries, scores, pairs.distance, call)
        weights = _weights(scores, call)
        out = torch.unflatten(weights.flatten(2, 3) @ value, 2, (groups, count))
        outs.append(_with_content(late, out, weights, pairs.distance, call))
    return torch.cat(outs, dim=3) if len(outs) > 1 else outs[0]


def _learning(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether gradients will be asked for, which a log-sum-exp does not give."""
    return query.requires_grad or key.requires_grad or value.requires_grad


def _fused(query: Tensor, key: Tensor, value: Tensor, call: Call, mask: Tensor | None) -> Tensor:
    """Attention over keys that are as they should be read, by torch's own kernel; causal without a mask."""
    _, key_heads, groups, n, _ = query.shape
    if groups > 1 and mask is not None and query.device.type != "cpu":  # else a GPU's kernels write out every score
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = nn.functional.scaled_dot_product_attention(
        query.flatten(1, 2),
        key,
        value,
        attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype),
        dropout_p=call.dropout,
        is_causal=mask is None and n > 1,
        scale=call.scaling,
        enable_gqa=key.shape[1] != key_heads * groups,
    )
    return torch.unflatten(out, 1, (key_heads, groups))


def _seen(mask: Tensor | None, pairs: Pairs, visible: Tensor) -> Tensor | None:
    """[batch or 1, 1, n, slots] mask of pairs that are visible, under what the model masks; None where all are."""
    if pairs.every_key and visible is pairs.visible:
        return mask
    seen = visible[:, None]
    if mask is None:
        return seen
    return seen & mask if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _queries(forward_pass: ForwardPass, region: Region, query: Tensor, first: int, last: int, call: Call) -> Tensor:
    """Queries first to last as a region rotates them."""
    query = query[:, :, :, first:last]
    if call.layout is None or not forward_pass.late.rotates:
        return query
    cos, sin = (wave[:, :, None].to(query.dtype) for wave in forward_pass.waves(region, queries=(first, last)))
    return rotate(query, cos, sin, call.layout)


def _keys(forward_pass: ForwardPass, region: Region, key: Tensor, slots: tuple[int, int, int], call: Call) -> Tensor:
    """Keys as a region rotates them; `slots` says how many there are, and the bounds of those that are needed."""
    _, low, high = slots
    key = key[:, :, low:high]
    if call.layout is None or not forward_pass.late.rotates:
        return key
    cos, sin = forward_pass.waves(region, slots=slots)
    return rotate(key, cos.to(key.dtype), sin.to(key.dtype), call.layout)


def _by_content(late: Late, query: Tensor, scores: Tensor, distance: Tensor, call: Call) -> Tensor:
    """Scores with what the method adds by what queries hold."""
    if call.layout is None:
        return scores
    bias = late.method.content_bias(query, call.scaling, scores, distance[:, None, None], call.added)
    return scores if bias is None else scores + bias.to(scores.dtype)


def _with_content(late: Late, out: Tensor, weights: Tensor, distance: Tensor, call: Call) -> Tensor:
    """What attention read, with what the method reads besides values."""
    if call.layout is None:
        return out
    more = late.method.content_value(weights, distance[:, None, None], call.added)
    return out if more is None else out + more.to(out.dtype)


def _capped(scores: Tensor, call: Call) -> Tensor:
    return scores if call.softcap is None else (scores / call.softcap).tanh() * call.softcap


def _cut(mask: Tensor | None, first: int, last: int, low: int, high: int) -> Tensor | None:
    """The mask of queries first to last and slots low to high."""
    return None if mask is None else mask[:, :, first:last, low:high]


def _added(mask: Tensor | None, outside: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores for a mask, bool or added itself, and for pairs that are outside of a region."""
    hidden = torch.finfo(dtype).min
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, hidden)
    if outside is None:
        return mask if mask is None else mask.to(dtype)
    outside = outside[:, None]
    if mask is None:
        return torch.zeros_like(outside, dtype=dtype).masked_fill_(outside, hidden)
    return mask.to(dtype).masked_fill(outside, hidden)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores of [batch, ..., n, slots] under a mask of [batch or 1, 1, n, slots]."""
    if mask is None:
        return scores
    if scores.dim() == 5:
        mask = mask[:, :, None]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def _weights(scores: Tensor, call: Call) -> Tensor:
    """Softmax in float32 at least, with the share that sinks take left out."""
    exact = torch.promote_types(scores.dtype, torch.float32)
    if call.sinks is not None:
        batch, key_heads, groups, n, _ = scores.shape
        sinks = call.sinks.view(1, key_heads, groups, 1, 1).expand(batch, -1, -1, n, 1)
        weights = torch.cat((scores, sinks.to(scores.dtype)), dim=-1).softmax(-1, dtype=exact)[..., :-1]
    else:
        weights = scores.softmax(-1, dtype=exact)
    return nn.functional.dropout(weights.to(scores.dtype), call.dropout, training=call.dropout > 0)
