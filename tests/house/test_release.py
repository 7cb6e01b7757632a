"""What is released: the archives, what an installed one does, its types, its extras, and what it says of itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import ropescale

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILT = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "out", "dist", ".*")

CLIENT = """\
import ropescale
from transformers import PreTrainedModel


def longer(name: str) -> PreTrainedModel:
    model = ropescale.patch(ropescale.load(name), method="yarn", factor=4)
    record = ropescale.record(model)
    assert record is not None
    reveal_type(record.target_length)
    return model


def wrong() -> None:
    ropescale.get_method(4)
"""
TRIED = """\
import sys
import ropescale
assert ropescale.__file__.startswith(sys.prefix), ropescale.__file__
model = ropescale.patch(ropescale.load("tiny"), method="yarn", factor=4)
model.save_pretrained(sys.argv[1])
assert ropescale.record(ropescale.load(sys.argv[1])).target_length == 512
import ropescale.evals.report, ropescale.recipes, ropescale.export, ropescale.search, ropescale.recommend
"""


def said(*command: object, cwd: Path) -> str:
    """What a command prints that has to go well."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd, timeout=900)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, built with the setuptools that is here."""
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    said(*pip, "--wheel-dir", folder, source, cwd=folder.parent)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path) -> Path:
    """The Python of a new environment over the packages that are here, but for ropescale."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "beneath.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin" / "python"


def into(python: Path) -> tuple[object, ...]:
    """What installs into an environment, without a network; what to install follows."""
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    return (*pip, "--ignore-installed")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source archive of this checkout, built in a copy of it."""
    folder = tmp_path_factory.mktemp("release")
    source = Path(shutil.copytree(ROOT, folder / "source", ignore=BUILT))
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    said(sys.executable, "-c", build, folder, cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    for made in source.glob("*.egg-info"):
        shutil.rmtree(made)
    return wheel_of(source, folder / "wheel"), archive


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that holds the wheel, over the packages that are here."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    said(*into(environment(folder)), archives[0], cwd=folder)
    return folder


def files_in(wheel: Path) -> dict[str, bytes]:
    """What a wheel holds, but for the list of its own digests."""
    with zipfile.ZipFile(wheel) as held:
        return {name: held.read(name) for name in held.namelist() if not name.endswith("/RECORD")}


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel_and_its_tests_find_what_they_need(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    wheel, archive = archives
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert source.name == f"ropescale-{ropescale.__version__}"
    tracked = {path for room in ("tests", "docs", "scripts", "benchmarks") for path in (ROOT / room).rglob("*")}
    wanted = {path.relative_to(ROOT) for path in tracked if path.is_file() and "__pycache__" not in path.parts}
    assert [str(path) for path in sorted(wanted) if not (source / path).is_file()] == []
    again = wheel_of(Path(shutil.copytree(source, tmp_path / "again")), tmp_path / "wheel")
    assert files_in(again) == files_in(wheel)
    python = environment(source / ".venv")
    editable = ("--no-build-isolation", "--editable", source)
    said(*into(python), *editable, cwd=source)
    tried = ("tests/house/test_release.py", "tests/house/test_architecture.py", "tests/evals/test_statistics.py")
    assert " passed" in said(python, "-m", "pytest", "-q", *tried, cwd=source)


@pytest.mark.slow
def test_an_installed_wheel_patches_saves_and_answers(installed: Path, tmp_path: Path) -> None:
    python, ours = installed / "bin" / "python", installed / "bin" / "ropescale"
    said(python, "-I", "-c", TRIED, tmp_path / "longer", cwd=tmp_path)
    assert "ropescale demo" in said(ours, "demo", "--help", cwd=tmp_path)
    listed = said(ours, "methods", cwd=tmp_path)
    assert [name for name in ropescale.list_methods() if name not in listed] == []
    assert "ropescale doctor" in said(python, "-I", "-m", "ropescale", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_who_uses_an_installed_wheel_is_checked_by_its_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(CLIENT)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
    )
    mypy = (sys.executable, "-m", "mypy", "--python-executable", installed / "bin" / "python", "client.py")
    done = subprocess.run([*map(str, mypy)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=900)
    assert re.findall(r"client\.py:(\d+): (error|note): (.*?)(?:  \[|$)", done.stdout, flags=re.MULTILINE) == [
        ("9", "note", 'Revealed type is "int"'),
        ("14", "error", 'Argument 1 to "get_method" has incompatible type "int"; expected "str"'),
    ], done.stdout


@pytest.mark.slow
def test_all_extras_can_be_had_together(archives: tuple[Path, Path], tmp_path: Path) -> None:
    extras = ",".join(PROJECT["project"]["optional-dependencies"])
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--constraint", ROOT / "constraints.txt")
    said(*pip, f"{archives[0]}[{extras}]", cwd=tmp_path)


def test_what_is_released_says_one_version_everywhere() -> None:
    version = ropescale.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert (citation["version"], citation["license"]) == (version, PROJECT["project"]["license"])
    assert heading.groups() == (version, str(citation["date-released"]))
    assert date.fromisoformat(heading[2])


def test_the_metadata_is_complete_and_names_no_address_that_is_not_there() -> None:
    project = PROJECT["project"]
    assert {"name", "description", "readme", "requires-python", "license", "authors", "keywords"} <= project.keys()
    lowest = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in project["classifiers"]
    assert "urls" not in project
