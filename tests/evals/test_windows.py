"""Windows of text for perplexity: exact lengths, cuts that survive encoding, every token scored once."""

import json
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.evals.tasks.windows import by_position, position_edges, strided, windows
from ropescale.evals.texts import Document, documents, sample

DOCUMENTS = sample()


def byte_level(**special) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, optionally one that adds a beginning-of-sequence token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([DOCUMENTS[0].text[:5000]], trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


TOKENIZERS = {
    "tiny": AutoTokenizer.from_pretrained(resolve("tiny"), model_max_length=10**9),
    "bytes": byte_level(),
    "begins": byte_level(bos_token="<s>"),
}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def encoded(tokenizer, text):
    return tokenizer(text)["input_ids"]


@every_tokenizer
@pytest.mark.parametrize("length", [64, 257])
def test_position_windows_have_exactly_the_asked_length_and_score_every_token_but_the_first(tokenizer, length):
    for cutter, _, first in windows(DOCUMENTS, tokenizer, length=length, limit=4):
        text = cutter.text(first, first + length - cutter.leading)
        whole = encoded(tokenizer, text)
        assert len(whole) == length
        edges = position_edges(length, 16, cutter.leading)
        spans = by_position(cutter, first, length, edges)
        assert len(spans) == len(edges) - 1
        read = cutter.leading + 1
        for span in spans:
            context = encoded(tokenizer, text[: span.cut])
            assert context == whole[:read]
            assert not text[: span.cut][-1].isspace()  # the harness would move it to what is scored
            read += span.tokens
            assert encoded(tokenizer, text[: span.end]) == whole[:read]
        assert read == length


@every_tokenizer
@pytest.mark.parametrize("stride", [16, 23, 64])
def test_strided_windows_are_exact_and_score_no_token_twice(tokenizer, stride):
    window, passage = 64, 500
    cutter, _, first = windows(DOCUMENTS, tokenizer, length=passage, limit=1)[0]
    pieces = strided(cutter, first, passage, window, stride)
    scored = []
    for number, (text, span) in enumerate(pieces):
        ids = encoded(tokenizer, text)
        assert len(ids) == window
        context = encoded(tokenizer, text[: span.cut])
        assert context == ids[: len(context)]
        assert len(ids) - len(context) == span.tokens
        assert number == 0 or span.tokens <= stride
        scored += ids[len(context) :]
    start = cutter.ids.index(scored[0])  # the first window may begin a token or a few late
    passage_ids = cutter.ids[first : first + passage]
    at = next(i for i in range(start, passage) if passage_ids[i : i + len(scored)] == scored)
    assert at <= 1 + 8
    assert len(scored) >= passage - cutter.leading - at - stride


def test_every_document_gives_one_window_before_any_gives_two():
    chosen = windows(DOCUMENTS[:3], TOKENIZERS["tiny"], length=128, limit=5)
    assert [number for _, number, _ in chosen] == [0, 0, 0, 1, 1]
    assert len({cutter.name for cutter, _, _ in chosen[:3]}) == 3


def test_windows_of_one_document_do_not_overlap():
    chosen = windows(DOCUMENTS[:1], TOKENIZERS["tiny"], length=128, limit=4)
    starts = [first for _, _, first in chosen]
    assert all(b - a >= 128 for a, b in pairwise(starts))


def test_texts_that_are_too_short_are_named():
    with pytest.raises(InvalidArgumentError) as caught:
        windows([Document(name="a", text="short")], TOKENIZERS["tiny"], length=128, limit=1)
    assert str(caught.value) == (
        "texts: at least one document must hold 128 tokens, got 1 that do not; "
        "ask for shorter lengths, or give longer texts"
    )


def test_edges_are_multiples_of_the_bucket_between_the_first_scored_position_and_the_length():
    assert position_edges(100, 32, 0) == [1, 32, 64, 96, 100]
    assert position_edges(96, 32, 0) == [1, 32, 64, 96]
    assert position_edges(96, 32, 1) == [2, 32, 64, 96]
    assert position_edges(16, 1, 0) == list(range(1, 17))


# where texts come from


def test_texts_are_read_from_files_lines_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("one")
    lines = [json.dumps({"text": "two"}), json.dumps({"text": "3", "name": "x"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    assert documents(str(tmp_path / "b.txt")) == [Document(name="b", text="one")]
    assert [document.name for document in documents(str(tmp_path))] == ["a-0", "x", "b"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{}\n", b"[1]\n", b"{broken\n", b'{"text": 1}\n'])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError) as caught:
        documents(str(path))
    said = str(caught.value)
    assert said.startswith("texts: ")
    assert repr(str(path)) in said
    assert said.endswith("; correct the file, or leave it out")


def test_texts_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InvalidArgumentError) as caught:
        documents(str(tmp_path / "nothing"))
    assert str(caught.value) == (
        f"texts: must be sample, speeches, or a path to files of texts, got {str(tmp_path / 'nothing')!r}; "
        f"check the path, or leave it out"
    )
