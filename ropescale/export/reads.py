"""Which rotations an engine's own class of a family reads.

Many classes take theta alone from a config, or theta from an entry of their own, or take every type for yarn: what
they do not read, they leave out without a word. So whatever is written for an engine is held against this page. The
classes were read in vLLM 0.32.0, SGLang 0.5.23 and MLX-LM 0.32.2; a family that is not named here reads all that its
engine does, or is run through the class of Transformers.
"""

from typing import Any

from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.rotation import Canonical, Rotation
from ropescale.methods import YaRN

RAISE = "raise the limit alone with method 'unscaled'"
NOTHING: frozenset[str] = frozenset()  # rotates by entries of its own, which say what pretraining left
THETA = frozenset({"default"})
LINEAR = frozenset({"default", "linear"})
YARN = frozenset({"default", "yarn"})
YARN_ALONE = frozenset({"yarn"})
WITHOUT_DIVISORS = frozenset({"default", "linear", "llama3", "yarn"})  # which are for halves of a head, not neighbours
LONGROPE = frozenset({"default", "longrope"})

# Latent attention of DeepSeek's kind, for which vLLM and SGLang rename every type but the default one to a yarn that
# reads mscale and mscale_all_dim, and neither attention_factor nor truncate
LATENT = ("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash")
# Families whose class in vLLM and SGLang rotates neighbours (is_neox_style=False)
NEIGHBOURS = ("axk2", "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "glm", "glm4", "hy_v4")

READ: dict[str, dict[str, frozenset[str]]] = {
    "vllm": {
        **dict.fromkeys(("dbrx", "deepseek_v4", "dots3_note_text", "mimo_v2_flash"), NOTHING),
        **dict.fromkeys(LATENT, YARN),
        **dict.fromkeys(NEIGHBOURS, WITHOUT_DIVISORS),
        "gpt_oss": YARN_ALONE,
    },
    "sglang": {
        **dict.fromkeys(("beam", "dbrx", "deepseek_v4", "dots3_note_text", "exaone4", "exaone_moe"), NOTHING),
        **dict.fromkeys(("granitemoehybrid", "mimo_v2_flash", "qwen3_next", "zaya"), NOTHING),
        **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma4_text", "granitemoe", "granitemoeshared"), THETA),
        **dict.fromkeys(("hy_v3", "mixtral", "olmo", "persimmon", "phi", "stablelm", "starcoder2"), THETA),
        **dict.fromkeys(LATENT, YARN),
        **dict.fromkeys(NEIGHBOURS, WITHOUT_DIVISORS),
    },
    "mlx": {
        **dict.fromkeys(("dbrx", "glm", "gpt_neox", "mimo_v2_flash"), NOTHING),
        **dict.fromkeys(("cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "gemma", "gemma2", "glm4"), THETA),
        **dict.fromkeys(("glm4_moe", "granitemoehybrid", "helium", "lfm2", "lfm2_moe"), THETA),
        **dict.fromkeys(("llama4_text", "minimax", "minimax_m2", "mixtral", "nanochat", "olmo", "olmo_hybrid"), THETA),
        **dict.fromkeys(("phi", "qwen2_moe", "qwen3_moe", "solar_open", "stablelm", "starcoder2"), THETA),
        **dict.fromkeys(("internlm3", "nemotron"), LINEAR),
        **dict.fromkeys(LATENT, WITHOUT_DIVISORS),
        **dict.fromkeys(("phi3", "phimoe"), LONGROPE),
        "ministral3": WITHOUT_DIVISORS,  # whose queries grow from the length that a scale of 1 would be stated by
        "deepseek_v2": YARN_ALONE,
        "hunyuan_v1_dense": frozenset({"default", "dynamic"}),  # theta, and an alpha
        "minicpm3": frozenset({"longrope"}),
    },
}


def require_read(engine: str, called: str, config: PreTrainedConfig, canonical: Canonical, told: Any) -> None:
    """Refuse what the engine's class of this family, or the config class that every engine reads it by, leaves out.

    Args:
        engine: as `export` takes it.
        called: the engine's name.
        config: of the extended model.
        canonical: what was to be told.
        told: the `rope_parameters` that were written for it.

    Raises:
        ExportError: a rotation that would not be the one that was meant.
    """
    family = config.model_type
    for rotation in canonical.rotations:
        label = rotation.part.label
        rope = told[label] if label else told
        rope_type, held = rope["rope_type"], READ.get(engine, {}).get(family)
        if rope_type == "longrope" and getattr(rotation.part.whole, "is_heterogeneous", False):
            nearest = "nearest that it holds exactly: by_parts or llama3 or ntk or yarn"
            raise ExportError(
                f"{family}: a rotation must have a type of its own to be exported where heads differ by layer, since "
                f"no config states divisors for each pair there, got {stated_as(rotation)}, which {called} does not "
                f"read; {RAISE if rotation.rope_type == 'proportional' else nearest}, or export to transformers"
            )
        if held is None or (rope_type in held and not knobs_left_out(engine, family, rotation, rope)):
            continue
        if not held and as_pretrained(rotation, canonical):
            continue
        raise ExportError(
            f"{family}: {called} must read a rotation to be told it, got {stated_as(rotation)} for a class there "
            f"{_reading(held)}; {_nearest(held)}, or export to transformers"
        )


def stated_as(rotation: Rotation) -> str:
    """A rotation in words."""
    factor = rotation.parameters.get("factor")
    return f"rope_type {rotation.rope_type!r}" + (f" with factor {factor:g}" if factor else "")


def as_pretrained(rotation: Rotation, canonical: Canonical) -> bool:
    """Whether nothing but the length was changed, and nothing is scaled."""
    label, record = rotation.part.label, canonical.record
    if rotation.rope_type != "default":
        return False
    if record is None:
        return True
    before: Any = record.before.get("rope_parameters", {})
    before = before.get(label, {}) if label else before
    return bool(before.get("rope_theta", rotation.theta) == rotation.theta)


def knobs_left_out(engine: str, family: str, rotation: Rotation, rope: dict[str, Any]) -> bool:
    """Whether a class that knows yarn does not know its knobs."""
    if rope["rope_type"] != "yarn" or engine not in ("sglang", "vllm"):
        return False
    if family in LATENT:
        return not rope.get("truncate", True)
    own = YaRN(factor=rope["factor"]).attention_factor_for(rotation.geometry)
    return family == "gpt_oss" and engine == "vllm" and abs(rotation.spectrum.attention_factor - own) > 1e-9


def _reading(held: frozenset[str]) -> str:
    if not held:
        return "that rotates by entries of its own, as in pretraining"
    return "that reads theta alone" if held == THETA else f"that reads rope_type {' and '.join(sorted(held))} alone"


def _nearest(held: frozenset[str]) -> str:
    if not held:
        return RAISE
    exact = {
        "default": "ntk",
        "dynamic": "its own alpha",
        "linear": "linear",
        "llama3": "by_parts",
        "longrope": "ntk_fixed",
        "yarn": "yarn without its knobs",
    }
    return "nearest that it holds exactly: " + " or ".join(exact[one] for one in sorted(held))
