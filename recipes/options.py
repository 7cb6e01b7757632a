"""What a recipe says: short YAML files read into dataclasses, with overrides from the command line.

Everything that can be wrong with a recipe without seeing the model is found here, before anything is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ropescale.errors import InvalidArgumentError, RopescaleError, shortened
from ropescale.methods import get_method
from ropescale.methods.late import LateMethod, LengthDependent, WithoutRotation
from ropescale.patching import ARGUMENTS, require_knobs
from ropescale.recipes.data import DataOptions
from ropescale.recipes.schedules import CONTENTS, SCHEDULES
from ropescale.recipes.shipped import comment, read_text

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
    method: str = field(default="yarn", metadata={"help": "registry name; see `ropescale methods`"})
    factor: float | None = field(default=None, metadata={"help": "target length / original length"})
    target_length: int | None = field(default=None, metadata={"help": "tokens wanted, instead of a factor"})
    original_length: int | None = field(default=None, metadata={"help": "tokens (default: read from the config)"})
    knobs: str = field(default="{}", metadata={"help": """of the method, as JSON: '{"beta_fast": 16}'"""})
    log_n: bool = field(default=False, metadata={"help": "multiply queries by log-n, with any method"})
    existing: str = field(default="error", metadata={"help": "for scaled checkpoints: error, replace or compose"})

    tuning: Literal["full", "lora", "lora_plus", "qlora"] = field(
        default="lora",
        metadata={
            "help": "what is trained: lora, lora_plus (norms and embeddings too), qlora (4-bit base) or full "
            "(everything)"
        },
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
            if getattr(self, name) not in choices:
                raise InvalidArgumentError(
                    f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}; leave it out for "
                    f"{next(item.default for item in dataclasses.fields(self) if item.name == name)!r}"
                )
        for name, least in (
            ("rank", 1),
            ("alpha", 1),
            ("chunks", 2),
            ("eval_windows", 1),
            ("eval_passkeys", 0),
            ("length", 2),
            ("ulysses", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidArgumentError(
                    f"{name}: must be at least {least}, got {value!r}; leave it out for the default"
                )
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
    def patching(self) -> dict[str, Any]:
        """The arguments of `ropescale.patch`."""
        given = {
            "factor": self.factor,
            "target_length": self.target_length,
            "original_length": self.original_length,
            "existing": self.existing,
        }
        return {"method": self.method, "log_n": self.log_n, **given, **self.method_knobs}

    def _require_method(self) -> None:
        """Refuse a method with knobs or without a factor that it needs."""
        knobs = self.method_knobs
        require_knobs(self.method, knobs)
        kind = get_method(self.method)
        if self.factor is None and self.target_length is None and not issubclass(kind, LateMethod):
            raise InvalidArgumentError(
                f"factor: is required by {self.method}, got neither factor nor target_length; give --factor 4 for "
                f"four times the original length"
            )
        if self.factor is not None:
            kind(factor=self.factor, **knobs)  # type: ignore[call-arg]  # every kind has a factor
        stray = set(knobs) & set(ARGUMENTS)
        if stray:
            raise InvalidArgumentError(
                f"knobs: must be the method's alone, got {', '.join(sorted(stray))}; these are options of their own"
            )

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
        if self.tuning == "full":
            given = [
                item.name
                for item in dataclasses.fields(self)
                if item.name in ("rank", "alpha", "lora_dropout") and getattr(self, item.name) != item.default
            ] + (["target_modules"] if self.target_modules else [])
            if given:
                raise InvalidArgumentError(
                    f"{given[0]}: belongs to LoRA, got it with tuning 'full'; leave it out, or use tuning lora"
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
        default=8, metadata={"help": "rows at a time on each device", "aliases": ["--batch-size"]}
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
        """What the trained weights depend on, as JSON can hold it: a run is only continued with the same."""
        mine = {"recipe": self.name, **dataclasses.asdict(self.options), **dataclasses.asdict(self.data)}
        trained = {name: getattr(self.training, name) for name in DECIDING}
        told: dict[str, Any] = json.loads(json.dumps({**mine, **trained, "cache_dir": None}, default=str))
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
# Fields of TrainingArguments that the weights depend on
DECIDING = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "optim_args",
    "neftune_noise_alpha",
    "seed",
    "bf16",
    "fp16",
    "deepspeed",
)


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
    reader = parser(name)
    given = [*_as_arguments(read_yaml(name), reader, name), *overrides]
    try:
        *made, _, rest = reader.parse_args_into_dataclasses(
            given, return_remaining_strings=True, look_for_args_file=False
        )
    except RopescaleError:
        raise
    except (ValueError, ImportError, TypeError) as error:  # of TrainingArguments
        raise InvalidArgumentError(
            f"train: Transformers must accept the training arguments, got {type(error).__name__}: {error}; correct "
            f"them"
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
    return Recipe(name=name, options=options, data=data, training=training)


def given_names(arguments: Sequence[str]) -> set[str]:
    """Names of the options on a command line, as a recipe spells them."""
    names = {one[2:].partition("=")[0].replace("-", "_") for one in arguments if one.startswith("--")}
    return {"output_dir" if name == "output" else name for name in names}


def read_yaml(name: str) -> dict[str, Any]:
    """What a recipe's file says.

    Raises:
        InvalidArgumentError: no such recipe, or a file that is not a mapping.
    """
    try:
        values = yaml.safe_load(read_text(name))
    except yaml.YAMLError as error:
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
            near = difflib.get_close_matches(key, known, n=1)
            guess = f"did you mean {near[0]!r}?" if near else f"see `ropescale train {name} --help`"
            raise InvalidArgumentError(f"recipe: keys of {name!r} must be options of training, got {key!r}; {guess}")
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        items = value if isinstance(value, list) else [value]
        given += [f"--{key}", *map(str, items)] if isinstance(value, list) else [f"--{key}={items[0]}"]
    return given


def _options(reader: Parser) -> set[str]:
    """Names of all options, as a recipe spells them."""
    return {
        option.removeprefix("--").replace("-", "_")
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
        near = difflib.get_close_matches(name, known, n=1)
        guess = f"did you mean {near[0]!r}?" if near else "see --help"
        return f"train: options must be those of a recipe, got {found[1]!r}; {guess}"
    return f"train: {message}; see --help"
