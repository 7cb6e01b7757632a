"""What is printed: nothing that a terminal obeys gets there out of a file or a library's mouth.

Names, configs and messages may have been written by somebody else, and a terminal obeys what they hold: it clears the
screen, moves up a line and writes "nothing found". Colours and bars are ours, so they go around this.
"""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from ropescale.errors import cleaned

MOVES = re.compile(r"(?:\n|\x1b\[A)*")  # how tqdm moves between bars, in writes of nothing else


class Clean:
    """A stream that cleans what is written to it; in all else the stream behind it."""

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream  # by which rich goes around it

    def write(self, text: str) -> int:
        """Write a text, cleaned; its length. A bar may begin at the start of its line again."""
        if not MOVES.fullmatch(text):
            start = "\r" if text.startswith("\r") else ""
            self.rich_proxied_file.write(start + cleaned(text[len(start) :], lines=True))
        else:
            self.rich_proxied_file.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, cleaned."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guarded(work: Callable[..., int]) -> Callable[..., int]:
    """A command during which everything printed is cleaned: by us, in warnings, in logs."""

    @functools.wraps(work)
    def run(*arguments: Any, **keywords: Any) -> int:
        before = sys.stdout, sys.stderr
        with contextlib.ExitStack() as streams:
            sys.stdout, sys.stderr = (Clean(streams.enter_context(_taking_all(stream))) for stream in before)
            try:
                return work(*arguments, **keywords)
            finally:
                sys.stdout, sys.stderr = before

    return run


@contextlib.contextmanager
def _taking_all(stream: TextIO | None) -> Iterator[TextIO]:
    """A stream that takes any text, as long as the block lasts.

    One that was closed before the command began takes it nowhere, and what its encoding has no letter for is written
    as Python would write it: of a terminal in ASCII, or a name of bytes that are no text.
    """
    if stream is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield nowhere
    elif isinstance(stream, io.TextIOWrapper):
        errors = stream.errors
        stream.reconfigure(errors="backslashreplace")
        try:
            yield stream
        finally:
            stream.reconfigure(errors=errors)
    else:
        yield stream
