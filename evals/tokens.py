"""What tokenizers do at the start of a text, and texts fitted to an exact number of tokens with any of them.

Nothing is assumed about how tokens join: a text is written, encoded whole, corrected by what was found, and encoded
again until it has the number asked for. This room knows tokenizers, and neither models nor tasks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import InvalidArgumentError

BATCH = 32  # texts encoded at once
ROUNDS = 40  # corrections until a text is given up: most fit after two, a byte tokenizer's after one


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text by itself."""
    texts = ((text, tokenizer.encode(text, add_special_tokens=False)) for text in ("a", *tokenizer.get_vocab()))
    probe, bare = next(((text, ids) for text, ids in texts if ids), ("", []))
    whole = tokenizer.encode(probe, verbose=False)
    first = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), 0)
    return whole[:first], whole[first + len(bare) :]


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before every text by itself: mostly none, or the beginning of sequence."""
    return added_tokens(tokenizer)[0]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text as a model is to go on from it: with what the tokenizer puts before it, without what it appends.

    After an end of sequence there is nothing to go on with. A text that begins with the beginning-of-sequence token,
    as templates write it, gets none besides.
    """
    if _begun(tokenizer, text):
        return [*tokenizer.encode(text, add_special_tokens=False, verbose=False)]
    ids = tokenizer.encode(text, verbose=False)
    return [*ids[: len(ids) - len(added_tokens(tokenizer)[1])]]


def _begun(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text begins with the beginning-of-sequence token, written out."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def named_tokenizer(name: str | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a path, a hub id or a short name (`tiny`, `smollm2`); a tokenizer comes back as it is.

    Raises:
        InvalidArgumentError: a tokenizer that gives no tokens.
        CheckpointError: there is no tokenizer of that name, or `smollm2` is not to be had.
    """
    return _loaded(resolve(name)) if isinstance(name, str) else name


def task_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that a task's metadata names: by the key `tokenizer`, else by `pretrained`.

    Raises:
        InvalidArgumentError: neither key names one.
        CheckpointError: `smollm2` is not to be had.
    """
    for key in ("tokenizer", "pretrained"):
        named = metadata.get(key)
        if named and isinstance(named, str | PreTrainedTokenizerBase):
            return named_tokenizer(named)
    raise InvalidArgumentError(
        "tokenizer: a task that fits its texts to a length must know the tokenizer, got none; "
        'name it in the task\'s metadata, as in metadata={"tokenizer": "tiny"}'
    )


@cache
def _loaded(path: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = read_tokenizer(path)
    if not tokenizer.encode("a b", add_special_tokens=False):  # a folder without tokenizer files loads as this
        raise InvalidArgumentError(
            f"tokenizer: a text must have tokens, got {path!r} which gives none; name a folder with tokenizer files"
        )
    return tokenizer


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as a prompt: with those that the tokenizer puts before it, without those that it appends."""
    if not texts:
        return []
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = tokenizer.backend_tokenizer
        backend.no_padding()  # the last call through the tokenizer may have left both on
        backend.no_truncation()
        before, after = map(len, added_tokens(tokenizer))
        # Without offsets and without lists of ids this is twice as fast as calling the tokenizer, and in small
        # batches it stays so: encodings are large.
        return [
            len(encoding) - after - (before if _begun(tokenizer, text) else 0)
            for start in range(0, len(texts), BATCH)
            for batch in [list(texts[start : start + BATCH])]
            for text, encoding in zip(batch, backend.encode_batch_fast(batch), strict=True)
        ]
    return [len(prompt_ids(tokenizer, text)) for text in texts]


class Cuts:
    """The beginnings of a text by their number of tokens, ends of words before anything else.

    With `repeated` the text goes on without end, joined by spaces. `lead` is what separates the beginning from the
    text before it; it is the first that a beginning has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, *, lead: str = "", repeated: bool = False):
        self._tokenizer = tokenizer
        self._empty = token_counts(tokenizer, [""])[0]
        self._lead = lead
        self._cycle = f"{text} " if repeated else ""
        self._text = lead + (f"{text} " * 3 if repeated else text)
        self._ends = [0, *(i for i in range(1, len(self._text) + 1) if self._is_end(i))]
        self._counts = self._measured(self._ends)
        # A beginning may have fewer tokens than a shorter one; for the search it counts as the most so far.
        self._most = list(accumulate(self._counts, max))
        self._by_letters: dict[int, dict[int, list[int]]] = {}
        if repeated:
            twice, thrice = self._measured([len(lead) + len(self._cycle) * cycles for cycles in (2, 3)])
            self._cycle_tokens = max(thrice - twice, 1)

    def cut(self, tokens: int, variant: int = 0) -> str:
        """A beginning of about `tokens` tokens, exactly so many if there is one; others by higher variants."""
        if self._cycle and tokens > 2 * self._cycle_tokens:
            cycles = tokens // self._cycle_tokens - 1
            rest = self.cut(tokens - cycles * self._cycle_tokens, variant)
            return self._lead + self._cycle * cycles + rest.removeprefix(self._lead)
        at = max(bisect_right(self._most, tokens) - 1, 0)
        exact = [self._ends[at]] if self._counts[at] == tokens else []
        choices = [*exact, *(end for end in self._inside(at, tokens) if end not in exact)] or [self._ends[at]]
        return self._text[: choices[variant % len(choices)]]

    def _inside(self, at: int, tokens: int) -> list[int]:
        """Ends inside the words around number `at` that give exactly `tokens` tokens, longest first."""
        if at not in self._by_letters:
            around = range(self._ends[max(at - 1, 0)] + 1, self._ends[min(at + 1, len(self._ends) - 1)])
            by_count: dict[int, list[int]] = {}
            for end, count in zip(around, self._measured(around), strict=True):
                by_count.setdefault(count, []).insert(0, end)
            self._by_letters[at] = by_count
        return self._by_letters[at].get(tokens, [])

    def _is_end(self, i: int) -> bool:
        return not self._text[i - 1].isspace() and (i == len(self._text) or self._text[i].isspace())

    def _measured(self, ends: Sequence[int]) -> list[int]:
        return [count - self._empty for count in token_counts(self._tokenizer, [self._text[:end] for end in ends])]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A text with room in it: it takes a number of units (sentences, lines, words) and a filling of any size."""

    write: Callable[[int, str], str]  # units, filling -> the whole text
    size: Callable[[int], float]  # units -> tokens that so many take, about; never falls
    filling: Callable[[int], Cuts]  # units -> what may fill the rest
    least: int = 0  # units
    most: int | None = None  # units; None is no limit


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A draft as it was written in the end."""

    text: str
    units: int
    filling: str


def fitted(tokenizer: PreTrainedTokenizerBase, drafts: Sequence[Draft], *, tokens: int) -> list[Fitted | None]:
    """Each draft as a text of exactly `tokens` tokens; None for one that no number of units and filling gives.

    Every text that comes back was encoded whole and has its tokens. A draft's text does not depend on the others.
    """
    bare = token_counts(tokenizer, [draft.write(draft.least, "") for draft in drafts])
    fits = [_Fit(draft, tokens - count) for draft, count in zip(drafts, bare, strict=True)]
    for _ in range(ROUNDS):
        open_fits = [fit for fit in fits if not fit.closed]
        if not open_fits:
            break
        counts = token_counts(tokenizer, [fit.written() for fit in open_fits])
        for fit, count in zip(open_fits, counts, strict=True):
            fit.correct(tokens - count)
    return [Fitted(text=fit.text, units=fit.units, filling=fit.filling) if fit.fits else None for fit in fits]


class _Fit:
    """One draft on its way: units, filling, and what was tried."""

    def __init__(self, draft: Draft, room: int):
        self.draft = draft
        self.units = draft.least
        self.fill = 0  # tokens of filling
        self.variant = 0
        self.text = self.filling = ""
        self.fits = False
        self.closed = room < 0
        self._tried: dict[tuple[int, int], int] = {}
        self._spread(max(room, 0))

    def written(self) -> str:
        """The text as it stands."""
        self.filling = self.draft.filling(self.units).cut(self.fill, self.variant) if self.fill else ""
        self.text = self.draft.write(self.units, self.filling)
        return self.text

    def correct(self, missing: int) -> None:
        """Takes in that the text lacks so many tokens (or has too many: negative)."""
        if missing == 0:
            self.fits = self.closed = True
            return
        wanted = self.fill + missing
        if wanted < 0 and self.units == self.draft.least:
            self.closed = self.fill == 0  # nothing left to take away
            wanted = 0
        self._spread(wanted)
        # Where a boundary makes two numbers of filling take turns, another cut of the same size breaks the tie,
        # and after two of those one unit less.
        turn = self._tried[self.units, self.fill] = self._tried.get((self.units, self.fill), -1) + 1
        self.variant = turn
        if turn and turn % 2 == 0 and self.units > self.draft.least:
            less = self.units - 1
            self.fill += round(self.draft.size(self.units) - self.draft.size(less))
            self.units = less

    def _spread(self, wanted: int) -> None:
        """So many tokens more than the units now take, given to whole units and the rest to the filling."""
        draft = self.draft
        aim = draft.size(self.units) + wanted
        high = draft.least + max(round(aim), 0) + 1 if draft.most is None else draft.most
        high = max(high, self.units)
        units = bisect_right(range(high + 1), aim, lo=draft.least, key=draft.size) - 1
        self.units = max(units, draft.least)
        self.fill = max(round(aim - draft.size(self.units)), 0)
