"""A language-model class for the harness: the same answers as its own `HFLM`, without truncation and with less work.

What is saved is exact. Hidden states are computed once and the head runs on the scored positions alone, in chunks;
a request that begins another one is answered from the other one's forward pass; prompts that begin alike share their
cached keys and values. This room knows models, tokenizers and requests, and no tasks.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from ropescale.checkpoint import load_language_model
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.evals.batching import Sheaf, Span, batches, common_start, padded, sheaves_of
from ropescale.evals.exact import Asked, ExactLM
from ropescale.evals.forward import (
    depends_on_length,
    dtype_of,
    forget_lengths,
    pads_exactly,
    place_of,
    prefill,
    require_embedded,
    resting,
    reuses_exactly,
    scores,
    token_losses,
)
from ropescale.evals.generation import Finite, NotFiniteError, StopStrings, before_end, ends_of
from ropescale.evals.tokens import named_tokenizer
from ropescale.heads import headless
from ropescale.injection.places import cache_keyword
from ropescale.patching import put_in
from ropescale.request import Request
from ropescale.wrappers import bare

if TYPE_CHECKING:
    from ropescale.evals.served_engine import ServedLM

PADDING_SHARE = 0.125  # of the longest sequence of a batch, at most
REUSE_LENGTH = 256  # tokens: shorter prompts gain more from batches than from shared keys
REUSE_SHARE = 0.15  # of the prompts' tokens that must be shared before sharing is worth its steps


__all__ = ["RopescaleLM", "token_losses", "vllm_model"]


@register_model("ropescale")
class RopescaleLM(ExactLM, HFLM):  # type: ignore[misc] # lm_eval ships no types
    """A causal language model as the harness sees it; where it differs from `HFLM` it is exact.

    Arguments:
        pretrained: a live model (patched or not, also under PEFT), or what `ropescale.load` takes: a path, a hub id,
            `tiny` or `smollm2`. A live model stays on its device and in its dtype.
        tokenizer: a tokenizer, or the name of one; that of `pretrained` if not given. It is not changed.
        method, factor: patch the model that is loaded here; not for live models.
        existing, original_length, layers: how, as `ropescale.patch` takes them.
        max_length: tokens that the model may read; as its config says at the time of each request if not given.
        window, stride: tokens of a window of `loglikelihood_rolling`, and how far it moves. By default a window is
            `max_length`, and windows stand side by side as in the harness.
        batch_tokens: tokens of a forward pass with several sequences. A longer sequence is read alone.
        batch_size: sequences of a forward pass at most. 1 and "auto", the harness's defaults, set no bound, since no
            figure depends on it.
        dtype: of a model loaded here; float32 on a CPU and bfloat16 on an accelerator if "auto".
        device: of a model loaded here; the accelerator if torch sees one. One that is not there means the CPU.
        add_bos_token: whether texts begin with the beginning-of-sequence token; as the tokenizer has it if not given.
            It never stands there twice.
        prefix_token_id: what stands before a text without context; the tokenizer's beginning-of-sequence or
            end-of-sequence token if not given.
        on_progress: called with the number of tokens whenever some are finished; the harness's bars are then off.
        chat_template_args, enable_thinking, think_end_token: as `HFLM` takes them.
        from_pretrained: further keywords for loading.

    Raises:
        InvalidArgumentError: arguments that contradict one another, or no tokenizer.
        CheckpointError: no model of that name.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel | nn.Module,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        *,
        method: str | None = None,
        factor: float | None = None,
        existing: str | None = None,
        original_length: int | None = None,
        layers: str | None = None,
        max_length: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        batch_tokens: int = 8192,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        dtype: str | torch.dtype | None = "auto",
        device: str | torch.device | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        on_progress: Callable[[int], None] | None = None,
        chat_template_args: dict[str, Any] | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        **from_pretrained: Any,
    ):
        for name, value in (("window", window), ("stride", stride), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{name}: must be at least 1 token, got {value!r}; leave it out")
        if window is not None and stride is not None and stride > window:
            raise InvalidArgumentError(
                f"stride: must be at most the window of {window:,} tokens, got {stride!r}; "
                f"leave it out for windows side by side"
            )
        accelerator = _accelerator()
        patching = {"factor": factor, "existing": existing, "original_length": original_length, "layers": layers}
        if isinstance(pretrained, str):
            place = accelerator.device if accelerator else _device(device)
            model: nn.Module = _loaded(pretrained, method, patching, dtype, place, from_pretrained)
        else:
            live_only = {"method": method, **patching, **from_pretrained}
            for name, value in live_only.items():
                if value is not None:
                    raise InvalidArgumentError(
                        f"{name}: must be left out for a model that is loaded already, got {value!r}; "
                        f"load and patch it first, or give its path"
                    )
            inner = bare(pretrained)
            if isinstance(inner, PreTrainedModel) and not inner.can_generate():
                raise headless("pretrained", type(inner).__name__)
            model = pretrained.to(accelerator.device) if accelerator else pretrained
        with _quiet("lm_eval.models.huggingface"):  # its notices are about limits that are not ours
            super().__init__(
                pretrained=model,
                backend="causal",
                tokenizer=_tokenizer(pretrained, tokenizer),
                max_length=max_length,
                batch_size=batch_size if isinstance(batch_size, int) else 1,
                max_batch_size=max_batch_size,
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
                chat_template_args=chat_template_args,
                enable_thinking=enable_thinking,
                think_end_token=think_end_token,
            )
        if accelerator:
            self.accelerator = accelerator
            self._device = accelerator.device
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self.window, self.stride, self.batch_tokens = window, stride, batch_tokens
        self.on_progress = on_progress

    # What the model says

    def _require_embedded(self, ids: Sequence[int]) -> None:
        require_embedded(ids, self.model)

    @property
    def _weights(self) -> torch.dtype:
        return dtype_of(self.model)

    def tok_batch_encode(self, strings: Sequence[str], padding_side: str = "left", **_: Any) -> tuple[Tensor, Tensor]:
        """[batch, longest] int64 ids and mask of texts that are encoded one by one, padded and never truncated."""
        return padded([self.tok_encode(string) for string in strings], self._pad_id, padding_side)

    @property
    def _pad_id(self) -> int:
        for known in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if known is not None and known < self._embeddings:
                return int(known)
        return 0

    @property
    def _embeddings(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    # Log-likelihoods

    def _scored(self, spans: Sequence[Span]) -> Iterator[tuple[int, float, bool, int]]:
        """(number of the span, log-likelihood, greedy, tokens that were read for it) as they are finished."""
        dynamic = depends_on_length(self.model.config)
        sheaves = sheaves_of(spans, shared=not dynamic)
        lengths = [len(sheaf.ids) for sheaf in sheaves]
        for batch in batches(lengths, self.batch_tokens, self._most, 0.0 if dynamic else PADDING_SHARE):
            yield from self._batch_answered(spans, [sheaves[i] for i in batch])

    def _batch_answered(
        self, spans: Sequence[Span], sheaves: Sequence[Sheaf]
    ) -> Iterator[tuple[int, float, bool, int]]:
        # Padding on the right needs no mask: no token before it can see it.
        inputs, _ = padded([sheaf.ids for sheaf in sheaves], 0, "right")
        places: dict[tuple[int, int], int] = {}  # (row of the batch, position) -> row of the head
        pairs: list[int] = []
        targets: list[int] = []
        for row, sheaf in enumerate(sheaves):
            for number in sheaf.members:
                span = spans[number]
                for at in range(len(span.ids) - span.scored, len(span.ids)):
                    pairs.append(places.setdefault((row, at - 1), len(places)))
                    targets.append(span.ids[at])
        rows, positions = torch.tensor(list(places)).unbind(1)
        with resting(self.model):
            scored = scores(self.model, inputs, rows, positions, torch.tensor(pairs), torch.tensor(targets))
        first = 0
        for sheaf in sheaves:
            for number in sheaf.members:
                span = spans[number]
                last = first + span.scored
                logprob = float(scored.logprobs[first:last].double().sum())
                yield number, logprob, bool(scored.greedy[first:last].all()), sheaf.cost(number)
                first = last

    # Generation

    def _written(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, str]]:
        """Greedy replies to prompts that share their stops and room."""
        lengths = [len(prompt.ids) for prompt in asked]
        ordered = sorted(asked, key=lambda prompt: prompt.ids)
        common = [0, *(common_start(a.ids, b.ids) for a, b in pairwise(ordered))]
        worth = sum(lengths) >= REUSE_LENGTH * len(lengths) and sum(common) >= REUSE_SHARE * sum(lengths)
        if worth and reuses_exactly(self.model, max(lengths) + asked[0].room):
            yield from self._written_in_turn(ordered, common)
            return
        padding = PADDING_SHARE if pads_exactly(self.model) else 0.0
        with_room = [length + asked[0].room for length in lengths]
        for batch in batches(with_room, self.batch_tokens, self._most, padding):
            rows = [asked[i] for i in batch]
            inputs, mask = padded([prompt.ids for prompt in rows], self._pad_id, "left")
            yield from zip(rows, self._generated(rows, inputs, mask, None), strict=True)

    def _written_in_turn(self, ordered: Sequence[Asked], common: Sequence[int]) -> Iterator[tuple[Asked, str]]:
        """One prompt after another, each going on from the keys and values that it shares with the one before."""
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        for prompt, shared in zip(ordered, common, strict=True):
            inputs = torch.tensor([prompt.ids])
            # the last token is left to generate, which needs its logits
            kept = min(shared, len(prompt.ids) - 1)
            if kept < REUSE_SHARE * len(prompt.ids):
                kept = 0  # a step over a cache needs a mask, which few shared tokens do not pay for
            if surplus := cache.get_seq_length() - kept:
                cache.crop(-surplus)
            with resting(self.model):
                prefill(self.model, inputs[:, kept:-1], cache)
            (reply,) = self._generated([prompt], inputs, torch.ones_like(inputs), cache)
            yield prompt, reply

    def _sampled(self, requests: Sequence[Instance]) -> list[str]:
        replies: list[str] = HFLM.generate_until(self, requests, disable_tqdm=True)
        return replies

    def _generated(self, rows: Sequence[Asked], inputs: Tensor, mask: Tensor, cache: DynamicCache | None) -> list[str]:
        length = inputs.shape[1]
        first = rows[0]
        checked, stops = Finite(), StopStrings(self.tokenizer, first.stops, length)
        place = place_of(self.model)
        with resting(self.model):
            forget_lengths(self.model)
            try:
                generated = self.model.generate(
                    input_ids=inputs.to(place),
                    attention_mask=mask.to(place),
                    max_new_tokens=first.room,
                    do_sample=False,
                    num_beams=1,
                    use_cache=True,
                    pad_token_id=self._pad_id,
                    logits_processor=LogitsProcessorList([checked]),
                    stopping_criteria=StoppingCriteriaList([stops]),
                    **({} if cache is None else {cache_keyword(bare(self.model)): cache}),
                )
            except NotFiniteError as error:
                row = rows[error.row]
                raise RopescaleError(self._worded_nan(len(row.ids), row.text)) from None
        ends = ends_of(self.model)
        return [
            self._cleaned(before_end(reply, ends), prompt.stops)
            for prompt, reply in zip(rows, generated[:, length:].tolist(), strict=True)
        ]

    # What all requests share

    @property
    def _most(self) -> int | None:
        """Sequences of a batch at most; None is no bound."""
        size = self.batch_size_per_gpu
        return size if isinstance(size, int) and size > 1 else None


def vllm_model(path: str, **arguments: Any) -> ServedLM:
    """The same for a checkpoint that was saved or exported, in vLLM: `ServedLM`, which takes the further arguments.

    Raises:
        InvalidArgumentError: vllm is not installed, or an argument that it does not take.
        CheckpointError: no checkpoint of that name, or one that vLLM does not load.
    """
    require_vllm({})
    from ropescale.evals.served_engine import ServedLM  # imports vllm

    return ServedLM(resolve(path), **arguments)


def require_vllm(arguments: Mapping[str, Any]) -> None:
    """Refuse to go on without vLLM, or with arguments that it does not have.

    Raises:
        InvalidArgumentError: it is not installed, or names an argument.
    """
    if find_spec("vllm") is None:
        raise InvalidArgumentError(
            "backend: vllm must be installed for this backend, got no such package; "
            "run `pip install vllm`, or use the backend transformers"
        )
    if arguments:
        from ropescale.evals.served_engine import require_arguments

        require_arguments(arguments)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the notices of a logger."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _loaded(
    name: str,
    method: str | None,
    patching: dict[str, Any],
    dtype: str | torch.dtype | None,
    place: torch.device,
    further: dict[str, Any],
) -> PreTrainedModel:
    if dtype in (None, "auto"):
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise InvalidArgumentError(f"dtype: must be auto or a type of torch, got {dtype!r}; leave it out")
        dtype = named
    factor, given = patching["factor"], {name: value for name, value in patching.items() if value is not None}
    if (method is None) != (factor is None):
        raise InvalidArgumentError(
            f"factor: must be given with method, and neither alone, got method {method!r} and factor {factor!r}; "
            f"give both, or neither"
        )
    if method is None and given:
        name, value = next(iter(given.items()))
        raise InvalidArgumentError(
            f"{name}: must be given with a method, which it is about, got {value!r} alone; give method and factor "
            f"too, or leave it out"
        )
    request = None if method is None else Request(method=method, **given)
    model = load_language_model(name, dtype=dtype, **further).to(place)
    return model if request is None else put_in(model, request)


def _tokenizer(
    pretrained: str | nn.Module, tokenizer: str | PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer: the harness gives one without a padding token a new token, which no model knows."""
    if tokenizer is None:
        tokenizer = pretrained if isinstance(pretrained, str) else getattr(pretrained, "name_or_path", "")
        if not tokenizer:
            raise InvalidArgumentError(
                "tokenizer: must be given for a model that was not loaded from somewhere, got None; give tokenizer"
            )
    return copy.deepcopy(named_tokenizer(tokenizer))


def _accelerator() -> Accelerator | None:
    """The processes that `accelerate launch` or torchrun started, or None if it was neither."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    patience = InitProcessGroupKwargs(timeout=timedelta(weeks=1))  # processes finish their rows at different times
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])


def _device(given: str | torch.device | None) -> torch.device:
    """The device asked for if it is there; the harness's own default is cuda:0 everywhere."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if given is not None and (
        torch.device(given).type == "cpu" or (accelerator and torch.device(given).type == accelerator.type)
    ):
        return torch.device(given)
    return accelerator or torch.device("cpu")
