"""unsloth: the config of the folder, at no more than the length that it states."""

import json
from collections.abc import Mapping
from typing import Any

from ropescale.frameworks.base import Framework, in_own_loop


class Unsloth(Framework, name="unsloth"):
    """A folder whose config states the scaling; its argument `rope_scaling` is left out."""

    title = "unsloth"
    read = "015bdef0, 2026-08-22"
    misreads = (
        "max_seq_length beyond the config's maximum becomes linear interpolation by their ratio, whatever the config "
        "scales by (but for llama3, which is kept as it is)",
        "a scaling that it cannot build from the config is left out with a warning, and training goes on unscaled",
        "rope_scaling= has no effect in Qwen2, Mistral, and through FastModel",
    )
    instead = in_own_loop(title)

    def settings(self, model: str, fields: Mapping[str, Any] | None, length: int) -> str:
        """The call that loads the model."""
        return f"FastLanguageModel.from_pretrained({json.dumps(model)}, max_seq_length={length})"
