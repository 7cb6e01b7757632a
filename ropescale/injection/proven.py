"""Of which classes a patch was proven before: what counts for a model that is too large to read at every patch."""

import functools
import json
import warnings
from importlib import resources
from typing import Any

import transformers
from packaging.version import Version
from torch import nn

from ropescale.injection.proof import decoder_of
from ropescale.version import __version__

# Parameters above which even short passes take long where weights are not on an accelerator
LARGEST = 20_000_000_000


@functools.cache
def table() -> dict[str, dict[str, list[str]]]:
    """Version of Transformers -> "static" or "late" -> names of decoder classes; scripts/proven.py writes it."""
    text = (resources.files("ropescale.injection") / "proven.json").read_text(encoding="utf-8")
    rows: dict[str, dict[str, list[str]]] = json.loads(text)
    return rows


def of_class(model: nn.Module, rotary: nn.Module, *, late: bool) -> dict[str, Any] | None:
    """What a record says of a model that is not read; None for one that is small enough, or of an unproven class."""
    parameters = list(model.parameters())
    offloaded = any(parameter.is_meta for parameter in parameters)
    if not offloaded and sum(parameter.numel() for parameter in parameters) <= LARGEST:
        return None
    name, version = type(decoder_of(model, rotary)).__name__, transformers.__version__
    if name not in table().get(version, {}).get("late" if late else "static", ()):
        return None
    return {
        "how": f"on another {name}, with transformers {version}",
        "shown": [],
        "unlike by itself": [],
        "layers": "",
    }


@functools.cache
def warn_of_untried_version() -> None:
    """Name, once in a process, a Transformers that is newer than all that this ropescale was tried with."""
    oldest, *_, newest = sorted(table(), key=Version)
    if Version(transformers.__version__) > Version(newest):
        warnings.warn(
            f"transformers {transformers.__version__}: newer than what ropescale {__version__} was tried with "
            f"({oldest} to {newest}); every patch is proven on the model before it counts",
            stacklevel=4,
        )
