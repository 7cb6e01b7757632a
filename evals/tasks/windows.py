"""Windows of real text, cut so that text and tokens say the same: what loss tasks score.

The harness hands texts to a model and encodes them itself. A window therefore counts only if encoding it gives back
the tokens that it was cut from, at its ends and at every place where a scored span begins; a place that does not
is moved by a token or a few. Where a tokenizer begins every text in a way of its own and the text has no spaces to
begin after (Chinese under sentencepiece), a window has a head instead: the few tokens with which its text begins when
it is encoded alone. This room knows tokenizers and documents, no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.texts import Document
from ropescale.evals.tokens import leading_tokens, prompt_ids

MOVES = 64  # tokens that a cut may move before its text counts as impossible to cut
HEAD = 8  # tokens of a beginning that may differ from the document's
AGREED = 4  # tokens after them that must not


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
        self._leading = leading_tokens(tokenizer)
        # A prefix of the text that surely holds `limit` tokens and some room to move, so that long texts cost little
        text = document.text[: 24 * (limit + MOVES)]
        self.ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        self._heads: dict[int, tuple[list[int], int] | None] = {}

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

    def _head(self, first: int) -> tuple[list[int], int] | None:
        """With which ids a text from `first` on begins in the place of how many of the document's; None if unlike.

        Looked for in a short piece, so that it costs the same wherever and however long the text is.
        """
        if first not in self._heads:
            piece = self.ids[first : first + 2 * (HEAD + AGREED)]
            text = self.text(first, first + len(piece))
            alone = prompt_ids(self._tokenizer, text)[self.leading :]
            heads = (
                (alone[:ours], theirs)
                for total in range(2 * HEAD + 1)
                for theirs in range(max(0, total - HEAD), min(total, HEAD) + 1)
                for ours in [total - theirs]
                if alone[ours : ours + AGREED] == piece[theirs : theirs + AGREED] and len(piece) >= theirs + AGREED
            )
            head = next(heads, None)
            # within a character there is no text to begin with
            within = head is not None and head != ([], 0) and text.startswith("\N{REPLACEMENT CHARACTER}")
            self._heads[first] = None if within else head
        return self._heads[first]

    def shift(self, first: int) -> int | None:
        """Tokens that a text from `first` on has more than the document has there; None where it cannot begin."""
        head = self._head(first)
        return None if head is None else len(head[0]) - head[1]

    def last(self, first: int, length: int) -> int:
        """Where a window of `length` tokens ends that begins at `first`."""
        return first + length - self.leading - (self.shift(first) or 0)

    def encoding(self, first: int, last: int) -> list[int]:
        """The ids of the text of tokens [first, last), with those that the tokenizer puts before every text."""
        head, instead_of = self._head(first) or ([], 0)
        return [*self._leading, *head, *self.ids[first + instead_of : last]]

    def whole(self, first: int, last: int) -> bool:
        """Whether the text of tokens [first, last) is encoded as exactly these, after the head that it has alone."""
        head = self._head(first)
        if head is None or last - first < head[1]:
            return False
        return prompt_ids(self._tokenizer, self.text(first, last)) == self.encoding(first, last)

    def clean(self, first: int, cut: int) -> bool:
        """Whether a scored span can begin at `cut` in a text that starts at `first`.

        The harness moves white space from the end of the context to what is scored, so there must be none.
        """
        text = self.text(first, cut)
        return bool(text) and not text[-1].isspace() and self.whole(first, cut)

    def begin(self, places: Sequence[int], fits: Callable[[int], bool]) -> int | None:
        """The first of the places that fits: without a head of its own if there is one, else with one."""
        plain = (place for place in places if self._head(place) == ([], 0) and fits(place))
        headed = (place for place in places if self._head(place) not in (None, ([], 0)) and fits(place))
        return next(plain, next(headed, None))

    def starts(self, length: int) -> Iterator[int]:
        """Where windows of `length` tokens can start, one after another without overlap."""
        first = 0
        while first + length - self.leading - HEAD <= len(self.ids):
            start = self.begin(range(first, first + MOVES), lambda place: self.whole(place, self.last(place, length)))
            if start is None or self.last(start, length) > len(self.ids):
                return
            yield start
            first = self.last(start, length)


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
    candidates = []
    for order, document in enumerate(chosen):
        cutter = Cutter(document, tokenizer, length * limit)
        for number, first in zip(range(limit), cutter.starts(length), strict=False):
            candidates.append((number, order, cutter, first))
    if not candidates:
        raise InvalidArgumentError(
            f"texts: at least one document must hold {length:,} tokens, got {len(documents)} that do not; "
            f"ask for shorter lengths, or give longer texts"
        )
    candidates.sort(key=lambda item: item[:2])
    return [(cutter, number, first) for number, _, cutter, first in candidates[:limit]]


def by_position(cutter: Cutter, first: int, length: int, edges: Sequence[int]) -> list[Span]:
    """The spans of one window between edges: positions in the window, the leading token counted.

    All are read from the start of the window. A cut may lie a token or a few after its edge; every token from the
    second on is scored once.
    """
    last = cutter.last(first, length)
    cuts = [_moved(cutter, first, last - length + edge, last) for edge in edges[:-1]]
    ends = [*cuts[1:], last]
    at = {place: len(cutter.text(first, place)) for place in {*cuts, *ends}}
    return [Span(cut=at[cut], end=at[end], tokens=end - cut) for cut, end in zip(cuts, ends, strict=True)]


def _moved(cutter: Cutter, first: int, place: int, last: int) -> int:
    """The first clean cut from `place` on."""
    for cut in range(max(place, first), min(place + MOVES, last)):
        if cutter.clean(first, cut):
            return cut
    raise InvalidArgumentError(
        f"texts: a text must have a token boundary that survives decoding, got none near token {place} of "
        f"{cutter.name!r}; leave that text out"
    )


def strided(cutter: Cutter, first: int, tokens: int, window: int, stride: int) -> list[tuple[str, Span]]:
    """Windows over a passage of text: each of exactly `window` tokens, the last `stride` of which are scored.

    The first window scores all its tokens but the first, and may start a token or a few late. A window may end a token
    or a few early; the next one scores what that left, so every token after the first is scored once. What is left at
    the end, less than a stride, is left out where the text cannot be cut there.

    Raises:
        InvalidArgumentError: the text cannot be cut near a place where a window has to end.
    """
    last = cutter.last(first, tokens)
    places = range(first, min(first + MOVES, first + tokens - window + 1))
    begin = cutter.begin(places, lambda place: cutter.clean(place, cutter.last(place, window)))
    begin = first if begin is None else begin
    end = cutter.last(begin, window)
    ends = [(begin, _moved(cutter, begin, begin + 1, end), end)]
    while (cut := ends[-1][2]) < last:
        aim = min(cut + stride, last)
        passage = _passage(cutter, cut, aim, window)
        if passage is None and aim == last:
            break
        if passage is None:
            raise InvalidArgumentError(
                f"texts: a text must have token boundaries that survive decoding, got none near token {aim} of "
                f"{cutter.name!r}; leave that text out"
            )
        ends.append((passage[0], cut, passage[1]))
    return [
        (text := cutter.text(start, end), Span(cut=len(cutter.text(start, cut)), end=len(text), tokens=end - cut))
        for start, cut, end in ends
    ]


def _passage(cutter: Cutter, cut: int, aim: int, window: int) -> tuple[int, int] | None:
    """Start and end of a window that ends at `aim` or a little before it, and can be scored from `cut` on."""
    ends = range(aim, max(cut, aim - MOVES), -1)
    for shifts in ((0,), range(-HEAD, HEAD + 1)):  # windows without a head of their own first
        for end in ends:
            for shift in shifts:
                start = end - window + cutter.leading + shift
                if (
                    0 <= start < cut
                    and cutter.shift(start) == shift
                    and cutter.clean(start, end)
                    and cutter.clean(start, cut)
                ):
                    return start, end
    return None


def position_edges(length: int, bucket: int, leading: int) -> list[int]:
    """Edges of buckets of positions: the first that is scored, then every multiple of `bucket`, then `length`."""
    first = leading + 1
    return [first, *range(bucket * (first // bucket + 1), length, bucket), length]
