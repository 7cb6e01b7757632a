"""Rows of packed pieces, written as an Arrow stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow

from ropescale.recipes.data.packing import Row
from ropescale.recipes.data.progress import bar
from ropescale.recipes.data.tokenised import Tokens

TOKENS_AT_ONCE = 2**20  # assembled before they are written
COLUMNS = ("input_ids", "position_ids", "documents")
LEARNT = "learnt"  # a further column, where some tokens are read alone


def write_rows(
    path: Path, rows: list[Row], stores: list[Tokens], chosen: list[tuple[int, int]], length: int, split: str
) -> None:
    """Write rows as an Arrow stream, which `datasets` maps into memory."""
    names = (*COLUMNS, LEARNT) if any(tokens.learnt is not None for tokens in stores) else COLUMNS
    schema = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in names}).arrow_schema
    at_once = max(1, TOKENS_AT_ONCE // length)
    with (
        bar(f"writing rows ({split})", len(rows)) as advance,
        pyarrow.OSFile(str(path), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as stream,
    ):
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            columns = [numpy.empty((len(some), length), dtype=numpy.int32) for _ in names]
            for number, row in enumerate(some):
                _fill([column[number] for column in columns], row, stores, chosen)
            offsets = pyarrow.array(numpy.arange(0, (len(some) + 1) * length, length, dtype=numpy.int32))
            lists = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(column.reshape(-1))) for column in columns]
            stream.write_batch(pyarrow.record_batch(lists, schema=schema))
            advance(len(some), len(some) * length)


def _fill(columns: list[Any], row: Row, stores: list[Tokens], chosen: list[tuple[int, int]]) -> None:
    """Lay one row's pieces into its columns."""
    ids, positions, documents, *learnt = columns
    at = 0
    for number, piece in enumerate(row):
        source, document = chosen[piece.document]
        size = piece.stop - piece.start
        ids[at : at + size] = stores[source].slice(document, piece.start, piece.stop)
        positions[at : at + size] = numpy.arange(size)
        documents[at : at + size] = number
        for mask in learnt:
            mask[at : at + size] = stores[source].learnt_of(document, piece.start, piece.stop)
        at += size
