"""A Transformers tokenizer in the words of llama.cpp: byte-level BPE, and BPE over SentencePiece's alphabet."""

import json
from typing import Any

import gguf

from ropescale.errors import ExportError

# What splits text before BPE, as llama.cpp names it; the regular expressions are those of the published tokenizers
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"{CONTRACTIONS}|\p{{N}}{{1,3}}{REST}": "llama-bpe",
    rf"{CONTRACTIONS}|\p{{N}}{REST}": "qwen2",
}


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, vocabulary: int) -> None:
    """Writes the tokenizer.

    Arguments:
        writer: of the file.
        tokenizer: of Transformers.
        vocabulary: rows of the model's embedding, which may be more than the tokenizer knows.

    Raises:
        ExportError: a tokenizer that llama.cpp does not have.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(type(tokenizer).__name__)
    stated = json.loads(backend.to_str())
    model = stated["model"]
    if model.get("type") != "BPE":
        raise _refusal(f"a model of type {model.get('type')}")
    size = 1 + max(max(model["vocab"].values()), *(token["id"] for token in stated["added_tokens"]), -1)
    if size > vocabulary:
        raise ExportError(
            f"tokenizer: must fit the model's embedding of {vocabulary} rows, got ids up to {size - 1}; give the "
            f"model's own tokenizer"
        )
    if _is_sentencepiece(stated):
        _add_sentencepiece(writer, stated, vocabulary)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(stated))
        tokens, types = _tokens(stated, vocabulary)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    for add, name in (
        (writer.add_bos_token_id, "bos_token_id"),
        (writer.add_eos_token_id, "eos_token_id"),
        (writer.add_unk_token_id, "unk_token_id"),
        (writer.add_pad_token_id, "pad_token_id"),
    ):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            add(value)
    first, last = (tokenizer("a").input_ids[place] for place in (0, -1))
    writer.add_add_bos_token(first == tokenizer.bos_token_id)
    writer.add_add_eos_token(last == tokenizer.eos_token_id)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(tokenizer.chat_template)


def _refusal(got: str) -> ExportError:
    return ExportError(
        f"tokenizer: byte-level BPE, or BPE over SentencePiece's alphabet, is what is written to GGUF, got {got}; use "
        f"llama.cpp's own converter and then patch_gguf"
    )


def _tokens(stated: dict[str, Any], vocabulary: int) -> tuple[list[str], list[int]]:
    """The text and the type of every id; ids that the tokenizer does not know are unused."""
    tokens = [f"[PAD{place}]" for place in range(vocabulary)]
    types = [gguf.TokenType.UNUSED] * vocabulary
    for text, place in stated["model"]["vocab"].items():
        tokens[place], types[place] = text, gguf.TokenType.NORMAL
    for token in stated["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    return tokens, [int(kind) for kind in types]


def _split(stated: dict[str, Any]) -> str:
    """What llama.cpp calls the splitting of text that comes before BPE.

    Raises:
        ExportError: one that has no name here.
    """
    before = stated["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    match kinds:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0]["individual_digits"] and steps[1].get("use_regex", True):
            return "smollm"
        case ["Split", "ByteLevel"] if (pattern := steps[0]["pattern"].get("Regex")) in SPLITS:
            return SPLITS[pattern]
    raise _refusal(f"text split by {', '.join(str(kind) for kind in kinds)}")


def _is_sentencepiece(stated: dict[str, Any]) -> bool:
    """Whether spaces are written as in SentencePiece, and unknown characters as bytes."""
    return bool(stated["model"].get("byte_fallback")) and "<0x00>" in stated["model"]["vocab"]


def _add_sentencepiece(writer: gguf.GGUFWriter, stated: dict[str, Any], vocabulary: int) -> None:
    """Writes BPE over SentencePiece's alphabet: llama.cpp merges the pair whose result scores highest."""
    tokens, types = _tokens(stated, vocabulary)
    scores = [0.0] * vocabulary
    place = stated["model"]["vocab"]
    for rank, merge in enumerate(stated["model"]["merges"]):
        made = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        if place[made] and not scores[place[made]]:
            scores[place[made]] = -float(rank + 1)
    for value in range(256):
        types[place[f"<0x{value:02X}>"]] = int(gguf.TokenType.BYTE)
    unknown = stated["model"].get("unk_token")
    if unknown in place:
        types[place[unknown]] = int(gguf.TokenType.UNKNOWN)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    prefix = json.dumps(stated.get("normalizer") or {}) + json.dumps(stated.get("pre_tokenizer") or {})
    writer.add_add_space_prefix("Prepend" in prefix or '"always"' in prefix or '"first"' in prefix)
