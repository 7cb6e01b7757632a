"""The modules of a live model that rotate or scale a softmax, held against what its config says."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ropescale.errors import UnsupportedModelError
from ropescale.families.catalogue import family_of
from ropescale.families.parts import Part, stating
from ropescale.families.today import by_alpha, rope_type_of, softmax_factor, todays_spectrum
from ropescale.spectrum import Spectrum


@dataclass(frozen=True)
class Rotary:
    """The rotary module of a live model."""

    name: str  # its path within the model
    module: nn.Module


def find_rotaries(model: nn.Module, parts: list[Part]) -> list[Rotary]:
    """The modules that turn positions into cos and sin, with buffers for these parts: one, or one a layer.

    Those of a vision or audio tower have configs of another class, and are left alone.

    Raises:
        UnsupportedModelError: none, several with configs of their own, or one that is built otherwise than this
            version knows.
    """
    config, whole = parts[0].config, parts[0].whole
    buffers = [f"{part.prefix}inv_freq" for part in parts]
    rotaries = [
        Rotary(name, module)
        for name, module in model.named_modules()
        if any(isinstance(getattr(module, buffer, None), Tensor) for buffer in buffers)
        and isinstance(getattr(module, "config", whole), type(whole))
    ]
    if not rotaries or (len(rotaries) > 1 and any(rotary.module.config is not whole for rotary in rotaries)):
        names = ", ".join(rotary.name for rotary in rotaries) or "none"
        raise UnsupportedModelError(
            f"{config.model_type}: one rotary module is needed, got {len(rotaries)} ({names}); "
            f"pass a model whose layers share one"
        )
    own = [f"{part.prefix}{name}" for part in parts for name in ("inv_freq", "original_inv_freq", "attention_scaling")]
    for rotary in rotaries:
        for attribute in (*own, "rope_type"):
            if not hasattr(rotary.module, attribute):
                raise UnsupportedModelError(
                    f"{config.model_type}: the rotary module {rotary.name!r} must have {attribute}, got "
                    f"{type(rotary.module).__name__} without it; use a model built by Transformers 5"
                )
        if any(getattr(rotary.module, buffer).is_meta for buffer in buffers):
            raise UnsupportedModelError(
                f"{config.model_type}: the model must have its weights, got a rotary module on the meta device; "
                f"load the weights first"
            )
    return rotaries


def live_spectrum(rotary: Any, prefix: str, last: int) -> Spectrum:
    """What a live rotary module turned its latest text by, whose last token stood at `last`, on the CPU.

    `prefix` begins the names of its buffers.
    """
    if family_of(rotary.config.model_type).recomputing:  # which reads neither its buffers nor the factor beside them
        rope = rotary.config.rope_parameters
        inv_freq, factor = rotary.rope_init_fn(rotary.config)
        if rope_type_of(rotary.config) != "default":
            factor = rope["long_mscale" if last >= rope["original_max_position_embeddings"] else "short_mscale"]
    else:
        inv_freq, factor = getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling")
    return effective(Spectrum(inv_freq.detach().float().cpu().clone(), float(factor)), rotary.config)


def effective(spectrum: Spectrum, config: Any) -> Spectrum:
    """What layers are turned by where cos and sin are those of a spectrum: its factor may be divided out again."""
    return Spectrum(spectrum.inv_freq, 1.0) if family_of(config.model_type).divides_factor(config) else spectrum


def find_softmax(model: nn.Module, part: Part, parameters: dict[str, Any]) -> list[tuple[nn.Module, float]]:
    """The attention layers whose softmax scale is another with these `rope_parameters`, and that scale.

    Raises:
        UnsupportedModelError: layers whose scale is not what their config says, or of a class that takes none from it.
    """
    config = part.config
    before, after = softmax_factor(config), softmax_factor(stating(config, parameters))
    if before == after:
        return []
    scalings = []
    unread = None
    for name, module in latent_layers(model):
        plain = module.qk_head_dim ** (-0.5)
        if abs(module.scaling - plain * before) > 1e-6 * plain:
            if as_built(module, config):
                unread = module
                continue
            raise UnsupportedModelError(
                f"{config.model_type}: {name}.scaling must be what its config says ({plain * before:g}), got "
                f"{module.scaling:g}; load the model from this config"
            )
        root = math.sqrt(after)
        scalings.append((module, plain * root * root if after != 1 else plain))  # in the order of Transformers
    if unread is not None and after != 1:
        raise UnsupportedModelError(
            f"{config.model_type}: mscale_all_dim needs layers that multiply their softmax by it, got "
            f"{type(unread).__name__} of transformers {transformers.__version__}, which does not; take a newer "
            f"transformers, or leave mscale_all_dim out"
        )
    if not scalings and unread is None:
        raise UnsupportedModelError(
            f"{config.model_type}: mscale_all_dim needs layers with a softmax scale of their own, got none; leave "
            f"mscale_all_dim out"
        )
    return scalings


def latent_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers of latent attention, whose softmax scale is an attribute of theirs, with their names."""
    for name, module in model.named_modules():
        if hasattr(module, "qk_head_dim") and isinstance(getattr(module, "scaling", None), float):
            yield name, module


def as_built(layer: Any, config: Any) -> bool:
    """Whether this Transformers gives a layer of this class and config the softmax scale that this one has.

    Early versions read no `mscale_all_dim` for some families.
    """
    with torch.device("meta"):
        built: bool = type(layer)(config, layer.layer_idx).scaling == layer.scaling
    return built


def require_matching(rotary: Rotary, part: Part) -> None:
    """Refuse a live module whose frequencies are not what its config says.

    Raises:
        UnsupportedModelError: other pairs or other frequencies, as after a config was edited on a loaded model.
    """
    config = part.config
    live: Tensor = getattr(rotary.module, f"{part.prefix}inv_freq")
    expected = todays_spectrum(part)[0].to(live.device)
    if live.shape != expected.shape:
        raise UnsupportedModelError(
            f"{config.model_type}: the rotary module {rotary.name!r} must have {len(expected)} pairs as the config "
            f"says, got {tuple(live.shape)}; load the model from this config"
        )
    if rope_type_of(config) in ("dynamic", "longrope") and not by_alpha(config):
        return  # the buffer holds what the last call needed
    # a model that was cast to bf16 after loading holds rounded frequencies; the patch replaces them by exact ones
    tolerance = 1e-5 if live.dtype == torch.float32 else 1e-2
    off = (live.float() - expected).abs() > tolerance * expected
    if bool(off.any()):
        pair = int(off.int().argmax())
        raise UnsupportedModelError(
            f"{config.model_type}: the rotary module {rotary.name!r} must hold the frequencies of its config, got "
            f"{live[pair].item():g} for pair {pair} instead of {expected[pair].item():g}; editing a config after "
            f"loading changes no buffer: load the model from the edited config"
        )
