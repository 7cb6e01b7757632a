"""Links planted where a verb writes are not followed."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from attacks import untouched
from evaluations import write_evaluation
from peft import LoraConfig, get_peft_model

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.errors import InvalidArgumentError
from ropescale.evals import results


@pytest.fixture(autouse=True)
def adapter(request: pytest.FixtureRequest) -> None:
    """An adapter for `merge`, where a test has a folder of its own."""
    if "with_code" in request.fixturenames and "tmp_path" in request.fixturenames:
        model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_adapter(adapted, request.getfixturevalue("tmp_path") / "adapter")


# Links planted where a verb writes

WRITES = {
    "explain": ("explain tiny --methods linear --output {}/a.html", "a.html"),
    "plot": ("plot tiny --methods linear --output {}/a.svg", "a.svg"),
    "rescale": ("rescale tiny {}/a --factor 2", "a"),
    "export": ("export tiny {}/a --to vllm --method yarn --factor 2", "a"),
    "export to gguf": ("export tiny {}/a.gguf --to gguf --method yarn --factor 2", "a.gguf"),
}


def on_the_way(name: str) -> list[str]:
    """Names that a program could write at before it moves a file to its place."""
    return [
        f"{name}.part",
        f"{name}.tmp",
        f".{name}.part",
        f".{name}.partial",
        f".{name}",
        f"{name}~",
        f"{name}.partial",
    ]


@pytest.mark.parametrize("kind", ["a file", "a folder", "nothing"])
@pytest.mark.parametrize("verb", WRITES)
def test_no_verb_writes_through_a_link_on_its_way(verb: str, kind: str, mine: Path, tmp_path: Path) -> None:
    command, name = WRITES[verb]
    out = tmp_path / "out"
    out.mkdir()
    for planted in on_the_way(name):
        (out / planted).symlink_to({"a file": mine / "diary.txt", "a folder": mine, "nothing": mine / "new"}[kind])
    with untouched(mine):
        assert cli.main(command.format(out).split()) == 0
    assert not (out / name).is_symlink()
    assert (out / name).exists()


@pytest.mark.parametrize("kind", ["a file", "a folder", "nothing", "a device"])
@pytest.mark.parametrize("verb", WRITES)
def test_no_verb_replaces_or_follows_a_link_at_its_end(verb: str, kind: str, mine: Path, tmp_path: Path) -> None:
    command, name = WRITES[verb]
    (tmp_path / "out").mkdir()
    places = {"a file": mine / "diary.txt", "a folder": mine, "nothing": mine / "new", "a device": Path("/dev/null")}
    (tmp_path / "out" / name).symlink_to(places[kind])
    with untouched(mine):
        assert cli.main(command.format(tmp_path / "out").split()) == 2
    assert (tmp_path / "out" / name).readlink() == places[kind]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("results") / "r", tasks=("passkey",), lengths=(128, 256))


REPORTS = ("evaluate.json", "model-card.md", "report.html", "report.json", "report.md")


@pytest.mark.parametrize("planted", ["on the way", *REPORTS])
def test_a_report_is_not_written_through_links_in_a_folder_of_results(
    planted: str, evaluated: Path, mine: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(evaluated, tmp_path / "r"))
    names = [one for name in REPORTS for one in on_the_way(name)] if planted == "on the way" else [planted]
    for name in names:
        (folder / name).symlink_to(mine / "diary.txt")
    with untouched(mine):
        assert cli.main(["report", str(folder)]) == (0 if planted == "on the way" else 2)


@pytest.mark.parametrize("name", ["run.json", "results.jsonl", "timings.jsonl"])
def test_results_go_on_in_files_of_their_folder_alone(name: str, evaluated: Path, mine: Path, tmp_path: Path) -> None:
    """The link leads to results that are whole, with a torn line behind them."""
    going_on(Path(shutil.copytree(evaluated, tmp_path / "without a link")))
    folder = Path(shutil.copytree(evaluated, tmp_path / "r"))
    (folder / name).rename(mine / name)
    if name != "run.json":
        with (mine / name).open("a") as file:
            file.write('{"torn')
    (folder / name).symlink_to(mine / name)
    with (
        untouched(mine),
        warnings.catch_warnings(action="ignore"),
        pytest.raises(InvalidArgumentError, match="a link"),
    ):
        going_on(folder)


def going_on(folder: Path) -> None:
    found = results.read(folder)
    found = results.start(folder, found.settings, results.Session.of({"command": "again"}))
    found.append(replace(next(iter(found.cells.values())), length=512), seconds=1, tokens=1)
