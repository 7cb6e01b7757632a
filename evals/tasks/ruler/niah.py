"""The eight needle tasks of RULER: one table of what differs between them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.evals.passkey import FILLER
from ropescale.evals.tasks.haystack import haystack
from ropescale.evals.tasks.needle.samples import listed
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.words import drawn_pair
from ropescale.evals.tokens import Cuts

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {asked} mentioned in the provided text?",
    "The special magic {kind} for {asked} mentioned in the provided text is",
)
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {asked} mentioned in the provided text?",
    "The special magic {kind} for {asked} mentioned in the provided text are",
)
DEPTHS = tuple(round(i * 100 / 39) / 100 for i in range(40))  # RULER's 40 shares of the essay, in whole percents


@dataclass(frozen=True, kw_only=True)
class NeedleTask(PromptSampler):
    """One needle task: what the haystack is, and how many needles of which kind are in it."""

    name: str
    stack: str  # "noise", "essay", or "needles": sentences like the needle, with other keys
    key: str = "word"  # or "uuid"
    value: str = "number"  # or "uuid"
    keys: int = 1
    values: int = 1  # of each key
    queries: int = 1  # keys asked for
    reply_tokens: int = 128
    lengths: tuple[int, ...] = (4096,)
    samples: int = 500

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws keys, values, their places and the keys asked for, in the order in which RULER draws them."""
        keys, values = self._needles(rng)
        hidden = [
            NEEDLE.format(kind=f"{self.value}s", key=key, value=value)
            for key, own in zip(keys, values, strict=True)
            for value in own
        ]
        single = self.queries * self.values == 1
        text, prefix = ONE if single else SEVERAL
        kind = self.value if single else f"{self.value}s"
        filling: Callable[[int], Cuts]
        size: Callable[[int], float] | None
        if self.stack == "essay":
            stack = haystack(wanted.tokenizer)
            shares = sorted(rng.sample(DEPTHS, len(hidden)))
            asked = rng.sample(range(self.keys), self.queries)
            random.Random(rng.getrandbits(64)).shuffle(hidden)

            def context(units: int, rest: str) -> str:
                """Sentences, with a needle before that of its place."""
                places = [(int(units * share), needle) for share, needle in zip(shares, hidden, strict=True)]
                return stack.with_needles(units, rest, places)

            def depth(units: int) -> float:
                """Share of the sentences before the first needle."""
                return shares[0]

            filling, size = stack.filling, stack.size
        else:
            lines = _Lines(self, rng.getstate(), {*keys, *(value for own in values for value in own)})
            asked, filler = [0], noise(wanted.tokenizer, "\n")

            def context(units: int, rest: str) -> str:
                """Lines of noise or of needles with other keys, and the needle before one of them."""
                others, place = lines.drawn(units)
                return "\n".join([*others[:place], *hidden, *others[place:]]) + rest

            def depth(units: int) -> float:
                """Share of the lines before the needle."""
                return lines.drawn(units)[1] / max(units, 1)

            filling, size = (lambda units: filler), None
        wording = {"kind": kind, "asked": listed([keys[i] for i in asked])}
        return Sample(
            prompt=lambda units, rest: text.format(context=context(units, rest), **wording),
            gen_prefix=prefix.format(**wording),
            target=[value for i in asked for value in values[i]],
            filling=filling,
            size=size,
            depth=depth if len(hidden) == 1 else (lambda units: None),
        )

    def _needles(self, rng: random.Random) -> tuple[list[str], list[list[str]]]:
        """Keys, and the values of each; no two alike, which would leave no right answer."""
        taken: set[str] = set()
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(self.keys):
            keys.append(_new(rng, self.key, taken))
            values.append([_new(rng, self.value, taken) for _ in range(self.values)])
        return keys, values


class _Lines:
    """What stands around the needle in a haystack of lines, by their number, drawn anew from one state each time.

    RULER draws a haystack of each number of lines from the start, and the place of the needle after it.
    """

    def __init__(self, task: NeedleTask, state: tuple[Any, ...], taken: set[str]):
        self._task, self._state, self._taken = task, state, taken

    def drawn(self, units: int) -> tuple[list[str], int]:
        """So many lines, and before which of them the needle stands."""
        stream = random.Random()
        stream.setstate(self._state)
        if self._task.stack == "needles":
            taken = {*self._taken}
            lines = [self._distractor(stream, taken) for _ in range(units)]
        else:
            lines = [FILLER] * units
        return lines, stream.sample(range(units), 1)[0] if units else 0

    def _distractor(self, stream: random.Random, taken: set[str]) -> str:
        """A needle of another key and value."""
        key, value = _new(stream, self._task.key, taken), _new(stream, self._task.value, taken)
        return NEEDLE.format(kind=f"{self._task.value}s", key=key, value=value)


@cache
def noise(tokenizer: PreTrainedTokenizerBase, lead: str) -> Cuts:
    """RULER's noise sentences, as often as there is room, after `lead`."""
    return Cuts(tokenizer, FILLER, lead=lead, repeated=True)


def _drawn(rng: random.Random, kind: str) -> str:
    """A seven-digit number, an adjective and a noun, or a UUID of version 4."""
    if kind == "number":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "word":
        return drawn_pair(rng)
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _new(rng: random.Random, kind: str, taken: set[str]) -> str:
    """One that was not drawn before, and is now."""
    while (value := _drawn(rng, kind)) in taken:
        pass
    taken.add(value)
    return value


TASKS = {
    task.name: task
    for task in (
        NeedleTask(name="niah_single_1", stack="noise"),
        NeedleTask(name="niah_single_2", stack="essay"),
        NeedleTask(name="niah_single_3", stack="essay", value="uuid"),
        NeedleTask(name="niah_multikey_1", stack="essay", keys=4),
        NeedleTask(name="niah_multikey_2", stack="needles"),
        NeedleTask(name="niah_multikey_3", stack="needles", key="uuid", value="uuid"),
        NeedleTask(name="niah_multivalue", stack="essay", values=4),
        NeedleTask(name="niah_multiquery", stack="essay", keys=4, queries=4),
    )
}


def dataset(needle_task: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of the needle task of that name; the README names the keys that the metadata may have."""
    return TASKS[needle_task].dataset(metadata)
