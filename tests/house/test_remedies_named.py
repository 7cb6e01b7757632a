"""A message that names a remedy names one that there is: a sweep over every text."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import peft
import pytest
from messages import ROOT, Message, messages
from remedies import code, options_of, remedy, verbs
from transformers import TrainingArguments

import ropescale
from ropescale import adapters, cli, export, list_methods, recipes
from ropescale.evals import plan
from ropescale.evals.engine import RopescaleLM
from ropescale.frameworks import flags
from ropescale.recipes import reading as recipe
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.options import RecipeOptions
from ropescale.recipes.schedules import SCHEDULES
from ropescale.search import searching
from ropescale.serving import verify_server
from ropescale.spelling import Names, spelled

COMMAND_LINE = "ropescale/cli/"


# ---------------------------------------------------------------------------------------------------- the sweep

# Arguments of Transformers' and PEFT's own functions, which a message may name beside these
HOSTS = {"gguf_file": "from_pretrained of Transformers", "save_embedding_layers": "save_pretrained of PEFT"}


# What a remedy may name beside arguments: entries of configs and attributes of what the caller has
OTHERS = {
    "max_position_embeddings": "an entry of config.json",
    "position_ids": "an argument of the model itself",
    "save_pretrained": "a method of the model",
}


@cache
def public_arguments() -> frozenset[str]:
    """Every argument that some public function takes, knobs of methods and options of recipes among them."""
    doors = [getattr(ropescale, name) for name in ropescale.__all__ if name not in ("RopescaleError", "__version__")]
    doors += [export.export, export.patch_gguf, export.verify, adapters.merge, adapters.save_adapter, RopescaleLM]
    doors += [flags, *(getattr(recipes, name) for name in recipes.__all__)]
    doors += [verify_server, peft.get_peft_model, ropescale.get_method("longrope")]
    found = {name for door in doors for name in inspect.signature(door).parameters}
    kinds = [plan.Options, searching.Options, RecipeOptions, DataOptions, TrainingArguments]
    kinds += [ropescale.get_method(name) for name in list_methods()]
    found |= {item.name for kind in kinds for item in dataclasses.fields(kind)}
    return frozenset(found | recipe.ALIASES.keys())


@cache
def names(verb: str) -> Names:
    return cli._names(cli._parser(), verb)  # with a recipe's options, since that module is imported here


def uncoded(text: str) -> str:
    return re.sub(r"`[^`]*`|ropescale\.[\w.]+\([^)]*\)|\w+\([^)]*=[^)]*\)|\"[^\"]*\"(?!:)", "", text)


def arguments_that_are_none(found: list[Message]) -> Iterator[str]:
    """A `word=` in a remedy that no public function takes."""
    for one in found:
        for name in re.findall(r"(?<![\w.'\"{-])([a-z]\w*)=(?![=\s])", uncoded(remedy(one.text))):
            if name not in public_arguments() and name not in HOSTS:
                yield f"{one.file}:{one.line} names {name}="


def words_that_are_none(found: list[Message]) -> Iterator[str]:
    """A word with an underscore that a caller is told to pass, give or leave out, and that nothing takes."""
    asked = r"(?:pass|give|set|lower|raise|leave|use|or|and|larger|another|with) (?:option )?([a-z]+(?:_[a-z]+)+)\b"
    for one in found:
        for name in re.findall(asked + r"(?![\w.('\"/])", uncoded(remedy(one.text))):
            if name not in public_arguments() and name not in (*OTHERS, *HOSTS, *SCHEDULES, *list_methods()):
                yield f"{one.file}:{one.line} names {name}"


def options_of_the_command_line(found: list[Message]) -> Iterator[str]:
    """A `--option` in a message of the library, which Python has none of; in code it belongs to its command."""
    for one in found:
        told = "; " in one.text or one.text.startswith(("give ", "pass ", "set ", "use "))
        if told and not one.file.startswith(COMMAND_LINE):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", uncoded(one.text)):
                yield f"{one.file}:{one.line} names {option}"


def commands_that_are_none(found: list[Message]) -> Iterator[str]:
    """A `ropescale VERB --option` that there is not."""
    for one in found:
        for command in code(one.text):
            words = command.split()
            if words[:1] == ["ropescale"] and len(words) > 1:
                if words[1] not in verbs():
                    yield f"{one.file}:{one.line} names {command}"
                else:
                    yield from (
                        f"{one.file}:{one.line} names {word} of {words[1]}"
                        for word in words[2:]
                        if word.startswith("-") and word not in {*options_of(words[1]), "--help"}
                    )


def names_that_are_none(found: list[Message]) -> Iterator[str]:
    """A `ropescale.name` that cannot be imported."""
    for one in found:
        for dotted in re.findall(r"(?<![\w/.-])(ropescale(?:\.[a-z]\w*)+)", one.text):
            if not dotted.endswith((".json", ".safetensors", "ropescale.cli")):
                module, _, name = dotted.rpartition(".")
                try:
                    getattr(importlib.import_module(module), name)
                except (ImportError, AttributeError):
                    yield f"{one.file}:{one.line} names {dotted}"


def extras_that_are_none(found: list[Message]) -> Iterator[str]:
    """A `ropescale[extra]` that the package does not have."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for one in found:
        for extra in re.findall(r"ropescale\[(\w+)\]", one.text):
            if extra not in extras:
                yield f"{one.file}:{one.line} names {extra}"


def options_that_a_verb_lacks(found: list[Message]) -> Iterator[str]:
    """A message as the command line says it, where that names an option of no verb, or not whose it is.

    Every message is put to every verb, since hardly any of them is raised for one alone.
    """
    known = "|".join(sorted({name for verb in verbs() for name in names(verb).written}, key=len, reverse=True))
    telling = re.compile(rf"\b(?:{known})(?:=|:| or )|(?<![\w.])[a-z]+_[a-z_]+|option '|--[a-z]")
    for one in found:
        ours = one.file.startswith(COMMAND_LINE) or one.text.startswith(("-", "ropescale "))
        if ours or not telling.search(one.text):
            continue
        text = one.text.replace("{}", "'x'")
        for verb in verbs():
            said = uncoded(spelled(text, names(verb)))
            told: set[str] = set()
            for option, takers in re.findall(
                r"(?<![\w-])(--[a-z][a-z_-]*)(?:[^(;,-]*?\(an option of ([^)]*)\))?", said
            ):
                if option in options_of(verb) or option in told:
                    continue
                told.add(option)
                if not takers or not all(option in options_of(taker) for taker in takers.split(", ")):
                    yield f"{one.file}:{one.line} names {option}, on {verb}: {said}"
            for name in re.findall(r"(?<![\w.'\"{-])([a-z]\w*)=(?![=\s])", remedy(said)):
                if name in names(verb).written:
                    yield f"{one.file}:{one.line} names {name}=, on {verb}: {said}"


def options_of_another_verb(found: list[Message]) -> Iterator[str]:
    """An option in a message of the command line's own, in the file of a verb that does not take it."""
    for one in found:
        if one.file.startswith(COMMAND_LINE) and ", got " in one.text:
            verb = Path(one.file).stem.replace("_", "-")
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", one.text) if verb in verbs() else ():
                if option not in options_of(verb):
                    yield f"{one.file}:{one.line} names {option}, on {verb}"


RULES: dict[str, tuple[Callable[[list[Message]], Iterator[str]], str]] = {
    "an argument that nothing takes": (
        arguments_that_are_none,
        "raise InvalidArgumentError(f\"a: must be b, got {c}; pass exciting='replace'\")",
    ),
    "a word that nothing takes": (
        words_that_are_none,
        'raise InvalidArgumentError(f"a: must be b, got {c}; pass original_lenght")',
    ),
    "an option in the library": (
        options_of_the_command_line,
        'raise InvalidArgumentError(f"a: must be b, got {c}; give --factor 4")',
    ),
    "a command that there is not": (
        commands_that_are_none,
        'raise ExportError(f"a: must be b, got {c}; run `ropescale rescale SRC DST --factr 4`")',
    ),
    "a function that there is not": (
        names_that_are_none,
        'raise NotPatchedError(f"a: must be b, got {c}; call ropescale.unpach(model) first")',
    ),
    "an extra that there is not": (
        extras_that_are_none,
        "raise RopescaleError(f\"a: must be b, got {c}; pip install 'ropescale[training]'\")",
    ),
    "an option that the verb lacks": (
        options_that_a_verb_lacks,
        'raise InvalidArgumentError(f"a: must be b, got {c}; give `x` or --outptu DIR")',
    ),
}


def test_the_messages_were_found(found: list[Message]) -> None:
    texts = {one.text for one in found}
    assert len(texts) > 1000
    for text in (
        'existing="replace"{} to start again from theta and the ',  # of a function that the message calls
        "a run is measured in steps; give max_steps=N",  # in a table that it looks into
        "choose another folder with output=DIR",
    ):
        assert any(text in one for one in texts)


@pytest.mark.parametrize("rule", RULES)
def test_every_remedy_that_a_message_names_is_there(rule: str, found: list[Message]) -> None:
    faults, planted = RULES[rule]
    assert list(faults(messages("planted.py", planted)))
    assert list(faults(found)) == []


def test_every_option_that_the_command_line_itself_names_is_the_verbs(found: list[Message]) -> None:
    assert list(options_of_another_verb(found)) == []
    planted = Message(f"{COMMAND_LINE}memory.py", 1, "--steps: must be 1, got 2; correct it")
    assert list(options_of_another_verb([planted]))
