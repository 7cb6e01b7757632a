"""Jet-Long."""

from dataclasses import dataclass

from ropescale.geometry import Geometry
from ropescale.methods.groups import Groups, GrowingGroups


@dataclass(frozen=True, kw_only=True)
class JetLong(GrowingGroups, name="jet_long"):
    """Distances up to a window as they are, larger ones as floor(i / G) - floor(j / G), G = ceil((i + 1) / L).

    arXiv:2607.07740: a window of 2,048 tokens for 32,768, and no shift, so that distances fall from the window to a
    G-th of it where the groups begin. Within L it is the model as it was pretrained. The authors take one G for all
    queries of a call and all rows of a batch, by the largest position among them; here each query has that of its own
    position. They are one where that is the same G, as in the last query of the longest row, and differ elsewhere: a
    prompt of 4 L has G = 4 from its first token on in the authors' code, whose cached keys of deeper layers come from
    whatever G was the largest when they were computed, so that cached and uncached decoding disagree.
    """

    def groups(self, geometry: Geometry) -> Groups:
        """As `GrowingGroups.groups`."""
        near = self.window_for(geometry, 16) + 1
        return Groups(near=near, free=0, room=geometry.original_length, joined=False)
