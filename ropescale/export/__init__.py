"""Exports: a model with a longer context, told to the engines that serve it, and checked by running them.

from ropescale.export import export, verify

export("path/to/patched", "out/model.gguf", to="gguf")
verify("out/model.gguf", engine="llama.cpp", reference="path/to/patched")
"""

from ropescale.export.verification import Verdict, verify
from ropescale.export.writing import ENGINES, Exported, export, patch_gguf

__all__ = ["ENGINES", "Exported", "Verdict", "export", "patch_gguf", "verify"]
