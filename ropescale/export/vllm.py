"""vLLM. The rules were read in vLLM 0.32.0 and run with it.

- It reads default, linear, llama3 and yarn as Transformers does, the knobs of yarn included.
- It ignores the attention factor of longrope, and reads short_mscale and long_mscale instead.
- It multiplies max_position_embeddings by the factor of linear, so that one has to state the original length there.
- Its longrope rotates halves only: families that rotate neighbours cannot have one divisor per pair.
- Where original_max_position_embeddings is an entry of its own (Phi-3), longrope serves that length unless told.
- A tokenizer's model_max_length caps what it serves.
"""

from typing import Any

from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.rotation import Canonical, Rotation
from ropescale.export.stated import Stated, fields_of, native_form, states_original_length_on_top

# Families whose model in vLLM 0.32.0 rotates neighbours (is_neox_style=False)
NEIGHBOURS = frozenset(
    {
        "axk1",
        "axk2",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "deepseek_v3",
        "deepseek_v32",
        "ernie4_5",
        "ernie4_5_moe",
        "glm",
        "glm4",
    }
)


def state(config: PreTrainedConfig, canonical: Canonical) -> Stated:
    """What vLLM is told.

    Raises:
        ExportError: a rotation that vLLM cannot hold for this family.
    """
    return state_like(config, canonical, engine="vLLM")


def state_like(config: PreTrainedConfig, canonical: Canonical, *, engine: str) -> Stated:
    """The same for an engine with vLLM's rules."""
    main = canonical.main
    flat = not main.part.label
    parameters = [spelled(one, config, engine, flat=flat) for one in canonical.rotations]
    fields = fields_of(config, canonical, parameters)
    form, serves = native_form(main), main.target_length
    flags: tuple[str, ...] = ()
    if parameters[0]["rope_type"] == "linear":
        fields["max_position_embeddings"] = main.original_length
    if parameters[0]["rope_type"] == "longrope":
        form = "one divisor per pair (longrope with equal lists, short_mscale and long_mscale)"
        if states_original_length_on_top(config):
            serves = main.original_length
            flags = (("--max-model-len" if engine == "vLLM" else "--context-length") + f" {main.target_length}",)
    overrides = {name: fields[name] for name in ("rope_parameters", "max_position_embeddings")}
    return Stated(fields=fields, form=form, serves=serves, flags=flags, overrides=overrides)


def spelled(rotation: Rotation, config: PreTrainedConfig, engine: str, *, flat: bool) -> dict[str, Any]:
    """The rope parameters of one part.

    Raises:
        ExportError: a rotation that the engine cannot hold for this family.
    """
    scaled_length = rotation.original_length * rotation.parameters.get("factor", 1.0)
    if rotation.rope_type == "linear" and flat and scaled_length == rotation.target_length:
        return rotation.parameters
    if rotation.rope_type in ("default", "llama3", "yarn"):
        return rotation.parameters
    if config.model_type in NEIGHBOURS:
        raise ExportError(
            f"{config.model_type}: {engine} has divisors for each pair only where halves of a head rotate, got "
            f"rope_type {rotation.rope_type!r} for a family that rotates neighbours; nearest that it holds exactly: "
            f"yarn, by_parts, llama3 or ntk"
        )
    scale = rotation.spectrum.attention_factor
    return {**rotation.pairwise(), "short_mscale": scale, "long_mscale": scale}
