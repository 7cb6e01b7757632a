"""List every method of the registry, with its knobs and their defaults."""

import argparse

from ropescale import listing, outside
from ropescale.cli.arguments import Verbs, add_verb
from ropescale.cli.next_line import say_next


def add_to(verbs: Verbs) -> None:
    """Its parser, among those of the other verbs."""
    add_verb(
        verbs,
        "methods",
        _run,
        doing="listing the methods",
        help="list the methods and their knobs",
        description=__doc__,
    )


def _run(arguments: argparse.Namespace) -> int:
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
