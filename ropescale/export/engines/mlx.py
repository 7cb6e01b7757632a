"""MLX-LM. The rules were read in MLX-LM 0.32.2 and run with it on a CPU.

- It reads the text decoder of a model that sees images, without what sees them, and looks among that decoder's entries
  for what says whether the head is the embedding.
- It reads rope_theta and rope_scaling at the top level of config.json; only some of its models read rope_parameters.
- yarn ignores attention_factor and truncate, and reads mscale and mscale_all_dim, of which zero is a value and the
  default of the second.
- longrope ignores attention_factor and takes the long list at every length; its scale follows from
  max_position_embeddings and original_max_position_embeddings alone.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.canonical import Canonical, Rotation
from ropescale.export.engines.base import Engine, able
from ropescale.export.reads import LATENT, LINEAR, LONGROPE, NOTHING, THETA, WITHOUT_DIVISORS, YARN_ALONE
from ropescale.export.running import Prompt, Run
from ropescale.export.stated import Stated, by_mscale, fields_of, native_form
from ropescale.families.catalogue import family_of


class MLX(Engine, name="mlx"):
    """MLX-LM, on a Mac or a CPU."""

    title = "MLX-LM"
    summary = "a folder for MLX-LM"
    running = "the folder in MLX-LM (packages mlx-lm, and off a Mac mlx[cpu])"
    verified = "0.32.2"
    program = "mlx_lm.server --model {}"
    trial = "mlx_lm.chat --model {}"
    every_head = False
    every_part = False
    wholes = frozenset(
        {"gemma3", "gemma3n", "gemma4", "gemma4_unified", "llama4", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl"}
        | {"qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"}
    )
    reads: ClassVar = {
        **dict.fromkeys(("dbrx", "glm", "gpt_neox", "mimo_v2_flash"), NOTHING),
        **dict.fromkeys(("cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "gemma", "gemma2", "glm4"), THETA),
        **dict.fromkeys(("glm4_moe", "granitemoehybrid", "helium", "lfm2", "lfm2_moe"), THETA),
        **dict.fromkeys(("llama4_text", "minimax", "minimax_m2", "mixtral", "nanochat", "olmo", "olmo_hybrid"), THETA),
        **dict.fromkeys(
            ("phi", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "solar_open", "stablelm", "starcoder2"), THETA
        ),
        **dict.fromkeys(("internlm3", "nemotron"), LINEAR),
        **dict.fromkeys(LATENT, WITHOUT_DIVISORS),
        **dict.fromkeys(("phi3", "phimoe"), LONGROPE),
        "ministral3": WITHOUT_DIVISORS,  # whose queries grow from the length that a scale of 1 would be stated by
        "deepseek_v2": YARN_ALONE,
        "hunyuan_v1_dense": frozenset({"default", "dynamic"}),  # theta, and an alpha
        "minicpm3": frozenset({"longrope"}),
    }

    def state(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        main = canonical.main
        if main.part.label:
            raise ExportError(
                f"{config.model_type}: MLX-LM reads one rotation for all layers, got one for each layer type; export "
                f"to {able()}"
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
        return Stated(fields=fields, form=form, serves=main.target_length, of_whole=("tie_word_embeddings",))

    def run(self, path: Path, flags: Sequence[str], prompts: Sequence[Prompt], steps: int) -> list[Run]:
        """Token by token with its cache."""
        try:
            import mlx.core
            from mlx_lm.models.cache import make_prompt_cache
            from mlx_lm.utils import load_model
        except ImportError as error:
            raise ExportError(
                f"engine: 'mlx' needs the packages mlx and mlx-lm, got none installed ({error}); pip install mlx-lm, "
                f"and off a Mac mlx[cpu]"
            ) from error
        model, _ = load_model(path)
        model.set_dtype(mlx.core.float32)
        runs = []
        for prompt in prompts:
            ids, cache = list(prompt), make_prompt_cache(model)
            tokens, logprobs = [], []
            for _ in range(steps):
                logits = np.array(model(mlx.core.array([ids]), cache=cache)[0, -1].astype(mlx.core.float32))
                logprobs.append(torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy())
                tokens.append(int(logprobs[-1].argmax()))
                ids = [tokens[-1]]
            runs.append(Run(tokens=tokens, logprobs=np.stack(logprobs)))
        return runs


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
