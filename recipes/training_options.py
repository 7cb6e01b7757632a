"""Transformers' own training arguments: their defaults here, those that are refused, and which numbers they may be."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ropescale.checks import as_float
from ropescale.errors import InvalidArgumentError, shortened

# Of Transformers' own arguments, those that most runs touch
SHOWN = (
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "bf16",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
    "report_to",
    "run_name",
    "disable_tqdm",
)
# Fields of TrainingArguments that would be ignored, or break a promise of this program, and what to do instead
REFUSED = {
    "num_train_epochs": "a run is measured in steps; give max_steps=N",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint by itself; leave it out",
    "load_best_model_at_end": "what is written is the last step's; set stop_perplexity or stop_passkey instead",
    "metric_for_best_model": "no step is best; set stop_perplexity or stop_passkey instead",
    "greater_is_better": "no step is best; set stop_perplexity or stop_passkey instead",
    "save_only_model": "without its optimizer a stopped run would go on to other weights; leave it out",
    "ignore_data_skip": "a stopped run would go on to other weights; leave it out",
    "restore_callback_states_from_checkpoint": "no callback has a state; leave it out",
    "enable_jit_checkpoint": "a run that is stopped goes on from its last checkpoint; set save_steps=N",
    "remove_unused_columns": "documents in a row would see one another; leave it out",
    "per_device_eval_batch_size": "evaluations read 8,192 tokens at a time; leave it out",
    "prediction_loss_only": "evaluations measure perplexity and passkeys; leave it out",
    "eval_do_concat_batches": "evaluations measure perplexity and passkeys; leave it out",
    "eval_use_gather_object": "evaluations measure perplexity and passkeys; leave it out",
    "eval_accumulation_steps": "evaluations measure perplexity and passkeys; leave it out",
    "include_for_metrics": "evaluations measure perplexity and passkeys; leave it out",
    "batch_eval_metrics": "evaluations measure perplexity and passkeys; leave it out",
    "bf16_full_eval": "evaluations read the model as it is; set dtype=NAME",
    "fp16_full_eval": "evaluations read the model as it is; set dtype=NAME",
    "label_names": "the labels are the tokens; leave it out",
    "do_train": "this trains and measures; leave it out",
    "do_eval": "this trains and measures; leave it out",
    "do_predict": "this trains and measures; leave it out",
    "data_seed": "rows and their order follow from one seed; set seed=N",
    "dataloader_drop_last": "there are as many rows as the steps take; leave it out",
    "train_sampling_strategy": "rows have one order, which seed=N decides; leave it out",
    "group_by_length": "rows are all of one length; leave it out",
    "length_column_name": "rows are all of one length; leave it out",
    "auto_find_batch_size": "the number of rows in a step decides the weights; set batch_size=N",
    "logging_nan_inf_filter": "a run ends at the first loss that is no number; leave it out",
    "push_to_hub": "the folder is written here; upload it when it is finished",
    "hub_token": "the folder is written here; upload it when it is finished",
    "hub_private_repo": "the folder is written here; upload it when it is finished",
    "hub_model_id": "the folder is written here; upload it when it is finished",
    "hub_strategy": "the folder is written here; upload it when it is finished",
    "hub_always_push": "the folder is written here; upload it when it is finished",
    "hub_revision": "the folder is written here; upload it when it is finished",
}
# Those that decide nothing of the weights: where and how often something is written or said, and who computes.
# What is in no list is taken to decide, whatever a later version of Transformers adds.
INDIFFERENT = frozenset(
    {
        "output_dir",
        "logging_dir",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "include_num_input_tokens_seen",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "save_strategy",
        "save_steps",
        "save_on_each_node",
        "save_total_limit",
        "skip_memory_metrics",
        "debug",
        "local_rank",
        "use_cache",
        "torch_empty_cache_steps",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
        "accelerator_config",
        "parallelism_config",
    }
)
# Those that decide when a run is measured, and so where it stops if it has a target
EVALUATIONS = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start")
# Those that act only where another one asks for them: given without it, they would be ignored
DEPENDENT = {
    "eval_steps": ("eval_strategy", "no"),
    "eval_delay": ("eval_strategy", "no"),
    "save_steps": ("save_strategy", "no"),
    "save_total_limit": ("save_strategy", "no"),
    "logging_steps": ("logging_strategy", "no"),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", False),
    "activation_checkpointing_kwargs": ("activation_checkpointing", False),
    "liger_kernel_config": ("use_liger_kernel", False),
}
# Numbers of TrainingArguments and their least value; "above" where that itself is none of them
LEAST: dict[str, tuple[float, bool]] = {
    "per_device_train_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "learning_rate": (0, False),
    "warmup_steps": (0, True),
    "weight_decay": (0, True),
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    "adam_epsilon": (0, True),
    "max_grad_norm": (0, True),
    "label_smoothing_factor": (0, True),
    "logging_steps": (0, False),
    "save_steps": (0, False),
    "eval_steps": (0, False),
    "eval_delay": (0, True),
    "save_total_limit": (1, True),
    "neftune_noise_alpha": (0, False),
    "dataloader_num_workers": (0, True),
    "torch_empty_cache_steps": (1, True),
    "seed": (0, True),
}
# and those that must be below something
BELOW = {"adam_beta1": 1.0, "adam_beta2": 1.0, "label_smoothing_factor": 1.0, "seed": 2**32}


@dataclass
class TrainingOptions(TrainingArguments):  # type: ignore[misc]  # transformers is untyped here
    """Transformers' own arguments, all of them, with other defaults where brief fine-tunes want others."""

    _argument_group_name = "training (and every other argument of transformers.TrainingArguments: --help-all)"

    output_dir: str | None = field(
        default=None, metadata={"help": "folder of adapter, record and checkpoints", "aliases": ["--output"]}
    )
    max_steps: int = field(default=300, metadata={"help": "optimizer steps"})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "rows at a time on each device", "aliases": ["--batch_size", "--batch-size"]}
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "peak"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "see transformers.SchedulerType"})
    warmup_steps: float = field(default=20, metadata={"help": "steps, or a share of all if below 1"})
    logging_steps: float = field(default=10, metadata={"help": "steps between lines of the log"})
    save_steps: float = field(default=100, metadata={"help": "steps between checkpoints"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints that are kept"})
    eval_strategy: str = field(default="steps", metadata={"help": "steps, or no: before and after training alone"})
    eval_steps: float | None = field(default=100, metadata={"help": "steps between evaluations"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows hold what the model takes"})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "of the data loader"})


def require_numbers(training: TrainingOptions) -> None:
    """Refuse numbers that Trainer would find out about after the model was loaded and measured, or not at all."""
    for item in dataclasses.fields(training):
        value = getattr(training, item.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, itself = LEAST.get(item.name, (-math.inf, False))
        most = BELOW.get(item.name, math.inf)
        if math.isfinite(as_float(value)) and (value > least or (itself and value == least)) and value < most:
            continue
        rule = "a number" if least == -math.inf else f"{'at least' if itself else 'above'} {least:g}"
        raise InvalidArgumentError(
            f"{item.name}: must be {rule}{f' and below {most:g}' if most < math.inf else ''}, got {shortened(value)}; "
            f"correct it, or leave it out"
        )


def require_acting(training: TrainingOptions, given: set[str]) -> None:
    """Refuse options that would be accepted and change nothing."""
    for name in sorted(given & REFUSED.keys()):
        if getattr(training, name, None):
            raise InvalidArgumentError(f"{name}: must be left out, got {getattr(training, name)!r}; {REFUSED[name]}")
    if str(getattr(training.save_strategy, "value", training.save_strategy)) == "best":
        raise InvalidArgumentError("save_strategy: must be steps, epoch or no, got 'best'; no step is best")
    for name, (other, off) in DEPENDENT.items():
        value = getattr(training, other, None)  # some versions of Transformers have one of two names
        if name in given and getattr(value, "value", value) == off:
            raise InvalidArgumentError(
                f"{name}: acts with {other} alone, got it with {other} {off!r}; leave one of the two out"
            )
