"""SGLang. The rules were read in SGLang 0.5.23, and not run.

As those of `server.py`, but yarn multiplies its own attention factor by attn_factor, and does not read
attention_factor.
"""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ropescale.export.canonical import Canonical
from ropescale.export.engines.server import Server
from ropescale.export.reads import LATENT, NEIGHBOURS, NOTHING, THETA, WITHOUT_DIVISORS, YARN
from ropescale.export.stated import Stated
from ropescale.methods import YaRN


class SGLang(Server, name="sglang"):
    """SGLang, by its source."""

    title = "SGLang"
    summary = "a folder for SGLang, by its source: verify-export does not run it"
    verified = "0.5.23"
    program = "python -m sglang.launch_server --model-path {}"
    length_flag = "--context-length"
    overrides_flag = "--json-model-override-args"
    reads: ClassVar = {
        **dict.fromkeys(("beam", "dbrx", "deepseek_v4", "dots3_note_text", "exaone4", "exaone_moe"), NOTHING),
        **dict.fromkeys(("granitemoehybrid", "mimo_v2_flash", "qwen3_next", "zaya"), NOTHING),
        **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma4_text", "granitemoe", "granitemoeshared"), THETA),
        **dict.fromkeys(("hy_v3", "mixtral", "olmo", "persimmon", "phi", "stablelm", "starcoder2"), THETA),
        **dict.fromkeys(LATENT, YARN),
        **dict.fromkeys(NEIGHBOURS, WITHOUT_DIVISORS),
    }

    def state(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        stated = super().state(config, canonical)
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
