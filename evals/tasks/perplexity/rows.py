"""The rows of the three perplexity tasks, and what each row adds to their metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import datasets

from ropescale.errors import InvalidArgumentError
from ropescale.evals.tasks.perplexity import longppl
from ropescale.evals.tasks.spans import Row, metrics, row_of, weighted
from ropescale.evals.tasks.windows import Cutter, Span, by_position, position_edges, strided
from ropescale.evals.tasks.windows import windows as cut_windows
from ropescale.evals.texts import documents
from ropescale.evals.tokens import task_tokenizer


def position_metrics(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """What one row adds to the metrics of `position`: nats and tokens, in all and per bucket."""
    nats = [-float(loglikelihood) for loglikelihood, _ in results]
    return {"perplexity": (sum(nats), sum(doc["tokens"])), "by_position": (doc["edges"], nats, doc["tokens"])}


def longppl_metrics(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """What one row adds to the metrics of `longppl`: those of any window, and key tokens among all."""
    return {**metrics(doc, results), "key_share": (sum(doc["tokens"]), doc["of"])}


def by_bucket(rows: Sequence[tuple[Sequence[int], Sequence[float], Sequence[int]]]) -> dict[str, float]:
    """Bucket of positions ("16-32" is 16 to 31) -> token-weighted perplexity."""
    groups: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for edges, nats, tokens in rows:
        for low, high, loss, count in zip(edges, edges[1:], nats, tokens, strict=False):
            groups[low, high].append((loss, count))
    return {f"{low}-{high}": weighted(groups[low, high]) for low, high in sorted(groups)}


def key_share(rows: Sequence[tuple[int, int]]) -> float:
    """Key tokens among all tokens that were looked at."""
    return sum(keys for keys, _ in rows) / max(1, sum(of for _, of in rows))


def strided_rows(
    lengths: Sequence[int],
    texts: str,
    windows: int,
    stride: float,
    tokens: int | None = None,
    **given: Any,
) -> dict[str, datasets.Dataset]:
    """Rows of the task `perplexity`: one window each, over the same passages of text for every length.

    Arguments:
        lengths: tokens of a window.
        texts: as `ropescale.evals.texts.documents` takes it.
        windows: documents at most, the longest first; one passage of each.
        stride: scored tokens of a window, as a share of it; 1 is windows side by side.
        tokens: of a passage; the largest length if not given.
        given: further metadata; `tokenizer` or `pretrained` names the tokenizer.

    Raises:
        InvalidArgumentError: a value out of bounds, or no text long enough.
    """
    _check("perplexity", lengths, windows)
    if not 0 < stride <= 1:
        raise InvalidArgumentError(
            f"perplexity: stride must be a share of the window, above 0 and at most 1, got {stride!r}; "
            f"0.5 scores the second half of every window"
        )
    passage = tokens or max(lengths)
    if passage < max(lengths):
        raise InvalidArgumentError(
            f"perplexity: tokens must hold the longest window ({max(lengths):,}), got {passage:,}; leave it out"
        )
    tokenizer = task_tokenizer(given)
    rows: list[Row] = []
    passages = cut_windows(documents(texts), tokenizer, length=passage, limit=windows)
    for length in lengths:
        for cutter, number, first in passages:
            step = max(1, round(stride * length))
            rows += [
                row_of(cutter, number, length, text, [span])
                for text, span in strided(cutter, first, passage, length, step)
            ]
    return {"test": datasets.Dataset.from_list(rows)}


def position_rows(
    lengths: Sequence[int], texts: str, windows: int, bucket: int | None = None, **given: Any
) -> dict[str, datasets.Dataset]:
    """Rows of the task `position`: one window each, with a span for every bucket of positions.

    Arguments:
        lengths: tokens of a window.
        texts: as `ropescale.evals.texts.documents` takes it.
        windows: at most.
        bucket: positions of a span; a sixteenth of the length if not given.
        given: further metadata; `tokenizer` or `pretrained` names the tokenizer.

    Raises:
        InvalidArgumentError: a value out of bounds, or no text long enough.
    """
    _check("position", lengths, windows)
    tokenizer = task_tokenizer(given)
    rows = []
    for length in lengths:
        for cutter, number, first in cut_windows(documents(texts), tokenizer, length=length, limit=windows):
            edges = position_edges(length, bucket or max(1, length // 16), cutter.leading)
            text = cutter.text(first, cutter.last(first, length))
            rows.append(row_of(cutter, number, length, text, by_position(cutter, first, length, edges), edges))
    return {"test": datasets.Dataset.from_list(rows)}


def longppl_rows(
    lengths: Sequence[int],
    texts: str,
    windows: int,
    evaluator: str | None = None,
    short: int | None = None,
    **given: Any,
) -> dict[str, datasets.Dataset]:
    """Rows of the task `longppl`: one window each, with a span for every key token.

    Arguments:
        lengths: tokens of a window.
        texts: as `ropescale.evals.texts.documents` takes it.
        windows: at most.
        evaluator: the model that says which tokens are key: a short name, a path or a hub id; it must share the
            tokenizer. Not given, the model under evaluation, patched with yarn where it is too short.
        short: tokens of the short context; the smaller of 4,096 and a quarter of the length if not given.
        given: further metadata; `tokenizer` or `pretrained` names the tokenizer.

    Raises:
        InvalidArgumentError: a value out of bounds, no text long enough, or an evaluator of another tokenizer.
    """
    _check("longppl", lengths, windows)
    tokenizer = task_tokenizer(given)
    judge = evaluator or given.get("pretrained")
    if not isinstance(judge, str):
        raise InvalidArgumentError(
            f"longppl: evaluator must name a model (tiny, smollm2, a path or a hub id), got {judge!r}; "
            f"give it in the metadata of the task"
        )
    rows = []
    with longppl.Evaluator(judge, tokenizer, max(lengths)) as model:
        for length in lengths:
            cut = cut_windows(documents(texts), tokenizer, length=length, limit=windows)
            for place, (cutter, number, first) in enumerate(cut):
                last = cutter.last(first, length)
                keys = model.key_tokens(cutter.encoding(first, last), short or longppl.short_context(length))
                spans = _key_spans(cutter, first, [key - length + last - first for key in keys])
                if spans:
                    of = length - cutter.leading - 1
                    row = row_of(cutter, number, length, cutter.text(first, last), spans, of=of)
                    rows.append({**row, "place": place})
    if not rows:
        raise InvalidArgumentError(
            f"longppl: the evaluator must find key tokens (those that a long context makes likely), got none with "
            f"{judge!r}; name a model that reads that far, or give texts that refer back"
        )
    return {"test": datasets.Dataset.from_list(rows)}


def _key_spans(cutter: Cutter, first: int, keys: Sequence[int]) -> list[Span]:
    """A span for each key token that the text can be cut around; the others are left out."""
    spans = []
    for key in keys:
        place = first + key
        if key > 0 and cutter.clean(first, place) and cutter.whole(first, place + 1):
            before, after = len(cutter.text(first, place)), len(cutter.text(first, place + 1))
            spans.append(Span(cut=before, end=after, tokens=1))
    return spans


def _check(task: str, lengths: Sequence[int], windows: int) -> None:
    if not lengths or min(lengths) < 16:
        raise InvalidArgumentError(
            f"{task}: lengths must be at least 16 tokens, got {list(lengths)!r}; a window needs tokens to predict"
        )
    if windows < 1:
        raise InvalidArgumentError(f"{task}: windows must be at least 1, got {windows!r}; leave it out")
