"""What Trainer, PEFT and Transformers would refuse, found out before anything is loaded: tried on models of no size.

Trainer is made for a model of one weight, with its optimizer, its learning rates and its trackers; the layers of an
adapter, and a way of computing attention, are looked for in the model without its weights.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from ropescale.contents import read_config
from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.families.parts import text_of
from ropescale.heads import class_of
from ropescale.recipes.options import Recipe
from ropescale.recipes.tuning import tuned
from ropescale.records import saved_record


def rehearse(recipe: Recipe) -> None:
    """Try what can be tried without weights.

    Raises:
        InvalidArgumentError: options that could not be carried out.
        RopescaleError: whatever `tuned` raises.
    """
    training = recipe.training
    if not (training.deepspeed or training.fsdp):  # whose engines want the model itself
        _rehearse_trainer(training)
    options = recipe.options
    if options.attention is None and not options.target_modules:
        return
    try:
        model = weightless(recipe)
    except (ValueError, ImportError, OSError) as error:
        raise InvalidArgumentError(
            f"attention: must be a way of computing attention that this model and this machine have, got "
            f"{options.attention!r} ({_told(error)}); leave it out for the model's own"
        ) from error
    if options.target_modules:
        tuning = "lora" if options.tuning == "qlora" else options.tuning
        tuned(model, dataclasses.replace(options, tuning=tuning))


def weightless(recipe: Recipe) -> PreTrainedModel:
    """The model of a recipe on no device: its layers with the shapes of their weights, and no weights.

    Raises:
        ValueError: a way of computing attention that the model does not have; also an ImportError or an OSError.
    """
    given = {} if recipe.options.attention is None else {"attn_implementation": recipe.options.attention}
    config = read_config(recipe.options.path)
    if (saved := saved_record(text_of(config))) is not None:
        saved.restore(text_of(config))
    with torch.device("meta"):
        kind = class_of(config)  # an Auto class where the config names none
        build = kind.from_config if hasattr(kind, "from_config") else kind._from_config
        model: PreTrainedModel = build(config, **given)
    return model


def _rehearse_trainer(training: TrainingArguments) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept, training.output_dir = training.output_dir, folder  # which Trainer makes
            try:
                trainer: Any = Trainer(model=_Tiny(), args=training, train_dataset=[{}], eval_dataset=[{}])
                trainer.get_train_dataloader()
                trainer.create_optimizer_and_scheduler(training.max_steps)
            finally:
                training.output_dir = kept
    except RopescaleError:
        raise
    except Exception as error:  # optimizers and trackers have errors of every kind
        raise InvalidArgumentError(
            f"train: Trainer must accept the training arguments, got {_told(error)}; correct them"
        ) from error


class _Tiny(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.config = PreTrainedConfig()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
