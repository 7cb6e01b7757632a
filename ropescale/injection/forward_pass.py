"""What one forward pass of a late-rotated model has to know: where queries and keys stand, and what a method says of
them, in pairs and in blocks of pairs; worked out once for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.late import Added, Fixed, LateMethod, Region, after, causal, nowhere, stacked
from ropescale.temperature import Temperature

NOTHING: Added = {}  # a method without parameters
STRIDE = 32  # keys that stand side by side, whose angles are those of the first and one of so many steps from it
Listener = Callable[[nn.Module, Tensor, Tensor, float], None]  # layer, un-rotated queries and keys, softmax scale


@dataclass(frozen=True, kw_only=True)
class Late:
    """What a patched model does when attention reads."""

    name: str  # of the method that was asked for
    method: LateMethod  # that method, or what it is when attention reads
    geometry: Geometry
    temperature: Temperature | None = None  # what queries are multiplied by besides
    factor: float = 1.0  # target length / original length, which a temperature may go by
    kept: frozenset[int] = frozenset()  # numbers of the layers that rotate as they did before
    near: Late | None = None  # the same for queries within `near_length`, where the base has another spectrum there
    near_length: int = 0  # tokens
    heads: int = 1  # of a layer's queries, which a method may tell apart
    # worked out once, outside a graph
    stages: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)
    rotates: bool = field(init=False, repr=False, compare=False)
    # whether angles are distances times inverse frequencies, as pretrained but for `factors`
    plain: bool = field(init=False, repr=False, compare=False)
    unrotated: Region = field(init=False, repr=False, compare=False)  # of layers that do not rotate
    every_region: list[Region] | None = field(init=False, repr=False, compare=False)  # of positions up to the longest
    # [rows, heads or 1] what positions are divided by, and the row of each layer; None and none where nothing is
    factors: Tensor | None = field(init=False, repr=False, compare=False)
    rows: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        worked_out: dict[str, Any] = {
            "stages": stacked(self.method.stages(self.geometry)),
            "unrotated": causal(self.method.base_spectrum(self.geometry)),
            "every_region": self.regions(LONGEST),
        }
        worked_out["rotates"] = bool((worked_out["stages"][0] > 0).any())
        kind = type(self.method)
        own = kind.distance is not LateMethod.distance or kind.angles is not LateMethod.angles
        worked_out["plain"] = self.near is None and not own
        factors, rows = self.method.head_factors(self.geometry, self.heads), ()
        if factors is not None:
            factors, inverse = torch.unique(factors, dim=0, return_inverse=True)
            rows = tuple(inverse.tolist())
        worked_out |= {"factors": factors, "rows": rows}
        for name, value in worked_out.items():
            object.__setattr__(self, name, value)

    @property
    def remedy(self) -> str:
        """What to ask for where attention cannot do this."""
        if not isinstance(self.method, Fixed):
            return "use a method of fixed frequencies, such as yarn"
        if self.near is not None:
            return 'pass existing="replace"'
        return "leave out what makes it act in attention (log_n, temperature, layers)"

    def __getstate__(self) -> dict[str, Any]:
        """What was given; what follows from it holds functions that cannot be pickled."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}

    def __setstate__(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def spectra(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[..., pairs] inverse frequencies and [...] attention factors of queries at these positions."""
        if self.method.staged:
            stage = self.method.stage(self.geometry, positions)
            inv_freq, factor = (every.to(positions.device)[stage] for every in self.stages)
        else:
            inv_freq, factor = self.method.spectra(self.geometry, positions)
        if self.near is None:
            return inv_freq, factor
        within = positions < self.near_length
        near_inv_freq, near_factor = self.near.spectra(positions)
        return torch.where(within[..., None], near_inv_freq, inv_freq), torch.where(within, near_factor, factor)

    def angles(self, query: Tensor, key: Tensor, distance: Tensor, inv_freq: Tensor) -> Tensor:
        """[..., n, slots, pairs]: what lies between queries and keys, as `LateMethod.angles` says it."""
        angles = self.method.angles(self.geometry, query, key, distance, inv_freq)
        if self.near is None:
            return angles
        near = self.near.angles(query, key, distance, inv_freq)
        return torch.where((query < self.near_length)[..., None], near, angles)

    def regions(self, longest: int) -> list[Region] | None:
        """Those of the method for positions below `longest`; None where only pairs say what it does."""
        own = self.method.regions(self.geometry, longest)
        if self.near is None:
            return own
        near = self.near.regions(min(longest, self.near_length))
        if longest <= self.near_length:
            return near
        if own is None or near is None:
            return None
        return [_among(region, 0, self.near_length) for region in near] + [
            _among(region, self.near_length, LONGEST) for region in own
        ]

    @property
    def tells_heads_apart(self) -> bool:
        """Whether the heads of a layer may rotate otherwise than one another."""
        return self.factors is not None and self.factors.shape[1] > 1

    def query_scale(self, positions: Tensor) -> Tensor | None:
        """[...] float32: what queries are multiplied by, by the method and by the temperature."""
        scale = self.method.query_scale(self.geometry, positions)
        if self.temperature is None:
            return scale
        own = self.temperature.multiplier(positions, self.geometry.original_length, self.factor)
        if own is None or scale is None:
            return scale if own is None else own
        return own * scale

    def biased(self, scores: Tensor, distance: Tensor, added: Added) -> Tensor:
        """[batch, key heads, groups, n, slots] scores with the method's bias for a [batch or 1, n, slots] distance."""
        if not self.method.has_bias:
            return scores
        _, key_heads, groups, _, _ = scores.shape
        bias = self.bias(distance, key_heads * groups, added)
        return scores + torch.unflatten(bias, -3, (key_heads, groups)).to(scores.dtype)

    def bias(self, distance: Tensor, heads: int, added: Added) -> Tensor:
        """[batch or 1, heads, n, slots] of a method that has one, for a [batch or 1, n, slots] distance."""
        bias = self.method.bias(self.geometry, distance, heads, added)
        assert bias is not None
        return bias


def _among(region: Region, begin: int, end: int) -> Region:
    """The pairs of a region whose query stands at `begin` or later, and before `end`."""
    return replace(region, stop=lambda i: torch.where((i >= begin) & (i < end), region.stop(i), 0))


class ForwardPass:
    """One forward pass: where queries and keys stand, and what follows from that, worked out once for all layers."""

    def __init__(
        self,
        late: Late,
        positions: Tensor,
        past: int | Tensor,
        added: Added = NOTHING,
        places: Tensor | None = None,
        kept: ForwardPass | None = None,
    ):
        self.late = late
        self.kept = kept  # the same call, for layers that rotate as they did before
        self.added = added  # the parameters that all layers share
        self.positions = positions  # [batch or 1, n] int64, of the queries
        self.past = past  # tokens in the cache before this call
        self.places = places  # [batch, tokens so far] positions of all tokens, where padding sets them apart
        self.n = positions.shape[1]
        self.factors: Tensor | None = None  # [heads or 1] what positions are divided by, where `in_layer` says so
        self.masks: dict[Any, Any] = {}  # flex attention's, of those who use it
        self._regions: list[Region] | None = None
        self._plans: dict[tuple[int, int, bool], list[Blocks]] = {}
        self._waves: dict[Any, tuple[Tensor, Tensor]] = {}
        self._pairs: dict[int, Pairs] = {}
        self._turns: dict[tuple[int, torch.dtype, bool], tuple[Tensor, Tensor]] = {}
        self._strides: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.listener: Listener | None = None
        self._latest: tuple[int, ForwardPass] | None = None  # what the latest layers read that rotate alike

    def in_layer(self, number: int) -> ForwardPass:
        """The same call as the layer of that number reads it: what is not of its rotation is shared by all."""
        late = self.late
        if late.factors is None:
            return self
        row = late.rows[number]
        if self._latest is None or self._latest[0] != row:  # rotations of many layers would hold much memory
            own = ForwardPass(late, self.positions, self.past, self.added, self.places)
            own.factors = late.factors[row].to(self.positions.device)
            own.masks, own._plans, own._pairs, own._strides = self.masks, self._plans, self._pairs, self._strides
            own._regions = self._regions = self.regions()
            self._latest = row, own
        return self._latest[1]

    def keys(self, slots: int) -> Tensor:
        """[batch or 1, slots] positions of the keys that a layer reads.

        A cache keeps one key per slot: from the start where it has room left (static), else up to the newest (dynamic,
        and the windows of sliding layers). Without a cache keys stand where queries stand, contiguous or not.
        """
        device = self.positions.device
        if self.places is None and self._first_call and slots >= self.n:
            if slots == self.n:
                return self.positions
            room = torch.arange(1, slots - self.n + 1, device=device)
            return torch.cat((self.positions, self.positions[:, -1:] + room), dim=1)
        seen = self.past + self.n
        dropped = (seen - slots).clamp(min=0) if isinstance(seen, Tensor) else max(seen - slots, 0)
        index = torch.arange(slots, device=device) + dropped
        if self.places is None:
            return index - (seen - 1) + self.positions[:, -1:]
        last = self.places.shape[1] - 1  # room behind it goes on counting
        return self.places[:, index.clamp(max=last)] + (index - last).clamp(min=0)

    @property
    def _first_call(self) -> bool:
        """Whether nothing is known to be cached."""
        return isinstance(self.past, int) and self.past == 0

    def contiguous(self, slots: int) -> bool:
        """Whether slots are known to stand side by side: positions may jump, and padding may part them."""
        if torch.compiler.is_compiling():  # a graph cannot ask
            return False
        if self.places is None and not self._first_call:
            return True
        return bool((self.keys(slots).diff(dim=1) == 1).all())

    def regions(self) -> list[Region] | None:
        """Those of the method that queries may meet; None where only pairs say what it does."""
        if torch.compiler.is_compiling():
            return self.late.every_region
        if self._regions is None:
            self._regions = self.late.regions(int(self.positions.max()) + 1)
        return self._regions

    def blocks(self, slots: int, size: int, *, rotating: bool) -> list[Blocks] | None:
        """The regions in blocks of `size` queries, for layers that read so many slots; None where there are none.

        A layer that does not rotate has one region, of all that is causal.
        """
        key = (slots, size, rotating)
        if key not in self._plans:
            regions = self.regions() if rotating else [self.late.unrotated]
            if regions is None:
                return None
            keys, contiguous = self.keys(slots), self.contiguous(slots)
            plans = [Blocks(region, self.positions, keys, size, contiguous) for region in regions]
            self._plans[key] = [plan for plan in plans if plan.blocks]
        return self._plans[key]

    def waves(
        self, region: Region, *, queries: tuple[int, int] | None = None, slots: tuple[int, int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """[batch or 1, 1 or heads, places, pairs] cos and sin of a region's queries, or keys.

        Both are times its attention factor. `queries` are bounds of those that are needed; `slots` says how many keys
        a layer reads, and the bounds of those that are needed.
        """
        key = (id(region), queries, slots)  # regions live as long as this does
        if key not in self._waves:
            if slots is None:
                assert queries is not None
                at, spectrum = region.query(self.positions[:, slice(*queries)]), region.spectrum
            else:
                every, low, high = slots
                at, spectrum = region.key(self.keys(every)[:, low:high]), region.key_spectrum or region.spectrum
            each = at if at.dim() > 2 else at[..., None]  # a place for every pair, or one for all
            inv_freq = spectrum.inv_freq.to(at.device)
            if self.factors is not None:
                inv_freq = inv_freq / self.factors[:, None, None]
            angles = each[:, None].float() * inv_freq
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
        seen, visible = late.method.distance(late.geometry, where[:, :, None], at[:, None, :])
        every = not torch.compiler.is_compiling() and bool(visible.all())
        pairs = Pairs(distance=plain, seen=seen, visible=visible, every_key=every)
        if last - first == self.n:  # many blocks of queries would hold n x slots
            self._pairs[slots] = pairs
        return pairs

    def turns(
        self, slots: int, first: int, last: int, dtype: torch.dtype, *, twice: bool = False
    ) -> tuple[Tensor, Tensor]:
        """[batch or 1, 1 or heads, queries, slots, pairs] cos and sin by which each of queries [first, last) has keys
        rotated, of layers that read so many slots; `twice` gives the cos of all pairs two times, side by side.
        """
        key = (slots, dtype, twice)
        if key in self._turns and last - first == self.n:
            return self._turns[key]
        if self.factors is not None and self.late.plain and self.n == 1 and self.contiguous(slots):
            cos, sin = self._in_strides(slots, self.factors)
        else:
            cos, sin = self._pair_by_pair(slots, first, last)
        cos, sin = cos.to(dtype), sin.to(dtype)
        turns = torch.cat((cos, cos), dim=-1) if twice else cos, sin
        if last - first == self.n:  # many blocks of queries would hold n x slots x pairs
            self._turns[key] = turns
        return turns

    def _pair_by_pair(self, slots: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """What `turns` gives, by the method's definition."""
        where = self.positions[:, first:last]
        inv_freq, factor = self.late.spectra(where)
        seen, at = self.pairs(slots, first, last).seen, self.keys(slots)
        angles = -self.late.angles(where[:, :, None], at[:, None, :], seen, inv_freq)[:, None]
        if self.factors is not None:
            angles = angles / self.factors[:, None, None, None]
        square = (factor**2)[:, None, :, None, None]  # of what is rotated, once for the query and once for the key
        return angles.cos() * square, angles.sin() * square

    def _in_strides(self, slots: int, factors: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one query whose keys stand side by side, each angle a sum of two.

        That of every `STRIDE`-th key, and that of the steps from there: where layers or heads have angles of their
        own, working each out by itself takes longer than rotating by it.
        """
        if slots not in self._strides:
            inv_freq, factor = self.late.spectra(self.positions)
            begin = self.keys(slots)[:, :1] - self.positions
            begins = begin + torch.arange(0, slots, STRIDE, device=begin.device)
            steps = torch.arange(STRIDE, device=begin.device)
            # [batch or 1, 1, begins, 1, pairs], [batch or 1, 1, 1, steps, pairs] and [batch or 1, 1, 1, 1, 1]
            self._strides[slots] = (
                begins[:, None, :, None, None] * inv_freq[:, :, None, None],
                steps[:, None] * inv_freq[:, :, None, None],
                (factor**2)[:, :, None, None, None],
            )
        begins, steps, square = self._strides[slots]
        divisor = factors[:, None, None, None]
        begins, steps = begins / divisor, steps / divisor
        cos, sin, more_cos, more_sin = begins.cos() * square, begins.sin() * square, steps.cos(), steps.sin()
        waves = (cos * more_cos).addcmul_(sin, more_sin, value=-1), (sin * more_cos).addcmul_(cos, more_sin)
        turned, other = (wave.flatten(2, 3)[:, :, None, :slots] for wave in waves)
        return turned, other


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a method says of queries and keys, pair by pair."""

    distance: Tensor  # [batch or 1, n, slots] int64: position of the query - position of the key
    seen: Tensor  # [batch or 1, n, slots]: the distance that the rotation sees
    visible: Tensor  # [batch or 1, n, slots] bool
    every_key: bool  # whether all of them are known to be visible


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries [first, last) of a region: the slots that any of them sees, and those that all of them see."""

    first: int
    last: int
    low: int
    high: int
    inner_low: int
    inner_high: int

    def cuts(self, widest: int | None) -> list[tuple[int, int]]:
        """Bounds of slots, in order: the inner ones apart from the others, or all cut to a width."""
        if widest is not None:
            return [(low, min(low + widest, self.high)) for low in range(self.low, self.high, widest)]
        bounds = [self.low, self.inner_low, self.inner_high, self.high]
        return [(low, high) for low, high in pairwise(bounds) if low < high]


class Blocks:
    """A region cut into blocks of queries."""

    def __init__(self, region: Region, queries: Tensor, keys: Tensor, size: int, contiguous: bool):
        self.region = region
        self._queries, self._keys = queries, keys
        self._start, self._stop = region.start(queries), region.stop(queries)
        self._outside: dict[tuple[int, int, int], Tensor] = {}
        n = queries.shape[1]
        self.blocks: dict[int, Block] = {}  # by their first query
        for first in range(0, n, size):
            last = min(first + size, n)
            bounds = self._bounds(first, last) if contiguous else self._whole(first, last)
            if bounds is not None:
                low, high, inner_low, inner_high = bounds
                self.blocks[first] = Block(
                    first=first, last=last, low=low, high=high, inner_low=inner_low, inner_high=inner_high
                )

    def _bounds(self, first: int, last: int) -> tuple[int, int, int, int] | None:
        """The slots that any of the queries sees, and those that all of them see; None where they see none."""
        slots, begin = self._keys.shape[1], self._keys[:, :1]
        lows = (self._start[:, first:last] - begin).clamp(0, slots)
        highs = (self._stop[:, first:last] - begin).clamp(0, slots)
        some = lows < highs
        if not bool(some.any()):
            return None
        low, high, inner_low, inner_high = torch.stack(
            (lows[some].min(), highs[some].max(), lows.max(), highs.min())
        ).tolist()
        return (low, high, inner_low, inner_high) if inner_low < inner_high else (low, high, low, low)

    def _whole(self, first: int, last: int) -> tuple[int, int, int, int] | None:
        """Every slot, where it is not known which of them the queries see; None where no position is of the region."""
        reached = self._start[:, first:last] < self._stop[:, first:last]
        known = not torch.compiler.is_compiling()  # a graph cannot ask
        return None if known and not bool(reached.any()) else (0, self._keys.shape[1], 0, 0)

    @property
    def span(self) -> tuple[int, int]:
        """The slots that any query sees."""
        return min(b.low for b in self.blocks.values()), max(b.high for b in self.blocks.values())

    @property
    def plain(self) -> bool:
        """Whether every query is known to see every key up to its own."""
        if self.region.start is nowhere and self.region.stop is after:
            return True
        if torch.compiler.is_compiling():
            return False
        first = self._keys[:, :1].clamp(min=0)
        return bool((self._start <= first).all() and (self._stop == self._queries + 1).all())

    def distance(self, block: Block, low: int | None = None, high: int | None = None) -> Tensor:
        """[batch or 1, queries, slots low to high] positions of queries - positions of keys."""
        low, high = block.low if low is None else low, block.high if high is None else high
        return self._queries[:, block.first : block.last, None] - self._keys[:, None, low:high]

    def outside(self, block: Block, low: int, high: int) -> Tensor | None:
        """[batch or 1, queries, slots low to high] bool: pairs that are not of the region; None where all are."""
        if low >= high or (block.inner_low <= low and high <= block.inner_high):
            return None
        key = (block.first, low, high)
        if key in self._outside:
            return self._outside[key]
        at = self._keys[:, None, low:high]
        start, stop = (edge[:, block.first : block.last, None] for edge in (self._start, self._stop))
        mask = (at < start) | (at >= stop)
        if high - low <= 2 * (block.last - block.first):  # an edge; what is wider would make a square of them all
            self._outside[key] = mask
        return mask
