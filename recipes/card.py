"""The README.md of a trained folder: what it is, how it is loaded, and what training changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def card(told: Mapping[str, Any], *, adapter: bool) -> str:
    """The text, from what `training.json` holds; of a base that is a folder here, its name alone is told."""
    settings, record = told["settings"], told["record"]
    base = str(settings["model"])
    local = base.startswith((".", "/", "~")) or "\\\\" in base or Path(base).exists()
    name = Path(base).name if local else base
    facts = ["library_name: peft" if adapter else "library_name: transformers", "tags: [ropescale, long-context]"]
    if not local and "/" in base:
        facts.insert(0, f"base_model: {base}")
    kind = "A LoRA adapter" if adapter else "A model"
    load = (
        f'ropescale.load_adapter("{name}", "path/to/this/folder")'
        if adapter
        else ('ropescale.load("path/to/this/folder")')
    )
    lines = [
        "---",
        *facts,
        "---",
        "",
        f"# {name}, extended to {record['target_length']:,} tokens",
        "",
        f"{kind} for {name} with {record['method']}, from {record['original_length']:,} to "
        f"{record['target_length']:,} tokens, trained for {told['steps']:,} steps by `ropescale train "
        f"{Path(str(settings['recipe'])).stem}`. Load it with ropescale, which scales positions as in training:",
        "",
        "```python",
        "import ropescale",
        "",
        f"model = {load}",
        "```",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    for figure, shown in (("perplexity", "{:.2f}"), ("passkey", "{:.0%}")):
        for length, after in told["after"][figure].items():
            before = told["before"][figure][length]
            lines.append(f"| {figure} at {int(length):,} | {shown.format(before)} | {shown.format(after)} |")
    return "\n".join(lines) + "\n"
