"""`ropescale explain` and `ropescale plot`: what they write and print, and what a wrong call says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from explaining import TINY
from families import config_of

from ropescale import cli, get_method
from ropescale.explain import page, readings
from ropescale.explain.subject import chosen_methods, facts_by_layers
from ropescale.temperature import Temperature


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_layers_with_rotations_of_their_own_have_a_page_and_a_picture_each(in_a_folder, capsys):
    config = config_of("gemma3_text")
    config.save_pretrained("model")
    for verb, end in (("explain", "html"), ("plot", "png")):
        assert cli.main([verb, "model", "--layers", "all", "--output", f"{verb}.{end}"]) == 0
        assert Path(f"{verb}.{end}").stat().st_size > 1000
        assert Path(f"{verb}-sliding_attention.{end}").stat().st_size > 1000
        assert cli.main([verb, "model", "--output", f"alone-{verb}.{end}"]) == 0
        assert [path.name for path in Path().glob(f"alone-{verb}*")] == [f"alone-{verb}.{end}"]
    assert "model, sliding_attention layers" in Path("explain-sliding_attention.html").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(("verb", "end"), [("explain", "html"), ("plot", "svg")])
def test_layers_of_a_model_with_one_rotation_are_refused(verb, end, in_a_folder, capsys):
    assert cli.main([verb, "tiny", "--layers", "all", "--output", f"a.{end}"]) == 2
    assert capsys.readouterr().err == (
        "ropescale: --layers: must be left out for a llama whose layers have one rotation, which is the picture of "
        "them all, got 'all'; leave it out\n"
    )
    assert cli.main([verb, "tiny", "--layers", "global", "--output", f"a.{end}"]) == 0


@pytest.mark.parametrize("end", ["svg", "png", "pdf"])
def test_a_picture_has_the_same_bytes_each_time(end, in_a_folder, capsys, monkeypatch):
    for name, moment in (("a", "1"), ("b", "100000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)  # what matplotlib takes for the time, where it asks for it
        assert cli.main(["plot", "tiny", "--output", f"{name}.{end}"]) == 0
    assert Path(f"a.{end}").read_bytes() == Path(f"b.{end}").read_bytes()


def test_a_line_that_lies_on_another_is_dashed_and_said_to():
    _, facts, heads = facts_by_layers("tiny")[0]
    methods, length = chosen_methods(("ntk", "dynamic_ntk"), facts)
    text = page.page("tiny", facts, readings.readings(facts, methods, length=length, heads=heads))
    waves = text.partition('id="wavelengths"')[2] or text
    assert "dynamic_ntk has the wavelengths of ntk here, and is dashed over it." in text
    assert waves.count('stroke-dasharray="6 6"') >= 2  # the line, and its place in the legend


def test_the_verb_writes_the_page_and_prints_the_numbers(in_a_folder, capsys):
    assert cli.main(["explain", "tiny", "--methods", "yarn,rerope", "--factor", "2"]) == 0
    answer = capsys.readouterr()
    assert answer.out.splitlines()[-2] == f"page: {Path('out', 'explain-tiny.html')}"
    for word in ("critical pair", "10 of 16", "rerope", "position 255"):
        assert word in answer.out
    written = (in_a_folder / "out" / "explain-tiny.html").read_text(encoding="utf-8")
    _, models, heads = facts_by_layers("tiny")[0]
    methods, length = chosen_methods(["yarn", "rerope"], models, factor=2.0)
    assert written == page.page("tiny", models, readings.readings(models, methods, length=length, heads=heads))
    assert [path.name for path in (in_a_folder / "out").iterdir()] == ["explain-tiny.html"]


def test_a_page_that_cannot_be_finished_leaves_the_old_one(in_a_folder, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    (in_a_folder / "a.html").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    assert cli.main(["explain", "tiny", "--methods", "linear", "--output", "a.html"]) == 2
    assert capsys.readouterr().err == (
        "ropescale: --output: must be a place with room that can be written, got 'a.html' ([Errno 28] No space "
        "left on device); give another path\n"
    )
    assert (in_a_folder / "a.html").read_text() == "old"
    assert [path.name for path in in_a_folder.iterdir()] == ["a.html"]


def test_the_verb_takes_a_length_for_a_factor(in_a_folder, capsys):
    assert cli.main(["explain", "tiny", "--length", "384", "--methods", "linear", "--output", "a.html"]) == 0
    assert "position 383" in capsys.readouterr().out
    assert chosen_methods(["linear"], TINY, length=384)[0] == [get_method("linear")(factor=3.0)]


def test_the_verb_takes_the_knobs_of_methods_and_their_temperature(in_a_folder, capsys):
    knobs = {"nope": {"every": 2, "log_n": True}, "abf": {"theta": 5e4}}
    asked = ["explain", "tiny", "--methods", "nope,abf", "--length", "512", "--output", "a.html"]
    assert cli.main([*asked, "--knobs", json.dumps(knobs)]) == 0
    told = capsys.readouterr().out
    assert "nope with log_n in 2 of 4 layers" in told
    written = Path("a.html").read_text(encoding="utf-8")
    assert "Score against distance, nope with log_n in 2 of 4 layers" in written
    _, facts, heads = facts_by_layers("tiny")[0]
    methods = [get_method("nope")(factor=4.0, every=2), get_method("abf")(factor=4.0, theta=5e4)]
    temperatures = {"nope": Temperature.of("log_n")}
    found = readings.readings(facts, methods, length=512, heads=heads, temperatures=temperatures)
    assert written == page.page("tiny", facts, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "0.5"], "linear: --factor must be a number of at least 1 and at most 16777216 "),
        (
            ["--methods", "abf"],
            "--methods: must be methods that need no knob of their own, or come with it, got 'abf', which needs "
            "theta; give it in knobs\n",
        ),
        (
            ["--methods", "yarn", "--knobs", '{"ntk": {}}'],
            "--knobs: must hold an object for a method that is asked for (yarn), got {} for 'ntk'; write it as in ",
        ),
        (
            ["--methods", "yarn", "--knobs", '{"yarn": 5}'],
            "--knobs: must hold an object for a method that is asked for ",
        ),
        (["--methods", "yarn", "--knobs", '{"yarn": {"beta": 3}}'], "yarn: unknown knob 'beta'; "),
        (["--methods", "yarn", "--knobs", '{"yarn": {"temperature": "hot"}}'], "temperature: must be one of "),
        (["--methods", "yran"], "unknown method 'yran'; did you mean 'yarn'? "),
        (
            ["--length", "64"],
            "--length: must be a number of tokens from the original length (128) to 16777216, got 64; give the "
            "context length you want\n",
        ),
        (["--output", "."], "--output: must be new, or an ordinary file to write again, got '.', which is a folder"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_code_2_and_leaves_nothing(in_a_folder, capsys, arguments, message):
    assert cli.main(["explain", "tiny", *arguments]) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith(f"ropescale: {message}")
    assert answer.err.count("\n") == 1
    assert list(in_a_folder.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_code_2(in_a_folder, capsys):
    (in_a_folder / "empty").mkdir()
    assert cli.main(["explain", "./empty"]) == 2
    assert "./empty: must be a folder with a Transformers checkpoint" in capsys.readouterr().err


def test_a_factor_and_a_length_are_one_too_many(capsys):
    assert cli.main(["explain", "tiny", "--factor", "2", "--length", "256"]) == 2
    assert "argument --length/--lengths: not allowed with argument --factor/--factors" in capsys.readouterr().err
