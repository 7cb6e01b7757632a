"""The entries of a config that state what a method made of its rotation, as each family spells them."""

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import Gemma3TextConfig, PreTrainedConfig

from ropescale.errors import InvalidArgumentError, UnsupportedModelError, shortened
from ropescale.families.catalogue import family_of
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.parts import Part, stating
from ropescale.families.reading import read_original_length, require_fixed
from ropescale.families.today import (
    QUERY_GROWTH,
    pretrained_proportional,
    rope_type_of,
    softmax_factor,
    theta_of,
    todays_spectrum,
    yarn_mscale,
)
from ropescale.geometry import Geometry
from ropescale.methods import FixedMethod, Method
from ropescale.spectrum import Spectrum

# Of rope_parameters: what says which elements rotate, and by which of an image's coordinates; and by how much queries
# grow with their position
KEPT_KEYS = (QUERY_GROWTH, "mrope_interleaved", "mrope_section", "partial_rotary_factor")


def limit_fields(config: PreTrainedConfig, length: int) -> dict[str, Any]:
    """The fields by which a config states how far it reaches."""
    fields: dict[str, Any] = {"max_position_embeddings": length}
    if getattr(config, "use_long_context", False):  # Zamba 2's class writes a maximum of its own over the stated one
        fields["use_long_context"] = False
    return fields


def spelling(part: Part, method: FixedMethod, geometry: Geometry) -> dict[str, Any]:
    """The fields that the config of this part gets for `method`, by field name.

    Raises:
        InvalidArgumentError: knobs that do not fit this geometry.
        UnsupportedModelError: a config that cannot state it.
    """
    config, row = part.config, family_of(part.config.model_type)
    if stated_already(part, method, geometry):
        return {"rope_parameters": copy.deepcopy(config.rope_parameters)}
    parameters = method.rope_parameters(geometry)
    if not isinstance(parameters, dict) or "rope_type" not in parameters:
        raise InvalidArgumentError(
            f"{method.name}: rope_parameters must return a dict with a rope_type, got {shortened(parameters)}; "
            f"leave it out of the method to have the spectrum stated pair by pair"
        )
    # Transformers looks for yarn's truncate beside the layer types, where it is not
    unread = part.label and ("truncate" in parameters or (parameters["rope_type"] == "yarn" and not reads_yarn()))
    longrope_only = row.longrope_only and parameters["rope_type"] not in ("default", "longrope")
    if unread or longrope_only:
        parameters = method.pairwise_rope_parameters(geometry)
    kept = kept_parameters(config)
    if kept.get("original_max_position_embeddings", geometry.original_length) != geometry.original_length:
        # what counts queries from there stays, and a type that counts turns from there would be another
        parameters = method.pairwise_rope_parameters(geometry)
    parameters |= kept
    if parameters["rope_type"] != "yarn" and (sharper := softmax_parameters(config, method, geometry)):
        if parameters["rope_type"] == "default":  # which has no softmax scale
            parameters = method.pair_by_pair(geometry) | kept
        parameters |= sharper
    if pretrained_proportional(config) and method.name == "linear" and not method.modified and method.factor != 1:
        # the one scaling that Transformers has for it
        parameters = {**config.rope_parameters, "factor": method.factor}
    if getattr(part.whole, "is_heterogeneous", False) and parameters["rope_type"] == "longrope":
        raise UnsupportedModelError(
            f"{config.model_type}: a method that Transformers has a type for is needed where heads differ by layer, "
            f"since it does not save longrope in such a config, got {method.name}; use linear"
        )
    fields: dict[str, Any] = {"rope_parameters": parameters}
    # A field of this name at the top level overrides the one in rope_parameters when the config is read again
    if hasattr(config, "original_max_position_embeddings"):
        fields["original_max_position_embeddings"] = geometry.original_length
    # Transformers' yarn and longrope read head_dim without looking whether it is None
    if getattr(config, "head_dim", 0) is None:
        fields["head_dim"] = geometry.head_dim
    if row.recomputing and parameters["rope_type"] != "default":
        factor = method.spectrum(geometry).attention_factor
        parameters |= {"short_mscale": factor, "long_mscale": factor}
        # its class copies this entry to the top level when it reads a config
        parameters["original_max_position_embeddings"] = geometry.original_length
        fields["original_max_position_embeddings"] = geometry.original_length
    return fields


def as_it_is(part: Part, target: int) -> dict[str, Any]:
    """The fields that the config of this part gets where its rotation depends on length and goes on as it is.

    Raises:
        AlreadyScaledError: it is counted from the maximum, which would be another.
    """
    config = part.config
    parameters = copy.deepcopy(config.rope_parameters)
    if target != config.max_position_embeddings:
        if rope_type_of(config) == "dynamic":
            require_fixed(part, left_by_factor=True)
        if not family_of(config.model_type).recomputing:  # Transformers works the factor out from the maximum
            parameters.setdefault("attention_factor", todays_spectrum(part)[1])
    return {"rope_parameters": parameters}


def long_list_alone(part: Part) -> dict[str, Any]:
    """The `rope_parameters` of a part of two lists, with the second of them at every length."""
    parameters: dict[str, Any] = copy.deepcopy(part.config.rope_parameters)
    parameters |= {
        "short_factor": list(parameters["long_factor"]),
        "attention_factor": todays_spectrum(part, beyond=True)[1],
    }
    if family_of(part.config.model_type).recomputing:
        parameters["short_mscale"] = parameters["long_mscale"]
    return parameters


@cache
def reads_yarn() -> bool:
    """Whether this Transformers reads a config again that states yarn for a layer type.

    Up to 5.8 it looks for the original length beside the layer types, where it is not.
    """
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    yarn = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "original_max_position_embeddings": 64}
    try:
        Gemma3TextConfig(
            max_position_embeddings=128, rope_parameters={"full_attention": yarn, "sliding_attention": sliding}
        )
    except KeyError:
        return False
    return True


def softmax_parameters(config: PreTrainedConfig, method: Method, geometry: Geometry) -> dict[str, Any]:
    """The entries that state the softmax scale of latent attention, beside a type that has none of its own.

    A base that is scaled has one, and so may the method (yarn's `mscale_all_dim`); one is multiplied with the other.

    Raises:
        InvalidArgumentError: a scale, and a factor of 1 to state it by.
    """
    if not hasattr(config, "kv_lora_rank"):
        return {}
    factor = getattr(method, "factor", None) or 1.0
    today = softmax_factor(config) if geometry.inv_freq else 1.0
    own = (yarn_mscale(factor, getattr(method, "mscale_all_dim", None) or 0.0)) ** 2
    if today * own == 1:
        return {}
    if not isinstance(method, FixedMethod):  # which states no factor of its own
        return {name: config.rope_parameters[name] for name in ("factor", "mscale_all_dim")}
    if factor == 1:
        raise InvalidArgumentError(
            f"{method.name}: factor must be above 1 to compose with a softmax scale (mscale_all_dim="
            f"{shortened(config.rope_parameters['mscale_all_dim'])}), which is stated by it, got 1; give a larger one"
        )
    return {"factor": factor, "mscale_all_dim": (math.sqrt(today * own) - 1) / (0.1 * math.log(factor))}


def stated_already(part: Part, method: FixedMethod, geometry: Geometry) -> bool:
    """Whether a base that is scaled already states the spectrum of `method`, whatever the maximum.

    Stated otherwise it would lose its last bits, which far positions multiply.
    """
    rope = part.config.rope_parameters
    # without these Transformers works a factor out from the maximum, which a patch writes
    fixed = {"longrope": "attention_factor", "proportional": "rope_theta"}.get(rope_type_of(part.config), "factor")
    if not geometry.inv_freq or rope.get(fixed) is None:
        return False
    spectrum, (inv_freq, attention_factor) = method.spectrum(geometry), todays_spectrum(part)
    return (
        isinstance(spectrum, Spectrum)
        and torch.equal(spectrum.inv_freq, inv_freq)
        and spectrum.attention_factor == attention_factor
    )


def late_spelling(part: Part, method: Method, geometry: Geometry) -> dict[str, Any]:
    """The fields that the config of this part gets for a method that Transformers cannot carry out, by field name."""
    config = part.config
    parameters = {"rope_type": LATE_TYPE, "rope_theta": theta_of(config), **kept_parameters(config)}
    if isinstance(method, FixedMethod):  # of fixed frequencies, beside what acts in attention
        fixed = spelling(part, method, geometry)["rope_parameters"]
        if softmax_factor(stating(config, fixed)) != 1:
            parameters |= {name: fixed[name] for name in ("factor", "mscale_all_dim")}
    else:
        parameters |= softmax_parameters(config, method, geometry)
    if family_of(config.model_type).recomputing:  # which reads them at every call of any type but the default one
        parameters |= {"short_mscale": 1.0, "long_mscale": 1.0}
        parameters["original_max_position_embeddings"] = geometry.original_length
    return {"rope_parameters": parameters}


def kept_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of `rope_parameters` that no method changes."""
    rope = config.rope_parameters
    kept = {name: copy.copy(rope[name]) for name in KEPT_KEYS if name in rope}
    if rope_type_of(config) == "proportional":  # which pairs rotate is stated by the frequencies
        kept.pop("partial_rotary_factor", None)
    # what scales queries by their position counts from the original length, whatever the type
    if QUERY_GROWTH in kept:
        stated = config.rope_parameters.get("original_max_position_embeddings")
        kept["original_max_position_embeddings"] = read_original_length(config)[0] if stated is None else stated
    return kept


def as_reloaded(part: Part, fields: dict[str, Any], method: FixedMethod, geometry: Geometry) -> Spectrum:
    """The spectrum of `method` as Transformers will compute it when this part's config has these fields.

    Stating a frequency as a quotient can cost its last bit. A patched model holds what its saved self will hold, so
    that both give the same logits.

    Raises:
        InvalidArgumentError: the method returns no spectrum of this geometry, or the fields state another one.
    """
    spectrum = method.spectrum(geometry)
    if not isinstance(spectrum, Spectrum) or len(spectrum.inv_freq) != geometry.pairs:
        shown = f"{len(spectrum.inv_freq)} pairs" if isinstance(spectrum, Spectrum) else type(spectrum).__name__
        raise InvalidArgumentError(
            f"{method.name}: spectrum must return a Spectrum of {geometry.pairs} pairs, got {shown}; "
            f"correct the method"
        )
    # shallow: only fields of its own are set, and the computation takes a copy
    saved = stating(part.config, fields["rope_parameters"])
    for name, value in fields.items():
        if name != "rope_parameters":
            setattr(saved, name, value)
    inv_freq, attention_factor = todays_spectrum(replace(part, config=saved))
    same = inv_freq.shape == spectrum.inv_freq.shape and torch.allclose(
        inv_freq, spectrum.inv_freq, rtol=1e-6, atol=1e-25
    )
    if not same or abs(attention_factor - spectrum.attention_factor) > 1e-6:
        raise InvalidArgumentError(
            f"{method.name}: rope_parameters must state the method's own spectrum, got "
            f"{shortened(fields['rope_parameters'])}; leave it out of the method to have the spectrum stated pair by "
            f"pair"
        )
    return Spectrum(torch.where(spectrum.inv_freq > 0, inv_freq, 0.0), attention_factor)
