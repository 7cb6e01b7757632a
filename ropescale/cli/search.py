"""Search on the model itself for what reads a longer context best, without training: a stretch for each pair of its
rotation (LongRoPE, LongRoPE2) and the attention factor, or a few knobs of any method. Candidates are swapped into the
loaded model and read the same texts and needles; texts that no candidate has read say what the found one is worth
against the best formulas, with intervals. The output folder gets search.html, search.json and knobs.json, which
--knobs of other verbs takes; a search that was stopped goes on where it was when the same command is given again, to
what it would have come to.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ropescale import failures
from ropescale.cli.arguments import (
    MODEL,
    add_device,
    add_layers,
    add_loading,
    add_start,
    add_temperature,
    add_trust,
    json_object,
    list_of,
    minutes,
)
from ropescale.cli.next_line import say_next
from ropescale.cli.quiet import quieten_libraries

if TYPE_CHECKING:
    from ropescale.search import Found

HELP = "find factors of each pair, or knobs, on the model itself"
DOING = "searching on {model}"
EXTRAS = ("search",)
EXAMPLES = """\
examples:
  ropescale search tiny --factor 8 --budget 5m
  ropescale search path/to/model --target-length 32768 --data path/to/texts --budget 2h --output out/searched
  ropescale search path/to/model --factor 4 --space critical --objective needle       as LongRoPE2 does
  ropescale search tiny --factor 4 --space knobs --method yarn --budget 2m            where yarn's ramp begins and ends
  ropescale search tiny --factor 4 --space knobs --method rerope --log-n --ranges '{"window": [8, 96]}'
  accelerate launch --cpu --num_processes 2 --module ropescale.cli search tiny --factor 8     candidates shared

objectives (nats a token; --weights '{"needle": 0.2, "text": 1, "short": 0.5}' for a sum of your own):
  sum        text, a tenth of needle, and what short prompts lose (default)
  text       tokens of text beyond the original length
  position   the same, with every doubling of positions counted alike
  needle     the tokens of an answer whose needle stands far away
  longppl    the tokens of text that a long context makes likely
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"{MODEL}; unpatched")
    add("--factor", "--factors", type=float, metavar="X", help="target / original length")
    add("--target-length", type=int, metavar="N", help="tokens wanted, instead of a factor")
    add("--space", default="pairs", metavar="NAME", help="pairs (default), critical (LongRoPE2's), or knobs")
    add("--method", "--methods", metavar="NAME", help="of --space knobs: whose knobs")
    add(
        "--ranges",
        type=json_object,
        default={},
        metavar="JSON",
        help="""of --space knobs: two bounds or a list of values, as in '{"beta_fast": [8, 64]}' (default: its own)""",
    )
    add("--objective", default="sum", metavar="NAME", help="see below (default: sum)")
    add("--weights", type=json_object, default={}, metavar="JSON", help="of figures, in the place of the objective's")
    add("--budget", type=minutes, metavar="TIME", help="as 90s, 30m or 2h, the comparison at the end included")
    add("--candidates", type=int, metavar="N", help="at most (default: 300 without a budget)")
    add("--data", "--texts", metavar="NAME", help="sample (tiny: default), speeches (others: default), or a path")
    add("--windows", type=int, metavar="N", help="of text in a batch, which a generation reads (default: 8)")
    add("--needles", type=int, metavar="N", help="in a batch, of each of five depths (default: 1)")
    add("--batches", type=int, metavar="N", help="which generations read in turn (default: 12)")
    add("--held-out", type=int, metavar="N", help="windows, and needles, to compare by in the end (default: 60)")
    add(
        "--prefixes",
        type=list_of(int),
        metavar="N,N",
        help="LongRoPE's first tokens that are not scaled, tried in the end (default: none)",
    )
    add("--seed", type=int, metavar="N", help="of candidates and needles (default: 0)")
    add_start(parser, existing="error (default), replace, compose")
    add_layers(parser)
    add_temperature(parser, log_n="with every candidate")
    add_device(parser)
    add_loading(parser)
    add("--output", type=Path, metavar="DIR", help="where everything goes (default: out/search-MODEL-xFACTOR)")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_libraries()
    from ropescale.contents import read_tokenizer
    from ropescale.loading import Loading
    from ropescale.search import Options, search
    from ropescale.search.ledger import place

    fields = {item.name for item in dataclasses.fields(Options)}
    asked = {name: value for name, value in vars(arguments).items() if name in fields and value is not None}
    Options(**asked)  # what can be refused is refused before a model loads
    loading = Loading.of(arguments)
    wanted = f"x{arguments.factor:g}" if arguments.factor else arguments.target_length
    folder = arguments.output or Path("out", f"search-{Path(arguments.model).name}-{wanted}")
    model = loading.model(arguments.model)
    try:
        found = search(
            model,
            read_tokenizer(loading.path(arguments.model)),
            data=arguments.data or ("sample" if arguments.model == "tiny" else "speeches"),
            output=folder,
            command=arguments.command,
            quiet=False,
            **asked,
        )
    except KeyboardInterrupt:
        return failures.stopped(f"{folder} keeps what was judged, the same command goes on")
    if place()[0]:
        return 0
    _say(found, folder)
    source = arguments.model if arguments.revision is None else loading.path(arguments.model)
    return _next(found, source, folder)


def _say(found: "Found", folder: Path) -> None:
    """The comparison on held-out samples as a table, and where the files are."""
    from rich.table import Table

    from ropescale.console import Console
    from ropescale.search.page import KNOBS, PAGE, verdict
    from ropescale.search.result import FOUND, MEASURES

    table = Table("", *(MEASURES[measure] for measure in found.measures), title="nats a token, held out")
    for name, arm in found.arms.items():
        cells = []
        for measure in found.measures:
            said = f"{arm.mean(measure):.3f}"
            if name != FOUND:
                value, low, high = found.against(name, measure)
                said += f"  (found {value:+.3f}, {low:+.3f} to {high:+.3f})"
            cells.append(said)
        table.add_row(name, *cells)
    Console().print(table, markup=False)
    print(f"{verdict(found)}\nresults: {folder}\nknobs:   {folder / KNOBS}\npage:    {folder / PAGE}")


def _next(found: "Found", model: str, folder: Path) -> int:
    """What follows: a checkpoint with the found factors, or a look at a method that acts in attention."""
    from ropescale.search.page import KNOBS

    given = []
    for name, value in found.given.items():
        given += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    more = ["--factor", f"{found.method.factor:g}", "--knobs", folder / KNOBS, *given]
    if found.exports and not {"log_n", "temperature"} & set(found.given):
        longer = f"out/{Path(model).name}-searched-x{found.method.factor:.4g}"
        return say_next("rescale", model, longer, "--method", found.method.name, *more)
    return say_next("train", "pose", "--model", model, "--method", found.method.name, *more)
