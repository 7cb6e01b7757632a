"""One call gives a pretrained rotary model a longer context, and the evidence that it worked.

    import ropescale

    ropescale.patch(model, method="yarn", factor=4)

The public names load on first use, so that `import ropescale` and the command line start at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ropescale.version import __version__

if TYPE_CHECKING:
    from ropescale.adapters import load_adapter
    from ropescale.checkpoint import load
    from ropescale.doctor.diagnosis import diagnose
    from ropescale.errors import RopescaleError
    from ropescale.evals.evaluate import evaluate
    from ropescale.families.reading import read_geometry
    from ropescale.geometry import Geometry
    from ropescale.methods import Method, get_method, list_methods
    from ropescale.patching import patch, patched, record, unpatch
    from ropescale.recipes.called import train
    from ropescale.rescaling import rescale_checkpoint
    from ropescale.spectrum import Spectrum

_HOMES = {
    "Geometry": "geometry",
    "Method": "methods",
    "RopescaleError": "errors",
    "Spectrum": "spectrum",
    "diagnose": "doctor.diagnosis",
    "evaluate": "evals.evaluate",
    "get_method": "methods",
    "list_methods": "methods",
    "load": "checkpoint",
    "load_adapter": "adapters",
    "patch": "patching",
    "patched": "patching",
    "read_geometry": "families.reading",
    "record": "patching",
    "rescale_checkpoint": "rescaling",
    "train": "recipes.called",
    "unpatch": "patching",
}

__all__ = [
    "Geometry",
    "Method",
    "RopescaleError",
    "Spectrum",
    "__version__",
    "diagnose",
    "evaluate",
    "get_method",
    "list_methods",
    "load",
    "load_adapter",
    "patch",
    "patched",
    "read_geometry",
    "record",
    "rescale_checkpoint",
    "train",
    "unpatch",
]
_EXTRAS = {"evaluate": "eval", "train": "train"}  # whose packages the core does without


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ropescale' has no attribute {name!r}")
    if name in _EXTRAS:
        importlib.import_module("ropescale.failures").require_extras(f"ropescale.{name}", [_EXTRAS[name]])
    return getattr(importlib.import_module(f"ropescale.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
