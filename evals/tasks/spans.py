"""What every loss task shares: rows of text with spans to score, one log-likelihood request a span.

A row is {"document", "window", "text", "length", "cuts", "ends", "tokens", "edges", "of"}: characters [cuts[i],
ends[i]) of the text are scored after the characters before them. Every request of a row begins alike, so an engine
that knows it answers them all from one forward pass; the stock one answers them one by one, with the same numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from ropescale.evals.tasks.windows import Cutter, Span

Row = dict[str, Any]


class SpanTask(ConfigurableTask):  # type: ignore[misc] # lm_eval ships no types
    """A task of the harness whose row holds several spans to score."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        # the harness hands over the key by which it found this class, and refuses it
        super().__init__(config={name: value for name, value in (config or {}).items() if name != "class"})

    def construct_requests(self, doc: Row, ctx: str, **kwargs: Any) -> list[Instance]:
        """One log-likelihood request per span, in order."""
        kwargs.pop("apply_chat_template", None)  # perplexity is measured on plain text
        kwargs.pop("chat_template", None)
        text = doc["text"]
        return [
            Instance(
                request_type="loglikelihood", doc=doc, arguments=(text[:cut], text[cut:end]), idx=number, **kwargs
            )
            for number, (cut, end) in enumerate(zip(doc["cuts"], doc["ends"], strict=True))
        ]


def row_of(
    cutter: Cutter, number: int, length: int, text: str, spans: Sequence[Span], edges: Sequence[int] = (), of: int = 0
) -> Row:
    """The row of a window with these spans; `edges` are those of buckets of positions, `of` the tokens looked at."""
    return {
        "document": cutter.name,
        "window": number,
        "length": length,
        "text": text,
        "cuts": [span.cut for span in spans],
        "ends": [span.end for span in spans],
        "tokens": [span.tokens for span in spans],
        "edges": list(edges),
        "of": of,
    }


def metrics(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """What one row adds to the metrics: nats and tokens, and these with the length."""
    nats, tokens = -sum(float(loglikelihood) for loglikelihood, _ in results), sum(doc["tokens"])
    return {"perplexity": (nats, tokens), "by_length": (doc["length"], nats, tokens)}


def weighted(rows: Sequence[tuple[float, int]]) -> float:
    """Token-weighted perplexity: the exponential of all nats over all tokens."""
    tokens = sum(count for _, count in rows)
    return _exp(sum(nats for nats, _ in rows) / tokens) if tokens else math.nan


def by_length(rows: Sequence[tuple[int, float, int]]) -> dict[str, float]:
    """Length -> token-weighted perplexity."""
    groups: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for length, nats, tokens in rows:
        groups[length].append((nats, tokens))
    return {str(length): weighted(groups[length]) for length in sorted(groups)}


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # the largest that a float can hold, near enough
