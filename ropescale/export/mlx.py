"""MLX-LM. The rules were read in MLX-LM 0.32.2 and run with it on a CPU.

- It reads rope_theta and rope_scaling at the top level of config.json; only some of its models read rope_parameters.
- yarn ignores attention_factor and truncate, and reads mscale and mscale_all_dim, of which zero is a value and the
  default of the second.
- longrope ignores attention_factor and takes the long list at every length; its scale follows from
  max_position_embeddings and original_max_position_embeddings alone.
"""

import math
from typing import Any

from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.rotation import Canonical, Rotation
from ropescale.export.stated import Stated, by_mscale, fields_of, native_form
from ropescale.families.catalogue import family_of


def state(config: PreTrainedConfig, canonical: Canonical) -> Stated:
    """What MLX-LM is told.

    Raises:
        ExportError: a rotation that MLX-LM cannot hold.
    """
    main = canonical.main
    if main.part.label:
        raise ExportError(
            f"{config.model_type}: MLX-LM reads one rotation for all layers, got one for each layer type; export to "
            f"transformers or vllm"
        )
    parameters = spelled(main, config.model_type)
    fields = fields_of(config, canonical, [parameters])
    fields |= {"rope_theta": main.theta}
    form = native_form(main)
    if parameters["rope_type"] != "default":
        # the same in both places: Transformers would drop one that differs
        fields["rope_scaling"] = fields["rope_parameters"] = {**parameters, "type": parameters["rope_type"]}
    if parameters["rope_type"] == "longrope":
        form = "one divisor per pair (longrope)"
    return Stated(fields=fields, form=form, serves=main.target_length)


def spelled(rotation: Rotation, name: str) -> dict[str, Any]:
    """The rope parameters in the words of MLX-LM.

    Raises:
        ExportError: one divisor per pair with an attention factor that does not follow from the lengths.
    """
    scale, rope = rotation.spectrum.attention_factor, rotation.parameters
    if rotation.rope_type in ("default", "dynamic", "linear", "llama3"):  # a fixed dynamic is HunYuan's, by alpha
        return rope
    if rotation.rope_type == "yarn" and rope.get("truncate", True):
        return by_mscale(rotation)
    pairwise = rotation.pairwise()
    if family_of(name).recomputing:  # whose class reads no config without them
        pairwise |= {"short_mscale": scale, "long_mscale": scale}
    if scale == 1:
        # a scale of sqrt(1 + ln(maximum / original) / ln(original)) is 1 where both lengths are the same
        return {**pairwise, "original_max_position_embeddings": rotation.target_length}
    theirs = math.sqrt(1 + math.log(rotation.factor) / math.log(rotation.original_length))
    if abs(scale - theirs) > 1e-6:
        raise ExportError(
            f"{name}: MLX-LM has one divisor per pair with an attention factor of 1 or "
            f"sqrt(1 + ln(factor) / ln(original length)) ({theirs:.6g}), got {scale:.6g}; nearest that it holds "
            f"exactly: yarn with its default ramp, or by_parts"
        )
    return pairwise
