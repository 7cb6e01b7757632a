"""Passkey documents for training, endless and by number, with keys drawn apart from those of evaluations."""

from __future__ import annotations

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError
from ropescale.evals.passkey import passkey_sample, shortest_length


def passkey_documents(
    tokenizer: PreTrainedTokenizerBase, *, shortest: int, longest: int, seed: int, end: list[int]
) -> Iterator[list[int]]:
    """Samples without end, at every depth: every other one of exactly `longest` tokens, the rest shorter.

    The sizes, `end` included, are between `shortest` and `longest`. A document is a function of its number and the
    seed. Evaluations name their generators otherwise (`passkey_samples`), so that no prompt is trained on.

    Raises:
        InvalidArgumentError: the task without filler is longer than `longest`.
    """
    needed = shortest_length(tokenizer) + len(end)
    if longest < needed:
        raise InvalidArgumentError(
            f"data: 'passkey' needs rows of at least {needed} tokens with this tokenizer, got {longest}; leave it out"
        )
    shortest = max(shortest, needed)
    number = 0
    while True:
        rng = random.Random(f"training passkey {seed} {number}")
        length = rng.randint(shortest, longest) if number % 2 else longest
        made = passkey_sample(tokenizer, length=length - len(end), depth=rng.random(), rng=rng)
        yield [*made.input_ids, *end]
        number += 1
