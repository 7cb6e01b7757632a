"""Write ropescale/recommend/trained.json: what recipes brought, of docs/results/training.json, for advice in a wheel.

    python scripts/trained.py

Only runs on a method of fixed frequencies: what stands in the place of rotation is no extension to choose.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from ropescale.methods import FixedMethod, get_method

ROOT = Path(__file__).parent.parent
SOURCE = "docs/results/training.json"


def main() -> int:
    figures = json.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    runs = [kept for name, run in figures["runs"].items() if (kept := told(name, run))]
    path = ROOT / "ropescale" / "recommend" / "trained.json"
    path.write_text(json.dumps({"source": SOURCE, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    return 0


def told(name: str, run: dict[str, Any]) -> dict[str, Any] | None:
    """What an advice says of a run; None of one on another system of positions."""
    recipe = shlex.split(run["command"])[2]
    method = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))["method"]
    if not issubclass(get_method(method), FixedMethod):
        return None
    inside, target = min(run["unpatched"]["passkey"], key=int), max(run["after"]["passkey"], key=int)
    pairs = {
        f"{what}_{where}": [run[when][measure][length] for when in ("before", "after")]
        for what, measure in (("found", "passkey"), ("perplexity", "perplexity"))
        for where, length in (("inside", inside), ("target", target))
    }
    return {
        "run": name,
        "command": run["command"],
        "method": method,
        "original_length": int(inside),
        "target_length": int(target),
        **{key: run[key] for key in ("steps", "tokens", "seconds", "threads")},
        **pairs,
    }


if __name__ == "__main__":
    raise SystemExit(main())
