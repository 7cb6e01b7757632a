"""docs/families.md: no class of the installed Transformers is missing from it, and it says of each what is so."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from families import TEXT_CLASSES, WHOLES
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ropescale.families.catalogue import CATALOGUE, PATCHED, ROWS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def census() -> ModuleType:
    spec = importlib.util.spec_from_file_location("census", ROOT / "scripts" / "census.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["census"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_names_every_class_as_it_is(census: ModuleType) -> None:
    """What each row says of equality and of late methods is tried by the slow test below."""
    text = census.PAGE.read_text(encoding="utf-8")
    cells = [re.findall(r"[^|]+", line) for line in text.splitlines() if re.match(r"\| \w+ \| [\w-]+ \|", line)]
    said = {row[0].strip(): (row[1].strip(), row[2].strip()) for row in cells if row[0].strip() != "class"}
    rotating, wholes = [row for row in census.rows() if row.rotary], census.beside_vision()
    assert set(said) == {row.name for row in [*rotating, *wholes]}
    for row in [*rotating, *wholes]:
        family, claim = said[row.name]
        assert family == row.family
        word = {"patched": r"(bit for bit native|native within 1e-6)", "refused": "refused", "untried": "not tried"}
        assert re.match(word[row.status], claim), row.name
        assert row.status == "patched" or row.reason in claim
    patched = sum(row.status == "patched" for row in rotating)
    assert f"- classes with a rotary embedding: {len(rotating)}\n- patched: {patched}," in text
    assert patched >= 105
    others = {row.name for row in census.rows() if not row.rotary}
    assert [name for name in others if name not in text] == []


def test_no_class_with_a_rotary_module_is_left_out(census: ModuleType) -> None:
    assert [row.name for row in census.rows() if row.rotary and row.status == "none"] == []


def test_every_family_is_that_of_some_class(census: ModuleType) -> None:
    rows = [*census.rows(), *census.beside_vision()]
    named = {row.family for row in rows} | set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert named >= PATCHED
    assert all(census._text_type(row.family.removesuffix("_text")) == row.family for row in census.beside_vision())
    assert set(CATALOGUE) <= named | set(CONFIG_MAPPING)  # a text beside images has no class of its own
    assert set(TEXT_CLASSES) <= PATCHED
    assert {text for text, _ in WHOLES.values()} <= PATCHED
    assert len(ROWS) == len(CATALOGUE)  # one row a family


@pytest.mark.slow
def test_the_page_is_what_the_script_writes() -> None:
    """Builds, patches and undoes a model of every class."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "census.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
