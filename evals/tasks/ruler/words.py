"""The words of RULER: English nouns, verbs and adjectives of the package wonderwords, in a fixed order."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from ropescale.errors import RopescaleError

SEED = 42  # RULER's default, by which its lists of words are put in order


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


@cache
def listed_words() -> tuple[str, ...]:
    """Every word of the three kinds once, in RULER's order: shuffled by the seed that it has by default."""
    order = [*all_words()]
    random.Random(SEED).shuffle(order)
    return tuple(order)


def drawn_pair(rng: random.Random) -> str:
    """One of all pairs of an adjective and a noun, the one that RULER draws from the sorted list of six million."""
    nouns = words("noun")
    groups, starts = _by_beginning()
    number = rng.randrange(sum(map(len, groups)) * len(nouns))
    at = bisect_right(starts, number) - 1
    return _pairs_of(groups[at])[number - starts[at]]


@cache
def _by_beginning() -> tuple[list[tuple[str, ...]], list[int]]:
    """Adjectives in groups whose pairs stand together in the sorted list, and the number of each group's first pair.

    Those of "blue-eyed" stand among those of "blue".
    """
    groups: list[tuple[str, ...]] = []
    for adjective in sorted(words("adjective"), key=lambda word: f"{word}-"):
        if groups and f"{adjective}-".startswith(f"{groups[-1][0]}-"):
            groups[-1] = (*groups[-1], adjective)
        else:
            groups.append((adjective,))
    sizes = [len(group) * len(words("noun")) for group in groups]
    return groups, [sum(sizes[:at]) for at in range(len(groups))]


@cache
def _pairs_of(group: tuple[str, ...]) -> list[str]:
    return sorted(f"{adjective}-{noun}" for adjective in group for noun in words("noun"))


def drawn_of(rng: random.Random, texts: Sequence[str], count: int) -> list[str]:
    """So many different texts, of which more begin with the same ones.

    They are those of Python's `random.sample`, by which RULER draws, where it draws few of many: one by one, anew
    where one was drawn before. Many of few it draws in a way of its own.
    """
    few = _few_of(len(texts))
    drawn: dict[str, None] = {}
    while len(drawn) < min(count, few):
        drawn[texts[rng.randrange(len(texts))]] = None
    rest = [text for text in texts if text not in drawn] if count > few else []
    return [*drawn, *rng.sample(rest, count - len(drawn))]


def _few_of(many: int) -> int:
    """How many `random.sample` draws one by one: by its source, 3 times as many in a power of 4 below `many` - 21."""
    power = 1
    while 4 * power < many - 21:
        power *= 4
    return power // 3


def pairs(rng: random.Random, count: int) -> list[str]:
    """So many different pairs of an adjective and a noun, as the keys of the needle tasks are: about six million."""
    adjectives, nouns = ([word for word in words(kind) if word.isalpha()] for kind in ("adjective", "noun"))
    drawn = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}" for i in drawn]
