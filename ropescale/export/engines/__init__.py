"""The engines that ship: importing a class registers it."""

from ropescale.export.engines.base import ENGINES, Engine
from ropescale.export.engines.llama_cpp import LlamaCpp
from ropescale.export.engines.mlx import MLX
from ropescale.export.engines.sglang import SGLang
from ropescale.export.engines.transformers import Transformers
from ropescale.export.engines.vllm import VLLM

__all__ = ["ENGINES", "MLX", "VLLM", "Engine", "LlamaCpp", "SGLang", "Transformers"]
