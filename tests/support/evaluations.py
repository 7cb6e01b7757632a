"""Folders of results as an evaluation writes them, with seeded figures: what the report's tests read."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

RULER = ("niah_single_1", "niah_single_2", "niah_multikey_1", "vt", "cwe")
TASKS = ("perplexity", "position", "longppl", "passkey", "needle", *RULER, "cloze", "arc_easy")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ARMS = (
    ("none", 1.0),
    ("linear", 2.0),
    ("ntk", 2.0),
    ("yarn", 2.0),
    ("linear", 4.0),
    ("ntk", 4.0),
    ("yarn", 4.0),
)
COST = {"none": 0.0, "linear": 0.12, "ntk": 0.01, "yarn": 0.015}  # nats per token inside, times log2 of the factor
SKILL = {"none": 0.97, "linear": 0.35, "ntk": 0.9, "yarn": 0.96}


def write_evaluation(
    folder: Path,
    *,
    arms: Sequence[tuple[str, float]] = ARMS,
    tasks: Sequence[str] = TASKS,
    lengths: Sequence[int] = (64, 128, 256, 512),
    original_length: int = 128,
    samples: int = 5,
    depths: Sequence[float] = DEPTHS,
    text: str = "",
    documents: int = 4,
) -> Path:
    """Write run.json, results.jsonl and timings.jsonl; `text` is put wherever a string can come from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": text or "tiny",
        "weights": "0123456789abcdef",
        "dtype": "float32",
        "original_length": original_length,
        "backend": "transformers",
        "tasks": {
            name: {
                "version": 1,
                **({"samples": samples, "depths": list(depths)} if name in ("passkey", "needle") else {}),
            }
            for name in tasks
        },
        "lengths": list(lengths),
        "seed": 0,
        "texts": "fedcba9876543210",
        "versions": {"ropescale": "0.2.0", "torch": "2.13.0", "transformers": "5.23.0", "lm_eval": text or "0.4.13"},
    }
    session = {
        "command": f"ropescale eval tiny --methods linear,ntk,yarn --factors 2,4 --output {text or 'out/eval-tiny'}",
        "date": "2026-11-24T04:00:00+00:00",
        "processor": text or "AMD EPYC",
        "cores": 2,
        "threads": 1,
        "system": "Linux-6.18-x86_64",
        "python": "3.11.7",
        "device": "cpu",
    }
    (folder / "run.json").write_text(json.dumps({"settings": settings, "sessions": [session]}), encoding="utf-8")
    cells: list[dict[str, Any]] = []
    for method, factor in arms:
        axes = {"method": method, "factor": factor}
        record = None if method == "none" else {"method": method, "knobs": {"factor": factor, "note": text}}
        cells.append({"task": "record", **axes, "record": record})
        for task in tasks:
            fitting = [n for n in lengths if method == "none" or n <= factor * original_length]
            if task in ("cloze", "arc_easy"):
                cells.append({"task": task, **axes, "length": None, **_choices(task, method, factor)})
            elif task == "position":
                reaches = {max(n for n in lengths if n <= f * original_length) for _, f in arms}
                for length in sorted({*reaches, lengths[-1]}) if method == "none" else fitting[-1:]:
                    cells.append({"task": task, **axes, "length": length})
                    cells[-1]["samples"] = _positions(method, factor, length, original_length, documents, text)
            else:
                for length in fitting:
                    cell = {"task": task, **axes, "length": length}
                    if task in ("perplexity", "longppl"):
                        cell |= _losses(task, method, factor, length, original_length, documents, text)
                    else:
                        cell |= _replies(task, method, factor, length, original_length, samples, depths, text)
                    cells.append(cell)
    (folder / "results.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells), encoding="utf-8")
    timings = [
        {name: cell.get(name) for name in ("task", "method", "factor", "length")}
        | {"seconds": 0.25 + (cell.get("length") or 0) / 100, "tokens": 40 * (cell.get("length") or 0)}
        for cell in cells
    ]
    (folder / "timings.jsonl").write_text("".join(json.dumps(one) + "\n" for one in timings), encoding="utf-8")
    return folder


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What an arm of a planted evaluation shows, inside the original length of 128 tokens and up to 256."""

    found: tuple[int, int] = (0, 0)  # prompts of each length; the first ones, from `shift` on
    perplexity: tuple[float, float] = (20.0, 20.0)
    shift: int = 0  # prompts: which of them are found, round the corner
    noise: float = 0.002  # nats per token and window of its own


def plant(
    folder: Path,
    arms: Mapping[tuple[str, float], Planted],
    *,
    prompts: int = 50,
    windows: int = 12,
    tasks: Sequence[str] = ("position", "passkey"),
) -> Path:
    """Write results of arms that show what is asked for, the unpatched model's ("none", 1.0) among them."""
    write_evaluation(folder, arms=[*arms], tasks=tasks, lengths=(128, 256))
    cells: list[dict[str, Any]] = []
    for (method, factor), planted in arms.items():
        axes = {"method": method, "factor": factor}
        cells.append({"task": "record", **axes, "record": None})
        if "position" in tasks:
            samples = [_window(method, factor, planted, number) for number in range(windows)]
            cells.append({"task": "position", **axes, "length": 256, "samples": samples})
        for length, right in zip((128, 256), planted.found, strict=True):
            found = {(planted.shift + number) % prompts for number in range(right)}
            answers = [
                {"id": i, "depth": 0.5, "score": float(i in found), "target": ["7"], "reply": "7"}
                for i in range(prompts)
            ]
            if "passkey" in tasks:
                cells.append({"task": "passkey", **axes, "length": length, "scores": {}, "samples": answers})
    rewrite(folder, cells)
    return folder


def _window(method: str, factor: float, planted: Planted, number: int) -> dict[str, Any]:
    """A window of 256 tokens, of which all arms find some harder than others."""
    shared, own = random.Random(f"window {number}"), random.Random(f"{method} {factor} {number}")
    hard = shared.gauss(0, 0.2)
    means = [math.log(planted.perplexity[i // 2]) + hard + own.gauss(0, planted.noise) for i in range(4)]
    tokens = [63, 64, 64, 64]
    return {
        "document": f"d{number}",
        "window": 0,
        "edges": [1, 64, 128, 192, 256],
        "nll": [count * mean for count, mean in zip(tokens, means, strict=True)],
        "tokens": tokens,
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    """The cells of a folder."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def rewrite(folder: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Put these cells in the place of those that are there."""
    (folder / "results.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells), encoding="utf-8")


def _loss(method: str, factor: float, position: float, original: int) -> float:
    """Nats per token: falling slowly with context, plus what a method costs and what lies beyond its reach."""
    loss = 3.2 - 0.06 * math.log2(max(position, 8) / 8) + COST.get(method, 0.05) * math.log2(factor)
    beyond = position / original
    if method == "none" and beyond > 1:
        loss += 0.9 * math.log2(beyond)
    if method == "ntk" and beyond > factor / 2:
        loss += 0.25 * math.log2(2 * beyond / factor)
    return loss


def _losses(
    task: str, method: str, factor: float, length: int, original: int, documents: int, text: str
) -> dict[str, Any]:
    samples = []
    for number in range(documents):
        noise = random.Random(f"{task}{length}{number}").gauss(0, 0.15)
        own = random.Random(f"{task}{method}{factor}{length}{number}").gauss(0, 0.004)
        tokens = 400 if task == "perplexity" else 30 + length // 20
        loss = _loss(method, factor, 0.8 * length, original) + noise + own - (1.5 if task == "longppl" else 0)
        samples.append({"document": f"19{61 + number}-Kennedy-{number}{text}", "nll": loss * tokens, "tokens": tokens})
        if task == "longppl":
            samples[-1]["of"] = length - 1
        else:
            samples[-1]["window"] = 0
    stated = {"window": length, "stride": length // 2} if task == "perplexity" else {"evaluator": text or "tiny"}
    return {**stated, "samples": samples}


def _positions(
    method: str, factor: float, length: int, original: int, documents: int, text: str
) -> list[dict[str, Any]]:
    bucket = max(1, original // 8)
    edges = [1, *range(bucket, length, bucket), length]
    samples = []
    for number in range(documents):
        shared, own = random.Random(f"position{length}{number}"), random.Random(f"{method}{factor}{length}{number}")
        tokens = [high - low for low, high in pairwise(edges)]
        nats = [
            count * (_loss(method, factor, end, original) + shared.gauss(0, 0.12) + own.gauss(0, 0.01))
            for end, count in zip(edges[1:], tokens, strict=True)
        ]
        samples.append(
            {"document": f"19{61 + number}-Kennedy{text}", "window": 0, "edges": edges, "nll": nats, "tokens": tokens}
        )
    return samples


def _replies(
    task: str,
    method: str,
    factor: float,
    length: int,
    original: int,
    samples: int,
    depths: Sequence[float],
    text: str,
) -> dict[str, Any]:
    beyond = max(0.0, math.log2(length / original))
    skill = SKILL.get(method, 0.5) - (
        0.55 * beyond if method == "none" else 0.04 * beyond * (3 if method == "ntk" else 1)
    )
    answers = []
    deep: Sequence[float | None] = depths if task in ("passkey", "needle") else (None,)
    for depth in deep:
        for _ in range(samples):
            number = len(answers)
            chance = random.Random(f"{task}{length}{number}").random()
            key = str(random.Random(f"{task}{number}").randrange(10_000, 100_000))
            right = chance < skill
            reply = f" {key}." if right else f" {key[::-1]} is the pass key. {text}"
            loose = right and number % 11 == 3
            answers.append(
                {
                    "id": number,
                    "depth": depth,
                    "score": float(right),
                    "exact": float(right and not loose),
                    "target": [key],
                    "reply": f" {key}0." if loose else reply,
                }
            )
    means = {rule: sum(one[rule] for one in answers) / len(answers) for rule in ("score", "exact")}
    return {"scores": means, "samples": answers}


def _choices(task: str, method: str, factor: float) -> dict[str, Any]:
    skill = (0.7 if task == "cloze" else 0.4) - COST.get(method, 0.05) * math.log2(factor)
    answers = [
        {"id": i, "score": float(random.Random(f"{task}{i}").random() < skill)}
        for i in range(60 if task == "cloze" else 100)
    ]
    return {"scores": {"acc": sum(one["score"] for one in answers) / len(answers)}, "samples": answers}
