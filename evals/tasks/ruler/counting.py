"""The two counting tasks of RULER: the ten commonest words of a list, and the three commonest coded words."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from functools import cache
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import noise
from ropescale.evals.tasks.ruler.words import SEED, all_words, drawn_of, listed_words, pairs
from ropescale.evals.tokens import Cuts, token_counts

COMMON_TEXT = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
COMMON_ANSWER = "Answer: The top 10 words that appear most often in the list are:"
COMMON = 10  # words asked for
LEAST_ENTRY = 3  # tokens that an entry of the list takes at least: number, full stop, word

FREQUENT_TEXT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FREQUENT_ANSWER = "Answer: According to the coded text above, the three most frequently appeared words are:"
ALPHA = 2.0  # exponent of the zeta distribution
ZETA = 1.6449340668482264  # the sum of k ** -ALPHA over all k: pi ** 2 / 6
LETTERS = 6  # of a coded word
DOTS = "..."  # the commonest word, which is no word
UNIT = 10  # words; adding single ones would round the counts up and down
# Units from which the fourth commonest, counting the dots, always comes oftener than the fifth, and not once only
LEAST_UNITS = 6
LEAST_VOCABULARY = 6  # words that the least units make come at least once, the dots included


class CommonWords(PromptSampler):
    """Ten words that come more often than the others of a shuffled list, after a worked example."""

    name = "cwe"
    reply_tokens = 120
    lengths = (4096,)
    samples = 500
    full_from = 4096  # RULER's own bound

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the words of example and list; units are uncommon words."""
        often, seldom = (6, 1) if wanted.short else (30, 3)
        shown, shown_often, shown_seldom = (20, 3, 1) if wanted.short else (40, 10, 3)
        example_words = _drawn_words(rng, shown)
        # As many as the list could ever hold, so that more words begin with the same ones
        most = COMMON + wanted.length // (LEAST_ENTRY * seldom)
        runs_out = _runs_out(wanted.tokenizer, wanted.length, seldom)
        drawn = pairs(rng, most) if runs_out else _drawn_words(rng, min(most, len(all_words())))
        example = (
            COMMON_TEXT.format(context=_numbered(_shuffled(rng, example_words, shown_often, shown_seldom)))
            + f" {COMMON_ANSWER} {_numbered(example_words[:COMMON])}"
        )
        order = rng.getrandbits(64)
        filler = noise(wanted.tokenizer, "\n")

        def prompt(units: int, rest: str) -> str:
            """Example, filling, numbered list, question."""
            entries = _shuffled(random.Random(order), drawn[: COMMON + units], often, seldom)
            return f"{example}{rest}\n{COMMON_TEXT.format(context=_numbered(entries))}"

        return Sample(
            prompt=prompt,
            gen_prefix=COMMON_ANSWER,
            target=drawn[:COMMON],
            filling=lambda units: filler,
            most=len(drawn) - COMMON,
        )


class FrequentWords(PromptSampler):
    """Words of random letters whose numbers follow a zeta distribution, the commonest of them dots."""

    name = "fwe"
    reply_tokens = 50
    lengths = (4096,)
    samples = 500

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the coded words; units are ten words before rounding, the filling is further dots."""
        coded: set[str] = set()
        # RULER's size and order; the dots take the place of the first
        while len(coded) < max((wanted.length - self.reply_tokens) // 50, LEAST_VOCABULARY):
            coded.add("".join(rng.choices(string.ascii_lowercase, k=LETTERS)))
        vocabulary = sorted(coded)
        random.Random(SEED).shuffle(vocabulary)
        vocabulary[0] = DOTS
        order = rng.getrandbits(64)
        dots = _dots(wanted.tokenizer)

        def prompt(units: int, rest: str) -> str:
            """The coded text in a random order."""
            counts = [int(units * UNIT * (rank + 1) ** -ALPHA / ZETA) for rank in range(len(vocabulary))]
            text = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
            random.Random(order).shuffle(text)
            return FREQUENT_TEXT.format(context=" ".join(text) + rest)

        return Sample(
            prompt=prompt,
            gen_prefix=FREQUENT_ANSWER,
            target=vocabulary[1:4],
            filling=lambda units: dots,
            least=LEAST_UNITS,
        )


def _runs_out(tokenizer: PreTrainedTokenizerBase, length: int, seldom: int) -> bool:
    """Whether every word there is, in one list, leaves room in so many tokens."""
    return length > LEAST_ENTRY * seldom * len(all_words()) and length > _every_word(tokenizer, seldom)


@cache
def _every_word(tokenizer: PreTrainedTokenizerBase, seldom: int) -> int:
    """Tokens of a list of every word, about."""
    entries = [*all_words()] * seldom
    random.Random(0).shuffle(entries)
    return token_counts(tokenizer, [_numbered(entries)])[0]


def _drawn_words(rng: random.Random, count: int) -> list[str]:
    """So many different words, drawn as RULER draws them."""
    return drawn_of(rng, listed_words(), count)


def _shuffled(rng: random.Random, chosen: Sequence[str], often: int, seldom: int) -> list[str]:
    """The first ten words `often` times and the others `seldom` times, in a random order."""
    entries = [*chosen[:COMMON]] * often + [*chosen[COMMON:]] * seldom
    rng.shuffle(entries)
    return entries


def _numbered(entries: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(entries, 1))


@cache
def _dots(tokenizer: PreTrainedTokenizerBase) -> Cuts:
    return Cuts(tokenizer, " ".join([DOTS] * 20), lead=" ", repeated=True)


COMMON_WORDS = CommonWords()
FREQUENT_WORDS = FrequentWords()


def common_words(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_cwe`; the README names the keys that the metadata may have."""
    return COMMON_WORDS.dataset(metadata)


def frequent_words(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_fwe`; the README names the keys that the metadata may have."""
    return FREQUENT_WORDS.dataset(metadata)
