"""A language-model class for the harness: the same answers as its own `HFLM`, without truncation and with less work.

What is saved is exact. Hidden states are computed once and the head runs on the scored positions alone, in chunks;
a request that begins another one is answered from the other one's forward pass; prompts that begin alike share their
cached keys and values. This room knows models, tokenizers and requests, and no tasks.
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from ropescale.checkpoint import load_language_model
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError, RopescaleError, shortened
from ropescale.evals.batching import Sheaf, Span, batches, bounds, common_start, padded, sheaves_of
from ropescale.evals.forward import (
    depends_on_length,
    dtype_of,
    forget_lengths,
    not_a_number,
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
from ropescale.evals.tokens import named_tokenizer, prompt_ids
from ropescale.heads import headless
from ropescale.injection.places import cache_keyword
from ropescale.patching import put_in
from ropescale.request import Request
from ropescale.wrappers import bare

PADDING_SHARE = 0.125  # of the longest sequence of a batch, at most
REUSE_LENGTH = 256  # tokens: shorter prompts gain more from batches than from shared keys
REUSE_SHARE = 0.15  # of the prompts' tokens that must be shared before sharing is worth its steps


__all__ = ["RopescaleLM", "token_losses", "vllm_model"]


@register_model("ropescale")
class RopescaleLM(HFLM):  # type: ignore[misc] # lm_eval ships no types
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

    # What tokenizers do

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Token ids of a text, never truncated; a beginning-of-sequence token leads once or not at all.

        What the tokenizer appends by itself is left out: after an end of sequence there is nothing to go on with.
        `add_special_tokens` overrules the class's `add_bos_token`. `left_truncate_len` is the harness's and ignored.
        """
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens
        bos_id = self.tokenizer.bos_token_id
        if wanted is False:
            bare: list[int] = self.tokenizer.encode(string, add_special_tokens=False, verbose=False)
            return bare
        ids = prompt_ids(self.tokenizer, string)
        if wanted and add_special_tokens is None and bos_id is not None and ids[:1] != [bos_id]:
            ids = [bos_id, *ids]  # a tokenizer that does not add it by itself
        require_embedded(ids, self.model)
        return ids

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

    def _prefix(self) -> int:
        """The token before a text without context."""
        if self.prefix_token_id is None:
            raise InvalidArgumentError(
                "tokenizer: the first token of a text can only be scored after another one, got neither a "
                "beginning-of-sequence nor an end-of-sequence token; give prefix_token_id"
            )
        return int(self.prefix_token_id)

    # Log-likelihoods

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether greedy decoding would have written it.

        Raises:
            InvalidArgumentError: a request that is longer than the model, or has nothing to score; before any is run.
            RopescaleError: the model returned something that is not a number.
        """
        asked = [request.args for request in requests]
        encoded = [((context, continuation), *self._pair(context, continuation)) for context, continuation in asked]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            before, scored = self._encode_pair(context, continuation)
            if not before:  # a context of white space, which moved to the continuation
                before = [self._prefix()]
        else:
            scored = self.tok_encode(continuation, add_special_tokens=False)
            # the text may begin with the very token that would be put before it
            before = [] if scored[:1] == [self._prefix()] else [self._prefix()]
            before, scored = (before, scored) if before else (scored[:1], scored[1:])
        return before, scored

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """The same for encoded requests: (text or None, context ids, continuation ids)."""
        spans = [
            Span(ids=(*before, *scored), scored=len(scored), text="".join(text or ()))
            for text, before, scored in requests
        ]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with self._bar(len(requests), "loglikelihood", disable_tqdm) as advance:
            for number, logprob, greedy, tokens in self._answered(spans):
                answers[number] = (logprob, greedy)
                text = requests[number][0]
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, answers[number])
                advance(1, tokens)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each whole text, read in windows of `window` tokens that move by `stride`.

        Every token is scored once, the first one after the prefix token. A beginning-of-sequence token that the
        tokenizer adds, or with which the text begins, is that prefix and not scored.

        Raises:
            InvalidArgumentError: a window that is longer than the model; before any is run.
            RopescaleError: the model returned something that is not a number.
        """
        window = self.window or self.max_length
        stride = min(self.stride or window, window)
        spans, owners = [], []
        for owner, request in enumerate(requests):
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            if ids and ids[0] in (self._prefix(), self.tokenizer.bos_token_id):
                ids = ids[1:]
            pieces = utils.get_rolling_token_windows(
                token_list=ids, prefix_token=self._prefix(), max_seq_len=window, context_len=window - stride + 1
            )
            for before, scored in map(utils.make_disjoint_window, pieces):
                spans.append(Span(ids=(*before, *scored), scored=len(scored), text=text))
                owners.append(owner)
        totals = [0.0] * len(requests)
        logprobs: dict[int, float] = {}
        missing = Counter(owners)
        with self._bar(len(spans), "loglikelihood_rolling", disable_tqdm) as advance:
            for number, logprob, _, tokens in self._answered(spans):
                owner = owners[number]
                logprobs[number] = logprob
                missing[owner] -= 1
                if not missing[owner]:
                    # in the order of the text, so that a sum does not depend on how windows were batched
                    totals[owner] = sum(logprobs[i] for i in range(*bounds(owners, owner)))
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[owner].args, totals[owner])
                advance(1, tokens)
        return totals

    def _answered(self, spans: Sequence[Span]) -> Iterator[tuple[int, float, bool, int]]:
        """(number of the span, log-likelihood, greedy, tokens that were read for it) as they are finished."""
        for span in spans:
            if not span.scored:
                raise InvalidArgumentError(
                    f"request: a continuation must have at least one token, got none in {shortened(span.text[-40:])}; "
                    f"leave the request out"
                )
            self._require_room(len(span.ids) - 1, 0)
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
                if not torch.tensor(logprob).isfinite():
                    raise RopescaleError(self._worded_nan(len(span.ids), span.text))
                yield number, logprob, bool(scored.greedy[first:last].all()), sheaf.cost(number)
                first = last

    # Generation

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to a stop string, the end of sequence or `max_gen_toks`.

        Greedy replies are those of one `model.generate` per prompt. Sampling and beams are left to `HFLM`.

        Raises:
            InvalidArgumentError: a prompt that is too long with what it may be answered; before any is run.
            RopescaleError: the model returned logits that are not numbers.
        """
        asked = [_asked(self, number, request) for number, request in enumerate(requests)]
        for prompt in asked:
            self._require_room(len(prompt.ids), prompt.room)
        replies = [""] * len(requests)
        with self._bar(len(requests), "generate_until", disable_tqdm) as advance:
            kinds: dict[str, list[Asked]] = defaultdict(list)
            for prompt in asked:
                kinds[repr((sorted(prompt.stops), prompt.room)) if prompt.greedy else "left to the harness"].append(
                    prompt
                )
            others = kinds.pop("left to the harness", [])
            for kind in kinds.values():
                for prompt, reply in self._written(kind):
                    replies[prompt.number] = reply
                    self.cache_hook.add_partial("generate_until", requests[prompt.number].args, reply)
                    advance(1, len(prompt.ids) + prompt.room)
            if others:
                theirs = super().generate_until([requests[prompt.number] for prompt in others], disable_tqdm=True)
                for prompt, reply in zip(others, theirs, strict=True):
                    replies[prompt.number] = reply
                    advance(1, len(prompt.ids) + prompt.room)
        return replies

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

    def _cleaned(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """A reply as the harness would hand it on."""
        thought = self.think_end_token
        if isinstance(thought, int) and thought in ids:
            ids = ids[len(ids) - list(ids)[::-1].index(thought) :]
        text = self.tok_decode(ids)
        if isinstance(thought, int):
            text = text.lstrip()
        cleaned: str = postprocess_generated_text(
            generation=text, stop=list(stops), think_end_token=thought if isinstance(thought, str) else None
        )
        return cleaned

    def limit(self, tokens: int) -> None:
        """From now on the model reads so many tokens."""
        self._max_length = tokens

    def tokens_of(self, request: Instance) -> int:
        """Tokens that a request takes of what the model reads, its reply included."""
        if request.request_type == "generate_until":
            asked = _asked(self, 0, request)
            return len(asked.ids) + asked.room
        if request.request_type == "loglikelihood":
            before, scored = self._pair(*request.args)
            return len(before) + len(scored) - 1
        return 0  # read in windows

    # What all requests share

    @property
    def _most(self) -> int | None:
        """Sequences of a batch at most; None is no bound."""
        size = self.batch_size_per_gpu
        return size if isinstance(size, int) and size > 1 else None

    def _require_room(self, prompt: int, room: int) -> None:
        if prompt + room > self.max_length:
            reply = f" and {room:,} to generate" if room else ""
            raise InvalidArgumentError(
                f"request: it must fit into the {self.max_length:,} tokens that the model reads, got {prompt:,} "
                f"tokens{reply}; nothing is truncated here: shorten it, or patch the model with a larger factor"
            )

    def _worded_nan(self, tokens: int, text: str) -> str:
        return not_a_number(f"the request of {tokens:,} tokens that begins {text[:40]!r}", dtype_of(self.model))

    @contextmanager
    def _bar(self, total: int, what: str, off: bool) -> Iterator[Callable[[int, int], None]]:
        """A progress bar, or the caller's own; what it gives takes the finished requests and their tokens."""
        mine = self.on_progress
        with tqdm(
            total=total, desc=f"Running {what} requests", disable=off or mine is not None or self.rank != 0
        ) as bar:

            def advance(finished: int, tokens: int) -> None:
                bar.update(finished)
                if mine is not None and tokens:
                    mine(tokens)

            yield advance


def vllm_model(path: str, **arguments: Any) -> LM:
    """The harness's own vLLM class on a checkpoint that was saved or exported; further arguments go to it.

    `tensor_parallel_size`, `max_model_len`, `dtype`, `gpu_memory_utilization` and the like are vLLM's. It truncates
    as the harness does: give a `max_model_len` that holds every request.

    Raises:
        InvalidArgumentError: vllm is not installed.
        CheckpointError: no checkpoint of that name.
    """
    if find_spec("vllm") is None:
        raise InvalidArgumentError(
            "backend: vllm must be installed for this backend, got no such package; "
            "run `pip install vllm`, or use the backend transformers"
        )
    from lm_eval.models.vllm_causallms import VLLM  # imports vllm

    model: LM = VLLM(pretrained=resolve(path), **arguments)
    return model


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt to be continued."""

    number: int  # among the requests
    text: str
    ids: tuple[int, ...]
    stops: tuple[str, ...]
    room: int  # tokens to generate at most
    greedy: bool  # plainly: no sampling, no beams, nothing that only generate knows


def _asked(lm: RopescaleLM, number: int, request: Instance) -> Asked:
    text, given = request.args
    kwargs = dict(normalize_gen_kwargs(given, lm.max_gen_toks))
    end = lm.eot_token_id
    eos = None if end is None else lm.tok_decode([end], skip_special_tokens=False)
    stops = handle_stop_sequences(kwargs.pop("until", None), eos=eos)
    room = int(kwargs.pop("max_gen_toks"))
    greedy = not kwargs.pop("do_sample", False) and not kwargs.pop("temperature", 0.0) and not kwargs
    ids = lm.tok_encode(text)
    if not ids:
        ids = [lm._prefix()]
    return Asked(
        number=number,
        text=text,
        ids=tuple(ids),
        stops=tuple(stop for stop in stops if stop),
        room=room,
        greedy=greedy,
    )


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
