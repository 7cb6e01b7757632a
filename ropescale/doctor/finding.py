"""Finding: one fault in the positions of a checkpoint or a model, and what makes it go."""

from dataclasses import dataclass
from typing import Self

from ropescale.errors import RopescaleError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, where it is, and what makes it go."""

    check: str  # its name, the same for every such fault
    where: str  # the file and the entry, or the module
    rule: str  # what should be, and what is
    remedy: str

    @classmethod
    def of(cls, error: RopescaleError, *, check: str, where: str) -> Self:
        """What the library refuses, as a finding: an error says rule and remedy too."""
        rule, _, remedy = str(error).rpartition("; ")
        return cls(check=check, where=where, rule=rule, remedy=remedy)

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}; {self.remedy}"
