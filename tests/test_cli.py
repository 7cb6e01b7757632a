"""The command line: what it answers, how fast, and what it says to a wrong call."""

import subprocess
import sys

import pytest

from ropescale import cli
from ropescale.evals import demo
from ropescale.methods import list_methods
from ropescale.version import __version__


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ropescale.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'transformers', 'matplotlib', 'rich', 'numpy'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "ropescale demo --model smollm2" in answer.stdout


def test_the_version_is_the_package_s(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ropescale {__version__}\n"


def test_the_verbs_are_frozen(capsys):
    assert cli.main(["--help"]) == 0
    verbs = capsys.readouterr().out.partition("VERB\n")[2].split("\n")
    assert [line.split()[0] for line in verbs if line] == ["demo", "methods", "report"]


def test_the_list_of_methods_is_the_registry(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["methods"]) == 0
    table = capsys.readouterr().out
    rows = [line.split()[1] for line in table.splitlines() if line.startswith("│")]
    assert [name for name in rows if name != "│"] == list_methods()  # a long row goes on below
    assert "beta_fast=32.0, beta_slow=1.0" in table
    assert "and of every method: factor, resonance=False" in table


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "ropescale: error: the following arguments are required: VERB"),
        (
            ["evaluate"],
            "ropescale: error: argument VERB: invalid choice: 'evaluate' (choose from 'demo', 'methods', 'report')",
        ),
        (
            ["demo", "--factors", "2,x"],
            "ropescale demo: error: argument --factors: must be numbers separated by commas, got '2,x'",
        ),
        (
            ["demo", "--factors", "nan"],
            "ropescale demo: error: argument --factors: must be numbers separated by commas, got 'nan'",
        ),
        (
            ["demo", "--lengths", "128.5"],
            "ropescale demo: error: argument --lengths: must be whole numbers separated by commas, got '128.5'",
        ),
        (
            ["demo", "--methods", "yarn,,ntk"],
            "ropescale demo: error: argument --methods: must be names separated by commas, got 'yarn,,ntk'",
        ),
        (["demo", "--limit", "many"], "ropescale demo: error: argument --limit: invalid int value: 'many'"),
        (["demo", "--factor", "2"], "ropescale: error: unrecognized arguments: --factor 2"),
        (["report"], "ropescale report: error: the following arguments are required: DIR"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(capsys, arguments, text):
    assert cli.main(arguments) == 2
    # later versions of Python list the choices without quotes
    assert capsys.readouterr().err.splitlines()[-1].replace("'", "") == text.replace("'", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["demo", "--factors", "0.5"],
            "ropescale: demo: factors must be finite and at least 1, got 0.5; "
            "a factor is target length / original length\n",
        ),
        (
            ["demo", "--limit", "0"],
            "ropescale: demo: windows must be at least 1, got 0; leave it out for the default\n",
        ),
        (
            ["demo", "--methods", "yran"],
            f"ropescale: unknown method 'yran'; did you mean 'yarn'? available: {', '.join(list_methods())}\n",
        ),
        (
            ["report", "no/such/folder"],
            "ropescale: results: a folder must hold the run.json of a demo, got 'no/such/folder'; "
            "run ropescale demo --output first\n",
        ),
    ],
)
def test_an_error_of_ropescale_is_one_line_and_code_2(capsys, arguments, text):
    assert cli.main(arguments) == 2
    answer = capsys.readouterr()
    assert answer.err == text
    assert answer.out == ""


def test_other_errors_propagate(monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_a_stopped_demo_says_how_to_go_on(monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", stop)
    assert cli.main(["demo", "--output", "somewhere"]) == 1
    assert capsys.readouterr().err == (
        "ropescale: stopped; somewhere keeps the finished cells, the same command goes on\n"
    )


def test_flags_reach_the_demo_and_the_rest_is_the_model_s_default(monkeypatch):
    seen = []

    def stop(*arguments):
        seen.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", stop)
    given = ["demo", "--methods", "yarn, ntk", "--factors", "2,4.5", "--lengths", "128", "--depths", "0,1"]
    cli.main([*given, "--limit", "5", "--samples", "6", "--seed", "7", "--output", "a b"])
    cli.main(["demo", "--model", "smollm2"])
    (options, folder, command), (other, default, _) = seen
    assert options == demo.Options(
        model="tiny",
        methods=("yarn", "ntk"),
        factors=(2.0, 4.5),
        lengths=(128,),
        depths=(0.0, 1.0),
        windows=5,
        samples=6,
        seed=7,
    )
    assert str(folder) == "a b"
    assert command == (
        "ropescale demo --methods 'yarn, ntk' --factors 2,4.5 --lengths 128 --depths 0,1 "
        "--limit 5 --samples 6 --seed 7 --output 'a b'"
    )
    assert other == demo.default_options("smollm2")
    assert default.as_posix() == "out/demo-smollm2"
