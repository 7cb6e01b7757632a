"""What a wrong file or place leaves behind, and how it is told."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropescale.errors import RopescaleError

NAN, INFINITE = float("nan"), float("inf")
Damage = Callable[[Path], Any]


def tree(folder: Path) -> dict[str, str]:
    """Every entry of a folder, with a hash of what is in it."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def worded(error: RopescaleError) -> str:
    """The form of every text: what, rule, value; what to do."""
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert "; " in text
    return text
