"""The rows of `lines`: windows whose last half is scored."""

import datasets

from ropescale.evals.tasks.spans import row_of
from ropescale.evals.tasks.windows import by_position, windows
from ropescale.evals.texts import documents
from ropescale.evals.tokens import task_tokenizer


def dataset(lengths, texts, **given):
    """What the harness asks for."""
    rows = []
    for length in lengths:
        cut = windows(documents(texts), task_tokenizer(given), length=length, limit=given["windows"])
        for cutter, number, first in cut:
            text = cutter.text(first, cutter.last(first, length))
            half = by_position(cutter, first, length, [1, length // 2, length])[1:]
            rows.append(row_of(cutter, number, length, text, half))
    return {"test": datasets.Dataset.from_list(rows)}
