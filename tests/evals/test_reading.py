"""Documents in local files: training and evaluation read the same ones, and a fault is a sentence with its file."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from ropescale.errors import InvalidArgumentError
from ropescale.evals import reading, texts
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.data.chats import written
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.preparing import prepare
from ropescale.recipes.data.sources import find_source
from ropescale.recipes.data.tokenised import _long

TEXTS = [f"the river of number {number} is a small town\u2028under the north" for number in range(5)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()
TABLE = pyarrow.table({"text": TEXTS})


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def arrow(kind: Callable[..., Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with kind(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return bytes(sink.getvalue())


def table() -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(TABLE, sink)
    return bytes(sink.getvalue())


# What holds the same five texts
SAME: dict[str, bytes] = {
    "a.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n\r\n"),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.ndjson": LINES,
    "lines.json": LINES,
    "list.json": json.dumps([{"text": text} for text in TEXTS], indent=3).encode(),
    "list.json.gz": gzip.compress(json.dumps([{"text": text} for text in TEXTS]).encode()),
    "a.parquet": table(),
    "stream.arrow": arrow(pyarrow.ipc.new_stream),
    "file.arrow": arrow(pyarrow.ipc.new_file),
}


def trained_on(path: Path) -> list[Any]:
    return list(find_source(str(path)).documents())


def evaluated_on(path: Path) -> list[Any]:
    return [document.text for document in texts.documents(str(path))]


@pytest.mark.parametrize("name", SAME)
def test_every_form_holds_the_same_texts_for_training_and_evaluation(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(SAME[name])
    assert trained_on(tmp_path / name) == evaluated_on(tmp_path / name) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "A.TXT", "a.txt.gz", "a.txt.zst"])
def test_a_file_of_text_is_a_document_without_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfthe river\r\nof a town\n"
    packed = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(packed(content))
    assert trained_on(tmp_path / name) == evaluated_on(tmp_path / name) == ["the river\nof a town\n"]
    assert texts.documents(str(tmp_path / name))[0].name == name[0]


def test_what_no_encoding_can_hold_is_replaced_and_what_is_empty_left_out(tmp_path: Path) -> None:
    rows = ['{"text": "half \\ud83d of one"}', '{"text": "\\ufeffa mark"}', '{"text": null}', '{"text": ""}', ""]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert evaluated_on(tmp_path / "a.jsonl") == ["half \ufffd of one", "a mark"]
    assert trained_on(tmp_path / "a.jsonl") == ["half \ufffd of one", "a mark", None, ""]


def test_what_a_folder_holds_beside_its_documents_is_none(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / "data" / "train.parquet").write_bytes(SAME["a.parquet"])
    (hub / "README.md").write_text("# a card, without facts\n")
    (hub / "dataset_infos.json").write_text("{}")
    (hub / ".cache").mkdir()
    (hub / ".cache" / "a.txt").write_text("hidden")
    (hub / "data" / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff\xfe")
    assert trained_on(hub) == evaluated_on(hub) == TEXTS
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "README.md").write_text("read me as well")
    (plain / "b.txt").write_text("and me")
    assert trained_on(plain) == evaluated_on(plain) == ["read me as well", "and me"]
    (plain / "README.md").write_text("---\nlicense: mit\n---\n# a card\n")
    assert trained_on(plain) == evaluated_on(plain) == ["and me"]


def test_what_datasets_has_saved_is_read_without_its_caches(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": TEXTS})
    one.select([4, 3, 2]).save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one" / "cache-0123.arrow").write_bytes(SAME["stream.arrow"])
    assert trained_on(tmp_path / "one") == evaluated_on(tmp_path / "one") == TEXTS[4:1:-1]
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(str(tmp_path / "two"))
    assert trained_on(tmp_path / "two") == TEXTS
    assert list(find_source(str(tmp_path / "two"), split="test").documents()) == TEXTS[:1]
    with pytest.raises(
        InvalidArgumentError, match=r"^data: the data set '.*' must have a split 'valid', got test, train; "
    ):
        find_source(str(tmp_path / "two"), split="valid")


def test_a_name_is_a_file_and_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "[ab].jsonl").write_text('{"text": "wanted"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "another"}\n')
    assert trained_on(tmp_path / "[ab].jsonl") == evaluated_on(tmp_path / "[ab].jsonl") == ["wanted"]


BROKEN: dict[str, tuple[bytes, str]] = {
    "latin.jsonl": ('{"text": "café"}'.encode("latin-1"), "must be UTF-8, got the byte 0xe9"),
    "latin.txt": ("café".encode("latin-1"), "must be UTF-8, got the byte 0xe9"),
    "cut.jsonl.gz": (SAME["a.jsonl.gz"][:-20], "must be compressed whole, got EOFError"),
    "bad.jsonl.gz": (SAME["a.jsonl.gz"][:30] + b"\xff\xff" + SAME["a.jsonl.gz"][32:], "must be compressed whole, got"),
    "none.jsonl.gz": (LINES, "must be compressed whole, got BadGzipFile"),
    "cut.jsonl.zst": (SAME["a.jsonl.zst"][:-9], "must be a file that can be read, got OSError: Truncated"),
    "empty.jsonl.zst": (b"", "must be compressed whole, got EOFError"),
    "cut.parquet": (SAME["a.parquet"][:-9], "must be a file that can be read, got ArrowInvalid"),
    "cut.arrow": (SAME["file.arrow"][:-99], "must be a file that can be read, got "),
    "cut.json": (SAME["list.json"][:-2], "must be compressed whole, got EOFError"),
    "cut.jsonl": (LINES[:-5], "line 5 of "),
    "number.jsonl": (b"3\n", "row 1 of "),
    "deep.jsonl": (b"[" * 100_000, "line 1 of "),
    "deep.json": (b"[" * 100_000, "must be a file that can be read, got RecursionError"),
    "two.json": (b"[] []", "must hold one list, got more behind it"),
    "empty.jsonl": (b"", "must hold "),
    "empty.json": (b"[]", "must hold "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, said = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    for read, what in ((trained_on, "data: "), (evaluated_on, "texts: ")):
        with pytest.raises(InvalidArgumentError) as refused:
            read(tmp_path / name)
        text = str(refused.value)
        assert text.startswith(what)
        assert repr(str(tmp_path / name)) in text
        assert said in text
        assert "\n" not in text


def test_a_list_is_read_element_by_element(tmp_path: Path) -> None:
    """With pieces so small that every element begins in one and ends in another."""
    (tmp_path / "a.json").write_bytes(SAME["list.json"])
    for size in (1, 2, 7):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(reading, "PIECE", size)
            assert trained_on(tmp_path / "a.json") == TEXTS


@pytest.mark.parametrize("text", ["words of a river ", "no-spaces-at-all", "北方的小镇在河边", "emoji 👩‍👩‍👧 and é "])
def test_a_long_text_in_parts_has_the_tokens_of_the_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = named_tokenizer("tiny")
    monkeypatch.setattr("ropescale.recipes.data.tokenised.BATCH", 3_000)
    monkeypatch.setattr("ropescale.recipes.data.tokenised.OVERLAP", 400)
    long = "".join(f"{text}{number} " for number in range(20_000 // len(text)))
    ids, starts = _long(long, tokenizer)
    assert ids.tolist() == tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"]
    assert sorted(starts.tolist()) == starts.tolist()


MEMORY = """
import resource, sys
from pathlib import Path
from ropescale.evals.tokens import named_tokenizer
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.preparing import prepare

options = DataOptions(data=[sys.argv[1]], cache_dir=sys.argv[2])
tokenizer = named_tokenizer("tiny")
prepare(DataOptions(data=["sotu-sample"], cache_dir=sys.argv[2]), tokenizer, 128)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(options, tokenizer, 128)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_one_long_document_takes_little_memory(tmp_path: Path) -> None:
    """Encoded at once, six megabytes took more than a gigabyte."""
    text = "".join(f"the small river of town {number} walks under the stone window. " for number in range(100_000))
    (tmp_path / "long.txt").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "long.txt"), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 250  # MiB


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# as reasoning models have it: only the last reply shows that it was thought about
THINKING = CHATML.replace(
    "m['content'] +",
    "('<think></think>' if m['role'] == 'assistant' and loop.last else '') + m['content'] +",
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "which river?"},
    {"role": "assistant", "content": "the north one"},
    {"role": "user", "content": "and the town?"},
    {"role": "assistant", "content": "the small one"},
]


def chatting(template: str) -> Any:
    made = type(named_tokenizer("tiny")).from_pretrained(named_tokenizer("tiny").name_or_path)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "replies"),
    [
        (CHATML, ["the north one<|im_end|>", "the small one<|im_end|>"]),
        (THINKING, ["the north one<|im_end|>", "<think></think>the small one<|im_end|>"]),
    ],
)
def test_the_replies_of_a_conversation_are_found(template: str, replies: list[str]) -> None:
    text, places = written(TALK, chatting(template))
    assert [text[start:end] for start, end in places] == replies


def test_replies_alone_are_learnt(tmp_path: Path) -> None:
    """Of both spellings of conversations, also packed among texts; all of a text is learnt."""
    tokenizer = chatting(CHATML)
    other = [
        {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"] + "!"}
        for m in TALK
    ]
    (tmp_path / "chat.jsonl").write_text(
        json.dumps({"messages": TALK}) + "\n" + json.dumps({"conversations": other}) + "\n"
    )
    (tmp_path / "text.txt").write_text("a small town under the north window " * 40)
    options = DataOptions(
        data=[str(tmp_path / "chat.jsonl"), str(tmp_path / "text.txt")], cache_dir=str(tmp_path / "c"), held_out=0.0
    )
    made = prepare(options, tokenizer, 400)
    learnt = {0: "", 1: ""}
    for row in made.train:
        for token, kept in zip(row["input_ids"], row["learnt"], strict=True):
            learnt[kept] += tokenizer.decode([token])
    assert "<|im_end|>" in learnt[1]
    for words in ("the north one", "the small one!", "under the north window"):
        assert words in learnt[1], words
    for words in ("be brief", "which river?"):
        assert words in learnt[0], words
        assert words not in learnt[1], words


def test_conversations_need_a_template(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    options = DataOptions(data=[str(tmp_path / "chat.jsonl")], cache_dir=str(tmp_path / "c"))
    with pytest.raises(
        InvalidArgumentError, match=r"^data: conversations need a tokenizer with a chat template, got "
    ):
        prepare(options, named_tokenizer("tiny"), 40)
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user"}, {"content": "no role"}]}\n')
    with pytest.raises(
        InvalidArgumentError, match=r"^data: a message in row 1 of '.*' must have a role and a content"
    ):
        prepare(options, chatting(CHATML), 40)
