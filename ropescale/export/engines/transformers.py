"""Transformers: the config that a patched model is saved with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from ropescale.contents import read_config
from ropescale.errors import CheckpointError, first_line
from ropescale.export.canonical import Canonical
from ropescale.export.engines.base import Engine
from ropescale.export.running import Prompt, Run, generated
from ropescale.export.stated import Stated, fields_of, native_form
from ropescale.trust import trusted


class Transformers(Engine, name="transformers"):
    """The idiomatic native type where it is exact, else one divisor per pair."""

    title = "Transformers"
    summary = "a folder as save_pretrained of a patched model writes it"
    running = "the folder in Transformers alone, without ropescale's patch"
    examples = ("path/to/base out/merged --to transformers --adapter path/to/adapter",)
    verified = "5.23.0"
    plain = True
    tolerance = 1e-5
    merged = 1e-4
    by_token = True

    def state(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        fields = fields_of(config, canonical, [rotation.parameters for rotation in canonical.rotations])
        return Stated(fields=fields, form=native_form(canonical.main), serves=canonical.main.target_length)

    def run(self, path: Path, flags: Sequence[str], prompts: Sequence[Prompt], steps: int) -> list[Run]:
        """Token by token with its cache."""
        config = read_config(str(path))
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        try:
            model = loader.from_pretrained(path, dtype=torch.float32, trust_remote_code=trusted()).eval()
        except Exception as error:  # model classes raise whatever their own code runs into
            raise CheckpointError(
                f"{path}: must be a model that Transformers loads, got {type(error).__name__}: {first_line(error)}; "
                f"write it again"
            ) from error
        return [generated(model, prompt, steps) for prompt in prompts]
