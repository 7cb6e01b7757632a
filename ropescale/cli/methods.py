"""List every method of the registry, with its knobs and their defaults."""

import argparse

from ropescale import listing, outside
from ropescale.cli.next_line import say_next

HELP = "list the methods and their knobs"
DOING = "listing the methods"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from rich.table import Table

    from ropescale.console import Console

    common = listing.common_knobs()
    table = Table("method", "knobs", "what it does", caption=f"and of every method: {', '.join(common)}")
    listed = listing.shipped()
    if outside.options():
        from ropescale.methods import get_method, list_methods

        others = {name: listing.of_class(get_method(name)) for name in list_methods() if name not in listed}
        listed = dict(sorted({**listed, **others}.items()))
    for name, method in listed.items():
        table.add_row(name, ", ".join(knob for knob in method.knobs if knob not in common), method.summary)
    Console().print(table, markup=False)
    return say_next("explain", "tiny", "--methods", "yarn,ntk", "--factor", 4)
