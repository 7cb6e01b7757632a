"""Training frameworks: the settings by which each means one scaling, and what it reads otherwise than it says."""

from ropescale.frameworks.axolotl import Axolotl
from ropescale.frameworks.base import FRAMEWORKS, Framework
from ropescale.frameworks.llama_factory import LLaMAFactory
from ropescale.frameworks.ms_swift import MSSwift
from ropescale.frameworks.telling import Flags, flags
from ropescale.frameworks.unsloth import Unsloth
from ropescale.frameworks.verl import Verl

__all__ = [
    "FRAMEWORKS",
    "Axolotl",
    "Flags",
    "Framework",
    "LLaMAFactory",
    "MSSwift",
    "Unsloth",
    "Verl",
    "flags",
]
