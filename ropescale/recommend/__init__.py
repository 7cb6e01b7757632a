"""Recommend: what to do with a model that is to read so many tokens, how sure that is, and the next command.

from ropescale.recommend import Options, recommend

advice = recommend(Options(model="path/to/checkpoint", target_length=32768), Path("out/recommend"))
"""

from ropescale.recommend.advice import Advice
from ropescale.recommend.options import Options
from ropescale.recommend.running import recommend

__all__ = ["Advice", "Options", "recommend"]
