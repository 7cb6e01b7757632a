"""A message that names a remedy names one that there is (the sweep), and one that works (the table)."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import re
import shutil
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import families
import numpy as np
import peft
import pytest
import torch
from messages import ROOT, Message, every_message, messages
from transformers import PreTrainedModel, TrainingArguments

import ropescale
from ropescale import adapters, cli, export, list_methods
from ropescale.errors import RopescaleError
from ropescale.evals import plan, texts
from ropescale.evals.engine import RopescaleLM
from ropescale.recipes import reading as recipe
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.options import RecipeOptions
from ropescale.recipes.schedules import SCHEDULES
from ropescale.recipes.training_options import REFUSED
from ropescale.spelling import Names, spelled

COMMAND_LINE = "ropescale/cli/"
TINY = ROOT / "ropescale" / "checkpoints" / "tiny"

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
    doors += [peft.get_peft_model, ropescale.get_method("longrope")]
    found = {name for door in doors for name in inspect.signature(door).parameters}
    kinds = [plan.Options, RecipeOptions, DataOptions, TrainingArguments]
    kinds += [ropescale.get_method(name) for name in list_methods()]
    found |= {item.name for kind in kinds for item in dataclasses.fields(kind)}
    return frozenset(found | recipe.ALIASES.keys())


@cache
def verbs() -> dict[str, argparse.ArgumentParser]:
    """Verb -> its parser; of `train` the one of a recipe, with all its options."""
    kinds = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {**kinds[0].choices, "train": recipe.parser("RECIPE")}


@cache
def options_of(verb: str) -> frozenset[str]:
    """Every spelling of every option of a verb."""
    own = {option for action in verbs()[verb]._actions for option in action.option_strings}
    kinds = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return frozenset(own | set(kinds[0].choices[verb]._option_string_actions))


@cache
def names(verb: str) -> Names:
    return cli._names(cli._parser(), verb)  # with a recipe's options, since that module is imported here


def remedy(text: str) -> str:
    """The part of a message that says what to do; all of a piece that is no whole message."""
    return text.partition(", got ")[2].partition("; ")[2] if ", got " in text else text


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]*)`", text)


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


@pytest.fixture(scope="module")
def found() -> list[Message]:
    return every_message()


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


# ---------------------------------------------------------------------------------------------------- the table

PAIRS = np.arange(0, 16, 2) / 16  # of the tiny families' heads, whose theta is 10,000 and whose original length is 64
PRETRAINED = 10_000.0**-PAIRS


def filled(said: str, remedy: str, **values: Any) -> dict[str, Any]:
    """The arguments that a part of a message names, as it names them; values for what it leaves open (`DIR`, `N`)."""
    part = re.search(remedy, said)
    assert part, said
    pairs = re.findall(r"(\w+)=(\"\w+\"|'\w+'|\[[^]]*\]|[\w.]+)", part[0])
    assert pairs, part[0]
    return {name: values[name] if value.isupper() else ast.literal_eval(value) for name, value in pairs}


def typed(said: str, remedy: str, **values: str) -> list[str]:
    """The options that a part of a message names, likewise."""
    part = re.search(remedy, said)
    assert part, said
    pairs = re.findall(r"(--[a-z-]+)(?: ([\w.]+))?", part[0])
    assert pairs, part[0]
    return [
        word for option, value in pairs for word in (option, values.get(value, value)) if word and word not in VERBAL
    ]


VERBAL = ("to", "and", "or", "writes", "with")  # words of the sentence behind a flag


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(RopescaleError) as refused:
        call()
    return str(refused.value)


def scaled(**rope: Any) -> PreTrainedModel:
    config = families.config_of("llama")
    config.max_position_embeddings = 256
    config.rope_parameters = {**config.rope_parameters, **rope}
    return families.model_of(config)


def rotates(model: PreTrainedModel, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(families.inv_freq_of(model).numpy(), expected, rtol=1e-6)


LINEAR = {"rope_type": "linear", "factor": 4.0}
STATED = {**LINEAR, "original_max_position_embeddings": 64}


def of_existing(rope: dict[str, Any], remedy: str, times: float, absent: str = "nothing") -> Callable[[], None]:
    def follow() -> None:
        model = scaled(**rope)
        said = refusal(lambda: ropescale.patch(model, "linear", factor=2))
        assert absent not in said
        ropescale.patch(model, "linear", factor=2, **filled(said, remedy, original_length=64))
        rotates(model, PRETRAINED / times)

    return follow


def original_length_alone() -> None:
    model = scaled(**LINEAR)
    said = refusal(lambda: ropescale.patch(model, "linear", factor=2, existing="replace"))
    given = filled(said, "pass original_length=N", original_length=64)
    ropescale.patch(model, "linear", factor=2, existing="replace", **given)
    rotates(model, PRETRAINED / 2)


def factor_of_one() -> None:
    model = scaled(rope_type="dynamic", factor=2.0)
    before = families.logits(model, 32)
    said = refusal(lambda: ropescale.patch(model, "linear", factor=2, existing="compose"))
    ropescale.patch(model, "linear", existing="compose", **filled(said, "or factor=1 "))
    assert torch.equal(families.logits(model, 32), before)
    ropescale.unpatch(model)
    ropescale.patch(model, "linear", factor=2, **filled(said, 'existing="replace"'))
    rotates(model, PRETRAINED / 2)


def neither_factor_nor_target() -> None:
    model = families.family("llama")
    said = refusal(lambda: ropescale.patch(model, "linear"))
    ropescale.patch(model, "linear", **filled(said, "give factor=4"))
    rotates(model, PRETRAINED / 4)
    assert ropescale.record(model).target_length == 256


def called_first() -> None:
    model = families.family("llama")
    ropescale.patch(model, "linear", factor=2)
    said = refusal(lambda: ropescale.patch(model, "linear", factor=4))
    called = re.search(r"call (ropescale\.\w+)\(model\) first", said)
    assert called
    getattr(ropescale, called[1].rpartition(".")[2])(model)
    rotates(model, PRETRAINED)
    ropescale.patch(model, "linear", factor=4)
    rotates(model, PRETRAINED / 4)


def two_factors() -> None:
    model = families.family("llama")
    given = {"factor": 4, "target_length": 128}
    said = refusal(lambda: ropescale.patch(model, "linear", **given))
    assert said.endswith("give only one of the two")
    for name, times in (("factor", 4), ("target_length", 2)):
        with ropescale.patched(model, "linear", **{name: given[name]}):
            rotates(model, PRETRAINED / times)


def meant(call: Callable[[str], Any], misspelt: str) -> Callable[[], None]:
    def follow() -> None:
        found = re.search(r"did you mean '(\w+)'", refusal(lambda: call(misspelt)))
        assert found
        call(found[1])

    return follow


def patched_by(name: str) -> None:
    ropescale.unpatch(ropescale.patch(families.family("llama"), name, factor=2))


def with_knob(name: str) -> None:
    ropescale.patch(families.family("llama"), "yarn", factor=2, **{name: 16})


def with_own_method() -> None:
    model, method = families.family("llama"), ropescale.get_method("linear")(factor=2)
    said = refusal(lambda: ropescale.patch(model, method, factor=4))
    assert said.endswith("leave it out")
    ropescale.patch(model, method)
    rotates(model, PRETRAINED / 2)


def limit_alone() -> None:
    model = families.model_of(families.config_of("olmo3", layer_types=["sliding_attention"] * 2))
    before = families.logits(model, 64)
    said = refusal(lambda: ropescale.patch(model, "yarn", factor=2))
    found = re.search(r"raise the limit alone: method '(\w+)', layers '(\w+)'", said)
    assert found
    ropescale.patch(model, found[1], factor=2, layers=found[2])
    assert torch.equal(families.logits(model, 64), before)
    assert model.config.max_position_embeddings == 2 * ropescale.record(model).original_length


def recipes_key() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mine.yaml")
        file.write_text("model: tiny\nfactor: 2\nbatchsize: 3\noutput: here\n")
        found = re.search(r"did you mean '(\w+)'", refusal(lambda: recipe.read_recipe(str(file))))
        assert found
        file.write_text(file.read_text().replace("batchsize", found[1]))
        read = recipe.read_recipe(str(file))
    assert read.training.per_device_train_batch_size == 3
    assert read.output == Path("here")


def saved_by_late() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = ropescale.patch(families.family("llama"), "rerope", factor=4)
        expected = families.logits(model)
        model.save_pretrained(folder)
        called = re.search(r"call ropescale\.(\w+)\(path\)", refusal(lambda: families.opened(Path(folder))))
        assert called
        assert torch.equal(families.logits(getattr(ropescale, called[1])(folder)), expected)


def rows_without_text() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text('{"text": "one"}\n{}\n')
        said = refusal(lambda: texts.documents(folder))
        assert "row 2 of" in said
        assert "got no fields; correct the file" in said
        file.write_text('{"text": "one"}\n{"text": 5}\n')
        assert "must have its text in a field 'text', got 5; " in refusal(lambda: texts.documents(folder))
        file.write_text('{"text": "one"}\n{"text": "two"}\n')
        assert [one.text for one in texts.documents(folder)] == ["one", "two"]


IN_PYTHON: dict[str, Callable[[], None]] = {
    "existing: replace": of_existing(STATED, 'existing="replace" to', 2),
    "existing: compose": of_existing(STATED, 'existing="compose" to', 8),
    "existing: replace, of what does not say its original length": of_existing(
        LINEAR, 'existing="replace" and original_length=N', 2
    ),
    "existing: of what depends on length": of_existing(
        {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
        'existing="replace" to',
        2,
        absent="compose",
    ),
    "an original length": original_length_alone,
    "factor 1": factor_of_one,
    "a factor": neither_factor_nor_target,
    "one of two": two_factors,
    "a call before": called_first,
    "left out": with_own_method,
    "did you mean: a method": meant(patched_by, "yran"),
    "did you mean: a knob": meant(with_knob, "beta_fst"),
    "did you mean: a key of a recipe": recipes_key,
    "another method": limit_alone,
    "another way to load": saved_by_late,
    "a corrected file": rows_without_text,
}


@pytest.mark.parametrize("kind", IN_PYTHON)
def test_a_remedy_that_python_names_works(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        IN_PYTHON[kind]()


@pytest.mark.parametrize("name", sorted(name for name, told in REFUSED.items() if "=" in told))
def test_what_is_said_in_the_place_of_an_option_is_taken(name: str) -> None:
    values = {"max_steps": "7", "save_steps": "5", "dtype": "float32", "seed": "3", "batch_size": "4"}
    asked = filled(REFUSED[name], ".*", **values)
    given = [f"--{option.replace('_', '-')}={value}" for option, value in asked.items()]
    read = recipe.read_recipe("pose", ["--model", "tiny", "--factor", "2", *given])
    for option, value in asked.items():
        own = read.options if option in ("dtype",) else read.training
        assert str(getattr(own, recipe.ALIASES.get(option, option))) == value


# ---- the same at the command line: what it prints is typed


def answer(*words: str) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main(list(words))
    lines = [line for line in err.getvalue().splitlines() if line.startswith("ropescale")]
    return code, lines[-1] if lines else out.getvalue()


def edited(folder: Path, **rope: Any) -> Path:
    """The embedded checkpoint with other rope parameters, and a limit of 512 tokens."""
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"].update(rope)
    config["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def saved_patched(folder: Path, method: str) -> Path:
    model = ropescale.patch(ropescale.load("tiny"), method, factor=4)
    model.save_pretrained(folder)
    for file in TINY.glob("token*"):
        shutil.copy(file, folder)
    return folder


ORIGINAL = {"N": "128"}
EXPORT = ["export", "SRC", "DST", "--to", "vllm"]
# What is typed (SRC stands for a checkpoint, DST for a new place), what the answer must name, what of it is followed
TYPED: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    **{
        f"{verb}: an original length": (
            lambda place: edited(place, **LINEAR),
            [*words, *(["--output", f"DST{ending}"] if ending else [])],
            "pass --original-length N",
        )
        for verb, words, ending in (
            ("plot", ["plot", "SRC"], ".png"),
            ("explain", ["explain", "SRC"], ".html"),
            ("rescale", ["rescale", "SRC", "DST", "--factor", "2", "--existing", "replace"], ""),
            (
                "export",
                ["export", "SRC", "DST", "--to", "vllm", "--method", "yarn", "--factor", "2", "--existing", "replace"],
                "",
            ),
        )
    },
    "rescale: existing and an original length": (
        lambda place: edited(place, **LINEAR),
        ["rescale", "SRC", "DST", "--method", "linear", "--factor", "2"],
        "--existing replace and --original-length N",
    ),
    "rescale: a factor": (lambda place: TINY, ["rescale", "SRC", "DST"], "give --factor 4"),
    "export: a method, of what depends on length": (
        lambda place: edited(place, rope_type="dynamic", factor=2.0),
        [*EXPORT, "--method", "ntk", "--factor", "2"],
        "--existing replace",
    ),
    "export: a method, of one that acts in attention": (
        lambda place: saved_patched(place, "rerope"),
        EXPORT,
        "--method yarn with --factor 4 and --existing replace",
    ),
    "export: an approximation": (
        lambda place: saved_patched(place, "dynamic_yarn"),
        EXPORT,
        "which --lossy writes",
    ),
    "train: another option": (
        lambda place: TINY,
        ["train", "pose", "--model", "SRC", "--output", "DST", "--batchsize", "0"],
        "did you mean --batch-size",
    ),
}


@pytest.mark.parametrize("kind", TYPED)
def test_a_remedy_that_the_command_line_names_works(kind: str, tmp_path: Path) -> None:
    source, words, remedy = TYPED[kind]
    places = {"SRC": str(source(tmp_path / "src")), "DST": str(tmp_path / "dst")}
    given = [re.sub("SRC|DST", lambda found: places[found[0]], word) for word in words]
    code, said = answer(*given)
    assert code == 2
    more = typed(said, remedy, **ORIGINAL)
    assert {word for word in more if word.startswith("--")} <= options_of(words[0])
    if kind == "train: another option":  # whose value is refused then, in its own words
        assert answer(*[more[0] if word == "--batchsize" else word for word in given])[1].startswith(
            "ropescale: --per-device-train-batch-size: must be at least 1, got 0"
        )
        return
    code, said = answer(*given, *more)
    assert code == 0, said
    if words[0] in ("rescale", "export"):
        config = json.loads((tmp_path / "dst" / "config.json").read_text())
    if "acts in attention" in kind:
        assert config["max_position_embeddings"] == 512
        assert config["rope_parameters"]["rope_type"] == "yarn"
        assert config["rope_parameters"]["factor"] == 4
    if words[0] == "rescale":
        factor = 4 if "--factor" in more else 2
        assert config["max_position_embeddings"] == factor * 128
        assert config["rope_parameters"]["factor"] == factor


# ---- and of the doctor: what is written into the file is found no more

FAULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a limit of the tokenizer": lambda config: config.update(max_position_embeddings=512),
    "an unknown type": lambda config: config["rope_parameters"].update(rope_type="liner", factor=1.0),
    "a theta that is not read": lambda config: config.update(rotary_emb_base=500_000.0),
    "an attention factor by another name": lambda config: config["rope_parameters"].update(
        rope_type="yarn", factor=1.0, attn_factor=1.5, original_max_position_embeddings=128
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_gone_when_what_the_doctor_says_is_done(fault: str, tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "ill")
    config = json.loads((folder / "config.json").read_text())
    FAULTS[fault](config)
    (folder / "config.json").write_text(json.dumps(config))
    findings = ropescale.diagnose(folder)
    assert len(findings) == 1
    told, where = findings[0].remedy, findings[0].where
    if where.endswith("model_max_length"):
        file, entry = where.split(": ")
        config = json.loads((folder / file).read_text())
        config[entry] = int(told.removeprefix("write "))
    else:
        file, rope = "config.json", config["rope_parameters"]
        name, _, value = told.removeprefix("write ").partition(",")[0].partition(" if ")[0].partition(" ")
        if name.startswith("'"):  # for the entry itself
            rope[where.rpartition(".")[2]] = name.strip("'")
        else:
            rope[name] = float(value.split()[0])
        for place in (rope, config):
            if "remove" in told or "in its place" in told:
                place.pop(where.rpartition(".")[2], None)
    (folder / file).write_text(json.dumps(config))
    assert ropescale.diagnose(folder) == []
