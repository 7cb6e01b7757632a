"""Adapters of every kind: what the tests of merging share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ropescale.checkpoints import resolve

TINY = Path(resolve("tiny"))


COMMON: dict[str, Any] = {"task_type": "CAUSAL_LM"}


LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], **COMMON}


BOTH = ["embed_tokens", "lm_head"]


def lora(*more: str, **given: Any) -> Callable[[], peft.PeftConfig]:
    return lambda: LoraConfig(**{**LORA, "target_modules": [*LORA["target_modules"], *more], **given})


def adapter(folder: Path, base: Path | str, config: peft.PeftConfig, *, rows: int = 0, random: float = 0.03) -> Any:
    """The adapted model, whose adapter PEFT has saved in a folder."""
    model = AutoModelForCausalLM.from_pretrained(resolve(str(base)))
    torch.manual_seed(0)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for one in wrapped.parameters():
            if one.requires_grad:
                one.add_(torch.randn_like(one) * random)
    wrapped.save_pretrained(folder)
    return wrapped


# ---- keys and values


def changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
