"""Print what a checkpoint's config says about positions: theta, pairs and lengths, wavelengths against the original
length, pairs that never complete a turn, and what is scaled already with what that implies. Reads no weights.
"""

import argparse

from ropescale.cli.arguments import MODEL, add_original_length
from ropescale.cli.next_line import say_next

HELP = "a checkpoint's geometry, wavelengths, and what is scaled already"
DOING = "reading the config of {model}"
EXAMPLES = """\
examples:
  ropescale inspect tiny
  ropescale inspect path/to/checkpoint
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_original_length(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from rich.table import Table

    from ropescale.console import Console
    from ropescale.explain import inspection

    config, parts = inspection.inspected(arguments.model, original_length=arguments.original_length)
    console = Console()
    for part in parts:
        of = f"{config.model_type}, {part.label} layers" if part.label else config.model_type
        facts = Table("", "", "", title=of, show_header=False)
        for fact, (value, said) in part.facts().items():
            facts.add_row(fact, value, said)
        pairs = Table("pair", "tokens per turn", f"turns over the {part.span}", "slowed today by")
        for row in part.rows():
            pairs.add_row(*row)
        console.print(facts, *([pairs] if part.rows() else []), markup=False)
    console.print("facts of the config; what a patch does is proven on the loaded model", markup=False)
    return say_next("doctor", arguments.model)
