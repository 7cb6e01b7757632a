"""The generators of RULER's second version, kept in ruler2.json: needles are theirs, and wording is, to the letter.

What differs is what the README of the tasks says, and is put aside by name here: the questions and documents that are
drawn, their order, and how many there are.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ropescale.evals.chat import joined
from ropescale.evals.tasks.retrieval import PromptSampler, Wanted
from ropescale.evals.tasks.ruler2 import questions
from ropescale.evals.tasks.ruler2.documents import DOCUMENTS
from ropescale.evals.tasks.ruler2.niah import Needles
from ropescale.evals.tasks.ruler2.questions import GRADES, Questions
from ropescale.evals.tokens import token_counts

Kept = dict[str, Any]
KEPT = json.loads((Path(__file__).parents[1] / "reference" / "ruler2.json").read_text(encoding="utf-8"))
OURS: dict[str, PromptSampler] = {
    "mk_niah_basic": Needles(1),
    "mv_niah_basic": Needles(4),
    **{grade: Questions(grade) for grade in GRADES},
    "qa_basic": DOCUMENTS,
}


def cases(ending: str) -> list[Any]:
    return [
        pytest.param(kept, id=f"{kept['task']}-{kept['seed']}")
        for kept in KEPT["samples"]
        if re.search(ending, kept["task"])
    ]


def drawn(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """Our text of the same seed and units with the beginning of its reply, and its targets."""
    wanted = Wanted(tokenizer=tokenizer, length=kept["max_seq_length"], number=0)
    sample = OURS[kept["task"]].sample(random.Random(kept["seed"]), wanted)
    return joined(sample.prompt(kept["units"], ""), sample.gen_prefix), sample.target


def test_every_task_is_kept_with_two_seeds() -> None:
    assert Counter(kept["task"] for kept in KEPT["samples"]) == dict.fromkeys(OURS, 2)


@pytest.mark.parametrize("kept", cases(""))
def test_the_tokenizer_counts_as_theirs(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    assert token_counts(tokenizer, [kept["question"]]) == [kept["length"]]


@pytest.mark.parametrize("kept", cases("niah_basic"))
def test_needles_are_the_same(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    assert drawn(kept, tokenizer) == (kept["question"], kept["expected_answer"])


@pytest.mark.parametrize("kept", cases("niah_(easy|medium|hard)"))
def test_questions_are_asked_in_the_same_words(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    ours, targets = drawn(kept, tokenizer)
    theirs = kept["question"].replace(r"\boxed\{\}", r"\boxed{}")  # theirs has two backslashes more
    (our_frame, our_lines), (their_frame, their_lines) = framed(ours), framed(theirs)
    assert our_frame == their_frame
    known = {one.text for one in questions._questions()}
    assert {*our_lines} | {*their_lines} <= known
    expected = kept["expected_answer"]
    if "solve" in theirs:
        assert {expected, *targets} <= {*"ABCD"}
    else:
        assert {*expected} | {*targets} <= known
        assert len(expected) <= len(targets) == (4 if kept["task"] == "mv_niah_easy" else 1)


def framed(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a text but for its numbered questions, with what is drawn masked; and these questions."""
    lines = re.findall(r"^Question \d{7}: (.+)$", text, re.M)
    for line in {*lines}:
        text = text.replace(line, "ASKED")
    text = re.sub(r"\b\d{7}\b", "N", text)
    text = re.sub(r"\b(1st|2nd|3rd|4th)\b", "Nth", text)
    text = re.sub(r"\\boxed\{[A-D]\}", r"\\boxed{X}", text)
    return [part for part in text.split("\n\n") if part != "Question N: ASKED"], lines


@pytest.mark.parametrize("kept", cases("qa_basic"))
def test_documents_are_asked_about_in_the_same_words(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    document, text = (
        re.compile(r"Document (\d{7}):\n(.+?)(?=\n\n)", re.S),
        re.compile(r"(?<=\n\nText: ).+(?=\n)", re.S),
    )
    ours, targets = drawn(kept, tokenizer)
    frames = []
    for shown, (number,) in ((ours, targets), (kept["question"], kept["expected_answer"])):
        found = document.findall(shown)
        assert len(found) == kept["units"] + 1
        assert dict(found)[number] == text.findall(shown)[0]
        frames.append(text.sub("TEXT", document.sub("", shown)).replace("\n\n" * (len(found) + 1), "\n\n"))
    assert frames[0] == frames[1]
