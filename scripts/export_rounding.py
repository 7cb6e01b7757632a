"""Whose rounding is it? SmolLM2 in vLLM and in Transformers, each against the same model in float64.

    python scripts/export_rounding.py                 # the table of docs/exports.md; ten minutes, needs `make vllm`
    python scripts/export_rounding.py --methods yarn --lengths 512

A rotation that an engine got wrong differs from both; rounding differs from either by as much as that engine rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

import ropescale
from ropescale.export import export
from ropescale.export.engines.vllm import generated
from ropescale.export.running import Run
from ropescale.export.verification import STEPS, prompt_of

MODEL, FACTOR = "smollm2", 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["none", "yarn", "by_parts"], help="none: as published")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 9000], help="of the prompts, tokens")
    asked = parser.parse_args()
    logging.disable_progress_bar()
    print("| method | tokens | vLLM, float32 | Transformers, float32 | vLLM from Transformers |", flush=True)
    print("|---" * 5 + "|", flush=True)
    for method in asked.methods:
        for line in compared(method, asked.lengths):
            print(line, flush=True)


def compared(method: str, lengths: Sequence[int]) -> list[str]:
    """The rows of a method; the unscaled model gets no prompt beyond its own length."""
    arguments: dict[str, Any] = {} if method == "none" else {"method": method, "factor": FACTOR}
    model = loaded(arguments, torch.float32)
    room = model.config.max_position_embeddings - STEPS
    tokens = range(model.config.vocab_size)
    prompts = [prompt_of(tokens, min(length, room), seed) for seed, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        served = Path(folder, "served")
        export(MODEL, served, to="vllm", **(arguments or {"method": "none"}))
        runs = generated(served, prompts, STEPS, {})
    wide = loaded(arguments, torch.float64)
    lines = []
    for prompt, run in zip(prompts, runs, strict=True):
        single, exact = logprobs(model, prompt, run), logprobs(wide, prompt, run)
        figures = (off(run.logprobs, exact), off(single, exact), off(run.logprobs, single))
        lines.append(f"| {method} | {len(prompt):,} | {' | '.join(figures)} |")
    return lines


def loaded(arguments: dict[str, Any], dtype: torch.dtype) -> Any:
    """The model, patched where there are arguments; its frequencies are float32 in either type."""
    model = ropescale.load(MODEL, dtype=dtype)
    return ropescale.patch(model, **arguments) if arguments else model


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], run: Run) -> np.ndarray[Any, Any]:
    """[steps, vocabulary] in the type of the model: of every token that vLLM chose, in one pass."""
    ids = torch.tensor([[*prompt, *run.tokens[:-1]]])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(run.tokens)).logits[0]
    found: np.ndarray[Any, Any] = torch.log_softmax(logits, dim=-1).numpy()
    return found


def off(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> str:
    """The largest difference."""
    return f"{np.abs(one.astype(np.float64) - other).max():.1e}"


if __name__ == "__main__":
    main()
