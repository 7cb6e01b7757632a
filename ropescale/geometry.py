"""Geometry: what pretraining fixed about a model's positions. Pure: it knows no config and no model."""

import math
from dataclasses import dataclass

from ropescale.checks import as_float, require_whole
from ropescale.errors import InvalidArgumentError, shortened

LONGEST = 2**24  # tokens; float32, in which positions are rotated, counts whole numbers up to here


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The rotary facts of a checkpoint, as pretraining left them.

    `inv_freq` states the base inverse frequencies, one per pair in radians per token, where they are not
    theta's own: a checkpoint that is scaled already and is to be scaled further. It comes with the attention
    factor of that base.

    Example:
        >>> import ropescale
        >>> ropescale.Geometry(rotary_dim=64, theta=10_000, original_length=2048).head_dim
        64

    Raises:
        InvalidArgumentError: a fact that no rotary embedding can have.
    """

    rotary_dim: int  # rotated elements of one head, twice the number of pairs
    theta: float  # the base of the geometric series of frequencies
    original_length: int  # tokens the model was pretrained for
    head_dim: int = 0  # elements of one head; 0 stands for rotary_dim
    layers: int = 1
    inv_freq: tuple[float, ...] = ()  # base inverse frequencies; empty stands for theta's
    attention_factor: float = 1.0  # of the base

    def __post_init__(self) -> None:
        for name, smallest in (("rotary_dim", 2), ("original_length", 1), ("head_dim", 0), ("layers", 1)):
            require_whole(
                f"geometry: {name}",
                getattr(self, name),
                smallest,
                LONGEST,
                rule=f"an integer from {smallest} to {LONGEST}",
                remedy="read it from the checkpoint's config",
            )
        if self.rotary_dim % 2:
            raise InvalidArgumentError(
                f"geometry: rotary_dim must be even, since pairs of elements rotate, got {self.rotary_dim}; "
                f"give the number of rotated elements of one head"
            )
        if self.head_dim == 0:
            object.__setattr__(self, "head_dim", self.rotary_dim)
        if self.head_dim < self.rotary_dim:
            raise InvalidArgumentError(
                f"geometry: head_dim must be at least rotary_dim ({self.rotary_dim}), got {self.head_dim}; "
                f"leave it out where the whole head rotates"
            )
        for name, above in (("theta", 1.0), ("attention_factor", 0.0)):
            value = getattr(self, name)
            number = as_float(value)
            if not (math.isfinite(number) and number > above):
                raise InvalidArgumentError(
                    f"geometry: {name} must be a finite number above {above:g}, got {shortened(value)}; "
                    f"read it from the checkpoint's config"
                )
            object.__setattr__(self, name, number)
        if not isinstance(self.inv_freq, (list, tuple)) or not all(
            0 <= as_float(value) < math.inf for value in self.inv_freq
        ):
            raise InvalidArgumentError(
                f"geometry: inv_freq must hold finite numbers that are not negative, got {shortened(self.inv_freq)}; "
                f"leave it out where the frequencies are theta's"
            )
        object.__setattr__(self, "inv_freq", tuple(float(value) for value in self.inv_freq))
        if self.inv_freq and len(self.inv_freq) != self.pairs:
            raise InvalidArgumentError(
                f"geometry: inv_freq must hold one value per pair ({self.pairs}), got {len(self.inv_freq)}; "
                f"leave it out where the frequencies are theta's"
            )

    @property
    def pairs(self) -> int:
        """How many 2-D subspaces of a head rotate."""
        return self.rotary_dim // 2
