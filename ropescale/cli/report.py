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
example:
  ropescale report out/eval-tiny
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the output folder of an evaluation")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ropescale.evals import report, results

    print(report.write(arguments.folder))
    return say_next(*after_results(results.read(arguments.folder), ()))
