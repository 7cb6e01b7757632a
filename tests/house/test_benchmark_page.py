"""docs/benchmarks.md says what docs/results/benchmark-*.json hold: read here without the script that writes it."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]


def kept(name: str) -> dict:
    return json.loads((RESULTS / f"benchmark-{name}.json").read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_figures() -> None:
    told = subprocess.run([sys.executable, "scripts/benchmark_page.py", "--check"], cwd=ROOT, check=False)
    assert told.returncode == 0, "python scripts/benchmark_page.py writes it again"


def test_every_kept_benchmark_has_its_command_date_machine_and_load_on_the_page() -> None:
    files = sorted(RESULTS.glob("benchmark-*.json"))
    assert len(files) > 5
    for path in files:
        figures = json.loads(path.read_text(encoding="utf-8"))
        assert f"(results/{path.name})" in PAGE
        for said in figures["measured"].values():
            assert said in PAGE
        script = figures["measured"]["command"].split()[1]
        assert (ROOT / script).is_file()
        assert "circumstances()" in (ROOT / script).read_text(encoding="utf-8")


def test_what_missed_its_bar_is_told_and_nothing_else_is() -> None:
    figures = kept("late-rotation")
    apart = [one["rows"] for one in figures.values() if isinstance(one, dict) and "rows" in one]
    assert len(apart) == 2  # what was measured beside others that were busy
    late = [row for rows in (figures["rows"], *apart) for row in rows]
    expected = sum(one["bar"] is not None and one["ratio"] > one["bar"] for one in late)
    rows = [row for row in ROWS if row[0].startswith("`") and "patched / native" in row[0]]
    assert len(rows) == len(late)
    assert sum("**missed**" in row[3] for row in rows) == expected > 0
    for row, one in zip(rows, late, strict=True):
        assert f"`{one['method']}`: {one['what']}" in row[0]
        assert abs(float(row[1]) - one["ratio"]) <= (0.005 if one["ratio"] < 10 else 0.5)


def test_an_evaluation_is_held_against_what_was_promised_of_it() -> None:
    figures = kept("evaluation")
    promised = {"5 depths": 1.25, "11 depths": 1.5}  # times faster
    for name, one in figures["passkey"].items():
        (row,) = [row for row in ROWS if row[0] == f"passkeys, {name}, time"]
        faster = next(bar for depths, bar in promised.items() if name.endswith(f" {depths}"))
        assert ("**missed**" in row[3]) == (1 / one["cpu"] < faster)
    assert re.search(r"\d+ ratios, \d+ of them beyond their bar", PAGE)
