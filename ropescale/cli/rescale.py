"""Write a checkpoint with a longer context beside an existing one, without loading its weights: the config that a
patched model would be saved with, all other files as they are, and the limits of tokenizer and generation raised to
the new length. SRC is only read; DST must be new, or an empty folder, and is complete or not there at all.
"""

import argparse
from pathlib import Path

from ropescale.cli.arguments import MODEL, add_extension, add_knobs, add_original_length
from ropescale.cli.next_line import say_eval

HELP = "write a checkpoint with a longer context, weights unread"
DOING = "extending {source}"
EXAMPLES = """\
examples:
  ropescale rescale path/to/model path/to/model-32k --method yarn --factor 4
  ropescale rescale smollm2 smollm2-32k --target-length 32768 --link
  ropescale rescale path/to/llama-3.1 llama-512k --factor 4 --existing compose
  ropescale rescale path/to/model out --method yarn --factor 8 --knobs '{"beta_fast": 16}'
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("source", metavar="SRC", help=MODEL)
    add("destination", type=Path, metavar="DST", help="a folder that is not there or empty")
    add_extension(parser, method="yarn", summary="a registry name (default: yarn)")
    add_original_length(parser)
    add(
        "--existing", default="error", metavar="NAME", help="of a scaled checkpoint: error (default), replace, compose"
    )
    add(
        "--layers",
        default="global",
        metavar="NAME",
        help="where layer types differ: global (default) rescales those that read the whole "
        "context if each type has its own rotation, else all; full those alone, in attention; all every layer",
    )
    add_knobs(parser)
    add("--link", action="store_true", help="hard-link the weights in the place of a copy, where that is possible")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ropescale.request import require_knobs
    from ropescale.rescaling import rescale_checkpoint

    require_knobs(arguments.method, arguments.knobs)  # which may not name the other arguments
    folder = rescale_checkpoint(
        arguments.source,
        arguments.destination,
        arguments.method,
        factor=arguments.factor,
        target_length=arguments.target_length,
        original_length=arguments.original_length,
        existing=arguments.existing,
        layers=arguments.layers,
        link=arguments.link,
        **arguments.knobs,
    )
    print(f"checkpoint: {folder}")
    print("written from the config, no model was read: ropescale.load proves the patch on the model")
    return say_eval(folder, "--methods", "none", "--quick")
