"""verl: the config of the folder, which its trainer and its rollouts both read."""

import shlex
from collections.abc import Mapping
from typing import Any

from ropescale.frameworks.base import Framework, in_own_loop


class Verl(Framework, name="verl"):
    """A folder in the words of the engine of its rollouts, which Transformers reads alike."""

    title = "verl"
    read = "b178a3cd, 2026-01-29"
    misreads = (
        "the Megatron strategy with use_mbridge=False turns every scaling into linear interpolation by its factor, "
        "while its rollouts have the right one: train with fsdp or fsdp2 (what mbridge does was not read)",
        "override_config cannot state a scaling: it sets the entries of a dictionary as attributes, and stops "
        "(AttributeError)",
        "override_config.max_position_embeddings raises the limit alone, and rotates as in pretraining",
    )
    instead = in_own_loop(title)

    def settings(self, model: str, fields: Mapping[str, Any] | None, length: int) -> str:
        """Overrides of its command."""
        said = [f"{part}.model.path={model}" for part in ("actor_rollout_ref", "critic")]
        return shlex.join(
            [*said, "actor_rollout_ref.actor.strategy=fsdp2", f"actor_rollout_ref.rollout.max_model_len={length}"]
        )

    def engine(self) -> str:
        """That of its rollouts."""
        return "vllm"
