"""A rotation as llama.cpp reads it.

Natively as another theta, as `linear`, or as `yarn` with its default ramp; otherwise as one divisor per pair in the
tensor rope_freqs.weight, and rope.scaling.attn_factor.
"""

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from ropescale.errors import ExportError
from ropescale.export.canonical import Rotation, is_base

ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """A rotation in the words of llama.cpp."""

    form: str  # in words
    theta: float
    type: gguf.RopeScalingType | None = None
    factor: float | None = None
    original_length: int | None = None
    attn_factor: float | None = None  # multiplies cos and sin
    divisors: Tensor | None = None  # [pairs] float32


def scaling_of(rotation: Rotation, *, divisors: bool, name: str) -> Scaling:
    """How a rotation is told to llama.cpp.

    Raises:
        ExportError: not natively, and this architecture takes no divisors.
    """
    theta, spectrum, rope = rotation.theta, rotation.spectrum, rotation.parameters
    if is_base(rotation):
        return Scaling(form="rope.freq_base alone", theta=theta)
    if rotation.rope_type == "linear":
        return Scaling(
            form="its native type linear", theta=theta, type=gguf.RopeScalingType.LINEAR, factor=float(rope["factor"])
        )
    if rotation.rope_type == "yarn" and _default_ramp(rope):
        factor = float(rope["factor"])
        theirs = 1 + 0.1 * float(np.log(factor))  # what llama.cpp multiplies by itself
        attn_factor = spectrum.attention_factor / theirs
        return Scaling(
            form="its native type yarn",
            theta=theta,
            type=gguf.RopeScalingType.YARN,
            factor=factor,
            original_length=int(rope["original_max_position_embeddings"]),
            attn_factor=None if abs(attn_factor - 1) < 1e-7 else attn_factor,
        )
    if not divisors:
        raise ExportError(
            f"{name}: llama.cpp reads no divisors for each pair for this architecture, got {rotation.rope_type!r}; "
            f"nearest that it holds exactly: yarn with its default ramp, linear, or ntk"
        )
    if not bool((rotation.spectrum.inv_freq > 0).any()):
        form = "no rotation"
    else:
        form = "one divisor per pair (rope_freqs.weight)"
    return Scaling(
        form=form,
        theta=theta,
        attn_factor=None if spectrum.attention_factor == 1 else spectrum.attention_factor,
        divisors=rotation.divisors,
    )


def _default_ramp(rope: dict[str, Any]) -> bool:
    """Whether this is the ramp that llama.cpp has: it ignores the keys for another one (measured)."""
    return (rope.get("beta_fast") or 32) == 32 and (rope.get("beta_slow") or 1) == 1 and rope.get("truncate", True)


def add_scaling(writer: gguf.GGUFWriter, scaling: Scaling, length: int) -> None:
    """Writes the metadata of a rotation."""
    writer.add_context_length(length)
    writer.add_rope_freq_base(scaling.theta)
    if scaling.type is not None:
        writer.add_rope_scaling_type(scaling.type)
    if scaling.factor is not None:
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.original_length is not None:
        writer.add_rope_scaling_orig_ctx_len(scaling.original_length)
    if scaling.attn_factor is not None:
        writer.add_rope_scaling_attn_factors(scaling.attn_factor)


def added_tensors(scaling: Scaling) -> list[tuple[str, Tensor]]:
    """The tensors of a rotation."""
    return [] if scaling.divisors is None else [(ROPE_FREQS, scaling.divisors)]
