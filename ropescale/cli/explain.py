"""Explain what positions do to a score in a model, and what methods make of it: wavelengths against the original
length, score against relative distance, the first distance at which like scores below unlike, the pairs that never
complete a turn, the distances that late methods show to the rotation, and addition against rotation. Reads the config
alone, no weights; prints the numbers, and writes one page that opens from disk.
"""

import argparse
from pathlib import Path

from ropescale.cli.arguments import json_object
from ropescale.cli.next_line import say_next
from ropescale.cli.pictures import add_picture, pictured

HELP = "what positions do to a score, in pictures"
DOING = "explaining {model}"
EXAMPLES = """\
examples:
  ropescale explain tiny
  ropescale explain smollm2 --methods yarn,by_parts,rerope --factor 8
  ropescale explain path/to/checkpoint --length 131072 --output out/mine.html
  ropescale explain tiny --methods nope --knobs '{"nope": {"every": 4, "temperature": "log_n"}}'
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add_picture(parser, "page", methods="some of every kind", output="the page (default: out/explain-MODEL.html)")
    parser.add_argument(
        "--knobs",
        type=json_object,
        default={},
        metavar="JSON",
        help="""of the methods, as in '{"abf": {"theta": 500000}}'; log_n and temperature may stand among them""",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from rich.table import Column, Table

    from ropescale.console import Console
    from ropescale.explain import page, readings, subject

    names = arguments.methods or subject.METHODS
    path = arguments.output or Path("out", f"explain-{Path(arguments.model).name}.html")
    given = {"factor": arguments.factor, "length": arguments.length, "knobs": arguments.knobs}
    beside = subject.temperatures(names, arguments.knobs)
    for place, what, (_, geometry, heads) in pictured(arguments, path):
        methods, length = subject.chosen_methods(names, geometry, **given)
        found = readings.readings(geometry, methods, length=length, heads=heads, temperatures=beside)
        page.write(place, page.page(what, geometry, found))
        table = Table("", "", "", title=f"rotary facts of {what}", show_header=False)
        for fact, (value, said) in readings.facts(geometry, found[0]).items():
            table.add_row(fact, value, said)
        effects = Table(Column(no_wrap=True), *readings.EFFECTS, title=f"the query at position {length - 1:,}")
        for reading in found:
            effects.add_row(reading.name, *readings.effects(reading, found[0]))
        Console().print(table, effects, markup=False)
        print(f"page: {place}")
    return say_next("plot", arguments.model, "--length", length)
