"""A small evaluation for one process or several: test_engine.py calls it, and launches this file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from transformers import PreTrainedModel

import ropescale
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.texts import sample


def task(name: str, **facts: Any) -> ConfigurableTask:
    """Seven rows, which two processes cannot share evenly."""
    words = sample()[0].text.split()
    rows = [
        {"text": " ".join(words[i : i + 12]), "choices": [f" {words[i + 12]}", " of", " people"], "gold": 0}
        for i in range(0, 63, 9)
    ]
    made = ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "test_split": "test",
            "num_fewshot": 0,
            "metadata": {"version": 1},
            **facts,
        }
    )
    made.set_fewshot_seed(seed=0)
    return made


def evaluated(model: str | PreTrainedModel) -> dict[str, Any] | None:
    """Scores and replies of all processes; None in all but the first."""
    tasks = {
        "choice": task(
            "choice",
            output_type="multiple_choice",
            doc_to_text="text",
            doc_to_choice="choices",
            doc_to_target="gold",
            target_delimiter="",
            metric_list=[{"metric": "acc"}],
        ),
        "reply": task(
            "reply",
            output_type="generate_until",
            doc_to_text="text",
            doc_to_target="text",
            generation_kwargs={"until": ["."], "max_gen_toks": 6, "do_sample": False},
            metric_list=[{"metric": "exact_match"}],
        ),
        "rolling": task(
            "rolling",
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="text",
            metric_list=[{"metric": "word_perplexity"}],
        ),
    }
    lm = RopescaleLM(model, tokenizer="tiny")
    found = evaluator.evaluate(lm, {"tasks": tasks, "groups": {}, "group_map": {}}, bootstrap_iters=0)
    if found is None:
        return None
    scores = {"choice": "acc", "reply": "exact_match", "rolling": "word_perplexity"}
    samples = {name: sorted(found["samples"][name], key=lambda one: one["doc_id"]) for name in tasks}
    return {
        "world": lm.world_size,
        "scores": {name: found["results"][name][f"{score},none"] for name, score in scores.items()},
        "replies": {name: [one["filtered_resps"] for one in rows] for name, rows in samples.items()},
    }


if __name__ == "__main__":
    both = [evaluated("tiny"), evaluated(ropescale.load("tiny"))]
    if both[0] is not None:
        Path(sys.argv[1]).write_text(json.dumps(both), encoding="utf-8")
