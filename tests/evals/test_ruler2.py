"""The graded tasks of the second RULER: exact lengths, wording, and what an oracle and a guesser score."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from statistics import mean
from typing import Any

import pytest
from readers import TASKS, TOKENIZERS, evaluated
from solvers import guesser, oracle, solved
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.chat import joined
from ropescale.evals.tasks.retrieval import PromptSampler
from ropescale.evals.tasks.ruler2 import questions
from ropescale.evals.tasks.ruler2.documents import DOCUMENTS
from ropescale.evals.tasks.ruler2.niah import Needles
from ropescale.evals.tasks.ruler2.questions import GRADES, Questions
from ropescale.evals.tasks.ruler2.task import GRADED
from ropescale.evals.tokens import named_tokenizer

FAMILY: dict[str, PromptSampler] = {
    task.name: task for task in (Needles(1), *(Questions(grade) for grade in GRADES), Needles(4), DOCUMENTS)
}
README = (TASKS / "ruler2" / "README.md").read_text(encoding="utf-8")
CHANCE = {"ruler2_mk_niah_medium": 0.25, "ruler2_mk_niah_hard": 0.25}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    return TOKENIZERS[kind]()


def rows(name: str, **metadata: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in FAMILY[name].dataset({"tokenizer": "tiny", **metadata})["test"]]


def test_all_that_are_known_are_tested() -> None:
    assert {*GRADED} == FAMILY.keys()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "bytes"])
@pytest.mark.parametrize("name", FAMILY)
def test_prompt_and_reply_together_have_the_asked_length(name: str, kind: str) -> None:
    task, tokenizer = FAMILY[name], tokenizer_of(kind)
    least = task.minimum(tokenizer)
    for row in rows(name, tokenizer=tokenizer, lengths=[least, least + 433], samples=1):
        text = joined(row["prompt"], row["gen_prefix"])
        assert len(tokenizer(text)["input_ids"]) + task.reply_tokens == row["length"]
        assert len(tokenizer(text + solved(text))["input_ids"]) <= row["length"]  # the answer fits as well


@pytest.mark.parametrize("name", FAMILY)
def test_a_length_below_the_minimum_is_refused_with_the_minimum_that_the_readme_states(name: str) -> None:
    least = FAMILY[name].minimum(tokenizer_of("tiny"))
    with pytest.raises(InvalidArgumentError, match=f"ask for at least {least} tokens with this tokenizer"):
        rows(name, lengths=[least - 1], samples=1)
    assert least == stated(name)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_the_readme_states_the_minimum_with_smollm2(name: str) -> None:
    assert FAMILY[name].minimum(named_tokenizer("smollm2")) == stated(name)[0]


def stated(name: str) -> list[int]:
    (line,) = re.findall(rf"^\| `{name}` \| .+ \| ([\d,]+) \| ([\d,]+) \|$", README, re.M)
    return [int(number.replace(",", "")) for number in line]


@pytest.mark.parametrize("name", FAMILY)
def test_samples_do_not_depend_on_what_else_is_asked_for(name: str) -> None:
    alone = rows(name, lengths=[1400], samples=1)
    assert alone == [row for row in rows(name, lengths=[1500, 1400], samples=2) if row["length"] == 1400][:1]
    assert alone != rows(name, lengths=[1400], samples=1, seed=1)


def test_an_oracle_scores_in_full_and_a_guesser_at_the_level_of_chance() -> None:
    asked = {"tokenizer": "tiny", "lengths": [1500], "samples": 6}
    best, worst = (evaluated(model, ["ropescale_ruler2"], **asked) for model in (oracle(), guesser(0)))
    assert best["groups"]["ropescale_ruler2"]["score,none"] == best["groups"]["ropescale_ruler2"]["exact,none"] == 1.0
    for name in FAMILY:
        assert best["results"][f"ropescale_{name}"]["score,none"] == 1.0
        # six guesses: chance and as much as another question's shared words or luck may bring
        assert worst["results"][f"ropescale_{name}"]["score,none"] <= CHANCE.get(name, 0.0) + 0.45


def test_guessing_a_letter_scores_a_quarter_and_another_question_little() -> None:
    rng = random.Random(0)
    letters = [
        questions.solved({"target": ["B"], "length": 1}, [rf"\boxed{{{rng.choice('ABCD')}}}"]) for _ in range(2000)
    ]
    assert mean(found["score"] for found in letters) == pytest.approx(0.25, abs=0.03)
    pairs = [rng.sample([one.text for one in questions._questions()], 2) for _ in range(500)]
    others = [questions.copied({"target": [asked], "length": 1}, [other]) for asked, other in pairs]
    assert mean(found["score"] for found in others) == pytest.approx(0.26, abs=0.02)
    assert mean(found["exact"] for found in others) == 0.0


@pytest.mark.parametrize("values", [1, 4])
def test_every_key_of_a_basic_haystack_has_as_many_values(values: int) -> None:
    name = f"ruler2_{'mk' if values == 1 else 'mv'}_niah_basic"
    for row in rows(name, lengths=[2500], samples=3):
        lines = re.findall(r"^One of the special magic numbers for (.+) is: (\d{10})\.$", row["prompt"], re.M)
        counts = Counter(key for key, _ in lines)
        assert set(counts.values()) <= ({1} if values == 1 else {values, *range(1, values)})
        assert sum(count == values for count in counts.values()) >= len(counts) - values
        asked = re.findall(r"magic numbers? for (.+) mentioned", row["prompt"])[0]
        assert sorted(row["target"]) == sorted(value for key, value in lines if key == asked)
        assert len(row["target"]) == values
        assert ("memorize them" in row["prompt"]) == (values > 1)


@pytest.mark.parametrize("grade", GRADES)
def test_numbers_stand_with_their_questions(grade: str) -> None:
    several = grade.startswith("mv")
    for row in rows(f"ruler2_{grade}", lengths=[2200], samples=3):
        context = row["prompt"].split("\n\nPlease ")[0]
        counts = Counter(re.findall(r"^Question (\d{7}): ", context, re.M))
        asked = re.findall(r"Question (\d{7})", row["prompt"].split("\n\nPlease ")[-1])[0]
        assert counts[asked] == (4 if several else 1)
        assert max(counts.values()) == counts[asked]
        worked = re.findall(r"\nSolution: \\boxed\{([A-D])\}", row["prompt"])
        assert len(worked) == (0 if several or grade == "mk_niah_easy" else 5)


@pytest.mark.parametrize(
    ("reply", "score", "exact"),
    [
        ("one two three four", 1.0, 1.0),
        ("It says: ONE two three four.", 1.0, 1.0),
        ("one two three", 0.75, 0.0),
        ("one x three four", 0.75, 0.0),
        ("a b c d e f g h i j", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_copies_are_scored_by_words(reply: str, score: float, exact: float) -> None:
    found = questions.copied({"target": ["one two three four"], "length": 3}, [reply])
    assert found == {"score": score, "exact": exact, "by_length": (3, score)}
    last = questions.copied_last(
        {"target": ["one two three four"], "length": 3}, [f"one two three four\n\n{reply or 'x'}"]
    )
    assert last["score"] == score


def test_the_last_letter_in_a_box_counts() -> None:
    doc = {"target": ["B"], "length": 3}
    replies = {
        r" \boxed{B}": 1.0,
        r"A. x B. y \boxed{A}": 0.0,
        " B": 1.0,
        "Because": 0.0,
        r"\boxed{A} \boxed{ B }": 1.0,
    }
    assert {reply: questions.solved(doc, [reply])["score"] for reply in replies} == replies
