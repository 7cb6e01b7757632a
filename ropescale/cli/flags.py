"""Print the settings by which a training framework means a scaling, and what it reads otherwise than it says. Where
its settings have no words for the scaling, the command comes first that writes a folder whose config has them.

SRC is the unmodified checkpoint, with --method, or a folder that is extended already. No weight is read, and nothing
is written. What is said of a framework was read in its source, at the commit that is named, and was not run.
"""

import argparse
import json

from ropescale.cli.arguments import EXTENDING, add_extension, add_knobs, add_layers, add_original_length, add_trust
from ropescale.cli.quiet import quieten_transformers

HELP = "the settings of a training framework that mean a scaling, and what it misreads"
DOING = "telling {framework} of {source}"
NAMES = "axolotl, llama_factory, ms_swift, unsloth or verl"
EXAMPLES = """\
examples:
  ropescale flags tiny --for axolotl --method yarn --factor 4
  ropescale flags path/to/model --for verl --method yarn --target-length 131072
  ropescale flags path/to/extended --for llama_factory --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("source", metavar="SRC", help="a folder, tiny, smollm2 or a hub id")
    add("--for", dest="framework", required=True, metavar="NAME", help=NAMES)
    add_extension(parser, method=None, summary="a registry name; left out where SRC is extended already")
    add_original_length(parser)
    add_knobs(parser)
    add("--existing", default="error", metavar="HOW", help="of a scaled checkpoint: error (default), replace, compose")
    add_layers(parser)
    add("--json", action="store_true", help="print it as JSON")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_transformers()
    from ropescale.frameworks import flags
    from ropescale.request import require_knobs

    if arguments.method not in (None, "none"):
        require_knobs(arguments.method, arguments.knobs)  # which may not name the other arguments
    told = flags(
        arguments.source, **{name: getattr(arguments, name) for name in ("framework", *EXTENDING)}, **arguments.knobs
    )
    print(json.dumps(told.to_dict(), indent=2) if arguments.json else told)
    return 0
