"""Read damaged files of every format by the hundred thousand, and note what came of it.

    python scripts/fuzz.py --inputs 2000                  # over all targets, by their shares
    python scripts/fuzz.py --inputs 2000 --target config  # of one
    python scripts/fuzz.py --inputs 100000 --note         # and write docs/results/fuzz.json

The targets are those of tests/support/fuzzing.py, which the tests run too, on other inputs. Every target runs in
processes of its own, so that a crash costs one piece of it and is seen. What fails is written below out/fuzz, to be
mended and put into tests/faults/corpus. Exit status 1 where anything failed.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
PIECE = 250  # inputs of one target at a time

from fuzzing import TARGETS, Outcome, attack, damaged, facts_of, kept, together  # noqa: E402  # by the path above


def piece(name: str, first: int, last: int) -> Outcome:
    """What came of some inputs of a target."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        return attack(name, range(first, last), Path(folder, "folder"))


def pieces(counts: dict[str, int], start: int) -> list[tuple[str, int, int]]:
    """Target, first and last number of every piece, so that all targets come on alike."""
    found = []
    for name, count in counts.items():
        for begin in range(0, count, PIECE):
            end = min(begin + PIECE, count)
            found.append((end / count, name, start + begin, start + end))
    return [one[1:] for one in sorted(found)]


def run(todo: list[tuple[str, int, int]], processes: int, until: float) -> Iterator[tuple[str, Outcome]]:
    """What came of each piece, as they end; after `until` (monotonic seconds) none is begun."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    running: dict[Future[Outcome], tuple[str, int, int]] = {}
    broken = False
    while (todo and time.monotonic() < until) or running:
        while todo and len(running) < processes and time.monotonic() < until and not broken:
            one = todo.pop(0)
            running[pool.submit(piece, *one)] = one
        for job in wait(running, return_when=FIRST_COMPLETED).done:
            name, first, last = running.pop(job)
            try:
                yield name, job.result()
            except BrokenProcessPool:  # a crash, of this piece or of one beside it
                broken = True
                yield name, Outcome(faults={f"{name}: the process died": f"within {first} to {last}"})
        if broken and not running:
            pool, broken = ProcessPoolExecutor(processes, get_context("spawn")), False
    pool.shutdown()


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
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which nothing is begun")
    parser.add_argument("--note", action="store_true", help=f"write {NOTE.relative_to(ROOT)}")
    given = parser.parse_args()
    counts = {name: given.inputs * target.share // 100 for name, target in TARGETS.items()}
    counts = {given.target: given.inputs} if given.target else counts
    outcomes, began = dict.fromkeys(counts, Outcome()), time.monotonic()
    for name, outcome in run(pieces(counts, given.start), given.processes, began + 60 * given.minutes):
        for kind, said in outcome.faults.items():
            if kind not in outcomes[name].faults:
                place = keep(name, said) if said.split()[0].isdigit() else OUT
                print(f"{kind}: {said}\n    kept at {place}", flush=True)
        outcomes[name] = together([outcomes[name], outcome])
        if given.note:
            write_note(outcomes, given.processes, time.monotonic() - began)
    for name, outcome in outcomes.items():
        print(name, facts_of(outcome), dict(outcome.ended.most_common()), flush=True)
    print(sum(outcome.inputs for outcome in outcomes.values()), "inputs")
    return int(any(outcome.faults for outcome in outcomes.values()))


def write_note(outcomes: dict[str, Outcome], processes: int, wall: float) -> None:
    """What is known so far, for docs/faults.md."""
    note = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processes": processes,
        "wall_seconds": round(wall),
        "inputs": sum(outcome.inputs for outcome in outcomes.values()),
        "targets": {name: facts_of(outcome) for name, outcome in outcomes.items()},
    }
    NOTE.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
