"""What the three perplexity tasks are: by position, strided by context length, and of key tokens alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropescale.evals.tasks.base import Loss, register

if TYPE_CHECKING:
    from ropescale.evals.plan import Options


@dataclass(frozen=True, kw_only=True)
class _Position(Loss):
    reads_all = True
    fields = ("document", "window", "edges", "nll", "tokens")

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        return {"windows": options.windows, "bucket": max(1, original // 8), "texts": options.source}

    def sample(self, row: Mapping[str, Any], nats: Sequence[float]) -> dict[str, Any]:
        return {
            "document": row["document"],
            "window": row["window"],
            "edges": list(row["edges"]),
            "nll": list(nats),
            "tokens": list(row["tokens"]),
        }


@dataclass(frozen=True, kw_only=True)
class _Strided(Loss):
    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        return {"windows": options.windows, "stride": options.stride, "tokens": longest, "texts": options.source}

    def tokens(self, options: Options, length: int, longest: int) -> float:
        steps = math.ceil((longest - length) / max(1, options.stride * length))
        return options.windows * (1 + steps) * length

    def stated(self, options: Options, length: int) -> dict[str, Any]:
        return {"window": length, "stride": max(1, round(options.stride * length))}


@dataclass(frozen=True, kw_only=True)
class _KeyTokens(Loss):
    fields = ("document", "nll", "tokens", "of")

    def knobs(self, options: Options, original: int, longest: int) -> dict[str, Any]:
        return {**super().knobs(options, original, longest), **self.stated(options, longest)}

    def stated(self, options: Options, length: int) -> dict[str, Any]:
        return {"evaluator": options.evaluator or options.model}

    def sample(self, row: Mapping[str, Any], nats: Sequence[float]) -> dict[str, Any]:
        return {**super().sample(row, nats), "of": row["of"], "place": row["place"]}


register(
    _Position(
        name="position",
        title="Perplexity by position",
        summary="perplexity by position: windows read once, in buckets of an eighth of the original length",
        text="Where in the context a model breaks: each held-out window is read once, in one forward, and the value "
        "at a position is the perplexity of the next token given all tokens before it. Windows: {windows}, the same "
        "for every arm of a panel. The first positions have little to go by. Vertical line: the original length. "
        "Lower is better. Not to be compared with the strided perplexity.",
        noun="perplexity by position",
        metric="last",
        told="Perplexities are by position, from one forward over each window; blocks of a window's positions are "
        "resampled, and blocks of one document are not independent, so take the intervals as a lower bound.",
        curve="position",
        place=10,
        default=True,
        quick=True,
    ),
    _Strided(
        name="perplexity",
        title="Perplexity by context length",
        summary="perplexity by context length: strided, token-weighted (--stride of each window is scored)",
        text="What a reader gets who always feeds a context of this length: a window slides over {documents} held-out "
        "documents and only its last part, the stride, is scored; token-weighted. Window / stride in tokens: "
        "{strides}. Vertical line: the original length. Lower is better. Not to be compared with the perplexity by "
        "position, which scores the first tokens of longer windows too, nor with that of a training page, which has "
        "windows of its own: at one length the three are different figures of one model.",
        brief="Strided and token-weighted; not to be compared with perplexity by position.",
        noun="strided perplexity",
        metric="strided",
        told="Perplexities are strided, by context length; documents are resampled.",
        place=20,
        default=True,
    ),
    _KeyTokens(
        name="longppl",
        title="LongPPL",
        summary="perplexity of key tokens, those that a long context makes likely (--evaluator)",
        text="Perplexity of key tokens alone: those that only a long context makes likely, as an evaluator model "
        "judges. It tells better than plain perplexity whether the context is used. Evaluator: {evaluators}. Key "
        "tokens: {keys}. Beneath each value: the change against {base} on the same tokens, with its 95% interval over "
        "documents.",
        brief="Perplexity of key tokens alone, chosen by {evaluators}.",
        noun="perplexity of key tokens",
        curve="",
        place=30,
    ),
    file=__file__,
)
