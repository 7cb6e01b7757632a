"""What methods share that act when attention reads: distances, regions of pairs, spectra by a query's position.

Queries and keys reach attention un-rotated. A method says what the rotation between a query at position i and a key at
position j is: its angle per pair is `distance * inv_freq`, with the inverse frequencies of the query. The definition
is `distance` and `spectra`; `regions` says the same for a computation that rotates whole blocks at once.
"""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ropescale.checks import require_choice, require_whole
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods.base import Method
from ropescale.spectrum import Spectrum, base_inv_freq

UNBOUNDED = 2**20  # tokens: the maximum that a config states where a method has none
GROWTH = ("double", "exact")
Positions = Callable[[Tensor], Tensor]
Added = Mapping[str, Tensor]  # parameters that a method adds to a model, by name


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the parameters of a method are shaped by."""

    heads: int  # of the queries
    head_dim: int  # of queries and keys
    value_dim: int  # of values
    hidden: int  # of the vectors that enter the first layer


@dataclass(frozen=True, kw_only=True)
class Region:
    """Pairs of a query and a key that one pair of rotations serves.

    A query at position i is rotated as if it stood at `query(i)`, a key at position j as if at `key(j)`, both with
    `spectrum`. The pair is in the region if start(i) <= j < stop(i). All four take and give positions elementwise;
    the regions of a method never share a pair, and no stop is above i + 1. `query` and `key` may give [..., pairs],
    where pairs of elements stand apart. `key_spectrum` is what the keys are rotated with where that is another one.
    """

    query: Positions
    key: Positions
    start: Positions
    stop: Positions
    spectrum: Spectrum
    key_spectrum: Spectrum | None = None


def same(positions: Tensor) -> Tensor:
    """The positions themselves."""
    return positions


def nowhere(positions: Tensor) -> Tensor:
    """Zero for every position."""
    return torch.zeros_like(positions)


def after(positions: Tensor) -> Tensor:
    """The next position: where a region that ends with the query itself stops."""
    return positions + 1


def causal(spectrum: Spectrum) -> Region:
    """Every pair of a causal mask, at its own distance."""
    return Region(query=same, key=same, start=nowhere, stop=after, spectrum=spectrum)


@dataclass(frozen=True, kw_only=True)
class LateMethod(Method):
    """A method that acts when attention reads, on queries and keys that the cache holds un-rotated.

    `factor` is a ceiling where the method has use for one; without it the config states what `target_length` says.
    """

    abstract: ClassVar[bool] = True
    defined_by: ClassVar[tuple[str, ...]] = ("distance",)
    recalibration: ClassVar[bool] = False  # whether it is of no use before a brief training
    shared: ClassVar[bool] = True  # whether all layers have the same added parameters, or each its own

    factor: float | None = None  # target length / original length, at least 1

    def __post_init__(self) -> None:
        if self.factor is not None:
            self.require_number("factor", at_least=1, at_most=LONGEST, hint="1 leaves the model as it is")

    @property
    def staged(self) -> bool:
        """Whether `stages` and `stage` say all of `spectra`."""
        return True

    @property
    def has_bias(self) -> bool:
        """Whether `bias` adds something to scores."""
        return type(self).bias is not LateMethod.bias

    @property
    def embeds(self) -> bool:
        """Whether `embedding` adds something to the vectors that enter the first layer."""
        return type(self).embedding is not LateMethod.embedding

    @property
    def reads_content(self) -> bool:
        """Whether `content_bias` or `content_value` adds something to what is read."""
        own = type(self)
        return own.content_bias is not LateMethod.content_bias or own.content_value is not LateMethod.content_value

    @property
    def scores_are_products(self) -> bool:
        """Whether scores are products of rotated vectors and nothing else, so that a fused kernel can read them."""
        return not self.has_bias and not self.reads_content

    def target_length(self, geometry: Geometry) -> int:
        """Tokens that the config states where neither factor nor target length was given."""
        return UNBOUNDED

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What lies between positions: the distance that the rotation sees, and whether the key is visible.

        Arguments:
            geometry: the rotary facts of the model.
            query: positions of queries, integer.
            key: positions of keys, integer; broadcast against `query`.

        Returns:
            Both of the broadcast shape: distances (integer or float), and bool. A pair whose key comes after its
            query may have any distance and is never visible.
        """
        return query - key, key <= query

    def angles(self, geometry: Geometry, query: Tensor, key: Tensor, distance: Tensor, inv_freq: Tensor) -> Tensor:
        """[..., n, slots, pairs] float32: what lies between queries [..., n, 1] and keys [..., 1, slots], in radians.

        The distance times the query's inverse frequencies [..., n, pairs], unless keys have angles of their own.
        """
        return distance[..., None].float() * inv_freq[..., None, :]

    def stages(self, geometry: Geometry) -> list[Spectrum]:
        """The spectra that a query may have."""
        return [self.base_spectrum(geometry)]

    def stage(self, geometry: Geometry, query: Tensor) -> Tensor:
        """Which of the stages queries at these positions have; int64, of query's shape."""
        return torch.zeros_like(query)

    def spectra(self, geometry: Geometry, query: Tensor) -> tuple[Tensor, Tensor]:
        """[..., pairs] float32 inverse frequencies and [...] attention factors of queries at these positions."""
        inv_freq, factor = stacked(self.stages(geometry))
        stage = self.stage(geometry, query)
        return inv_freq.to(query.device)[stage], factor.to(query.device)[stage]

    def head_factors(self, geometry: Geometry, heads: int) -> Tensor | None:
        """[layers, heads] float32: what positions are divided by, for each head of the queries; None for nothing.

        [layers, 1] where all heads of a layer have the same. It comes on top of everything else that the method says.

        Raises:
            InvalidArgumentError: knobs for other layers or heads than the model has.
        """
        return None

    def left(self, geometry: Geometry) -> frozenset[int]:
        """Numbers of the layers, from 0, in which it does not act: they do what `beside` says.

        Raises:
            InvalidArgumentError: knobs that name layers which the model does not have.
        """
        return frozenset()

    def beside(self) -> "Fixed":
        """What the layers do that it leaves: rotate as they did before."""
        return Fixed()

    @abstractmethod
    def regions(self, geometry: Geometry, longest: int) -> list[Region] | None:
        """The same for blocks of pairs, for positions below `longest`; None where no blocks are rotated alike."""

    def added(self, geometry: Geometry, sizes: Sizes) -> dict[str, Tensor]:
        """What the parameters that the method adds begin as; the same at every call. Nothing by default."""
        return {}

    def bias(self, geometry: Geometry, distance: Tensor, heads: int, added: Added) -> Tensor | None:
        """[..., heads, n, slots]: what is added to scores at a [..., n, slots] distance; None for nothing."""
        return None

    def content_bias(
        self, query: Tensor, scaling: float, scores: Tensor, distance: Tensor, added: Added
    ) -> Tensor | None:
        """[..., n, slots]: what is added to scores by what queries hold; None for nothing.

        Arguments:
            query: [..., n, head_dim].
            scaling: what the products of queries and keys were multiplied by.
            scores: [..., n, slots] as softmax would get them, the lowest number where a pair is not visible; all
                slots up to the last query's.
            distance: broadcast against scores, integer.
            added: the layer's parameters.
        """
        return None

    def content_value(self, weights: Tensor, distance: Tensor, added: Added) -> Tensor | None:
        """[..., n, head_dim]: what weights of [..., n, slots] read besides the values; None for nothing."""
        return None

    def embedding(self, position: Tensor, hidden: int, added: Added) -> Tensor | None:
        """[..., hidden]: what is added to the vectors that enter the first layer; None for nothing."""
        return None

    def query_scale(self, geometry: Geometry, query: Tensor) -> Tensor | None:
        """[...] float32: what queries at these positions are multiplied by; None for nothing."""
        return None

    def base_spectrum(self, geometry: Geometry) -> Spectrum:
        """What the model was pretrained with."""
        return Spectrum(base_inv_freq(geometry), geometry.attention_factor)

    def require_tokens(self, knob: str, *, at_least: int = 1) -> None:
        """Check a knob that counts tokens.

        Raises:
            InvalidArgumentError: not a whole number in bounds.
        """
        require_whole(
            f"{self.name}: {knob}",
            getattr(self, knob),
            at_least,
            LONGEST,
            rule=f"a whole number of tokens, from {at_least} to {LONGEST}",
            remedy="leave it out for what follows from the original length",
        )


@dataclass(frozen=True, kw_only=True)
class WithoutRotation(LateMethod):
    """Another system of positions, in the place of rotation: a model that was pretrained with rotation needs it
    recalibrated.
    """

    abstract: ClassVar[bool] = True
    recalibration: ClassVar[bool] = True

    def base_spectrum(self, geometry: Geometry) -> Spectrum:
        """No rotation."""
        return Spectrum(torch.zeros(geometry.pairs, dtype=torch.float32))

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        """As `LateMethod.regions`."""
        return [causal(self.base_spectrum(geometry))]


@dataclass(frozen=True, kw_only=True)
class Fixed(LateMethod):
    """Rotation as the geometry has it: what a method of fixed frequencies is when something else acts in attention."""

    abstract: ClassVar[bool] = True  # not in the registry: asked for by nobody

    window: int | None = None  # tokens that a query sees, itself among them; None for all

    def distance(self, geometry: Geometry, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As `LateMethod.distance`."""
        distance, visible = super().distance(geometry, query, key)
        return distance, visible if self.window is None else visible & (distance < self.window)

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        """As `LateMethod.regions`."""
        every, window = causal(self.base_spectrum(geometry)), self.window
        if window is None:
            return [every]
        return [dataclasses.replace(every, start=lambda i: (i - window + 1).clamp(min=0))]


@dataclass(frozen=True, kw_only=True, eq=False)
class Switch(LateMethod):
    """One spectrum for queries within the original length, another one for those beyond, and none for a prefix.

    The first `prefix` positions keep the angles that they were pretrained with, as queries and as keys. The attention
    factor is that of the query's spectrum, for them too.
    """

    abstract: ClassVar[bool] = True  # not in the registry: what a method of two lists is when attention reads

    below: Spectrum
    above: Spectrum
    prefix: int = 0  # tokens

    def stages(self, geometry: Geometry) -> list[Spectrum]:
        """As `LateMethod.stages`."""
        return [self.below, self.above, self._pretrained(geometry, self.below), self._pretrained(geometry, self.above)]

    def stage(self, geometry: Geometry, query: Tensor) -> Tensor:
        """As `LateMethod.stage`."""
        return (query >= geometry.original_length).long() + 2 * (query < self.prefix)

    def angles(self, geometry: Geometry, query: Tensor, key: Tensor, distance: Tensor, inv_freq: Tensor) -> Tensor:
        """As `LateMethod.angles`: keys of the prefix have the angles of pretraining."""
        base = self.base_spectrum(geometry).inv_freq.to(inv_freq.device)
        of_keys = torch.where((key < self.prefix)[..., None], base, inv_freq[..., None, :])
        return query[..., None].float() * inv_freq[..., None, :] - key[..., None].float() * of_keys

    def regions(self, geometry: Geometry, longest: int) -> list[Region]:
        """As `LateMethod.regions`."""
        length, prefix = geometry.original_length, self.prefix
        found = []
        for spectrum, begin, end in ((self.below, 0, length), (self.above, length, LONGEST)):
            pretrained = self._pretrained(geometry, spectrum)
            # queries of the prefix; later ones with keys of the prefix; later ones with later keys
            found += [
                self._part(pretrained, None, begin, min(end, prefix), nowhere, after),
                self._part(spectrum, pretrained, max(begin, prefix), end, nowhere, self._end_of_prefix),
                self._part(spectrum, None, max(begin, prefix), end, self._end_of_prefix, after),
            ]
        return found

    def _part(
        self, spectrum: Spectrum, keys: Spectrum | None, begin: int, end: int, start: Positions, stop: Positions
    ) -> Region:
        """A region of queries from `begin` up to `end`."""
        return Region(
            query=same,
            key=same,
            start=start,
            stop=lambda i: torch.where((i >= begin) & (i < end), stop(i), 0),
            spectrum=spectrum,
            key_spectrum=keys,
        )

    def _end_of_prefix(self, query: Tensor) -> Tensor:
        return torch.full_like(query, self.prefix)

    def _pretrained(self, geometry: Geometry, spectrum: Spectrum) -> Spectrum:
        return Spectrum(self.base_spectrum(geometry).inv_freq, spectrum.attention_factor)


def with_spectrum(geometry: Geometry, spectrum: Spectrum) -> Geometry:
    """The geometry with this spectrum for its base."""
    return dataclasses.replace(
        geometry, inv_freq=tuple(spectrum.inv_freq.tolist()), attention_factor=spectrum.attention_factor
    )


@dataclass(frozen=True, kw_only=True)
class LengthDependent(LateMethod):
    """Frequencies that depend on how far into a sequence the query stands, and on nothing else.

    A query at position i is rotated for a context of `scale(i)` times the original length L, and so are all keys
    that it sees. The scale is 1 below L. With growth="double" it is the power of two that holds i + 1 tokens, so that
    a few rotations of the keys serve all queries; with "exact" it is (i + 1) / L, and every query rotates all keys
    for itself. A `factor` is the largest scale.

    The papers rescale a whole sequence by its present length. With a cache that mixes scales in the hidden states of
    deeper layers, so that cached and uncached decoding disagree; a scale by the query's own position is the only one
    that both see alike.
    """

    abstract: ClassVar[bool] = True

    growth: str = "double"  # or "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(f"{self.name}: growth", self.growth, GROWTH, remedy="leave it out for 'double'")

    @abstractmethod
    def rescaled(self, geometry: Geometry, scale: float) -> Spectrum:
        """The spectrum for a context of `scale` times the original length, above 1."""

    def spectrum(self, geometry: Geometry, length: float | None = None) -> Spectrum:
        """The spectrum for a context of `length` tokens, by the paper's formula; as pretrained without a length."""
        scale = 1.0 if length is None else length / geometry.original_length
        return self.at_scale(geometry, scale)

    def at_scale(self, geometry: Geometry, scale: float) -> Spectrum:
        """The spectrum at a scale, within the ceiling."""
        scale = min(scale, self.factor or math.inf)
        return self.rescaled(geometry, scale) if scale > 1 else self.base_spectrum(geometry)

    def stages(self, geometry: Geometry) -> list[Spectrum]:
        """As `LateMethod.stages`: one for each doubling of the original length."""
        return [self.at_scale(geometry, 2.0**level) for level in range(self._last_level(geometry, LONGEST) + 1)]

    def stage(self, geometry: Geometry, query: Tensor) -> Tensor:
        """As `LateMethod.stage`: how often the original length was doubled to hold the query and all before it."""
        level, length = torch.zeros_like(query), geometry.original_length
        for _ in range(self._last_level(geometry, LONGEST)):
            level = level + (query >= length)
            length *= 2
        return level

    @property
    def staged(self) -> bool:
        """As `LateMethod.staged`."""
        return self.growth == "double"

    def spectra(self, geometry: Geometry, query: Tensor) -> tuple[Tensor, Tensor]:
        """As `LateMethod.spectra`."""
        if self.growth == "double":
            return super().spectra(geometry, query)
        inv_freq, factor = stacked(
            [self.at_scale(geometry, (i + 1) / geometry.original_length) for i in query.flatten().tolist()]
        )
        return inv_freq.reshape(*query.shape, -1).to(query.device), factor.reshape(query.shape).to(query.device)

    def regions(self, geometry: Geometry, longest: int) -> list[Region] | None:
        """As `LateMethod.regions`."""
        if self.growth == "exact":
            return None if longest > geometry.original_length else [causal(self.base_spectrum(geometry))]
        if self._last_level(geometry, longest) == 0:
            return [causal(self.base_spectrum(geometry))]
        return [
            dataclasses.replace(causal(self.at_scale(geometry, 2.0**level)), stop=self._stop_at(geometry, level))
            for level in range(self._last_level(geometry, longest) + 1)
        ]

    def _stop_at(self, geometry: Geometry, level: int) -> Positions:
        return lambda positions: torch.where(self.stage(geometry, positions) == level, positions + 1, 0)

    def _last_level(self, geometry: Geometry, longest: int) -> int:
        """The level of a query at position `longest - 1`, if no ceiling holds it back."""
        reach = min(longest / geometry.original_length, self.factor or math.inf)
        return max(0, math.ceil(math.log2(reach))) if reach > 1 else 0


def stacked(spectra: Sequence[Spectrum]) -> tuple[Tensor, Tensor]:
    """[spectra, pairs] inverse frequencies and [spectra] attention factors, float32."""
    factors = torch.tensor([spectrum.attention_factor for spectrum in spectra], dtype=torch.float32)
    return torch.stack([spectrum.inv_freq for spectrum in spectra]), factors


def sharpened(spectrum: Spectrum, attention_factor: float) -> Spectrum:
    """The same frequencies, with cosines and sines times as much again."""
    return dataclasses.replace(spectrum, attention_factor=spectrum.attention_factor * attention_factor)


def two_regions(spectrum: Spectrum, window: int, query: Positions, key: Positions) -> list[Region]:
    """Keys nearer than `window` at their own distance, all others with other positions."""
    far = Region(query=query, key=key, start=nowhere, stop=lambda i: (i - window + 1).clamp(min=0), spectrum=spectrum)
    near = Region(query=same, key=same, start=lambda i: (i - window + 1).clamp(min=0), stop=after, spectrum=spectrum)
    return [far, near]
