"""The door for methods that act when attention reads.

The rotary module gives the identity, so queries, keys and the cache are un-rotated; one registered attention function
rotates them where it reads them. Two computations give the same scores: `pairwise` follows a method's definition and
rotates every key for every query, which is cheap for a few queries over a cache; `blockwise` rotates queries and keys
once per region and works in blocks of queries, so that no square of scores ever exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ropescale.errors import RopescaleError
from ropescale.geometry import Geometry
from ropescale.methods.late import Added, LateMethod, Region, Sizes, causal, stacked

LAYOUT = "_ropescale_layout"  # attribute of an attention layer: how it rotates, None if it does not
NAME = "ropescale"  # of the attention function, and of the keyword that carries a `Reading` to it
NOTHING: Added = {}  # a method without parameters
BLOCK_ELEMENTS = 2**20  # scores that exist at a time: 4 MiB in float32, which stay in a processor's cache
# A pair is (i, i + pairs), or (2i, 2i + 1), or turns the other way round (nanochat); the pairs are the first elements
# of a head, or the last (multi-head latent attention)
AT_THE_END = " at the end"
LAYOUTS = ("half", "interleaved", "reversed", f"half{AT_THE_END}", f"interleaved{AT_THE_END}")


def rotated(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    """[..., head_dim] vectors with their first pairs, or their last, turned; cos and sin are [..., pairs]."""
    pairs = cos.shape[-1]
    if layout.endswith(AT_THE_END):
        rest, turned = x[..., : -2 * pairs], x[..., -2 * pairs :]
        made = rotated(turned, cos, sin, layout.removesuffix(AT_THE_END))
        return torch.cat((rest.expand(*made.shape[:-1], -1), made), dim=-1)
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if layout != "interleaved":
        sin = -sin if layout == "reversed" else sin
        one, other = turned[..., :pairs], turned[..., pairs:]
        made = torch.cat(
            (torch.addcmul(one * cos, other, sin, value=-1), torch.addcmul(other * cos, one, sin)), dim=-1
        )
    else:
        one, other = turned[..., 0::2], turned[..., 1::2]
        made = torch.stack((one * cos - other * sin, other * cos + one * sin), dim=-1).flatten(-2)
    return torch.cat((made, rest.expand(*made.shape[:-1], -1)), dim=-1) if rest.shape[-1] else made


@dataclass(frozen=True, kw_only=True)
class Late:
    """What a patched model does when attention reads."""

    name: str  # of the method that was asked for
    method: LateMethod  # that method, or what it is when attention reads
    geometry: Geometry
    log_n: bool = False  # multiply queries by max(1, ln(position + 1) / ln(L))
    stages: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)  # worked out once, outside a graph
    rotates: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", stacked(self.method.stages(self.geometry)))
        object.__setattr__(self, "rotates", bool((self.stages[0] > 0).any()))

    def spectra(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[..., pairs] inverse frequencies and [...] attention factors of queries at these positions."""
        if getattr(self.method, "growth", None) == "exact":
            return self.method.spectra(self.geometry, positions)
        stage = self.method.stage(self.geometry, positions)
        inv_freq, factor = self.stages
        return inv_freq.to(positions.device)[stage], factor.to(positions.device)[stage]

    def query_scale(self, positions: Tensor) -> Tensor | None:
        """[...] float32: what queries are multiplied by, by the method and by log-n (arXiv:2202.12172)."""
        scale = self.method.query_scale(self.geometry, positions)
        length = self.geometry.original_length
        if not self.log_n or length < 2:
            return scale
        log_n = ((positions.clamp(min=0) + 1).float().log() / math.log(length)).clamp(min=1.0)
        return log_n if scale is None else log_n * scale

    def biased(self, scores: Tensor, distance: Tensor, added: Added) -> Tensor:
        """[batch, key heads, groups, n, slots] scores with the method's bias for a [batch or 1, n, slots] distance."""
        _, key_heads, groups, _, _ = scores.shape
        bias = self.method.bias(self.geometry, distance, key_heads * groups, added)
        return scores if bias is None else scores + torch.unflatten(bias, -3, (key_heads, groups)).to(scores.dtype)


class Reading:
    """One forward pass: where queries and keys stand, and what follows from that, worked out once for all layers."""

    def __init__(self, late: Late, positions: Tensor, past: int | Tensor, added: Added = NOTHING):
        self.late = late
        self.added = added  # the parameters that all layers share
        self.positions = positions  # [batch or 1, n] int64, of the queries
        self.past = past  # tokens in the cache before this call
        self.n = positions.shape[1]
        self._regions: list[Region] | None = None
        self._plans: dict[tuple[int, int], list[Blocks]] = {}
        self._waves: dict[Any, tuple[Tensor, Tensor]] = {}
        self._pairs: dict[int, Pairs] = {}

    def keys(self, slots: int) -> Tensor:
        """[batch or 1, slots] positions of the keys that a layer reads.

        A cache keeps one key per slot: from the start where it has room left (static), else up to the newest (dynamic,
        and the windows of sliding layers). Without a cache keys stand where queries stand, contiguous or not.
        """
        if isinstance(self.past, int) and self.past == 0 and slots == self.n:
            return self.positions
        seen = self.past + self.n
        dropped = (seen - slots).clamp(min=0) if isinstance(seen, Tensor) else max(seen - slots, 0)
        index = torch.arange(slots, device=self.positions.device) + dropped
        return index - (seen - 1) + self.positions[:, -1:]

    def contiguous(self, slots: int) -> bool:
        """Whether slots stand side by side; without a cache positions may jump."""
        if not (isinstance(self.past, int) and self.past == 0 and slots == self.n):
            return True
        return bool((self.positions.diff(dim=1) == 1).all())

    def blocks(self, slots: int, size: int) -> list[Blocks] | None:
        """The regions in blocks of `size` queries, for layers that read so many slots; None where only pairs do."""
        if (slots, size) not in self._plans:
            if self._regions is None:
                longest = int(self.positions.max()) + 1
                self._regions = self.late.method.regions(self.late.geometry, longest)
            if self._regions is None:
                return None
            keys, contiguous = self.keys(slots), self.contiguous(slots)
            plans = [Blocks(region, self.positions, keys, size, contiguous) for region in self._regions]
            self._plans[slots, size] = [plan for plan in plans if not plan.empty]
        return self._plans[slots, size]

    def waves(self, region: Region, slots: tuple[int, int, int] | None = None) -> tuple[Tensor, Tensor]:
        """[batch or 1, 1, places, pairs] cos and sin of a region's queries, or keys, with its attention factor.

        For keys `slots` says how many a layer reads, and the bounds of those that are needed.
        """
        key = (id(region), slots)  # regions live as long as this does
        if key not in self._waves:
            if slots is None:
                at, spectrum = region.query(self.positions), region.spectrum
            else:
                every, low, high = slots
                at, spectrum = region.key(self.keys(every)[:, low:high]), region.key_spectrum or region.spectrum
            angles = at[:, None, :, None].float() * spectrum.inv_freq.to(at.device)
            factor = spectrum.attention_factor
            self._waves[key] = angles.cos() * factor, angles.sin() * factor
        return self._waves[key]

    def pairs(self, slots: int, first: int, last: int) -> Pairs:
        """What the method says of queries [first, last) and every key of layers that read so many slots."""
        if slots in self._pairs and last - first == self.n:
            return self._pairs[slots]
        late, at = self.late, self.keys(slots)
        where = self.positions[:, first:last]
        plain = where[:, :, None] - at[:, None, :]
        distance, visible = late.method.distance(late.geometry, where[:, :, None], at[:, None, :])
        cos = sin = None
        if late.rotates:
            inv_freq, factor = late.spectra(where)
            angles = -late.method.angles(late.geometry, where[:, :, None], at[:, None, :], distance, inv_freq)
            square = (factor**2)[:, :, None, None]  # of what is rotated, once for the query and once for the key
            cos, sin = (angles.cos() * square)[:, None], (angles.sin() * square)[:, None]
        found = Pairs(distance=plain, visible=visible, cos=cos, sin=sin)
        if last - first == self.n:  # many blocks of queries would hold n x slots x pairs
            self._pairs[slots] = found
        return found


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a method says of queries and keys, pair by pair."""

    distance: Tensor  # [batch or 1, n, slots] int64: position of the query - position of the key
    visible: Tensor  # [batch or 1, n, slots] bool
    cos: Tensor | None  # [batch or 1, 1, n, slots, pairs] of the key's rotation; None where nothing rotates
    sin: Tensor | None


@dataclass
class Block:
    """Queries [first, last) of a region: the slots that any of them sees, and those that all of them see."""

    first: int
    last: int
    low: int
    high: int
    inner_low: int
    inner_high: int
    edges: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class Blocks:
    """A region cut into blocks of queries."""

    def __init__(self, region: Region, queries: Tensor, keys: Tensor, size: int, contiguous: bool):
        self.region = region
        self._queries, self._keys = queries, keys
        self._start, self._stop = region.start(queries), region.stop(queries)
        n, slots = queries.shape[1], keys.shape[1]
        if contiguous:
            low = (self._start - keys[:, :1]).clamp(0, slots)
            high = (self._stop - keys[:, :1]).clamp(0, slots)
        else:  # which slots a query sees is for the mask of every block to say
            low, high = torch.zeros_like(self._start), torch.full_like(self._stop, slots)
        self.blocks: dict[int, Block] = {}
        for first in range(0, n, size):
            last = min(first + size, n)
            lows, highs = low[:, first:last], high[:, first:last]
            some = lows < highs
            if not bool(some.any()):
                continue
            bounds = torch.stack(
                (lows[some].min(), highs[some].max(), lows.max() if contiguous else low.max() + slots, highs.min())
            ).tolist()
            inner_low, inner_high = (bounds[2], bounds[3]) if bounds[2] < bounds[3] else (bounds[0], bounds[0])
            self.blocks[first] = Block(first, last, bounds[0], bounds[1], inner_low, inner_high)

    @property
    def empty(self) -> bool:
        """Whether the region holds no pair of this forward pass."""
        return not self.blocks

    @property
    def span(self) -> tuple[int, int]:
        """The slots that any query sees."""
        return min(b.low for b in self.blocks.values()), max(b.high for b in self.blocks.values())

    def hide(self, scores: Tensor, block: Block, hidden: float) -> None:
        """Put `hidden` where a pair of [batch, ..., queries, slots low to high] scores is not of the region."""
        for low, high in ((block.low, block.inner_low), (block.inner_high, block.high)):
            if low >= high:
                continue
            if (low, high) not in block.edges:
                at = self._keys[:, None, low:high]
                start, stop = (one[:, block.first : block.last, None] for one in (self._start, self._stop))
                block.edges[low, high] = (at < start) | (at >= stop)
            outside = block.edges[low, high]
            places = scores[..., low - block.low : high - block.low]
            places.masked_fill_(outside.view(outside.shape[0], *[1] * (scores.dim() - 3), *outside.shape[1:]), hidden)


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


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that Transformers calls in every layer of a late-rotated model.

    `query` is [batch, heads, n, head_dim], `key` and `value` are [batch, key heads, slots, head_dim], all un-rotated;
    what comes back is [batch, n, heads, head_dim] and no weights.

    Raises:
        RopescaleError: a layer that was not told where its tokens stand.
    """
    reading = kwargs.get(NAME)
    if isinstance(reading, Recorder):
        return reading.noted(module, query, key, value), None
    if not isinstance(reading, Reading) or LAYOUT not in module.__dict__:
        raise RopescaleError(
            f"{type(module).__name__}: attention must be told where its tokens stand, got no {NAME} keyword; call "
            f"the model through its decoder, or ropescale.unpatch(model) first"
        )
    call = Call(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        layout=module.__dict__[LAYOUT],
        mask=attention_mask,
        added=module._modules.get(NAME) or reading.added,  # type: ignore[arg-type] # a ParameterDict is a mapping
        dropout=dropout if module.training else 0.0,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    scale = reading.late.query_scale(reading.positions)
    if scale is not None and call.layout is not None:
        query = query * scale[:, None, :, None].to(query.dtype)
    groups = query.shape[1] // key.shape[1]
    grouped = torch.unflatten(query, 1, (key.shape[1], groups))
    few = query.shape[2] == 1 or torch.compiler.is_compiling()
    out = None if few else blockwise(reading, grouped, key, value, call)
    if out is None:
        out = pairwise(reading, grouped, key, value, call)
    return out.flatten(1, 2).transpose(1, 2).contiguous(), None


def blockwise(reading: Reading, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor | None:
    """[batch, key heads, groups, n, head_dim] by regions; None where the method has none."""
    batch, key_heads, groups, n, _ = query.shape
    slots = key.shape[2]
    size = max(16, min(512, BLOCK_ELEMENTS // max(1, batch * key_heads * groups * slots)))
    if call.layout is None:
        plain = causal(reading.late.method.base_spectrum(reading.late.geometry))
        plans: list[Blocks] | None = [
            Blocks(plain, reading.positions, reading.keys(slots), size, reading.contiguous(slots))
        ]
    else:
        plans = reading.blocks(slots, size)
    if plans is None:
        return None
    turned = []
    at = reading.keys(slots)
    rotating = call.layout is not None and reading.late.rotates
    for plan in plans:
        low, high = plan.span
        keys = key[:, :, low:high]
        if rotating:
            assert call.layout is not None
            cos, sin = reading.waves(plan.region, (slots, low, high))
            keys = rotated(keys, cos.to(key.dtype), sin.to(key.dtype), call.layout)
        turned.append((plan, low, keys))
    outs = []
    for first in range(0, n, size):
        last = min(first + size, n)
        scores, places = [], []
        for plan, offset, keys in turned:
            block = plan.blocks.get(first)
            if block is None:
                continue
            some = query[:, :, :, first:last] * call.scaling
            if rotating:
                assert call.layout is not None
                cos, sin = (wave[:, :, None, first:last].to(query.dtype) for wave in reading.waves(plan.region))
                some = rotated(some, cos, sin, call.layout)
            one = some.flatten(2, 3) @ keys[:, :, block.low - offset : block.high - offset].transpose(2, 3)
            one = _capped(torch.unflatten(one, 2, (groups, last - first)), call)
            distance = reading.positions[:, first:last, None] - at[:, None, block.low : block.high]
            if call.layout is not None:
                one = reading.late.biased(one, distance, call.added)
            mask = None if call.mask is None else call.mask[:, :, first:last, block.low : block.high]
            one = _masked(one, mask)
            plan.hide(one, block, torch.finfo(one.dtype).min)
            scores.append(one)
            places.append((block.low, block.high, distance))
        every = torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0]
        _, _, distance = places[0]  # what content decides has one region
        every = _by_content(reading.late, query[:, :, :, first:last], every, distance, call)
        weights = _weights(every, call)
        parts = torch.split(weights, [high - low for low, high, _ in places], dim=-1)
        out = sum(
            part.flatten(2, 3) @ value[:, :, low:high] for part, (low, high, _) in zip(parts, places, strict=True)
        )
        assert isinstance(out, Tensor)
        out = torch.unflatten(out, 2, (groups, last - first))
        outs.append(_with_content(reading.late, out, weights, distance, call))
    return torch.cat(outs, dim=3)


def pairwise(reading: Reading, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """[batch, key heads, groups, n, head_dim] by the method's definition: every key rotated for every query."""
    batch, key_heads, groups, n, head_dim = query.shape
    slots, late = key.shape[2], reading.late
    size = n if torch.compiler.is_compiling() else max(1, BLOCK_ELEMENTS // (batch * key_heads * slots * head_dim))
    outs = []
    for first in range(0, n, size):
        queries = query[:, :, :, first : first + size]
        count = queries.shape[3]
        pairs = reading.pairs(slots, first, first + count)
        keys, visible = key[:, :, None], pairs.visible
        if call.layout is None:
            visible = pairs.distance >= 0
        elif pairs.cos is not None and pairs.sin is not None:
            keys = rotated(keys, pairs.cos.to(key.dtype), pairs.sin.to(key.dtype), call.layout)
        # [batch, key heads, n, groups, slots], since each query has keys of its own
        scores = ((queries * call.scaling).transpose(2, 3) @ keys.transpose(3, 4)).transpose(2, 3)
        scores = _capped(scores, call)
        if call.layout is not None:
            scores = late.biased(scores, pairs.distance, call.added)
        mask = None if call.mask is None else call.mask[:, :, first : first + count, :slots]
        scores = _masked(scores, mask)
        scores = scores.masked_fill(~visible[:, None, None], torch.finfo(scores.dtype).min)
        scores = _by_content(late, queries, scores, pairs.distance, call)
        weights = _weights(scores, call)
        out = torch.unflatten(weights.flatten(2, 3) @ value, 2, (groups, count))
        outs.append(_with_content(late, out, weights, pairs.distance, call))
    return torch.cat(outs, dim=3)


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


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores of [batch, key heads, groups, n, slots] under a mask of [batch or 1, 1, n, slots]."""
    if mask is None:
        return scores
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


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Guide:
    """A hook before the decoder: tells attention where the tokens of a call stand."""

    def __init__(self, late: Late):
        self.late = late

    def __call__(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config: Any = decoder.config
        if config._attn_implementation != NAME:
            raise RopescaleError(
                f"attention: must stay {NAME!r} while {self.late.name} is patched in, got "
                f"{config._attn_implementation!r}; call ropescale.unpatch(model) before set_attn_implementation"
            )
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
        kinds = kwargs.get("token_type_ids")
        if kinds is not None and not torch.compiler.is_compiling() and bool(kinds.any()):
            raise RopescaleError(
                f"token_type_ids: must be absent or zero with {self.late.name}, which reads backwards only, got "
                f"tokens of another type; leave them out, or call ropescale.unpatch(model) first"
            )
        cache = kwargs.get("past_key_values")
        past: int | Tensor = 0 if cache is None else cache.get_seq_length()
        if isinstance(past, Tensor):
            # a static cache counts in place, and layers ask later than this
            past = past.clone() if torch.compiler.is_compiling() else int(past)
        positions = kwargs.get("position_ids")
        if positions is not None and positions.dim() != 2:
            raise RopescaleError(
                f"position_ids: must be [batch, tokens] with {self.late.name}, got {list(positions.shape)}; text has "
                f"one position a token"
            )
        if positions is None:
            assert tokens is not None
            positions = (torch.arange(tokens.shape[1], device=tokens.device) + past)[None]
            kwargs["position_ids"] = positions
        elif cache is not None and not torch.compiler.is_compiling() and past:
            self._require_contiguous(positions)
        shared: Any = decoder._modules.get(NAME) or NOTHING
        added = self.late.method.embedding(positions, config.hidden_size, shared)
        if added is not None:
            if kwargs.get("inputs_embeds") is None:
                embed: Any = decoder.get_input_embeddings()  # type: ignore[operator]
                kwargs["inputs_embeds"] = embed(tokens)
                args = (None, *args[1:]) if args else args
                kwargs.pop("input_ids", None)
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"] + added.to(kwargs["inputs_embeds"])
        kwargs[NAME] = Reading(self.late, positions, past, shared)
        return args, kwargs

    def _require_contiguous(self, positions: Tensor) -> None:
        if bool((positions.diff(dim=-1) != 1).any()):
            raise RopescaleError(
                f"position_ids: must be contiguous over a cache with {self.late.name}, got jumps; leave "
                f"position_ids out, or read without a cache"
            )


class Recorder:
    """Takes the place of a reading: notes what attention is given, and answers with nothing.

    Attention that gives nothing leaves the hidden states of every layer independent of rotation, so that the queries
    of one run can be compared with those of another in which the rotary module gave the identity.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.value_dim = 0  # elements that a head reads of one token

    def noted(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, n, heads, value_dim] zeros."""
        self.calls.append((module, query, key))
        self.value_dim = value.shape[3]
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


class LateRotation:
    """A late method put into a live model, and what was there before.

    The rotary module itself is emptied by a `Substitution`; this is the rest: the attention function, the hook that
    guides it, and each layer's layout.
    """

    def __init__(
        self, decoder: nn.Module, late: Late, layouts: dict[nn.Module, str | None], sizes: Sizes | None
    ) -> None:
        """`sizes` shape the parameters that the method adds; None for a method that adds none."""
        self.decoder = decoder
        self.layers = list(layouts)
        self.guide = Guide(late)
        config: Any = decoder.config
        self.before: str = config._attn_implementation
        rotating = [layer for layer, layout in layouts.items() if layout is not None]
        self.owners = [] if sizes is None else [decoder] if late.method.shared else rotating
        for owner in self.owners:
            assert sizes is not None
            begun = late.method.added(late.geometry, sizes)
            if begun:
                weight = next(owner.parameters())
                owner.add_module(NAME, nn.ParameterDict({name: one.to(weight) for name, one in begun.items()}))
        for layer, layout in layouts.items():
            layer.__dict__[LAYOUT] = layout
        config._attn_implementation = NAME
        self._hook = decoder.register_forward_pre_hook(self.guide, with_kwargs=True)

    def undo(self) -> None:
        """Put back what was there before."""
        self._hook.remove()
        self.decoder.config._attn_implementation = self.before  # type: ignore[union-attr]
        for layer in self.layers:
            layer.__dict__.pop(LAYOUT, None)
        for owner in self.owners:
            owner._modules.pop(NAME, None)
