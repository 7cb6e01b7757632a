"""The mathematics of rotary scores: similarity, decay, turns, modulation, norms. Knows torch, geometries and methods.

Everything is float64 unless said otherwise. Frequencies are given as a `Geometry`, which stands for what pretraining
fixed, or as a tensor [pairs] of inverse frequencies in radians per token. Vectors of a head are in the half layout:
pair i is elements i and i + pairs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.checks import require_whole
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods import FixedMethod, Method
from ropescale.methods.late import Fixed, LateMethod, Sizes, with_spectrum
from ropescale.spectrum import base_inv_freq
from ropescale.temperature import Temperature

ROWS = 4096  # distances worked on at once: with 64 pairs 2 MB, whatever the context


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What the query at the last position of a context makes of keys before it."""

    distance: Tensor  # [n] int64 tokens: query position - key position
    seen: Tensor  # [n] float64 tokens: the distance that the rotation sees
    visible: Tensor  # [n] bool
    score: Tensor  # [n] float64: the logit of a query and a key of ones, also where the key is not visible
    inv_freq: Tensor  # [pairs] float64 radians per token: the frequencies of this query
    attention_factor: float
    query_scale: float  # what the query is multiplied by
    biased: bool  # whether something is added to the scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Modulation:
    """A rotary score taken apart: each pair's content is multiplied by a wave of the distance."""

    cosine: Tensor  # [n]: sum over pairs of cos(w d) q.k
    sine: Tensor  # [n]: sum over pairs of sin(w d) q.Jk, with J the quarter turn
    score: Tensor  # [n]: the product of the query and the key, each rotated to its own position

    @property
    def error(self) -> float:
        """The largest difference between the score and its two parts."""
        return float((self.cosine + self.sine - self.score).abs().max())


@dataclass(frozen=True, kw_only=True, eq=False)
class Addition:
    """A score with position vectors added to the contents taken apart: (x + p).(y + p')."""

    content: Tensor  # [n]: x.y, of the contents alone
    content_position: Tensor  # [n]: x.p', the query's content and the key's position
    position_content: Tensor  # [n]: p.y, the query's position and the key's content
    position: Tensor  # [n]: p.p', of the positions alone: a function of their distance
    score: Tensor  # [n]

    @property
    def error(self) -> float:
        """The largest difference between the score and its four terms."""
        parts = self.content + self.content_position + self.position_content + self.position
        return float((parts - self.score).abs().max())


def frequencies(source: Geometry | Tensor) -> Tensor:
    """[pairs] float64: inverse frequencies, as given or as the geometry has them.

    Raises:
        InvalidArgumentError: neither a geometry nor a row of frequencies.
    """
    if isinstance(source, Geometry):
        return base_inv_freq(source, torch.float64)
    if not isinstance(source, Tensor) or source.dim() != 1 or not source.is_floating_point() or not len(source):
        shown = (
            f"{source.dtype} of shape {tuple(source.shape)}" if isinstance(source, Tensor) else type(source).__name__
        )
        raise InvalidArgumentError(
            f"inv_freq: must be a Geometry or a floating tensor with one entry per pair, got {shown}; "
            f"take the inv_freq of a Spectrum"
        )
    return source.double()


def similarity(source: Geometry | Tensor, distances: Tensor) -> Tensor:
    """B(m) = sum over pairs of cos(m w): [n] for distances [n] in tokens.

    Of random vectors, a key like the query scores 2 B(m) times their variance more than another key at the same
    distance: where B is negative, attention prefers what is unlike. (Men et al. 2024, arXiv:2405.14591)
    """
    inv_freq = frequencies(source)
    return torch.cat([(part.double()[:, None] * inv_freq).cos().sum(-1) for part in _parts(distances)])


def first_negative(source: Geometry | Tensor, limit: int) -> int | None:
    """The first whole distance from 0 to `limit` at which B(m) is negative; None if there is none.

    The bases that are good for a length are no interval: a larger one may fail earlier. So this looks, and does not
    compare with a smallest base. (Men et al. 2024, arXiv:2405.14591)

    Raises:
        InvalidArgumentError: `limit` is no number of tokens.
    """
    require_whole(
        "limit:",
        limit,
        0,
        LONGEST,
        rule=f"a whole number of tokens from 0 to {LONGEST}",
        remedy="give the longest distance of interest",
    )
    inv_freq = frequencies(source)
    for start in range(0, limit + 1, ROWS):
        negative = similarity(inv_freq, torch.arange(start, min(start + ROWS, limit + 1))) < 0
        if bool(negative.any()):
            return start + int(negative.int().argmax())
    return None


def pairs_without_a_turn(geometry: Geometry) -> list[int]:
    """The pairs that never complete a turn within the original length: training shows a part of their circle."""
    wavelength = 2 * math.pi / frequencies(geometry)
    return (wavelength > geometry.original_length).nonzero().flatten().tolist()


def critical_pair(geometry: Geometry) -> int:
    """The first pair that never completes a turn within the original length; the number of pairs if all do.

    Twice that is the critical dimension, which counts elements of a head: 2 ceil(d/2 log_theta(L / 2 pi)) for theta's
    own frequencies. (Liu et al. 2023, arXiv:2310.05209; LongRoPE2, arXiv:2502.20082, equation 7)
    """
    return next(iter(pairs_without_a_turn(geometry)), geometry.pairs)


def decay_bound(source: Geometry | Tensor, distances: Tensor) -> Tensor:
    """[n]: the mean of |S_j| over j = 1 ... pairs, where S_j is the sum of exp(i m w) over the first j pairs.

    A score at distance m is at most this times the pairs and the largest step between neighbouring pairs' products.
    (RoFormer, arXiv:2104.09864, section 3.4.3, equation 37)
    """
    inv_freq = frequencies(source)
    parts = []
    for part in _parts(distances):
        angles = part.double()[:, None] * inv_freq
        parts.append(torch.polar(torch.ones_like(angles), angles).cumsum(-1).abs().mean(-1))
    return torch.cat(parts)


def view(
    method: Method | None,
    geometry: Geometry,
    *,
    length: int,
    distances: Tensor,
    heads: int = 1,
    temperature: Temperature | None = None,
) -> View:
    """What the query at position `length - 1` makes of keys at these distances: [n] whole tokens, below `length`.

    The score is the logit of a query and a key of ones, which up to its scale is also the expected one of a random
    vector with itself: (2 a^2 B(m) + elements that do not rotate) / sqrt(head_dim) with the attention factor a. What a
    method adds to scores or multiplies comes with it: of the head that is changed least where heads differ, and as it
    begins where it is learned. What depends on content (shaw, cope, embeddings) does not. Of a method that acts in
    some layers it is what these layers see.

    Arguments:
        method: None for the model as it was pretrained.
        geometry: the rotary facts of the model.
        length: tokens of the context.
        distances: integer.
        heads: of the model; a bias depends on how many there are.
        temperature: what queries are multiplied by besides, of a model that is extended to `length`.

    Raises:
        InvalidArgumentError: distances that leave the context, or knobs that do not fit this geometry.
    """
    if bool((distances < 0).any()) or bool((distances >= length).any()):
        raise InvalidArgumentError(
            f"distances: must be from 0 to below the length ({length}), got {int(distances.min())} to "
            f"{int(distances.max())}; give a longer context"
        )
    acting, base = _acting(method, geometry)
    query = torch.tensor([length - 1])
    seen, visible = acting.distance(base, query, query - distances)
    inv_freq, factor = acting.spectra(base, query)
    if (divided := acting.head_factors(base, heads)) is not None:
        acted = [number for number in range(base.layers) if number not in acting.left(base)]
        inv_freq = inv_freq / divided[acted].min() if acted else inv_freq
    learned = acting.added(base, Sizes(heads=heads, head_dim=base.head_dim, value_dim=base.head_dim, hidden=1))
    bias = acting.bias(base, distances[None, :], heads, learned)
    scale = acting.query_scale(base, query)
    attention_factor, query_scale = float(factor[0]), 1.0 if scale is None else float(scale[0])
    if temperature is not None:
        more = temperature.multiplier(query, base.original_length, length / base.original_length)
        query_scale *= 1.0 if more is None else float(more[0])
    cosines = [
        acting.angles(base, query[:, None], (query - part)[None], apart[None], inv_freq.double())[0].cos().sum(-1)
        for part, apart in zip(_parts(distances), _parts(seen), strict=True)
    ]
    rotated = 2 * attention_factor**2 * torch.cat(cosines)
    score = query_scale * (rotated + geometry.head_dim - geometry.rotary_dim) / math.sqrt(geometry.head_dim)
    if bias is not None:
        score = score + bias.double().amax(dim=0)[0]
    return View(
        distance=distances,
        seen=seen.double(),
        visible=visible,
        score=score,
        inv_freq=inv_freq[0].double(),
        attention_factor=attention_factor,
        query_scale=query_scale,
        biased=bias is not None and bool(bias.any()),
    )


def at_positions(source: Geometry | Tensor, vectors: Tensor, positions: Tensor) -> Tensor:
    """[n, 2 pairs]: vectors [n, 2 pairs] or [2 pairs] turned to positions [n], in the vectors' dtype.

    Raises:
        InvalidArgumentError: vectors that do not have two elements per pair.
    """
    inv_freq = frequencies(source).to(vectors.dtype)
    pairs = len(inv_freq)
    if vectors.shape[-1] != 2 * pairs:
        raise InvalidArgumentError(
            f"vectors: must have two elements for each of {pairs} pairs, got {vectors.shape[-1]}; "
            f"give the rotated elements of one head"
        )
    angles = positions.to(vectors.dtype)[:, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    first, second = vectors[..., :pairs], vectors[..., pairs:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def modulation(
    source: Geometry | Tensor, query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor
) -> Modulation:
    """The score of a query and a key [2 pairs] at positions [n], and its parts: sum of cos(w d) q.k + sin(w d) q.Jk.

    d is key position - query position, so that a key that came before has a negative one; J turns every pair by a
    quarter. Position multiplies content and adds nothing to it. (RoFormer, arXiv:2104.09864, equation 16)
    """
    inv_freq = frequencies(source)
    turned = at_positions(inv_freq, query.double(), query_positions) * at_positions(
        inv_freq, key.double(), key_positions
    )
    q = query.double().reshape(2, -1)
    k = key.double().reshape(2, -1)
    quarter = torch.stack((-k[1], k[0]))
    angles = (key_positions - query_positions).double()[:, None] * inv_freq
    return Modulation(
        cosine=(angles.cos() * (q * k).sum(0)).sum(-1),
        sine=(angles.sin() * (q * quarter).sum(0)).sum(-1),
        score=turned.sum(-1),
    )


def sinusoidal(positions: Tensor, width: int) -> Tensor:
    """[n, width]: sine and cosine in turn of position * 10000^(-2i / width). (arXiv:1706.03762, section 3.5)

    Raises:
        InvalidArgumentError: a width that is not even and above 0.
    """
    if type(width) is not int or width < 2 or width % 2:
        raise InvalidArgumentError(
            f"width: must be even and above 0, since a sine and a cosine go together, got {shortened(width)}; "
            f"give the elements of a token's vector"
        )
    angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def addition(query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor) -> Addition:
    """The score of two contents [width] at positions [n] with sinusoidal vectors added, and its four terms."""
    x, y = query.double(), key.double()
    here, there = sinusoidal(query_positions, len(x)), sinusoidal(key_positions, len(y))
    return Addition(
        content=(x * y).sum().expand(len(here)),
        content_position=there @ x,
        position_content=here @ y,
        position=(here * there).sum(-1),
        score=((x + here) * (y + there)).sum(-1),
    )


def norm_error(source: Geometry | Tensor, vectors: Tensor, positions: Tensor) -> float:
    """The largest relative change of a norm when vectors [n, 2 pairs] turn to positions [n], in the vectors' dtype."""
    before = vectors.double().norm(dim=-1)
    after = at_positions(source, vectors, positions).double().norm(dim=-1)
    return float((after / before - 1).abs().max())


def _parts(distances: Tensor) -> list[Tensor]:
    return [distances[start : start + ROWS] for start in range(0, len(distances), ROWS)]


def _acting(method: Method | None, geometry: Geometry) -> tuple[LateMethod, Geometry]:
    """The method as one that acts when attention reads, and the geometry it then has for its base."""
    if method is None:
        return Fixed(), geometry
    acting = method.when_read(geometry) if isinstance(method, FixedMethod) else method
    if isinstance(acting, LateMethod):
        return acting, geometry
    assert isinstance(method, FixedMethod)
    return Fixed(), with_spectrum(geometry, method.spectrum(geometry))
