"""Which samples of two cells are the same: by what was asked, never by their places alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from ropescale.evals.results import Cell


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Two cells of one task and length with the samples that both hold, in the same order."""

    one: Cell
    other: Cell
    alone: tuple[int, int]  # samples that the first cell alone holds, and the second

    @property
    def count(self) -> int:
        """How many both hold."""
        return len(self.one.samples)


def shared_by(one: Cell, other: Cell, *, digests: bool) -> Shared:
    """The samples of two cells that are the same.

    Args:
        one: of the first folder.
        other: of the second, of the same task and length.
        digests: samples are the same whose digests are; otherwise those of the same window, or of the same depth and
            answer, which tells only where rows of both folders are known to be made alike.
    """
    ours, theirs = _known(one, digests), _known(other, digests)
    both = [key for key in ours if key in theirs]
    cells = (
        dataclasses.replace(cell, samples=[known[key] for key in both])
        for cell, known in ((one, ours), (other, theirs))
    )
    return Shared(one=next(cells), other=next(cells), alone=(len(ours) - len(both), len(theirs) - len(both)))


def have_digests(cell: Cell) -> bool:
    """Whether every sample that was asked says by a digest what it was."""
    return all("digest" in sample for sample in cell.samples if not sample.get("left_out"))


def _known(cell: Cell, digests: bool) -> dict[Hashable, Any]:
    """The samples that were asked, each by what tells it from others, and by how many of the like came before it."""
    met: dict[Hashable, int] = {}
    found: dict[Hashable, Any] = {}
    for sample in cell.samples:
        if sample.get("left_out"):
            continue
        what: Hashable = sample["digest"] if digests else _told(sample)
        met[what] = met.get(what, -1) + 1
        found[what, met[what]] = sample
    return found


def _told(sample: Any) -> Hashable:
    """What an earlier version stored of what was asked."""
    if "nll" in sample:
        facts = [sample.get(name) for name in ("document", "window", "edges", "tokens")]
    elif "target" in sample:
        facts = [sample.get("depth"), sample["target"]]
    else:
        facts = [sample.get("id")]
    return json.dumps(facts)
