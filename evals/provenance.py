"""By what the parts of an evaluation are known again, and who ran it when and on what."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ropescale.evals.plan import Options
from ropescale.evals.results import Session


def fingerprint(pieces: Iterable[bytes | memoryview]) -> str:
    """The first 16 hex digits of the SHA-256 over all pieces."""
    seen = hashlib.sha256()
    for piece in pieces:
        seen.update(piece)
    return seen.hexdigest()[:16]


def fingerprint_of_parameters(model: PreTrainedModel) -> str:
    """The same of a model's, in the order of their names."""

    def content(tensor: Tensor) -> memoryview:
        return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

    return fingerprint(content(parameter) for _, parameter in sorted(model.named_parameters()))


def fingerprint_of_files(folder: Path) -> str:
    """The same of a checkpoint's weights, where they are not loaded here."""
    return fingerprint(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def session(command: str, options: Options) -> Session:
    """Who ran when and on what, for the report."""
    line = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "adapters": {arm.method: str(folder) for arm, folder in options.trained.items()},
        "device": torch.cuda.get_device_name() if options.device_name.startswith("cuda") else options.device_name,
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
