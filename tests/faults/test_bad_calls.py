"""Every door of Python refuses arguments that it cannot take, in a sentence, and neither model nor disk is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_calls import DOORS, calls, model
from fuzzing import Hang, within
from wrong_files import worded

import ropescale
from ropescale.errors import RopescaleError

SECONDS = 10  # of the processor, for one call
BEGUN = {"out", "out/.lock", "out/.cells"}  # the folder of a run that did not begin, which the next may take


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", DOORS)
def test_what_a_door_refuses(door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = [said for what, call in calls(door) if (said := complaint(what, call, tmp_path))]
    assert not wrong, "\n".join(wrong)


def complaint(what: str, call: Callable[[Path], object], folder: Path) -> str:
    """What is wrong about how a call was met; empty where nothing is."""
    try:
        with within(SECONDS):
            call(folder / "out")
    except RopescaleError as error:
        worded(error)
    except (Exception, Hang) as error:
        return f"{what}: a bare {type(error).__name__}: {error}"
    else:
        return f"{what}: taken"
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    shutil.rmtree(folder / "out", ignore_errors=True)
    if left - BEGUN:
        return f"{what}: leaves {sorted(left)[:5]}"
    return "" if ropescale.record(model()) is None else f"{what}: leaves a patched model"
