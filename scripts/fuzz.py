"""Read damaged files of every format by the hundred thousand, and note what came of it.

    python scripts/fuzz.py --inputs 2000                  # over all targets, by their shares
    python scripts/fuzz.py --inputs 2000 --target config  # of one
    python scripts/fuzz.py --inputs 100000 --note         # and write docs/results/fuzz.json

The targets are those of tests/support/fuzzing.py, which the tests run too, on other inputs. Every target runs in
processes of its own, so that a crash costs one piece of it and is seen. What fails is written below out/fuzz, to be
mended and put into tests/faults/corpus. Exit status 1 where anything failed.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"
)

import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
NOTE = ROOT / "docs" / "results" / "fuzz.json"
OUT = ROOT / "out" / "fuzz"
PIECE = 1000  # inputs of one target that a process reads

from fuzzing import TARGETS, Outcome, attack, damaged, facts_of, kept, together  # noqa: E402  # by the path above


def piece(name: str, first: int, last: int) -> Outcome:
    """What came of some inputs of a target."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        return attack(name, range(first, last), Path(folder, "folder"))


def run(name: str, count: int, start: int, processes: int) -> Outcome:
    """Every piece of one target."""
    begins = range(start, start + count, PIECE)
    # each piece in a process of its own: what one leaves behind is not there for the next
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=4) as pool:
        jobs = {begin: pool.submit(piece, name, begin, min(begin + PIECE, start + count)) for begin in begins}
        found = []
        for begin, job in jobs.items():
            try:
                found.append(job.result())
            except BrokenProcessPool:
                told = f"{begin} to {begin + PIECE}"
                found.append(Outcome(faults={f"{name}: the process died": told}))
    return together(found)


def keep(name: str, told: str) -> Path:
    """Write the input of a fault, as it lies in its folder, for a look and for the corpus."""
    number = int(told.split()[0])
    with tempfile.TemporaryDirectory() as folder:
        TARGETS[name].make(Path(folder, "folder"))
        whole = {file: Path(folder, "folder", file).read_bytes() for file in TARGETS[name].files}
    file, content = damaged(name, whole, kept(name), number)
    path = OUT / name / str(number) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all targets together (default: 10000)")
    parser.add_argument("--target", choices=sorted(TARGETS), help="one alone (default: all)")
    parser.add_argument("--start", type=int, default=0, help="the number of the first input (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="at a time (default: 1)")
    parser.add_argument("--note", action="store_true", help=f"write {NOTE.relative_to(ROOT)}")
    given = parser.parse_args()
    counts = {name: given.inputs * target.share // 100 for name, target in TARGETS.items()}
    counts = {given.target: given.inputs} if given.target else counts
    told, failed, began = {}, False, time.monotonic()
    for name, count in counts.items():
        outcome = run(name, count, given.start, given.processes)
        told[name] = facts_of(outcome)
        print(name, told[name], dict(outcome.ended.most_common()), flush=True)
        for kind, said in outcome.faults.items():
            failed = True
            place = keep(name, said) if said.split()[0].isdigit() else OUT
            print(f"  {kind}: {said}\n    kept at {place}", flush=True)
    if given.note:
        note = {
            "date": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "processes": given.processes,
            "wall_seconds": round(time.monotonic() - began),
            "targets": told,
        }
        NOTE.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
