"""Patch: what stands in a live model because it was patched, as one object on it, and the way back."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ropescale.families.parts import text_of
from ropescale.injection.late import LateRotation
from ropescale.injection.rotation import Substitution
from ropescale.injection.softmax import Sharpening
from ropescale.records import Record
from ropescale.wrappers import bare, config_of

FIELD = "_ropescale_patch"  # attribute of the first rotary module, where it moves and is copied with the model


@dataclass(eq=False)
class Patch:
    """What was done to a model, and the objects that did it; complete once the patch is."""

    record: Record
    substitutions: list[Substitution]  # of the frequencies of every rotary module
    late: LateRotation | None = None  # what acts in attention
    sharpening: Sharpening | None = None  # of softmax scales

    @property
    def rotary(self) -> nn.Module:
        """The first rotary module, which keeps this object."""
        return self.substitutions[0].rotary

    def undo(self, model: nn.Module) -> None:
        """Take everything out of the model, whose config and limits are again what they were."""
        if self.late is not None:
            self.late.undo()
        if self.sharpening is not None:
            self.sharpening.undo()
        lower_limits(bare(model), self.record)
        self.record.restore(text_of(config_of(model)))
        for substitution in self.substitutions:
            substitution.undo()
        del self.rotary.__dict__[FIELD]


def patch_of(model: nn.Module) -> Patch | None:
    """What stands in this model, if it is patched."""
    standing = (module.__dict__.get(FIELD) for module in bare(model).modules())
    return next((value for value in standing if isinstance(value, Patch)), None)


def lower_limits(model: Any, done: Record) -> None:
    """Put the limits of generation back that a patch raised, where nobody has set others meanwhile."""
    for name, value in done.generation.items():
        if getattr(getattr(model, "generation_config", None), name, None) == done.target_length:
            setattr(model.generation_config, name, value)
