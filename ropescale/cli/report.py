"""Write the report of a folder of results, finished or not: report.html (one file that opens from disk), report.md,
report.json, model-card.md and evaluate.json.
"""

import argparse
from pathlib import Path

from ropescale.cli.arguments import Verbs, add_verb
from ropescale.cli.next_line import after_results, say_next


def add_to(verbs: Verbs) -> None:
    """Its parser, among those of the other verbs."""
    parser = add_verb(
        verbs,
        "report",
        _run,
        doing="reporting {folder}",
        extras=("eval",),
        help="write the report of finished results",
        description=__doc__,
        epilog="example:\n  ropescale report out/eval-tiny",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the output folder of an evaluation")


def _run(arguments: argparse.Namespace) -> int:
    from ropescale.evals import report, results

    print(report.write(arguments.folder))
    return say_next(*after_results(results.read(arguments.folder), ()))
