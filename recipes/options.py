"""What a recipe says: short YAML files read into dataclasses, with overrides from the command line.

Everything that can be wrong with a recipe without seeing the model is found here, before anything is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ropescale.checks import did_you_mean, require_at_least, require_choice
from ropescale.errors import InvalidArgumentError, RopescaleError, shortened
from ropescale.methods import get_method
from ropescale.methods.late import LateMethod, LengthDependent, WithoutRotation
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.schedules import CONTENTS, SCHEDULES
from ropescale.recipes.shipped import comment, read_text
from ropescale.request import Request, require_knobs
from ropescale.spelling import Defaults

TUNINGS = ("full", "lora", "lora_plus", "qlora")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(kw_only=True)
class RecipeOptions:
    """Which model is extended how, what of it is trained, and on rows of which kind.

    Raises:
        InvalidArgumentError: a value that breaks its rule, or two that contradict one another.
        UnknownMethodError: a method that is not in the registry.
    """

    _argument_group_name = "model, method and schedule"

    model: str = field(metadata={"help": "tiny (embedded), smollm2, a path or a hub id"})
    method: str = field(
        default="yarn", metadata={"help": "registry name; see `ropescale methods`", "aliases": ["--methods"]}
    )
    factor: float | None = field(
        default=None, metadata={"help": "target length / original length", "aliases": ["--factors"]}
    )
    target_length: int | None = field(default=None, metadata={"help": "tokens wanted, instead of a factor"})
    original_length: int | None = field(default=None, metadata={"help": "tokens (default: read from the config)"})
    knobs: str = field(default="{}", metadata={"help": """of the method, as JSON: '{"beta_fast": 16}'"""})
    log_n: bool = field(default=False, metadata={"help": "multiply queries by log-n, with any method"})
    existing: str = field(default="error", metadata={"help": "for scaled checkpoints: error, replace or compose"})
    layers: str = field(
        default="global", metadata={"help": "global, full or all, where layers have rotations of their own"}
    )

    tuning: Literal["full", "lora", "lora_plus", "qlora"] = field(
        default="lora",
        metadata={
            "help": "what is trained: lora, lora_plus (norms and embeddings too), qlora (4-bit base) or full "
            "(everything)"
        },
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "train on from this adapter: its weights, layers and ranks, its scaling if it has one"},
    )
    rank: int = field(default=8, metadata={"help": "of LoRA"})
    alpha: int = field(default=16, metadata={"help": "of LoRA"})
    lora_dropout: float = field(default=0.0, metadata={"help": "of LoRA"})
    target_modules: list[str] = field(
        default_factory=list, metadata={"help": "names of LoRA's layers (default: the linear layers of attention)"}
    )

    schedule: Literal["full_length", "mixed_window", "pose", "recalibrate"] = field(
        default="full_length",
        metadata={
            "help": "rows of the target length (full_length, mixed_window) or of the original length (pose, "
            "recalibrate)"
        },
    )
    length: int | None = field(default=None, metadata={"help": "tokens of a row (default: the schedule's)"})
    chunks: int = field(default=2, metadata={"help": "of pose: pieces whose positions are moved apart"})
    content: Literal["contiguous", "skip"] = field(
        default="skip", metadata={"help": "of pose: whether the text between chunks is skipped as well"}
    )
    fit_logit_scale: bool = field(
        default=False,
        metadata={"help": "of nope: fit the logit scale at the target length after training (DroPE)"},
    )

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "of the weights; auto: float32 on a CPU, else bfloat16"}
    )
    attention: str | None = field(
        default=None, metadata={"help": "Transformers' attn_implementation (default: the model's own)"}
    )

    ulysses: int = field(
        default=1, metadata={"help": "processes that share every row (axolotl-ringmaster); all, or 1 for none"}
    )

    eval_lengths: list[int] = field(
        default_factory=list, metadata={"help": "tokens (default: the original and the target length)"}
    )
    eval_texts: str = field(
        default="held_out",
        metadata={"help": "held_out (of the data), or what `ropescale eval --texts` takes: sample, speeches, a path"},
    )
    eval_windows: int = field(default=8, metadata={"help": "texts of the longest length for perplexity, at most"})
    eval_passkeys: int = field(default=10, metadata={"help": "passkeys per length and depth, 0 for none"})
    stop_passkey: float | None = field(
        default=None, metadata={"help": "stop when so large a share of passkeys is answered at every length"}
    )
    stop_perplexity: float | None = field(
        default=None, metadata={"help": "stop when perplexity at the longest length is this or less"}
    )

    def __post_init__(self) -> None:
        for name, choices in (
            ("tuning", TUNINGS),
            ("schedule", SCHEDULES),
            ("content", CONTENTS),
            ("dtype", DTYPES),
        ):
            default = next(item.default for item in dataclasses.fields(self) if item.name == name)
            require_choice(f"{name}:", getattr(self, name), choices, remedy=f"leave it out for {default!r}")
        for name, least in (
            ("rank", 1),
            ("alpha", 1),
            ("chunks", 2),
            ("eval_windows", 1),
            ("eval_passkeys", 0),
            ("length", 2),
            ("ulysses", 1),
        ):
            require_at_least(f"{name}:", getattr(self, name), least)
        if not 0 <= self.lora_dropout < 1:
            raise InvalidArgumentError(
                f"lora_dropout: must be a share from 0 to below 1, got {self.lora_dropout!r}; leave it out for 0"
            )
        if any(length < 16 for length in self.eval_lengths):
            raise InvalidArgumentError(
                f"eval_lengths: must be at least 16 tokens each, got {self.eval_lengths}; correct them"
            )
        if self.stop_passkey is not None and not 0 < self.stop_passkey <= 1:
            raise InvalidArgumentError(
                f"stop_passkey: must be a share above 0 and at most 1, got {self.stop_passkey!r}; divide a "
                f"percentage by 100"
            )
        if self.stop_passkey is not None and not self.eval_passkeys:
            raise InvalidArgumentError(
                "stop_passkey: needs passkeys, got eval_passkeys 0; ask for some, or leave stop_passkey out"
            )
        if self.stop_perplexity is not None and not 1 < self.stop_perplexity < math.inf:
            raise InvalidArgumentError(
                f"stop_perplexity: must be above 1, got {self.stop_perplexity!r}; leave it out to train all steps"
            )
        self._require_method()
        self._require_one_story()

    @property
    def method_knobs(self) -> dict[str, Any]:
        """The knobs of the method.

        Raises:
            InvalidArgumentError: not a JSON object.
        """
        try:
            knobs = json.loads(self.knobs)
        except ValueError:
            knobs = None
        if not isinstance(knobs, dict):
            raise InvalidArgumentError(
                f'knobs: must be a JSON object, got {self.knobs!r}; write it as in {{"beta_fast": 16}}'
            )
        return knobs

    @property
    def dtype_name(self) -> str:
        """The dtype of the weights, where "auto" goes by the machine."""
        import torch

        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if torch.cuda.is_available() else "float32"

    @property
    def request(self) -> Request:
        """What the model is patched with."""
        return Request(
            method=self.method,
            factor=self.factor,
            target_length=self.target_length,
            original_length=self.original_length,
            existing=self.existing,
            layers=self.layers,
            log_n=self.log_n,
            knobs=self.method_knobs,
        )

    def _require_method(self) -> None:
        """Refuse a method with knobs or without a factor that it needs."""
        knobs = self.method_knobs
        require_knobs(self.method, knobs)
        kind = get_method(self.method)
        if self.factor is None and self.target_length is None and not issubclass(kind, LateMethod):
            raise InvalidArgumentError(
                f"factor: is required by {self.method}, got neither factor nor target_length; give factor=4 for "
                f"four times the original length"
            )
        if self.factor is not None:
            kind(factor=self.factor, **knobs)

    def _require_one_story(self) -> None:
        """Refuse settings that contradict one another."""
        kind = get_method(self.method)
        if self.schedule == "mixed_window" and issubclass(kind, LateMethod) and not issubclass(kind, LengthDependent):
            raise InvalidArgumentError(
                f"schedule: mixed_window needs a method that rescales frequencies, so that documents within the "
                f"original length can keep the rotation of pretraining, got {self.method!r}; use full_length"
            )
        if self.schedule in ("full_length", "mixed_window", "pose") and not (self.factor or self.target_length):
            raise InvalidArgumentError(
                f"schedule: {self.schedule} needs a target, got neither factor nor target_length; give one, or use "
                f"recalibrate"
            )
        if self.schedule == "recalibrate" and not issubclass(kind, WithoutRotation):
            raise InvalidArgumentError(
                f"schedule: recalibrate trains at the original length what replaces rotation, got {self.method!r} "
                f"which rescales it; use pose or full_length"
            )
        if self.fit_logit_scale and (
            self.method != "nope" or not (self.factor or self.target_length) or "logit_scale" in self.method_knobs
        ):
            raise InvalidArgumentError(
                f"fit_logit_scale: needs method nope with a factor and no logit_scale of its own, got "
                f"{self.method!r} with factor {self.factor!r} and knobs {self.knobs}; correct one"
            )
        if self.tuning == "full" or self.adapter is not None:
            given = [
                item.name
                for item in dataclasses.fields(self)
                if item.name in ("rank", "alpha", "lora_dropout") and getattr(self, item.name) != item.default
            ] + (["target_modules"] if self.target_modules else [])
            if given:
                other = "tuning 'full'" if self.adapter is None else "an adapter that has its own"
                raise InvalidArgumentError(
                    f"{given[0]}: belongs to LoRA, got it with {other}; leave it out, or use tuning lora"
                )
        if self.adapter is not None and self.tuning not in ("lora", "qlora"):
            raise InvalidArgumentError(
                f"tuning: must be lora or qlora with an adapter, which says itself what is trained, got "
                f"{self.tuning!r}; use recipe lora or tuning='lora'"
            )
        if self.schedule != "pose" and (self.chunks != 2 or self.content != "skip"):
            raise InvalidArgumentError(
                f"chunks, content: belong to schedule pose, got {self.chunks} and {self.content!r} with "
                f"{self.schedule!r}; leave them out"
            )


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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe with everything decided."""

    name: str
    options: RecipeOptions
    data: DataOptions
    training: TrainingOptions

    @property
    def output(self) -> Path:
        """Where everything is written."""
        folder = self.training.output_dir
        assert folder is not None  # read_recipe sees to it
        return Path(folder)

    def settings(self) -> dict[str, Any]:
        """What the trained weights depend on, as JSON can hold it: a run is only continued with the same.

        Documents are not among them: they are known by their content, not by the names of their files.
        """
        mine = {"recipe": self.name, **dataclasses.asdict(self.options), **dataclasses.asdict(self.data)}
        trained = {
            item.name: getattr(self.training, item.name)
            for item in dataclasses.fields(self.training)
            if item.init and item.name not in {*REFUSED, *INDIFFERENT}
        }
        if self.options.stop_passkey is None and self.options.stop_perplexity is None:
            trained |= dict.fromkeys(EVALUATIONS)  # which decide nothing then
        processes = {"processes": self.training.world_size}
        told: dict[str, Any] = json.loads(json.dumps({**mine, **trained, **processes, "cache_dir": None}, default=str))
        return told


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


ALIASES = {"output": "output_dir", "batch_size": "per_device_train_batch_size"}
# An option of the command line, and what of a recipe it takes the place of
ALTERNATIVES = {"target_length": ("factor",), "factor": ("target_length",), "data": ("data_weights",)}


class Parser(HfArgumentParser):  # type: ignore[misc]  # as above
    """The command line of recipes, whose mistakes are errors in this package's words."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong.

        Raises:
            InvalidArgumentError: always.
        """
        raise InvalidArgumentError(_reworded(message, sorted(_options(self))))


def parser(name: str) -> Parser:
    """The parser of a recipe: the recipe's own options, its data, and Transformers' training arguments."""
    made = Parser(
        [RecipeOptions, DataOptions, TrainingOptions],
        prog=f"ropescale train {name}",
        formatter_class=Defaults,
        usage=f"ropescale train {name} --model MODEL [options]",
        allow_abbrev=False,
        add_help=False,
    )
    made.add_argument("-h", "--help", action="store_true", help="show this")
    return made


def help_text(name: str, *, everything: bool) -> str:
    """The options of a recipe with what it sets them to; `everything` adds Transformers' own.

    Raises:
        InvalidArgumentError: no such recipe, or a key that is no option.
    """
    reader, values = parser(name), read_yaml(name)
    _as_arguments(values, reader, name)
    reader.description = comment(name)
    reader.epilog = (
        "on the command line alone: --dry-run (refuse what the run would refuse, print the plan, write nothing), "
        "--trust-remote-code (run Python code that lies in the checkpoint)"
    )
    reader.set_defaults(**values)
    shown = {item.name for kind in (RecipeOptions, DataOptions) for item in dataclasses.fields(kind)}
    shown |= {"help", *vars(TrainingOptions)["__annotations__"], *SHOWN}
    for action in reader._actions:
        if action.dest not in shown and not everything:
            action.help = argparse.SUPPRESS
    text: str = reader.format_help()
    return text


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its name, or from a YAML file of one's own, with overrides as on the command line.

    Raises:
        InvalidArgumentError: no such recipe, an unknown key, a value of the wrong kind, or a contradiction.
        UnknownMethodError: a method that is not in the registry.
    """
    reader, own, asked = parser(name), read_yaml(name), given_names(overrides)
    for taken, theirs in ALTERNATIVES.items():  # what the command line says in another way
        if taken in asked and not asked & {*theirs}:
            own = {key: value for key, value in own.items() if key not in theirs}
    given = [*_as_arguments(own, reader, name), *overrides]
    try:
        *made, _, rest = reader.parse_args_into_dataclasses(
            given, return_remaining_strings=True, look_for_args_file=False
        )
    except RopescaleError:
        raise
    except Exception as error:  # of TrainingArguments, whose post-init reads files and devices
        raise InvalidArgumentError(
            f"train: Transformers must accept the training arguments, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}; correct them"
        ) from error
    if rest:
        reader.error(f"unrecognized arguments: {' '.join(rest)}")
    options, data, training = made
    if "output_dir" not in given_names(given):
        training.output_dir = str(Path("out", f"train-{Path(name).stem}-{Path(options.model).name}"))
    if training.max_steps < 1:
        raise InvalidArgumentError(
            f"max_steps: must be at least 1, got {training.max_steps}; a run is measured in steps, not in epochs"
        )
    _require_numbers(training)
    # what a recipe sets may rest where the command line turns off what it belongs to
    resting = {name for name, (other, _) in DEPENDENT.items() if other in asked and name not in asked}
    _require_acting(options, training, given_names(given) - resting)
    return Recipe(name=name, options=options, data=data, training=training)


def given_names(arguments: Sequence[str]) -> set[str]:
    """Names of the options on a command line, as a recipe spells them."""
    names = {one[2:].partition("=")[0].replace("-", "_") for one in arguments if one.startswith("--")}
    return {ALIASES.get(name, name) for name in names}


def _require_numbers(training: TrainingOptions) -> None:
    """Refuse numbers that Trainer would find out about after the model was loaded and measured, or not at all."""
    for item in dataclasses.fields(training):
        value = getattr(training, item.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, itself = LEAST.get(item.name, (-math.inf, False))
        most = BELOW.get(item.name, math.inf)
        if math.isfinite(value) and (value > least or (itself and value == least)) and value < most:
            continue
        rule = "a number" if least == -math.inf else f"{'at least' if itself else 'above'} {least:g}"
        raise InvalidArgumentError(
            f"{item.name}: must be {rule}{f' and below {most:g}' if most < math.inf else ''}, got {value!r}; correct "
            f"it, or leave it out"
        )


def _require_acting(options: RecipeOptions, training: TrainingOptions, given: set[str]) -> None:
    """Refuse options that would be accepted and change nothing."""
    for name in sorted(given & REFUSED.keys()):
        if getattr(training, name, None):
            raise InvalidArgumentError(f"{name}: must be left out, got {getattr(training, name)!r}; {REFUSED[name]}")
    if str(getattr(training.save_strategy, "value", training.save_strategy)) == "best":
        raise InvalidArgumentError("save_strategy: must be steps, epoch or no, got 'best'; no step is best")
    for name, (other, off) in DEPENDENT.items():
        found = getattr(training, other, None)  # some versions of Transformers have one of two names
        if name in given and getattr(found, "value", found) == off:
            raise InvalidArgumentError(
                f"{name}: acts with {other} alone, got it with {other} {off!r}; leave one of the two out"
            )
    evaluated = getattr(training.eval_strategy, "value", training.eval_strategy) != "no"
    for name in ("stop_passkey", "stop_perplexity"):
        if getattr(options, name) is not None and not evaluated:
            raise InvalidArgumentError(
                f"{name}: is looked at when the run is measured meanwhile, got eval_strategy 'no'; leave one of the "
                f"two out"
            )


class Plain(yaml.SafeLoader):  # type: ignore[misc]  # the package has no types
    """YAML without anchors: nine lines of them can stand for a billion values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's, where no alias stands."""
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read here", mark)
        return super().compose_node(parent, index)


def read_yaml(name: str) -> dict[str, Any]:
    """What a recipe's file says.

    Raises:
        InvalidArgumentError: no such recipe, or a file that is not a mapping.
    """
    text = read_text(name)
    try:
        values = yaml.load(text, Loader=Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of no calendar is a ValueError
        raise InvalidArgumentError(
            f"recipe: {name!r} must be YAML, got {' '.join(str(error).split())}; correct the file"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidArgumentError(
            f"recipe: {name!r} must be lines of `key: value`, got {shortened(values)}; see those that are shipped"
        )
    return values


def _as_arguments(values: dict[str, Any], reader: Parser, name: str) -> list[str]:
    """A recipe's lines as the command line has them, so that both are read by the same rules."""
    known = _options(reader)
    given = []
    for key, value in values.items():
        if key not in known:
            remedy = did_you_mean(str(key), known, otherwise=f"see `ropescale train {name} --help`")
            raise InvalidArgumentError(f"recipe: keys of {name!r} must be options of training, got {key!r}; {remedy}")
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        items = value if isinstance(value, list) else [value]
        option = known[key]
        given += [option, *map(str, items)] if isinstance(value, list) else [f"{option}={items[0]}"]
    return given


def _options(reader: Parser) -> dict[str, str]:
    """Names of all options as a recipe spells them, and how the command line does: `batch_size` has one spelling."""
    return {
        option.removeprefix("--").replace("-", "_"): option
        for action in reader._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }


KINDS = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}


def _reworded(message: str, known: Sequence[str]) -> str:
    """What argparse says, in this package's form."""
    found = re.match(r"argument --(\w+)\S*: invalid (\w+) value: (.*)", message)
    if found:
        name, kind, value = found.groups()
        return f"{name}: must be {KINDS.get(kind, f'a {kind}')}, got {value}; correct it, or leave it out"
    found = re.match(r"argument --(\w+)\S*: Truthy value expected: got (.*) but", message)
    if found:
        return f"{found[1]}: must be true or false, got {found[2]!r}; correct it, or leave it out"
    found = re.match(r"argument --(\w+)\S*: invalid choice: (\S+) \(choose from (.*)\)", message)
    if found:
        name, value, choices = found.groups()
        return f"{name}: must be one of {choices.replace(chr(39), '')}, got {value}; correct it, or leave it out"
    found = re.match(r"the following arguments are required: --(\w+)", message)
    if found:
        return f"{found[1]}: is required, got none; give --{found[1]}"
    found = re.match(r"unrecognized arguments: (\S+)", message)
    if found:
        name = found[1].removeprefix("--").partition("=")[0].replace("-", "_")
        remedy = did_you_mean(name, known, what="option ", otherwise="see `ropescale train RECIPE --help`")
        got = f"option {name!r}" if found[1].startswith("--") else repr(found[1])
        return f"train: options must be those of a recipe, got {got}; {remedy}"
    return f"train: {message}; see `ropescale train RECIPE --help`"
