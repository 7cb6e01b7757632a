"""A remedy that a message names works: a table of them, followed as they are worded."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from messages import ROOT
from remedies import options_of
from transformers import PreTrainedModel

import ropescale
from ropescale import cli
from ropescale.errors import RopescaleError
from ropescale.evals import texts
from ropescale.recipes import reading as recipe
from ropescale.recipes.training_options import REFUSED

TINY = ROOT / "ropescale" / "checkpoints" / "tiny"


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
