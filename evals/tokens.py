"""What tokenizers do at the start of a text; the one thing that every task has to get right alike."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def leading_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence id if the tokenizer adds it by itself, else nothing."""
    first = tokenizer("a")["input_ids"][0]
    return [first] if first == tokenizer.bos_token_id else []
