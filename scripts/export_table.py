"""Run every method in every engine against the patched model, and write the table of docs/exports.md.

    make exports                                        all engines; needs `make vllm`, mlx-lm and mlx[cpu]
    python scripts/export_table.py --engines gguf       some of them; the others keep what the page says

Two models: the embedded checkpoint, and a random Llama with head_dim 64; factor 4; prompts below the original length,
beyond it and up to the target. A cell holds the largest difference of any log-probability of the vocabulary.
"""

import argparse
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

from ropescale import outside  # noqa: E402
from ropescale.errors import ExportError  # noqa: E402
from ropescale.export import ENGINES, Engine, export, verify  # noqa: E402
from ropescale.export.engines.base import engine_of  # noqa: E402
from ropescale.methods import list_methods  # noqa: E402

PAGE = ROOT / "docs" / "exports.md"
BEGIN, END = "<!-- made by scripts/export_table.py -->\n", "<!-- end -->\n"
PENDING = "not measured yet"
PAIRS = {"tiny": 16, "llama": 32}
KNOBS: dict[str, dict[str, Any]] = {"learned": {"max_length": 512}}


def measured(method: str, engine: Engine, sources: dict[str, str], *, lossy: bool = False) -> float | str:
    """The largest difference over the models, or the refusal."""
    worst = 0.0
    for name, source in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"model{engine.suffix}")
            given = {**knobs_for(method, PAIRS[name]), **KNOBS.get(method, {})}
            try:
                export(source, path, to=engine.name, method=method, factor=4, lossy=lossy, **given)
            except ExportError as refusal:
                return str(refusal)
            verdict = verify(path, engine=engine.called, reference=source)
            agreed = all(check.agreed == check.steps for check in verdict.checks)
            # nope's reference is another attention function than the engine's, and rounds otherwise
            tolerance = max(min(verdict.tolerance, engine.near), 1e-4 if method == "nope" else 0)
            if not lossy and not (agreed and verdict.worst.worst <= tolerance):
                raise SystemExit(f"{method} on {name}: {verdict}")
            worst = max(worst, verdict.worst.worst)
    return worst


def cell(method: str, engine: Engine, sources: dict[str, str]) -> str:
    """What an engine makes of a method, in a few words."""
    found = measured(method, engine, sources)
    if isinstance(found, float):
        return f"exact, {found:.0e}" if found else "exact, 0"
    if engine.plain:
        return "with `ropescale.load` alone"
    approximated = measured(method, engine, {"tiny": "tiny"}, lossy=True)
    if isinstance(approximated, str):
        return "refused"
    nearest = re.search(r"nearest that engines hold exactly: (\w+)", found)
    assert nearest is not None
    return f"lossy: {nearest.group(1)}, off by {approximated:.1g}"


def by_source(method: str, engine: Engine) -> str:
    """The same for an engine that is not run: whether its words can say the method exactly."""
    with tempfile.TemporaryDirectory() as folder:
        given = {**knobs_for(method, PAIRS["tiny"]), **KNOBS.get(method, {})}
        for lossy in (False, True):
            try:
                export("tiny", Path(folder, "out"), to=engine.name, method=method, factor=4, lossy=lossy, **given)
            except ExportError:
                continue
            return "lossy" if lossy else "exact"
    return "refused"


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """The cells of the table that the page holds, by method and title of the engine."""
    lines = [line.strip("|").split("|") for line in page.partition(BEGIN)[2].partition(END)[0].splitlines()]
    if not lines:
        return {}
    titles = [cell.partition("(")[0].strip() for cell in lines[0][1:]]
    cells = {line[0].strip(" `"): [cell.strip() for cell in line[1:]] for line in lines[2:]}
    return {method: dict(zip(titles, found, strict=True)) for method, found in cells.items()}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--import", dest="imports", action="append", default=[], help="a file that defines engines")
    parser.add_argument("--engines", help="by their names, separated by commas (default: all)")
    parser.add_argument("--methods", help="separated by commas; the others keep what the page says (default: all)")
    arguments = parser.parse_args()
    outside.run_files(arguments.imports)
    engines = [engine_of(name) for name in arguments.engines.split(",")] if arguments.engines else ENGINES.values()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    methods = arguments.methods.split(",") if arguments.methods else list_methods()
    with tempfile.TemporaryDirectory() as folder:
        sources = {"tiny": "tiny", "llama": str(checkpoint(Path(folder, "llama")))}
        for method in track(methods, description="methods", console=Console(stderr=True)):
            for engine in engines:
                found = cell(method, engine, sources) if engine.running else by_source(method, engine)
                rows.setdefault(method, {})[engine.title] = found
            # after each: what was measured stays if a later engine fails
            head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
            PAGE.write_text(f"{head}{BEGIN}{table(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")


def table(rows: dict[str, dict[str, str]]) -> str:
    """Of every method that was measured, what every engine that is known makes of it."""
    heads = []
    for engine in ENGINES.values():
        stated = [engine.verified] * bool(engine.verified) + ["by its source"] * (not engine.running)
        heads.append(f"{engine.title} ({', '.join(stated)})" if stated else engine.title)
    lines = [["method", *heads], ["---"] * (1 + len(heads))]
    for method in sorted(rows, key=lambda name: (name not in FIXED, name)):
        lines.append([f"`{method}`", *(rows[method].get(one.title, PENDING) for one in ENGINES.values())])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    main()
