"""Finding: one fault in the positions of a checkpoint or a model, and what makes it go."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, where it is, and what makes it go."""

    check: str  # its name, the same for every such fault
    where: str  # the file and the entry, or the module
    rule: str  # what should be, and what is
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}; {self.remedy}"
