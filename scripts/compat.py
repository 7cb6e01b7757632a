"""The core of the tests on the oldest, several older, and the newest Transformers 5; writes docs/versions.md.

    python scripts/compat.py                     # every version of PINS, about five minutes each on 2 quiet cores
    python scripts/compat.py --versions 5.24.0   # that one; the lines of the others stay

Each version gets an environment of its own in .venv-compat: its Transformers with the tokenizers and huggingface_hub
that fit it, over the packages of .venv, which has torch, PEFT and pytest as constraints.txt pins them.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "versions.md"
FIGURES = ROOT / "docs" / "results" / "versions.json"
OLD = {"tokenizers": "0.22.2", "huggingface_hub": "1.9.0", "httpx": "0.28.1", "typer-slim": "0.24.0"}
NEW = {"tokenizers": "0.23.3", "huggingface_hub": "2.4.0"}
PINS: dict[str, dict[str, str]] = {
    "5.0.0": OLD,
    "5.8.0": OLD,
    "5.14.1": OLD,
    "5.19.0": NEW,
    "5.23.0": NEW,
    "5.24.0": NEW,
}
CORE = ["test_tiny", "test_laws", "test_reference", "test_proof", "test_bars", "test_saving", "test_late"]
START = """# Versions of Transformers

ropescale is made for every Transformers 5. `make compat` runs the core of the tests (`{core}`)
on these, each with the packages that fit it, over the torch and PEFT of constraints.txt; families that a version
lacks, whose tiny config it cannot build, or that are refused there by name, are left out by one rule (`runs` in
tests/support/families.py). A newer version than the last one here is named in a warning at the first patch, and the
[proof](proof.md) on the model decides.

| Transformers | beside it | families | passed | skipped | failed | run |
|---|---|---|---|---|---|---|
"""
# By hand, in an environment of these floors over the packages of constraints.txt, on Transformers 5.23.0
FLOORS = """
## Floors of the other packages

Run on 2026-11-28, on Transformers 5.23.0 with accelerate 1.10.1 and datasets 4.0.0:

| package | passes | does not |
|---|---|---|
| PEFT | 0.20.0 (`test_adapters, test_merging`) | 0.19.0: one that ties embedding and head is exported without a head |
| lm-eval | 0.4.12 (`test_grid`), 0.4.10 (`test_engine`) | 0.4.11 and before: no `TaskManager.load`, so no task runs |
| datasets | 4.0.0 (`test_data`) | |
| accelerate | 1.10.1 (beside all of these) | |
"""


def built(version: str) -> Path:
    """The Python of an environment with that version, over the packages of .venv."""
    folder = ROOT / ".venv-compat" / version
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        wanted = [f"transformers=={version}", *(f"{name}=={pin}" for name, pin in PINS[version].items())]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        if "httpx" in PINS[version]:  # and what that needs
            subprocess.run([python, "-m", "pip", "install", "--quiet", f"httpx=={PINS[version]['httpx']}"], check=True)
        own = next(folder.glob("lib/*/site-packages"))
        (own / "packages.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        (folder / ".installed").touch()
    return python


def files_of(names: list[str]) -> list[str]:
    """The files of tests whose names begin so."""
    return [str(path) for name in names for path in sorted((ROOT / "tests").rglob(f"{name}*.py"))]


def tested(version: str, names: list[str]) -> dict[str, object]:
    """What the tests said on that version."""
    python = built(version)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests" / "support")}
    counted = "import families, transformers; print(transformers.__version__, len(families.NAMES))"
    asked = [python, "-c", counted]
    found = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout.split()
    if found[-2] != version:
        raise SystemExit(f"{version}: not the version that ran, got {found[-2]}")
    # the page is what this writes
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not page_of_versions", *files_of(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    print(done.stdout[-3000:], flush=True)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    return {
        "families": int(found[-1]),
        "passed": counts.get("passed", 0),
        "skipped": counts.get("skipped", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0),
        "run": datetime.date.today().isoformat(),
        "pins": PINS[version],
    }


def page(figures: dict[str, dict[str, object]]) -> str:
    """docs/versions.md."""
    rows = []
    for version in PINS:
        one = figures.get(version)
        beside = ", ".join(f"{name} {pin}" for name, pin in PINS[version].items() if name in NEW)
        told = (
            [str(one[key]) for key in ("families", "passed", "skipped", "failed", "run")] if one else ["not run"] * 5
        )
        rows.append(f"| {version} | {beside} | {' | '.join(told)} |")
    return START.format(core=", ".join(CORE)) + "\n".join(rows) + "\n" + FLOORS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default=",".join(PINS), help="comma-separated; all of PINS by default")
    parser.add_argument(
        "--tests",
        default=",".join(CORE),
        help="what names of files of tests begin with, comma-separated; the core by default",
    )
    parser.add_argument("--files", action="store_true", help="print the files of these tests, and run nothing")
    arguments = parser.parse_args()
    if arguments.files:
        print(*files_of(arguments.tests.split(",")))
        return 0
    figures: dict[str, dict[str, object]] = {}
    for version in arguments.versions.split(","):
        print(f"transformers {version}", flush=True)
        one = tested(version, arguments.tests.split(","))
        figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}  # others may run beside this
        figures[version] = one
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(figures))
    print(f"page: {PAGE}")
    return 1 if any(figures[version]["failed"] for version in arguments.versions.split(",")) else 0


if __name__ == "__main__":
    raise SystemExit(main())
