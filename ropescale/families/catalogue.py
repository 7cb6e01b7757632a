"""Which families of Transformers are patched, and what each does otherwise than most: one row a family.

A patched family has one rotary module that reads its frequencies from buffers, one for all layers or one for each
layer type, and its facts from `config.rope_parameters`, flat or by layer type. tests/injection/test_patching.py
patches, undoes, saves and reloads every one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TABLE = (
    "positions from a table of sines and cosines that is built from n_positions when the model is loaded, and no "
    "rope_parameters that could state another"
)
THETAS = "a rotation for every theta of layer_rope_theta, each with a config of its own"


def always(config: Any, number: int) -> bool:
    """Layers that read the whole context rotate as those of a window do."""
    return True


def never(config: Any, number: int) -> bool:
    """They have no positions."""
    return False


def without_window(config: Any, number: int) -> bool:
    """They rotate in models that have no window at all."""
    return getattr(config, "sliding_window", None) is None


def of_dense_prefix(config: Any, number: int) -> bool:
    """They rotate among the dense layers at the beginning."""
    return bool(config.mlp_layer_types[number] == "dense" and config.prefix_dense_sliding_window_pattern == 1)


@dataclass(frozen=True)
class Family:
    """One family: patched or refused, and its quirks."""

    model_type: str  # of the text decoder's config
    refused: str = ""  # what it has that is not patched; empty where it is patched
    # whether a layer that reads the whole context rotates, by the config and the number of the layer
    far_layers_rotate: Callable[[Any, int], bool] = always
    published_without: bool = False  # released checkpoints state no rotation, and then have none
    built_anyway: bool = False  # a rotary module is built also where no layer rotates
    names_positions: bool = False  # `position_embedding_type` says whether layers rotate
    by_alpha: bool = False  # "dynamic" with an alpha is one theta, of pretraining: theta x alpha^(d / (d - 2)), fixed
    # yarn is renamed to longrope and every other type refused; `admit_late` makes it let that of ropescale pass
    longrope_only: bool = False
    # frequencies are worked out at every call, and the attention factor is taken from two entries of its own
    recomputing: bool = False
    # the vision-language model that holds it, which Transformers lists among causal language models, though the text
    # decoder alone does not find its weights among those of the whole
    whole: str = ""

    @property
    def windows_alone(self) -> bool:
        """Whether layers of a window rotate and those that read the whole context mostly have no positions."""
        return self.far_layers_rotate is not always


ROWS = (
    Family("afmoe", far_layers_rotate=never),
    Family("apertus"),
    Family("arcee"),
    Family("aria_text"),
    Family("axk1"),
    Family("axk2"),
    Family("bailing_hybrid"),
    Family("bamba"),
    Family("beam"),
    Family("bitnet"),
    Family(
        "blt",
        refused="a patcher, an encoder and a decoder beside the model itself, each with a rotation and lengths of its "
        "own",
    ),
    Family("codegen", refused=TABLE),
    Family("cohere"),
    Family("cohere2", far_layers_rotate=never),
    Family("cohere2_moe", far_layers_rotate=of_dense_prefix),
    Family("cohere_compass_text"),
    Family("cwm"),
    Family("dbrx"),
    Family("deepseek_v2"),
    Family("deepseek_v3"),
    Family("deepseek_v32"),
    Family("deepseek_v4"),
    Family("diffllama"),
    Family("doge"),
    Family("dots1"),
    Family("dots3_note_text"),
    Family("emu3_text_model", whole="emu3"),
    Family("ernie4_5"),
    Family("ernie4_5_moe"),
    Family("exaone4", far_layers_rotate=without_window),
    Family("exaone_moe", far_layers_rotate=without_window),
    Family("falcon", built_anyway=True),
    Family("falcon_h1"),
    Family("flex_olmo"),
    Family("flint", far_layers_rotate=never),
    Family("gemma"),
    Family("gemma2"),
    Family("gemma3_text"),
    Family("gemma3n_text"),
    Family("gemma4_text"),
    Family("gemma4_unified_text"),
    Family("glm"),
    Family("glm4"),
    Family("glm4_moe"),
    Family("glm4_moe_lite"),
    Family("glm_moe_dsa"),
    Family("gpt_neox"),
    Family("gpt_neox_japanese"),
    Family("gpt_oss"),
    Family("gptj", refused=TABLE),
    Family("granite", names_positions=True),
    Family("granite_swa", refused=THETAS),
    Family("granitemoe", names_positions=True),
    Family("granitemoe_swa", refused=THETAS),
    Family("granitemoehybrid", names_positions=True),
    Family("granitemoeshared", names_positions=True),
    Family("helium"),
    Family("hrm_text"),
    Family("hunyuan_v1_dense", by_alpha=True),
    Family("hunyuan_v1_moe", by_alpha=True),
    Family("hy_v3"),
    Family("hy_v4"),
    Family("hyperclovax"),
    Family("internlm3"),
    Family("iquestcoder"),
    Family("jais2"),
    Family("jetmoe"),
    Family("kolibri1", far_layers_rotate=without_window),
    Family("laguna"),
    Family("lfm2"),
    Family("lfm2_moe"),
    Family("lfm3"),
    Family("llama"),
    Family("llama4_text", built_anyway=True),
    Family("longcat_flash"),
    Family("mellum"),
    Family("mimo_v2_flash"),
    Family("minicpm3"),
    Family("minimax"),
    Family("minimax_m2"),
    Family("minimax_m3_vl_text"),
    Family("ministral"),
    Family("ministral3"),
    Family("mistral"),
    Family(
        "mistral4",
        refused="a class that runs only with a scaling stated: without one it builds cosines for a whole head, "
        "and rotates a part of it",
    ),
    Family("mixtral"),
    Family("mllama_text_model"),
    Family("modernbert-decoder"),
    Family("moshi"),
    Family("nanochat"),
    Family("nemotron"),
    Family("olmo"),
    Family("olmo2"),
    Family("olmo3"),
    Family("olmo_hybrid", published_without=True),
    Family("olmoe"),
    Family("persimmon"),
    Family("phi"),
    Family("phi3", longrope_only=True),
    Family("phi4_multimodal", longrope_only=True),
    Family("phimoe", recomputing=True),
    Family("qwen2"),
    Family("qwen2_moe"),
    Family("qwen3"),
    Family("qwen3_5_moe_text"),
    Family("qwen3_5_text"),
    Family("qwen3_moe"),
    Family("qwen3_next"),
    Family("qwen4_exp_text"),
    Family(
        "recurrent_gemma",
        refused="attention over the latest tokens alone, which a longer context leaves as it is, and no type "
        "but the default one",
    ),
    Family(
        "roformer",
        refused="positions from a table of sines and cosines that is built from max_position_embeddings and "
        "saved with the weights",
    ),
    Family("seed_oss"),
    Family("smollm3", built_anyway=True),
    Family("solar_open"),
    Family("stablelm"),
    Family("starcoder2"),
    Family("vaultgemma"),
    Family("youtu"),
    Family("zamba2"),
    Family("zaya"),
)
CATALOGUE = {row.model_type: row for row in ROWS}
PATCHED = frozenset(row.model_type for row in ROWS if not row.refused)
LOADED_WHOLE = frozenset(row.whole for row in ROWS if row.whole)


def family_of(model_type: str) -> Family:
    """The row of a model type; one without quirks where it is in no row."""
    return CATALOGUE.get(model_type, Family(model_type))
