"""What the rotary module of a loaded model holds, beside its config."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ropescale.doctor.built import EXACT, unlike
from ropescale.doctor.finding import Finding
from ropescale.errors import RopescaleError
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.modules import as_built, find_rotaries, latent_layers
from ropescale.families.parts import parts_of
from ropescale.families.today import depends_on_length, rope_type_of, softmax_factor, todays_spectrum
from ropescale.injection.late import KEPT

HALF = 1e-2  # that rounding to bfloat16 and back can make


def of_rotary(model: nn.Module, config: Any, *, comparable: bool) -> Iterator[Finding]:
    """What the rotary module of a loaded model holds, beside its config; `comparable`: where that can be computed."""
    parts = parts_of(config)
    reload = "load the model again with from_pretrained, or ropescale.load if it was saved patched"
    try:
        rotary = find_rotaries(model, parts)[0]
    except RopescaleError as error:
        yield Finding.of(error, check="uninitialised", where="model")
        return
    for part in parts:
        if rope_type_of(part.config) == LATE_TYPE or depends_on_length(part.config):
            continue  # holds nothing, or what the last call needed
        name = f"{part.prefix}inv_freq"
        where = f"{rotary.name}.{name}"
        live: Tensor = getattr(rotary.module, name)
        if live.dtype != torch.float32:
            yield Finding(
                check="low-precision",
                where=where,
                rule=f"must be float32, got {live.dtype}: a cast after loading rounded it, and phases drift",
                remedy="load with from_pretrained(dtype=...) in the place of the cast, which keeps it float32",
            )
        if not comparable:
            continue
        spectrum, attention_factor = todays_spectrum(part)
        spectrum = spectrum.to(live.device)
        if live.dtype == torch.float32 and (fault := unlike(live, spectrum)):
            rounded = live.shape == spectrum.shape and bool(((live - spectrum).abs() <= HALF * spectrum).all())
            uninitialised = not bool(torch.isfinite(live).all()) or not bool(live.any())
            yield Finding(
                check="low-precision" if rounded else "uninitialised" if uninitialised else "config-edited",
                where=where,
                rule=f"must hold the frequencies of the config, got {fault}"
                + (": it was rounded to half precision and back" if rounded else ""),
                remedy=reload,
            )
        scaling = getattr(rotary.module, f"{part.prefix}attention_scaling")
        if abs(float(scaling) - attention_factor) > EXACT * attention_factor:
            yield Finding(
                check="config-edited",
                where=f"{rotary.name}.{part.prefix}attention_scaling",
                rule=f"must be the attention factor of the config ({attention_factor:g}), got {float(scaling):g}",
                remedy=reload,
            )


def of_softmax(model: nn.Module, config: Any) -> Iterator[Finding]:
    """The first layer of latent attention whose softmax is not sharpened as the config says."""
    factor = softmax_factor(parts_of(config)[0].config)
    for name, layer in latent_layers(model) if factor != 1 else ():
        expected = layer.qk_head_dim ** (-0.5) * factor
        if KEPT in layer.__dict__ or abs(layer.scaling - expected) <= EXACT * expected:
            continue
        unread = as_built(layer, config)
        version = transformers.__version__
        yield Finding(
            check="softmax-scale",
            where=f"{name}.scaling",
            rule=f"must be what mscale_all_dim of the config makes of it ({expected:g}), got {layer.scaling:g}"
            + (
                f", which transformers {version} leaves at that: attention is softer than in training"
                if unread
                else ""
            ),
            remedy="take a newer transformers" if unread else "load the model again with from_pretrained",
        )
        return
