"""What is printed: nothing that a terminal obeys gets there out of a file or a library's mouth.

Names, configs and messages may have been written by somebody else, and a terminal obeys what they hold: it clears the
screen, moves up a line and writes "nothing found". Colours and bars are ours, so they go around this.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterable
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
        sys.stdout, sys.stderr = Clean(sys.stdout), Clean(sys.stderr)
        try:
            return work(*arguments, **keywords)
        finally:
            sys.stdout, sys.stderr = before

    return run
