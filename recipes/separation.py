"""Documents of one row kept apart in a live model: each is read as in a row of its own.

Attention gets the family's own masks (causal, sliding windows, chunks), counted from the beginning of each document
and closed between documents: Transformers asks the registry of mask functions for every one of them, whatever the
family, and that is where this stands. So no family has to read boundaries from positions, and positions may jump.
Layers that carry a state from token to token (a recurrence, a convolution) have no mask; they are called once for each
document. Whether that suffices for a model is not known here: `proof.py` tries it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ropescale.errors import RopescaleError
from ropescale.families.parts import text_of
from ropescale.wrappers import bare

Mask = Callable[..., Any]  # (batch, head, query, key) -> whether that query sees that key, on indices that broadcast


class Separation:
    """What keeps documents apart in a model while it reads rows of several.

    Masks are those of the whole process while `keeping` lasts, so one model at a time may train in a process.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = bare(model)
        self._documents: Tensor | None = None  # [batch, n], which document each token is of
        self._bounds: list[list[tuple[int, int]]] = []  # of each row, where documents begin and end
        self.stateful = [module for module in self._model.modules() if carries_state(module)]
        for module in self.stateful:
            module.__dict__["forward"] = self._by_document(module.forward)

    @property
    def attention(self) -> str:
        """The name of the attention that the model computes."""
        name: str = text_of(self._model.config)._attn_implementation
        return name

    def undo(self) -> None:
        """Leave the model as it was."""
        for module in self.stateful:
            del module.__dict__["forward"]

    @contextmanager
    def keeping(self, documents: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Within the block, forward and backward, the model reads these documents [batch, n] apart.

        Yields what it is to be given besides: a mask of ones, without which Transformers takes every jump of
        positions for the beginning of a document. Flash attention is given nothing: it reads boundaries from
        positions.
        """
        if documents is None:
            yield {}
            return
        registry = ALL_MASK_ATTENTION_FUNCTIONS
        before = dict(registry._local_mapping)
        self._documents = documents
        self._bounds = [bounds(row) for row in documents]
        slots = torch.cat([torch.arange(stop - start) for row in self._bounds for start, stop in row])
        slots = slots.view_as(documents).to(documents.device)
        for name in list(registry):
            if "flash" not in name:
                registry[name] = _apart(registry[name], documents, slots)
        try:
            yield {} if "flash" in self.attention else {"attention_mask": torch.ones_like(documents)}
        finally:
            registry._local_mapping = before
            self._documents = None

    def _by_document(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward, carried out for each document as if it were alone."""

        def apart(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            documents = self._documents
            if documents is None or hidden_states.shape[1] != documents.shape[1]:
                return forward(hidden_states, *args, **kwargs)
            _require_whole(len(hidden_states), documents)
            rows = []
            for number, row in enumerate(self._bounds):
                parts = []
                for start, stop in row:
                    part = _Part(documents, number, start, stop)
                    given = {name: part.of(value) for name, value in kwargs.items()}
                    parts.append(forward(part.of(hidden_states), *map(part.of, args), **given))
                rows.append(_joined(parts, dim=1))
            return _joined(rows, dim=0)

        return apart


def carries_state(module: nn.Module) -> bool:
    """Whether a layer passes something from token to token otherwise than by attention.

    What does has a convolution over tokens of its own, but for Lightning Attention (arXiv:2501.08313), whose state is
    all it has.
    """
    if type(module).__name__.endswith("LightningAttention"):
        return True
    return any(isinstance(child, nn.Conv1d) for child in module.children())


def bounds(documents: Tensor) -> list[tuple[int, int]]:
    """Where the documents of a row [n] begin and end, tokens."""
    sizes = torch.unique_consecutive(documents, return_counts=True)[1]
    stops = sizes.cumsum(0).tolist()
    return list(zip([0, *stops], stops, strict=False))


def _apart(own: Callable[..., Any], documents: Tensor, slots: Tensor) -> Callable[..., Any]:
    """A mask function of Transformers' registry that closes what is between documents.

    `slots` [batch, n] is where each token stands in its document: what windows and chunks are counted in.
    """

    def made(*, mask_function: Mask, **named: Any) -> Any:
        if named.get("kv_length") != documents.shape[1]:  # of other tokens than those of the rows
            return own(mask_function=mask_function, **named)
        _require_whole(named.get("batch_size"), documents)
        place = named.get("device", documents.device)  # of the model's beginning, which may be spread over several
        number, slot = documents.to(place), slots.to(place)

        def within(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen: Tensor = mask_function(batch, head, slot[batch, query], slot[batch, key])
            return seen & (number[batch, query] == number[batch, key])

        return own(mask_function=within, **{**named, "allow_is_causal_skip": False})

    return made


def _require_whole(rows: int | None, documents: Tensor) -> None:
    """Refuse a batch that was split on its way into the model, where nothing says which rows these are."""
    if rows != len(documents):
        raise RopescaleError(
            f"rows: a batch must reach the model whole ({len(documents)} rows), got {rows}; start one process for "
            f"each device with accelerate launch, or give packing=False"
        )


class _Part:
    """One document of a batch of rows, cut out of whatever has a batch and tokens."""

    def __init__(self, documents: Tensor, row: int, start: int, stop: int) -> None:
        self._shape = documents.shape
        self._row, self._tokens = row, slice(start, stop)

    def of(self, value: Any) -> Any:
        """The same value for this document alone."""
        if isinstance(value, tuple | list):
            return type(value)(self.of(element) for element in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] != self._shape[1]:
            return value
        row = self._row if len(value) == self._shape[0] else 0  # positions may be given once for all rows
        return value[row : row + 1, self._tokens]


def _joined(parts: list[Any], dim: int) -> Any:
    """What a layer gave for each of several documents, as it would for them together."""
    first = parts[0]
    if isinstance(first, tuple):
        # what is no sequence (a layer's last state) is that of the last document
        return tuple(_joined([part[i] for part in parts], dim) for i in range(len(first)))
    if isinstance(first, Tensor) and all(
        tensor.shape[:dim] + tensor.shape[dim + 1 :] == first.shape[:dim] + first.shape[dim + 1 :] for tensor in parts
    ):
        return torch.cat(parts, dim)
    return parts[-1]
