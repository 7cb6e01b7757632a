"""Configs as they are published, and what Transformers makes of their entries."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ropescale
from ropescale.families.parts import text_of

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 4096,
}


LLAMA = {**SMALL, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


QWEN3 = {**SMALL, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "rope_theta": 1e6}


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def written(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({name: one for name, one in values.items() if one is not None}))
    return folder


def measured(folder: Path) -> tuple[torch.Tensor, float, int]:
    """The frequencies, the attention factor and the length of the model that Transformers builds."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    (rotary,) = [one for _, one in model.named_modules() if hasattr(one, "inv_freq")]
    return rotary.inv_freq, rotary.attention_scaling, text_of(model.config).max_position_embeddings


def series(theta: float = 1e4, *, factor: float = 1.0, elements: int = 16) -> torch.Tensor:
    return torch.tensor([theta ** (-2 * i / elements) / factor for i in range(elements // 2)])


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry that is not read: what Transformers does all the same, and what it does after the remedy."""

    config: dict[str, Any]
    where: str
    says: str  # what the remedy must name
    cure: dict[str, Any]
    today: torch.Tensor = field(default_factory=series)
    meant: torch.Tensor = field(default_factory=series)
    factors: tuple[float, float] = (1.0, 1.0)  # attention factors, today and meant
    lengths: tuple[int, int] = (4096, 4096)


def theta(base: dict[str, Any], name: str) -> Entry:
    return Entry(
        config={**base, name: 50000},
        where=name,
        says="write rope_theta 50000",
        cure={"rope_theta": 50000, name: None},
        meant=series(5e4),
    )


def yarn(block: dict[str, Any], where: str, factors: tuple[float, float], says: str, cure: dict[str, Any]) -> Entry:
    # yarn's own ramp, which no attention factor changes
    ramp = ropescale.get_method("yarn")(factor=4)
    slowed = ramp.spectrum(ropescale.Geometry(rotary_dim=16, theta=1e6, original_length=1024)).inv_freq
    scaling = {name: value for name, value in {**YARN, **block, **cure}.items() if value is not None}
    return Entry(
        config={**QWEN3, "rope_scaling": {**YARN, **block}},
        where=f"rope_scaling.{where}",
        says=says,
        cure={"rope_scaling": scaling},
        today=slowed,
        meant=slowed,
        factors=factors,
    )
