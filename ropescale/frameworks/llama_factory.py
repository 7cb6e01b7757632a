"""LLaMA-Factory: the config of the folder, with no scaling of its own beside it."""

import json
from collections.abc import Mapping
from typing import Any

from ropescale.frameworks.base import Framework, in_own_loop


class LLaMAFactory(Framework, name="llama_factory"):
    """A folder whose config states the scaling; its own argument `rope_scaling` is left out."""

    title = "LLaMA-Factory"
    read = "ff6d4d12, 2026-08-18"
    misreads = (
        "rope_scaling makes max_position_embeddings a float (512.0), which Transformers from 5.8 on refuses",
        "rope_scaling takes the place of rope_parameters without theta: Transformers 5 stops at a theta of None",
        "rope_scaling has a factor of cutoff_len / original length, rounded up, in training, and of 2 in inference, "
        "whatever it was trained with; knobs of a method are not read",
    )
    instead = in_own_loop(title)

    def settings(self, model: str, fields: Mapping[str, Any] | None, length: int) -> str:
        """A piece of its YAML file."""
        return f"model_name_or_path: {json.dumps(model)}\ncutoff_len: {length}"
