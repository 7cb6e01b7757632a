"""What the harness asks of a model, exactly: requests as tokens and answers as text, whoever computes them.

Nothing is truncated, and a beginning-of-sequence token stands in front once. This room knows tokenizers and requests;
what runs a model (`engine.py`, `served_engine.py`) fills in the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from ropescale.errors import InvalidArgumentError, RopescaleError, shortened
from ropescale.evals.batching import Span, bounds
from ropescale.evals.forward import not_a_number
from ropescale.evals.tokens import prompt_ids


class ExactLM:
    """What all language-model classes of ours are, beside a class of the harness."""

    # of the class of the harness
    tokenizer: Any
    rank: int
    max_length: int
    max_gen_toks: int
    prefix_token_id: int | None
    eot_token_id: int | None
    add_bos_token: bool | None
    think_end_token: str | int | None
    cache_hook: Any
    _encode_pair: Callable[[str, str], tuple[list[int], list[int]]]

    window: int | None = None  # tokens of a window of `loglikelihood_rolling`
    stride: int | None = None  # tokens by which it moves
    on_progress: Callable[[int], None] | None = None  # told the tokens of what is finished
    reads_last = False  # whether the last token of what is scored is read too

    # What runs a model says

    def _require_embedded(self, ids: Sequence[int]) -> None:
        """Refuse tokens that the model has no embedding for.

        Raises:
            InvalidArgumentError: names the largest of them.
        """
        raise NotImplementedError

    def _scored(self, spans: Sequence[Span]) -> Iterator[tuple[int, float, bool, int]]:
        """(number of the span, log-likelihood, greedy, tokens that were read for it) as they are finished."""
        raise NotImplementedError

    def _written(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, str]]:
        """Greedy replies to prompts that share their stops and room."""
        raise NotImplementedError

    def _sampled(self, requests: Sequence[Instance]) -> list[str]:
        """Replies that are not plainly greedy."""
        raise NotImplementedError

    @property
    def _weights(self) -> torch.dtype:
        """The type of the weights."""
        raise NotImplementedError

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
            alone: list[int] = self.tokenizer.encode(string, add_special_tokens=False, verbose=False)
            return alone
        ids = prompt_ids(self.tokenizer, string)
        if wanted and add_special_tokens is None and bos_id is not None and ids[:1] != [bos_id]:
            ids = [bos_id, *ids]  # a tokenizer that does not add it by itself
        self._require_embedded(ids)
        return ids

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
            self._require_room(self._read(len(span.ids)), 0)
        for number, logprob, greedy, tokens in self._scored(spans):
            if not torch.tensor(logprob).isfinite():
                raise RopescaleError(self._worded_nan(len(spans[number].ids), spans[number].text))
            yield number, logprob, greedy, tokens

    def _read(self, tokens: int) -> int:
        """Tokens that are read of so many, of which the last is scored."""
        return tokens if self.reads_last else tokens - 1

    # Generation

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to a stop string, the end of sequence or `max_gen_toks`.

        Greedy replies are those of one `model.generate` per prompt. Sampling and beams are left to `HFLM`.

        Raises:
            InvalidArgumentError: a prompt that is too long with what it may be answered; before any is run.
            RopescaleError: the model returned logits that are not numbers.
        """
        asked = [asked_of(self, number, request) for number, request in enumerate(requests)]
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
                theirs = self._sampled([requests[prompt.number] for prompt in others])
                for prompt, reply in zip(others, theirs, strict=True):
                    replies[prompt.number] = reply
                    advance(1, len(prompt.ids) + prompt.room)
        return replies

    def _cleaned(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """A reply as the harness would hand it on."""
        thought = self.think_end_token
        if isinstance(thought, int) and thought in ids:
            ids = ids[len(ids) - list(ids)[::-1].index(thought) :]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
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
            asked = asked_of(self, 0, request)
            return len(asked.ids) + asked.room
        if request.request_type == "loglikelihood":
            before, scored = self._pair(*request.args)
            return self._read(len(before) + len(scored))
        return 0  # read in windows

    # What all requests share

    def _require_room(self, prompt: int, room: int) -> None:
        if prompt + room > self.max_length:
            reply = f" and {room:,} to generate" if room else ""
            raise InvalidArgumentError(
                f"request: it must fit into the {self.max_length:,} tokens that the model reads, got {prompt:,} "
                f"tokens{reply}; nothing is truncated here: shorten it, or patch the model with a larger factor"
            )

    def _worded_nan(self, tokens: int, text: str) -> str:
        return not_a_number(f"the request of {tokens:,} tokens that begins {text[:40]!r}", self._weights)

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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt to be continued."""

    number: int  # among the requests
    text: str
    ids: tuple[int, ...]
    stops: tuple[str, ...]
    room: int  # tokens to generate at most
    greedy: bool  # plainly: no sampling, no beams, nothing that only generate knows


def asked_of(lm: ExactLM, number: int, request: Instance) -> Asked:
    """A request to continue, as tokens."""
    text, given = request.args
    kwargs = dict(normalize_gen_kwargs(given, lm.max_gen_toks))
    end = lm.eot_token_id
    eos = None if end is None else lm.tokenizer.decode([end], skip_special_tokens=False)
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
