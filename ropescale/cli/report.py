"""Write the report of a folder of results, finished or not: report.html (one file that opens from disk), report.md,
report.json, model-card.md and evaluate.json. Of two folders, write what the second differs by from the first on the
samples that both have (comparison.html, comparison.md, comparison.json), and nothing into either.
"""

import argparse
from pathlib import Path

from ropescale.cli.arguments import list_of
from ropescale.cli.next_line import after_results, say_next
from ropescale.errors import InvalidArgumentError

HELP = "write the report of finished results, or compare two folders of them"
DOING = "reporting {folder}"
EXTRAS = ("eval",)
EXAMPLES = """\
examples:
  ropescale report out/eval-tiny
  ropescale report out/eval-tiny --target-length 512      what to do for that length
  ropescale report out/before out/after                   what changed, on the samples that both have
  ropescale report out/before out/after --arms none=yarnx4,yarnx4=yarnx4 --output out/changed
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the output folder of an evaluation")
    add("other", type=Path, nargs="?", metavar="OTHER", help="that of another one, which is compared with the first")
    add(
        "--target-length",
        type=int,
        metavar="N",
        help="tokens that the model is wanted for (default: those of the evaluation, else the longest that it tested)",
    )
    add(
        "--arms",
        type=list_of(str),
        metavar="A=B,...",
        help="which arm of DIR is compared with which of OTHER (default: those of the same name)",
    )
    add("--output", type=Path, metavar="DIR", help="where a comparison goes (default: out/compare-DIR-OTHER)")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    if arguments.other is not None:
        return _compared(arguments)
    for name in ("arms", "output"):
        if (value := getattr(arguments, name)) is not None:
            raise InvalidArgumentError(
                f"report: {name} must be left out for one folder, whose report is written into it, got {value!r}; "
                f"name a second folder to compare"
            )
    from ropescale.evals import report, results

    print(report.write(arguments.folder, target_length=arguments.target_length))
    found = results.read(arguments.folder).wanted_for(arguments.target_length)
    return say_next(*after_results(found, ()))


def _compared(arguments: argparse.Namespace) -> int:
    from ropescale.console import Console
    from ropescale.evals import paired
    from ropescale.evals.paired.terminal import print_differences

    if arguments.target_length is not None:
        raise InvalidArgumentError(
            f"report: target_length must be left out for two folders, got {arguments.target_length!r}; it is about "
            f"the report of one"
        )
    one, other = arguments.folder, arguments.other
    arms = [_pair(pair) for pair in arguments.arms or ()]
    made = paired.differences(one, other, arms=arms)
    output = arguments.output or Path("out", f"compare-{one.resolve().name}-{other.resolve().name}")
    page = paired.write(made, output)
    print_differences(made, Console())
    print(page)
    return say_next("report", other)


def _pair(given: str) -> tuple[str, str]:
    """An arm of the first folder and one of the second.

    Raises:
        InvalidArgumentError: not two.
    """
    one, _, other = given.partition("=")
    if not (one and other):
        raise InvalidArgumentError(
            f"report: arms must be one of each folder, got {given!r}; write both with an equals sign between them"
        )
    return one, other
