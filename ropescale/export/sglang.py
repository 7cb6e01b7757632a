"""SGLang. The rules were read in SGLang 0.5.23, and not run.

As vLLM's (`vllm.py`), but yarn multiplies its own attention factor by attn_factor and does not read attention_factor.
"""

from typing import Any

from transformers import PreTrainedConfig

from ropescale.export.reads import LATENT
from ropescale.export.rotation import Canonical
from ropescale.export.stated import Stated
from ropescale.export.vllm import state_like
from ropescale.methods import YaRN


def state(config: PreTrainedConfig, canonical: Canonical) -> Stated:
    """What SGLang is told."""
    stated = state_like(config, canonical, engine="SGLang")
    for rotation in canonical.rotations:
        rope: Any = stated.fields["rope_parameters"]
        rope = rope[rotation.part.label] if rotation.part.label else rope
        if rope["rope_type"] != "yarn" or config.model_type in LATENT:
            continue
        for name in ("mscale", "mscale_all_dim"):  # read by other rules than Transformers'
            rope.pop(name, None)
        scale, theirs = rotation.spectrum.attention_factor, YaRN(factor=rope["factor"])
        rope.pop("attention_factor", None)
        if abs(scale - (own := theirs.attention_factor_for(rotation.geometry))) > 1e-9:
            rope |= {"attention_factor": scale, "attn_factor": scale / own}
    return stated
