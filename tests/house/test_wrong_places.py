"""Places that cannot be written, and damage beside a config: a worded error, and nothing changed."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wrong_files import NAN, Damage, tree, worded

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import RopescaleError

# Places


def rescale(source: Any, destination: Any, **arguments: Any) -> None:
    ropescale.rescale_checkpoint(source, destination, **{"factor": 4, **arguments})


def full(path: Path) -> Path:
    path.mkdir()
    (path / "kept.txt").write_text("kept")
    return path


def linked(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


PLACES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "the source itself": (lambda source, tmp: rescale(source, source), "destination: must lie outside the source"),
    "the source by another name": (
        lambda source, tmp: rescale(source, source.parent / "x" / ".." / "source"),
        "destination: must lie outside the source",
    ),
    "the source by a link": (
        lambda source, tmp: rescale(source, linked(tmp / "link", source)),
        "destination: must lie outside the source",
    ),
    "within the source": (
        lambda source, tmp: rescale(source, source / "more"),
        "destination: must lie outside the source",
    ),
    "a folder with something in it": (
        lambda source, tmp: rescale(source, full(tmp / "full")),
        "destination: must be new, or an empty folder, got",
    ),
    "a file": (
        lambda source, tmp: rescale(source, Path(__file__)),
        "destination: must be new, or an empty folder, got",
    ),
    "a link to nothing": (
        lambda source, tmp: rescale(source, linked(tmp / "broken", tmp / "nothing")),
        "destination: must be new, or an empty folder, got",
    ),
    "a link to itself": (
        lambda source, tmp: rescale(source, linked(tmp / "loop", tmp / "loop")),
        "destination: must",
    ),
    "under a file": (
        lambda source, tmp: rescale(source, source.parent / "source" / ".." / "note" / "x"),
        "destination: must be a place with room that can be written",
    ),
    "a file system that takes nothing": (
        lambda source, tmp: rescale(source, "/proc/ropescale"),
        "destination: must be a place with room that can be written",
    ),
    "a name that is too long": (
        lambda source, tmp: rescale(source, tmp / ("x" * 300)),
        "destination: must be a p",
    ),
    "a name of nothing": (lambda source, tmp: rescale(source, ""), "destination: must be the path of a folder"),
    "a name with a zero": (lambda source, tmp: rescale(source, "a\0b"), "destination: must be the path of a folder"),
    "a number": (lambda source, tmp: rescale(source, 7), "destination: must be the path of a folder"),
    "none": (lambda source, tmp: rescale(source, None), "destination: must be the path of a folder"),
    "a source that is a number": (lambda source, tmp: rescale(7, tmp / "x"), "source: must be the path of a folder"),
    "a source that is not there": (
        lambda source, tmp: rescale(tmp / "nowhere", tmp / "x"),
        "must be a folder with a Transformers checkpoint",
    ),
    "a source that is a file": (
        lambda source, tmp: rescale(source / "config.json", tmp / "x"),
        "must be a folder with a Transformers checkpoint",
    ),
    "a link that is no truth value": (
        lambda source, tmp: rescale(source, tmp / "x", link="yes"),
        "link: must be True or False, got 'yes'",
    ),
    "no factor": (lambda source, tmp: rescale(source, tmp / "x", factor=None), "factor or target_length is required"),
    "a factor of nan": (lambda source, tmp: rescale(source, tmp / "x", factor=NAN), "yarn: factor must be a number"),
    "a factor below 1": (lambda source, tmp: rescale(source, tmp / "x", factor=0.5), "yarn: factor must be a number"),
    "a factor beyond float32": (
        lambda source, tmp: rescale(source, tmp / "x", factor=2.0**22),
        "factor: must give a target length of at most",
    ),
    "a target below the original length": (
        lambda source, tmp: rescale(source, tmp / "x", factor=None, target_length=32),
        "target_length: must be a whole number of tokens",
    ),
    "a method that nobody knows": (
        lambda source, tmp: rescale(source, tmp / "x", method="yran"),
        "unknown method 'yran'; did you mean 'yarn'?",
    ),
    "a knob that the method has not": (
        lambda source, tmp: rescale(source, tmp / "x", beta=3),
        "yarn: unknown knob 'beta'",
    ),
    "a method that acts in attention": (
        lambda source, tmp: rescale(source, tmp / "x", method="rerope"),
        "method: must be one of fixed frequencies, which a config states, got 'rerope'",
    ),
    "queries scaled by position": (
        lambda source, tmp: rescale(source, tmp / "x", log_n=True),
        "yarn: knobs must be the method's own, got 'log_n', an argument of ropescale.patch; give it there",
    ),
    "layers that nobody knows": (
        lambda source, tmp: rescale(source, tmp / "x", layers="some"),
        "layers: must be one of all, full, global, got 'some'",
    ),
    "an answer to scaling that nobody knows": (
        lambda source, tmp: rescale(source, tmp / "x", existing="ignore"),
        "existing: must be one of compose, error, replace, got 'ignore'",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_or_argument_that_cannot_be_is_told_in_words(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("a file")
    call, said = PLACES[name]
    before = tree(source)
    own = tmp_path / "own"
    own.mkdir()
    with warnings.catch_warnings(action="ignore"), pytest.raises(RopescaleError) as refusal:
        call(source, own)
    assert said in worded(refusal.value)
    assert tree(source) == before
    # what the case itself made, and nothing besides
    assert {path.name for path in own.iterdir()} <= {"full", "link", "broken", "loop"}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".lock"))]


# What lies beside the config

BESIDE: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "source: must hold the weights"),
    "a link to nothing": (
        lambda folder: (folder / "merges.txt").symlink_to(folder / "nothing"),
        "source: every entry must be a file or a folder of files",
    ),
    "a link to itself": (
        lambda folder: (folder / "merges.txt").symlink_to(folder / "merges.txt"),
        "source: every entry must be a file or a folder of files",
    ),
    "a link to the folder itself": (
        lambda folder: (folder / "again").symlink_to(folder),
        "source: every entry must be a file or a folder of files",
    ),
    "a pipe": (
        lambda folder: os.mkfifo(folder / "pipe"),
        "source: every entry must be a file or a folder of files",
    ),
    "a tokenizer config cut off": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max'),
        "tokenizer_config.json: must be a JSON file",
    ),
    "a generation config in a list": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "generation_config.json: must hold a JSON object",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_config_is_told_in_words(name: str, source: Path, tmp_path: Path) -> None:
    damage, said = BESIDE[name]
    damage(source)
    before = {path.name for path in source.iterdir()}
    with pytest.raises(RopescaleError) as refusal:
        rescale(source, tmp_path / "rescaled")
    assert said in worded(refusal.value)
    assert {path.name for path in source.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("length", ["128", [128], {}])
def test_a_limit_of_a_tokenizer_that_is_no_number_is_told_in_words(length: Any, source: Path) -> None:
    """The tokenizer's own library finds it out with the first text."""
    tokenizer = Path(shutil.copytree(resolve("tiny"), source.with_name("tokenizer")))
    told = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": length}))
    with pytest.raises(RopescaleError, match="must hold a tokenizer, got TypeError"):
        read_tokenizer(tokenizer)


@pytest.mark.parametrize("verb", ["inspect", "doctor", "plot", "rescale"])
def test_the_command_line_says_it_in_one_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{")
    more = [str(tmp_path / "out"), "--factor", "2"] if verb == "rescale" else []
    assert cli.main([verb, str(tmp_path), *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ropescale: ")
    assert len(said.err.splitlines()) == 1
