"""What a running server is asked: the log-probabilities of the token that comes next, after beginnings of one passage.

Every server that speaks OpenAI's /v1/completions can say that. They differ in what they take and how they answer: some
take token ids, others text alone; some name tokens by their ids, others by their text; and each has a largest number
of log-probabilities. The first form that is answered is the one that is asked in.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ropescale.checks import as_float, did_you_mean, is_whole
from ropescale.errors import InvalidArgumentError, ServerError, shortened
from ropescale.serving.endpoint import Endpoint, RefusalError

COMPLETIONS, MODELS = "/v1/completions", "/v1/models"
MOST, FEW = 20, 5  # log-probabilities: as many as vLLM gives unless told otherwise, and as OpenAI gives at all
TOO_LONG = (400, 413, 422)  # statuses by which servers refuse a prompt
# Of sampling, which a server may have other defaults for, and some count into log-probabilities
NEUTRAL = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
REACH = -1  # the place of a passage that is only sent
BY_ID = "token_id:"  # what stands before an id in the place of a token's text


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text in tokens, with the beginnings of it after which the next token is asked for."""

    ids: list[int]
    ends: tuple[int, ...]  # tokens of each beginning

    @property
    def length(self) -> int:
        """Tokens of the longest beginning."""
        return self.ends[-1]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a server says comes next."""

    passage: int  # its place among the passages
    end: int  # tokens of the beginning
    logprobs: dict[int, float]  # by token; only the likeliest
    read: int | None  # tokens that the server says it read


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A beginning that was too long for the server."""

    length: int  # tokens
    said: str  # in its words


@dataclass(frozen=True, kw_only=True)
class Heard:
    """All that a server said."""

    served: str  # the name of the model there
    said: list[Said]
    refused: Refused | None
    read: dict[int, int]  # tokens that it says it read of prompts that are longer, by their length
    longest: int  # tokens of the longest prompt that there was to ask


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way of asking."""

    by_id: bool  # whether the prompt is a list of token ids
    count: int  # log-probabilities
    extras: bool  # whether fields are sent that OpenAI does not know


FORMS = tuple(
    Form(by_id=by_id, count=count, extras=extras)
    for by_id in (True, False)
    for count, extras in ((MOST, True), (FEW, False))
)


class Vocabulary:
    """Tokens by their texts, for servers that name them so."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def by_text(self) -> dict[str, int | None]:
        """The token of each text; None where several share one."""
        found: dict[str, int | None] = {}
        for token in range(len(self.tokenizer) if self.tokenizer is not None else 0):
            text = self.tokenizer.decode([token])
            found[text] = None if text in found else token
        return found

    def token(self, named: object) -> int | None:
        """The token that a server names; None where that is not known."""
        if is_whole(named, 0):
            return named
        if isinstance(named, str) and named.startswith(BY_ID) and named.removeprefix(BY_ID).isdecimal():
            return int(named.removeprefix(BY_ID))
        return self.by_text.get(named) if isinstance(named, str) else None

    def text(self, ids: Sequence[int]) -> str | None:
        """The text that comes back as these tokens; None where there is none."""
        if self.tokenizer is None:
            return None
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text if self.tokenizer.encode(text, verbose=False) == list(ids) else None


def served_name(endpoint: Endpoint, asked: str | None) -> str:
    """The name of the model that is asked: the only one that the server has, or the one that is named.

    Raises:
        InvalidArgumentError: another one is named than the server has, or none where it has several.
        ServerError: a server that does not say.
    """
    answer = endpoint.asked(MODELS)
    entries = answer.get("data")
    names: list[str] = [
        one["id"]
        for one in (entries if isinstance(entries, list) else ())
        if isinstance(one, dict) and isinstance(one.get("id"), str)
    ]
    if not names:
        raise ServerError(
            f"{endpoint.url}{MODELS}: must name the models that are served, got {shortened(answer)}; give the address "
            f"of an OpenAI-compatible server"
        )
    if asked is None and len(names) == 1:
        return names[0]
    if asked is None or asked not in names:
        near = did_you_mean(asked, names, otherwise="name one of them") if asked else "name one of them"
        raise InvalidArgumentError(
            f"served: must be one of the models that {endpoint.url} serves ({', '.join(names[:20])}), got {asked!r}; "
            f"{near}"
        )
    return asked


def ask(
    endpoint: Endpoint, served: str, passages: Sequence[Passage], vocabulary: Vocabulary, reach: Passage | None
) -> Heard:
    """Ask for the next token after every beginning of every passage, and whether the longest is taken at all.

    Args:
        endpoint: the server.
        served: the model there.
        passages: the shortest first.
        vocabulary: of the model.
        reach: a passage that is only sent; what comes next is not looked at.

    Raises:
        ServerError: a server that does not answer, or gives no log-probabilities.
    """
    form = _form(endpoint, served, passages[0], vocabulary)
    beginnings = [
        (place, replace(passage, ends=(end,))) for place, passage in enumerate(passages) for end in passage.ends
    ]
    if reach is not None:
        beginnings.append((REACH, reach))
    answers: list[Said] = []
    refused: Refused | None = None
    for place, beginning in beginnings:
        one = _taken(endpoint, served, form, beginning, vocabulary)
        if isinstance(one, Refused):
            refused = one
            break  # longer ones would be, too
        if one is not None:
            answers.append(replace(one, passage=place))
    said = [one for one in answers if one.passage != REACH and one.logprobs]
    if 2 * len(said) < len([one for one in answers if one.passage != REACH]):
        raise _hidden(endpoint, passages[0].length)
    return Heard(
        served=served,
        said=said,
        refused=refused,
        read={one.end: one.read for one in answers if one.read is not None and one.read < one.end},
        longest=beginnings[-1][1].length,
    )


def _taken(
    endpoint: Endpoint, served: str, form: Form, passage: Passage, vocabulary: Vocabulary
) -> Said | Refused | None:
    """What the server says, or that a prompt of this length is too long for it."""
    try:
        return _said(endpoint, served, form, passage, vocabulary)
    except RefusalError as error:
        if error.status not in TOO_LONG:
            raise
        return Refused(length=passage.length, said=error.said)


def _form(endpoint: Endpoint, served: str, passage: Passage, vocabulary: Vocabulary) -> Form:
    """The first form in which the server gives log-probabilities.

    Raises:
        ServerError: it gives none in any.
    """
    first: RefusalError | None = None
    counted: Said | None = None
    for form in FORMS:
        try:
            one = _said(endpoint, served, form, passage, vocabulary)
        except RefusalError as error:
            if error.status not in TOO_LONG:
                raise
            first = first or error
            continue
        if one is None or not one.logprobs:
            continue
        if one.read is None or one.read == passage.length or (form.by_id and one.read < passage.length):
            return form  # fewer of a list of ids were cut
        counted = one
    if counted is not None:
        raise ServerError(
            f"{endpoint.url}{COMPLETIONS}: must read prompts as the tokenizer of the reference splits them, got "
            f"{counted.read} tokens for one of {passage.length}; give the model that is served as reference"
        )
    raise first or _hidden(endpoint, passage.length)


def _hidden(endpoint: Endpoint, length: int) -> ServerError:
    return ServerError(
        f"{endpoint.url}{COMPLETIONS}: must give log-probabilities, got a completion of {length} tokens without any; "
        f"start the server so that it gives them, or ask it without what stands before it"
    )


def _said(endpoint: Endpoint, served: str, form: Form, passage: Passage, vocabulary: Vocabulary) -> Said | None:
    """What the server says comes after a passage; None where the passage has no text and the form wants one.

    Raises:
        RefusalError: an error of the server's.
        ServerError: no answer, or none that can be read.
    """
    ids = passage.ids[: passage.length]
    prompt: list[int] | str | None = ids if form.by_id else vocabulary.text(ids)
    if prompt is None:
        return None
    question: dict[str, Any] = {
        "model": served,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": form.count,
        **NEUTRAL,
    }
    if form.extras:
        question |= {"repetition_penalty": 1.0, "return_tokens_as_token_ids": True}
    answer = endpoint.asked(COMPLETIONS, question, after=f"a prompt of {len(ids):,} tokens")
    usage, choices = answer.get("usage"), answer.get("choices")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ServerError(
            f"{endpoint.url}{COMPLETIONS}: must answer with a completion, got {shortened(answer)}; give the address "
            f"of an OpenAI-compatible server"
        )
    return Said(
        passage=0,
        end=passage.length,
        logprobs=dict(_likeliest(choices[0].get("logprobs"), vocabulary)),
        read=read if is_whole(read, 1) else None,
    )


def _likeliest(given: object, vocabulary: Vocabulary) -> Iterator[tuple[int, float]]:
    """The tokens of the first step with their log-probabilities, in the form of completions or in that of chats."""
    if not isinstance(given, Mapping):
        return
    steps = given.get("content") or given.get("top_logprobs")
    step = steps[0] if isinstance(steps, list) and steps else None
    pairs: list[tuple[object, object]] = []
    if isinstance(step, Mapping) and isinstance(step.get("top_logprobs"), list):
        entries = [one for one in step["top_logprobs"] if isinstance(one, Mapping)]
        pairs = [(one.get("id", one.get("token")), one.get("logprob")) for one in entries]
    elif isinstance(step, Mapping):
        pairs = list(step.items())
    for named, value in pairs:
        token, logprob = vocabulary.token(named), as_float(value)
        if token is not None and -math.inf < logprob <= 1e-3:
            yield token, logprob
