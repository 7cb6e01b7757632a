"""Random checkpoints to export, as a user's would be: tests and scripts/export_table.py share them."""

import shutil
from pathlib import Path
from typing import Any

from families import config_of, model_of
from transformers import PreTrainedModel

from ropescale.checkpoints import resolve

# Sizes that every engine takes: head_dim 64, the vocabulary of the embedded checkpoint's tokenizer
SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 128,
}
FACTS: dict[str, dict[str, Any]] = {
    "granite": {
        "attention_multiplier": 0.125,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "mistral": {"sliding_window": None},
    "smollm3": {"num_hidden_layers": 4},  # every fourth is without rotation
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def random_model(name: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random model of a family, with matrices large enough that first choices lead clearly."""
    model = model_of(config_of(name, **{**SIZES, **FACTS.get(name, {}), **changes}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 0.1 / 0.15
    return model


def checkpoint(folder: Path, name: str = "llama", **changes: Any) -> Path:
    """The folder of such a model, with the embedded checkpoint's tokenizer."""
    random_model(name, **changes).save_pretrained(folder)
    for file in TOKENIZER:
        shutil.copy(Path(resolve("tiny"), file), folder / file)
    return folder
