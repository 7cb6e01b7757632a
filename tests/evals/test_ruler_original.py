"""RULER's own generators on the same seeds and tokenizer, kept in ruler.json: needles, lists and wording are theirs.

What differs is what the README of the tasks says: the order of needles, of words within a list and of documents, the
number of `vt` and its example, a sentence that is cut, one space, and an answer that is listed twice. Each is put
aside by name here, and all else is compared to the letter.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import asked_files
import pytest
from transformers import PreTrainedTokenizerBase

from ropescale.evals.passkey import FILLER
from ropescale.evals.tasks.haystack import haystack
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler import niah, qa
from ropescale.evals.tasks.ruler.counting import COMMON_WORDS, FREQUENT_WORDS
from ropescale.evals.tasks.ruler.vt import VARIABLE_TRACKING
from ropescale.evals.tokens import token_counts

Kept = dict[str, Any]
KEPT = json.loads((Path(__file__).parents[1] / "reference" / "ruler.json").read_text(encoding="utf-8"))
OURS: dict[str, PromptSampler] = {
    **niah.TASKS,
    "vt": VARIABLE_TRACKING,
    "cwe": COMMON_WORDS,
    "fwe": FREQUENT_WORDS,
}
FILES = {
    "qa_1": (qa._squad, asked_files.squad()),
    "qa_2": (qa._hotpotqa, asked_files.hotpotqa()),
}
NEEDLE = r"One of the special magic \w+ for [^:]+ is: [\w-]+\."


def cases(*names: str) -> list[Any]:
    return [
        pytest.param(kept, id=f"{kept['task']}-{kept['max_seq_length']}-{kept['seed']}")
        for kept in KEPT["samples"]
        if kept["task"].startswith(names)
    ]


def task_of(name: str, folder: Path) -> PromptSampler:
    """Our task of a name; where it asks about a file, about one in a folder."""
    if name not in FILES:
        return OURS[name]
    read, content = FILES[name]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return qa.QuestionTask(name, read(str(path)))


def drawn(kept: Kept, tokenizer: PreTrainedTokenizerBase, task: PromptSampler) -> Sample:
    """Our sample of the same seed, for the same length."""
    length, number = kept["max_seq_length"], kept.get("number", 0)
    wanted = Wanted(tokenizer=tokenizer, length=length, number=number, short=task.is_short(tokenizer, length))
    return task.sample(random.Random(kept["seed"]), wanted)


def theirs(kept: Kept) -> str:
    """Prompt and answer prefix of a kept sample; there both are one text."""
    return str(kept["input"]) + str(kept["answer_prefix"])


def ordered(pattern: str, text: str) -> str:
    """A text with all that a pattern finds put in alphabetical order, at the same places."""
    found = iter(sorted(re.findall(pattern, text)))
    return re.sub(pattern, lambda _: next(found), text)


def test_every_task_is_kept_with_two_seeds() -> None:
    lengths = Counter((kept["task"], kept["max_seq_length"]) for kept in KEPT["samples"])
    assert {task for task, _ in lengths} == {*OURS, *FILES}
    assert set(lengths.values()) == {2}
    assert len(lengths) == len(OURS) + len(FILES) + 1  # both forms of `cwe`


@pytest.mark.parametrize("kept", cases(""))
def test_the_tokenizer_counts_as_theirs(kept: Kept, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tokens,) = token_counts(tokenizer, [theirs(kept)])
    assert tokens + task_of(kept["task"], tmp_path).reply_tokens == kept["length"] <= kept["max_seq_length"]


@pytest.mark.parametrize("kept", cases("niah"))
def test_needles_are_the_same(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    task = niah.TASKS[kept["task"]]
    sample = drawn(kept, tokenizer, task)
    assert sample.target == kept["outputs"]
    if task.stack != "essay":
        assert f"{sample.prompt(kept['units'], '')} {sample.gen_prefix}" == theirs(kept)
        return
    whole, cut = beginning(kept["units"], tokenizer)
    ours = f"{sample.prompt(len(whole), '')} {sample.gen_prefix}".replace(whole[-1], cut, 1)
    # where a needle stands first or beside another, theirs has a space more
    assert ordered(NEEDLE, ours) == re.sub(r"(?<=[\n ]) +", "", ordered(NEEDLE, theirs(kept)))
    assert len(re.findall(NEEDLE, ours)) == task.keys * task.values


def beginning(words: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], str]:
    """The sentences that so many words of the speeches begin, and what of the last these have."""
    sentences: list[str] = []
    while (count := len(" ".join(sentences).split())) < words:
        sentences = haystack(tokenizer).sentences(0, len(sentences) + 1)
    last = sentences[-1].split()
    return sentences, " ".join(last[: len(last) - (count - words)])


@pytest.mark.parametrize("kept", cases("vt"))
def test_a_chain_of_variables_is_the_same(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    sample = drawn(kept, tokenizer, OURS[kept["task"]])
    ours = f"{sample.prompt(kept['units'], '')} {sample.gen_prefix}"
    assert sample.target == kept["outputs"]
    (our_example, our_task), (their_example, their_task) = (
        re.sub(r" +$", "", text).split("\n\nMemorize", 1) for text in (ours, theirs(kept))
    )
    number = r"\b\d{5}\b"
    assert len(set(re.findall(number, our_task))) == len(set(re.findall(number, their_task))) == 1
    assert re.sub(number, "N", our_task) == re.sub(number, "N", their_task)
    assert masked(our_example) == masked(their_example)


def masked(example: str) -> str:
    """The worked example without its lines of noise, its names numbered as they come, and its spaces single."""
    kept = "\n".join(line for line in example.split("\n") if line != FILLER)
    names: dict[str, str] = {}
    named = re.sub(
        r"\b[A-Z]{3}\b", lambda m: m[0] if m[0] == "VAR" else names.setdefault(m[0], f"x{len(names)}"), kept
    )
    return re.sub(" +", " ", re.sub(r"\b\d{5}\b", "N", named))


@pytest.mark.parametrize("kept", cases("cwe"))
def test_lists_of_words_are_the_same(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    sample = drawn(kept, tokenizer, OURS[kept["task"]])
    ours = f"{sample.prompt(kept['units'] - len(kept['outputs']), '')} {sample.gen_prefix}"
    assert sample.target == kept["outputs"]
    lists = [re.findall(r"^1\. .*$", text, re.M) for text in (ours, theirs(kept))]
    for our_list, their_list in zip(*lists, strict=True):
        assert Counter(words_of(our_list)) == Counter(words_of(their_list))
        assert our_list.count(". ") == their_list.count(". ")
    assert len(lists[0]) == 2  # the example's, and the one that is asked for
    # the words that the example answers with stand outside the lists, and so do all others that are compared here
    assert re.sub(r"^1\. .*$", "LIST", ours, flags=re.M) == re.sub(r"^1\. .*$", "LIST", theirs(kept), flags=re.M)


def words_of(entries: str) -> list[str]:
    return re.findall(r"\d+\. (.+?)(?= \d+\. |$)", entries)


@pytest.mark.parametrize("kept", cases("fwe"))
def test_coded_words_are_the_same(kept: Kept, tokenizer: PreTrainedTokenizerBase) -> None:
    sample = drawn(kept, tokenizer, OURS[kept["task"]])
    units: Any = kept["units"] / 10  # ours are ten words each
    ours = f"{sample.prompt(units, '')} {sample.gen_prefix}"
    assert sample.target == kept["outputs"]
    coded = r"(?<=coded words\. ).*"
    (our_words,), (their_words,) = (re.findall(coded, text) for text in (ours, theirs(kept)))
    assert Counter(our_words.split(" ")) == Counter(their_words.split(" "))
    assert re.sub(coded, "WORDS", ours) == re.sub(coded, "WORDS", theirs(kept))


@pytest.mark.parametrize("kept", cases("qa"))
def test_questions_have_the_same_documents(kept: Kept, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    task = task_of(kept["task"], tmp_path)
    sample = drawn(kept, tokenizer, task)
    ours = f"{sample.prompt(kept['units'], '')} {sample.gen_prefix}"
    assert sample.target == list(dict.fromkeys(kept["outputs"]))
    document = r"(?<=Document ){}:\n(.+?)(?=\n\n)"
    found = [
        [re.findall(document.format(i), text, re.S)[0] for i in range(1, kept["units"] + 1)]
        for text in (ours, theirs(kept))
    ]
    assert Counter(found[0]) == Counter(found[1])
    assert len({*found[0]}) == kept["units"] > sample.least
    masked = re.compile(document.format(r"\d+"), re.S)
    assert masked.sub("TEXT", ours) == masked.sub("TEXT", theirs(kept))


def test_both_ways_of_drawing_documents_are_kept(tmp_path: Path) -> None:
    """RULER draws from the article alone where that is enough."""
    task = task_of("qa_1", tmp_path)
    assert isinstance(task, qa.QuestionTask)
    kept = [one for one in KEPT["samples"] if one["task"] == "qa_1"]
    enough = [len(task._questions[one["number"]].related) >= one["units"] - 1 for one in kept]
    assert enough == [False, True]


@pytest.mark.parametrize("name", OURS)
def test_a_row_is_drawn_by_the_same_rules(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """What the harness gets is the sample that is held against theirs: the seed alone is another."""
    task = OURS[name]
    (row,) = task.rows(tokenizer, length=1600, depth=None, samples=1, seed=3)
    wanted = Wanted(tokenizer=tokenizer, length=1600, number=0, short=task.is_short(tokenizer, 1600))
    again = task.sample(random.Random(f"{name} 1600 None 3 0 0"), wanted)
    assert (row["gen_prefix"], row["target"]) == (again.gen_prefix, again.target)
