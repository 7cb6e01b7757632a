"""The tasks of RULER: exact lengths with any tokenizer, what a prompt holds, scores, minimums, worded errors."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from readers import ROOT, TASKS, TOKENIZERS, chance, evaluated, joined, perfect_memory, rows_elsewhere
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.passkey import FILLER
from ropescale.evals.tasks.retrieval import PromptSampler, Wanted
from ropescale.evals.tasks.ruler import niah, qa
from ropescale.evals.tasks.ruler.counting import COMMON_WORDS, FREQUENT_WORDS
from ropescale.evals.tasks.ruler.vt import VARIABLE_TRACKING
from ropescale.evals.tokens import named_tokenizer

OFFLINE: dict[str, PromptSampler] = {
    **niah.TASKS,
    "vt": VARIABLE_TRACKING,
    "cwe": COMMON_WORDS,
    "fwe": FREQUENT_WORDS,
}
NAMES = [f"ropescale_{name}" for name in OFFLINE]
README = (TASKS / "ruler" / "README.md").read_text(encoding="utf-8")


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """One of the tokenizers, built once."""
    return TOKENIZERS[kind]()


def rows(name: str, **metadata: Any) -> list[dict[str, Any]]:
    """The rows of a task that needs no download."""
    return [dict(row) for row in OFFLINE[name].dataset({"tokenizer": "tiny", **metadata})["test"]]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", OFFLINE)
def test_prompt_and_reply_together_have_the_asked_length(name: str, kind: str) -> None:
    task, tokenizer = OFFLINE[name], tokenizer_of(kind)
    least = task.minimum(tokenizer)
    for row in rows(name, tokenizer=tokenizer, lengths=[least, least + 1, least + 61, least + 500], samples=2):
        assert len(tokenizer(joined(row))["input_ids"]) + task.reply_tokens == row["length"]


@pytest.mark.parametrize("name", OFFLINE)
def test_full_forms_have_the_asked_length(name: str) -> None:
    tokenizer = tokenizer_of("byte-level")
    for row in rows(name, tokenizer=tokenizer, lengths=[4096, 8191], samples=1):
        assert len(tokenizer(joined(row))["input_ids"]) + OFFLINE[name].reply_tokens == row["length"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_prompt_and_reply_have_the_asked_length_with_smollm2(name: str) -> None:
    task, tokenizer = OFFLINE[name], named_tokenizer("smollm2")
    lengths = [task.minimum(tokenizer), 1024, 4096, 10_000]
    for row in rows(name, tokenizer=tokenizer, lengths=lengths, samples=20):
        assert len(tokenizer(joined(row))["input_ids"]) + task.reply_tokens == row["length"]


@pytest.mark.slow
def test_the_readme_states_the_minimums_with_smollm2() -> None:
    tokenizer = named_tokenizer("smollm2")
    assert {name: task.minimum(tokenizer) for name, task in OFFLINE.items()} == stated_minimums(1)
    assert max(OFFLINE[f"niah_single_{i}"].minimum(tokenizer) for i in (1, 2, 3)) <= 256


def test_the_readme_states_the_minimums_with_the_tiny_tokenizer() -> None:
    tokenizer = tokenizer_of("tiny")
    assert {name: task.minimum(tokenizer) for name, task in OFFLINE.items()} == stated_minimums(2)


def stated_minimums(column: int) -> dict[str, int]:
    """Task -> tokens, from a column of the README's table of minimums."""
    lines = [line.strip("| ").split("|") for line in README.split("## Minimum")[1].split("\n## ")[0].splitlines()]
    cells = [[cell.strip(" `") for cell in line] for line in lines if len(line) == 3]
    return {line[0]: int(line[column].replace(",", "")) for line in cells if line[column].replace(",", "").isdigit()}


@pytest.mark.parametrize("name", OFFLINE)
def test_a_length_below_the_minimum_is_refused_with_the_minimum(name: str) -> None:
    least = OFFLINE[name].minimum(tokenizer_of("tiny"))
    with pytest.raises(InvalidArgumentError) as caught:
        rows(name, lengths=[least - 1], samples=1)
    assert str(caught.value) == (
        f"{name}: length must hold the task without haystack, got {least - 1}; "
        f"ask for at least {least} tokens with this tokenizer"
    )


@pytest.mark.parametrize("name", OFFLINE)
def test_samples_do_not_depend_on_what_else_is_asked_for(name: str) -> None:
    alone = rows(name, lengths=[1400], samples=2)
    among = rows(name, lengths=[1300, 1400], samples=4)
    assert alone == [row for row in among if row["length"] == 1400 and row["sample"] < 2]
    assert alone != rows(name, lengths=[1400], samples=2, seed=1)
    assert alone[0]["prompt"] != alone[1]["prompt"]


def test_samples_are_the_same_in_another_process() -> None:
    metadata = {"tokenizer": "tiny", "lengths": [1300], "samples": 2}
    elsewhere = rows_elsewhere(NAMES, metadata)
    assert elsewhere == {f"ropescale_{name}": rows(name, **metadata) for name in OFFLINE}


def test_perfect_memory_scores_in_full_and_chance_nearly_nothing() -> None:
    asked = {"tokenizer": "tiny", "lengths": [1300, 4700], "samples": 3}
    best = evaluated(perfect_memory(), ["ropescale_ruler"], **asked)
    worst = evaluated(chance(1), ["ropescale_ruler"], **asked)
    assert set(best["results"]) == {*NAMES, "ropescale_ruler"}
    for name in NAMES:
        assert best["results"][name]["score,none"] == best["results"][name]["exact,none"] == 1.0
        assert best["results"][name]["by_length,none"] == {"1300": 1.0, "4700": 1.0}
        assert worst["results"][name]["score,none"] <= 0.05
    assert best["groups"]["ropescale_ruler"]["score,none"] == 1.0


@pytest.mark.parametrize("name", [*OFFLINE, "qa_1", "qa_2"])
def test_the_yaml_asks_for_ruler_s_reply_and_names_a_version(name: str, data: dict[str, str]) -> None:
    metadata = {"tokenizer": "tiny", "lengths": [1300], "samples": 1, **data}
    task = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata).load([f"ropescale_{name}"])
    config = task["tasks"][f"ropescale_{name}"].config
    tokens = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}.get(name, 128)
    assert config.generation_kwargs["max_gen_toks"] == tokens
    assert name.startswith("qa") or OFFLINE[name].reply_tokens == tokens
    assert config.metadata["version"] == (3 if name in ("vt", "cwe", "fwe") else 2)


def test_the_full_group_is_the_thirteen_tasks(data: dict[str, str]) -> None:
    metadata = {"tokenizer": "tiny", "lengths": [1300], "samples": 1, **data}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    assert set(manager.load(["ropescale_ruler_full"])["tasks"]) == {*NAMES, "ropescale_qa_1", "ropescale_qa_2"}


@pytest.mark.parametrize(
    ("name", "needles", "targets", "kind"),
    [
        ("niah_single_1", 1, 1, r"\d{7}"),
        ("niah_single_2", 1, 1, r"\d{7}"),
        ("niah_single_3", 1, 1, r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
        ("niah_multikey_1", 4, 1, r"\d{7}"),
        ("niah_multivalue", 4, 4, r"\d{7}"),
        ("niah_multiquery", 4, 4, r"\d{7}"),
        ("niah_multikey_2", None, 1, r"\d{7}"),
        ("niah_multikey_3", None, 1, r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
    ],
)
def test_a_needle_task_has_its_needles(name: str, needles: int | None, targets: int, kind: str) -> None:
    for row in rows(name, lengths=[2000], samples=5):
        found = re.findall(rf"One of the special magic \w+ for (.+?) is: ({kind})\.", row["prompt"])
        values = [value for _, value in found]
        assert len(set(values)) == len(values)
        assert len(found) == needles if needles else len(found) > 10
        assert len(row["target"]) == targets
        assert set(row["target"]) <= set(values)
        keys = {key for key, value in found if value in row["target"]}
        assert len(keys) == (4 if name == "niah_multiquery" else 1)
        assert all(key in row["gen_prefix"] for key in keys)
        assert row["gen_prefix"].endswith(" are" if targets > 1 else " is")


def test_needles_lie_at_every_depth() -> None:
    for name in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        drawn = rows(name, lengths=[1200], samples=60)
        assert min(row["depth"] for row in drawn) < 0.1
        assert max(row["depth"] for row in drawn) > 0.9
        for row in drawn:
            context = row["prompt"].split("\n", 1)[1].rsplit("\n", 1)[0]
            assert context.index(row["target"][0]) / len(context) == pytest.approx(row["depth"], abs=0.16)


def test_a_chain_of_variables_is_in_order_and_its_example_answers() -> None:
    for row in rows("vt", lengths=[1500], samples=5):
        example, task = row["prompt"].split("\n\nMemorize and track", 1)
        shown = re.findall(r"VAR ([A-Z]{3}) = (?:VAR )?(\w+)", example)
        assert example.endswith("they are: " + " ".join(name for name, _ in shown))
        chain = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", task)
        assert [name for name, _ in chain] == row["target"]
        assert [source for _, source in chain][1:] == row["target"][:-1]
        assert f"the value {chain[0][1]} in the text above" in task
        assert row["gen_prefix"].endswith(f"5 variables are assigned the value {chain[0][1]}, they are:")
        assert len(shown) == len(chain) == 5


@pytest.mark.parametrize("length", [0, 1024, 4096], ids=["least", "1k", "4k"])
def test_no_assignments_of_a_chain_stand_side_by_side(length: int) -> None:
    """RULER puts each before another line of noise, in the example as well."""
    length = length or VARIABLE_TRACKING.minimum(tokenizer_of("tiny"))
    gaps: list[int] = []
    for row in rows("vt", lengths=[length], samples=60 if length <= 1024 else 10):
        contexts = re.findall(r"following text\.\n\n(.*?)\nQuestion: Find", row["prompt"], re.S)
        assert len(contexts) == 2
        for context in contexts:
            lines = context.split("\n")
            places = [number for number, line in enumerate(lines) if "VAR" in line]
            assert len(places) == 5
            assert all(lines[place].startswith("VAR ") for place in places)
            assert {line for line in lines[:-1] if "VAR" not in line} == {FILLER}
            assert places[-1] < len(lines) - 1
            gaps += [after - before - 1 for before, after in pairwise(places)]
    assert min(gaps) == 1  # lines of noise between two assignments: never none, and sometimes one
    assert (max(gaps) > 1) == (length >= 1024)


@pytest.mark.parametrize(("length", "often", "seldom"), [(1400, 6, 1), (6000, 30, 3)], ids=["short", "full"])
def test_common_words_come_as_often_as_ruler_lets_them(length: int, often: int, seldom: int) -> None:
    for row in rows("cwe", lengths=[length], samples=2):
        example, entries = (re.findall(r"^1\. .*$", part, re.M) for part in row["prompt"].rsplit("Below is a", 1))
        counts = Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", entries[0]))
        assert {word: count for word, count in counts.items() if count != seldom} == dict.fromkeys(
            row["target"], often
        )
        assert len(row["target"]) == 10
        assert len(counts) > 10
        shown = Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", example[0]))
        assert sorted(shown.values()) == sorted([3] * 10 + [1] * 10 if often == 6 else [10] * 10 + [3] * 30)
        answer = row["prompt"].rsplit("Below is a", 1)[0].split("appear most often in the list are:")[1]
        commonest = re.findall(
            r"(?<=^ 1\. )\S.*?(?= 2\. )|(?<= [2-9]\. ).+?(?= \d+\. )|(?<= 10\. ).+", answer.split("\n")[0]
        )
        assert {word: shown[word] for word in commonest} == dict.fromkeys(commonest, max(shown.values()))
        assert len(commonest) == 10


def test_common_words_do_not_run_out() -> None:
    """Where every word there is would leave room, the list is of pairs of an adjective and a noun."""
    tokenizer = tokenizer_of("tiny")
    counts = {}
    for length in (245_000, 270_000):
        (row,) = rows("cwe", lengths=[length], samples=1)
        assert len(tokenizer(joined(row))["input_ids"]) + COMMON_WORDS.reply_tokens == length
        entries = re.findall(r"^1\. .*$", row["prompt"].rsplit("Below is a", 1)[1], re.M)[0]
        counts[length] = Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", entries))
        assert {word for word, count in counts[length].items() if count == 30} == set(row["target"])
        assert set(counts[length].values()) == {30, 3}
        rest = row["prompt"].rsplit("Below is a", 1)[0].rsplit("\n", 2)[1]
        assert rest.count("The grass is green.") <= 2  # what fills is less than an entry's three
        answer = " ".join(f"{number}. {word}" for number, word in enumerate(row["target"], 1))
        assert len(tokenizer(answer)["input_ids"]) <= COMMON_WORDS.reply_tokens
    assert all(re.fullmatch(r"\w+-\w+", word) for word in counts[270_000])
    assert sum("-" in word for word in counts[245_000]) < len(counts[245_000]) / 10


def test_coded_words_are_as_many_as_ruler_s() -> None:
    """A fiftieth of what the reply leaves of the length, the commonest of them the dots."""
    drawn = FREQUENT_WORDS.sample(random.Random(0), Wanted(tokenizer=tokenizer_of("tiny"), length=4096, number=0))
    text = drawn.prompt(10**5, "")
    assert len(set(re.findall(r"\b[a-z]{6}\b", text.split("coded words. ")[1].rsplit("\nQ", 1)[0]))) == 79


def test_the_three_frequent_words_are_the_commonest_after_the_dots() -> None:
    for row in rows("fwe", lengths=[420, 3000], samples=5):
        text = row["prompt"].split("coded words. ", 1)[1].rsplit("\nQuestion", 1)[0]
        counts = Counter(re.findall(r"\b[a-z]{6}\b", text)).most_common()
        assert [word for word, _ in counts[:3]] == row["target"]
        assert counts[2][1] > counts[3][1]  # no tie about who is third
        assert text.count("...") > 0.5 * len(text.split())


SQUAD = {
    "data": [
        {
            "title": f"Town {town}",
            "paragraphs": [
                {
                    "context": f"Paragraph {part} about town {town}. It has {town}{part}7 bridges over a slow river.",
                    "qas": [
                        {
                            "question": f"How many bridges are in part {part} of town {town}?",
                            "answers": [{"text": f"{town}{part}7"}, {"text": f"{town}{part}7 bridges"}],
                            "is_impossible": False,
                        },
                        {"question": "How many moons?", "answers": [], "is_impossible": True},
                    ],
                }
                for part in range(3)
            ],
        }
        for town in range(1, 9)
    ]
}
HOTPOTQA = [
    {
        "question": f"Which river is crossed by the bridge of builder {builder}?",
        "answer": f"River {builder}",
        "context": [
            [f"Bridge {builder}-{i}", [f"Bridge {builder}-{i} crosses River {builder}.", " It is old."]]
            for i in range(3)
        ],
    }
    for builder in range(12)
]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Two small files in the formats of SQuAD and HotpotQA, as the metadata names them."""
    files = {"squad": tmp_path / "squad.json", "hotpotqa": tmp_path / "hotpotqa.json"}
    files["squad"].write_text(json.dumps(SQUAD), encoding="utf-8")
    files["hotpotqa"].write_text(json.dumps(HOTPOTQA), encoding="utf-8")
    return {key: str(path) for key, path in files.items()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("draw", "gold"), [(qa.squad, 1), (qa.hotpotqa, 3)], ids=["squad", "hotpotqa"])
def test_questions_have_their_documents_and_the_asked_length(
    draw: Callable[..., dict[str, Any]], gold: int, kind: str, data: dict[str, str]
) -> None:
    tokenizer = tokenizer_of(kind)
    for row in draw(tokenizer=tokenizer, lengths=[1500, 2201], samples=4, **data)["test"]:
        assert len(tokenizer(joined(row))["input_ids"]) + 32 == row["length"]
        documents = re.findall(r"Document \d+:\n(.+?)(?=\n\n)", row["prompt"], re.S)
        assert sum(row["target"][0] in text for text in documents) >= gold
        assert len(documents) > gold
        assert row["prompt"].endswith("?")
        assert "moons" not in row["prompt"]


def test_any_spelling_of_an_answer_counts_in_full(data: dict[str, str]) -> None:
    metadata = {"tokenizer": "tiny", "lengths": [600], "samples": 1, **data}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    task = manager.load(["ropescale_qa_1"])["tasks"]["ropescale_qa_1"]
    doc = task.test_docs()[0]
    assert doc["target"] == ["107", "107 bridges"]
    assert task.process_results(doc, [" 107."]) == {"score": 1.0, "exact": 1.0, "by_length": (600, 1.0)}
    assert task.process_results(doc, [" 1070"]) == {"score": 1.0, "exact": 0.0, "by_length": (600, 1.0)}


def test_questions_without_a_file_or_a_hub_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        qa.squad(tokenizer="tiny")
    assert re.fullmatch(
        r"qa_1: the questions must come from a file or from the hub \(rajpurkar/squad_v2\), got no squad and no "
        r"answer \(\w+\); download SQuAD's dev-v2\.0\.json and name it, as in metadata=\{\"squad\": \"PATH\"\}",
        str(caught.value),
    )
    with pytest.raises(InvalidArgumentError) as caught:
        qa.hotpotqa(tokenizer="tiny", hotpotqa=str(tmp_path / "none.json"))
    assert str(caught.value) == (
        f"qa_2: hotpotqa must be the path of HotpotQA's hotpot_dev_distractor_v1.json, got "
        f"'{tmp_path}/none.json' (FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/none.json'); "
        f"download the official file and name it"
    )


def test_every_task_and_group_has_a_name_of_its_own() -> None:
    ours = [
        match
        for path in (ROOT / "evals" / "tasks").rglob("*.yaml")
        for match in re.findall(r"^(?:task|group): (\S+)$", path.read_text(encoding="utf-8"), re.M)
    ]
    assert {*NAMES, "ropescale_ruler", "ropescale_ruler_full", "ropescale_passkey", "ropescale_needle"} <= {*ours}
    assert len(ours) == len({*ours})
    assert all(name.startswith("ropescale_") for name in ours)  # so none is one of the harness's own
