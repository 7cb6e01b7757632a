"""Tiny random models of the supported families, built as a user's checkpoint would be."""

import contextlib
import copy
import hashlib
import inspect
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Emu3ForCausalLM,
    MllamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

import ropescale
from ropescale import get_method, list_methods
from ropescale.errors import UnsupportedModelError
from ropescale.families.catalogue import PATCHED, family_of
from ropescale.families.modules import find_rotaries
from ropescale.families.parts import parts_of, text_of
from ropescale.methods import FixedMethod

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    # three families are published scaled; these are their facts before that
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    # Phi-3 states its original length at the top level
    "original_max_position_embeddings": 64,
}
# Multi-head latent attention states the sizes of its heads in parts
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_group": 1,
    "topk_group": 1,
    # one that chooses what attention reads
    "index_head_dim": 32,
    "index_n_heads": 2,
    "index_topk": 16,
}
STATE_SPACE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
MROPE: dict[str, Any] = {"rope_parameters": SECTIONS}
INTERLEAVED: dict[str, Any] = {"rope_parameters": {**SECTIONS, "mrope_interleaved": True}}
# One rotation for each layer type
BY_TYPE = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 48,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    },
}
NESTED = (
    "beam",
    "cohere_compass_text",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_unified_text",
    "lfm3",
    "gemma3_text",
    "laguna",
    "mellum",
    "mimo_v2_flash",
    "modernbert-decoder",
    "olmo3",
)
GEMMA4 = {
    **BY_TYPE,
    "global_head_dim": 32,  # of the layers that read the whole context
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
}
# What a family needs besides, where its own defaults are too large or leave a layer kind out
FACTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "hy_v4",
            "minicpm3",
        ),
        LATENT,
    ),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), LINEAR),
    **dict.fromkeys(NESTED, BY_TYPE),
    "mimo_v2_flash": {
        **BY_TYPE,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
        },
    },
    "bailing_hybrid": {
        **LATENT,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "num_mtp_layers": 0,
    },
    "bamba": {**STATE_SPACE, "attn_layer_indices": [1]},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},  # which nothing reads
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        **LATENT,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "mlp_layer_types": ["moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 8},
        "sliding_window": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
            "compress": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        **LATENT,
        "num_attention_heads": 4,
        "head_dim": 32,
        "layer_types": ["sliding_attention", "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 48,
        "shared_experts_intermediate_size": 32,
        "per_layer_config": {
            0: {
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 24,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "v_head_dim": 16,
            }
        },
        "rope_parameters": {
            "indexed_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    },
    "falcon_h1": {**STATE_SPACE, "mamba_d_ssm": 128},
    # its layers that read the whole context do not rotate; the window lets the others see beyond the original length
    "flint": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 256},
    "gemma3n_text": {
        **BY_TYPE,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
    },
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "granitemoehybrid": {
        **STATE_SPACE,
        "position_embedding_type": "rope",  # its default is none
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {
        **BY_TYPE,
        "num_hidden_layers": 3,
        "layer_types": ["conv", "sliding_attention", "full_attention"],
        "conv_L_cache": 3,
    },
    "ministral3": {
        "rope_parameters": {
            **TINY["rope_parameters"],
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "mllama_text_model": {"cross_attention_layers": [2]},  # none: text alone
    "longcat_flash": {
        **LATENT,
        "num_layers": 1,  # of two attentions
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "zero_expert_num": 2,
    },
    "moshi": {"ffn_dim": 96, "audio_vocab_size": 64, "sliding_window": 256},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
    "qwen4_exp_text": {
        **LINEAR,
        "layer_types": ["linear_attention", "indexed_attention"],
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "use_mem_rope": True,
        "mamba_d_state": 16,
        "n_mamba_heads": 8,
        "chunk_size": 16,
        "adapter_rank": 8,
        "num_key_value_heads": 4,
    },
    "zaya": {
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
        "sliding_window": 48,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "rope_parameters": {
            "hybrid": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "hybrid_sliding": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
        },
    },
    # pairs that turn by an image's time, height and width
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "qwen3_vl_moe_text": INTERLEAVED,
    "qwen3_vl_text": INTERLEAVED,
    "youtu": {**LATENT, "pad_token_id": None},  # Transformers zeroes the row of that token when it loads one
}
TEXT_CLASSES = {"emu3_text_model": Emu3ForCausalLM, "mllama_text_model": MllamaForCausalLM}
# The methods of fixed frequencies, and those that act when attention reads
FIXED = [name for name in list_methods() if issubclass(get_method(name), FixedMethod)]
# What Transformers has a type of its own for, and the families whose configs can state nothing else
NATIVE = ("abf", "by_parts", "linear", "llama3", "ntk", "unscaled", "yarn")
NATIVE_ONLY = ("dots3_note_text", "gemma4_text", "gemma4_unified_text")
LATE = [name for name in list_methods() if name not in FIXED]


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    """A tiny config of this family: two layers, 64 tokens of original length."""
    config_class = CONFIG_MAPPING[name]
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= set(getattr(config_class, "__dataclass_fields__", ()))
    facts = {key: value for key, value in {**TINY, **FACTS.get(name, {})}.items() if key in known}
    # config classes write into the dict they are given
    # what a class takes by other names than those of its fields
    facts |= {key: FACTS[name][key] for key in ("global_head_dim", "per_layer_config") if key in FACTS.get(name, {})}
    return config_class(**copy.deepcopy({**facts, **changes}))


def model_of(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model whose matrices are large enough that a wrong rotation shows in the logits."""
    torch.manual_seed(seed)
    if type(config) in AutoModelForCausalLM._model_mapping:
        model = AutoModelForCausalLM.from_config(config).eval()
    else:  # Transformers maps these from the config of the whole vision-language model
        model = TEXT_CLASSES[config.model_type](config).eval()
    randomise(model)
    return model


def randomise(model: PreTrainedModel) -> None:
    """Give it matrices that are large enough."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif name.endswith(".temp"):  # which Zaya's keys are multiplied by, zero before training
                parameter.fill_(1.0)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# Of Qwen's
PATCHES = {
    **VISION,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
IMAGE_TOKENS = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
# Family of the whole -> its text family, and the rest of its config
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"vision_config": VISION}),
    "gemma4": ("gemma4_text", {"vision_config": {**VISION, "head_dim": 16, "num_key_value_heads": 2}}),
    "gemma4_unified": ("gemma4_unified_text", {}),
    "llava": ("llama", {"vision_config": {"model_type": "clip_vision_model", **VISION}}),
    "qwen2_5_vl": (
        "qwen2_5_vl_text",
        {"vision_config": {**PATCHES, "window_size": 112, "fullatt_block_indexes": [0]}, **IMAGE_TOKENS},
    ),
    "qwen2_vl": (
        "qwen2_vl_text",
        {"vision_config": {**PATCHES, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, **IMAGE_TOKENS},
    ),
    "qwen3_5": ("qwen3_5_text", {"vision_config": PATCHES, **IMAGE_TOKENS}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"vision_config": PATCHES, **IMAGE_TOKENS}),
    "qwen3_vl": ("qwen3_vl_text", {"vision_config": {**PATCHES, "deepstack_visual_indexes": [0]}, **IMAGE_TOKENS}),
    "qwen3_vl_moe": (
        "qwen3_vl_moe_text",
        {"vision_config": {**PATCHES, "deepstack_visual_indexes": [0]}, **IMAGE_TOKENS},
    ),
}


def config_of_whole(name: str, **changes: Any) -> PreTrainedConfig:
    """A tiny config of a vision-language model, with these facts of its text."""
    text, rest = WHOLES[name]
    config = CONFIG_MAPPING[name](text_config=config_of(text, **changes).to_dict(), **copy.deepcopy(rest))
    for entry in ("out_hidden_size", "hidden_size" if name == "qwen2_vl" else ""):  # what images become tokens of
        if hasattr(config.vision_config, entry):
            setattr(config.vision_config, entry, config.text_config.hidden_size)
    return config


def model_of_whole(config: PreTrainedConfig) -> PreTrainedModel:
    """A random vision-language model."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    randomise(model)
    return model


def opened(folder: Path) -> PreTrainedModel:
    """A saved model as Transformers alone loads it."""
    model_type = AutoConfig.from_pretrained(folder).model_type
    return TEXT_CLASSES.get(model_type, AutoModelForCausalLM).from_pretrained(folder)


def family(name: str) -> PreTrainedModel:
    """The tiny random model of a family."""
    return model_of(config_of(name))


def rope_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The rope parameters of the layers that read the whole context."""
    return parts_of(text_of(config))[0].config.rope_parameters


def inv_freq_of(model: torch.nn.Module) -> torch.Tensor:
    """The live frequencies of those layers."""
    parts = parts_of(text_of(model.config))
    return getattr(find_rotaries(model, parts)[0].module, f"{parts[0].prefix}inv_freq")


def logits(model: torch.nn.Module, length: int = 160) -> torch.Tensor:
    """[1, length, vocabulary] of a fixed prompt beyond the original length."""
    ids = torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), warnings.catch_warnings():
        return model(input_ids=ids).logits


def runs(name: str) -> bool:
    """Whether this Transformers has a family, reads text with its tiny config, lets it be patched, and loads it saved.

    5.0 loads no Apertus, for one.
    """
    try:
        model = family(name)
        with ropescale.patched(model, "yarn", factor=4, layers="all"), tempfile.TemporaryDirectory() as folder:
            logits(model)
            model.save_pretrained(folder)
            opened(Path(folder))
        with contextlib.suppress(UnsupportedModelError), ropescale.patched(model, "linear", factor=4):
            logits(model)  # as it is patched by default, where its layers of the whole context rotate
    except Exception:  # whatever an old version's own code says
        return False
    return True


# The version that every family is written for: from it on one that does not run is a failure. Before it the grids
# leave out a family that the version lacks, whose tiny config it cannot build or load, or that is refused there by
# name; scripts/compat.py counts them.
EVERY_FAMILY = Version("5.23.0")
OLDER = Version(transformers.__version__) < EVERY_FAMILY
ALONE = sorted(name for name in PATCHED if family_of(name).alone)  # the others are within WHOLES
NAMES = ALONE
if OLDER:
    NAMES = [name for name in NAMES if name in CONFIG_MAPPING and runs(name)]


def wants(name: str) -> pytest.MarkDecorator:
    """A test of one family, left out where an older Transformers does not have it."""
    return pytest.mark.skipif(OLDER and name not in CONFIG_MAPPING, reason=f"this Transformers has no {name}")


def in_turn(names: Sequence[str], turn: int, of: int) -> list[Any]:
    """One name of every so many, the others as slow: for tests whose turns, or another test, take in the others."""
    return [
        pytest.param(name, marks=() if number % of == turn else pytest.mark.slow) for number, name in enumerate(names)
    ]


# What the methods that have a required knob get in grids over the whole registry, for a head of `pairs` pairs
def fixed_methods(name: str) -> list[str]:
    """The methods of fixed frequencies that a family's config can state."""
    return [method for method in FIXED if method in NATIVE or name not in NATIVE_ONLY]


def knobs_for(method: str, pairs: int = 8) -> dict[str, Any]:
    """The required knobs of a method, with values that change every spectrum."""
    return {
        "abf": {"theta": 5e5},
        "longrope": {"long_factor": [1 + 3 * pair / pairs for pair in range(pairs)]},
        "proportional": {"partial_rotary_factor": 0.5},
    }.get(method, {})


def fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """A hash of every entry of the state dict."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in model.state_dict().items()
    }
