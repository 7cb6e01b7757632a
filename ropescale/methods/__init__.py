"""The methods: one file each, and this table of contents."""

from ropescale.methods.base import Method, get_method, list_methods
from ropescale.methods.rotation.abf import ABF
from ropescale.methods.rotation.by_parts import NTKByParts
from ropescale.methods.rotation.linear import Linear
from ropescale.methods.rotation.llama3 import Llama3
from ropescale.methods.rotation.longrope import LongRoPE
from ropescale.methods.rotation.ntk import NTKAware
from ropescale.methods.rotation.ntk_fixed import NTKFixed
from ropescale.methods.rotation.ntk_mixed import NTKMixed
from ropescale.methods.rotation.power import Power
from ropescale.methods.rotation.proportional import Proportional
from ropescale.methods.rotation.truncated import Truncated
from ropescale.methods.rotation.yarn import YaRN

__all__ = [
    "ABF",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Method",
    "NTKAware",
    "NTKByParts",
    "NTKFixed",
    "NTKMixed",
    "Power",
    "Proportional",
    "Truncated",
    "YaRN",
    "get_method",
    "list_methods",
]
