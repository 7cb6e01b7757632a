"""The lines to paste, pasted: each writes the model that it says, and what checks it understands its options."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

import ropescale
from ropescale import cli
from ropescale.recommend.commands import Written


def written(method, **knobs) -> Written:
    return Written(model="tiny", method=method, knobs=knobs, target_length=256)


def pasted(line: str) -> None:
    """Run a line as a shell would, with the Python of the tests."""
    program, *words = shlex.split(line)
    if program == "python":
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
    else:
        assert program == "ropescale"
        assert cli.main(words) == 0


@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("yarn", {}),
        ("yarn", {"beta_fast": 16.0}),
        ("longrope", {"long_factor": [1.5] * 16, "attention_factor": 1.1}),
        ("rerope", {"window": 32, "log_n": True}),
        (None, {}),
    ],
)
def test_what_is_written_is_what_was_recommended(method, knobs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = written(method, **knobs)
    pasted(asked.write(None).line)
    record = ropescale.record(ropescale.load(tmp_path / asked.folder))
    assert (record.method, record.target_length) == (method or "unscaled", 256)
    assert record.log_n is knobs.pop("log_n", False)
    assert {name: record.knobs[name] for name in knobs} == knobs
    assert (tmp_path / asked.folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("engine", ["mlx", "gguf"])
def test_an_engine_gets_a_file_or_folder_of_its_own(engine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = written("ntk").write(engine).line
    pasted(line)
    assert (tmp_path / shlex.split(line)[3]).exists()


def test_what_a_method_starts_from_is_said_in_every_line():
    asked = Written(
        model="it's here", method="rerope", knobs={"window": 8}, target_length=64, existing="replace", layers="all"
    )
    program = shlex.split(asked.write(None).line)[2]
    assert 'ropescale.load("it\'s here")' in program
    assert 'target_length=64, window=8, existing="replace", layers="all"' in program
    asked = Written(model="a", method="ntk", knobs={}, target_length=64, existing="replace", original_length=32)
    words = shlex.split(asked.write("vllm").line)
    assert words[-4:] == ["--existing", "replace", "--original-length", "32"]
    assert json.dumps({}) not in words
