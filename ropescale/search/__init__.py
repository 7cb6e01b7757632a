"""Per-pair factors, or knobs of a method, found on the model itself: `search` is the door."""

from ropescale.search.result import Found
from ropescale.search.searching import Options, search

__all__ = ["Found", "Options", "search"]
