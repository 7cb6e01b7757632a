"""A bar over documents or rows on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ropescale.console import Console
from ropescale.recipes.data.tokenised import Advance


@contextmanager
def bar(description: str, total: int | None) -> Iterator[Advance]:
    """A progress bar over documents (or rows), which also counts tokens."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} done, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,  # the account says it all
    ) as progress:
        task = progress.add_task(description, total=total, tokens=0)
        seen = [0]

        def advance(items: int, tokens: int) -> None:
            seen[0] += tokens
            progress.update(task, advance=items, tokens=seen[0])

        yield advance
