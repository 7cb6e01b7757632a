"""Key tokens of LongPPL: those that a long context makes much likelier, and likely (arXiv 2410.23771).

A token is key if its loss falls by more than `GAIN` nats when the evaluator reads the whole window instead of a
short context, to less than `LIKELY` nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

import ropescale
from ropescale.checkpoint import load_language_model
from ropescale.errors import InvalidArgumentError
from ropescale.evals.engine import token_losses
from ropescale.evals.tokens import named_tokenizer

GAIN = 2.0  # nats, the paper's alpha
LIKELY = 2.0  # nats, the paper's beta


class Evaluator:
    """The model that says which tokens are key; loaded for as long as the `with` block lasts."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, length: int):
        self.name = name
        self._length = length
        if named_tokenizer(name).get_vocab() != tokenizer.get_vocab():
            raise InvalidArgumentError(
                f"longppl: the evaluator must share the model's tokenizer, got {name!r} which does not; "
                f"name a model of the same vocabulary"
            )

    def __enter__(self) -> Evaluator:
        self._model = load_language_model(self.name, dtype=torch.float32).eval()
        if torch.cuda.is_available():
            self._model.to("cuda")
        reach = self._model.config.get_text_config().max_position_embeddings
        if ropescale.record(self._model) is None and reach < self._length:
            ropescale.patch(self._model, "yarn", target_length=self._length)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._model

    def key_tokens(self, ids: Sequence[int], short: int) -> list[int]:
        """Positions of the key tokens among `ids`; `short` is the tokens that the short context has at least."""
        return key_tokens(self._model, ids, short)


def short_context(length: int) -> int:
    """Tokens of the short context for windows of `length` tokens, where nobody says it."""
    return min(4096, length // 4)


def key_tokens(model: nn.Module, ids: Sequence[int], short: int) -> list[int]:
    """Positions of the tokens among `ids` that are key to a model.

    As in the authors' code (4,096 and 1,024), a window moves by a quarter of `short` and scores the tokens that it
    moved over: each sees between `short` tokens and a quarter more.
    """
    row = torch.tensor([list(ids)])
    full = token_losses(model, row)[0]  # [n - 1]: full[i] is the loss of token i + 1
    step = max(1, short // 4)
    keys = []
    for begin in range(short, len(ids), step):
        end = min(begin + step, len(ids))
        near = token_losses(model, row[:, begin - short : end], first=short)[0]  # of begin ... end - 1
        far = full[begin - 1 : end - 1]
        keys += [begin + int(i) for i in torch.nonzero((near - far > GAIN) & (far < LIKELY)).flatten()]
    return keys
