"""Files beside a config: limits that stop a text too early, shards that are missing, frequencies among the weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ropescale.contents import weight_files
from ropescale.doctor.built import unlike
from ropescale.doctor.finding import Finding
from ropescale.doctor.lengths import ORIGINAL
from ropescale.families.late_type import LATE_TYPE
from ropescale.families.parts import parts_of
from ropescale.families.today import rope_type_of, todays_spectrum
from ropescale.files import read_json
from ropescale.limits import LIMITS, outdated
from ropescale.records import RECORD_FIELD
from ropescale.shards import is_table, read_index


def of_limits(folder: Path, text: dict[str, Any], maximum: int) -> Iterator[Finding]:
    """Files beside the config that stop a text before its maximum."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    before = text.get(ORIGINAL) or (rope.get(ORIGINAL) if isinstance(rope, dict) else None)
    if isinstance(text.get(RECORD_FIELD), dict):
        before = text[RECORD_FIELD].get("original_length")
    for name in LIMITS:
        settings = read_json(folder / name)
        for limit, value in outdated(name, settings, before if isinstance(before, int) else maximum, maximum).items():
            yield Finding(
                check="short-limit",
                where=f"{name}: {limit}",
                rule=f"must be at least max_position_embeddings ({maximum}), got {value}",
                remedy=f"write {maximum}",
            )


def of_weights(folder: Path, config: PreTrainedConfig | None) -> Iterator[Finding]:
    """Shards that are missing, and frequencies that were saved among the weights."""
    index = read_index(folder / SAFE_WEIGHTS_INDEX_NAME) if (folder / SAFE_WEIGHTS_INDEX_NAME).exists() else {}
    missing = sorted({name for name in index.values() if not (folder / name).is_file()})
    for name in missing:
        yield Finding(
            check="missing-weights",
            where=name,
            rule=f"must be there, since {SAFE_WEIGHTS_INDEX_NAME} names it, got no such file",
            remedy="copy or download the checkpoint again",
        )
    if missing:
        return
    expected = None
    if config is not None and not parts_of(config)[0].label and rope_type_of(config) != LATE_TYPE:
        expected = todays_spectrum(parts_of(config)[0])[0]
    for file in weight_files(str(folder), {}):
        try:
            yield from _saved_frequencies(Path(file), expected)
        except SafetensorError as error:
            yield Finding(
                check="missing-weights",
                where=Path(file).name,
                rule=f"must be a whole safetensors file, got {error}",
                remedy="copy or download the checkpoint again",
            )


def _saved_frequencies(file: Path, expected: Tensor | None) -> Iterator[Finding]:
    """Frequencies in one file of weights: engines that read them rotate by these and not by the config."""
    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # not a dict
            if not is_table(name) or not name.endswith("inv_freq"):
                continue
            live = weights.get_tensor(name)
            remedy = "remove the tensor: Transformers computes it from the config"
            if live.dtype != torch.float32:
                yield Finding(
                    check="low-precision",
                    where=f"{file.name}: {name}",
                    rule=f"must be float32 or not there, got {live.dtype}: phases drift over thousands of tokens",
                    remedy=remedy,
                )
            elif expected is not None and (fault := unlike(live, expected)):
                yield Finding(
                    check="saved-frequencies",
                    where=f"{file.name}: {name}",
                    rule=f"must be the frequencies of the config or not there, got {fault}",
                    remedy=remedy,
                )
