"""A haystack of real text: the embedded speeches, sentence by sentence, as often as the length needs them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from ropescale.evals import texts
from ropescale.evals.tokens import Cuts, token_counts

# A sentence ends at . ! or ? before white space and a capital letter, but not after a title or an initial.
_BOUNDARY = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\b[A-Z]\.)\s+(?=[\"“A-Z])")


class Haystack:
    """The sentences of the speeches in one order, with what each takes with a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._sentences = sentences()
        # the first sentence stands at the beginning of a line, where it may take other tokens than after a space
        begun, spaced = token_counts(tokenizer, ["x\n", "x"])
        first, *others = self._sentences
        counts = token_counts(tokenizer, [f"x\n{first}", *(f"x {sentence}" for sentence in others)])
        self._sizes = [0, *accumulate(count - (spaced if i else begun) for i, count in enumerate(counts))]
        self._cuts: dict[int, Cuts] = {}

    def sentences(self, start: int, stop: int) -> list[str]:
        """Sentences number `start` up to `stop`; the texts begin again where they end."""
        return [self._sentences[i % len(self._sentences)] for i in range(start, stop)]

    def size(self, sentences: int) -> int:
        """Tokens of the first `sentences` sentences, about."""
        whole, rest = divmod(sentences, len(self._sentences))
        return whole * self._sizes[-1] + self._sizes[rest]

    def sentences_before(self, depth: float, sentences: int) -> int:
        """How many of the first `sentences` end within the share `depth` of their tokens."""
        return bisect_right(range(sentences + 1), depth * self.size(sentences), key=self.size) - 1

    def filling(self, sentences: int) -> Cuts:
        """The beginnings of the sentence that comes next, after a space."""
        at = sentences % len(self._sentences)
        if at not in self._cuts:
            self._cuts[at] = Cuts(self._tokenizer, " ".join(self.sentences(at, at + 2)), lead=" ")
        return self._cuts[at]

    def with_needles(self, sentences: int, filling: str, needles: Sequence[tuple[int, str]]) -> str:
        """The first `sentences` sentences and the filling, each needle put before the sentence of its number."""
        parts: list[str] = []
        start = 0
        for at, needle in needles:
            parts += [*self.sentences(start, at), needle]
            start = at
        parts += self.sentences(start, sentences)
        return " ".join(parts) + filling


@cache
def haystack(tokenizer: PreTrainedTokenizerBase) -> Haystack:
    """The haystack for a tokenizer, measured once."""
    return Haystack(tokenizer)


@cache
def sentences() -> list[str]:
    """The sentences of all speeches that are embedded, in order."""
    return [sentence for document in texts.sample() for sentence in sentences_of(document.text)]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, each on one line."""
    return [sentence for sentence in _BOUNDARY.split(" ".join(text.split())) if sentence]
