"""Whether PoSE in TRL's SFTTrainer brings what `ropescale train pose` brings: docs/results/trainers.json.

Both train the embedded checkpoint under yarn x4 with LoRA on the same rows of 128 tokens, as many of them, with the
same seeds and settings of the optimizer; TRL through the collator of `ropescale.recipes`, as docs/trainers.md shows.
Each run is asked 200 passkeys at 512 tokens. One command measures what is missing; --only takes a part of it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import set_seed
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

import ropescale
from ropescale.evals.results import write_atomically
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes import PoseCollator, prepare, train
from ropescale.recipes.evaluation import yardstick
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.tuning import attention_layers

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "trainers"
RESULTS = ROOT / "docs" / "results" / "trainers.json"
SEEDS = (0, 1, 2)
T_95 = 4.303  # Student's, two degrees of freedom
ORIGINAL, TARGET = 128, 512  # tokens
OPTIONS = (
    "--model tiny --content contiguous --data sotu-sample passkey --data-weights 3 1 --batch-size 32 --max-steps 80 "
    "--learning-rate 2e-3 --eval-texts sample --eval-strategy no"
)
SAME = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "max_steps", "seed")


def main() -> None:
    """Run what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{loop}-{seed}" for seed in SEEDS for loop in ("ropescale", "trl")]
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="runs, instead of all")
    chosen = parser.parse_args().only
    logging.set_verbosity_error()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": {}}
    for run in chosen:
        if run not in kept["runs"]:
            loop, _, seed = run.partition("-")
            kept["runs"][run] = measured((ours if loop == "ropescale" else trl)(int(seed)))
            kept["runs"] = {name: kept["runs"][name] for name in every if name in kept["runs"]}
            if len(kept["runs"]) == len(every):
                kept["compared"] = compared(kept["runs"])
            write_atomically(RESULTS, json.dumps({"options": OPTIONS, **kept}, indent=1) + "\n")
    print(json.dumps(kept, indent=1))


def ours(seed: int) -> Any:
    """The model that `ropescale train pose` makes."""
    folder = OUT / f"ropescale-{seed}"
    given = f"{OPTIONS} --seed {seed} --output {folder}"
    train.run(read_recipe("pose", given.split()), f"ropescale train pose {given}")
    return ropescale.load_adapter("tiny", folder)


def trl(seed: int) -> Any:
    """The model that SFTTrainer makes of the same rows."""
    recipe = read_recipe("pose", f"{OPTIONS} --seed {seed} --output {OUT / f'trl-{seed}'}".split())
    options, tokenizer = recipe.options, named_tokenizer("tiny")
    rows = prepare(recipe.data, tokenizer, ORIGINAL, seed=seed)
    set_seed(seed)
    patched = ropescale.patch(ropescale.load("tiny"), options.method, factor=options.factor)
    layers = attention_layers(patched)
    lora = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=layers, task_type="CAUSAL_LM")
    model: Any = get_peft_model(patched, lora)
    trainer = SFTTrainer(
        model,
        SFTConfig(
            str(recipe.output),
            **{name: getattr(recipe.training, name) for name in SAME},
            per_device_train_batch_size=recipe.training.per_device_train_batch_size,
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows.train,
        data_collator=PoseCollator(target_length=TARGET, model=model),
        processing_class=tokenizer,
    )
    trainer.train()
    return model


def measured(model: Any) -> dict[str, float]:
    """The shares of passkeys that are answered, of 200 at each length, and perplexities."""
    measure = yardstick(
        named_tokenizer("tiny"), lengths=(ORIGINAL, TARGET), texts="sample", held_out=list, limit=15, passkeys=40
    )
    figures = measure.measured(model)
    return {
        f"{name}_{length}": value
        for name, values in (("passkey", figures.passkey), ("perplexity", figures.perplexity))
        for length, value in values.items()
    }


def compared(runs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Each loop over its seeds, and TRL less ours, paired by seed."""
    found: dict[str, Any] = {}
    for figure in runs["trl-0"]:
        ours, theirs = ([runs[f"{loop}-{seed}"][figure] for seed in SEEDS] for loop in ("ropescale", "trl"))
        differences = [one - other for one, other in zip(theirs, ours, strict=True)]
        found[figure] = {
            name: over_seeds(values) for name, values in (("ropescale", ours), ("trl", theirs), ("less", differences))
        }
    return found


def over_seeds(values: list[float]) -> dict[str, Any]:
    """The mean with Student's interval of 95 %."""
    mean = statistics.fmean(values)
    half = T_95 * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "interval": [mean - half, mean + half]}


if __name__ == "__main__":
    main()
