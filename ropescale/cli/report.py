"""Write the report of a folder of results, finished or not: report.html (one file that opens from disk), report.md,
report.json, model-card.md and evaluate.json.
"""

import argparse
from pathlib import Path

from ropescale.cli.next_line import after_results, say_next

HELP = "write the report of finished results"
DOING = "reporting {folder}"
EXTRAS = ("eval",)
EXAMPLES = """\
examples:
  ropescale report out/eval-tiny
  ropescale report out/eval-tiny --target-length 512      what to do for that length
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the output folder of an evaluation")
    parser.add_argument(
        "--target-length",
        type=int,
        metavar="N",
        help="tokens that the model is wanted for (default: those of the evaluation, else the longest that it tested)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ropescale.evals import report, results

    print(report.write(arguments.folder, target_length=arguments.target_length))
    found = results.read(arguments.folder).wanted_for(arguments.target_length)
    return say_next(*after_results(found, ()))
