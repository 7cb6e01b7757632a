"""The README.md of a trained folder: what it is, how it is loaded, and what training changed. Pure."""

from __future__ import annotations

from pathlib import Path

from ropescale.recipes.run import Run


def card(run: Run, *, adapter: bool) -> str:
    """The text; of a base that is a folder here, its name alone is told."""
    settings, record = run.settings, run.record
    base = str(settings["model"])
    local = base.startswith((".", "/", "~")) or "\\\\" in base or Path(base).exists()
    name = Path(base).name if local else base
    facts = ["library_name: peft" if adapter else "library_name: transformers", "tags: [ropescale, long-context]"]
    if not local and "/" in base:
        facts.insert(0, f"base_model: {base}")
    loss = settings.get("loss", "plain")  # runs of earlier versions do not say it
    by = "" if loss == "plain" else f" with loss {loss}"
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
        f"{record['target_length']:,} tokens, trained for {run.steps:,} steps by `ropescale train "
        f"{Path(str(settings['recipe'])).stem}`{by}. Load it with ropescale, which scales positions as in training:",
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
    shown = {"perplexity": "{:.2f}", "passkey": "{:.0%}"}
    for name, said, before, after in run.compared():
        lines.append(f"| {said} | {shown[name].format(before)} | {shown[name].format(after)} |")
    return "\n".join(lines) + "\n"
