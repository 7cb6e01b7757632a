"""Errors on the command line name its options; the same errors in Python name arguments of Python."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import ropescale
from ropescale import RopescaleError, cli
from ropescale.spelling import Names, spelled

ROOT = Path(__file__).parents[2]
TINY = ROOT / "ropescale" / "checkpoints" / "tiny"
EXPORT = cli._names(cli._parser(), "export")
# Arguments of patch and of what reads a config, as Python writes them
ARGUMENTS = (
    "existing",
    "factor",
    "knobs",
    "layers",
    "log_n",
    "method",
    "original_length",
    "target_length",
    "temperature",
)


def messages(folder: str) -> list[tuple[str, str]]:
    """Every text that an error of these files is raised with, what is filled in written as in `{x}`."""
    found = []
    for path in sorted((ROOT / "ropescale").glob(folder)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).endswith("Error"):
                text = node.args[0]
                pieces = text.values if isinstance(text, ast.JoinedStr) else [text]
                if all(isinstance(one, ast.FormattedValue) or isinstance(one.value, str) for one in pieces):
                    said = "".join(one.value if isinstance(one, ast.Constant) else "'x'" for one in pieces)
                    found.append((path.name, said))
    return found


OF_A_PATCH = [
    *messages("patching.py"),
    *messages("request.py"),
    *messages("extension.py"),
    *messages("families/*.py"),
    *messages("rescaling.py"),
    *messages("injection/*.py"),
]
NAMING = [
    (file, text)
    for file, text in OF_A_PATCH
    if re.search(
        rf"\A({'|'.join(ARGUMENTS)}):|\b({'|'.join(ARGUMENTS)})=|\b(log_n|original_length|target_length)\b", text
    )
]


def bare(text: str) -> str:
    """A message without what stands in quotes, which is somebody's value."""
    return re.sub(r"`[^`]*`|(?<!\w)'[^']*'|\"[^\"]*\"", "", text)


def test_the_messages_that_name_arguments_were_found() -> None:
    assert len(OF_A_PATCH) > 60
    assert len(NAMING) > 15


@pytest.mark.parametrize(("file", "text"), NAMING, ids=[f"{file}: {text[:40]}" for file, text in NAMING])
def test_a_message_of_patching_names_options_on_the_command_line(file: str, text: str) -> None:
    said = bare(spelled(text, EXPORT))
    named = re.findall(r"(?<![\w.])--[a-z-]+", said)
    assert named
    assert set(named) <= {f"--{name.replace('_', '-')}" for name in ARGUMENTS}
    for name in ARGUMENTS:
        assert f"{name}=" not in said
        assert not said.startswith(f"{name}:")
        assert "_" not in name or name not in said


@pytest.mark.parametrize(
    ("python", "here"),
    [
        ('pass existing="replace" to start again', "pass --existing replace to start again"),
        ("and existing='replace'", "and --existing replace"),
        ("give factor=4 for four times", "give --factor 4 for four times"),
        ("original_length: must be a number, got 0", "--original-length: must be a number, got 0"),
        ("destination: must be new, got 'x'", "DST: must be new, got 'x'"),
        ("yarn: factor or target_length is required", "yarn: --factor or --target-length is required"),
        ("yarn: factor must be a number", "yarn: --factor must be a number"),
        ("which lossy=True writes", "which --lossy writes"),
        (
            "raise the limit alone: method 'unscaled', layers 'all'",
            "raise the limit alone: --method unscaled, --layers all",
        ),
        # and what is none
        ("gemma3: layers must rotate to be rescaled", "gemma3: layers must rotate to be rescaled"),
        ("must be a file, got 'original_length'", "must be a file, got 'original_length'"),
        ("unknown knob 'target_lenght'; available", "unknown knob 'target_lenght'; available"),
        ("config.original_length must be so", "config.original_length must be so"),
        ("and max_position_embeddings=16384 alone", "and max_position_embeddings=16384 alone"),
        ("call ropescale.patch(model, existing='replace')", "call ropescale.patch(model, existing='replace')"),
        (
            "got one patched with yarn(factor=4.0, truncate=True)",
            "got one patched with yarn(factor=4.0, truncate=True)",
        ),
        ("the adapter's factor and the model's", "the adapter's factor and the model's"),
        ("unknown method 'yran'; did you", "unknown method 'yran'; did you"),
        ("model: must be loaded", "model: must be loaded"),  # export has a SRC, and no such option
    ],
)
def test_what_is_translated_and_what_is_not(python: str, here: str) -> None:
    assert spelled(python, EXPORT) == here


def test_a_verb_without_options_changes_nothing() -> None:
    assert spelled("original_length: must be so", Names({})) == "original_length: must be so"


def scaled(tmp_path: Path) -> Path:
    """A checkpoint that is scaled linearly, and does not say from what."""
    folder = shutil.copytree(TINY, tmp_path / "scaled")
    config = json.loads((folder / "config.json").read_text())
    theta = config.get("rope_parameters", config).get("rope_theta", 10000.0)
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": theta}
    config["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    return folder


REFUSALS: dict[str, tuple[list[str], str, str]] = {
    "scaled already": (
        ["rescale", "SCALED", "DST", "--factor", "2"],
        "pass --existing replace and --original-length N to start again from theta and the original length, or "
        "--existing compose to scale",
        'existing="replace" and original_length=N',
    ),
    "no original length": (
        ["rescale", "SCALED", "DST", "--factor", "2", "--existing", "replace"],
        "max_position_embeddings=512 alone; pass --original-length N",
        "pass original_length=N",
    ),
    "no factor": (
        ["rescale", "tiny", "DST"],
        "yarn: --factor or --target-length is required",
        "factor or target_length",
    ),
    "layers": (
        ["rescale", "tiny", "DST", "--factor", "2", "--layers", "most"],
        "--layers: must be one of",
        "layers: must",
    ),
    "destination": (["rescale", "tiny", "SCALED", "--factor", "2"], "DST: must be", "destination: must be"),
}


@pytest.mark.parametrize(("given", "here", "python"), REFUSALS.values(), ids=REFUSALS)
def test_the_command_line_and_python_each_speak_their_own(
    given: list[str], here: str, python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"SCALED": str(scaled(tmp_path)), "DST": str(tmp_path / "new")}
    given = [places.get(one, one) for one in given]
    assert cli.main(given) == 2
    said = capsys.readouterr().err
    assert here in said
    keywords: dict[str, Any] = dict(zip((one[2:] for one in given[3::2]), given[4::2], strict=True))
    if "factor" in keywords:
        keywords["factor"] = float(keywords["factor"])
    with pytest.raises(RopescaleError) as refusal:
        ropescale.rescale_checkpoint(given[1], given[2], **keywords)
    assert python in str(refusal.value)
