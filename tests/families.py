"""Tiny random models of the supported families, built as a user's checkpoint would be."""

import hashlib
import inspect
import warnings
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ropescale import Method, get_method, list_methods
from ropescale.families import FAMILIES

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
NAMES = sorted(FAMILIES)
# The methods of fixed frequencies, and those that act when attention reads
FIXED = [name for name in list_methods() if issubclass(get_method(name), Method)]
LATE = [name for name in list_methods() if name not in FIXED]


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    """A tiny config of this family: two layers, 64 tokens of original length."""
    config_class = CONFIG_MAPPING[name]
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= set(getattr(config_class, "__dataclass_fields__", ()))
    facts = {key: value for key, value in TINY.items() if key in known}
    # config classes write into the dict they are given
    facts["rope_parameters"] = dict(TINY["rope_parameters"])
    return config_class(**{**facts, **changes})


def model_of(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model whose matrices are large enough that a wrong rotation shows in the logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


def family(name: str) -> PreTrainedModel:
    """The tiny random model of a family."""
    return model_of(config_of(name))


def logits(model: torch.nn.Module, length: int = 160) -> torch.Tensor:
    """[1, length, vocabulary] of a fixed prompt beyond the original length."""
    ids = torch.randint(3, 128, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), warnings.catch_warnings():
        return model(input_ids=ids).logits


# What the methods that have a required knob get in grids over the whole registry, for a head of `pairs` pairs
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
