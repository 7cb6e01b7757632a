"""A recipe read: a short YAML file, with overrides from the command line, by one parser."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ropescale.checks import did_you_mean
from ropescale.errors import InvalidArgumentError, RopescaleError, shortened
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.options import Recipe, RecipeOptions
from ropescale.recipes.shipped import comment, read_text
from ropescale.recipes.training_options import DEPENDENT, SHOWN, TrainingOptions, require_acting, require_numbers
from ropescale.spelling import Defaults

ALIASES = {"output": "output_dir", "attn": "attention", "batch_size": "per_device_train_batch_size"}
# An option of the command line, and what of a recipe it takes the place of
ALTERNATIVES = {"target_length": ("factor",), "factor": ("target_length",), "data": ("data_weights",)}
KINDS = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}


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
    require_numbers(training)
    # what a recipe sets may rest where the command line turns off what it belongs to
    resting = {name for name, (other, _) in DEPENDENT.items() if other in asked and name not in asked}
    require_acting(training, given_names(given) - resting)
    return Recipe(name=name, options=options, data=data, training=training)


def given_names(arguments: Sequence[str]) -> set[str]:
    """Names of the options on a command line, as a recipe spells them."""
    names = {argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    return {ALIASES.get(name, name) for name in names}


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


def _reworded(message: str, known: Sequence[str]) -> str:
    """What argparse says, in this package's form."""
    match = re.match(r"argument --(\w+)\S*: invalid (\w+) value: (.*)", message)
    if match:
        name, kind, value = match.groups()
        return f"{name}: must be {KINDS.get(kind, f'a {kind}')}, got {value}; correct it, or leave it out"
    match = re.match(r"argument --(\w+)\S*: Truthy value expected: got (.*) but", message)
    if match:
        return f"{match[1]}: must be true or false, got {match[2]!r}; correct it, or leave it out"
    match = re.match(r"argument --(\w+)\S*: invalid choice: (\S+) \(choose from (.*)\)", message)
    if match:
        name, value, choices = match.groups()
        return f"{name}: must be one of {choices.replace(chr(39), '')}, got {value}; correct it, or leave it out"
    match = re.match(r"the following arguments are required: --(\w+)", message)
    if match:
        return f"{match[1]}: is required, got none; give --{match[1]}"
    match = re.match(r"unrecognized arguments: (\S+)", message)
    if match:
        name = match[1].removeprefix("--").partition("=")[0].replace("-", "_")
        remedy = did_you_mean(name, known, what="option ", otherwise="see `ropescale train RECIPE --help`")
        got = f"option {name!r}" if match[1].startswith("--") else repr(match[1])
        return f"train: options must be those of a recipe, got {got}; {remedy}"
    return f"train: {message}; see `ropescale train RECIPE --help`"
