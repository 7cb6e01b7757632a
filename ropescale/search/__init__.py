"""Per-pair factors, or knobs of a method, found on the model itself: `search` is the door; and the
coefficient of a temperature: `fit_temperature`.
"""

from ropescale.search.coefficient import fit_temperature
from ropescale.search.result import Found
from ropescale.search.searching import Options, search

__all__ = ["Found", "Options", "fit_temperature", "search"]
