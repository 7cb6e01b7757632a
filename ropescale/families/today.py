"""What Transformers rotates the layers of a config by today: its type, theta, head, spectrum and softmax scale."""

import copy
import math

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ropescale.checks import as_float, is_whole
from ropescale.errors import UnsupportedModelError, shortened
from ropescale.families.catalogue import family_of
from ropescale.families.parts import Part, stating
from ropescale.spectrum import theta_inv_freq

# Names of types that other code has, or had, for one of Transformers
RENAMED = {"deepseek_yarn": "yarn", "mrope": "default", "su": "longrope"}
# Of rope_parameters: by how much queries grow with their position
QUERY_GROWTH = "llama_4_scaling_beta"


def rope_type_of(config: PreTrainedConfig) -> str:
    """The native type of a flat config; one that names none is as pretrained."""
    rope_type: str = config.rope_parameters.get("rope_type", "default")
    return rope_type


def depends_on_length(config: PreTrainedConfig) -> bool:
    """Whether Transformers rotates the layers of this part otherwise in longer texts."""
    rope = config.rope_parameters
    if by_alpha(config):
        return False
    switching = rope.get("short_factor") != rope.get("long_factor")
    if family_of(config.model_type).recomputing:
        switching |= rope.get("short_mscale") != rope.get("long_mscale")
    return rope_type_of(config) == "dynamic" or (rope_type_of(config) == "longrope" and switching)


def length_of_switch(part: Part) -> int:
    """The tokens within which layers of this part rotate by the first of two lists; 0 where there are no two."""
    if rope_type_of(part.config) != "longrope" or not depends_on_length(part.config):
        return 0
    # Transformers writes it into every config of this type; what it computes a spectrum from is told the same
    stated = part.config.rope_parameters.get("original_max_position_embeddings")
    if is_whole(stated, 1):
        return int(stated)
    raise UnsupportedModelError(
        f"{part.config.model_type}: original_max_position_embeddings must be a whole number of tokens, beside two "
        f"lists of which one is for texts within it, got {shortened(stated)}; repair the config"
    )


def by_alpha(config: PreTrainedConfig) -> bool:
    """Whether this part states its pretrained theta by an alpha, which Transformers' type of that name knows not."""
    rope = config.rope_parameters
    return (
        family_of(config.model_type).by_alpha and rope_type_of(config) == "dynamic" and as_float(rope.get("alpha")) > 0
    )


def theta_of(config: PreTrainedConfig) -> float:
    """The base of the series of frequencies that this part was pretrained with."""
    theta = float(config.rope_parameters["rope_theta"])
    if not by_alpha(config):
        return theta
    dim = head_dim_of(config)
    return float(theta * config.rope_parameters["alpha"] ** (dim / (dim - 2)))


def pretrained_proportional(config: PreTrainedConfig) -> bool:
    """Whether this part was pretrained with pairs that do not rotate (p-RoPE, as in Gemma 4), and is not scaled."""
    return rope_type_of(config) == "proportional" and config.rope_parameters.get("factor") in (None, 1)


def head_dim_of(config: PreTrainedConfig) -> int:
    """Elements of one attention head, which many configs leave to be worked out.

    Raises:
        UnsupportedModelError: the config states neither.
    """
    try:
        size = getattr(config, "head_dim", None)
        if not size and config.num_attention_heads:
            size = config.hidden_size // config.num_attention_heads
        if size:
            float(size)  # which numbers of hundreds of digits are too large for
            return int(size)
    except Exception as error:  # numbers that are none, and what a config raises for an entry that differs by layer
        raise UnsupportedModelError(
            f"{config.model_type}: head_dim must be one whole number for layers that share a rotation, got "
            f"{type(error).__name__}: {shortened(str(error))}; repair the config"
        ) from error
    raise UnsupportedModelError(
        f"{config.model_type}: num_attention_heads must be at least 1, got {config.num_attention_heads!r}; "
        f"repair the config"
    )


def todays_spectrum(part: Part, *, beyond: bool = False) -> tuple[Tensor, float]:
    """The inverse frequencies [pairs] and the attention factor that Transformers gives these layers.

    Of two lists those of the first; `beyond` its length, of the second.

    Raises:
        UnsupportedModelError: rope_parameters that Transformers cannot compute from.
    """
    config = part.config
    rope, rope_type = config.rope_parameters, rope_type_of(config)
    if rope_type == "default" or by_alpha(config):
        rotary_dim = int(head_dim_of(config) * rope.get("partial_rotary_factor", 1.0))
        return theta_inv_freq(theta_of(config), rotary_dim), 1.0
    try:
        # of a copy, because these functions write what is missing into the config
        stated = copy.deepcopy(stating(config, part.in_whole(rope, part.whole.rope_parameters)))
        longer = {"seq_len": length_of_switch(part) + 1} if beyond else {}
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](stated, layer_type=part.label or None, **longer)
        if family_of(config.model_type).recomputing:  # whatever the type is, which has a factor of its own
            attention_factor = rope["long_mscale" if beyond else "short_mscale"]
        return inv_freq, float(attention_factor)
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{config.model_type}: rope_parameters must be complete for rope_type {rope_type!r}, got "
            f"{shortened(rope)} ({type(error).__name__}: {error}); repair the config"
        ) from error


def softmax_factor(config: PreTrainedConfig) -> float:
    """What latent attention multiplies into its softmax besides: 1 where the config of this part asks for nothing.

    YaRN's mscale, squared because queries and keys both get it. (DeepSeek-V2, arXiv:2405.04434, appendix)
    """
    rope = config.rope_parameters
    scale = rope.get("mscale_all_dim")
    if not hasattr(config, "kv_lora_rank") or rope_type_of(config) == "default" or not scale:
        return 1.0
    return yarn_mscale(as_float(rope.get("factor")), as_float(scale)) ** 2


def yarn_mscale(factor: float, scale: float) -> float:
    """YaRN's attention factor, 0.1 scale ln(factor) + 1."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
