"""The command line: what it answers, how fast, and what it says to a wrong call."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ropescale
from ropescale import checkpoints, cli, listing, outside
from ropescale.evals import demo, grid, tasks
from ropescale.evals.plan import Options
from ropescale.methods import FixedMethod, base, get_method, list_methods
from ropescale.version import __version__


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ropescale.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'transformers', 'matplotlib', 'rich', 'numpy'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "ropescale eval path/to/checkpoint" in answer.stdout


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["methods"], 0, "self_extend"),
        (["eval", "tiny", "--methods", "yran"], 2, "did you mean 'yarn'?"),
        (["train", "lora", "--model", "tiny", "--method", "yran"], 2, "did you mean 'yarn'?"),
        (["inspect", "tinny"], 2, "did you mean 'tiny'?"),
        (["rescale", "smollm", "out", "--factor", "2"], 2, "did you mean 'smollm2'?"),
        (["evall", "tiny"], 2, "did you mean 'eval'?"),
        (["eval", "tiny", "--task", "needle"], 2, "did you mean --tasks?"),
        (["train", "lorra"], 2, "did you mean 'lora'?"),
    ],
)
def test_a_list_and_a_misspelt_name_are_answered_before_anything_heavy_loads(given, code, said):
    script = (
        "import sys; from ropescale.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules); assert not heavy, heavy; "
        "sys.exit(code)"
    )
    answer = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, text=True, check=False)
    assert answer.returncode == code, answer.stderr
    assert said in answer.stdout + answer.stderr


def test_methods_are_listed_as_the_registry_has_them():
    def shown(field):
        if field.default is not dataclasses.MISSING:
            return f"{field.name}={field.default!r}"
        return field.name

    classes = {name: get_method(name) for name in list_methods()}
    assert listing.shipped() == {
        name: (tuple(map(shown, dataclasses.fields(method))), method.__doc__.strip().partition("\n")[0])
        for name, method in classes.items()
        if method.__module__.startswith("ropescale")
    }
    assert listing.common_knobs() == tuple(map(shown, dataclasses.fields(FixedMethod)))


@pytest.fixture
def my_methods(tmp_path, monkeypatch):
    """A file of a user's own, which leaves no trace in this process."""
    registry = dict(base._METHODS)
    path = tmp_path / "methods_of_a_user.py"
    path.write_text(
        "from dataclasses import dataclass\nimport ropescale\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        'class Sqrt(ropescale.Method, name="square_root"):\n'
        '    """Slows every pair by the square root of the factor."""\n\n'
        "    def inv_freq(self, base, geometry):\n        return base / self.factor**0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    yield str(path)
    outside.run_files([])
    sys.modules.pop("methods_of_a_user", None)
    base._METHODS.clear()
    base._METHODS.update(registry)


def test_a_method_of_a_file_is_known_to_every_verb_and_named_by_what_comes_next(my_methods, tmp_path, capsys):
    known = ["--import", my_methods]
    assert cli.main(["rescale", "tiny", "longer", "--method", "square_root", "--factor", "4"]) == 2
    assert cli.main([*known, "methods"]) == 0
    assert "square_root" in capsys.readouterr().out
    assert cli.main([*known, "rescale", "tiny", "longer", "--method", "square_root", "--factor", "4"]) == 0
    following = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert following[:3] == ["ropescale", *known]
    twice = ropescale.load("tiny").model.rotary_emb.inv_freq / 2
    assert torch.allclose(ropescale.load("longer").model.rotary_emb.inv_freq, twice)
    capsys.readouterr()
    asked = [*known, "eval", "tiny", "--methods", "square_root", "--factors", "4"]
    assert cli.main([*asked, "--dry-run"]) == 0
    assert shlex.split(capsys.readouterr().out.rpartition("next: ")[2]) == ["ropescale", *asked]


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (
            None,
            "absent.py",
            "file to import: must be a Python file that defines methods, tasks or engines, got 'absent.py'",
        ),
        (
            "",
            "notes.txt",
            "file to import: must be a Python file that defines methods, tasks or engines, got 'notes.txt'",
        ),
        ("", "json.py", "file to import: must have a name that no module has, got 'json.py'; rename the file"),
        ("1 / 0", "broken.py", "got 'broken.py', which ends with ZeroDivisionError: division by zero; correct it"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_sentence(content, name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content)
    assert cli.main(["--import", name, "methods"]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_is_taken_though_its_name_is_near_a_short_one(tmp_path, monkeypatch):
    (tmp_path / "tinny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoints.resolve("tinny") == "tinny"
    assert checkpoints.resolve("someone/tiny") == "someone/tiny"


def test_the_version_is_the_package_s(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ropescale {__version__}\n"


VERBS = [
    "demo",
    "eval",
    "recommend",
    "methods",
    "inspect",
    "doctor",
    "rescale",
    "explain",
    "plot",
    "search",
    "fit",
    "train",
    "merge",
    "report",
    "export",
    "verify-export",
    "verify-server",
    "flags",
    "memory",
    "chat",
]


def test_the_verbs_are_frozen(capsys):
    assert cli.main(["--help"]) == 0
    verbs = capsys.readouterr().out.partition("VERB\n")[2].split("\n")
    named = [line.split()[0] for line in verbs if line[4:5].strip()]  # not the rest of a long help
    assert named == VERBS


def test_the_list_of_methods_is_the_registry(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["methods"]) == 0
    table = capsys.readouterr().out
    rows = [line.split()[1] for line in table.splitlines() if line.startswith("│")]
    assert [name for name in rows if name != "│"] == list_methods()  # a long row goes on below
    assert "beta_fast=32.0, beta_slow=1.0" in table
    assert "and of every method: factor, resonance=False, clipped=0" in table


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "ropescale: error: the following arguments are required: VERB"),
        (
            ["evaluate"],
            f"ropescale: error: argument VERB: invalid choice: 'evaluate' "
            f"(choose from {', '.join(map(repr, VERBS))}); did you mean 'eval'?",
        ),
        (
            ["demo", "--factors", "2,x"],
            "ropescale demo: error: argument --factors/--factor: must be numbers separated by commas, got '2,x'",
        ),
        (
            ["demo", "--factors", "nan"],
            "ropescale demo: error: argument --factors/--factor: must be numbers separated by commas, got 'nan'",
        ),
        (
            ["demo", "--lengths", "128.5"],
            "ropescale demo: error: argument --lengths/--length: must be whole numbers separated by commas, "
            "got '128.5'",
        ),
        (
            ["demo", "--methods", "yarn,,ntk"],
            "ropescale demo: error: argument --methods/--method: must be names separated by commas, got 'yarn,,ntk'",
        ),
        (["eval", "tiny", "--limit", "many"], "ropescale eval: error: argument --limit: invalid int value: 'many'"),
        (
            ["eval", "tiny", "--metadata", "[1]"],
            "ropescale eval: error: argument --metadata: must be a JSON object, or a file that holds one, got '[1]'",
        ),
        (
            ["eval", "--factors", "2"],
            "ropescale eval: MODEL must be given: tiny, smollm2, a path or a hub id; see --help",
        ),
        (
            ["plot", "tiny", "--factors", "2,4"],
            "ropescale plot: error: argument --factor/--factors: must be one number, got '2,4'",
        ),
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
            "ropescale: eval: --factors must be finite and at least 1, got 0.5; "
            "a factor is target length / original length\n",
        ),
        (
            ["eval", "tiny", "--windows", "0"],
            "ropescale: eval: --windows must be a whole number of at least 1, got 0; leave it out for the default\n",
        ),
        (
            ["demo", "--methods", "yran"],
            f"ropescale: unknown method 'yran'; did you mean 'yarn'? available: {', '.join(list_methods())}\n",
        ),
        (
            ["report", "no/such/folder"],
            "ropescale: results: a folder must hold the run.json of an evaluation, got 'no/such/folder'; "
            "name the output folder of an evaluation\n",
        ),
        (
            ["eval", "tiny", "--report-to", "tensorboard"],
            "ropescale: --report-to: must be one of trackio, wandb, which the harness has loggers for, got "
            "'tensorboard'; report.json holds every figure for others\n",
        ),
    ],
)
def test_an_error_of_ropescale_is_one_line_and_code_2(capsys, arguments, text):
    assert cli.main(arguments) == 2
    answer = capsys.readouterr()
    assert answer.err == text
    assert answer.out == ""


def test_a_stopped_run_says_how_to_go_on(monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run", stop)
    assert cli.main(["eval", "tiny", "--output", "somewhere"]) == 130
    assert capsys.readouterr().err == (
        "ropescale: stopped; somewhere keeps the finished cells, the same command goes on\n"
    )


def test_flags_reach_the_run_and_the_rest_is_the_default(monkeypatch):
    seen = []

    def stop(*arguments):
        seen.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run", stop)
    monkeypatch.setattr("ropescale.cli.demo._trained", lambda *arguments: ())
    shared = ["--methods", "yarn, ntk", "--factors", "2,4.5", "--lengths", "128", "--depths", "0,1", "--seed", "7"]
    own = [
        "--tasks",
        "passkey,ruler,cloze,longppl,perplexity",
        "--samples",
        "6",
        "--windows",
        "5",
        "--stride",
        "1",
        "--limit",
        "9",
    ]
    more = ["--texts", "a.txt", "--evaluator", "tiny", "--chat", "--metadata", '{"squad": "dev.json"}']
    cli.main(["eval", "a/b", *shared, *own, *more, "--output", "a b"])
    cli.main(["eval", "a/b"])
    cli.main(["demo"])
    cli.main(["demo", "--model", "smollm2", "--factors", "4"])
    (options, folder, command), (plain, out, _), (tiny, _, _), (other, default, _) = seen
    assert options == Options(
        model="a/b",
        methods=("yarn", "ntk"),
        factors=(2.0, 4.5),
        lengths=(128,),
        depths=(0.0, 1.0),
        seed=7,
        tasks=("passkey", "ruler", "cloze", "longppl", "perplexity"),
        samples=6,
        windows=5,
        stride=1.0,
        limit=9,
        texts="a.txt",
        evaluator="tiny",
        chat=True,
        metadata={"squad": "dev.json"},
    )
    assert str(folder) == "a b"
    assert command.startswith("ropescale eval a/b --methods 'yarn, ntk' --factors 2,4.5 --lengths 128 --depths 0,1")
    assert plain == Options(model="a/b")
    assert out.as_posix() == "out/eval-b"
    assert tiny == demo.default_options("tiny")
    assert other.factors == (4.0,)
    assert other.tasks == demo.default_options("smollm2").tasks
    assert default.as_posix() == "out/demo-smollm2"


def test_where_the_tasks_are_is_printed_for_the_harness(capsys):
    assert cli.main(["eval", "--task-folder"]) == 0
    assert capsys.readouterr().out == f"{Path(tasks.__file__).parent}\n"


def test_a_dry_run_prints_every_cell_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    given = ["eval", "tiny", "--methods", "yarn", "--tasks", "passkey,cloze", "--samples", "1", "--dry-run"]
    assert cli.main([*given, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "tiny: 6 cells" in said
    assert [line.split()[:3] for line in said.splitlines() if line.strip().startswith("yarn")] == [
        ["yarn", "x2", "passkey"],
        ["yarn", "x2", "passkey"],
        ["yarn", "x2", "cloze"],
    ]
    assert "nothing was run" in said
    assert not (tmp_path / "out").exists()


def test_an_evaluation_ends_with_a_table_a_verdict_and_a_report(capsys, tmp_path):
    given = ["eval", "tiny", "--methods", "yarn", "--tasks", "position,passkey", "--samples", "1", "--windows", "1"]
    assert cli.main([*given, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "unpatched" in said
    assert f"results: {tmp_path}" in said
    names = ("report.html", "report.md", "report.json", "model-card.md", "evaluate.json", "results.jsonl", "run.json")
    assert all((tmp_path / name).stat().st_size for name in names)
