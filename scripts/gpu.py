"""What waits for a GPU, in steps of under ten minutes: docs/results/gpu/, with one command.

    make gpu                                  # the same as python scripts/gpu.py
    python scripts/gpu.py --dry-run           # every step: what it shows, what it needs, its command; runs nothing
    python scripts/gpu.py --only agreement flex-32k
    python scripts/gpu.py --minutes 25        # begins nothing that could end later; the same command goes on
    python scripts/gpu.py --rehearse          # every step in small on this CPU: does its command run; keeps no figures

A step is a command in a process of its own, which is stopped after ten minutes with all that it started. Long ones are
evaluations, searches and trainings, which go on from what they have when they are given again: this is done until they
end, and a step that brought nothing new in ten minutes has failed. Each step that ended has its command, device,
versions, seconds and what it wrote in docs/results/gpu/STEP/; it is not run again unless --again says so. The exit
status is 0 where all that was asked is there, 1 where a step failed or was left, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from ropescale.evals.results import write_atomically

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "results" / "gpu"
WORK = ROOT / "out" / "gpu"
LIMIT = 570  # seconds of one command: of those that lend machines, some stop what takes ten minutes
RUN = "ropescale"
SMOLLM2 = "smollm2"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, in full and in small."""

    name: str
    shows: str
    command: str  # {out} is its folder
    rehearsal: str  # the same on a CPU, in small
    devices: int = 1
    resumable: bool = False
    keeps: tuple[str, ...] = ("*.json",)  # of its folder, what is copied to docs


def accelerated(machine: str, more: str) -> str:
    """A command of ropescale under accelerate, in two processes."""
    return (
        f"accelerate launch --config_file recipes/machines/{machine}.yaml --num_processes 2 --module {RUN}.cli {more}"
    )


TRAIN = "--model tiny --max-steps 8 --batch-size 1 --eval-steps 8"
STEPS = (
    Step(
        name="agreement",
        shows="logits of every method against those of a CPU, in float32 and bfloat16",
        command="python scripts/device_agreement.py --output {out}/agreement.json",
        rehearsal="python scripts/device_agreement.py --device cpu --methods yarn --output {out}/agreement.json",
    ),
    *(
        Step(
            name=f"flex-{length // 1024}k",
            shows=f"what late rotation costs at {length:,} tokens, by flex attention",
            command=f"python benchmarks/flex.py --lengths {length} --output {{out}}/flex.json",
            rehearsal="python benchmarks/flex.py --device cpu --lengths 256 --rounds 1 --methods self_extend "
            "--output {out}/flex.json",
        )
        for length in (32768, 131072)
    ),
    Step(
        name="qlora",
        shows="LoRA on SmolLM2 in 4 bits: memory, time, what it finds",
        command=f"{RUN} train qlora --model {SMOLLM2} --factor 2 --data sotu --max-steps 60 --batch-size 1 "
        "--gradient-checkpointing true --eval-steps 30 --save-steps 10 --output {out}",
        rehearsal=f"{RUN} train qlora {TRAIN} --output {{out}}",
        resumable=True,
        keeps=("training.json",),
    ),
    *(
        Step(
            name=f"training-{recipe}",
            shows=f"SmolLM2 x2 by the recipe {recipe}, in full size",
            command=f"{RUN} train {recipe} --model {SMOLLM2} --factor 2 --data sotu --max-steps 200 --batch-size 2 "
            "--gradient-checkpointing true --eval-steps 100 --save-steps 20 --output {out}",
            rehearsal=f"{RUN} train {recipe} {TRAIN} --output {{out}}",
            resumable=True,
            keeps=("training.json",),
        )
        for recipe in ("pose", "lora")
    ),
    Step(
        name="ruler",
        shows="SmolLM2 over all of RULER that needs no download, x2 and x4",
        command=f"{RUN} eval {SMOLLM2} --methods ntk,by_parts,yarn,dynamic_yarn,dynamic_self_extend --factors 2,4 "
        "--tasks position,ruler,cloze --lengths 4096,8192,16384,32768 --samples 20 --output {out}",
        rehearsal=f"{RUN} eval tiny --methods yarn --factors 2 --tasks position,cloze --lengths 128 --windows 1 "
        "--limit 4 --output {out}",
        resumable=True,
        keeps=("report.json", "evaluate.json"),
    ),
    *(
        Step(
            name=f"search-x{factor}",
            shows=f"SmolLM2 x{factor}: what a search finds against the formulas",
            command=f"{RUN} search {SMOLLM2} --factor {factor} --candidates 150 --held-out 20 --output {{out}}",
            rehearsal=f"{RUN} search tiny --factor {factor} --candidates 4 --windows 1 --batches 1 --held-out 2 "
            "--output {out}",
            resumable=True,
            keeps=("search.json",),
        )
        for factor in (2, 4)
    ),
    *(
        Step(
            name=machine,
            shows=f"a training in two processes by {machine}: that it shards and ends",
            command=accelerated(
                machine, f"train full --model {SMOLLM2} --factor 2 --data sotu --packing false --max-steps 10 "
                "--batch-size 1 --eval-steps 10 --output {out}"
            ),
            rehearsal=f"{RUN} train full {TRAIN} --packing false --output {{out}}",
            devices=2,
            keeps=("training.json",),
        )
        for machine in ("fsdp2", "fsdp2_cp")
    ),
)  # fmt: skip


def main() -> int:
    """Run what is asked and not there yet."""
    asked = parsed()
    steps = [step for step in STEPS if step.name in asked.only]
    if asked.dry_run:
        for step in steps:
            print(f"{step.name}: {step.shows}{'' if step.devices == 1 else f'; needs {step.devices} GPUs'}")
            print(f"  {typed(step, WORK)}")
        return 0
    if asked.rehearse:
        return 1 if [step.name for step in steps if not rehearsed(step)] else 0
    if not torch.cuda.is_available():
        print(
            "no GPU: torch finds none here (torch.cuda.is_available() is False); --dry-run shows what would run, and "
            "--rehearse runs it in small on the CPU",
            file=sys.stderr,
        )
        return 2
    until = time.monotonic() + 60 * asked.minutes
    left = [step.name for step in steps if not done(step, until, again=asked.again)]
    print(f"left: {', '.join(left)}" if left else "all that was asked is in docs/results/gpu")
    return 1 if left else 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="in all; the default is no limit")
    parser.add_argument("--again", action="store_true", help="run what is there already, from its beginning")
    parser.add_argument("--dry-run", action="store_true", help="print the steps")
    parser.add_argument("--rehearse", action="store_true", help="run every step in small on the CPU")
    return parser.parse_args()


def typed(step: Step, under: Path, *, small: bool = False) -> str:
    """The command of a step as a person types it in the root of the checkout."""
    folder = under / step.name
    out = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return (step.rehearsal if small else step.command).format(out=shlex.quote(str(out)))


def done(step: Step, until: float, *, again: bool) -> bool:
    """Whether a step is there, after running it where it is not."""
    if again:
        for folder in (WORK / step.name, KEPT / step.name):
            shutil.rmtree(folder, ignore_errors=True)
    if (KEPT / step.name / "step.json").exists():
        print(f"{step.name}: there already")
        return True
    if torch.cuda.device_count() < step.devices:
        print(f"{step.name}: needs {step.devices} GPUs, {torch.cuda.device_count()} here")
        return False
    seconds = 0.0
    while time.monotonic() + LIMIT <= until:
        before, start = written(WORK / step.name), time.monotonic()
        status = run(step, WORK)
        seconds += time.monotonic() - start
        if status == 0:
            keep(step, seconds)
            return True
        if status is not None:
            print(f"{step.name}: failed, exit status {status}; its output is above")
            return False
        if not step.resumable or written(WORK / step.name) == before:
            print(f"{step.name}: stopped after {LIMIT} seconds{', which brought nothing new' * step.resumable}")
            return False
        print(f"{step.name}: stopped after {LIMIT} seconds; it goes on")
    print(f"{step.name}: no time left for it")
    return False


def run(step: Step, under: Path, *, small: bool = False) -> int | None:
    """The exit status; None where it was stopped, with every process that it began."""
    command = typed(step, under, small=small)
    print(f"{step.name}: {command}", flush=True)
    (under / step.name).mkdir(parents=True, exist_ok=True)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, "PATH": search}, start_new_session=True
    )
    try:
        return process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def written(folder: Path) -> Sequence[tuple[str, int]]:
    """Names and sizes of what a step has made so far."""
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*") if path.is_file())


def keep(step: Step, seconds: float) -> None:
    """Copy what a step found, and last what says that it ended."""
    folder = KEPT / step.name
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in step.keeps:
        for path in sorted((WORK / step.name).glob(pattern)):
            write_atomically(folder / path.name, path.read_text(encoding="utf-8"))
    said = {
        "shows": step.shows,
        "command": typed(step, WORK),
        "devices": [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": round(seconds, 1),
    }
    write_atomically(folder / "step.json", json.dumps(said, indent=1) + "\n")


def rehearsed(step: Step) -> bool:
    """Whether a step's command runs in small on this CPU and writes what would be kept."""
    under = ROOT / "build" / "gpu"
    shutil.rmtree(under / step.name, ignore_errors=True)
    status = run(step, under, small=True)
    missing = [pattern for pattern in step.keeps if not any((under / step.name).glob(pattern))]
    print(f"{step.name}: exit status {status}{f'; it did not write {missing}' if missing else ''}")
    return status == 0 and not missing


if __name__ == "__main__":
    raise SystemExit(main())
