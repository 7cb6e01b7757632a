"""The passkey task of Mohtashami and Jaggi: a five-digit number hidden in filler, asked for at the end.

The wording, which the harness's task shares, and samples as token ids, which training reads; it knows tokenizers
and no models. The wording is the original's. Two of its traps are avoided: the filler is cut between tokens, not
between characters, so every sample is exactly as long as asked for; and the key always has five digits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.tokens import leading_tokens

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
ASKED = "\nWhat is the pass key?"
ANSWER = "The pass key is"  # what the reply continues
QUESTION = f"{ASKED} {ANSWER}"


@dataclass(frozen=True, kw_only=True)
class PasskeySample:
    """One prompt with its answer: the last `answer_length` ids are what a model has to produce."""

    input_ids: tuple[int, ...]  # prompt, then answer
    answer_length: int  # tokens
    key: str  # five digits
    depth: float  # share of the filler that stands before the needle


def passkey_sample(
    tokenizer: PreTrainedTokenizerBase, *, length: int, depth: float, rng: random.Random
) -> PasskeySample:
    """A sample of exactly `length` tokens, answer included, with a key drawn from `rng`.

    The tokenizer's beginning-of-sequence token leads if the tokenizer adds one by itself.

    Raises:
        InvalidArgumentError: the depth is not a share, or the task without filler is longer than `length`.
    """
    if not 0 <= depth <= 1:
        raise InvalidArgumentError(
            f"passkey: depth must be a share from 0 (first) to 1 (last), got {depth!r}; divide a percentage by 100"
        )
    key = str(rng.randint(10_000, 99_999))
    head, needle, question, tail = _pieces(tokenizer, key)
    # A tokenizer may merge the end of the question with the key: the answer starts where they first differ.
    asked = next((i for i, (a, b) in enumerate(zip(question, tail, strict=False)) if a != b), len(question))

    shortest = len(head) + len(needle) + len(tail)
    if length < shortest:
        raise InvalidArgumentError(
            f"passkey: length must hold the task without filler, got {length!r}; ask for at least {shortest} tokens"
        )
    before = round(depth * (length - shortest))
    after = length - shortest - before
    filler = _filler(tokenizer, max(before, after))
    return PasskeySample(
        input_ids=(*head, *filler[:before], *needle, *filler[:after], *tail),
        answer_length=len(tail) - asked,
        key=key,
        depth=depth,
    )


def passkey_samples(
    tokenizer: PreTrainedTokenizerBase, *, length: int, depths: Iterable[float], count: int, seed: int
) -> list[PasskeySample]:
    """`count` samples for each depth, depth by depth.

    Each depth has its own generator, so its samples do not depend on which other depths are asked for.
    """
    return [
        passkey_sample(tokenizer, length=length, depth=depth, rng=rng)
        for depth in depths
        for rng in [random.Random(f"passkey {seed} {length} {float(depth)!r}")]
        for _ in range(count)
    ]


def shortest_length(tokenizer: PreTrainedTokenizerBase, *, key: str = "55555") -> int:
    """Tokens of the whole task with that key and no filler: the least `length` it can be asked for."""
    head, needle, _, tail = _pieces(tokenizer, key)
    return len(head) + len(needle) + len(tail)


def _pieces(tokenizer: PreTrainedTokenizerBase, key: str) -> tuple[list[int], list[int], list[int], list[int]]:
    """Task, needle, question, and question with answer."""
    return (
        [*leading_tokens(tokenizer), *_ids(tokenizer, TASK)],
        _ids(tokenizer, NEEDLE.format(key=key)),
        _ids(tokenizer, QUESTION),
        _ids(tokenizer, f"{QUESTION} {key}"),
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def _filler(tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
    """The first `length` tokens of the filler, repeated without end."""
    repeats = 1
    while len(ids := _ids(tokenizer, " ".join([FILLER] * repeats))) < length:
        repeats *= 2
    return ids[:length]
