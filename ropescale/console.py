"""Rich's console, with texts that are cleaned: it goes around `terminal`, because its own colours have to."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from ropescale.errors import cleaned


class Console(rich.console.Console):
    """Rich's, whose texts are cleaned; its own colours and movements are not texts."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """The segments of something, cleaned."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(cleaned(segment.text, lines=True), segment.style)
