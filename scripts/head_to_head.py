"""Every method on the embedded checkpoint at x2, x4 and x8: untrained, searched, trained, against native.

    python scripts/head_to_head.py                                    # an hour of two quiet cores; see the page
    python scripts/head_to_head.py --only '*-x4-untrained-*'          # some cells; what was measured before is kept
    python scripts/head_to_head.py --only 'yarn-x2-*' --again         # once more, and compared to the last digit
    python scripts/head_to_head.py --only none                        # page and picture from the figures alone

A cell is METHOD-xFACTOR-STAGE-SEED and a file under out/head-to-head, so that a run that was stopped goes on where it
was; docs/results/head-to-head.json holds them all, beside what they say together. A seed draws windows of held-out
text and passkeys, which every method reads alike, and what is trained. Stages:

    untrained  patched, nothing else
    searched   the stretches of pairs that the searches of docs/results/benchmark-search.json found, from the same seed
    trained    every weight trained for a short while: `ropescale train full`, methods of fixed frequencies alone
    native     the same architecture trained at the length from the beginning: figures of docs/results/training.json

Figures are those of one thread a process, so that they are the same again. What log-n brings is in arms.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from arms import PLAIN, L, knobs
from head_to_head_page import write_page
from torch import Tensor
from transformers.utils import logging

import ropescale
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.evals.forward import resting, scores, token_losses
from ropescale.evals.passkey import PasskeySample, passkey_samples
from ropescale.evals.results import write_atomically
from ropescale.evals.tasks.windows import windows
from ropescale.evals.texts import documents
from ropescale.methods import FixedMethod, get_method
from ropescale.recipes import train
from ropescale.recipes.reading import read_recipe

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "head-to-head"
RESULTS = ROOT / "docs" / "results"
FACTORS = (4, 8, 2)
SEEDS = (0, 1, 2)
WINDOWS, COUNT = 15, 10  # of each seed: windows of text, passkeys at each depth
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
AT_ONCE = 8192  # tokens of a forward pass
STAGES = ("untrained", "searched", "trained")  # in the order in which they are run
# Knobs for those that have no defaults and no row among the untrained arms
MORE: dict[str, dict[str, Any]] = {
    "abf": {"theta": 5e5},  # Xiong et al. 2023, for eight times the length and for all
    "power": {},
    "proportional": {"partial_rotary_factor": 0.75},  # Barbero et al. 2024
}
METHODS = ("unpatched", *PLAIN, *MORE)
REPLACING = "takes the place of rotation, so the checkpoint has to learn positions anew: docs/results/training.md"
LEFT_OUT = {
    "longrope": "has no stretches of its own: it is what the searches found, stage searched",
    "string": "reaches no further than the original length",
    **dict.fromkeys(("alibi", "cope", "learned", "nope", "shaw", "sinusoidal", "t5"), REPLACING),
}
UNTRAINED = "acts when attention reads, and was published for models that are not trained on"
# Of every method alike, 4,096 tokens a step at any length; evaluated here
STEPS, TOKENS = 50, 4096
TRAINING = (
    f"full --model tiny --data sotu passkey --data-weights 6 1 --eval-texts sample --eval-windows 1 --eval-passkeys 0 "
    f"--eval-strategy no --save-strategy no --max-steps {STEPS} --learning-rate 1e-3"
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method, at one factor, in one stage, with one seed."""

    method: str
    factor: int
    stage: str
    seed: int

    @property
    def name(self) -> str:
        """By which it is asked for, and its file."""
        return f"{self.method}-x{self.factor}-{self.stage}-{self.seed}"

    @property
    def length(self) -> int:
        """The target, in tokens."""
        return self.factor * L


def grid() -> list[Cell]:
    """All cells that are measured here, what matters most first."""
    found = json.loads((RESULTS / "benchmark-search.json").read_text(encoding="utf-8"))["searches"]
    searches = {(one["factor"], one["seed"]) for one in found}
    of_stage = {
        "untrained": METHODS,
        "searched": ("longrope",),
        "trained": tuple(
            method for method in METHODS if method != "unpatched" and issubclass(get_method(method), FixedMethod)
        ),
    }
    return [
        Cell(method=method, factor=factor, stage=stage, seed=seed)
        for stage in STAGES
        for seed in SEEDS
        for factor in FACTORS
        for method in of_stage[stage]
        if stage != "searched" or (factor, seed) in searches
    ]


def main() -> None:
    """Run what is missing of what is asked for, and write the figures, the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="CELL", help="names or patterns of cells")
    parser.add_argument("--processes", type=int, default=2, help="that share the cells (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="run these cells anew elsewhere, and compare")
    asked = parser.parse_args()
    chosen = [cell for cell in grid() if any(fnmatchcase(cell.name, pattern) for pattern in asked.only)]
    if asked.again:
        raise SystemExit(compared(chosen, asked.processes))
    missing = [cell for cell in chosen if not (OUT / f"{cell.name}.json").exists()]
    OUT.mkdir(parents=True, exist_ok=True)
    for cell, row in made(missing, OUT, asked.processes):
        print(f"{cell.name}: {told(row)}", flush=True)
    path = RESULTS / "head-to-head.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    rows = {row["name"]: row for row in kept}
    for cell in grid():
        if (file := OUT / f"{cell.name}.json").exists():
            rows[cell.name] = json.loads(file.read_text(encoding="utf-8"))
    order = [cell.name for cell in grid()]
    write_page(
        [rows[name] for name in order if name in rows],
        natives=natives(),
        missing=[name for name in order if name not in rows],
        left_out=LEFT_OUT,
        settings={
            "original_length": L, "windows": WINDOWS, "passkeys": COUNT * len(DEPTHS), "seeds": list(SEEDS),
            "training": TRAINING, "tokens_of_a_step": TOKENS, "untrained": UNTRAINED,
        },
        folder=RESULTS,
    )  # fmt: skip


def made(cells: Iterable[Cell], folder: Path, processes: int) -> Iterable[tuple[Cell, dict[str, Any]]]:
    """The cells as they are finished, each written to the folder."""
    cells = list(cells)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=alone) as pool:
        yield from zip(cells, pool.map(run, cells, [folder] * len(cells)), strict=True)


def alone() -> None:
    """One thread, on which the last digits depend, and no notices."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """One cell, measured and written."""
    began = time.process_time()
    model, own = prepared(cell, folder)
    ready = time.process_time()
    row = {
        "name": cell.name,
        "method": cell.method,
        "factor": cell.factor,
        "stage": cell.stage,
        "seed": cell.seed,
        "knobs": own,
        **measured(model, cell),
    }
    # of the processor, on one thread: what else the machine does counts little
    row["seconds"] = {"before": round(ready - began, 2), "measuring": round(time.process_time() - ready, 2)}
    if cell.stage == "searched":
        row["seconds"]["before"] = round(found(cell)["processor seconds"], 2)
    write_atomically(folder / f"{cell.name}.json", json.dumps(row, indent=1) + "\n")
    return row


def prepared(cell: Cell, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a cell, with the knobs of its method that are no defaults."""
    if cell.method == "unpatched":
        return ropescale.load("tiny"), {}
    own = knobs_of(cell)
    if cell.stage != "trained":
        return ropescale.patch(ropescale.load("tiny"), cell.method, factor=cell.factor, **own), own
    place = folder / f"{cell.name}.model"
    shutil.rmtree(place, ignore_errors=True)  # of a run that was stopped: it takes half a minute, and keeps nothing
    given = ["--method", cell.method, "--factor", str(cell.factor), "--knobs", json.dumps(own)]
    given += ["--batch-size", str(TOKENS // cell.length), "--seed", str(cell.seed), "--output", str(place)]
    recipe, *options = TRAINING.split()
    train.run(read_recipe(recipe, [*options, *given]), "scripts/head_to_head.py")
    trained = ropescale.load(place)
    shutil.rmtree(place)
    return trained, own


def knobs_of(cell: Cell) -> dict[str, Any]:
    """Those of its method that are no defaults."""
    if cell.method == "longrope":
        return dict(found(cell)["knobs"])
    return MORE[cell.method] if cell.method in MORE else knobs(cell.factor).get(cell.method, {})


def found(cell: Cell) -> dict[str, Any]:
    """The search of a factor and a seed that tried most candidates."""
    kept = json.loads((RESULTS / "benchmark-search.json").read_text(encoding="utf-8"))["searches"]
    of_cell = [one for one in kept if (one["factor"], one["seed"]) == (cell.factor, cell.seed)]
    return max(of_cell, key=lambda one: one["candidates"])


def measured(model: Any, cell: Cell) -> dict[str, Any]:
    """What a model makes of the texts and the passkeys of a seed, at the original length and at the target."""
    read, asked = samples(cell.length, cell.seed)
    with resting(model):
        losses = torch.cat([token_losses(model, ids) for ids in torch.split(read, max(AT_ONCE // cell.length, 1))])
        hits = {str(length): answered(model, prompts) for length, prompts in asked.items()}
    ranges = [(0, L), *((L * 2**k, L * 2 ** (k + 1)) for k in range(cell.factor.bit_length() - 1))]
    # column i holds the loss of token i + 1
    nats = {f"{low}-{high}": losses[:, max(low - 1, 0) : high - 1].double().sum(1) for low, high in ranges}
    tokens = {f"{low}-{high}": high - max(low, 1) for low, high in ranges}
    return {
        "perplexity": {
            **{name: float((nats[name].mean() / tokens[name]).exp()) for name in nats},
            f"0-{cell.length}": float(losses.double().mean().exp()),
        },
        "passkeys": {length: [marks.count("1"), len(marks)] for length, marks in hits.items()},
        "nats": {name: [round(value, 4) for value in of_windows.tolist()] for name, of_windows in nats.items()},
        "tokens": tokens,
        "hits": hits,
    }


@cache
def samples(length: int, seed: int) -> tuple[Tensor, Mapping[int, list[PasskeySample]]]:
    """[windows, length] ids of held-out text, and passkeys by length; with seed 0 those of `ropescale train`."""
    tokenizer = read_tokenizer(resolve("tiny"))
    return texts(length)[WINDOWS * seed : WINDOWS * (seed + 1)], {
        where: passkey_samples(tokenizer, length=where, depths=DEPTHS, count=COUNT, seed=seed) for where in (L, length)
    }


@cache
def texts(length: int) -> Tensor:
    """[windows of all seeds, length] ids: of each document its first window, then its second ..."""
    tokenizer = read_tokenizer(resolve("tiny"))
    cuts = windows(documents("sample"), tokenizer, length=length, limit=WINDOWS * len(SEEDS))
    assert len(cuts) == WINDOWS * len(SEEDS)
    return torch.tensor([cutter.encoding(first, cutter.last(first, length)) for cutter, _, first in cuts])


def answered(model: Any, prompts: list[PasskeySample]) -> str:
    """A 1 for each prompt whose every answer token is the model's first choice, else a 0; depth by depth."""
    marks = ""
    count, length = prompts[0].answer_length, len(prompts[0].input_ids)
    for ids in torch.split(torch.tensor([one.input_ids for one in prompts]), max(AT_ONCE // length, 1)):
        rows = torch.arange(len(ids)).repeat_interleave(count)
        places = torch.arange(length - count - 1, length - 1).repeat(len(ids))
        scored = scores(model, ids[:, :-1], rows, places, torch.arange(len(rows)), ids[:, -count:].flatten())
        marks += "".join(str(int(right)) for right in scored.greedy.view(len(ids), count).all(1))
    return marks


def natives() -> list[dict[str, Any]]:
    """The models that were trained at the length from the beginning, on the windows of seed 0: text alone."""
    control = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))["control"]
    return [
        {"factor": int(name.removeprefix("x")), "command": one["command"], "perplexity": one["figures"]["perplexity"]}
        for name, one in control.items()
    ]


def compared(cells: list[Cell], processes: int) -> int:
    """Run cells once more, and hold them to the last digit against those kept; how many differ."""
    kept = {row["name"]: row for row in json.loads((RESULTS / "head-to-head.json").read_text())["cells"]}
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for cell, row in made([cell for cell in cells if cell.name in kept], Path(folder), processes):
            again, before = (json.dumps({**one, "seconds": None}, sort_keys=True) for one in (row, kept[cell.name]))
            differing += again != before
            print(f"{cell.name}: {'the same' if again == before else 'OTHER FIGURES'}", flush=True)
    return differing


def told(row: dict[str, Any]) -> str:
    """A line of progress."""
    text = ", ".join(f"{figure:.2f} at {where}" for where, figure in row["perplexity"].items())
    keys = ", ".join(f"{right} of {asked} at {length}" for length, (right, asked) in row["passkeys"].items())
    return f"perplexity {text}; passkeys {keys}; {sum(row['seconds'].values()):.0f} s"


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
