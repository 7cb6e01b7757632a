"""Exports: a model with a longer context, told to the engines that serve it, and checked by running them.

from ropescale.export import export, verify

export("path/to/patched", "out/model.gguf", to="gguf")
verify("out/model.gguf", engine="llama.cpp", reference="path/to/patched")
"""

from ropescale.export.engines import ENGINES, Engine
from ropescale.export.engines.llama_cpp import patch_gguf
from ropescale.export.exported import Exported
from ropescale.export.running import Run
from ropescale.export.stated import Stated
from ropescale.export.verification import Verdict, verify
from ropescale.export.writing import export

__all__ = ["ENGINES", "Engine", "Exported", "Run", "Stated", "Verdict", "export", "patch_gguf", "verify"]
