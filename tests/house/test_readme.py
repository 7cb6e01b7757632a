"""README and the pages of docs pasted block by block: every command and every line of Python does what they say."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import lm_eval
import pytest
import readme
from programs import script

import ropescale
from ropescale import cli, list_methods
from ropescale.evals.tasks import base
from ropescale.export import ENGINES
from ropescale.methods import base as registry

ROOT = Path(__file__).parents[2]
LANGUAGES = {"bash", "python", "text", "json", "yaml", "jsonl"}


def test_the_first_pages_have_what_is_to_be_pasted() -> None:
    pasted = [block.language for page in readme.PASTED for block in readme.blocks(page) if not block.reason]
    assert pasted.count("python") >= 8
    assert pasted.count("bash") >= 16


def test_what_is_installed_and_made_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = {name for found in re.findall(r"ropescale\[([\w,]+)\]", text) for name in found.split(",")}
    assert {"eval", "all"} <= extras <= set(project["optional-dependencies"])
    assert set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)) <= set(targets)


# Pages whose blocks take seconds in all; those of the others are run by `make test-slow`
QUICK = {"README.md", "docs/quickstart.md", "docs/faq.md", "docs/proof.md", "docs/late-rotation.md"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", readme.PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    assert unaccounted(page.read_text(encoding="utf-8")) == []


def unaccounted(text: str) -> list[str]:
    """What stands in a page that is neither run nor says for which of the known reasons it is not."""
    blocks = readme.blocks_of(text)
    wrong = [
        f"line {block.line}: {block.language or 'no language'}, {block.reason or 'no reason'}"
        for block in blocks
        if block.language not in LANGUAGES or (block.reason and block.reason not in readme.REASONS)
    ]
    fences, reasons = (len(re.findall(at, text, flags=re.MULTILINE)) for at in (r"^\s*```", r"^\s*<!-- not run"))
    if fences != 2 * len(blocks):
        wrong.append(f"{fences} fences of {len(blocks)} blocks")
    if reasons != sum(bool(block.reason) for block in blocks):
        wrong.append(f"{reasons} reasons, of which some stand above no block")
    return wrong


def test_a_block_without_a_language_or_with_another_reason_is_found() -> None:
    run, plain = "```bash\nropescale methods\n```\n", "```\nropescale methods\n```\n"
    assert unaccounted(run) == unaccounted("<!-- not run: needs a hub -->\n\n" + run) == []
    assert unaccounted(plain) == ["line 1: no language, no reason"]
    assert unaccounted("<!-- not run: no time -->\n" + run) == ["line 2: bash, no time"]
    assert unaccounted("<!-- not run: needs a hub -->\n\nText.\n\n" + run) != []
    assert unaccounted("- one\n\n  " + run.replace("\n", "\n  ")) != []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [page if name_of(page) in QUICK else pytest.param(page, marks=pytest.mark.slow) for page in readme.PAGES],
    ids=name_of,
)
def test_a_page_pasted_in_its_order(page: Path, pasting: Pasting) -> None:
    pasting.paste(readme.blocks(page, port=readme.free_port()), page.stem)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", list_methods())
def test_the_page_of_a_method_pasted_in_its_order(method: str, pasting: Pasting) -> None:
    blocks = readme.blocks_of(script("site_pages").used(method))
    assert [block.language for block in blocks] == ["python", "bash"]
    pasting.paste(blocks, method)


def test_what_is_pasted_and_fails_is_found(pasting: Pasting) -> None:
    for wrong in (
        "```python\nimport ropescale\nropescale.nothing\n```\n",
        "```bash\nropescale inspect nowhere\n```\n",
        "```bash\nfalse | cat > here\nexit 3\n```\n",
    ):
        with pytest.raises((AttributeError, AssertionError)):
            pasting.paste(readme.blocks_of(wrong), "wrong")
    pasting.paste(
        readme.blocks_of("<!-- not run: needs a hub -->\n```bash\nropescale inspect nowhere\n```\n"), "wrong"
    )


class Pasting:
    """Blocks pasted one after the other: Python into one session, commands of ropescale in this process."""

    def __init__(self, folder: Path, printed: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.printed = printed

    def paste(self, blocks: list[readme.Block], page: str) -> None:
        """Run what gives no reason not to be run, and end with the first that fails."""
        names: dict[str, object] = {"__name__": page}
        for block in blocks:
            if block.reason or block.language not in ("python", "bash"):
                continue
            if block.language == "python":
                exec(compile(block.text, f"{page}, line {block.line}", "exec"), names)
            elif in_process(block):
                for command in readme.commands(block):
                    assert cli.main(shlex.split(command)[1:]) == 0, (
                        f"{page}, line {block.line}: {command}\n{self.printed.readouterr().err}"
                    )
            else:
                self.in_shell(block, page)

    def in_shell(self, block: readme.Block, page: str) -> None:
        """What a shell alone understands."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            ["bash", "-euc", block.text],
            cwd=self.folder,
            env={**os.environ, "PATH": programs},
            check=False,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, f"{page}, line {block.line}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"


def in_process(block: readme.Block) -> bool:
    """Whether a block is commands of ropescale and nothing else, and nothing in them is the shell's own."""
    return all(
        command.startswith("ropescale ") and not re.search(r"[$|<>&;`]", command) for command in readme.commands(block)
    )


@pytest.fixture
def pasting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Pasting]:
    """A new folder, and everything that a page makes known forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as a session has that was begun there
    monkeypatch.setenv("ROPESCALE_CACHE", str(tmp_path / "cache"))
    registries = (registry._METHODS, ENGINES, base._REGISTERED)
    base.every()  # those that ship are known by then
    known = [dict(one) for one in registries]
    yield Pasting(tmp_path, capsys)
    for one, before in zip(registries, known, strict=True):
        one.clear()
        one.update(before)
    # by what a module holds, since asking some that load late for an attribute has them load
    held = {name: str(getattr(one, "__dict__", {}).get("__file__")) for name, one in [*sys.modules.items()]}
    for name in [name for name, path in held.items() if path.startswith(str(tmp_path))]:
        del sys.modules[name]


def placed(command: str) -> list[str]:
    """The words of a command of ropescale, up to what a shell would take for itself."""
    return shlex.split(re.split(r"\s(?:&&|\|\||[|>&])\s", command)[0], comments=True)


@pytest.mark.parametrize("page", readme.PAGES, ids=name_of)
def test_every_command_of_a_page_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by the parsers as far as the verb: what only `make test-slow` runs, or nobody here, is known sooner."""
    for verb in cli.VERBS:
        monkeypatch.setattr(f"ropescale.cli.{verb.replace('-', '_')}.run", read_alone)
    for block in readme.blocks(page):
        if block.language in ("python", "json", "yaml", "jsonl", "text"):
            continue
        for command in readme.commands(block):
            # what is imported is a file that the page writes
            if command.startswith("ropescale ") and not re.match(r"ropescale --import", command):
                assert cli.main(placed(command)[1:]) == 0, f"{page.name}, line {block.line}: {command}"


def read_alone(arguments: object) -> int:
    """In the place of a verb; of training, whose options are a recipe's, these are read too."""
    recipe, options = getattr(arguments, "recipe", None), getattr(arguments, "options", ())
    if recipe and not recipe.endswith((".yaml", ".yml")) and "--help" not in options:
        from ropescale.recipes.reading import read_recipe

        read_recipe(recipe, [one for one in options if one != "--dry-run"])
    return 0


def test_the_tasks_that_need_a_hub_are_tasks_of_the_harness() -> None:
    """By the YAML that is installed, which is not loaded: groups are none, for they are refused."""
    folder = Path(lm_eval.__file__).parent / "tasks"
    (blocks,) = [
        one.text.replace("\\\n", " ")
        for one in readme.blocks(readme.DOCS / "evaluation.md")
        if one.reason == "needs a hub"
    ]
    named = [name for found in re.findall(r"--tasks (\S+)", blocks) for name in found.split(",")]
    assert {name.split("_")[0] for name in named} == {"longbench2", "babilong"}
    for name in named:
        texts = [path.read_text(encoding="utf-8") for path in (folder / name.split("_")[0]).glob("*.yaml")]
        assert sum(bool(re.search(rf"^task: {name}$", text, flags=re.MULTILINE)) for text in texts) == 1, name


@pytest.mark.parametrize("page", readme.PAGES, ids=name_of)
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


@pytest.mark.slow  # seconds, most of them for processes that load anew
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
