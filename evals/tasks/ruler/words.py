"""The words of RULER: English nouns, verbs and adjectives of the package wonderwords, in a fixed order."""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files

from ropescale.errors import RopescaleError


@cache
def words(kind: str) -> tuple[str, ...]:
    """All words of a kind (`noun`, `verb` or `adjective`), sorted.

    Raises:
        RopescaleError: wonderwords is not installed.
    """
    try:
        lists = files("wonderwords").joinpath("assets")
    except ModuleNotFoundError as error:
        raise RopescaleError(
            "ruler: wonderwords must be installed, got no package of that name; pip install 'ropescale[eval]'"
        ) from error
    text = lists.joinpath(f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(sorted({line.strip() for line in text.splitlines() if line.strip()}))


@cache
def all_words() -> tuple[str, ...]:
    """Every word of the three kinds once, sorted."""
    return tuple(sorted({*words("noun"), *words("verb"), *words("adjective")}))


def pairs(rng: random.Random, count: int) -> list[str]:
    """So many different pairs of an adjective and a noun, as the keys of the needle tasks are: about six million."""
    adjectives, nouns = ([word for word in words(kind) if word.isalpha()] for kind in ("adjective", "noun"))
    drawn = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}" for i in drawn]
