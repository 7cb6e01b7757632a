"""Conversations as a chat template writes them, and which of their characters are replies.

A template writes a conversation as one text. What stands between the request for a reply and the end of that reply is
learnt; the rest is read. Where a reply ends is found by having the template write the beginnings of the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError, shortened
from ropescale.templates import require_ending

REPLIES = "assistant"  # the role whose messages are learnt


class Written(NamedTuple):
    """A conversation as a text."""

    text: str
    replies: tuple[tuple[int, int], ...]  # characters from and to of each, ascending


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot write conversations.

    Raises:
        InvalidArgumentError: it has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidArgumentError(
            f"data: conversations need a tokenizer with a chat template, got {tokenizer.name_or_path!r} without one; "
            f"give a model with one, set the template of its tokenizer and save it, or name a field of texts with "
            f"text_field=NAME"
        )
    require_ending(tokenizer, tokenizer.name_or_path)


def written(messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Written:
    """A conversation as the tokenizer's template writes it.

    Raises:
        InvalidArgumentError: a conversation that the template refuses, or one in which the place of a reply cannot be
            told.
    """
    require_template(tokenizer)
    text = _rendered(messages, tokenizer)
    replies: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != REPLIES:
            continue
        asked = _rendered(messages[:number], tokenizer, asking=True) if number else ""
        start = len(asked)
        # a template may write the last message otherwise than the same one within a conversation (thinking left out)
        alone = _rendered(messages[: number + 1], tokenizer)
        content = str(message["content"]).strip()
        at = alone.rfind(content)
        tail = alone[at + len(content) :].rstrip()
        if alone.startswith(asked) and text.startswith(alone.rstrip()):
            end = len(alone.rstrip())
        else:
            place = text.find(content + tail, start) if at >= 0 else -1
            end = place + len(content) + len(tail) if place >= 0 else -1
        if not text.startswith(asked) or end < start or (replies and start < replies[-1][1]):
            raise InvalidArgumentError(
                f"data: the chat template of {tokenizer.name_or_path!r} must write the beginning of a conversation as "
                f"it writes the whole, got something else at message {number + 1} ({shortened(content[:60])}); use "
                f"conversations of one reply each, or another template"
            )
        replies.append((start, end))
    return Written(text, tuple(replies))


def _rendered(messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, asking: bool = False) -> str:
    try:
        rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asking)
    except (TemplateError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidArgumentError(
            f"data: the chat template of {tokenizer.name_or_path!r} must accept a conversation of "
            f"{', '.join(str(message['role']) for message in messages)[:120]}, got {type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}; correct the conversation, or leave it out"
        ) from error
    return str(rendered)
