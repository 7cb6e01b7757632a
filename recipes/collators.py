"""Collators for any loop that takes batches from a DataLoader: rows of tokens become what a schedule makes of them.

They reuse what `ropescale train` runs: `Schedule` decides where tokens stand, `Separation` and `MixedRotation` how a
model reads documents of one row. That loop tells its model so around each step; here a batch carries it, and the
model takes it off again on the way into its forward pass, so that no other loop has to know.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.checks import require_at_least
from ropescale.errors import InvalidArgumentError
from ropescale.injection.patch import patch_of
from ropescale.recipes.loss import IGNORED
from ropescale.recipes.rotation import MixedRotation
from ropescale.recipes.schedules import DOCUMENTS, SHORT, Schedule, stack
from ropescale.recipes.separation import Separation
from ropescale.wrappers import bare

CARRIED = (DOCUMENTS, SHORT)  # keys of a batch that are for the model's reading, and not for its forward pass


class PoseCollator:
    """Rows of tokens at skip-wise positions: PoSE (arXiv:2309.10400), for any DataLoader.

    Each document of a row is cut into chunks, and their positions are moved apart, so that together they cover every
    distance up to the target length. Gives `input_ids`, `position_ids`, `labels` and an `attention_mask` of ones, all
    [rows, tokens]: without the mask Transformers takes every jump of positions for the beginning of another document.
    Shorter rows of a batch are filled up on the right by tokens that are not learnt, which nothing before them sees.

    A row has `input_ids`; `labels` where not all of it is learnt; and where it holds several documents `seq_lengths`
    (tokens of each, as TRL packs them) or `documents` (which of them each token is of). Such rows need the `model`,
    which then reads documents apart.

    Draws come from Python's `random`, which Trainer seeds, keeps in its checkpoints, and seeds in each worker. A run
    that must draw the same when it goes on gives `ropescale.recipes.schedules.Draws` in the place of its rows.

    Arguments:
        target_length: tokens; positions stay below it.
        chunks: of a document.
        length: tokens that are kept of a longer row, where text between chunks is to be skipped as well; without it
            rows stay as they are.
        model: patched or not, under PEFT or not; needed for rows of several documents alone.

    Example:
        >>> import random
        >>> from ropescale.recipes import PoseCollator
        >>> random.seed(0)
        >>> batch = PoseCollator(target_length=32)([{"input_ids": [5, 6, 7, 8, 9, 10]}])
        >>> batch["position_ids"]
        tensor([[ 0, 12, 13, 14, 15, 16]])
        >>> batch["attention_mask"]
        tensor([[1, 1, 1, 1, 1, 1]])

    Raises:
        InvalidArgumentError: a number that breaks its rule; on a batch, a row that is longer than the target length,
            or one of several documents without a model.
    """

    def __init__(
        self, *, target_length: int, chunks: int = 2, length: int | None = None, model: nn.Module | None = None
    ) -> None:
        require_at_least("target_length:", target_length, 2)
        require_at_least("chunks:", chunks, 2)
        if length is not None:
            require_at_least("length:", length, 2)
            if length >= target_length:
                raise InvalidArgumentError(
                    f"length: must be below the target length ({target_length}), got {length}; leave it out"
                )
        self.target_length, self.chunks, self.length = target_length, chunks, length
        self._apart = model is not None  # the model is not kept: workers of a DataLoader get a copy of what is
        if model is not None:
            BatchReader(model).take_off()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return batch([self._drawn(row) for row in rows])

    def _drawn(self, row: Mapping[str, Any]) -> dict[str, Tensor]:
        given = of_documents(row)
        if not self._apart and bool((given[DOCUMENTS] > 0).any()):
            raise InvalidArgumentError(
                "rows: one of several documents needs a model that reads them apart, got no model; give "
                "model=MODEL, or lay one document into a row"
            )
        size = len(given["input_ids"])
        skipping = self.length is not None and size > self.length
        kept = self.length if skipping and self.length is not None else size
        if kept > self.target_length:
            raise InvalidArgumentError(
                f"rows: must be at most the target length ({self.target_length}), got one of {size} tokens; cut it, "
                f"or give length=TOKENS to skip what is between its chunks"
            )
        schedule = Schedule(
            name="pose",
            original_length=kept,
            target_length=self.target_length,
            length=kept,
            chunks=self.chunks,
            content="skip" if skipping else "contiguous",
        )
        return drawn(schedule, given)


class MixedWindowCollator:
    """Rows of documents, of which short ones are read with the rotation of pretraining (LongRoPE2, arXiv:2502.20082).

    Documents that fit into the original length keep it; longer ones are read with the method that the model was
    patched with. Gives `input_ids`, `position_ids`, `labels` and an `attention_mask` of ones, [rows, tokens], and
    `short` and `documents` besides, which the model takes off when it reads the batch. Rows are as in `PoseCollator`.

    Arguments:
        model: patched, under PEFT or not.

    Example:
        >>> import ropescale
        >>> from ropescale.recipes import MixedWindowCollator
        >>> model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        >>> collator = MixedWindowCollator(model)
        >>> batch = collator([{"input_ids": list(range(3, 203)), "seq_lengths": [150, 50]}])
        >>> batch["short"].sum()  # 128 tokens is what it was pretrained for
        tensor(50)
        >>> bool(model(**batch).loss > 0)
        True

    Raises:
        InvalidArgumentError: a model that is not patched, or by a method that acts in attention and does not leave
            short documents alone.
    """

    def __init__(self, model: nn.Module) -> None:
        standing = patch_of(model)
        if standing is None:
            raise InvalidArgumentError(
                f"model: must be patched for mixed windows, got a {type(bare(model)).__name__} that is not; call "
                f"ropescale.patch(model, method, factor=...) first"
            )
        self.original_length = standing.record.original_length
        self.target_length = standing.record.target_length
        BatchReader(model, mixed=True).take_off()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        schedule = Schedule(
            name="mixed_window",
            original_length=self.original_length,
            target_length=self.target_length,
            length=self.target_length,
        )
        return batch([drawn(schedule, of_documents(row)) for row in rows])


class BatchReader:
    """What has a model take off what a batch carries, and read its documents so.

    A batch is in force until the model reads the next one: layers that are checkpointed run again in the backward
    pass.

    Raises:
        InvalidArgumentError: a model with flash attention, which reads the beginnings of documents from positions.
    """

    def __init__(self, model: nn.Module, *, mixed: bool = False) -> None:
        self._model: Any = bare(model)
        self._separation = Separation(model)
        if "flash" in self._separation.attention:
            raise InvalidArgumentError(
                f"model: must have an attention with masks for rows of several documents, got "
                f"{self._separation.attention!r}; load it with `attn_implementation='sdpa'`"
            )
        self._mixed = MixedRotation(model) if mixed else None
        self._force = ExitStack()
        self._within = False

    def take_off(self) -> None:
        """From here on."""
        # PEFT calls a model's forward by itself, and TRL's own loss the decoder below it
        self._model.forward = self._taking_off(self._model.forward)
        self._model.base_model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _taking_off(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def taking_off(*args: Any, **inputs: Any) -> Any:
            inputs = self._read(inputs)
            self._within = True
            try:
                return forward(*args, **inputs)
            finally:
                self._within = False

        return taking_off

    def _before(self, decoder: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, inputs if self._within else self._read(inputs)

    def _read(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs without what is carried, which is in force from here on."""
        self._force.close()
        documents, short = (inputs.get(name) for name in CARRIED)
        left = {name: value for name, value in inputs.items() if name not in CARRIED}
        given = self._force.enter_context(self._separation.keeping(documents))
        if self._mixed is not None and short is not None:
            self._force.enter_context(self._mixed.keeping(short))
        return left | given


def of_documents(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a schedule reads it: `input_ids`, `documents`, `position_ids` from 0 in each, and what is `learnt`.

    Raises:
        InvalidArgumentError: a row without tokens, or whose documents are not as long as it is.
    """
    ids = torch.as_tensor(row.get("input_ids", ()), dtype=torch.long)
    if ids.dim() != 1 or not len(ids):
        raise InvalidArgumentError(
            f"rows: must have input_ids, a list of token ids, got {sorted(row)}; tokenise the texts first"
        )
    if "seq_lengths" in row:
        sizes = torch.as_tensor(row["seq_lengths"])
        documents = torch.arange(len(sizes)).repeat_interleave(sizes)
    else:
        documents = torch.as_tensor(row.get(DOCUMENTS, torch.zeros_like(ids)), dtype=torch.long)
    if len(documents) != len(ids):
        raise InvalidArgumentError(
            f"rows: documents must be as long as the row in all ({len(ids)} tokens), got {len(documents)}; correct "
            f"seq_lengths or documents"
        )
    sizes = torch.unique_consecutive(documents, return_counts=True)[1]
    documents = torch.arange(len(sizes)).repeat_interleave(sizes)
    positions = torch.cat([torch.arange(size) for size in sizes.tolist()])
    given = {"input_ids": ids, "position_ids": positions, DOCUMENTS: documents}
    if "labels" in row:
        given["learnt"] = torch.as_tensor(row["labels"]) != IGNORED
    return given


def drawn(schedule: Schedule, row: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a schedule makes of a row, by draws from Python's own generator."""
    return schedule.drawn(dict(row), random.Random(random.getrandbits(64)))


def batch(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows filled up on the right to one length, and stacked as a schedule does it; always with a mask of ones.

    What fills a row up belongs to its last document, which it follows, and has no labels.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    stacked = stack([{name: _filled(name, values, longest) for name, values in row.items()} for row in rows])
    return stacked | {"attention_mask": torch.ones_like(stacked["input_ids"])}


def _filled(name: str, values: Tensor, length: int) -> Tensor:
    """[length]: the same again at the end, or what is not learnt."""
    filling = values.new_tensor(IGNORED) if name == "labels" else values[-1]
    return torch.cat([values, filling.repeat(length - len(values))])
