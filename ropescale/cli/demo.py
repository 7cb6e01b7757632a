"""Compare the unpatched model with methods at factors on the embedded model: perplexity by position and by length on
held-out texts, passkeys by depth and length, and short questions. One arm more is yarn x4 after a minute of LoRA: the
recipe `demo`. Prints a table; writes results and a report into the output folder. `ropescale train` and `ropescale
eval` are the same with every choice open.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from ropescale.cli.arguments import add_grid, add_trust
from ropescale.cli.eval import asked_options, cells_kept, reported
from ropescale.cli.next_line import say_next
from ropescale.cli.quiet import quieten_libraries

HELP = "compare methods on the embedded model"
DOING = "comparing methods on {model}"
EXTRAS = ("eval", "train")
EXAMPLES = """\
examples:
  ropescale demo
  ropescale demo --methods yarn,ntk --factors 4
  ropescale demo --model smollm2      a real model: 135M parameters, 12,288 tokens; hours on a CPU
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("--model", default="tiny", metavar="MODEL", help="tiny (embedded, the default), smollm2, a path or a hub id")
    add_grid(parser)
    add("--output", type=Path, metavar="DIR", help="where results go (default: out/demo-MODEL)")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_libraries()
    from ropescale.evals import demo

    options = asked_options(arguments, demo.default_options(arguments.model), {})
    folder = arguments.output or Path("out", f"demo-{Path(arguments.model).name}")
    try:
        adapters = _trained(arguments.model, options.loading.device_name, folder / "lora", arguments.command)
        results = reported(dataclasses.replace(options, adapters=adapters), folder, arguments.command)
    except KeyboardInterrupt:
        return cells_kept(folder)
    if results is None:
        return 0
    return say_next("eval", "path/to/yours" if arguments.model == "tiny" else arguments.model, "--quick", "--dry-run")


def _trained(model: str, device: str, folder: Path, command: str) -> tuple[str, ...]:
    """The adapter that a demo compares besides, trained in the folder; none for a real model, which takes hours."""
    if model != "tiny":
        return ()
    from ropescale.destinations import require_own_folder
    from ropescale.recipes import train
    from ropescale.recipes.reading import read_recipe

    require_own_folder(folder, name="--output")
    on_cpu = device.startswith("cpu")
    if ":" in device and not on_cpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device  # the one of several that Trainer takes
    given = ["--model", model, "--use-cpu", str(on_cpu).lower(), "--output", str(folder)]
    train.run(read_recipe("demo", given), command)
    return (str(folder),)
