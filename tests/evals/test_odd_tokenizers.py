"""Odd tokenizers under odd texts: an evaluation's figures are those of a plain forward pass, or it says one sentence.

The reference encodes with the `tokenizers` library without its post-processor, puts before the text what the
post-processor was built with, and runs the model as Transformers has it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ropescale.errors import RopescaleError
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.passkey import ANSWER, ASKED, FILLER, TASK
from ropescale.evals.tasks.passkey.samples import PASSKEY
from ropescale.evals.tasks.perplexity.rows import position_rows, strided_rows
from ropescale.evals.texts import sample

SPECIAL = ["<unk>", "<s>", "</s>"]
LENGTH = 96  # tokens of a window


def _spaceless(letters: str, words: int, seed: int) -> str:
    drawn = random.Random(seed)
    lexicon = ["".join(drawn.choice(letters) for _ in range(drawn.randint(1, 4))) for _ in range(200)]
    return "".join(
        drawn.choice(lexicon) + ("\N{FULLWIDTH COMMA}" if drawn.random() < 0.1 else "") for _ in range(words)
    )


TEXTS = {
    "English": sample()[0].text[:20_000],
    "Chinese": _spaceless("".join(map(chr, range(0x4E00, 0x4E00 + 120))), 2500, 0),
    "Thai": _spaceless("".join(map(chr, range(0x0E01, 0x0E2F))) + "\u0e31\u0e34\u0e48", 2500, 1),
    "emoji": " ".join(
        _spaceless("\U0001f600\U0001f680\U0001f9d1\u200d\U0001f33e\U0001f44d\U0001f3fd\u2764\ufe0f", 12, seed)
        for seed in range(250)
    ),
}
CORPUS = [text[at : at + 400] for text in TEXTS.values() for at in range(0, 6000, 400)] + [
    TASK,
    FILLER,
    ASKED,
    ANSWER,
    " ".join(map(str, range(300))),
]


def _byte_level(split: bool) -> Tokenizer:
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, level]) if split else level
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral have it: a space before every text, bytes for what is unknown."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    undo = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(undo)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1100, special_tokens=[*SPECIAL, *fallback], max_token_length=6, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _metaspace(scheme: str, model: models.Model, trainer: trainers.Trainer) -> Tokenizer:
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    made.train_from_iterator(CORPUS, trainer)
    return made


def _unigram() -> Tokenizer:
    letters = sorted({letter for text in CORPUS for letter in text})
    trainer = trainers.UnigramTrainer(
        vocab_size=900, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=letters, show_progress=False
    )
    return _metaspace("always", models.Unigram(), trainer)


def _first() -> Tokenizer:
    """A space before the first word alone, and none before what follows a special token."""
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, max_token_length=6, show_progress=False)
    return _metaspace("first", models.BPE(unk_token="<unk>"), trainer)


def _pieces() -> Tokenizer:
    """Word pieces, which lose how many spaces there were."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False)
    )
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: _byte_level(split=False),
    "byte-level, digits apart": lambda: _byte_level(split=True),
    "sentencepiece": _sentencepiece,
    "unigram": _unigram,
    "metaspace first": _first,
    "word pieces": _pieces,
}
ADDED = {  # what stands before and after every text, and whether the tokenizer names it
    "nothing": ([], [], True),
    "beginning": ([1], [], True),
    "end": ([], [2], True),
    "both": ([1], [2], True),
    "both, unnamed": ([2, 1], [2], False),
}
# Emoji run together under these have tokens that end within a character, so that there may be nowhere to cut
MAY_REFUSE = {("byte-level", "emoji"), ("byte-level, digits apart", "emoji")}


@cache
def _trained(kind: str) -> str:
    text: str = KINDS[kind]().to_str()
    return text


def built(kind: str, added: str) -> PreTrainedTokenizerFast:
    before, after, named = ADDED[added]
    made = Tokenizer.from_str(_trained(kind))
    if before or after:
        made.post_processor = processors.TemplateProcessing(
            single=" ".join([*(SPECIAL[i] for i in before), "$A", *(SPECIAL[i] for i in after)]),
            special_tokens=[(name, made.token_to_id(name)) for name in SPECIAL],
        )
    names = {"bos_token": "<s>", "eos_token": "</s>"} if named else {"eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **names)


@cache
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def reference_ids(kind: str, added: str, text: str) -> list[int]:
    """What a prompt is: what the post-processor was built to put before it, and the text; nothing appended."""
    bare: list[int] = Tokenizer.from_str(_trained(kind)).encode(text, add_special_tokens=False).ids
    return [*ADDED[added][0], *bare]


@torch.no_grad()
def reference_loss(ids: list[int], scored: int) -> float:
    logits = model()(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    losses = -logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return float(losses[-scored:].sum())


def check_texts(kind: str, added: str, name: str) -> None:
    """Both kinds of perplexity: windows of the exact length, none lost, every span what a plain forward says."""
    tokenizer = built(kind, added)
    lm = RopescaleLM(model(), tokenizer, max_length=2 * LENGTH)
    texts = {"texts": _folder(name), "windows": 3, "tokenizer": tokenizer}
    position = position_rows(lengths=[LENGTH], bucket=16, **texts)["test"]
    strided = strided_rows(lengths=[LENGTH // 2, LENGTH], stride=0.5, tokens=2 * LENGTH, **texts)["test"]
    assert len(position) == 3
    assert {row["window"] for row in strided} == {0, 1, 2}
    before = len(ADDED[added][0])
    for row in position:
        assert len(reference_ids(kind, added, row["text"])) == LENGTH
        # the first token is not scored without another before it, nor what a text begins with on its own
        assert LENGTH - before - 1 >= sum(row["tokens"]) >= LENGTH - before - (16 if name == "emoji" else 3)
    for length in (LENGTH // 2, LENGTH):
        for window in range(3):
            rows = [row for row in strided if (row["length"], row["window"]) == (length, window)]
            assert all(len(reference_ids(kind, added, row["text"])) == length for row in rows)
            assert 2 * LENGTH >= sum(sum(row["tokens"]) for row in rows) >= 2 * LENGTH - length // 2 - 70
    rows = [*position, *strided]
    spans = [
        (row["text"][:cut], row["text"][cut:end], tokens)
        for row in rows
        for cut, end, tokens in zip(row["cuts"], row["ends"], row["tokens"], strict=True)
    ]
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=span[:2], idx=0) for span in spans]
    for (context, scored, tokens), (found, _) in zip(spans, lm.loglikelihood(requests, True), strict=True):
        ids = reference_ids(kind, added, context + scored)
        assert -found == pytest.approx(reference_loss(ids, tokens), rel=1e-4, abs=1e-3)


def check_passkeys(kind: str, added: str) -> None:
    """A prompt and its reply have exactly the length asked for, and the reply is what plain generation writes."""
    tokenizer = built(kind, added)
    lm = RopescaleLM(model(), tokenizer, max_length=512)
    least = PASSKEY.minimum(tokenizer)
    (row,) = PASSKEY.rows(tokenizer, length=least + 60, depth=0.5, samples=1, seed=0)
    text = f"{row['prompt']} {row['gen_prefix']}"
    ids = reference_ids(kind, added, text)
    assert len(ids) == least + 60 - PASSKEY.reply_tokens
    settings = {"until": ["\n"], "max_gen_toks": PASSKEY.reply_tokens, "do_sample": False}
    request = Instance(request_type="generate_until", doc={}, arguments=(text, settings), idx=0)
    (reply,) = lm.generate_until([request], True)
    written = model().generate(torch.tensor([ids]), max_new_tokens=PASSKEY.reply_tokens, do_sample=False)[
        0, len(ids) :
    ]
    assert reply == tokenizer.decode(written, skip_special_tokens=True).partition("\n")[0]


_FOLDERS: dict[str, str] = {}


def _folder(name: str) -> str:
    return _FOLDERS[name]


@pytest.fixture(scope="module", autouse=True)
def texts_on_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("texts")
    for name, text in TEXTS.items():
        path = folder / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        _FOLDERS[name] = str(path)


def right_or_one_sentence(kind: str, added: str, name: str) -> None:
    said = ""
    try:
        check_texts(kind, added, name)
    except RopescaleError as refused:
        if (kind, name) not in MAY_REFUSE:
            raise
        said = str(refused)
    assert not said or said.startswith("texts: a text must have token boundaries that survive decoding")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("kind", "added", "name"),
    [
        ("byte-level", "end", "Thai"),
        ("byte-level, digits apart", "both", "emoji"),
        ("sentencepiece", "both", "Chinese"),
        ("sentencepiece", "nothing", "emoji"),
        ("metaspace first", "both, unnamed", "English"),
        ("word pieces", "beginning", "English"),
    ],
)
def test_figures_are_those_of_a_plain_forward(kind: str, added: str, name: str) -> None:
    right_or_one_sentence(kind, added, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_a_plain_forward_everywhere(kind: str, added: str, name: str) -> None:
    right_or_one_sentence(kind, added, name)


@pytest.mark.parametrize("added", ["end", "both, unnamed"])
def test_what_a_tokenizer_appends_is_in_no_prompt(added: str) -> None:
    check_passkeys("byte-level", added)


@pytest.mark.slow
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_those_of_plain_generation_everywhere(kind: str, added: str) -> None:
    check_passkeys(kind, added)
