"""The door for methods that change frequencies: the buffers of the rotary module.

Buffers are replaced on the live module, so its identity, hooks, compiled graphs and wrappers survive, and no
parameter is touched.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.families.late_type import LATE_TYPE
from ropescale.families.parts import Part
from ropescale.spectrum import Spectrum

BUFFERS = ("inv_freq", "original_inv_freq")
# Native types that Transformers computes once: safe to name on a module whose buffers hold the same values, and
# what makes a re-initialisation (weights materialised from the meta device) compute those values again.
FIXED_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rotation:
    """What the layers of one part are to rotate by."""

    part: Part
    spectrum: Spectrum
    rope_type: str  # in the config
    as_it_is: bool = False  # goes on by what the module has, which depends on the length of a text

    @property
    def module_type(self) -> str:
        """The type that the rotary module is to name.

        A module that gives the identity keeps a type whose re-initialisation is an error: native frequencies would
        rotate a second time.
        """
        return self.rope_type if self.rope_type in (*FIXED_TYPES, LATE_TYPE) else "default"


class ConstantInit:
    """What a module that works its frequencies out at every call is given to work out.

    `inv_freq` is [pairs] float32.
    """

    def __init__(self, inv_freq: Tensor, attention_factor: float) -> None:
        self.inv_freq, self.attention_factor = inv_freq, attention_factor

    def __call__(self, *_: Any, **__: Any) -> tuple[Tensor, float]:
        return self.inv_freq, self.attention_factor


class Substitution:
    """Frequencies put in the place of a rotary module's own, and what was there before.

    It stands in for the module's `_apply`, through which `.to()`, `.half()` and `.cuda()` reach tensors. The
    substituted frequencies follow to another device but keep their values: in bf16 the phase would be off by 40
    radians at 32k tokens. The originals are kept as if they were still in place, so that taking the substitution out
    leaves the module as it would be had it never been there. Of what goes on as it is, nothing is substituted.
    """

    def __init__(self, rotary: nn.Module, rotations: list[Rotation]) -> None:
        self.rotary = rotary
        rotations = [rotation for rotation in rotations if not rotation.as_it_is]
        # [pairs] float32, on the CPU; a copy each, since Transformers' own reset writes into one of them
        self.inv_freq = {
            f"{rotation.part.prefix}{name}": rotation.spectrum.inv_freq for rotation in rotations for name in BUFFERS
        }
        self.originals: dict[str, Tensor] = {name: rotary._buffers[name] for name in self.inv_freq}  # type: ignore[misc]
        factors: dict[str, Any] = {
            f"{rotation.part.prefix}attention_scaling": rotation.spectrum.attention_factor for rotation in rotations
        }
        if rotations and "rope_init_fn" in rotary.__dict__:
            factors["rope_init_fn"] = ConstantInit(
                rotations[0].spectrum.inv_freq, rotations[0].spectrum.attention_factor
            )
        self.attributes: dict[str, Any] = {name: rotary.__dict__[name] for name in (*factors, "rope_type")}
        for name, values in self.inv_freq.items():
            rotary._buffers[name] = values.to(self.originals[name].device, copy=True)
        types = {rotation.part.label: rotation.module_type for rotation in rotations}
        stated = self.attributes["rope_type"]
        rope_type = {**stated, **types} if isinstance(stated, dict) else types.get("", stated)
        rotary.__dict__.update(factors, rope_type=rope_type)
        rotary.__dict__["_apply"] = self

    def __call__(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = dict(self.rotary._buffers)
        type(self.rotary)._apply(self.rotary, fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self.inv_freq.items():
            moved = self.rotary._buffers[name]
            if moved is not None and moved is not before[name]:
                # from the exact values, whatever became of these: rounded by .to(bf16), lost by .to_empty()
                self.rotary._buffers[name] = values.to(moved.device, copy=True)
        with torch.no_grad():
            self.originals = {name: fn(tensor) for name, tensor in self.originals.items()}
        return self.rotary

    def retune(self, spectra: Mapping[str, Spectrum]) -> None:
        """Rotate by other frequencies of as many pairs, in place; what `undo` puts back is as it was.

        `spectra` has one for the prefix of each part that is substituted.
        """
        for prefix, spectrum in spectra.items():
            for name in BUFFERS:
                self.inv_freq[f"{prefix}{name}"] = spectrum.inv_freq
                self.rotary._buffers[f"{prefix}{name}"].copy_(spectrum.inv_freq)  # type: ignore[union-attr]
            self.rotary.__dict__[f"{prefix}attention_scaling"] = spectrum.attention_factor
        if "rope_init_fn" in self.attributes:
            spectrum = next(iter(spectra.values()))
            self.rotary.__dict__["rope_init_fn"] = ConstantInit(spectrum.inv_freq, spectrum.attention_factor)

    @property
    def device(self) -> torch.device:
        """Where the substituted frequencies are."""
        return next(self.rotary.buffers()).device

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within the block the module rotates as it did before; nothing may be moved or cast meanwhile."""
        buffers = {name: self.rotary._buffers[name] for name in self.originals}
        attributes = {name: self.rotary.__dict__[name] for name in self.attributes}
        self.rotary._buffers.update(self.originals)
        self.rotary.__dict__.update(self.attributes)
        try:
            yield
        finally:
            self.rotary._buffers.update(buffers)
            self.rotary.__dict__.update(attributes)

    def undo(self) -> None:
        """Put back what was there before."""
        del self.rotary.__dict__["_apply"]
        self.rotary._buffers.update(self.originals)
        self.rotary.__dict__.update(self.attributes)


def deviation(rotary: nn.Module, rotation: Rotation, positions: Tensor) -> float:
    """The largest difference between the module's cos and sin and those of `rotation`; infinite if no layout fits.

    `positions` is [n], integer. A module lays its pairs out once, twice in halves, or twice interleaved; which one
    is the family's own affair, so the nearest counts.
    """
    spectrum, label = rotation.spectrum, rotation.part.label
    inv_freq = spectrum.inv_freq.to(positions.device)
    angles = positions[:, None].float() * inv_freq
    with torch.no_grad():
        inputs = (torch.zeros(1, 1, dtype=torch.float32, device=positions.device), positions[None])
        returned = rotary(*inputs, label) if label else rotary(*inputs)
    if isinstance(returned, Tensor) and returned.is_complex():
        returned = (returned.real, returned.imag)
    if not isinstance(returned, tuple) or len(returned) != 2:
        return float("inf")
    layouts = (angles, torch.cat((angles, angles), dim=-1), angles.repeat_interleave(2, dim=-1))
    differences = [
        max(
            (output.reshape(layout.shape) - wave(layout) * spectrum.attention_factor).abs().max().item()
            for output, wave in zip(returned, (torch.cos, torch.sin), strict=True)
        )
        for layout in layouts
        if all(output.numel() == layout.numel() for output in returned)
    ]
    return min(differences, default=float("inf"))
