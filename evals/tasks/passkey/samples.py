"""The samples of `ropescale_passkey`, and the rule that its reply is scored by."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ropescale.evals.chat import Frame
from ropescale.evals.passkey import ANSWER, ASKED, FILLER, NEEDLE, TASK
from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted, scores
from ropescale.evals.tokens import Cuts, token_counts

SLACK = 8  # tokens after the needle below which the filling goes before it, so that it can be corrected there


class Passkey(PromptSampler):
    """A five-digit number in filler. The filler before the needle is one text for all samples of a length."""

    name = "passkey"
    reply_tokens = 10
    depths = (0.0, 0.25, 0.5, 0.75, 1.0)

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws a key; the filler is cut to leave the needle at its depth."""
        key = str(rng.randint(10_000, 99_999))
        filler = _filler(wanted.tokenizer)
        bare = _bare_tokens(wanted.tokenizer, wanted.frame)
        room = max(wanted.length - self.reply_tokens - wanted.frame.room - bare, 0)
        share = round((wanted.depth or 0.0) * room)
        fill_before = room - share < SLACK and bool(share)
        before = "" if fill_before else filler.cut(share)

        def prompt(units: int, filling: str) -> str:
            """Filler around the needle."""
            return _prompt(filling, key, "") if fill_before else _prompt(before, key, filling)

        return Sample(
            prompt=prompt,
            gen_prefix=ANSWER,
            target=[key],
            filling=lambda units: filler,
            size=lambda units: 0.0,
            most=0,
        )


PASSKEY = Passkey()


def dataset(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of `ropescale_passkey`; the README names the keys that the metadata may have."""
    return PASSKEY.dataset(metadata)


def results(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    """The scores of a reply; `exact` is the original's rule: the first integer in the reply is the key."""
    first = re.search(r"\d+", replies[0])
    return scores(doc, replies) | {"exact": float(first is not None and [first.group()] == doc["target"])}


def _prompt(before: str, key: str, after: str) -> str:
    return f"{TASK}{before}{NEEDLE.format(key=key)}{after}{ASKED}"


@cache
def _filler(tokenizer: PreTrainedTokenizerBase) -> Cuts:
    return Cuts(tokenizer, FILLER, repeated=True)


@cache
def _bare_tokens(tokenizer: PreTrainedTokenizerBase, frame: Frame) -> int:
    return token_counts(tokenizer, [frame.write(_prompt("", "55555", ""), ANSWER)])[0]
