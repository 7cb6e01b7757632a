"""By what the parts of an evaluation are known again, and who ran it when and on what."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch
from accelerate.utils import align_module_device
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropescale.digest import bytes_of
from ropescale.evals.plan import Options
from ropescale.evals.results import Session


def fingerprint(pieces: Iterable[bytes | memoryview]) -> str:
    """The first 16 hex digits of the SHA-256 over all pieces."""
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
    return seen.hexdigest()[:16]


def fingerprint_of_parameters(model: PreTrainedModel) -> str:
    """The same of a model's, in the order of their names.

    Those that two modules share count once, also where accelerate keeps them apart on the disk.
    """
    names = {name for name, _ in model.named_parameters()}
    twice = {name for name, first in getattr(model, "all_tied_weights_keys", {}).items() if {name, first} <= names}
    return fingerprint(piece for name in sorted(names - twice) for piece in _content(*_owner(model, name)))


def _owner(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    """The module that a parameter is of, and what it is called there."""
    above, _, last = name.rpartition(".")
    return model.get_submodule(above), last


def _content(module: nn.Module, name: str) -> Iterator[memoryview]:
    """The bytes of a parameter, which may lie on the disk."""
    with align_module_device(module, torch.device("cpu")) if getattr(module, name).is_meta else nullcontext():
        yield from bytes_of(getattr(module, name))


def fingerprint_of_files(folder: Path) -> str:
    """The same of a checkpoint's weights, where they are not loaded here."""
    return fingerprint(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def fingerprint_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same of a tokenizer's vocabulary, by which tokenizers differ whatever files they come from."""
    return fingerprint([json.dumps(sorted(tokenizer.get_vocab().items())).encode()])


def session(command: str, options: Options) -> Session:
    """Who ran when and on what, for the report."""
    device = options.loading.device_name
    device = torch.cuda.get_device_name() if device.startswith("cuda") else device
    line = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "adapters": {arm.method: str(folder) for arm, folder in options.trained.items()},
        "device": f"{device}, by device_map {options.device_map}" if options.device_map else device,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return Session.of(line)


def _processor() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
