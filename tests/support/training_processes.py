"""One training step in one process or several, and its gradients: test_parallel.py launches this file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import ropescale
from ropescale.evals.texts import sample
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.train import run
from ropescale.recipes.ulysses import Ulysses

LENGTH = 250
Gradients = dict[str, Tensor]


def model() -> PeftModel:
    """The embedded model under yarn, with an adapter that is not at its beginning."""
    torch.manual_seed(0)
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    base.config.use_cache = False  # as Trainer has it; with a cache, Transformers does not look for packed documents
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def rows() -> list[dict[str, list[int]]]:
    """Four rows of two documents each; labels of different number, so that a mean of means would be wrong."""
    ids = named_tokenizer("tiny").encode(sample()[0].text, add_special_tokens=False, verbose=False)
    made = []
    for number in range(4):
        first = 60 + 40 * number
        row = ids[number * LENGTH : (number + 1) * LENGTH]
        labels = [-100 if place in (0, first) or place < 20 * number else one for place, one in enumerate(row)]
        positions = [*range(first), *range(LENGTH - first)]
        made.append({"input_ids": row, "position_ids": positions, "labels": labels})
    return made


def gradients(trained: nn.Module) -> Gradients:
    return {
        name.removeprefix("module."): one.grad.clone()
        for name, one in trained.named_parameters()
        if one.grad is not None
    }


class Keep(TrainerCallback):
    """Notes the gradients that the optimizer is given."""

    found: Gradients

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = gradients(kwargs["model"])


def with_trainer(output: Path, rows_at_a_time: int) -> Gradients:
    """Of one step of Transformers' Trainer over the four rows; torchrun decides among how many processes."""
    keep = Keep()
    Trainer(
        model=model(),
        args=TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=rows_at_a_time,
            max_steps=1,
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows()),
        data_collator=batch_of,
        callbacks=[keep],
    ).train()
    return keep.found


def batch_of(some: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in some]) for name in some[0]}


def batches() -> dict[str, dict[str, Tensor]]:
    """What Ulysses is to read as one process does: packed rows, skipped positions, a length that does not divide."""
    packed = batch_of(rows())
    whole = {name: one[:1] for name, one in packed.items()} | {"position_ids": torch.arange(LENGTH)[None]}
    skipped = whole["position_ids"] + 200 * (whole["position_ids"] >= 90)
    uneven = {name: one[:, :-1] for name, one in whole.items()}
    pose = {**whole, "position_ids": skipped, "attention_mask": torch.ones_like(skipped)}
    return {"packed": packed, "whole": whole, "pose": pose, "uneven": uneven}


def with_ulysses(processes: int) -> dict[str, Gradients]:
    """Of every batch, read by so many processes together, or by one in the plain way."""
    found = {}
    for name, batch in batches().items():
        trained = model()
        wrapped = nn.parallel.DistributedDataParallel(trained) if processes > 1 else trained
        if processes == 1:
            wrapped(**batch).loss.backward()
        else:
            shared = Ulysses(wrapped, processes)
            with shared.sharing():
                # DDP takes the mean of the processes' gradients
                learnt = (batch["labels"][:, 1:] != -100).sum() / processes
                wrapped(**shared.part(batch), num_items_in_batch=learnt).loss.backward()
        assert ropescale.record(wrapped) is not None
        found[name] = gradients(wrapped)
    return found


def with_recipe(recipe: str, output: Path, rows_at_a_time: int, ulysses: int = 1) -> Gradients:
    """What three steps of a shipped recipe with LoRA leave in the adapter."""
    given = {
        "model": "tiny",
        "data": "passkey",
        "max_documents": 24,
        "max_steps": 3,
        "warmup_steps": 0,
        "per_device_train_batch_size": rows_at_a_time,
        "ulysses": ulysses,
        "eval_strategy": "no",
        "eval_texts": "sample",
        "eval_windows": 1,
        "eval_passkeys": 0,
        "use_cpu": True,
        "report_to": "none",
        "cache_dir": output / "cache",
        "output_dir": output / "run",
    }
    if recipe == "longred":  # AdamW makes a whole step of what rounding leaves of the many gradients near zero
        given |= {"optim": "sgd", "learning_rate": 0.1}
    told = run(read_recipe(recipe, [f"--{name}={value}" for name, value in given.items()]), "a test")
    assert told["tokens"] == 3 * 4 * 512
    # the first process has written it
    return {} if int(os.environ.get("RANK", "0")) else load_file(output / "run" / "adapter_model.safetensors")


if __name__ == "__main__":
    kinds, output = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for kind in kinds.split(","):
        if kind.startswith("recipe"):
            shares = {"rows_at_a_time": 4, "ulysses": 2} if "ulysses" in kind else {"rows_at_a_time": 2}
            found[kind] = with_recipe(kind.split()[1], output, **shares)
        elif kind == "trainer":
            found[kind] = with_trainer(output, 2)
        else:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo")
            found[kind] = with_ulysses(torch.distributed.get_world_size())
    if torch.distributed.get_rank() == 0:
        torch.save(found, output / "found.pt")
    torch.distributed.destroy_process_group()
