"""What a patched model does besides when it is saved: it writes its card, unless somebody's is there.

While it is patched, a model has a `save_pretrained` of its own, which calls that of its class.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ropescale.cards import card, write_card
from ropescale.injection.patch import patch_of

SAVE = "save_pretrained"


@dataclass(eq=False, repr=False)
class Saving:
    """Saves a model as its class does, and writes its card; it is copied and pickled with the model."""

    model: Any

    def __call__(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """The arguments are those of Transformers' `save_pretrained`."""
        type(self.model).save_pretrained(self.model, save_directory, is_main_process, *args, **kwargs)
        if is_main_process and Path(save_directory).is_dir() and (text := card_of(self.model)):
            write_card(Path(save_directory), text)


def card_of(model: nn.Module, *, trained: str = "") -> str:
    """The card of a patched model, or empty of one that is not patched; `trained` is how, where it was."""
    standing = patch_of(model)
    if standing is None:
        return ""
    # the line of the card is for language models; what acts in attention Transformers alone does not do
    plain = standing.late is None and type(model).__name__.endswith("ForCausalLM")
    base = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return card(standing.record, base=base, plain=plain, trained=trained)


def saving_of(model: nn.Module, own: Any) -> Any:
    """What stands in the place of a model's `save_pretrained`, given what did; None for what its class says.

    It is this room's while the model is patched, unless somebody else has given the model one.
    """
    if own is not None and not isinstance(own, Saving):
        return own
    return Saving(model) if patch_of(model) is not None and hasattr(type(model), SAVE) else None
