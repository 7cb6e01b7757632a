"""What published checkpoints say about positions, entry for entry as their config.json has it, at a tiny size.

Only what a rotation depends on is theirs: its fields, its lengths, which layers look at windows. Lists of one value
per pair are shortened to the pairs of a tiny head.
"""

import copy
from typing import Any

import torch
from families import FACTS, LATENT, STATE_SPACE, TINY, VISION, model_of, randomise
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
DEEPSEEK = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 4096,
}
SHORT, LONG = (
    [1.05, 1.05, 1.05, 1.1, 1.15, 1.55, 2.0, 2.7],
    [1.03, 1.08, 1.6, 4.9, 16.9, 38.4, 57.3, 64.7],
)
MINICPM = [1.059, 1.26, 2.094, 4.938, 10.475, 14.855, 16.462, 16.941]  # in both of its lists
TYPES = ["sliding_attention", "full_attention"]

# Checkpoint -> its config
SHAPES: dict[str, dict[str, Any]] = {
    "yi 6b": {"model_type": "llama", "max_position_embeddings": 4096, "rope_theta": 5000000.0, "rope_scaling": None},
    "code llama 7b": {"model_type": "llama", "max_position_embeddings": 16384, "rope_theta": 1000000},
    "longchat 7b v1.5": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "max_sequence_length": 32768,
        "rope_scaling": {"factor": 8.0, "type": "linear"},
    },
    "longchat 7b": {
        "model_type": "llama",
        "max_position_embeddings": 2048,
        "max_sequence_length": 16384,
        "rope_condense_ratio": 8,
    },
    "llama 3.1": {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA_31,
    },
    "llama 3.2": {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA_31, "factor": 32.0},
    },
    "qwen2.5 with yarn": {
        "model_type": "qwen2",
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        "sliding_window": 131072,
        "use_sliding_window": False,
    },
    "qwen3 moe": {
        "model_type": "qwen3_moe",
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "qwen3 moe with yarn": {
        "model_type": "qwen3_moe",
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "qwen3.5 text": {
        "model_type": "qwen3_5_text",
        "max_position_embeddings": 262144,
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 32,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
    },
    "glm-4 0414": {
        "model_type": "glm4",
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
    "granite 4": {
        "model_type": "granitemoehybrid",
        "max_position_embeddings": 131072,
        "rope_theta": 10000000,
        "rope_scaling": None,
        "position_embedding_type": "rope",
        "layer_types": ["attention", "attention"],
    },
    "minicpm 3": {
        "model_type": "minicpm3",
        "max_position_embeddings": 32768,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": MINICPM,
            "short_factor": MINICPM,
            "original_max_position_embeddings": 32768,
        },
    },
    "phi-3 mini 128k": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        "sliding_window": 262144,
    },
    "phi-3.5 moe": {
        "model_type": "phimoe",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "short_mscale": 1.243163121016122,
            "long_mscale": 1.243163121016122,
            "original_max_position_embeddings": 4096,
        },
        "sliding_window": 131072,
    },
    "olmo 3": {
        "model_type": "olmo3",
        "max_position_embeddings": 65536,
        "rope_theta": 500000,
        "layer_types": TYPES,
        "sliding_window": 4096,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "max_position_embeddings": 131072,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "layer_types": TYPES,
        "sliding_window": 128,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
    },
    "ministral 3": {
        "model_type": "ministral3",
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16384,
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
    },
    "deepseek v2": {
        "model_type": "deepseek_v2",
        "max_position_embeddings": 163840,
        "rope_theta": 10000,
        "rope_scaling": {**DEEPSEEK, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek v3": {
        "model_type": "deepseek_v3",
        "max_position_embeddings": 163840,
        "rope_theta": 10000,
        "rope_scaling": {**DEEPSEEK, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "kimi k2": {
        "model_type": "deepseek_v3",
        "max_position_embeddings": 131072,
        "rope_theta": 50000.0,
        "rope_scaling": {
            **DEEPSEEK,
            "factor": 32.0,
            "beta_fast": 1.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    "hunyuan 7b": {
        "model_type": "hunyuan_v1_dense",
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "alpha": 1000.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "type": "dynamic",
        },
    },
    "gemma 3 4b": {
        "model_type": "gemma3_text",  # within a vision-language model
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "layer_types": TYPES,
        "sliding_window": 1024,
    },
    "internlm 2.5 as llama": {
        "model_type": "llama",
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
}
SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3"), LATENT),
    "granitemoehybrid": STATE_SPACE,
    "qwen3_5_text": FACTS["qwen3_5_text"],
}
ABOUT_POSITIONS = ("max_position_embeddings", "original_max_position_embeddings", "rope_parameters")


def sized(published: dict[str, Any]) -> dict[str, Any]:
    """A published config at a tiny size."""
    tiny = {name: value for name, value in TINY.items() if name not in ABOUT_POSITIONS}
    return copy.deepcopy({**tiny, **SIZES.get(published["model_type"], {}), **published})


def shape(name: str) -> PreTrainedConfig:
    """A published config as Transformers reads it."""
    raw = sized(SHAPES[name])
    return CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def model_type_of(name: str) -> str:
    """The family of a published checkpoint's text."""
    return str(SHAPES[name]["model_type"])


def published(name: str) -> PreTrainedModel:
    """A random model of a published shape; Gemma 3 with its tower that looks at images."""
    if name != "gemma 3 4b":
        return model_of(shape(name))
    vision = {**VISION, "model_type": "siglip_vision_model"}
    config = CONFIG_MAPPING["gemma3"].from_dict({"text_config": sized(SHAPES[name]), "vision_config": vision})
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    randomise(model)
    return model
