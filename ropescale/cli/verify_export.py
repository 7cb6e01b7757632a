"""Run an export in its engine and compare it with the patched model: greedy tokens, and the log-probabilities of the
whole vocabulary at each, after prompts below the original length, beyond it and up to the target. Prints a verdict
with the largest difference and where it is; the exit code is 1 where that is more than rounding.
"""

import argparse
import shlex

from ropescale import listing
from ropescale.cli.arguments import add_trust, either, lines, list_of
from ropescale.cli.next_line import say_next
from ropescale.cli.quiet import quieten_transformers

HELP = "run an export in its engine and compare it with the patched model"
DOING = "verifying {path}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    engines = {engine.called: engine for engine in listing.engines().values() if engine.running}
    examples = [f"  ropescale verify-export {line}\n" for engine in engines.values() for line in engine.checks]
    parser.description = f"{__doc__}\nengines:\n{lines({name: engine.running for name, engine in engines.items()})}"
    parser.epilog = f"examples:\n{''.join(examples)}"
    add = parser.add_argument
    add("path", metavar="DST", help="what `ropescale export` wrote")
    add("--engine", required=True, metavar="NAME", help=either(engines))
    add("--reference", metavar="SRC", help="the model that was exported (default: the weights in DST, or its source)")
    add("--adapter", metavar="DIR", help="the PEFT adapter that was merged into it (default: what DST says)")
    add(
        "--lengths",
        "--length",
        type=list_of(int),
        metavar="N,N",
        help="of the prompts (default: below, beyond, at the target)",
    )
    add("--steps", type=int, metavar="N", help="tokens to generate from each (default: 16)")
    add("--seed", type=int, metavar="N", help="of the prompts (default: 0)")
    add("--tolerance", type=float, metavar="X", help="difference or, of rounded weights, divergence that is rounding")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_transformers()
    from ropescale.export import verify
    from ropescale.export.engines.base import run_as

    names = ("reference", "adapter", "lengths", "steps", "seed", "tolerance")
    asked = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    verdict = verify(arguments.path, engine=arguments.engine, **asked)
    for check in verdict.checks:
        print(
            f"{check.length:>9,} tokens: {check.agreed} of {check.steps} greedy tokens, largest difference "
            f"{check.worst:.1e}, divergence {check.divergence:.1e}, smallest lead of a first choice {check.margin:.1e}"
        )
    print(verdict)
    if not verdict.exact:
        return 1
    if trial := run_as(arguments.engine).trial:
        print(f"next: {trial.format(shlex.quote(arguments.path))}")
        return 0
    return say_next("chat", arguments.path)
