"""Basic grade: a needle of one value or four, in a haystack of needles with other keys."""

from __future__ import annotations

import random
from typing import Any

import datasets

from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import NEEDLE, ONE, noise
from ropescale.evals.tasks.ruler.words import SEED, drawn_pair

SEVERAL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the numbers afterwards.\n{context}\n"
    "What are all the special magic numbers for {asked} mentioned in the provided text?",
    "The special magic numbers for {asked} mentioned in the provided text are",
)
DIGITS = (1_000_000_000, 9_999_999_999)  # ten


class Needles(PromptSampler):
    """Values of one key among needles of other keys, each with as many; units are the other needles."""

    lengths = (4096,)
    samples = 100

    def __init__(self, values: int):
        self.name = f"ruler2_{'mk' if values == 1 else 'mv'}_niah_basic"
        self.reply_tokens = 48 if values == 1 else 128
        self._values = values

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws key and values, and all else anew for each number of units, as the original does."""
        key = drawn_pair(rng)
        values = _distinct(rng, self._values, set())
        hidden = [NEEDLE.format(kind="numbers", key=key, value=value) for value in values]
        random.Random(SEED).shuffle(hidden)
        state = rng.getstate()
        filler = noise(wanted.tokenizer, "\n")
        text, prefix = ONE if self._values == 1 else SEVERAL

        def prompt(units: int, rest: str) -> str:
            """The task around its lines."""
            stream = random.Random()
            stream.setstate(state)
            lines = self._lines(stream, units, {key, *values})
            for at, needle in zip(sorted(stream.sample(range(units), len(hidden)), reverse=True), hidden, strict=True):
                lines.insert(at, needle)
            return text.format(context="\n".join(lines) + rest, kind="number", asked=key)

        return Sample(
            prompt=prompt,
            gen_prefix=prefix.format(kind="number", asked=key),
            target=values,
            filling=lambda units: filler,
            least=self._values,
        )

    def _lines(self, stream: random.Random, units: int, taken: set[str]) -> list[str]:
        """So many needles of other keys."""
        groups = -(-units // self._values)
        if self._values == 1:
            pairs = [(_key(stream, taken), _distinct(stream, 1, taken)[0]) for _ in range(units)]
        else:
            values = _distinct(stream, units, taken)
            keys = [_key(stream, taken) for _ in range(groups)] * self._values
            pairs = list(zip(keys[:units], values, strict=True))
        lines = [NEEDLE.format(kind="numbers", key=key, value=value) for key, value in pairs]
        if self._values > 1:
            stream.shuffle(lines)
        return lines


def _key(rng: random.Random, taken: set[str]) -> str:
    while (key := drawn_pair(rng)) in taken:
        pass
    taken.add(key)
    return key


def _distinct(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    """So many numbers of ten digits that were not drawn before."""
    drawn: list[str] = []
    while len(drawn) < count:
        value = str(rng.randint(*DIGITS))
        if value not in taken:
            taken.add(value)
            drawn.append(value)
    return drawn


def dataset(values: int, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of the task with so many values; the README names the keys that the metadata may have."""
    return Needles(values).dataset(metadata)
