"""Write a full checkpoint from an adapter: its base with the adapter added into the weights. One that was trained on a
patched model gets that patch: Transformers loads it with the extended context wherever it can express the method, and
ropescale.load always. The base of a plain PEFT adapter stays as it is; `ropescale export --adapter` extends it too.
The destination is complete or not there at all.
"""

import argparse
from pathlib import Path

from ropescale.cli.arguments import add_trust
from ropescale.cli.next_line import say_eval

HELP = "add a trained adapter into its base"
DOING = "merging {adapter}"
EXTRAS = ("train",)
EXAMPLES = """\
examples:
  ropescale merge out/train-tiny out/merged --base tiny
  ropescale merge path/to/adapter path/to/merged --dtype bfloat16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", help="a folder or hub id with an adapter, of ropescale or of PEFT alone")
    add("destination", type=Path, metavar="DST", help="a folder that is not there or empty")
    add("--base", metavar="MODEL", help="tiny, smollm2, a path or a hub id (default: what the adapter's config names)")
    add("--dtype", metavar="TYPE", help="of the weights: auto (as the base's, the default), float32, bfloat16 ...")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ropescale import adapters
    from ropescale.console import Console

    given = {} if arguments.dtype is None else {"dtype": arguments.dtype}
    with Console(stderr=True).status("merging"):
        print(adapters.merge(arguments.adapter, arguments.destination, arguments.base, **given))
    return say_eval(arguments.destination, "--methods", "none", "--quick")
