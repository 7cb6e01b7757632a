"""What the trainer of `ropescale train` costs: speed and memory against Transformers' Trainer and TRL's SFTTrainer.

    python benchmarks/training.py --quick    # the embedded model, under two minutes; no claims
    python benchmarks/training.py            # SmolLM2-135M, about half an hour on two free cores

One model under yarn x4 with LoRA (rank 8 on attention), the same rows in the same order, AdamW, float32; every engine
has an adapter of its own. The sections:

    speed     tokens per second at 512 tokens: no less than Trainer's, within what two runs of Trainer differ by; where
              these differ by more than a tenth, the machine is too noisy and the section counts as missed. TRL's
              SFTTrainer is set to do the same work: its default would compute every layer twice (checkpointing) and
              use bfloat16. The bar is 1.15 times its speed; its speed with checkpointing is given beside it
    pose      a step of skip-wise positions, whose distances reach the target, against one of full rows of as many
              tokens: at most what two runs of full rows differ by, or 5 %
    memory    the peak of steps of 2,048 tokens above the loaded model, in fresh processes: at most 0.8 of Trainer's,
              and the same with four times the vocabulary, to 5 %. Every engine gives freed blocks of a megabyte back
              at once (MALLOC_MMAP_THRESHOLD_): glibc otherwise keeps holes, which count as if they were in use

Times are those of whole steps after the first, by rounds: in each, every engine runs once, in an order that turns, and
ratios are taken within a round. CPU time is given too: where the ratios differ, the machine did something else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # TRL looks for a model card

import datasets
import torch
import transformers
from circumstances import circumstances
from peft import PeftModel
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

import ropescale
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.data.preparing import prepare
from ropescale.recipes.loss import chunked_loss
from ropescale.recipes.options import Recipe
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.schedules import Draws, Schedule
from ropescale.recipes.trainer import RecipeTrainer
from ropescale.recipes.tuning import tuned

SECTIONS = ("speed", "pose", "memory")
ENGINES = ("trainer", "trainer again", "ours", "trl", "trl checkpointing")
NOISE = 0.1  # of Trainer against itself, above which a run tells nothing: the bar would move with the noise
PACKAGES = ("accelerate", "peft", "torch", "transformers", "trl")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which model, and rows of how many tokens."""

    model: str
    length: int  # speed
    batch: int  # rows of a step
    long: int  # memory


FULL = Sizes(model="smollm2", length=512, batch=1, long=2048)
QUICK = Sizes(model="tiny", length=128, batch=4, long=512)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated (default: all)")
    parser.add_argument("--quick", action="store_true", help="the embedded model: does it run at all")
    parser.add_argument("--rounds", type=int, default=5, help="of every engine once (default: 5)")
    parser.add_argument("--steps", type=int, default=7, help="of a run, the first of which is not timed (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--keep-holes", action="store_true", help="measure memory with glibc's own settings")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one engine in a fresh process: its peak memory
    return parser.parse_args()


def recipe_of(sizes: Sizes, *, length: int, batch: int, steps: int, folder: str) -> Recipe:
    """The shipped recipe for LoRA, without evaluations and checkpoints."""
    given = {
        "model": sizes.model,
        "data": "stdlib",
        "max_documents": 60,
        "length": length,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dtype": "float32",
        "warmup_steps": 0,
        "output_dir": folder,
    }
    return read_recipe("lora", [f"--{name}={value}" for name, value in given.items()])


def rows_of(recipe: Recipe, length: int) -> datasets.Dataset:
    """Rows of one document each, so that no engine has masks to make."""
    options = recipe.data
    options.packing = False
    return prepare(options, named_tokenizer(recipe.options.model), length).train


def model_of(recipe: Recipe, vocabulary: int | None = None) -> PeftModel:
    """The patched model with an adapter to be trained, from the same seed each time."""
    torch.manual_seed(0)
    model = ropescale.load(recipe.options.model, dtype=torch.float32)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return tuned(ropescale.patch(model, "yarn", factor=4), recipe.options)  # type: ignore[return-value]


class Watch(TrainerCallback):
    """Clocks at the end of every step, and the loss of each."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def plain(recipe: Recipe, rows: datasets.Dataset) -> dict[str, Any]:
    """What Trainer and SFTTrainer are both given: our arguments, and rows with labels in their order."""
    wanted = recipe.training
    return {
        "output_dir": wanted.output_dir,
        "per_device_train_batch_size": wanted.per_device_train_batch_size,
        "max_steps": wanted.max_steps,
        "learning_rate": wanted.learning_rate,
        "lr_scheduler_type": wanted.lr_scheduler_type,
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def engine(name: str, recipe: Recipe, model: nn.Module, rows: datasets.Dataset, watch: Watch) -> Callable[[], Any]:
    """A training that is ready to start."""
    if name.startswith("ours"):
        size = len(rows[0]["input_ids"])
        original = model.config.max_position_embeddings // 4  # type: ignore[union-attr, operator]
        schedule = Schedule(
            name="pose" if name == "ours pose" else "full_length",
            original_length=original,
            target_length=4 * original,
            length=size,
            content="contiguous",
        )
        count = recipe.training.max_steps * recipe.training.train_batch_size
        trainer: Trainer = RecipeTrainer(
            recipe,
            model,
            draws=InOrder(rows, schedule, count=count, seed=0),
            schedule=schedule,
            yardstick=None,  # type: ignore[arg-type]  # nothing is evaluated
            tokenizer=named_tokenizer(recipe.options.model),
        )
    elif name.startswith("trl"):
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **plain(recipe, rows),
                bf16=False,
                gradient_checkpointing=name == "trl checkpointing",
                max_length=len(rows[0]["input_ids"]),
            ),
            train_dataset=rows.select_columns(["input_ids"]),
            processing_class=named_tokenizer(recipe.options.model),
        )
    else:
        ids = rows["input_ids"]
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**plain(recipe, rows)),
            train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": ids}),
            data_collator=default_data_collator,
        )
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)

    def train() -> float:
        with chunked_loss(model) if name.startswith("ours") else nullcontext():
            return float(trainer.train().training_loss)

    return train


class InOrder(Draws):
    """Draws that take the rows as they lie, as the others do."""

    def row(self, draw: int) -> int:
        return draw % len(self.rows)


def say(line: str) -> None:
    print(line, flush=True)  # the next one may take a long time


def rounds(
    names: tuple[str, ...], sizes: Sizes, arguments: argparse.Namespace
) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """Tokens per second of engines in every round, by wall and by CPU time, and the loss of each."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(sizes, length=sizes.length, batch=sizes.batch, steps=arguments.steps, folder=folder)
        rows = rows_of(recipe, sizes.length).select(range(sizes.batch * arguments.steps))
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        losses: dict[str, float] = {}
        for number in range(arguments.rounds):
            turned = number % len(names)
            for name in (*names[turned:], *names[:turned]):
                watch = Watch()
                model = model_of(recipe)
                losses[name] = engine(name, recipe, model, rows, watch)()
                tokens = sizes.length * sizes.batch * (arguments.steps - 1)
                clocks = {"wall": watch.wall, "cpu": watch.cpu}
                taken[name].append({clock: tokens / (at[-1] - at[0]) for clock, at in clocks.items()})
            round_of = {name: f"{runs[-1]['wall']:,.0f}" for name, runs in taken.items()}
            say(f"round {number + 1}, tokens per second: {round_of}")
    return taken, losses


def ratios(taken: dict[str, list[dict[str, float]]], one: str, other: str, clock: str = "wall") -> list[float]:
    """The speed of one engine by that of another, round by round."""
    return [a[clock] / b[clock] for a, b in zip(taken[one], taken[other], strict=True)]


def apart(control: list[float]) -> float:
    """The largest difference of an engine from itself."""
    return max(abs(ratio - 1) for ratio in control)


def speed(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Tokens per second of every engine, and their ratios within rounds."""
    taken, losses = rounds(ENGINES, sizes, arguments)
    unlike = max(losses.values()) - min(losses.values())
    say(f"losses over the same rows: {unlike:.1e} apart at most ({losses['ours']:.4f})")
    figures: dict[str, Any] = {"tokens_per_second": taken, "losses": losses, "length": sizes.length}
    for clock in ("wall", "cpu"):
        control = ratios(taken, "trainer again", "trainer", clock)
        figures[clock] = {"control": control, "spread": apart(control)}
        figures[clock] |= {
            name: ratios(taken, "ours", name, clock) for name in ("trainer", "trl", "trl checkpointing")
        }
    wall, cpu = figures["wall"], figures["cpu"]
    found = {name: (median(wall[name]), median(cpu[name])) for name in ("trainer", "trl", "trl checkpointing")}
    say(f"Trainer against itself: {min(wall['control']):.2f} to {max(wall['control']):.2f}")
    say(
        f"ours / Trainer: {found['trainer'][0]:.2f} (CPU {found['trainer'][1]:.2f}; bar: {1 - wall['spread']:.2f}, "
        f"which is 1 less the largest difference of Trainer from itself)"
    )
    say(f"ours / SFTTrainer: {found['trl'][0]:.2f} (CPU {found['trl'][1]:.2f}; bar: 1.15)")
    default = found["trl checkpointing"]
    say(f"ours / SFTTrainer with its default, checkpointing: {default[0]:.2f} (CPU {default[1]:.2f})")
    quiet = not noisy(wall["spread"])
    met = quiet and found["trainer"][0] >= 1 - wall["spread"] and found["trl"][0] >= 1.15 and unlike < 1e-3
    return figures, met


def noisy(spread: float) -> bool:
    """Whether a control differs too much from itself; says so."""
    if spread > NOISE:
        say(f"the control differs from itself by {spread:.0%}: too noisy to claim anything (at most {NOISE:.0%})")
    return spread > NOISE


def pose(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Tokens per second of a step of skip-wise positions against those of full rows as long."""
    taken, _ = rounds(("ours", "ours again", "ours pose"), sizes, arguments)
    control, found = ratios(taken, "ours again", "ours"), ratios(taken, "ours pose", "ours")
    say(f"full rows against themselves: {min(control):.2f} to {max(control):.2f}")
    bar = 1 - max(apart(control), 0.05)
    say(f"pose / full rows, {sizes.length} tokens: {median(found):.2f} (bar: {bar:.2f})")
    figures = {"tokens_per_second": taken, "control": control, "ratios": found}
    return figures, not noisy(apart(control)) and median(found) >= bar


def status(field: str) -> int:
    """Bytes, as Linux counts this process: VmRSS is what it has now, VmHWM the most that it had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def child(task: str, sizes: Sizes) -> dict[str, float]:
    """The peak of one engine's steps above a loaded model: "ours:1" and "trainer:4", the vocabulary times so much."""
    name, _, times = task.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(sizes, length=sizes.long, batch=1, steps=3, folder=folder)
        rows = rows_of(recipe, sizes.long).select(range(3))
        vocabulary = len(named_tokenizer(sizes.model)) * int(times)
        train = engine(name, recipe, model_of(recipe, vocabulary), rows, Watch())
        Path("/proc/self/clear_refs").write_text("5")  # the peak of loading does not count
        loaded = status("VmRSS")
        loss = train()
    return {"loaded": loaded, "above": status("VmHWM") - loaded, "loss": loss}


def memory(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The peak of steps, ours against Trainer's, at one and at four vocabularies."""

    def measured(task: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--child", task, "--threads", str(arguments.threads)]
        command += ["--quick"] if arguments.quick else []
        allocator = {} if arguments.keep_holes else {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **allocator})
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    tasks = ("trainer:1", "ours:1", "ours:4", "trainer:4")
    found = {task: measured(task) for task in tasks}
    ratio = found["ours:1"]["above"] / found["trainer:1"]["above"]
    growth = {name: found[f"{name}:4"]["above"] / found[f"{name}:1"]["above"] for name in ("ours", "trainer")}
    say(
        f"steps of {sizes.long:,} tokens: {found['ours:1']['above'] / 2**20:,.0f} MiB above the model, Trainer "
        f"{found['trainer:1']['above'] / 2**20:,.0f} MiB: {ratio:.2f} of it (bar: 0.80)"
    )
    say(
        f"with four times the vocabulary: {growth['ours']:.2f} times as much (bar: 1.05), Trainer "
        f"{growth['trainer']:.2f} times"
    )
    figures = {
        "tokens": sizes.long,
        "keep_holes": arguments.keep_holes,
        "peaks": found,
        "ratio": ratio,
        "growth": growth,
    }
    return figures, ratio <= 0.8 and growth["ours"] <= 1.05


def main() -> int:
    arguments = parsed()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")  # of engines about one another
    torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else FULL
    if arguments.child:
        print(json.dumps(child(arguments.child, sizes)))
        return 0
    asked = arguments.sections.split(",")
    unknown = set(asked) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"--sections: must be of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    figures: dict[str, Any] = {
        "measured": circumstances(),
        "versions": {"ropescale": ropescale.__version__, **{name: version(name) for name in PACKAGES}},
        "model": sizes.model,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
    }
    missed = []
    for name in asked:
        figures[name], met = {"speed": speed, "pose": pose, "memory": memory}[name](sizes, arguments)
        if not met:
            missed.append(name)
        if arguments.output:
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.quick:
        print("the embedded model is too small for these bars; nothing is claimed")
        return 0
    print(f"bars missed: {', '.join(missed)}" if missed else "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
