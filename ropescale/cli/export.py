"""Write a model for the engine that is to serve it: weights and tokenizer as they are, its positions in the engine's
own words. The engine's native type is written where it is exact, otherwise one divisor per pair. What an engine cannot
hold exactly is refused, with the nearest method that it can. The destination is written whole or not at all.

SRC is a folder (saved patched, or as published: then give --method), tiny, smollm2 or a hub id. With an adapter that
ropescale saved, SRC is extended as it was when the adapter was trained: leave --method out.
"""

import argparse

from ropescale import listing
from ropescale.cli.arguments import (
    add_extension,
    add_knobs,
    add_original_length,
    add_temperature,
    add_trust,
    either,
    lines,
)
from ropescale.cli.quiet import quieten_transformers
from ropescale.errors import InvalidArgumentError

HELP = f"write a model for {either(engine.title for engine in listing.engines().values())}"
DOING = "exporting {source}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    engines = listing.engines()
    examples = [f"  ropescale export {line}\n" for engine in engines.values() for line in engine.examples]
    parser.description = f"{__doc__}\nengines:\n{lines({name: engine.summary for name, engine in engines.items()})}"
    parser.epilog = f"examples:\n{''.join(examples)}"
    files = [f"for {name} a new {engine.suffix} file" for name, engine in engines.items() if engine.suffix]
    types = [f"of {name}: {either(engine.outtypes)}" for name, engine in engines.items() if engine.outtypes]
    add = parser.add_argument
    add("source", metavar="SRC", help="a folder, tiny, smollm2 or a hub id; with --patch-gguf a .gguf file")
    add("destination", metavar="DST", help=f"a folder that is not there or empty; {'; '.join(files)}")
    add("--to", required=True, metavar="ENGINE", help=either(engines))
    add_extension(parser, method=None, summary="extend SRC by this method first (see `ropescale methods`)")
    add_original_length(parser)
    add_knobs(parser)
    add("--existing", metavar="HOW", help="of a checkpoint that is scaled already: error (default), replace, compose")
    add(
        "--layers",
        metavar="WHICH",
        help="where layer types differ: global (default) rescales those that read the whole "
        "context if each type has its own rotation, else all; all every layer",
    )
    add_temperature(parser, log_n="no engine does, so it needs --lossy")
    add("--adapter", metavar="DIR", help="a PEFT adapter of SRC, merged into its weights")
    add("--outtype", metavar="TYPE", help=f"{'; '.join(types)} (default: the type of the checkpoint)")
    add("--patch-gguf", action="store_true", help="SRC is a .gguf file: copy it with a scaling, every weight as it is")
    add("--lossy", action="store_true", help="write the nearest fixed frequencies where a method has none, labelled")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_transformers()
    from ropescale.export import export, patch_gguf
    from ropescale.request import require_knobs

    knobs = arguments.knobs
    if arguments.method not in (None, "none"):
        require_knobs(arguments.method, knobs)  # which may not name the other arguments
    names = (
        "method",
        "factor",
        "target_length",
        "original_length",
        "existing",
        "layers",
        "temperature",
        "adapter",
        "outtype",
    )
    asked = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.patch_gguf:
        theirs: list[str] = [
            name for name in ("existing", "layers", "temperature", "adapter", "outtype") if name in asked
        ]
        theirs += [name for name in ("lossy", "log_n") if getattr(arguments, name)]
        takers = [name for name, engine in listing.engines().items() if engine.suffix == ".gguf"]
        if arguments.to not in takers or theirs or arguments.method is None:
            got = " ".join([f"--to {arguments.to}", *(f"--{name.replace('_', '-')}" for name in theirs)])
            got, remedy = (
                (got, "leave the others out") if arguments.method else (f"{got} without --method", "name the method")
            )
            raise InvalidArgumentError(
                f"--patch-gguf: goes with --to {either(takers)} and --method, and beside them --factor, "
                f"--target-length, --original-length and --knobs alone, got {got}; {remedy}"
            )
        done = patch_gguf(arguments.source, arguments.destination, **asked, **knobs)
    else:
        done = export(
            arguments.source,
            arguments.destination,
            to=arguments.to,
            log_n=arguments.log_n,
            lossy=arguments.lossy,
            **asked,
            **knobs,
        )
    print(done)
    if done.lacking:
        print(f"{done.lacking}: put its tokenizer files beside its config, and export again")
    for command in done.commands:
        print(f"to serve it:\n  {command}")
    if done.unmodified:
        print(f"the unmodified checkpoint instead:\n  {done.unmodified}")
    print("written from the config, not run yet")
    if following := done.verifying or " ".join(done.commands):
        print(f"next: {following}")
    return 0
