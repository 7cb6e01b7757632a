"""Evaluate a model unpatched and patched with methods at factors, over tasks and context lengths.

Every arm (the unpatched model, and each method at each factor) gets the same texts and prompts, so comparisons are
paired. An adapter of `ropescale train` is an arm with the scaling that it was trained with; a plain one of PEFT stands
on the model as it is, and on each method at each factor. Each finished cell (arm x task x length) is one line of
results.jsonl; a run that was stopped goes on where it was when the same command is given again, and a finished folder
takes more methods, factors, tasks and lengths. A report is written at the end: report.html, report.md, report.json,
model-card.md, evaluate.json.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescale import failures
from ropescale.cli.arguments import (
    DRY,
    MODEL,
    add_grid,
    add_layers,
    add_loading,
    add_start,
    add_trust,
    json_object,
    list_of,
    minutes,
)
from ropescale.cli.next_line import after_results, say_again, say_next
from ropescale.cli.quiet import quieten_libraries
from ropescale.evals.tasks import base

if TYPE_CHECKING:
    from ropescale.evals.plan import Options
    from ropescale.evals.results import Results

HELP = "evaluate a model over methods, factors, tasks and lengths"
DOING = "evaluating {model}"
EXTRAS = ("eval",)
EXAMPLES = """\
examples:
  ropescale eval tiny --methods none,yarn --factors 4 --tasks perplexity,passkey --lengths 128,512 --output out/a
  ropescale eval smollm2 --methods yarn,by_parts --factors 2 --tasks position,passkey --lengths 4096,12288 --dry-run
  ropescale eval tiny --methods self_extend --factors 8 --knobs '{"self_extend": {"group_size": 16, "window": 64}}'
  ropescale eval path/to/checkpoint --tasks ruler --lengths 4096,8192,16384 --samples 50
  ropescale eval tiny --methods yarn --factors 4 --adapters out/train-pose-tiny      before and after training
  ropescale eval path/to/saved-patched --methods none --tasks passkey     a checkpoint as it is
  accelerate launch --module ropescale.cli eval path/to/checkpoint        rows shared among devices

The harness alone can run the tasks too, on a checkpoint that was saved patched:
  lm_eval run --model hf --model_args pretrained=PATH --include_path "$(ropescale eval --task-folder)" \\
      --tasks ropescale_passkey --metadata '{"lengths": [4096]}'
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    other = "a task of the evaluation harness by its name (hellaswag, arc_easy ...), where a hub is reached"
    tasks = [*base.listed(), ("any other", other)]
    parser.description = f"{__doc__}\ntasks:\n" + "".join(f"  {names:<12} {what}\n" for names, what in tasks)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help=f"{MODEL}; unpatched")
    add_grid(parser)
    add_start(parser, existing="error (default), replace, compose; --methods none takes it as it is")
    add_layers(parser)
    add_loading(parser)
    add("--tasks", type=list_of(str), metavar="A,B", help=f"see above (default: {','.join(base.defaults())})")
    add(
        "--target-length",
        type=int,
        metavar="N",
        help="tokens that the model is wanted for, which the verdict is about (default: the longest length)",
    )
    add("--windows", type=int, metavar="N", help="windows of a perplexity task, at most (default: 3)")
    add("--stride", type=float, metavar="X", help="share of a window that strided perplexity scores (default: 0.5)")
    add("--texts", metavar="NAME", help="sample (tiny: default), speeches (others: default), or a path to files")
    add("--evaluator", metavar="MODEL", help="the model that finds key tokens (default: the model)")
    add("--include-path", metavar="DIR", help="a folder with tasks of your own, which --help lists too")
    add("--limit", type=int, metavar="N", help="rows of a short task and of one of the harness, at most")
    add("--backend", metavar="NAME", help="transformers (the default), or vllm: every arm is served in its turn")
    add(
        "--engine-args",
        type=json_object,
        metavar="JSON",
        help="""of vllm.EngineArgs, as in '{"tensor_parallel_size": 2}'""",
    )
    add("--chat", action="store_true", help="put prompts into the tokenizer's chat template")
    add("--knobs", type=json_object, metavar="JSON", help="""of the methods, as in '{"abf": {"theta": 500000}}'""")
    add("--metadata", type=json_object, metavar="JSON", help="further keys for the tasks, as an object")
    add(
        "--adapters",
        type=list_of(str),
        metavar="DIR,DIR",
        help="adapters of `ropescale train` or of PEFT alone",
    )
    add("--report-to", metavar="NAME", help="hand the figures to a tracker too: trackio or wandb")
    add("--output", type=Path, metavar="DIR", help="where results go (default: out/eval-MODEL)")
    add(
        "--quick",
        action="store_true",
        help=f"one look in minutes: {' and '.join(base.defaults(quick=True))}, few windows, samples and depths",
    )
    add(
        "--budget",
        type=minutes,
        metavar="TIME",
        help="as 90s, 30m or 2h: do less, in a fixed order, until it fits; says what",
    )
    add(
        "--until",
        choices=("finished", "decided"),
        metavar="WHEN",
        help="finished (default), or decided: prompts go in rounds to the arms that can still win; --samples and "
        "--windows are then the most (defaults: 100 and 60), and no round begins that does not fit into --budget",
    )
    add(DRY, action="store_true", help="print every cell with its cost on this machine, and run nothing")
    add("--task-folder", action="store_true", help="print where the tasks are, for the harness's --include_path")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    if arguments.task_folder:
        print(base.FOLDER)
        return 0
    if arguments.model is None:
        print("ropescale eval: MODEL must be given: tiny, smollm2, a path or a hub id; see --help", file=sys.stderr)
        return 2
    quieten_libraries()
    from ropescale.console import Console
    from ropescale.evals import budget, grid, plan, race, tracking

    racing = arguments.until == "decided"
    time = None if racing else vars(arguments).pop("budget")
    less = {**(race.RACE if racing else {}), **(budget.QUICK if arguments.quick else {})}
    options = asked_options(arguments, plan.Options(model=arguments.model), less)
    if arguments.report_to is not None:
        tracking.check(arguments.report_to)
    folder = arguments.output or Path("out", f"eval-{Path(arguments.model).name}")
    if time is not None:
        fewer, options = grid.fitted(options, time, folder)
        print(f"within {time:g} minutes: {fewer or 'all of it'}", file=sys.stderr)
    if arguments.dry_run:
        grid.print_cost(options, Console(), folder)
        return say_again(arguments.command, without=DRY)
    try:
        results = reported(options, folder, arguments.command)
    except KeyboardInterrupt:
        return cells_kept(folder)
    if results is None:
        return 0
    if arguments.report_to is not None:
        tracking.track(results, arguments.report_to)
    return say_next(*after_results(results, options.adapters))


def asked_options(arguments: argparse.Namespace, base: "Options", quick: Mapping[str, Any]) -> "Options":
    """Those of an evaluation: what was typed, over what a quick look leaves out, over a base.

    Raises:
        InvalidArgumentError: one that nothing of it reads.
    """
    from ropescale.evals import plan

    fields = {field.name for field in dataclasses.fields(plan.Options)}
    asked = {key: value for key, value in vars(arguments).items() if key in fields and value is not None}
    options = dataclasses.replace(base, **{**quick, **asked})
    plan.require_read(options, asked)
    return options


def reported(options: "Options", folder: Path, command: str) -> "Results | None":
    """Evaluate, print the results and write their report; None on all but the first of several processes."""
    # the report comes last, but what it misses should be known before the hours of a real model
    from ropescale.console import Console
    from ropescale.evals import grid, report
    from ropescale.evals.report.terminal import print_summary

    results = grid.run(options, folder, command)
    # the first of several processes reports; a rank that an earlier launch has left behind is none
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")):
        return None
    page = report.write(folder)
    print_summary(results, Console())
    print(f"results: {folder}\nreport:  {page}")
    return results


def cells_kept(folder: Path) -> int:
    """Say that Ctrl-C has stopped an evaluation; returns the exit code."""
    return failures.stopped(f"{folder} keeps the finished cells, the same command goes on")
