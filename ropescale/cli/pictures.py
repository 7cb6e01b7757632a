"""What `explain` and `plot` share: methods at one length, drawn for each rotation of a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from ropescale.cli.arguments import MODEL, add_methods, add_start, add_trust, one_of


def add_picture(parser: argparse.ArgumentParser, what: str, *, methods: str, output: str) -> None:
    """What is drawn, and the file."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add_methods(parser, methods)
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--factor", "--factors", type=one_of(float), metavar="X", help="target / original length (default: 4)"
    )
    target.add_argument(
        "--length", "--lengths", type=one_of(int), metavar="N", help="the target in tokens, instead of a factor"
    )
    add_start(parser, existing="replace (default), compose")
    add(
        "--layers",
        default="global",
        choices=("global", "all"),
        metavar="WHICH",
        help=f"where layer types have rotations of their own: global (default), one {what}, of those that read the "
        f"whole context; all, a {what} for each",
    )
    add("--output", type=Path, metavar="FILE", help=output)
    add_trust(parser)


def pictured(arguments: argparse.Namespace, path: Path) -> list[tuple[Path, str, Any]]:
    """Where each rotation of a checkpoint is drawn, what it is called, and its facts.

    The first, of the layers that read the whole context, at the path; others beside it, named after their layers.
    """
    from ropescale.explain import subject

    given = {name: getattr(arguments, name) for name in ("original_length", "existing", "layers")}
    found = subject.facts_by_layers(arguments.model, **given)
    return [
        (
            path.with_stem(f"{path.stem}-{one[0]}") if i else path,
            f"{arguments.model}, {one[0]} layers" if len(found) > 1 else arguments.model,
            one,
        )
        for i, one in enumerate(found)
    ]
