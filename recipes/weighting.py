"""What each token counts in the loss of a run: more where its context is long, or where long context helped it.

Weights multiply what tokens cost, and the sum is divided by the number of tokens as ever, not by the sum of the
weights: with weights of one a loss is the plain one to the bit, and a step means the same however its rows are spread
over processes and accumulated batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ropescale.errors import InvalidArgumentError
from ropescale.evals.forward import resting, scores
from ropescale.recipes.loss import Weights, chunked_loss
from ropescale.recipes.options import RecipeOptions
from ropescale.recipes.parallel import Machines
from ropescale.recipes.schedules import Schedule
from ropescale.recipes.separation import bounds

EPS = 1e-8  # of a share of tokens, so that a bucket that nothing is in has a finite rarity
AT_ONCE = 4096  # rows whose tokens are counted at a time


class ByContext:
    """EXACT (arXiv:2605.10544): tokens with a long context weigh more, the more the rarer such tokens are.

    The effective context of a token is how many tokens of its own document stand before it in its row: a packed row's
    documents each begin anew. Buckets are powers of two, and from the bucket of `beginning` on a token weighs
    1 + alpha r / mean(r), where r = (q + eps)^-gamma and q is its bucket's share of the learnt tokens. The mean is
    over the tokens of these buckets, so that what is added is a fixed weight, alpha for each of their tokens, which
    rarity only distributes among them. The shares are those of all rows that there are to train on: known before the
    first step, and the same for a run that goes on.
    """

    def __init__(self, rows: Any, *, beginning: int, alpha: float, gamma: float) -> None:
        """`rows` are the data set that is trained on, with `position_ids` and perhaps `learnt`."""
        counts = _counts(rows)
        shares = counts / max(1, counts.sum())
        rarity = (shares + EPS) ** -gamma
        tail = np.arange(len(counts)) >= beginning.bit_length() - 1
        held = counts * tail
        mean = (rarity * held).sum() / held.sum() if held.sum() else 1.0
        self.table = torch.tensor(np.where(tail, 1 + alpha * rarity / mean, 1.0), dtype=torch.float32)

    def weights(self, model: nn.Module, ids: Tensor, documents: Tensor) -> Weights:
        """Of a batch of `ids` [batch, n] in `documents` [batch, n]; the model has no say."""
        context = torch.stack([torch.cat([torch.arange(e - b) for b, e in bounds(row)]) for row in documents])
        return Weights(tokens=self.table[_bucket(context)])


class ByContrast:
    """LongCE (arXiv:2410.23771): tokens weigh exp(loss with short context - loss with all of it), at most `most`.

    The short context of a token is the last tokens of its own document, between `length - step` and `length` of them,
    read as a row of its own: windows of `length` tokens, `step` apart, of which each scores its last `step`. Tokens
    that have no more context than that weigh one. No gradient goes through a weight.
    """

    def __init__(self, *, length: int, step: int, most: float) -> None:
        self.length, self.step, self.most = length, step, most

    def weights(self, model: nn.Module, ids: Tensor, documents: Tensor) -> Weights:
        """Of a batch of `ids` [batch, n] in `documents` [batch, n], by one more pass of the model as it is."""
        costs = torch.full(ids.shape, torch.nan)
        windows = [
            (number, first, min(first + self.length, stop))
            for number, row in enumerate(documents)
            for start, stop in bounds(row)
            for first in range(start + self.step, stop - self.length + self.step, self.step)
        ]
        at_once = max(1, ids.numel() // self.length)  # no more tokens than the step itself reads
        for begin in range(0, len(windows), at_once):
            self._score(model, ids, windows[begin : begin + at_once], costs)
        return Weights(tokens=costs, most=self.most)

    def _score(self, model: nn.Module, ids: Tensor, windows: list[tuple[int, int, int]], costs: Tensor) -> None:
        """What the last tokens of windows (row, first, stop) cost, put where they stand in `costs`."""
        inputs = torch.zeros(len(windows), self.length, dtype=torch.long, device=ids.device)
        for place, (row, first, stop) in enumerate(windows):  # what is left after the last token nothing sees
            inputs[place, : stop - first] = ids[row, first:stop]
        asked = torch.tensor([*self._asked(windows)])
        window, rows, tokens, places = asked.unbind(1)
        targets = ids[rows.to(ids.device), tokens.to(ids.device)].cpu()
        with resting(model):
            scored = scores(model, inputs, window, places - 1, torch.arange(len(asked)), targets)
        costs[rows, tokens] = -scored.logprobs

    def _asked(self, windows: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
        """Window, row, token and its place in the window, of each token that is scored."""
        for window, (row, first, stop) in enumerate(windows):
            for token in range(first + self.length - self.step, stop):
                yield window, row, token, token - first


Weighting = ByContext | ByContrast


def weighting(options: RecipeOptions, schedule: Schedule, rows: Any) -> Weighting | None:
    """What weighs the tokens of a run over these rows; None for the plain loss."""
    if options.loss == "exact":
        return ByContext(
            rows, beginning=_beginning(options, schedule), alpha=options.loss_alpha, gamma=options.loss_gamma
        )
    if options.loss == "longce":
        length, step = _short(options, schedule)
        return ByContrast(length=length, step=step, most=options.loss_cap)
    return None


def require_contexts(options: RecipeOptions, schedule: Schedule, machines: Machines) -> None:
    """Refuse contexts that no token of a row would be beyond, or that rows cut among processes would not have.

    Raises:
        InvalidArgumentError: names the option.
    """
    shards = machines.shards_of_a_row
    if options.loss == "longred" and machines.shares_weights:
        raise InvalidArgumentError(
            f"loss: longred reads layers apart from the whole model, which needs whole parameters, got "
            f"{'FSDP' if machines.fsdp else 'ZeRO-3'}; train it with DDP, or use loss plain"
        )
    if options.loss != "plain" and shards > 1:
        raise InvalidArgumentError(
            f"loss: what goes by the context of tokens needs whole rows, got {options.loss!r} and rows cut among "
            f"{shards} processes, which would each begin anew; use loss plain, or do not cut rows"
        )
    if options.loss == "exact" and (beginning := _beginning(options, schedule)) >= schedule.length:
        raise InvalidArgumentError(
            f"loss_from: must be below the length of a row ({schedule.length}), got {beginning}; leave it out for a "
            f"quarter of it"
        )
    if options.loss == "longred" and short_context(options, schedule) > schedule.original_length:
        raise InvalidArgumentError(
            f"loss_short: must be at most the original length ({schedule.original_length}) with longred, whose "
            f"teacher reads no further, got {options.loss_short}; leave it out"
        )
    if options.loss in ("longce", "longred"):
        length, step = _short(options, schedule)
        if length >= schedule.length:
            raise InvalidArgumentError(
                f"loss_short: must be below the length of a row ({schedule.length}), got {length}; give "
                f"{max(2, schedule.length // 4)}"
            )
        if options.loss == "longce" and step >= length:
            raise InvalidArgumentError(
                f"loss_step: must be below the short context ({length}), got {step}; leave it out for a quarter of it"
            )


def require_weighable(model: nn.Module, loss: str) -> None:
    """Refuse a model that keeps Transformers' own loss, which weighs no tokens.

    Raises:
        InvalidArgumentError: names its class.
    """
    with chunked_loss(model) as chunked:
        if not chunked:
            raise InvalidArgumentError(
                f"loss: {loss} needs a model whose head runs apart from its decoder, without a loss for the routing "
                f"of experts, got {type(model).__name__}; use loss plain"
            )


def _beginning(options: RecipeOptions, schedule: Schedule) -> int:
    """Tokens of context from which it is long; 1,000 for rows of 4,000 as published."""
    return options.loss_from or max(1, schedule.length // 4)


def short_context(options: RecipeOptions, schedule: Schedule) -> int:
    """Tokens of short context; 4,096 for a model of 4,096 as published."""
    return options.loss_short or schedule.original_length


def _short(options: RecipeOptions, schedule: Schedule) -> tuple[int, int]:
    """Tokens of short context, and between its windows; 4,096 and 1,024 for a model of 4,096 as published."""
    length = short_context(options, schedule)
    return length, options.loss_step or max(1, length // 4)


def _counts(rows: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How many learnt tokens each bucket of effective context has in rows."""
    counts = np.zeros(64)
    columns = ["position_ids", *({"learnt"} & {*rows.column_names})]
    for batch in rows.select_columns(columns).with_format("numpy").iter(AT_ONCE):
        context = torch.as_tensor(np.stack(batch["position_ids"]).astype(np.int64))
        learnt = context > 0  # nothing before it tells the first token of a document
        if "learnt" in batch:
            learnt &= torch.as_tensor(np.stack(batch["learnt"]).astype(bool))
        counts += _bucket(context[learnt]).bincount(minlength=len(counts)).numpy()
    return counts


def _bucket(context: Tensor) -> Tensor:
    """The power of two at or below each number of tokens; that of none is 0, as of one."""
    return torch.frexp(context.clamp(min=1).double()).exponent.long() - 1
