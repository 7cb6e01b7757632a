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
from ropescale.evals.tasks.ruler.words import words
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
        """Draws keys, values, their places and the keys asked for."""
        keys = _distinct(self.keys, lambda: _drawn(rng, self.key))
        values = _distinct(self.keys * self.values, lambda: _drawn(rng, self.value))
        pairs = [(key, values[i * self.values + j]) for i, key in enumerate(keys) for j in range(self.values)]
        asked = rng.sample(range(self.keys), self.queries)
        single = self.queries * self.values == 1
        text, prefix = ONE if single else SEVERAL
        kind = self.value if single else f"{self.value}s"
        wording = {"kind": kind, "asked": listed([keys[i] for i in asked])}
        hidden = [NEEDLE.format(kind=f"{self.value}s", key=key, value=value) for key, value in pairs]
        rng.shuffle(hidden)
        place, context, filling, size = self._placed(rng, wanted.tokenizer, hidden, keys, values)

        def prompt(units: int, rest: str) -> str:
            """The task around its haystack."""
            return text.format(context=context(units, rest), **wording)

        return Sample(
            prompt=prompt,
            gen_prefix=prefix.format(**wording),
            target=[value for i in asked for value in values[i * self.values : (i + 1) * self.values]],
            filling=filling,
            size=size,
            depth=(lambda units: place(units)) if len(hidden) == 1 else (lambda units: None),
        )

    def _placed(
        self,
        rng: random.Random,
        tokenizer: PreTrainedTokenizerBase,
        hidden: list[str],
        keys: list[str],
        values: list[str],
    ) -> tuple[
        Callable[[int], float], Callable[[int, str], str], Callable[[int], Cuts], Callable[[int], float] | None
    ]:
        """The haystack with the needles in it: place of the first, text, filling, and size of its units."""
        if self.stack == "essay":
            stack = haystack(tokenizer)
            places = sorted(rng.sample(DEPTHS, len(hidden)))

            def essay(units: int, rest: str) -> str:
                """Sentences, with a needle before that of its place."""
                return stack.with_needles(
                    units, rest, [(int(units * at), text) for at, text in zip(places, hidden, strict=True)]
                )

            return (lambda units: places[0]), essay, stack.filling, stack.size

        at = rng.random()
        filler = noise(tokenizer, "\n")
        distractors: list[str] = []
        taken = {*keys, *values}
        stream = random.Random(rng.getrandbits(64))  # so that more lines begin with the same ones

        def lines(units: int, rest: str) -> str:
            """Lines of noise or of needles with other keys, and the needle between two of them."""
            while self.stack == "needles" and len(distractors) < units:
                key, value = _drawn(stream, self.key), _drawn(stream, self.value)
                if not taken & {key, value}:
                    taken.update({key, value})
                    distractors.append(NEEDLE.format(kind=f"{self.value}s", key=key, value=value))
            before = int(at * units)
            stack = distractors[:units] if self.stack == "needles" else [FILLER] * units
            parts = [*stack[:before], *hidden, *stack[before:]]
            return "\n".join(parts) + rest

        return (lambda units: int(at * units) / units if units else 0.0), lines, (lambda units: filler), None


@cache
def noise(tokenizer: PreTrainedTokenizerBase, lead: str) -> Cuts:
    """RULER's noise sentences, as often as there is room, after `lead`."""
    return Cuts(tokenizer, FILLER, lead=lead, repeated=True)


def _drawn(rng: random.Random, kind: str) -> str:
    """A seven-digit number, an adjective and a noun, or a UUID of version 4."""
    if kind == "number":
        return str(rng.randint(1_000_000, 9_999_999))
    if kind == "word":
        return f"{rng.choice(words('adjective'))}-{rng.choice(words('noun'))}"
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _distinct(count: int, draw: Callable[[], str]) -> list[str]:
    """So many draws without a repetition; two needles of one key or value would leave no right answer."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[draw()] = None
    return list(drawn)


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
