"""How a prompt and the beginning of its reply become the text that a model reads: as they are, or by a chat template.

The harness puts what a task gives it into the template; here it is known beforehand what comes of that, so that a
length can count the template. Thinking is turned off by the words that templates have for it (`enable_thinking`), and
by a reply that is begun for the model. Where a template takes neither, a reply has room to think, and what counts is
what comes after. This room knows tokenizers, and neither models nor tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from lm_eval.api.utils import requires_delimiter
from transformers import PreTrainedTokenizerBase

from ropescale.errors import InvalidArgumentError, shortened
from ropescale.templates import require_ending

DELIMITER = " "  # what the harness puts between prompt and answer prefix; target_delimiter in every YAML
ANSWER_ROOM = 48  # tokens more for a reply that the model begins itself: it leads up to what was asked for
THINKING_ROOM = 512  # tokens more where thinking cannot be turned off
THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
PROBE = ("Which number?", "The number is")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How prompts become texts."""

    write: Callable[[str, str], str]  # prompt, answer prefix -> the text that the model goes on from
    begins: bool = True  # whether the reply begins with the answer prefix; else the prompt ends with it
    room: int = 0  # tokens of a reply beyond the task's own
    end_of_thought: str | int | None = None  # text, or the id of a special token, after which the answer stands


def joined(prompt: str, gen_prefix: str) -> str:
    """Prompt and answer prefix as the harness joins them."""
    return prompt + (DELIMITER if gen_prefix and requires_delimiter(prompt, gen_prefix) else "") + gen_prefix


PLAIN = Frame(write=joined)


@cache
def chat_frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame that a tokenizer's chat template makes.

    Raises:
        InvalidArgumentError: no template, or one that a question cannot be put into.
    """
    if not tokenizer.chat_template:
        raise InvalidArgumentError(
            f"chat: the tokenizer must have a chat template, got none in {shortened(tokenizer.name_or_path)}; leave "
            f"chat out, or give a model with a template"
        )
    require_ending(tokenizer, tokenizer.name_or_path)
    try:
        asked = _rendered(tokenizer, PROBE[0], "")
    except Exception as error:  # a template is a program, which may raise anything
        raise InvalidArgumentError(
            f"chat: the template must take a message of a user, got {type(error).__name__}: "
            f"{shortened(str(error).strip().partition(chr(10))[0])}; leave chat out"
        ) from error
    try:
        begun = _rendered(tokenizer, *PROBE)
    except Exception:  # one that wants turns to alternate, or to end with the user
        begun = ""
    end = next((end for _, end in THOUGHTS if end in str(tokenizer.chat_template) + asked), None)
    marker = tokenizer.convert_tokens_to_ids(end) if end in tokenizer.all_special_tokens else end
    if begun.endswith(PROBE[1]) and PROBE[0] in begun and not _thinks(begun):
        return Frame(write=lambda prompt, prefix: _rendered(tokenizer, prompt, prefix), end_of_thought=marker)
    return Frame(
        write=lambda prompt, prefix: _rendered(tokenizer, joined(prompt, prefix), ""),
        begins=False,
        room=ANSWER_ROOM + (THINKING_ROOM if end and not _thought_over(asked) else 0),
        end_of_thought=marker,
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, prefix: str) -> str:
    """As the harness asks for it, with thinking off."""
    turns = [{"role": "user", "content": prompt}]
    if prefix:
        turns.append({"role": "assistant", "content": prefix})
    text: str = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=not prefix,
        continue_final_message=bool(prefix),
        enable_thinking=False,
    )
    return text


def _thinks(text: str) -> bool:
    """Whether a text ends within a thought."""
    return any(text.rfind(begin) > text.rfind(end) for begin, end in THOUGHTS)


def _thought_over(text: str) -> bool:
    """Whether a text holds a thought that is over, so that an answer follows."""
    return any(end in text for _, end in THOUGHTS) and not _thinks(text)
