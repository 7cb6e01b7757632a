"""Two folders of results side by side: before and after a training, two models, two engines, two versions.

Only what both folders asked is compared, sample by sample. `samples` says which are the same, `pairing` which arms and
tasks stand beside one another, `differences` what they differ by and what may be claimed of it; `wording` is what is
said, and `page`, `markdown`, `terminal` and `numbers` (JSON) the forms, which share `tables`. No file here knows a
model, or a task by its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ropescale.destinations import make_folder
from ropescale.errors import InvalidArgumentError
from ropescale.evals.paired.differences import Differences, differences_of
from ropescale.evals.paired.markdown import differences_markdown
from ropescale.evals.paired.numbers import differences_numbers
from ropescale.evals.paired.page import page
from ropescale.evals.paired.pairing import paired
from ropescale.evals.results import Results, read, write_atomically

__all__ = ["compare", "differences", "write"]


def compare(one: Path, other: Path, *, output: Path, arms: Sequence[tuple[str, str]] = ()) -> Path:
    """Compare two folders of results on the samples that both have, and return the path of the page.

    Writes comparison.html, comparison.md and comparison.json into `output`, and nothing into the two folders. The
    figures are those of `other` against those of `one`; the same results give the same bytes.

    Args:
        one: the output folder of an evaluation, such as the one before a training.
        other: that of another evaluation, over the same tokenizer, texts and seed.
        output: a folder of its own, made where it is not there.
        arms: which arm of `one` is compared with which of `other`, as reports name them: `("unpatched", "yarn x4")`;
            those of the same name if none are given.

    Raises:
        InvalidArgumentError: no results in one of the folders, twice the same folder, an arm that is not there,
            nothing that both folders asked, or an output within one of them.
        CheckpointError: the output cannot be written.
    """
    return write(differences(one, other, arms=arms), output)


def write(made: Differences, output: Path) -> Path:
    """Write what two folders differ by into a folder apart from them, and return the path of the page.

    Raises:
        InvalidArgumentError: an output within one of the two folders.
        CheckpointError: it cannot be written.
    """
    for results in made.pairing.folders:
        if output.resolve().is_relative_to(results.folder.resolve()):
            raise InvalidArgumentError(
                f"report: output must be a folder apart from the results that it compares, got {str(output)!r}; "
                f"choose another with output=DIR"
            )
    # all is made before anything is written, so that no mixture of old and new is left behind
    texts = {
        "comparison.md": differences_markdown(made),
        "comparison.json": json.dumps(differences_numbers(made), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "comparison.html": page(made),
    }
    make_folder(output)
    for name, text in texts.items():
        write_atomically(output / name, text)
    return output / "comparison.html"


def differences(one: Path, other: Path, *, arms: Sequence[tuple[str, str]] = ()) -> Differences:
    """What two folders differ by, in numbers; the arguments and errors are those of `compare`."""
    found: list[Results] = [read(one), read(other)]
    if one.resolve() == other.resolve():
        raise InvalidArgumentError(
            f"report: two folders must be two, got {str(one)!r} twice; name the results of another evaluation, or one "
            f"folder alone for its report"
        )
    return differences_of(paired(*found, arms=arms))
