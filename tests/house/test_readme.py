"""README and the first pages pasted block by block: every command and every line of Python does what they say."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import readme

import ropescale
from ropescale import cli
from ropescale.methods import base as registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "text", "json", "yaml", "jsonl"}


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in readme.blocks()} <= LANGUAGES
    pasted = [block.language for page in readme.PASTED for block in readme.blocks(page)]
    assert pasted.count("python") >= 8
    assert pasted.count("bash") >= 16


def test_what_is_installed_and_made_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = {name for found in re.findall(r"ropescale\[([\w,]+)\]", text) for name in found.split(",")}
    assert {"eval", "all"} <= extras <= set(project["optional-dependencies"])
    assert set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)) <= set(targets)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem == "tutorial" else page for page in readme.PASTED],
    ids=lambda page: page.stem,
)
def test_a_page_pasted_in_its_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROPESCALE_CACHE", str(tmp_path / "cache"))
    known = dict(registry._METHODS)
    names: dict[str, object] = {"__name__": page.stem}
    try:
        for block in readme.blocks(page, port=readme.free_port()):
            if block.language == "python":
                exec(compile(block.text, f"{page.name}, line {block.line}", "exec"), names)
            elif block.language == "bash":
                for command in readme.commands(block):
                    words = shlex.split(command)
                    if words[0] != "ropescale":
                        assert words[:2] == ["pip", "install"], command
                        continue
                    assert cli.main(words[1:]) == 0, (
                        f"{page.name}, line {block.line}: {command}\n{capsys.readouterr().err}"
                    )
    finally:
        registry._METHODS.clear()
        registry._METHODS.update(known)


def placed(command: str) -> list[str]:
    """The words of a command of ropescale, up to what a shell would take for itself."""
    return shlex.split(re.split(r"\s(?:&&|\|\||[|>&])\s", command)[0], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not run, for most name models of one's own: read by the parsers, as far as the verb."""
    for verb in cli.VERBS:
        monkeypatch.setattr(f"ropescale.cli.{verb.replace('-', '_')}.run", read_alone)
    for block in readme.blocks(page):
        if block.language in ("python", "json", "yaml", "jsonl", "text"):
            continue
        for command in readme.commands(block):
            if command.startswith("ropescale ") and "$(" not in command:
                assert cli.main(placed(command)[1:]) == 0, f"{page.name}, line {block.line}: {command}"


def read_alone(arguments: object) -> int:
    """In the place of a verb; of training, whose options are a recipe's, these are read too."""
    recipe, options = getattr(arguments, "recipe", None), getattr(arguments, "options", ())
    if recipe and not recipe.endswith((".yaml", ".yml")) and "--help" not in options:
        from ropescale.recipes.reading import read_recipe

        read_recipe(recipe, [one for one in options if one != "--dry-run"])
    return 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_of_python_of_a_page_is_python_that_names_what_there_is(page: Path) -> None:
    """Not run, for most go on from a model of one's own: compiled, and what is imported from ropescale is there."""
    for block in readme.blocks(page):
        if block.language == "python":
            tree = ast.parse(block.text, f"{page.name}, line {block.line}")
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ropescale":
                    for alias in node.names:
                        exec(f"from {node.module} import {alias.name}", {})
                elif (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "ropescale"
                ):
                    assert hasattr(ropescale, node.attr), f"{page.name}, line {block.line}: ropescale.{node.attr}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        capsys.readouterr()
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
        shown = ["".join(one["text"]) for one in cell["outputs"]]
        printed = capsys.readouterr().out
        assert bool(shown) == bool(printed), f"cell {number}"
        assert set("".join(shown).splitlines()) <= set(printed.splitlines()), f"cell {number}"


@pytest.mark.slow
def test_readme_followed_in_a_shell() -> None:
    place = str(Path(sys.executable).parent)
    subprocess.run([sys.executable, str(ROOT / "tests" / "support" / "readme.py"), place], check=True)
