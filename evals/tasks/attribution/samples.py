"""The samples of `ropescale_attribution`: passages of real text under their sources, and a sentence of one of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.evals import texts
from ropescale.evals.tasks.haystack import sentences, sentences_of
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tokens import Cuts

TEXT = (
    "Below are passages from addresses of presidents of the United States. I will quote a sentence from one of them "
    "and ask you whose address it is from.\n\n{passages}\n\n"
    'Whose address is this sentence from: "{quoted}"?'
)
ANSWER = "It is from the address of"
PASSAGE = "From the address of {source}:\n{text}"
CHOICES = 4  # the right source and the three of the years nearest to it
LETTERS = range(160, 321)  # of a passage
QUOTED = range(60, 201)  # letters of a sentence that is quoted


@dataclass(frozen=True)
class _Passage:
    """Sentences of one address that follow each other."""

    source: str  # "Jackson, 1829"
    year: int
    sentences: tuple[str, ...]
    further: str  # what the address goes on with

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


class Attribution(PromptSampler):
    """Passages in a random order and a sentence of one of them; units are passages beyond those of the choices."""

    name = "attribution"
    reply_tokens = 24
    lengths = (4096,)

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the passage that is quoted, one of each other choice, and the order of all."""
        by_source = _by_source()
        source = rng.choice([*by_source])
        asked, quoted = rng.choice([(one, sentence) for one in by_source[source] for sentence in _quotable(one)])
        near = sorted(
            (one for one in by_source if one != source), key=lambda one: abs(by_source[one][0].year - asked.year)
        )
        given = [rng.choice(by_source[other]) for other in near[: CHOICES - 1]]
        others = [one for one in passages() if one.source != source and one not in given]
        rng.shuffle(others)
        order = rng.getrandbits(64)

        def prompt(units: int, rest: str) -> str:
            """The passages, the first of which goes on with the filling, and the question."""
            shown = [PASSAGE.format(source=given[0].source, text=given[0].text + rest)]
            further = [others[i % len(others)] for i in range(units)]
            shown += [PASSAGE.format(source=one.source, text=one.text) for one in (*given[1:], *further, asked)]
            random.Random(order).shuffle(shown)
            return TEXT.format(passages="\n\n".join(shown), quoted=quoted)

        return Sample(
            prompt=prompt,
            gen_prefix=ANSWER,
            target=[source, *(one.source for one in given)],
            filling=lambda units: _cuts(wanted.tokenizer, given[0].further),
        )


@cache
def passages() -> list[_Passage]:
    """Every address in passages, but those that end long after they could, and the last, which nothing follows."""
    passages = []
    for document in texts.sample():
        year, speaker, _ = document.name.split("-")
        groups: list[list[str]] = [[]]
        for sentence in sentences_of(document.text):
            if len(" ".join(groups[-1])) >= LETTERS[0]:
                groups.append([])
            groups[-1].append(sentence)
        passages += [
            _Passage(f"{speaker}, {year}", int(year), tuple(group), " ".join(after))
            for group, after in pairwise(groups)
            if len(" ".join(group)) in LETTERS
        ]
    return passages


@cache
def _by_source() -> dict[str, list[_Passage]]:
    """Source -> its passages."""
    found: dict[str, list[_Passage]] = {}
    for one in passages():
        found.setdefault(one.source, []).append(one)
    return found


@cache
def _quotable(passage: _Passage) -> list[str]:
    """The sentences of a passage that stand nowhere else and are neither short nor long."""
    return [one for one in passage.sentences if len(one) in QUOTED and '"' not in one and _counted()[one] == 1]


@cache
def _counted() -> Counter[str]:
    return Counter(sentences())


@cache
def _cuts(tokenizer: PreTrainedTokenizerBase, text: str) -> Cuts:
    return Cuts(tokenizer, text, lead=" ")


def dataset(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_attribution`; the README names the keys that the metadata may have."""
    return Attribution().dataset(metadata)


def choices(doc: Mapping[str, Any]) -> list[str]:
    """The four sources in alphabetical order, which tells nothing of the right one."""
    return sorted(doc["target"])


def label(doc: Mapping[str, Any]) -> int:
    """The number of the right one."""
    return choices(doc).index(doc["target"][0])


def results(doc: Mapping[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Whether the right source is the likeliest by letter, whether it is what greedy decoding writes, and its loss."""
    by_letter = [nats / len(choice) for (nats, _), choice in zip(answers, choices(doc), strict=True)]
    right = label(doc)
    score = float(max(range(CHOICES), key=by_letter.__getitem__) == right)
    return {
        "score": score,
        "exact": float(answers[right][1]),
        "nats": -float(answers[right][0]),
        "by_length": (doc["length"], score),
    }
