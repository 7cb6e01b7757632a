"""Tiny random models with heads of every kind."""

from pathlib import Path
from typing import Any

import torch
from families import config_of, randomise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

KINDS: dict[str, Any] = {
    "decoder": AutoModel,
    "answers": AutoModelForQuestionAnswering,
    "sequences": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
}
LABELS = {"sequences": 1, "tokens": 3}  # a reward model, and one that names tokens
LATE = {"method": "self_extend", "group_size": 4, "window": 16}
IDS = torch.arange(3, 103)[None]  # beyond the 64 tokens of the original length


def built(name: str, kind: str, **changes: Any) -> PreTrainedModel:
    """A tiny random model with this head."""
    config = config_of(name, **changes)
    if kind in LABELS:
        config.num_labels = LABELS[kind]
    torch.manual_seed(0)
    model: PreTrainedModel = KINDS[kind].from_config(config).eval()
    randomise(model)
    return model


def output(model: nn.Module) -> Tensor:
    """What the head says, or the decoder's last state."""
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS.to(next(model.parameters()).device))[0]
    return found


def drop(folder: Path, *names: str) -> None:
    weights = {
        name: one
        for name, one in load_file(folder / "model.safetensors").items()
        if not any(part in name for part in names)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
