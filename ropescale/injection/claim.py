"""What a patch says that a model will do, from its mathematics alone: what a proof holds the model to."""

import math
from dataclasses import dataclass

import torch

from ropescale.injection.forward_pass import Late
from ropescale.spectrum import Spectrum

TOKENS = 16  # of a pass in which a model is read


@dataclass(frozen=True)
class Claim:
    """What a patch is to do."""

    model_type: str
    method: str
    labels: frozenset[str]  # the layer types whose layers are named; one empty label for all layers
    # of a pair's cos or sin between the last token of a pass and any other; infinite for more than rotation
    change: float
    late: bool  # whether it acts when attention reads
    embeds: bool  # whether it changes the vectors that enter the first layer, and so what every layer is given
    windowed: bool = False  # whether the layers in which it does not act see a window, and so may change too


def last_position(original_length: int, target_length: int) -> int:
    """Where the last token stands: beyond the original length, unless the target ends before."""
    beyond = original_length + TOKENS
    return beyond if beyond < target_length else max(target_length, TOKENS) - 1


def change_of_spectrum(before: Spectrum, after: Spectrum, last: int) -> float:
    """The largest change of cos or sin, with the attention factor, between `last` and the first tokens."""
    distance = (last - torch.arange(TOKENS - 1))[:, None].float()
    return _difference(
        distance * after.inv_freq, after.attention_factor, distance * before.inv_freq, before.attention_factor
    )


def change_when_read(before: Spectrum, late: Late, last: int) -> float:
    """The same where a method acts when attention reads; infinite where it does more than rotate or scale scores."""
    method, geometry = late.method, late.geometry
    query, key = torch.tensor([[last]]), torch.arange(TOKENS - 1)[None, None]
    scale = late.query_scale(query)
    if method.embeds or not method.scores_are_products:
        return math.inf
    distance, visible = method.distance(geometry, query[..., None], key)
    if not bool(visible.all()):
        return math.inf
    inv_freq, factor = late.spectra(query)
    angles = late.angles(query[..., None], key, distance, inv_freq)
    plain = (query[..., None] - key)[..., None].float() * before.inv_freq
    factors = [1.0] if late.factors is None else torch.unique(late.factors).tolist()
    turned = max(_difference(angles / one, float(factor), plain, before.attention_factor) for one in factors)
    # of a context of millions the first step of a logarithm is smaller than what float32 tells apart
    scaled = 0.0 if scale is None else float((scale - 1).abs().max())
    return max(scaled, turned)


def _difference(angles: torch.Tensor, factor: float, before: torch.Tensor, factor_before: float) -> float:
    """Scores have the square of the attention factor, once from queries and once from keys."""
    return max(
        float((wave(angles) * factor**2 - wave(before) * factor_before**2).abs().max())
        for wave in (torch.cos, torch.sin)
    )
