"""What a search costs and what it brings: candidates a second, and factors found against formulas on the tiny model.

    python benchmarks/search.py                     # twenty-five minutes of one core
    python benchmarks/search.py --seeds 0 --factors 8 --output a.json

A candidate is swapped into the live model. Held against that is loading, patching and reading for each, as a script
without ropescale would; both read the same samples, one window of 256 tokens, so that what is compared is the way in.
Pairs are measured one after the other in random order. Then searches of 300 candidates, of several seeds: what was
found against formulas of the registry (with seed 0 against every one, with others against the best three), on texts
and needles that no candidate has read. Their seconds are those of the processor: what else the machine does counts
little.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from circumstances import circumstances

import ropescale
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.evals.texts import sample
from ropescale.methods import Method, get_method
from ropescale.request import Request
from ropescale.search import Found, search
from ropescale.search.objective import Samples, samples
from ropescale.search.trial import Put, trials

PACKAGES = ("ropescale", "torch", "transformers", "cmaes")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="pairs of the speed (default: 25; 0 for none)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the searches (default: 0 1 2)")
    parser.add_argument("--factors", type=int, nargs="*", default=[8, 4], help="of the searches (default: 8 4)")
    parser.add_argument("--candidates", type=int, default=300, help="of a search (default: 300)")
    parser.add_argument("--folder", type=Path, help="keep each search here, with its page")
    parser.add_argument("--output", type=Path, help="add the figures to this JSON file")
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def drawn(number: int) -> Method:
    """A candidate: other factors every time."""
    stretches = tuple(1 + number % 7 / 10 + pair / 4 for pair in range(16))
    return get_method("longrope")(factor=2, long_factor=stretches, attention_factor=1.1)  # type: ignore[call-arg]


def speed(rounds: int) -> dict[str, Any]:
    """Seconds of a candidate, by swap and by reload, and the ratio of pairs; with the reading, and without it."""
    read = samples(
        read_tokenizer(resolve("tiny")), sample(), original_length=128, length=256, needles=0, limit=1, seed=0
    )
    model = ropescale.load("tiny").eval()

    def swapped(put: Put, number: int, some: Samples | None) -> None:
        put(drawn(number))
        if some is not None:
            some.losses(model)

    def reloaded(number: int, some: Samples | None) -> None:
        fresh = ropescale.patch(ropescale.load("tiny").eval(), drawn(number))
        if some is not None:
            some.losses(fresh)

    figures: dict[str, Any] = {}
    for name, some in (("read", read), ("ready", None)):
        pairs = []
        with trials(model, Request()) as put:
            swapped(put, 0, some), reloaded(0, some)
            for number in range(1, rounds + 1):
                works = {"swap": lambda n=number, p=put, s=some: swapped(p, n, s),
                         "reload": lambda n=number, s=some: reloaded(n, s)}  # fmt: skip
                order = random.Random(number).sample(list(works), 2)
                pairs.append({way: seconds(works[way]) for way in order})
        ratios = sorted(pair["reload"] / pair["swap"] for pair in pairs)
        figures[name] = {
            "swap": statistics.median(pair["swap"] for pair in pairs),
            "reload": statistics.median(pair["reload"] for pair in pairs),
            "ratio": {"low": ratios[len(ratios) // 20], "median": statistics.median(ratios), "high": ratios[-1]},
        }
        print(f"a candidate {name}: {json.dumps(figures[name])}", flush=True)
    return figures


def searched(factor: int, seed: int, candidates: int, compared: int, folder: Path | None) -> dict[str, Any]:
    """One search of the embedded model, with so many formulas beside it."""
    model, tokenizer = ropescale.load("tiny"), read_tokenizer(resolve("tiny"))
    start, wall = time.process_time(), time.perf_counter()
    output = None if folder is None else folder / f"x{factor}-seed{seed}"
    found: Found = search(
        model, tokenizer, factor=factor, seed=seed, candidates=candidates, compared=compared, output=output
    )
    told: dict[str, Any] = {
        "factor": factor,
        "seed": seed,
        "candidates": found.steps[-1].candidates,
        "processor seconds": time.process_time() - start,
        "seconds": time.perf_counter() - wall,
        "load": os.getloadavg()[0],
        "start": found.start,
        "knobs": found.knobs,
        "arms": {name: {measure: arm.mean(measure) for measure in found.measures} for name, arm in found.arms.items()},
    }
    for measure in found.measures:
        best = found.best(measure)
        told[f"{measure} against {best}"] = found.against(best, measure)._asdict()
    told["short against unpatched"] = found.against("unpatched", "short")._asdict()
    print(json.dumps({name: value for name, value in told.items() if name not in ("knobs", "arms")}), flush=True)
    return told


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    stated = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.exists() else {}
    stated |= {"measured": circumstances(), "versions": {name: version(name) for name in PACKAGES}}

    def keep() -> None:
        if arguments.output:
            arguments.output.write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")

    if arguments.rounds:
        stated["speed"] = speed(arguments.rounds)
        keep()
    for factor in arguments.factors:
        for seed in arguments.seeds:
            # every formula beside the first seed, and the best three of them beside the others
            told = searched(factor, seed, arguments.candidates, 3 if seed else 99, arguments.folder)
            others = [one for one in stated.get("searches", []) if (one["factor"], one["seed"]) != (factor, seed)]
            stated["searches"] = sorted([*others, told], key=lambda one: (-one["factor"], one["seed"]))
            keep()


if __name__ == "__main__":
    main()
