"""Windows of real text, cut so that text and tokens say the same: what the three perplexity tasks score.

The harness hands texts to a model and encodes them itself. A window therefore counts only if encoding it gives back
the tokens that it was cut from, at its ends and at every place where a scored span begins; a place that does not
is moved by a token or a few. This room knows tokenizers and documents, no models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.texts import Document
from ropescale.evals.tokens import leading_token

MOVES = 64  # tokens that a cut may move before its text counts as impossible to cut


@dataclass(frozen=True, kw_only=True)
class Span:
    """Tokens of a text to score: characters before `cut` are context, those of [cut, end) are scored."""

    cut: int
    end: int
    tokens: int  # scored


class Cutter:
    """One document as tokens, and the texts between them."""

    def __init__(self, document: Document, tokenizer: PreTrainedTokenizerBase, limit: int):
        self.name = document.name
        self._tokenizer = tokenizer
        self._leading = leading_token(tokenizer)
        # A prefix of the text that surely holds `limit` tokens and some room to move, so that long texts cost little
        text = document.text[: 24 * (limit + MOVES)]
        self.ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)

    @property
    def leading(self) -> int:
        """Tokens that the tokenizer puts before every text by itself: 0 or 1."""
        return len(self._leading)

    def text(self, first: int, last: int) -> str:
        """Tokens [first, last) as text."""
        kept: str = self._tokenizer.decode(
            self.ids[first:last], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return kept

    def whole(self, first: int, last: int) -> bool:
        """Whether the text of tokens [first, last) is encoded as exactly these."""
        again: list[int] = self._tokenizer(self.text(first, last), verbose=False)["input_ids"]
        return again == [*self._leading, *self.ids[first:last]]

    def clean(self, first: int, cut: int) -> bool:
        """Whether a scored span can begin at `cut` in a text that starts at `first`.

        The harness moves white space from the end of the context to what is scored, so there must be none.
        """
        text = self.text(first, cut)
        return bool(text) and not text[-1].isspace() and self.whole(first, cut)

    def starts(self, length: int) -> Iterator[int]:
        """Where windows of `length` tokens can start, one after another without overlap."""
        body, first = length - self.leading, 0
        while first + body <= len(self.ids):
            moved = next((n for n in range(MOVES) if self.whole(first + n, first + n + body)), None)
            if moved is None or first + moved + body > len(self.ids):
                return
            yield first + moved
            first += moved + body


def longest_first(documents: Sequence[Document]) -> list[Document]:
    """By characters, so that the choice is the same for every tokenizer."""
    return sorted(documents, key=lambda document: (-len(document.text), document.name))


def windows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int
) -> list[tuple[Cutter, int, int]]:
    """At most `limit` windows of `length` tokens, as (document, number within it, first token).

    Every document gives its first window before any gives its second; the longest documents come first.

    Raises:
        InvalidArgumentError: no document holds a window.
    """
    # every document beyond the limit could only give a window after the first `limit` have given theirs
    chosen = longest_first(documents)[:limit]
    found = []
    for order, document in enumerate(chosen):
        cutter = Cutter(document, tokenizer, length * limit)
        for number, first in zip(range(limit), cutter.starts(length), strict=False):
            found.append((number, order, cutter, first))
    if not found:
        raise InvalidArgumentError(
            f"texts: at least one document must hold {length:,} tokens, got {len(documents)} that do not; "
            f"ask for shorter lengths, or give longer texts"
        )
    found.sort(key=lambda item: item[:2])
    return [(cutter, number, first) for number, _, cutter, first in found[:limit]]


def by_position(cutter: Cutter, first: int, length: int, edges: Sequence[int]) -> list[Span]:
    """The spans of one window between edges: positions in the window, the leading token counted.

    All are read from the start of the window. A cut may lie a token or a few after its edge; every token from the
    second on is scored once.
    """
    last = first + length - cutter.leading
    cuts = [_moved(cutter, first, first + edge - cutter.leading, last) for edge in edges[:-1]]
    ends = [*cuts[1:], last]
    at = {place: len(cutter.text(first, place)) for place in {*cuts, *ends}}
    return [Span(cut=at[cut], end=at[end], tokens=end - cut) for cut, end in zip(cuts, ends, strict=True)]


def _moved(cutter: Cutter, first: int, place: int, last: int) -> int:
    """The first clean cut from `place` on."""
    for cut in range(place, min(place + MOVES, last)):
        if cutter.clean(first, cut):
            return cut
    raise InvalidArgumentError(
        f"texts: a text must have a token boundary that survives decoding, got none near token {place} of "
        f"{cutter.name!r}; leave that text out"
    )


def strided(cutter: Cutter, first: int, tokens: int, window: int, stride: int) -> list[tuple[str, Span]]:
    """Windows over a stretch of text: each of exactly `window` tokens, the last `stride` of which are scored.

    The first window scores all its tokens but the first, and may start a token or a few late. A window may end a token
    or a few early; the next one scores what that left, so every token after the first is scored once. What is left at
    the end, less than a stride, is left out where the text cannot be cut there.

    Raises:
        InvalidArgumentError: the text cannot be cut near a place where a window has to end.
    """
    body, last = window - cutter.leading, first + tokens - cutter.leading
    begin = next((n for n in range(first, min(first + MOVES, last - body + 1)) if cutter.clean(n, n + body)), first)
    ends = [(begin, _moved(cutter, begin, begin + 1, begin + body), begin + body)]
    while (cut := ends[-1][2]) < last:
        aim = min(cut + stride, last)
        end = next(
            (end for end in range(aim, cut, -1) if cutter.clean(end - body, end) and cutter.clean(end - body, cut)),
            None,
        )
        if end is None and aim == last:
            break
        if end is None:
            raise InvalidArgumentError(
                f"texts: a text must have token boundaries that survive decoding, got none near token {aim} of "
                f"{cutter.name!r}; leave that text out"
            )
        ends.append((end - body, cut, end))
    return [
        (text := cutter.text(start, end), Span(cut=len(cutter.text(start, cut)), end=len(text), tokens=end - cut))
        for start, cut, end in ends
    ]


def position_edges(length: int, bucket: int, leading: int) -> list[int]:
    """Edges of buckets of positions: the first that is scored, then every multiple of `bucket`, then `length`."""
    first = leading + 1
    return [first, *range(bucket * (first // bucket + 1), length, bucket), length]
