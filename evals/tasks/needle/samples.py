"""The samples of `ropescale_needle`: magic numbers of cities, in presidents' speeches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import datasets

from ropescale.errors import InvalidArgumentError
from ropescale.evals.tasks.haystack import haystack
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted

NEEDLE = "The special magic number for {city} is: {number}."
ONE = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n{haystack}\n"
    "What is the special magic number for {cities} mentioned in the provided text?",
    "The special magic number for {cities} mentioned in the provided text is",
)
SEVERAL = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the numbers afterwards.\n{haystack}\n"
    "What are the special magic numbers for {cities} mentioned in the provided text?",
    "The special magic numbers for {cities} mentioned in the provided text are",
)
CITIES = [
    "Accra",
    "Amsterdam",
    "Ankara",
    "Athens",
    "Baghdad",
    "Bangkok",
    "Barcelona",
    "Beijing",
    "Belgrade",
    "Berlin",
    "Bogota",
    "Boston",
    "Brussels",
    "Budapest",
    "Cairo",
    "Chicago",
    "Copenhagen",
    "Dakar",
    "Dublin",
    "Geneva",
    "Hamburg",
    "Hanoi",
    "Helsinki",
    "Istanbul",
    "Jakarta",
    "Karachi",
    "Lagos",
    "Lima",
    "Lisbon",
    "London",
    "Madrid",
    "Manila",
    "Melbourne",
    "Milan",
    "Montreal",
    "Moscow",
    "Mumbai",
    "Munich",
    "Nairobi",
    "Oslo",
    "Paris",
    "Prague",
    "Quito",
    "Rome",
    "Santiago",
    "Seoul",
    "Shanghai",
    "Singapore",
    "Stockholm",
    "Sydney",
    "Tehran",
    "Tokyo",
    "Toronto",
    "Vienna",
    "Warsaw",
    "Zurich",
]


class Needle(PromptSampler):
    """Sentences with a number each, at sentence boundaries of real text, all asked for at the end."""

    name = "needle"
    reply_tokens = 64
    depths = (0.0, 0.25, 0.5, 0.75, 1.0)

    def __init__(self, needles: int = 1):
        if type(needles) is not int or not 1 <= needles <= len(CITIES):
            raise InvalidArgumentError(
                f"needle: needles must be a whole number from 1 to {len(CITIES)}, got {needles!r}; leave it out"
            )
        self.needles = needles

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws cities and numbers; the first needle lies at the depth, the others evenly between it and the end."""
        cities = rng.sample(CITIES, self.needles)
        numbers = [str(value) for value in rng.sample(range(1_000_000, 10_000_000), self.needles)]
        text, prefix = ONE if self.needles == 1 else SEVERAL
        asked = listed(cities)
        first = wanted.depth or 0.0
        stack = haystack(wanted.tokenizer)

        def prompt(units: int, filling: str) -> str:
            """The haystack of so many sentences with the needles in it."""
            needles = [
                (
                    stack.sentences_before(first + i * (1 - first) / self.needles, units),
                    NEEDLE.format(city=city, number=value),
                )
                for i, (city, value) in enumerate(zip(cities, numbers, strict=True))
            ]
            return text.format(haystack=stack.with_needles(units, filling, needles), cities=asked)

        return Sample(
            prompt=prompt,
            gen_prefix=prefix.format(cities=asked),
            target=numbers,
            filling=stack.filling,
            size=stack.size,
        )


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them, in RULER's spelling."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def dataset(needles: int = 1, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_needle`; the README names the keys that the metadata may have."""
    return Needle(needles).dataset(metadata)
