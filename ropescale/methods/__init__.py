"""The methods: one file each, and this table of contents."""

from ropescale.methods.base import FixedMethod, Method, get_method, list_methods
from ropescale.methods.embedding.learned import Learned
from ropescale.methods.embedding.sinusoidal import Sinusoidal
from ropescale.methods.nope import NoPE
from ropescale.methods.rotation.abf import ABF
from ropescale.methods.rotation.by_parts import NTKByParts
from ropescale.methods.rotation.dynamic_linear import DynamicLinear
from ropescale.methods.rotation.dynamic_ntk import DynamicNTK
from ropescale.methods.rotation.dynamic_yarn import DynamicYaRN
from ropescale.methods.rotation.linear import Linear
from ropescale.methods.rotation.llama3 import Llama3
from ropescale.methods.rotation.longrope import LongRoPE
from ropescale.methods.rotation.mrrope import MrRoPE
from ropescale.methods.rotation.ntk import NTKAware
from ropescale.methods.rotation.ntk_fixed import NTKFixed
from ropescale.methods.rotation.ntk_mixed import NTKMixed
from ropescale.methods.rotation.power import Power
from ropescale.methods.rotation.proportional import Proportional
from ropescale.methods.rotation.truncated import Truncated
from ropescale.methods.rotation.unscaled import Unscaled
from ropescale.methods.rotation.yarn import YaRN
from ropescale.methods.score.alibi import ALiBi
from ropescale.methods.score.cope import CoPE
from ropescale.methods.score.dpe import DPE
from ropescale.methods.score.dual_chunk import DualChunk
from ropescale.methods.score.dynamic_self_extend import DynamicSelfExtend
from ropescale.methods.score.jet_long import JetLong
from ropescale.methods.score.leaky_rerope import LeakyReRoPE
from ropescale.methods.score.lm_infinite import LMInfinite
from ropescale.methods.score.lpes import LPES
from ropescale.methods.score.ms_poe import MsPoE
from ropescale.methods.score.rerope import ReRoPE
from ropescale.methods.score.self_extend import SelfExtend
from ropescale.methods.score.shaw import Shaw
from ropescale.methods.score.streaming import Streaming
from ropescale.methods.score.string import STRING
from ropescale.methods.score.t5 import T5

__all__ = [
    "ABF",
    "DPE",
    "LPES",
    "STRING",
    "T5",
    "ALiBi",
    "CoPE",
    "DualChunk",
    "DynamicLinear",
    "DynamicNTK",
    "DynamicSelfExtend",
    "DynamicYaRN",
    "FixedMethod",
    "JetLong",
    "LMInfinite",
    "LeakyReRoPE",
    "Learned",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Method",
    "MrRoPE",
    "MsPoE",
    "NTKAware",
    "NTKByParts",
    "NTKFixed",
    "NTKMixed",
    "NoPE",
    "Power",
    "Proportional",
    "ReRoPE",
    "SelfExtend",
    "Shaw",
    "Sinusoidal",
    "Streaming",
    "Truncated",
    "Unscaled",
    "YaRN",
    "get_method",
    "list_methods",
]
