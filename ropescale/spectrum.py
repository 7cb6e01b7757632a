"""Spectrum, and the mathematics that methods share. Knows torch and `math`; no config, no model, no method.

Glossary, one word for one meaning throughout ropescale:

    pair              a rotated 2-D subspace of a head; pair i of `rotary_dim / 2` turns by inv_freq[i] each token
    inverse frequency the angle a pair turns per token, in radians; theta^(-2i / rotary_dim) as pretrained
    wavelength        tokens per turn: 2 pi / inverse frequency
    turns             rotations that a pair completes over the original length
    stretch           base inverse frequency / rescaled one: by how much a pair was slowed down
    factor            target length / original length
    attention_factor  multiplies cos and sin, hence queries and keys, hence logits by its square
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ropescale.errors import InvalidArgumentError, shortened
from ropescale.geometry import Geometry

LARGEST_FACTOR = 1e15  # of queries and keys


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What a method makes of a geometry.

    `inv_freq` is [pairs], float32, in radians per token; a zero is a pair without position.

    Example:
        >>> import ropescale
        >>> geometry = ropescale.Geometry(rotary_dim=4, theta=10_000, original_length=128)
        >>> ropescale.get_method("linear")(factor=2).spectrum(geometry)
        Spectrum(inv_freq=tensor([0.5000, 0.0050]), attention_factor=1.0)
    """

    inv_freq: Tensor
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.inv_freq, Tensor) or self.inv_freq.dtype != torch.float32 or self.inv_freq.dim() != 1:
            shown = (
                f"{self.inv_freq.dtype} of shape {tuple(self.inv_freq.shape)}"
                if isinstance(self.inv_freq, Tensor)
                else type(self.inv_freq).__name__
            )
            raise InvalidArgumentError(
                f"spectrum: inv_freq must be a float32 tensor with one entry per pair, got {shown}; "
                f"convert it with .float()"
            )
        if not bool(torch.isfinite(self.inv_freq).all()) or bool((self.inv_freq < 0).any()):
            raise InvalidArgumentError(
                f"spectrum: inv_freq must be finite and not negative, got {shortened(self.inv_freq.tolist())}; "
                f"check the method's knobs"
            )
        factor = self.attention_factor
        # scores have its square, which float32 has to hold
        if not isinstance(factor, (int, float)) or not 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
            raise InvalidArgumentError(
                f"spectrum: attention_factor must be between {1 / LARGEST_FACTOR:g} and {LARGEST_FACTOR:g}, got "
                f"{shortened(factor)}; check the method's knobs"
            )

    @property
    def wavelength(self) -> Tensor:
        """[pairs] float32: tokens per turn, infinite for a pair without position."""
        return 2 * math.pi / self.inv_freq


def theta_series(theta: float, rotary_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rotary_dim / 2]: theta^(2i / rotary_dim), the reciprocals of theta's inverse frequencies.

    In float32 it is the value Transformers computes, bit for bit, because it takes the same operations in the
    same order.
    """
    return theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.int64).to(dtype) / rotary_dim)


def theta_inv_freq(theta: float, rotary_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rotary_dim / 2]: the geometric series theta^(-2i / rotary_dim). (RoFormer, arXiv:2104.09864, section 3.2.2)"""
    return 1.0 / theta_series(theta, rotary_dim, dtype)


def base_inv_freq(geometry: Geometry, dtype: torch.dtype = torch.float32) -> Tensor:
    """[pairs]: the frequencies before any method, theta's unless the geometry states its own."""
    if geometry.inv_freq:
        return torch.tensor(geometry.inv_freq, dtype=dtype)
    return theta_inv_freq(geometry.theta, geometry.rotary_dim, dtype)


def slowed(base: Tensor, stretch: float | Tensor, geometry: Geometry) -> Tensor:
    """[pairs]: pairs slowed down by `stretch`, one for all or one each.

    Transformers divides within the denominator, 1 / (stretch * theta^x), in yarn and longrope. Rounding there
    differs from base / stretch in the last bit, and bit-equality is promised.
    """
    if geometry.inv_freq:
        return base / stretch
    return 1.0 / (stretch * theta_series(geometry.theta, geometry.rotary_dim, base.dtype))


def pair_completing(turns: float, geometry: Geometry) -> float:
    """The (fractional) index of the pair that completes `turns` rotations over the original length."""
    wavelength = geometry.original_length / (turns * 2 * math.pi)
    return (geometry.rotary_dim * math.log(wavelength)) / (2 * math.log(geometry.theta))


def ramp(low: float, high: float, pairs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[pairs]: 0 up to pair `low`, 1 from pair `high`, linear between."""
    if low == high:
        high += 0.001  # the released YaRN code steps instead of dividing by zero
    return ((torch.arange(pairs, dtype=dtype) - low) / (high - low)).clamp(0, 1)


def bounds_by_turns(
    beta_fast: float, beta_slow: float, geometry: Geometry, *, truncate: bool = True
) -> tuple[float, float]:
    """The last pair with `beta_fast` turns and the first with `beta_slow`, as the released code of YaRN has them.

    Whole pairs with `truncate`, else fractions of one.
    """
    low, high = pair_completing(beta_fast, geometry), pair_completing(beta_slow, geometry)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    # rotary_dim - 1 although there are half as many pairs: the released clamp, kept for equal frequencies
    return max(low, 0), min(high, geometry.rotary_dim - 1)


def yarn_inv_freq(
    base: Tensor,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    geometry: Geometry,
    *,
    truncate: bool = True,
    wavelengths: bool = False,
) -> Tensor:
    """[pairs]: pairs up to the one with `beta_fast` turns kept, from that with `beta_slow` slowed, blended between.

    YaRN's ramp over pair indices as all released code has it (arXiv:2309.00071, section 3.4). The blend is of
    frequencies, or of wavelengths.
    """
    low, high = bounds_by_turns(beta_fast, beta_slow, geometry, truncate=truncate)
    keep = 1 - ramp(low, high, geometry.pairs, base.dtype)
    if wavelengths:
        return base / ((1 - keep) * factor + keep)
    return slowed(base, factor, geometry) * (1 - keep) + base * keep


def blended_by_turns(base: Tensor, factor: float, low: float, high: float, geometry: Geometry) -> Tensor:
    """[pairs]: pairs with fewer than `low` turns slowed by `factor`, with more than `high` kept, blended between.

    The blend is linear in turns. NTK-by-parts (YaRN, arXiv:2309.00071, equations 17-20) and the scaling of
    Llama 3.1 are this one function; the order of operations is Transformers' llama3.
    """
    wavelength = 2 * math.pi / base
    kept_or_slowed = torch.where(wavelength > geometry.original_length / low, base / factor, base)
    if low == high:  # nothing lies between
        return kept_or_slowed
    keep = (geometry.original_length / wavelength - low) / (high - low)
    blend = (1 - keep) * kept_or_slowed / factor + keep * kept_or_slowed
    between = ~(wavelength < geometry.original_length / high) * ~(wavelength > geometry.original_length / low)
    return torch.where(between, blend, kept_or_slowed)


def tapered(inv_freq: Tensor, pairs: int) -> Tensor:
    """[pairs] float64: the last `pairs` frequencies times (1 + cos(pi k / (pairs - 1))) / 2, for k from 0.

    Clipped RoPE (arXiv:2602.05258, published as CoPE; 20 of 64 pairs, after a theta of 1e7 and before training). It is
    the inverse frequency that falls, and no share of the score: the last pair goes without position, and its product
    counts in full. The first has a weight of 1, so a taper over one pair changes nothing, as in the authors' code.
    """
    if pairs < 2:
        return inv_freq.double()
    weights = torch.ones(len(inv_freq), dtype=torch.float64)
    weights[-pairs:] = (1 + torch.linspace(0, math.pi, pairs, dtype=torch.float64).cos()) / 2
    return inv_freq * weights


def resonant(inv_freq: Tensor) -> Tensor:
    """[pairs]: wavelengths rounded to whole tokens, half to even, so that features repeat exactly.

    Resonance RoPE (arXiv:2403.00071, section 3). A pair without position stays without. Give float64: near a
    half, float32 rounds long wavelengths to the wrong neighbour.
    """
    return 2 * math.pi / torch.round(2 * math.pi / inv_freq)
