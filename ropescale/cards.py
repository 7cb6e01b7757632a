"""Model cards: the README.md of a checkpoint or adapter that was extended, for people and for a hub.

A card says what it is of, what was done, which figures there are, and how it is loaded. One that somebody wrote or
changed is never written over: a card of ours ends with a digest of its own text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ropescale.destinations import write_file
from ropescale.records import Record
from ropescale.version import __version__

CARD = "README.md"
OURS = re.compile(r"\n<!-- ropescale card ([0-9a-f]{16}) -->\n\Z")
LONGEST = 4000  # characters of a record that a card holds; config.json has it all
HUB = re.compile(r"[\w.-]+/[\w.-]+")


def card(
    record: Record | dict[str, Any],
    *,
    base: str,
    adapter: bool = False,
    plain: bool = False,
    trained: str = "",
    figures: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The text.

    Args:
        record: of the patch, or as it stands in files.
        base: what was extended: a hub id, or a path, of which the last part alone is told.
        adapter: it is of a PEFT adapter, and not of a whole model.
        plain: Transformers alone loads it with the same logits.
        trained: how it was trained, after "trained"; empty where it was not.
        figures: name, before and after, as they were measured.
    """
    done = record.to_dict() if isinstance(record, Record) else dict(record)
    name, hub_id = _named(base)
    data = ModelCardData(
        base_model=hub_id,
        library_name="peft" if adapter else "transformers",
        tags=["long-context", "ropescale"],
    )
    method, target = done["method"], done["target_length"]
    what = f"A LoRA adapter for {name}" if adapter else name
    how = f"trained {trained}" if trained else "without training"
    facts = {
        "base": name,
        "method": method
        + "".join(f", {knob} {_short(value)}" for knob, value in done["knobs"].items() if value is not None),
        "original length": f"{done['original_length']:,} tokens",
        "extended to": f"{target:,} tokens",
        "layers": done["layers"],
        "versions": ", ".join(f"{package} {number}" for package, number in done["versions"].items()),
    }
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {name}, extended to {target:,} tokens",
        "",
        f"{what} with {method}, from {done['original_length']:,} to {target:,} tokens, {how}, by ropescale "
        f"{__version__}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {_cell(said)} |" for title, said in facts.items()),
        "",
        "## How to load it",
        "",
        *_loading(hub_id or name, adapter=adapter, plain=plain),
        "",
        "## Figures",
        "",
        *_figures(figures),
    ]
    if len(dump := json.dumps(done, indent=2, sort_keys=True)) <= LONGEST:
        lines += ["", "## Record", "", "What was done, as ropescale reads it again:", "", "```json", dump, "```"]
    text = "\n".join(lines) + "\n"
    return f"{text}\n<!-- ropescale card {_digest(text)} -->\n"


def write_card(folder: Path, text: str) -> None:
    """Write a card, unless there is one already that is not ours, or that somebody has changed since.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = folder / CARD
    if not path.exists() or _is_ours(path):
        write_file(path, text, name="card")


def _is_ours(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    found = OURS.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _named(base: str) -> tuple[str, str | None]:
    """The name of a base, and its hub id if it is one; of a path the last part alone."""
    local = base.startswith((".", "/", "~")) or "\\" in base or Path(base).exists()
    hub_id = base if HUB.fullmatch(base) and not local else None
    return _cell(Path(base).name if local else base) or "a model", hub_id


def _loading(name: str, *, adapter: bool, plain: bool) -> list[str]:
    if adapter:
        said = "Load it with ropescale, which scales positions as in training; PEFT alone would not."
        return [said, "", *_code(f'ropescale.load_adapter("{name}", "path/to/this/folder")')]
    said = "Load it with ropescale, which can take the extension out again"
    said += ", or with Transformers alone, which gives the same logits:" if plain else ":"
    alone = ['model = transformers.AutoModelForCausalLM.from_pretrained("path/to/this/folder")'] if plain else []
    return [said, "", *_code('ropescale.load("path/to/this/folder")', *alone)]


def _code(call: str, *more: str) -> list[str]:
    imports = ["import ropescale", *(["import transformers"] if more else [])]
    return ["```python", *imports, "", f"model = {call}", *more, "```"]


def _figures(figures: Sequence[tuple[str, str, str]]) -> list[str]:
    if not figures:
        return [
            "None were measured here. `ropescale eval path/to/this/folder --methods none --output out` measures them, "
            "and writes a section for this card into out/model-card.md."
        ]
    return ["| | before | after |", "|---|---|---|", *(f"| {' | '.join(map(_cell, row))} |" for row in figures)]


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _cell(text: str) -> str:
    """Text from outside within a line of Markdown or a cell of its tables."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")[:200]
