"""The command line: one file a verb, with its options and the few lines that call the library.

Heavy imports stand inside the calls, so that `ropescale --help` answers at once.
"""

import argparse
import importlib
import itertools
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from ropescale import checkpoints, failures, listing, outside
from ropescale.checks import did_you_mean, nearest
from ropescale.errors import CheckpointError, cleaned
from ropescale.evals.tasks import base
from ropescale.spelling import Names, OneSpelling, names_of, spelled
from ropescale.terminal import guarded
from ropescale.trust import trusting
from ropescale.version import __version__

OVERVIEW = """\
One call gives a pretrained rotary model a longer context, and the evidence that it worked.

examples:
  ropescale demo                      compare methods on the embedded model, one of them trained, in minutes
  ropescale eval path/to/checkpoint   the same on a checkpoint of yours; --dry-run prints the cost first
  ropescale recommend path/to/yours --target-length N   what to do with it, and the next commands
  ropescale methods                   the methods there are, with their knobs
  ropescale inspect path/to/yours     its geometry, its wavelengths, and what is scaled already
  ropescale doctor path/to/yours      what is wrong with it, and the remedy
  ropescale rescale SRC DST --factor 4    the same weights with a longer context, without loading them
  ropescale plot tiny                 wavelengths of every pair under several methods
  ropescale explain tiny              what positions do to a score, in pictures and numbers
  ropescale search tiny --factor 8    factors of each pair that are found on the model itself, no training
  ropescale fit tiny --factor 4       the coefficient of a temperature, fitted on the model itself
  ropescale report out/eval-tiny      write the report again from finished results
  ropescale train pose --model tiny   a brief fine-tune that makes an extension hold; `train --list` names the recipes
  ropescale merge ADAPTER DST         add a trained adapter into its base: a full checkpoint with the right config
  ropescale export SRC DST --to ENGINE    write a checkpoint for an engine; verify-export runs the engine and compares
  ropescale verify-server URL --reference SRC    ask a running server whether it computes what is meant
  ropescale flags SRC --for FRAMEWORK     the settings of axolotl, verl ... that mean a scaling, and what each misreads
  ropescale memory tiny --length 512  what a length needs of a device's memory
  ropescale chat path/to/extended     talk with it
"""
# Each in the file of its name; in the order of `ropescale --help`
VERBS = (
    "demo",
    "eval",
    "recommend",
    "methods",
    "inspect",
    "doctor",
    "rescale",
    "explain",
    "plot",
    "search",
    "fit",
    "train",
    "merge",
    "report",
    "export",
    "verify-export",
    "verify-server",
    "flags",
    "memory",
    "chat",
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 found something wrong or failed in a way that nobody foresaw, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    # Waiting threads that spin cost five times the time where the cores are shared; torch reads this when it starts
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # PEFT loads it where it is installed, and it warns of a kernel that only inference in 4 bits would use
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    given = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["ropescale", *given])
    if {"-h", "--help"} & {*given} and (
        code := failures.ended(lambda: _listed(given), doing="listing", command=command, spelled=str)
    ):
        return code
    parser = _parser()
    try:
        arguments, unknown = parser.parse_known_args(given)
        if unknown:
            _refuse_options(_verbs(parser)[arguments.name], unknown)
    except SystemExit as stop:  # argparse has printed the help (0) or what is wrong (2)
        return int(stop.code or 0)
    arguments.command = command

    def work() -> int:
        _require_here()
        outside.run_files(arguments.imports)
        _refuse_misspelt(arguments)
        if not _answers_alone(arguments):
            failures.require_extras(f"ropescale {arguments.name}", arguments.extras)
        with trusting(getattr(arguments, "trust_remote_code", False)):
            code: int = arguments.verb(arguments)
        return code

    return failures.ended(
        work,
        doing=arguments.doing.format(**vars(arguments)),
        command=arguments.command,
        spelled=lambda text: spelled(text, _names(parser, arguments.name)),
        extras=arguments.extras,
    )


def _listed(given: Sequence[str]) -> int:
    """Have the help list what files outside the package define, wherever the command line names them."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--import", dest="imports", action="append", default=[], nargs="?")
    early.add_argument("--include-path", nargs="?")
    named, _ = early.parse_known_args(given)
    outside.run_files(filter(None, named.imports))
    if named.include_path:
        base.load(named.include_path)
    return 0


def _require_here() -> None:
    """Refuse to run in a folder that was removed: torch ends the process there when it loads.

    Raises:
        CheckpointError: it was.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise CheckpointError(
            "the folder that this runs in: must be there, got one that was removed; change into another"
        ) from error


def _answers_alone(arguments: argparse.Namespace) -> bool:
    """Whether a verb only tells something that needs none of its packages."""
    return any(getattr(arguments, name, False) for name in ("list", "task_folder"))


def _refuse_misspelt(arguments: argparse.Namespace) -> None:
    """Answer a misspelt model or method before anything heavy loads."""
    for name in ("model", "source"):
        if isinstance(model := getattr(arguments, name, None), str):
            checkpoints.refuse_misspelt(model)
    if "ropescale.methods" in sys.modules:  # the registry answers itself, and knows methods that were defined since
        return
    given = getattr(arguments, "methods", None) or getattr(arguments, "method", None) or []
    of_recipe = getattr(arguments, "options", [])
    given = [given] if isinstance(given, str) else list(given)
    given += [value for option, value in itertools.pairwise(of_recipe) if option in ("--method", "--methods")]
    for name in given:
        if name != "none" and name not in listing.shipped():
            raise listing.unknown_method(name, listing.shipped())


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(kinds[0].choices)


def _refuse_options(verb: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """Print what a verb does not take, with the nearest option that it does; ends as argparse ends."""
    first = unknown[0].partition("=")[0]
    near = nearest(first, verb._option_string_actions) if first.startswith("-") else None
    guess = f"; did you mean {near}?" if near else ""
    verb.error(f"unrecognized arguments: {cleaned(shlex.join(unknown))}{guess}")


def _names(parser: argparse.ArgumentParser, verb: str) -> Names:
    """How the options of a verb are written, and behind them those of all others, which a sentence may speak of."""
    parsers = _verbs(parser)
    names = names_of(parsers[verb])
    if (
        verb == "train" and "ropescale.recipes.reading" in sys.modules
    ):  # it was read already, or nothing is wrong there
        from ropescale.recipes.reading import parser as of_recipe

        names = names_of(of_recipe("RECIPE"))
    for other, parser_of_it in parsers.items():
        names = names.beside(names_of(parser_of_it), other)
    return names


class _Parser(argparse.ArgumentParser):
    """The parser of the verbs: a misspelt one is answered with the nearest."""

    def error(self, message: str) -> NoReturn:
        given = re.search(r"argument VERB: invalid choice: '([^']+)'", message)
        guess = did_you_mean(given[1], VERBS) if given else ""
        super().error("; ".join(filter(None, (message, guess))))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ropescale", description=OVERVIEW, formatter_class=OneSpelling)
    parser.add_argument("--version", action="version", version=f"ropescale {__version__}")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help="run a Python file first, so that verbs know what it defines; before the verb, repeatable",
    )
    verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", dest="name", required=True, parser_class=argparse.ArgumentParser
    )
    for name in VERBS:
        verb = importlib.import_module(f"ropescale.cli.{name.replace('-', '_')}")
        own = verbs.add_parser(
            name,
            help=verb.HELP,
            description=verb.__doc__,
            epilog=getattr(verb, "EXAMPLES", None),
            formatter_class=OneSpelling,
            allow_abbrev=False,
        )
        own.set_defaults(verb=verb.run, doing=verb.DOING, extras=getattr(verb, "EXTRAS", ()))
        verb.add_options(own)
    return parser
