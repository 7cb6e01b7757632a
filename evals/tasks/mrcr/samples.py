"""The samples of MRCR: a conversation in which one request is made several times, and one of its replies asked for."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import datasets

from ropescale.evals.tasks.haystack import sentences
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import noise

# The wording of the data set on the hub
BEGINNING = (
    "Here are some examples of conversations succeeded by a follow-up question answered correctly:\n\n"
    "======EXAMPLE======\n{example}\n\n======END EXAMPLE======"
)
TURN = "User: write a {asked}\n\nAssistant: {reply}"
QUESTION = (
    "User: Prepend {mark} to the {number} (1 indexed) {asked}. Do not include any other text in your response.\n\n"
    "Assistant:"
)
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")
MARK_LETTERS = 10
FORMATS = (
    "blog post",
    "email",
    "essay",
    "formal letter",
    "news article",
    "play scene",
    "poem",
    "product review",
    "riddle",
    "short story",
    "social media post",
    "song",
    "speech",
)
TOPICS = (
    "apples",
    "bees",
    "boats",
    "bridges",
    "cats",
    "clouds",
    "coins",
    "deserts",
    "dolphins",
    "education",
    "forests",
    "gardens",
    "horses",
    "islands",
    "kites",
    "lamps",
    "maps",
    "mirrors",
    "mountains",
    "music",
    "owls",
    "paper",
    "penguins",
    "rain",
    "rivers",
    "rope",
    "sailing",
    "shoes",
    "snow",
    "tapirs",
    "tea",
    "trains",
)
# The worked example: a request that is made twice, and the first of its replies
EXAMPLE_ASKED = "haiku about winter"
EXAMPLE_REPLIES = ("The pond is a plate of glass.", "One crow keeps all the white field.")
EXAMPLE_MARK = "qY7hB2wK9c"
LEAST_LETTERS, MOST_LETTERS = 40, 80  # of a reply, so that any tokenizer's fits into `reply_tokens`


class Conversation(PromptSampler):
    """Turns of a user and an assistant; units are those beyond the needles and two that are nearly like them."""

    reply_tokens = 96
    lengths = (4096,)
    full_from = 1  # the short form has no example, and is taken where that does not fit

    def __init__(self, needles: int):
        self.name = f"mrcr_{needles}"
        self._needles = needles

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the request, its replies, which of them is asked for, and the places of all turns."""
        form, topic = rng.choice(FORMATS), rng.choice(TOPICS)
        others = [(a, b) for a in FORMATS for b in TOPICS if (a, b) != (form, topic)]
        asked = f"{form} about {topic}"
        replies = rng.sample(_replies(), self._needles)
        number = rng.randrange(self._needles)
        mark = "".join(rng.choices(string.ascii_letters + string.digits, k=MARK_LETTERS))
        # one of the same form on another topic, one of another form on the same topic, as the original mixes them
        near = [
            rng.choice([other for other in others if other[0] == form]),
            rng.choice([other for other in others if other[1] == topic]),
        ]
        state = rng.getrandbits(64)
        filler = noise(wanted.tokenizer, " ")

        def prompt(units: int, rest: str) -> str:
            """The example, the turns in a random order, the question."""
            stream = random.Random(state)
            requests = near + [stream.choice(others) for _ in range(units)]
            unused = [reply for reply in _replies() if reply not in replies]
            stream.shuffle(unused)
            written = [unused[i % len(unused)] for i in range(len(requests))]
            written[0] += rest
            turns = [
                TURN.format(asked=f"{a} about {b}", reply=reply)
                for (a, b), reply in zip(requests, written, strict=True)
            ]
            stream.shuffle(turns)
            places = sorted(stream.sample(range(len(turns) + self._needles), self._needles))
            for place, reply in zip(places, replies, strict=True):
                turns.insert(place, TURN.format(asked=asked, reply=reply))
            question = QUESTION.format(mark=mark, number=ORDINALS[number], asked=asked)
            beginning = () if wanted.short else (_beginning(),)
            return "\n\n".join([*beginning, *turns, question])

        return Sample(prompt=prompt, gen_prefix=mark, target=[replies[number]], filling=lambda units: filler)


@cache
def _beginning() -> str:
    """The instruction with its worked example."""
    turns = [TURN.format(asked=EXAMPLE_ASKED, reply=reply) for reply in EXAMPLE_REPLIES]
    question = QUESTION.format(mark=EXAMPLE_MARK, number=ORDINALS[0], asked=EXAMPLE_ASKED)
    return BEGINNING.format(example="\n\n".join([*turns, f"{question} {EXAMPLE_MARK} {EXAMPLE_REPLIES[0]}"]))


@cache
def _replies() -> list[str]:
    """The short sentences of the speeches, each once."""
    return list(dict.fromkeys(sentence for sentence in sentences() if LEAST_LETTERS <= len(sentence) <= MOST_LETTERS))


def dataset(needles: int, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of the task with so many needles; the README names the keys that the metadata may have."""
    return Conversation(needles).dataset(metadata)


def results(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    """The published score, the ratio of `difflib.SequenceMatcher`; and whether the reply is the same to the letter."""
    (asked,) = doc["target"]
    reply = replies[0].strip()
    score = SequenceMatcher(None, reply, asked).ratio()
    return {"score": score, "exact": float(reply == asked), "by_length": (doc["length"], score)}
