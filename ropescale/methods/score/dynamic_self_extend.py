"""Self-Extend in groups that grow with the text."""

from dataclasses import dataclass

from ropescale.geometry import Geometry
from ropescale.methods.groups import Groups, GrowingGroups


@dataclass(frozen=True, kw_only=True)
class DynamicSelfExtend(GrowingGroups, name="dynamic_self_extend"):
    """Self-Extend whose group size follows the query's own position, so that no length has to be known before.

    Distances below a window w are as they are; beyond it they are floor(i / G) - floor(j / G) + w - floor(w / G) as in
    Jin et al. 2024 (arXiv:2401.01325, equation 4), with G(i) = max(1, ceil((i + 1 - w) / (L - w))): the smallest
    groups in which i + 1 tokens stay within the original length L. Within L it is the model as it was pretrained.
    There is no paper of it.
    """

    def groups(self, geometry: Geometry) -> Groups:
        """As `GrowingGroups.groups`."""
        window = self.window_for(geometry, 4)
        return Groups(near=window, free=window, room=geometry.original_length - window, joined=True)
