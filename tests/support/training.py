"""A small training run, for test_training.py to call and to launch: one that may be killed on its way."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from ropescale.evals.texts import sample
from ropescale.recipes import train
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.trainer import RecipeTrainer

STEPS = 6


def options(folder: Path, *more: str) -> list[str]:
    """Six steps of two rows of 256 tokens, a checkpoint every other step; texts and cache lie beside the output."""
    texts = folder.parent / "texts"
    if not texts.exists():
        texts.mkdir(parents=True)
        for document in sample()[:6]:
            (texts / f"{document.name}.txt").write_text(document.text[:12_000], encoding="utf-8")
    given = {
        "model": "tiny",
        "factor": "2",
        "data": str(texts),
        "cache_dir": str(folder.parent / "cache"),
        "held_out": "0.2",
        "eval_windows": "2",
        "eval_passkeys": "1",
        "eval_steps": "3",
        "max_steps": str(STEPS),
        "warmup_steps": "2",
        "batch_size": "2",
        "save_steps": "2",
        "logging_steps": "1",
        "lora_dropout": "0.1",  # draws from torch's generator, which a checkpoint has to hold
        "seed": "5",
    }
    if "--eval-strategy" in more:
        del given["eval_steps"]
    return [*(f"--{name.replace('_', '-')}={value}" for name, value in given.items()), "--output", str(folder), *more]


def run(name: str, folder: Path, *more: str) -> dict[str, Any]:
    """The run, from its beginning or its last checkpoint."""
    torch.set_num_threads(1)
    return train.run(read_recipe(name, options(folder, *more)), "ropescale train ...")


def kill_at(step: int, *, saving: bool) -> None:
    """Have this process killed by SIGKILL in the middle of a step, or while the checkpoint after it is written."""
    name = "_save_rng_state" if saving else "training_step"
    before = getattr(RecipeTrainer, name)

    def killed(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= step:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(self, *args, **kwargs)

    setattr(RecipeTrainer, name, killed)


if __name__ == "__main__":
    recipe, output, what, number = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    if what in ("step", "save"):
        kill_at(number, saving=what == "save")
    if what == "full":  # no file may grow beyond so many bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    run(recipe, output, *sys.argv[5:])
