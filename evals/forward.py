"""Forward passes of causal language models with as little work and memory as an exact answer takes.

Hidden states are computed once, and the head runs on the places asked for alone, in chunks: logits of the whole
vocabulary for a whole sequence never exist. Beside it stands what may be shared between sequences with which models.
This room knows models, and neither tokenizers nor requests.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import ModelOutput

from ropescale import wrappers
from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.families import today
from ropescale.families.parts import parts_of
from ropescale.injection.places import cache_keyword

CHUNK_ELEMENTS = 2**24  # logits that exist at a time: 64 MiB in float32
PREFILL_TOKENS = 512  # of a step over a cache: the mask of a step is this by the tokens so far

# What a forward pass may raise when its decoder is not where the split expects it
UNSPLITTABLE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def token_losses(model: nn.Module, ids: Tensor, first: int = 1) -> Tensor:
    """What each token costs given all tokens before it, from one forward pass without a cache.

    Arguments:
        model: a causal language model; it is not changed.
        ids: [batch, n] int64 token ids, rows of equal length without padding.
        first: index of the first token to score, at least 1.

    Returns:
        [batch, n - first] float32 on the CPU: negative log-likelihoods in nats of tokens `first` to n - 1.

    Raises:
        InvalidArgumentError: there is no token to score.
        RopescaleError: the model returned something that is not a number.
    """
    if ids.dim() != 2 or not 1 <= first < ids.shape[1]:
        raise InvalidArgumentError(
            f"token_losses: first must be at least 1 and below the number of tokens, got {first!r} for ids of shape "
            f"{tuple(ids.shape)}; give [batch, n] ids with n of at least 2"
        )
    batch, n = ids.shape
    rows = torch.arange(batch).repeat_interleave(n - first)
    positions = torch.arange(first - 1, n - 1).repeat(batch)
    with resting(model):
        scored = scores(model, ids[:, :-1], rows, positions, torch.arange(len(rows)), ids[:, first:].flatten().cpu())
    losses = -scored.logprobs.reshape(batch, n - first)
    if not losses.isfinite().all():
        row = int((~losses.isfinite()).any(1).nonzero()[0])
        raise RopescaleError(not_a_number(f"row {row} of {n:,} tokens", dtype_of(model)))
    return losses


def head_way(model: nn.Module) -> str:
    """How logits are computed for a model: "chunked" (head on scored positions alone) or "full".

    It is tried on a few tokens, once per model, and compared with the model's own logits.
    """
    if model not in _HEAD_WAYS:
        _HEAD_WAYS[model] = "chunked" if _splits_exactly(model) else "full"
    return _HEAD_WAYS[model]


_HEAD_WAYS: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the head says of pairs of a position and a target."""

    logprobs: Tensor  # [pairs] float32 on the CPU, nats
    greedy: Tensor  # [pairs] bool on the CPU: the target is the likeliest token


@torch.no_grad()
def scores(
    model: nn.Module, inputs: Tensor, rows: Tensor, positions: Tensor, pairs: Tensor, targets: Tensor
) -> Scores:
    """Log-likelihoods of targets from one forward pass over [batch, n] inputs.

    `rows` and `positions` are the places that the head is run on; `pairs` [pairs] says which of these predicts each
    of the `targets` [pairs].
    """
    logprobs, greedy = torch.empty(len(pairs)), torch.empty(len(pairs), dtype=torch.bool)
    order = torch.argsort(pairs, stable=True)
    sorted_pairs = pairs[order].contiguous()
    with closing(_logits(model, inputs, rows, positions)) as chunks:  # also puts the model together after an error
        for begin, logits in chunks:
            first, last = torch.searchsorted(sorted_pairs, torch.tensor([begin, begin + len(logits)])).tolist()
            wanted = order[first:last]
            row = (pairs[wanted] - begin).to(logits.device)
            target = targets[wanted].to(logits.device)
            greedy[wanted] = (logits.argmax(-1)[row] == target).cpu()
            # torch's own, as in the harness, so that figures agree to its rounding
            logprobs[wanted] = logits.log_softmax(-1)[row, target].cpu()
    return Scores(logprobs=logprobs, greedy=greedy)


def depends_on_length(config: Any) -> bool:
    """Whether a token's rotation depends on the length of its sequence, in some layer."""
    parts = [part.config for part in parts_of(config.get_text_config(decoder=True))]
    return any(getattr(part, "rope_parameters", None) and today.depends_on_length(part) for part in parts)


def reuses_exactly(model: PreTrainedModel, longest: int) -> bool:
    """Whether the cached keys and values of a prompt hold for every other one that begins alike.

    Not where rotations depend on the length, where sequences (`longest` tokens at most) outgrow a sliding window, and
    for layers that keep something else than keys and values.
    """
    return pads_exactly(model) and all(
        layer.sliding_window > longest
        for layer in _cache_layers(model)
        if isinstance(layer, DynamicSlidingWindowLayer)
    )


def pads_exactly(model: PreTrainedModel) -> bool:
    """Whether a padded row of a batch is answered as if it were alone: attention alone, rotations by position."""
    return (
        not depends_on_length(model.config)
        and bool(model._supports_default_dynamic_cache())
        and getattr(model.generation_config, "cache_implementation", None) is None
        and not getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in _cache_layers(model))
    )


def _cache_layers(model: PreTrainedModel) -> list[Any]:
    layers: list[Any] = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return layers


def prefill(model: PreTrainedModel, inputs: Tensor, cache: DynamicCache) -> None:
    """Appends the keys and values of [1, n] ids to a cache."""
    # A first step over nothing needs no mask, however long; later ones pay for one, and no less than their share
    step = PREFILL_TOKENS if cache.get_seq_length() else max(1, inputs.shape[1])
    keywords: dict[str, Any] = {cache_keyword(wrappers.bare(model)): cache}
    if model._supports_logits_to_keep():
        keywords["logits_to_keep"] = 1
    with torch.no_grad():
        for piece in torch.split(inputs.to(place_of(model)), step, dim=1):
            if piece.shape[1]:
                model(input_ids=piece, use_cache=True, **keywords)


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def place_of(model: nn.Module) -> torch.device:
    """Where inputs go: a model may be spread over several devices."""
    embeddings = bare(model).get_input_embeddings()
    place: torch.device = embeddings.weight.device
    if place.type == "meta":  # it is brought where it computes when it is needed
        place = torch.device(embeddings._hf_hook.execution_device)
    return place


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the weights; of the first ones where there are several."""
    return next(model.parameters()).dtype


def not_a_number(what: str, dtype: torch.dtype) -> str:
    """The text of the error for log-probabilities that are NaN or infinite."""
    return (
        f"model: log-probabilities must be finite, got NaN or infinity for {what}, in "
        f"{str(dtype).removeprefix('torch.')}; use dtype float32, or a smaller factor"
    )


def _logits(
    model: nn.Module, inputs: Tensor, rows: Tensor, positions: Tensor
) -> Generator[tuple[int, Tensor], None, None]:
    """(index of the first place, [places, vocabulary] float32 logits) chunk by chunk, from one forward pass."""
    place = place_of(model)
    forget_lengths(model)
    inputs = inputs.to(place)
    if head_way(model) == "full":
        logits = _full_logits(model, inputs)
        step = chunk(logits.shape[-1])
        for begin in range(0, len(rows), step):
            yield begin, logits[rows[begin : begin + step], positions[begin : begin + step]].float()
        return
    with Split(model) as split:
        hidden = split.hidden(input_ids=inputs)
        step = chunk(vocabulary(model))
        for begin in range(0, len(rows), step):
            some, at = rows[begin : begin + step], positions[begin : begin + step]
            yield begin, split.logits(hidden[some.to(hidden.device), at.to(hidden.device)]).float()


class Split:
    """A causal language model whose decoder and head run apart, with the model's own code before, between and after.

    While the context is open the decoder's forward is replaced on the instance: it keeps the hidden states of a
    whole sequence and passes on only the last, or passes on hidden states that it is given. Scaling, soft caps and
    whatever else a family does after its head are then the family's own.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any] | None = None):
        """`forward` is what is called for the model, which one that stands within its forward already has to say."""
        self.model = bare(model)  # a compiled forward would be compiled again for every replacement
        self._call = self.model if forward is None else forward
        self._places = "position_ids" in inspect.signature(self.model.forward).parameters
        self._decoder: nn.Module = self.model.get_decoder()
        self._kept: Tensor | None = None
        self._given: Tensor | None = None

    def __enter__(self) -> Split:
        if self._decoder is self.model:
            raise TypeError("the decoder is the model itself")
        self._before = self._decoder.__dict__.get("forward")  # accelerate's hooks live there
        self._forward = self._decoder.forward
        self._decoder.forward = self._replaced
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del self._decoder.forward
        else:
            self._decoder.forward = self._before
        self._kept = self._given = None

    def _replaced(self, *args: Any, **kwargs: Any) -> ModelOutput:
        if self._given is not None:
            return self._output(self._given)
        self._whole = self._forward(*args, **kwargs)
        self._kept = self._whole.last_hidden_state
        return self._output(self._kept[:, -1:])

    def _output(self, hidden: Tensor) -> ModelOutput:
        made: ModelOutput = copy.copy(self._whole)
        made.last_hidden_state = hidden
        return made

    def hidden(self, **inputs: Any) -> Tensor:
        """[batch, n, width] hidden states of what the model is given: `input_ids` [batch, n], masks, positions."""
        self._given = None
        self._call(**inputs, use_cache=False)
        if self._kept is None:
            raise TypeError("the model did not call its decoder")
        kept, self._kept = self._kept, None
        return kept

    def logits(self, hidden: Tensor) -> Tensor:
        """[places, vocabulary] logits of [places, width] hidden states."""
        self._given = hidden[None]
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=place_of(self.model))
        # all at position 0, so that no method refuses a chunk for its length
        places = {"position_ids": ids} if self._places else {}
        logits: Tensor = self._call(input_ids=ids, **places, use_cache=False).logits[0]
        return logits


@torch.no_grad()
def _splits_exactly(model: nn.Module) -> bool:
    """Whether decoder and head run apart give the logits of the whole, tried on a few tokens."""
    inputs = torch.arange(1, 9, device=place_of(model)).remainder(vocabulary(model))[None].expand(2, -1)
    rows, positions = torch.tensor([0, 1, 1]), torch.tensor([2, 5, 7])
    with resting(model):
        whole = _full_logits(model, inputs)[rows, positions].float()
        try:
            with Split(model) as split:
                hidden = split.hidden(input_ids=inputs)
                parts = split.logits(hidden[rows, positions]).float()
        except UNSPLITTABLE:
            return False
    close = 1e-4 if dtype_of(model) == torch.float32 else 5e-2
    finite = whole[whole.isfinite()]
    spread = float(finite.std()) if len(finite) > 1 else 0.0
    # A damaged model splits as well as a whole one: what is not a number is found where it is scored
    return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=close, atol=close * spread, equal_nan=True)


def _full_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """[batch, n, vocabulary]; virtual tokens that an adapter puts before the inputs are left out."""
    logits: Tensor = model(input_ids=inputs, use_cache=False).logits[:, -inputs.shape[1] :]
    return logits


@torch.no_grad()
def forget_lengths(model: nn.Module) -> None:
    """A dynamic rotary module remembers the longest sequence it read; one short sequence makes it forget."""
    if depends_on_length(model.config):
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=place_of(model)), use_cache=False)


def bare(model: nn.Module) -> Any:
    """The model inside of wrappers for several devices and compilation."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def vocabulary(model: nn.Module) -> int:
    """Entries of the vocabulary, by the config."""
    return int(bare(model).config.get_text_config(decoder=True).vocab_size)


def require_embedded(ids: Iterable[int], model: nn.Module) -> None:
    """Refuse tokens that the model has no embedding for: they were added to a tokenizer, and to no model.

    Raises:
        InvalidArgumentError: names the largest of them.
    """
    rows = bare(model).get_input_embeddings().weight.shape[0]
    largest = max(ids, default=0)
    if largest >= rows:
        raise InvalidArgumentError(
            f"tokenizer: its tokens must have rows in the model's embedding, got id {largest} where there are {rows} "
            f"rows; give the tokenizer of the model's training, or resize the embedding "
            f"(model.resize_token_embeddings), train it and save the model"
        )


def chunk(entries: int) -> int:
    """Positions whose logits may exist at a time, for a vocabulary of so many entries."""
    return max(1, CHUNK_ELEMENTS // entries)
