"""Say what to do with a model that is to read so many tokens: race the unpatched model against a short list of methods
on needles and on your own texts, search for factors of its own where the budget has room, and ask what is taken the
prompts of another seed. Prints a ranked table with intervals, what short prompts lose, memory and time, whether
training is worth it, and the exact next commands. A run that was stopped goes on when the same command is given again.
"""

import argparse
from pathlib import Path

from ropescale import listing
from ropescale.cli.arguments import (
    MODEL,
    add_device,
    add_layers,
    add_loading,
    add_start,
    add_trust,
    either,
    list_of,
    minutes,
)
from ropescale.cli.eval import cells_kept
from ropescale.cli.quiet import quieten_libraries

HELP = "what to do with a model: a race of methods, a search, and the next commands"
DOING = "advising on {model}"
EXTRAS = ("eval", "search")
EXAMPLES = """\
examples:
  ropescale recommend tiny --target-length 512
  ropescale recommend smollm2 --target-length 16384 --budget 2h --data path/to/texts
  ropescale recommend path/to/checkpoint --target-length 32768 --methods yarn,ntk,self_extend
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"{MODEL}; unpatched")
    add("--target-length", type=int, required=True, metavar="N", help="tokens that it is to read")
    add("--budget", type=minutes, metavar="TIME", help="as in 90s, 30m or 2h (default: 30m; tiny: 2m)")
    add("--data", dest="texts", metavar="NAME", help="your texts: a path to files, or sample, or speeches")
    add("--methods", "--method", type=list_of(str), metavar="A,B", help="to race in the place of the short list")
    add("--serve-with", metavar="ENGINE", help=f"race what it holds exactly: {either(listing.engines())}")
    add_start(parser, existing="error (default), replace, compose")
    add_layers(parser)
    add("--seed", type=int, metavar="N", help="of the prompts (default: 0)")
    add_device(parser)
    add_loading(parser)
    add("--output", type=Path, metavar="DIR", help="where everything goes (default: out/recommend-MODEL-N)")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_libraries()
    import dataclasses

    from ropescale.console import Console
    from ropescale.recommend import Options, recommend
    from ropescale.recommend.terminal import print_advice

    names = {field.name for field in dataclasses.fields(Options)}
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    options = Options(**given)
    words = ("recommend", Path(options.model).name, str(options.target_length), options.serve_with)
    folder = arguments.output or Path("out", "-".join(filter(None, words)))
    try:
        advice = recommend(options, folder, arguments.command)
    except KeyboardInterrupt:
        return cells_kept(folder)
    print_advice(advice, Console())
    print(f"results: {folder}\npage:    {folder / 'recommend.html'}")
    print(f"next: {advice.commands[0].line}")
    return 0
