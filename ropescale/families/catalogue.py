"""Which families of Transformers are patched, and what each does otherwise than most: one row a family.

A patched family has one rotary module that reads its frequencies from buffers, one for all layers or one for each
layer type, and its facts from `config.rope_parameters`, flat or by layer type. tests/injection/test_patching.py
patches, undoes, saves and reloads every one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Why families are refused
TABLE = (
    "positions from a table of sines and cosines that is built from n_positions when the model is loaded, and no "
    "rope_parameters that could state another"
)
THETAS = "a rotation for every theta of layer_rope_theta, each with a config of its own"
SEVERAL = "a patcher, an encoder and a decoder beside the model itself, each with a rotation and lengths of its own"
WHOLE_HEAD = (
    "a class that runs only with a scaling stated: without one it builds cosines for a whole head, and rotates a "
    "part of it"
)
LATEST = (
    "attention over the latest tokens alone, which a longer context leaves as it is, and no type but the default one"
)
SAVED_TABLE = (
    "positions from a table of sines and cosines that is built from max_position_embeddings and saved with the weights"
)


def always(config: Any, number: int) -> bool:
    """Layers that read the whole context rotate as those of a window do."""
    return True


def never(config: Any, number: int) -> bool:
    """They have no positions."""
    return False


def rotated_last(config: Any) -> bool:
    """Nothing is done to queries and keys between their rotation and their product."""
    return False


def normalised_last(config: Any) -> bool:
    """Both are normalised after they were rotated."""
    return True


def normalised_by_choice(config: Any) -> bool:
    """Both are, where the config says so."""
    return bool(config.use_qk_norm)


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
    alone: bool = True  # Transformers has a language model of this text decoder without the vision beside it
    # whether queries and keys are normalised after their rotation, which divides out what multiplies cos and sin
    divides_factor: Callable[[Any], bool] = rotated_last
    # the entry that says whether layers without rotation multiply queries by position, and those that say by what
    own_temperature: tuple[str, ...] = ()
    # within a vision-language model it reads what stands for an image as it reads text: a token after another, each
    # at one position, and never what comes later
    reads_images_as_text: bool = False
    # the vision-language model that holds it, which Transformers lists among causal language models, though the text
    # decoder alone does not find its weights among those of the whole
    whole: str = ""

    @property
    def windows_alone(self) -> bool:
        """Whether layers of a window rotate and those that read the whole context mostly have no positions."""
        return self.far_layers_rotate is not always


# Patched, and without a quirk: rows of a name alone
# fmt: off
PLAIN = (
    "apertus", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "bamba", "beam", "bitnet", "cohere",
    "cohere_compass_text", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "diffllama",
    "doge", "dots1", "dots3_note_text", "ernie4_5", "ernie4_5_moe", "falcon_h1", "flex_olmo", "gemma", "gemma2",
    "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite",
    "glm_moe_dsa", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "helium", "hrm_text", "hy_v3", "hy_v4", "hyperclovax",
    "internlm3", "iquestcoder", "jais2", "jetmoe", "laguna", "lfm2", "lfm2_moe", "lfm3", "llama", "longcat_flash",
    "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3",
    "mistral", "mixtral", "mllama_text_model", "modernbert-decoder", "moshi", "nemotron", "olmo", "olmo2",
    "olmo3", "olmoe", "persimmon", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text",
    "qwen3_moe", "qwen3_next", "qwen4_exp_text", "seed_oss", "solar_open", "stablelm", "starcoder2", "vaultgemma",
    "youtu", "zamba2", "zaya",
)
# fmt: on
ROWS = (
    *map(Family, PLAIN),
    Family("afmoe", far_layers_rotate=never),
    Family("blt", refused=SEVERAL),
    Family("codegen", refused=TABLE),
    Family("cohere2", far_layers_rotate=never),
    Family("cohere2_moe", far_layers_rotate=of_dense_prefix),
    Family("emu3_text_model", whole="emu3"),
    Family("exaone4", far_layers_rotate=without_window),
    Family("exaone_moe", far_layers_rotate=without_window),
    Family("falcon", built_anyway=True),
    Family("flint", far_layers_rotate=never),
    Family("gptj", refused=TABLE),
    Family("granite", names_positions=True),
    Family("granite_swa", refused=THETAS),
    Family("granitemoe", names_positions=True),
    Family("granitemoe_swa", refused=THETAS),
    Family("granitemoehybrid", names_positions=True),
    Family("granitemoeshared", names_positions=True),
    Family("hunyuan_v1_dense", by_alpha=True, divides_factor=normalised_last),
    Family("hunyuan_v1_moe", by_alpha=True, divides_factor=normalised_last),
    Family("kolibri1", far_layers_rotate=without_window),
    Family(
        "llama4_text",
        built_anyway=True,
        divides_factor=normalised_by_choice,
        own_temperature=("attn_temperature_tuning", "attn_scale", "floor_scale"),
        reads_images_as_text=True,
    ),
    Family("mistral4", refused=WHOLE_HEAD),
    Family("nanochat", divides_factor=normalised_last),
    Family("olmo_hybrid", published_without=True),
    Family("phi3", longrope_only=True),
    Family("phi4_multimodal", longrope_only=True),
    Family("phimoe", recomputing=True),
    Family("qwen2_5_vl_text", alone=False),
    Family("qwen2_vl_text", alone=False),
    Family("qwen3_vl_moe_text", alone=False),
    Family("qwen3_vl_text", alone=False),
    Family("recurrent_gemma", refused=LATEST),
    Family("roformer", refused=SAVED_TABLE),
    Family("smollm3", built_anyway=True),
)
CATALOGUE = {row.model_type: row for row in ROWS}
PATCHED = frozenset(row.model_type for row in ROWS if not row.refused)
LOADED_WHOLE = frozenset(row.whole for row in ROWS if row.whole)


def family_of(model_type: str) -> Family:
    """The row of a model type; one without quirks where it is in no row."""
    return CATALOGUE.get(model_type, Family(model_type))
