"""The families that are written to GGUF, and how llama.cpp holds each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedConfig

from ropescale.errors import ExportError
from ropescale.export.engines.base import able
from ropescale.families.parts import parts_of


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp holds a family; every entry was run in llama.cpp against Transformers."""

    arch: gguf.MODEL_ARCH
    paired_rows: bool = False  # the two rows of a rotated pair stand next to each other in q and k
    divisors: bool = True  # reads rope_freqs.weight
    facts: Callable[[gguf.GGUFWriter, Any], None] | None = None  # metadata of its own


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _smollm3(writer: gguf.GGUFWriter, config: Any) -> None:
    every_fourth = [int(bool((layer + 1) % 4)) for layer in range(config.num_hidden_layers)]
    if list(config.no_rope_layers) != every_fourth:
        raise ExportError(
            f"smollm3: llama.cpp leaves every fourth layer without rotation, got no_rope_layers="
            f"{config.no_rope_layers}; export to {able()}"
        )


ARCHITECTURES = {
    "granite": Architecture(arch=gguf.MODEL_ARCH.GRANITE, paired_rows=True, facts=_granite),
    "llama": Architecture(arch=gguf.MODEL_ARCH.LLAMA, paired_rows=True),
    "mistral": Architecture(arch=gguf.MODEL_ARCH.LLAMA, paired_rows=True),
    "olmo2": Architecture(arch=gguf.MODEL_ARCH.OLMO2, divisors=False),
    "qwen2": Architecture(arch=gguf.MODEL_ARCH.QWEN2, divisors=False),
    "qwen3": Architecture(arch=gguf.MODEL_ARCH.QWEN3, divisors=False),
    "smollm3": Architecture(arch=gguf.MODEL_ARCH.SMOLLM3, paired_rows=True, divisors=False, facts=_smollm3),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """How llama.cpp holds this family.

    Raises:
        ExportError: not a family that is written to GGUF, or a config of one that llama.cpp does not know.
    """
    if config.model_type not in ARCHITECTURES:
        raise ExportError(
            f"model type {config.model_type!r}: not a family that is written to GGUF, got "
            f"{type(config).__name__}; written are {', '.join(sorted(ARCHITECTURES))}: export to {able()}, or use "
            f"llama.cpp's own converter where it makes an architecture that patch_gguf takes: {', '.join(patchable())}"
        )
    if parts_of(config)[0].label:
        raise ExportError(
            f"{config.model_type}: one rotation for all layers is what GGUF states, got one for each layer type; "
            f"export to {able()}"
        )
    return ARCHITECTURES[config.model_type]


def patchable() -> list[str]:
    """The architectures, by llama.cpp's names, of which a file is given a scaling."""
    return sorted({gguf.MODEL_ARCH_NAMES[architecture.arch] for architecture in ARCHITECTURES.values()})


def reads_divisors(name: str) -> bool:
    """Whether an architecture, by llama.cpp's name, reads rope_freqs.weight."""
    return all(
        architecture.divisors
        for architecture in ARCHITECTURES.values()
        if gguf.MODEL_ARCH_NAMES[architecture.arch] == name
    )
