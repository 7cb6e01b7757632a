"""`ropescale chat`: a conversation with a model in a terminal, the reply written as it comes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from ropescale.checkpoint import load_language_model
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.devices import require_device
from ropescale.errors import InvalidArgumentError, UnsupportedModelError
from ropescale.patching import patch, record
from ropescale.templates import require_ending

ENDINGS = ("/exit", "/quit")


class Conversation:
    """A model, its tokenizer and what was said so far.

    Attributes:
        model: in evaluation mode, patched where that was asked for or saved.
        longest: tokens that the model reads, with its reply.
        cut: why the last reply ends before its end; empty where it does not.
    """

    def __init__(self, name: str, *, dtype: str = "auto", device: str = "auto", **patching: Any):
        """Load a model, and patch it where a method is given.

        Args:
            name: of the model: a short name, a path or a hub id.
            dtype: of the weights; "auto" is that of the checkpoint.
            device: "auto" is the accelerator if there is one.
            patching: arguments of `ropescale.patch`; none for the model as it is.

        Raises:
            UnsupportedModelError: no chat template, or no head over the vocabulary.
            CheckpointError: no checkpoint or no tokenizer there.
            InvalidArgumentError: a device that is not there.
            RopescaleError: whatever `patch` raises.
        """
        self.tokenizer = _tokenizer(name)
        if device != "auto":
            require_device(device)
        place = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else device
        self.model: PreTrainedModel = load_language_model(name, dtype=dtype).to(place or "cpu").eval()
        if patching and (done := record(self.model)) is not None:
            raise InvalidArgumentError(
                f"method: must be left out for a model that was saved patched, got {name!r} with {done.method!r}; "
                f"give the model that it was made from"
            )
        if patching:
            patch(self.model, **patching)
        self.longest = int(self.model.config.get_text_config(decoder=True).max_position_embeddings)
        self.turns: list[dict[str, str]] = []
        self.cut = ""

    def reply(self, said: str, *, tokens: int, temperature: float = 0.0) -> str:
        """Answer, writing to standard output as the tokens come; returns the reply.

        Args:
            said: the next turn of the user.
            tokens: of the reply, at most; fewer where the model reads no more.
            temperature: 0 for the likeliest token each time.

        Raises:
            InvalidArgumentError: a conversation that leaves no room for a reply; it stays as it was.
        """
        said = said.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # bytes that are no text
        turns = [*self.turns, {"role": "user", "content": said}]
        inputs = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        size = inputs["input_ids"].shape[1]
        room = self.longest - size
        if room < 1:
            raise InvalidArgumentError(
                f"chat: the conversation and its reply must fit into the {self.longest:,} tokens that the model "
                f"reads, got {size:,} without the reply; say less, begin again, or extend the model further"
            )
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs, streamer=streamer, max_new_tokens=min(tokens, room), **({"do_sample": False} | sampling)
            )
        ends = self.model.generation_config.eos_token_id
        ended = int(generated[0, -1]) in (ends if isinstance(ends, list) else [ends])
        full = generated.shape[1] == self.longest
        within = generated.shape[1] - size < tokens and not full
        self.cut = (
            "" if ended or within else "nothing more fits" if full else f"no more than {tokens:,} were asked for"
        )
        text: str = self.tokenizer.decode(generated[0, size:], skip_special_tokens=True)
        self.turns = [*turns, {"role": "assistant", "content": text}]
        return text


def interactive() -> bool:
    """Whether somebody types at a terminal."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def asked(show: str = "> ") -> Iterator[str]:
    """What is typed, line by line, until the end of the input or a word that ends the conversation.

    What is piped in is read without the sign that asks for it.
    """
    at_terminal = interactive()
    if at_terminal:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 # lines are edited, and earlier ones come back
    while True:
        try:
            line = input(show if at_terminal else "").strip()
        except EOFError:
            if at_terminal:
                print()  # what comes next has a line of its own
            return
        except RuntimeError as error:  # how Python says that there is no input at all
            raise InvalidArgumentError(
                f"prompt: must be given where there is no input to read, got {error}; say one"
            ) from error
        if line in ENDINGS:
            return
        if line:
            yield line


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = read_tokenizer(resolve(name))
    if not tokenizer.chat_template:
        raise UnsupportedModelError(
            f"{name}: its tokenizer must have a chat template to talk with, got none; take a model that was tuned to "
            f"converse, or put its chat_template.jinja beside the tokenizer"
        )
    require_ending(tokenizer, name)
    return tokenizer
