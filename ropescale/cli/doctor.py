"""Look for what is wrong with the positions of a checkpoint or an adapter: a lost theta, scaling done twice, an
original length that is missing or contradicted, entries that are ignored, frequencies of low precision among the
weights, limits of tokenizer and generation that are too short, a record that the config contradicts, an adapter that
was trained under another scaling; and for a tokenizer that is missing beside weights. Every fault comes with its
remedy. Loads no weights and changes nothing.

exit code: 0 nothing found, 1 something found, 2 not a checkpoint.
"""

import argparse

from ropescale.cli.next_line import say_next

HELP = "what is wrong with a checkpoint or an adapter, and the remedy"
DOING = "examining {path}"
EXAMPLES = """\
examples:
  ropescale doctor path/to/checkpoint
  ropescale doctor path/to/adapter && train
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("path", metavar="PATH", help="the folder of a checkpoint or of an adapter; tiny, smollm2")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ropescale.doctor.adapter import BESIDE, adapter_in
    from ropescale.doctor.diagnosis import diagnose, unserved

    findings = [*diagnose(arguments.path), *unserved(arguments.path)]
    if (adapter := adapter_in(arguments.path)) is not None:
        print(f"{arguments.path}: {adapter}")
    for finding in findings:
        print(f"{finding.check}: {finding}")
    if not findings:
        print(f"{arguments.path}: nothing found in its files; ropescale.diagnose(model) looks at a loaded model")
    if adapter is None:
        say_next("inspect", arguments.path)
    elif any(finding.check == "adapter-base" for finding in findings):
        say_next("merge", arguments.path, "out/merged", "--base", "path/to/its-base")
    elif adapter.kind in BESIDE:
        say_next("inspect", adapter.base)
    else:
        methods = "none" if adapter.record is not None else "yarn"
        say_next("eval", adapter.base, "--methods", methods, "--adapters", arguments.path, "--quick")
    return 1 if findings else 0
