"""Every untrained arm on the embedded checkpoint at x4 and x8, with and without log-n: docs/results/arms.json.

    python scripts/arms.py                      # a quarter of an hour on two quiet cores
    python scripts/arms.py --factors 4          # half of them
    python scripts/arms.py --methods ms_poe,lpes  # two arms and the unpatched model, beside what is kept of others

Each line of the table is `ropescale eval tiny` with 70 passkeys at the target length for each of three seeds, and 8
windows of held-out text, every arm on the same prompts and windows. Results lie under out/arms, where a run that was
stopped goes on; what is not run keeps the figures that arms.json holds. The interval of passkeys is Wilson's over 210
prompts.
"""

from __future__ import annotations

import argparse
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import torch

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.evals.results import UNPATCHED, Arm, Results, read, write_atomically
from ropescale.evals.statistics import wilson
from ropescale.evals.texts import documents, training
from ropescale.ranking import head_ranks
from ropescale.recommend.figures import change_between, found_at, perplexity_between

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "arms"
RESULTS = ROOT / "docs" / "results" / "arms.json"
L = 128  # tokens
SEEDS = (0, 1, 2)
SAMPLES = 14  # at each of five depths
# Of no use before a training, without a longer context, or with a knob that nobody knows: not among these
PLAIN = (
    "linear", "ntk", "ntk_fixed", "ntk_mixed", "by_parts", "yarn", "llama3", "truncated", "unscaled", "mrrope",
    "dynamic_linear", "dynamic_ntk", "dynamic_yarn", "self_extend", "dynamic_self_extend", "jet_long", "dpe", "rerope",
    "leaky_rerope", "dual_chunk", "lm_infinite", "streaming", "ms_poe", "lpes",
)  # fmt: skip
# What `ropescale search tiny --factor 4 --space knobs --method lpes --budget 2m` found
CURVE = (1.333060596353066, 3.9729591138716485, 4.4331345461942435, 1.923023288977837)
TEMPERATURES = {"none": None, "log_n": "log_n"}


def knobs(factor: int) -> dict[str, dict[str, Any]]:
    """Knobs that are no defaults: groups for the factor, and windows that a context of 128 tokens has room for."""
    return {
        "self_extend": {"group_size": 2 * factor, "window": L // 2},
        "rerope": {"window": L // 2},
        "leaky_rerope": {"window": L // 2},
        "dpe": {"window": L // 2},
        "jet_long": {"window": L // 4},
        "ms_poe": {"start": 0, "low": 1.0, "high": float(factor), "ranks": ranks()},
        "lpes": {"points": CURVE},
    }


@cache
def ranks() -> list[list[int]]:
    """Of the heads, by 32 windows of the training texts."""
    tokenizer = read_tokenizer(resolve("tiny"))
    ids = [token for text in training(documents("sample")) for token in tokenizer(text.text)["input_ids"]]
    return head_ranks(ropescale.load("tiny"), torch.tensor(ids[: 32 * L]).view(32, L))


def main() -> None:
    """Run what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", type=int, nargs="+", default=[4, 8], help="of the arms (default: 4 8)")
    parser.add_argument("--methods", type=lambda given: tuple(given.split(",")), default=PLAIN, help="default: all")
    arguments = parser.parse_args()
    for factor in arguments.factors:
        for name, temperature in TEMPERATURES.items():
            made = table(factor, name, temperature, arguments.methods)
            kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
            kept.setdefault(f"x{factor}, {name}", {}).update(made)
            write_atomically(RESULTS, json.dumps(kept, indent=1) + "\n")
            print(markdown(kept))


def table(factor: int, name: str, temperature: str | None, methods: tuple[str, ...]) -> dict[str, Any]:
    """What each arm does at a factor, under a temperature."""
    results = []
    for seed in SEEDS:
        given = {method: own for method, own in knobs(factor).items() if method in methods}
        if temperature:
            given = {method: {**given.get(method, {}), "temperature": temperature} for method in methods}
        folder = OUT / "-".join((f"x{factor}", name, str(seed), *(() if methods == PLAIN else methods)))
        tasks = "passkey" if seed else "position,passkey --windows 8"  # the windows are no other ones by the seed
        typed = (
            f"eval tiny --methods {','.join(methods)} --factors {factor} --tasks {tasks} --lengths {L * factor} "
            f"--samples {SAMPLES} --seed {seed} --output {shlex.quote(str(folder))}"
        )
        assert cli.main([*shlex.split(typed), "--knobs", json.dumps(given)]) == 0
        results.append(read(folder))
    return {
        arm.method: figures(results, arm, factor * L)
        for arm in (UNPATCHED, *(Arm(method=m, factor=factor) for m in methods))
    }


def figures(results: list[Results], arm: Arm, length: int) -> dict[str, Any]:
    """Passkeys of all seeds at the target length, and perplexities within and beyond the original length."""
    shares = [found_at(one, arm, length) for one in results]
    found, asked = round(sum(share.found for share in shares)), sum(share.asked for share in shares)
    change = change_between(results[0], arm, 0, L)
    return {
        "passkeys": [found, asked],
        "share": found / asked,
        "interval": wilson(found, asked),
        "by seed": [round(share.found) for share in shares],
        "perplexity beyond": perplexity_between(results[0], arm, L, length),
        "perplexity within": perplexity_between(results[0], arm, 0, L),
        "change within": None if change is None else [change.value, change.low, change.high],
    }


def markdown(kept: dict[str, dict[str, Any]]) -> str:
    """The tables as docs/results/README.md has them: passkeys, and perplexity beyond the original length."""
    kept = dict(sorted(kept.items()))
    lines = ["| arm | " + " | ".join(kept) + " | within |", "|---" * (len(kept) + 2) + "|"]
    for method in (UNPATCHED.method, *PLAIN):
        own = [tab.get(method) for tab in kept.values()]
        cells = [f"{100 * one['share']:.0f} %, {one['perplexity beyond']:.2f}" if one else "" for one in own]
        read = [one["perplexity within"] for one in own if one]
        within = f"{min(read):.2f} to {max(read):.2f}" if read else ""
        lines.append(f"| {method} | {' | '.join(cells)} | {within} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
