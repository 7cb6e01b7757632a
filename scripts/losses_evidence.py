"""What losses and the document mask buy on the embedded checkpoint: docs/results/losses.json, with one command.

Each run is `ropescale train demo` (LoRA under yarn x4, rows of 512 tokens, 80 steps) with the arm and the seed of its
name under out/losses, on the same tokens in the same order as the arm that it is held against; what is finished there
is read, not run again, and arms that --only leaves out keep the figures that losses.json holds. Every trained adapter
is asked the same 200 passkeys at 512 tokens, and what counts is what the answers cost (nats for each), how many are
right, and the perplexity of held-out windows.

The interval of a difference is Student's over the seeds, paired by seed: whether a run of another
seed would show it. Beside it stands that over prompts, by bootstrap, for these seeds as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

import ropescale
from ropescale.evals.forward import resting, scores
from ropescale.evals.passkey import PasskeySample, passkey_samples
from ropescale.evals.results import write_atomically
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes import train
from ropescale.recipes.evaluation import DEPTHS
from ropescale.recipes.reading import read_recipe

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "losses"
RESULTS = ROOT / "docs" / "results" / "losses.json"
LENGTH, COUNT, SEED = 512, 40, 1  # of the passkeys asked: tokens, prompts at each of five depths, their seed
SEEDS = (0, 1, 2)
T_95 = 4.303  # Student's, two degrees of freedom
SHORT = "--data stdlib passkey --max-tokens 400 --max-documents 1500"  # rows of several documents
ARMS = {
    "plain": "",
    "exact": "--loss exact",
    "longce": "--loss longce",
    "longred": "--loss longred",
    "mask": SHORT,
    "open": f"{SHORT} --document-mask false",
}
AGAINST = {"exact": "plain", "longce": "plain", "longred": "plain", "open": "mask"}


def main() -> None:
    """Run what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AGAINST, default=[*AGAINST], help="arms, instead of all")
    chosen = parser.parse_args().only
    logging.set_verbosity_error()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": {}, "compared": {}}
    asked = passkey_samples(named_tokenizer("tiny"), length=LENGTH, depths=DEPTHS, count=COUNT, seed=SEED)
    arms = sorted({*chosen, *(AGAINST[arm] for arm in chosen)}, key=[*ARMS].index)
    runs = {f"{arm}-{seed}": measured(arm, seed, asked) for arm in arms for seed in SEEDS}
    kept["compared"] |= {f"{arm} - {AGAINST[arm]}": compared(runs, arm) for arm in chosen}
    for run in runs.values():
        run.pop("nats_of_prompts")
    kept["runs"] |= runs
    write_atomically(RESULTS, json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept["compared"], indent=1))


def command(arm: str, seed: int) -> str:
    """What a person types for the run."""
    more = f" {ARMS[arm]}" if ARMS[arm] else ""
    return f"ropescale train demo --model tiny{more} --seed {seed} --output out/losses/{arm}-{seed}"


def measured(arm: str, seed: int, asked: list[PasskeySample]) -> dict[str, Any]:
    """One run, with its command, and what its adapter makes of the passkeys."""
    typed, folder = command(arm, seed), OUT / f"{arm}-{seed}"
    recipe, *options = shlex.split(typed.removeprefix("ropescale train "))
    told = train.run(read_recipe(recipe, [*options, "--output", str(folder)]), typed)
    nats, right = answers(ropescale.load_adapter("tiny", folder), asked)
    return {
        "command": typed,
        **{name: told[name] for name in ("steps", "tokens", "seconds", "threads")},
        "documents_of_a_row": told["account"]["pieces"]["train"] / told["account"]["rows"]["train"],
        "perplexity": told["after"]["perplexity"],
        "answer_nats": statistics.fmean(nats),
        "passkeys": statistics.fmean(right),
        "nats_of_prompts": nats,
    }


def answers(model: Any, asked: list[PasskeySample]) -> tuple[list[float], list[bool]]:
    """What each answer costs, nats, and whether every token of it is the first choice."""
    nats: list[float] = []
    right: list[bool] = []
    count = asked[0].answer_length
    with resting(model):
        for ids in torch.split(torch.tensor([one.input_ids for one in asked]), 8):
            rows = torch.arange(len(ids)).repeat_interleave(count)
            places = torch.arange(ids.shape[1] - count - 1, ids.shape[1] - 1).repeat(len(ids))
            found = scores(model, ids[:, :-1], rows, places, torch.arange(len(rows)), ids[:, -count:].flatten())
            nats += (-found.logprobs.view(len(ids), count).sum(1)).tolist()
            right += found.greedy.view(len(ids), count).all(1).tolist()
    return nats, right


def compared(runs: dict[str, dict[str, Any]], arm: str) -> dict[str, Any]:
    """The differences of an arm from what it is held against; below zero is better, but for passkeys."""
    pairs = [(runs[f"{arm}-{seed}"], runs[f"{AGAINST[arm]}-{seed}"]) for seed in SEEDS]
    found: dict[str, Any] = {
        "answer_nats": over_seeds([one["answer_nats"] - other["answer_nats"] for one, other in pairs]),
        "passkeys": over_seeds([one["passkeys"] - other["passkeys"] for one, other in pairs]),
    }
    for length in pairs[0][0]["perplexity"]:
        ratios = [math.log(one["perplexity"][length] / other["perplexity"][length]) for one, other in pairs]
        found[f"log_perplexity_{length}"] = over_seeds(ratios)
    differences = np.mean([np.subtract(one["nats_of_prompts"], other["nats_of_prompts"]) for one, other in pairs], 0)
    draws = np.random.default_rng(0).integers(0, len(differences), (10_000, len(differences)))
    found["answer_nats"]["over_prompts"] = np.quantile(differences[draws].mean(1), [0.025, 0.975]).tolist()
    return found


def over_seeds(differences: list[float]) -> dict[str, Any]:
    """Their mean with an interval of 95 %."""
    mean = statistics.fmean(differences)
    half = T_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"seeds": differences, "mean": mean, "interval": [mean - half, mean + half]}


if __name__ == "__main__":
    main()
