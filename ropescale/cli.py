"""The command line: one verb per job, each a few lines that call the library.

Heavy imports stand inside the verbs, so that `ropescale --help` answers at once.
"""

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ropescale.errors import RopescaleError
from ropescale.version import __version__

OVERVIEW = """\
One call gives a pretrained rotary model a longer context, and the evidence that it worked.

examples:
  ropescale demo                      compare methods on the embedded model, in about a minute
  ropescale demo --model smollm2      the same on a real model: 135M parameters, 12,288 tokens; hours on a CPU
  ropescale methods                   the methods there are, with their knobs
  ropescale report out/demo-tiny      write report.html again from finished results
"""

DEMO = """\
Compare the unpatched model with methods at factors: perplexity by position on held-out texts, and passkeys by
depth and length. Prints a table; writes results.jsonl, run.json and report.html into the output folder. A run that
was stopped goes on where it was when the same command is given again.
"""

DEMO_EXAMPLES = """\
examples:
  ropescale demo
  ropescale demo --methods yarn,ntk --factors 4
  ropescale demo --model smollm2 --lengths 4096,10240,12288 --samples 3
  ropescale demo --model path/to/checkpoint --factors 2,4 --output out/mine

more methods can be added to a finished folder: give the same command with the longer list (more factors too, where
--lengths stays the same)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (found something wrong) or 2 (wrong usage)."""
    # Waiting threads that spin cost five times the time where the cores are shared; torch reads this when it starts
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        arguments = parser.parse_args(given)
    except SystemExit as stop:  # argparse has printed the help (0) or what is wrong (2)
        return int(stop.code or 0)
    arguments.command = shlex.join(["ropescale", *given])
    try:
        code: int = arguments.verb(arguments)
    except RopescaleError as error:
        print(f"ropescale: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="ropescale", description=OVERVIEW, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"ropescale {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    demo = verbs.add_parser(
        "demo",
        help="compare methods on a model",
        description=DEMO,
        epilog=DEMO_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    demo.set_defaults(verb=_demo)
    add = demo.add_argument
    add("--model", default="tiny", metavar="MODEL", help="tiny (embedded, the default), smollm2, a path or a hub id")
    add("--methods", type=_list_of(str), metavar="A,B", help="registry names (default: linear,ntk,by_parts,yarn)")
    add("--factors", type=_list_of(float), metavar="N,N", help="target / original length (tiny: 2,4,8; others: 2)")
    add(
        "--lengths",
        type=_list_of(int),
        metavar="N,N",
        help="tokens of the passkey prompts; the longest is also the length of the perplexity windows "
        "(smollm2: 4096,12288; others: the original length and every factor times it)",
    )
    add("--depths", type=_list_of(float), metavar="X,X", help="where the passkey hides, 0 to 1 (tiny: 5; others: 3)")
    add("--limit", type=int, metavar="N", help="perplexity windows at most (tiny: 45; others: 3)")
    add("--samples", type=int, metavar="N", help="passkeys per length and depth (tiny: 10; others: 1)")
    add("--seed", type=int, metavar="N", help="of the passkeys (default: 0)")
    add("--dtype", metavar="TYPE", help="float32 (the default), bfloat16 or float16")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: the accelerator if there is one)")
    add("--output", type=Path, metavar="DIR", help="where results go (default: out/demo-MODEL)")

    methods = verbs.add_parser(
        "methods",
        help="list the methods and their knobs",
        description="List every method of the registry, with its knobs and their defaults.",
    )
    methods.set_defaults(verb=_methods)

    report = verbs.add_parser(
        "report",
        help="write the report of finished results",
        description="Write report.html into a folder of results, finished or not: one file, no network needed.",
        epilog="example:\n  ropescale report out/demo-tiny",
        formatter_class=formatter,
    )
    report.set_defaults(verb=_report)
    report.add_argument("folder", type=Path, metavar="DIR", help="the output folder of a demo")
    return parser


def _list_of(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """A parser of comma-separated values."""
    names = {str: "names", int: "whole numbers", float: "numbers"}

    def parse(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part.strip()) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or "" in values or any(value != value for value in values):
            raise argparse.ArgumentTypeError(f"must be {names[kind]} separated by commas, got {text!r}")
        return values

    return parse


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    # the report comes last, but a missing matplotlib should be known before the hours of a real model
    from ropescale.evals import demo, report  # type: ignore[import-not-found] # the build puts evals/ there

    asked = {
        "methods": arguments.methods,
        "factors": arguments.factors,
        "lengths": arguments.lengths,
        "depths": arguments.depths,
        "windows": arguments.limit,
        "samples": arguments.samples,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
        "device": arguments.device,
    }
    options = dataclasses.replace(
        demo.default_options(arguments.model), **{name: value for name, value in asked.items() if value is not None}
    )
    folder = arguments.output or Path("out", f"demo-{Path(arguments.model).name}")
    try:
        results = demo.run(options, folder, arguments.command)
    except KeyboardInterrupt:
        print(f"ropescale: stopped; {folder} keeps the finished cells, the same command goes on", file=sys.stderr)
        return 1
    demo.print_table(results, Console())
    print(f"results: {folder}\nreport:  {report.write(folder)}")
    return 0


def _methods(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ropescale.methods import Method, get_method, list_methods

    common = [_knob(field) for field in dataclasses.fields(Method)]
    table = Table("method", "knobs", "what it does", caption=f"and of every method: {', '.join(common)}")
    for name in list_methods():
        method = get_method(name)
        table.add_row(
            name,
            ", ".join(knob for field in dataclasses.fields(method) if (knob := _knob(field)) not in common),
            (method.__doc__ or "").strip().partition("\n")[0],
        )
    Console().print(table, markup=False)
    return 0


def _knob(field: "dataclasses.Field[Any]") -> str:
    """A field with its default; one without has to be given."""
    if field.default is not dataclasses.MISSING:
        return f"{field.name}={field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f"{field.name}={field.default_factory()!r}"
    return field.name


def _report(arguments: argparse.Namespace) -> int:
    from ropescale.evals import report

    print(report.write(arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
