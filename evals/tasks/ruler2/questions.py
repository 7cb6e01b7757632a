"""Easy, medium and hard: numbered questions, of which some have to be copied, or one solved."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import datasets

from ropescale.evals.tasks.cloze.samples import dataset as cloze
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import noise

COPY_ONE = (
    "Below are some questions. I will ask you to copy one of them. Please copy and paste the question you find.\n\n"
)
COPY_SOME = (
    "Below are some questions. I will ask you to copy some of them. Please copy and paste the questions you find.\n\n"
)
SOLVE = (
    "Below are some questions. I will ask you to solve one of them. Please solve the question you find and make sure "
    "to put the answer (and only answer) inside \\boxed{}.\n\n"
)
ORDINALS = ("1st (1 indexed) ", "2nd (1 indexed) ", "3rd (1 indexed) ", "4th (1 indexed) ")
ALIKE = 4  # questions of one number, where a number has several
EXAMPLES = 5  # worked, where a question has to be solved
LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class _Grade:
    """What a task asks of the questions."""

    context: str
    problem: str
    begun: str  # how the reply begins
    reply_tokens: int
    several: bool = False  # whether each number has several questions
    worked: str = ""  # how an example goes on after the problem


GRADES = {
    "mk_niah_easy": _Grade(
        context=COPY_ONE,
        problem="Please copy the Question {i} from the context.",
        begun="Question {i}:",
        reply_tokens=96,
    ),
    "mk_niah_medium": _Grade(
        context=SOLVE,
        problem="Please copy the Question {i} from the context and then solve it with an answer from A, B, C, D.",
        begun="Question {i}:",
        reply_tokens=128,
        worked="\nQuestion {i}: {question}\nSolution: \\boxed{{{answer}}}",
    ),
    "mk_niah_hard": _Grade(
        context=SOLVE,
        problem="Please solve the Question {i} from the context with an answer from A, B, C, D.",
        begun="Solution:",
        reply_tokens=16,
        worked="\nSolution: \\boxed{{{answer}}}",
    ),
    "mv_niah_easy": _Grade(
        context=COPY_SOME,
        problem="Please find and copy all the Question {i} from the context.",
        begun="Question {i}:",
        reply_tokens=256,
        several=True,
    ),
    "mv_niah_medium": _Grade(
        context=COPY_ONE,
        problem="Please first copy all the Question {i} from the context and then copy the {order}Question {i} at the "
        "end.",
        begun="Question {i}:",
        reply_tokens=320,
        several=True,
    ),
    "mv_niah_hard": _Grade(
        context=COPY_ONE,
        problem="Please copy the {order}Question {i} from the context.",
        begun="Question {i}:",
        reply_tokens=96,
        several=True,
    ),
}


@dataclass(frozen=True)
class _Question:
    text: str
    answer: str


class Questions(PromptSampler):
    """Numbered questions in a random order and what is asked of one or some; units are further ones."""

    lengths = (4096,)
    samples = 100

    def __init__(self, grade: str):
        self.name = f"ruler2_{grade}"
        self._grade = GRADES[grade]
        self.reply_tokens = self._grade.reply_tokens

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the questions that are asked about and worked, their numbers, and the order of all."""
        grade = self._grade
        drawn = rng.sample(_questions(), ALIKE + EXAMPLES)
        alike = drawn[: ALIKE if grade.several else 1]
        worked = drawn[ALIKE:] if grade.worked else []
        place = rng.randrange(len(alike))
        numbers = _numbers(rng, 1 + len(worked))
        spare = [one for one in _questions() if one not in drawn]
        state = rng.getrandbits(64)
        filler = noise(wanted.tokenizer, "")
        wording = {"i": numbers[0], "order": ORDINALS[place]}
        examples = "".join(
            grade.problem.format(i=number)
            + grade.worked.format(i=number, question=one.text, answer=one.answer)
            + "\n\n"
            for number, one in zip(numbers[1:], worked, strict=True)
        )

        def prompt(units: int, rest: str) -> str:
            """The questions, of which those of the number that is asked about keep their order, and the problem."""
            stream = random.Random(state)
            size = ALIKE if grade.several else 1
            further = _numbers(stream, -(-units // size), numbers) * size
            texts = [(further[i], spare[i % len(spare)].text) for i in range(units)]
            texts += [(number, one.text) for number, one in zip(numbers[1:], worked, strict=True)]
            stream.shuffle(texts)
            places = sorted(stream.sample(range(len(texts) + len(alike)), len(alike)))
            for at, one in zip(places, alike, strict=True):
                texts.insert(at, (numbers[0], one.text))
            parts = [f"Question {number}: {text}" for number, text in texts] + ([rest] if rest else [])
            return f"{grade.context}{_joined(parts)}\n\n{examples}{grade.problem.format(**wording)}\n"

        if grade.worked:
            target = [alike[0].answer]
        else:
            target = [one.text for one in alike] if grade.context == COPY_SOME else [alike[place].text]
        return Sample(
            prompt=prompt, gen_prefix=grade.begun.format(**wording), target=target, filling=lambda units: filler
        )


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts)


def _numbers(rng: random.Random, count: int, taken: Sequence[str] = ()) -> list[str]:
    """So many numbers of seven digits, no two alike."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        number = str(rng.randint(1_000_000, 9_999_999))
        if number not in taken:
            drawn[number] = None
    return list(drawn)


@cache
def _questions() -> list[_Question]:
    """The questions of `cloze`, each on one line with its four answers."""
    found = []
    for row in cloze()["test"]:
        listed = " ".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
        found.append(_Question(" ".join(f"{row['query']} {listed}".split()), LETTERS[row["label"]]))
    return found


def dataset(grade: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of the task of that grade; the README names the keys that the metadata may have."""
    return Questions(grade).dataset(metadata)


def solved(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    """Whether the letter in a reply's last box is the right one; without a box, the last one that stands alone."""
    boxed = re.findall(r"\\boxed\{\s*([A-D])\s*\}", replies[0]) or re.findall(r"\b[A-D]\b", replies[0])
    score = float(boxed[-1:] == doc["target"])
    return {"score": score, "exact": score, "by_length": (doc["length"], score)}


def copied(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    """How much of what was asked for a reply holds: the published rule, 1 where it is there, else by words."""
    reply = replies[0].lower()
    found = [target.lower() in reply for target in doc["target"]]
    shares = [
        1.0 if there else max(0.0, 1 - _word_error_rate(reply.split(), target.lower().split()))
        for there, target in zip(found, doc["target"], strict=True)
    ]
    score = sum(shares) / len(shares)
    return {"score": score, "exact": float(all(found)), "by_length": (doc["length"], score)}


def copied_last(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    """As `copied`, of the last paragraph alone."""
    return copied(doc, [replies[0].strip().split("\n\n")[-1]])


def _word_error_rate(reply: Sequence[str], asked: Sequence[str]) -> float:
    """Levenshtein's distance in words, by the words of what was asked for."""
    row = list(range(len(asked) + 1))
    for number, word in enumerate(reply, 1):
        before, row = row, [number]
        for at, other in enumerate(asked):
            row.append(min(before[at] + (word != other), before[at + 1] + 1, row[at] + 1))
    return row[-1] / len(asked)
