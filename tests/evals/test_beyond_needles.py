"""Graphs, conversations and quotations: exact lengths, right answers, and what an oracle and a guesser score."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from statistics import mean
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from readers import TASKS, TOKENIZERS, evaluated, rows_elsewhere
from solvers import guesser, oracle, walked
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals import texts
from ropescale.evals.tasks.attribution import samples as attributions
from ropescale.evals.tasks.graphwalks import samples as graphs
from ropescale.evals.tasks.mrcr import samples as conversations
from ropescale.evals.tasks.retrieval import PromptSampler
from ropescale.evals.tokens import named_tokenizer

FAMILY: dict[str, PromptSampler] = {
    "graphwalks_parents": graphs.GraphWalk("parents"),
    "graphwalks_bfs": graphs.GraphWalk("bfs"),
    "mrcr_2": conversations.Conversation(2),
    "mrcr_4": conversations.Conversation(4),
    "mrcr_8": conversations.Conversation(8),
    "attribution": attributions.Attribution(),
}
NAMES = [f"ropescale_{name}" for name in FAMILY]
FOLDERS = {name: re.split(r"_\w+$", name)[0] for name in FAMILY}
CHANCE = {"graphwalks": 0.0, "mrcr": 0.29, "attribution": 0.25}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """One of the tokenizers, built once."""
    return TOKENIZERS[kind]()


def rows(name: str, **metadata: Any) -> list[dict[str, Any]]:
    """The rows of a task."""
    return [dict(row) for row in FAMILY[name].dataset({"tokenizer": "tiny", **metadata})["test"]]


def text_of(row: dict[str, Any]) -> str:
    """What a model reads, as the harness joins it."""
    return f"{row['prompt']} {row['gen_prefix']}"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", FAMILY)
def test_prompt_and_reply_together_have_the_asked_length(name: str, kind: str) -> None:
    task, tokenizer = FAMILY[name], tokenizer_of(kind)
    least = task.minimum(tokenizer)
    for row in rows(name, tokenizer=tokenizer, lengths=[least, least + 61, least + 700], samples=1):
        assert len(tokenizer(text_of(row))["input_ids"]) + task.reply_tokens == row["length"]
        longest = max(row["target"], key=len) if name == "attribution" else ", ".join(row["target"])
        assert len(tokenizer(f"{text_of(row)} {longest}]")["input_ids"]) <= row["length"]  # the answer fits as well


@pytest.mark.parametrize("name", FAMILY)
def test_a_length_below_the_minimum_is_refused_with_the_minimum_that_the_readme_states(name: str) -> None:
    least = FAMILY[name].minimum(tokenizer_of("tiny"))
    with pytest.raises(InvalidArgumentError) as caught:
        rows(name, lengths=[least - 1], samples=1)
    assert str(caught.value) == (
        f"{name}: length must hold the task without haystack, got {least - 1}; "
        f"ask for at least {least} tokens with this tokenizer"
    )
    assert least == stated(name)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_the_readme_states_the_minimum_with_smollm2(name: str) -> None:
    assert FAMILY[name].minimum(named_tokenizer("smollm2")) == stated(name)[0]


def stated(name: str) -> list[int]:
    """The minimums with the tokenizers of SmolLM2 and of tiny, from the README of a task."""
    readme = (TASKS / FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| `{name}` \| ([\d,]+) \| ([\d,]+) \|$", readme, re.M)
    return [int(number.replace(",", "")) for number in line]


@pytest.mark.parametrize("name", FAMILY)
def test_samples_do_not_depend_on_what_else_is_asked_for(name: str) -> None:
    alone = rows(name, lengths=[1000], samples=2)
    among = rows(name, lengths=[1100, 1000], samples=3)
    assert alone == [row for row in among if row["length"] == 1000 and row["sample"] < 2]
    assert alone != rows(name, lengths=[1000], samples=2, seed=1)
    assert alone[0]["prompt"] != alone[1]["prompt"]


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_samples_are_the_same_in_another_process() -> None:
    metadata = {"tokenizer": "tiny", "lengths": [1000], "samples": 2}
    assert rows_elsewhere(NAMES, metadata) == {f"ropescale_{name}": rows(name, **metadata) for name in FAMILY}


def test_an_oracle_scores_in_full_and_a_guesser_at_the_level_of_chance() -> None:
    asked = {"tokenizer": "tiny", "lengths": [900, 1600], "samples": 6}
    best, worst = (evaluated(model, NAMES, **asked)["results"] for model in (oracle(), guesser(0)))
    for name in FAMILY:
        found = best[f"ropescale_{name}"]
        assert found["score,none"] == found["exact,none"] == 1.0
        assert found["by_length,none"] == {"900": 1.0, "1600": 1.0}
        if name != "attribution":  # guessed below, since sixteen choices say little of chance
            assert worst[f"ropescale_{name}"]["score,none"] <= CHANCE[FOLDERS[name]] + 0.2
            assert worst[f"ropescale_{name}"]["exact,none"] <= 0.25


@pytest.mark.parametrize("name", FAMILY)
def test_the_yaml_lets_a_reply_be_as_long_as_the_lengths_count_it(name: str) -> None:
    metadata = {"tokenizer": "tiny", "lengths": [1000], "samples": 1}
    loaded = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata).load(
        [f"ropescale_{name}"]
    )
    config = loaded["tasks"][f"ropescale_{name}"].config
    assert config.metadata["version"] == 1
    if config.output_type == "generate_until":
        assert config.generation_kwargs["max_gen_toks"] == FAMILY[name].reply_tokens


# GraphWalks


@pytest.mark.parametrize("operation", ["parents", "bfs"])
def test_edges_that_fill_a_graph_leave_its_answer_as_it_is(operation: str) -> None:
    """With any number of them, and whoever searches."""
    sizes = Counter()
    for row in rows(f"graphwalks_{operation}", lengths=[1000, 2500], samples=12):
        assert walked(row["prompt"]) == sorted(row["target"])
        edges = re.findall(r"^(\w{10}) -> (\w{10})$", row["prompt"], re.M)
        assert len({*edges}) == len(edges)
        assert len({*sum(edges, ())}) > len(row["target"]) + 3
        sizes[len(row["target"])] += 1
    assert sizes.keys() == ({1, 2, 3, 4} if operation == "parents" else {2, 4})


@pytest.mark.parametrize(
    ("reply", "score", "exact"),
    [
        ("aa, bb]", 1.0, 1.0),
        ("bb, aa, aa", 1.0, 1.0),  # a set; a bracket that ended the reply
        ("aa]", 2 / 3, 0.0),
        ("aa, cc]", 0.5, 0.0),
        ("aa, bb, cc, dd]", 2 / 3, 0.0),
        ("cc]", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("'aa', \"bb\"] and cc", 1.0, 1.0),
    ],
)
def test_a_list_of_nodes_is_scored_by_f1(reply: str, score: float, exact: float) -> None:
    found = graphs.results({"target": ["aa", "bb"], "length": 7}, [reply])
    assert found == {"score": pytest.approx(score), "exact": exact, "by_length": (7, pytest.approx(score))}


# MRCR


@pytest.mark.parametrize("needles", [2, 4, 8])
def test_a_request_is_made_so_often_and_others_are_nearly_like_it(needles: int) -> None:
    numbers = Counter()
    for row in rows(f"mrcr_{needles}", lengths=[1500], samples=12):
        conversation = row["prompt"].split("END EXAMPLE======")[1]
        number, form, topic = re.findall(r"to the (\d)\w\w \(1 indexed\) (.+) about (\w+)\. Do not", conversation)[0]
        turns = re.findall(r"User: write a (.+) about (\w+)\n\nAssistant: (.+)\n\n", conversation)
        replies = [reply for *asked, reply in turns if asked == [form, topic]]
        assert len(replies) == needles
        assert row["target"] == [replies[int(number) - 1]]
        assert any(form == a and topic != b for a, b, _ in turns)
        assert any(form != a and topic == b for a, b, _ in turns)
        assert len({reply for *_, reply in turns}) == len(turns)
        numbers[number] += 1
    assert len(numbers) > 1


def test_a_copy_is_scored_by_matching_letters() -> None:
    doc = {"target": ["The sun rose over the hills."], "length": 7}
    assert conversations.results(doc, [" The sun rose over the hills.\n"])["score"] == 1.0
    # 21 letters of 28 are there in order, of 21 written: 2 * 21 / (28 + 21)
    half = conversations.results(doc, ["The sun rose over the"])
    assert half == {"score": pytest.approx(42 / 49), "exact": 0.0, "by_length": (7, pytest.approx(42 / 49))}
    assert conversations.results(doc, [""])["score"] == 0.0


def test_another_reply_scores_what_the_report_says() -> None:
    rng = random.Random(0)
    replies = conversations._replies()
    ratios = []
    for _ in range(500):
        asked, other = rng.sample(replies, 2)
        ratios.append(conversations.results({"target": [asked], "length": 1}, [other])["score"])
    assert mean(ratios) == pytest.approx(CHANCE["mrcr"], abs=0.02)


# Attribution


def test_a_quotation_stands_in_one_passage_and_all_choices_are_there() -> None:
    speeches = {document.name.split("-")[1] + ", " + document.name[:4]: document.text for document in texts.sample()}
    for row in rows("attribution", lengths=[1000, 2500], samples=8):
        (quoted,) = re.findall(r'sentence from: "(.+)"\?$', row["prompt"])
        passages = re.findall(r"From the address of (.+):\n(.+)\n", row["prompt"])
        assert [source for source, passage in passages if quoted in passage] == [row["target"][0]]
        assert {*row["target"]} <= {source for source, _ in passages}
        assert len({*row["target"]}) == 4
        for source, passage in passages:
            assert passage[:100] in " ".join(speeches[source].split())
        asked, *others = (int(source[-4:]) for source in row["target"])
        years = sorted(abs(int(source[-4:]) - asked) for source in speeches)[1:4]
        assert sorted(abs(other - asked) for other in others) == years


def test_a_choice_is_right_by_letter_and_chance_is_a_quarter() -> None:
    (row,) = rows("attribution", lengths=[900], samples=1)
    listed, right = attributions.choices(row), attributions.label(row)
    assert listed[right] == row["target"][0]
    assert listed == sorted(listed)
    # per letter, so that a name is not the likelier for being short
    even = [(-2.0 * len(choice) + (number == right), number == right) for number, choice in enumerate(listed)]
    found = attributions.results(row, even)
    assert found["score"] == found["exact"] == 1.0
    assert found["nats"] == 2 * len(listed[right]) - 1
    rng = random.Random(0)
    guesses = [attributions.results(row, drawn(rng, listed)) for _ in range(2000)]
    assert mean(guess["score"] for guess in guesses) == pytest.approx(CHANCE["attribution"], abs=0.03)


def drawn(rng: random.Random, listed: list[str]) -> list[tuple[float, bool]]:
    """What a model thinks of choices that likes them by chance."""
    return [(-rng.random() * len(choice), False) for choice in listed]
