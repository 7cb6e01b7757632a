"""Patch a model and fine-tune it briefly on long documents, so that the extension holds. A recipe is a short YAML
file: what is trained (LoRA or everything) and where the tokens of a row stand (its schedule). Any method of the
registry goes with any schedule that makes sense for it; every line of a recipe can be overridden by an option.

The model is measured as it was, patched, every --eval-steps and after training: perplexity by position on texts that
training does not see, and passkeys by depth and length. The output folder gets the adapter with its scaling
(ropescale.json; load it with ropescale.load_adapter), training.json and training.html. A run that was stopped, killed
or out of disk goes on from its last checkpoint when the same command is given again.
"""

import argparse
import sys

from ropescale import failures
from ropescale.cli.arguments import DRY, TRUST, add_trust
from ropescale.cli.next_line import say_again, say_next
from ropescale.cli.quiet import quieten_libraries
from ropescale.trust import trusting

HELP = "fine-tune briefly, so that an extension holds"
DOING = "training by {recipe}"
EXTRAS = ("train",)
EXAMPLES = """\
options (all of them, with the values of a recipe: `ropescale train RECIPE --help`):
  --model MODEL        tiny (embedded), smollm2, a path or a hub id
  --method NAME        of the registry; --factor N or --target-length N; --knobs JSON
  --tuning NAME        lora, lora_plus (norms and embeddings too), qlora or full
  --schedule NAME      full_length, pose, mixed_window or recalibrate
  --data A B           sotu-sample, sotu, passkey, files, folders or hub data sets; --data-weights 3 1
  --original-length N  of pretraining, where the config does not say it
  --max-steps N        and --batch-size, --learning-rate, --eval-steps, --save-steps ... of transformers.Trainer
  --stop-passkey X     stop when so many passkeys are answered; --stop-perplexity X likewise
  --output DIR         where everything goes (default: out/train-RECIPE-MODEL)
  --dry-run            refuse what the run would refuse, print what it would read and need, and write nothing
  --trust-remote-code  run Python code that lies in the checkpoint; never said in a recipe

examples:
  ropescale train pose --model tiny --method yarn --factor 4 --max-steps 20 --output out/a
  ropescale train pose --model smollm2 --factor 2 --data sotu --dry-run
  ropescale train lora_plus --model smollm2 --factor 2 --data sotu --batch-size 1 --gradient-checkpointing true
  ropescale train path/to/mine.yaml --model path/to/checkpoint --report-to wandb
  accelerate launch --module ropescale.cli train full_length --model path/to/checkpoint
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.usage = "ropescale train [--list] RECIPE --model MODEL [options]"
    add = parser.add_argument
    add("--list", action="store_true", help="name the recipes, and stop")
    add(DRY, action="store_true", help="check everything and print the plan, and write nothing")
    add("recipe", metavar="RECIPE", nargs="?", help="a name from --list, or a .yaml file of your own")
    add("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_libraries()
    from rich.table import Table

    from ropescale.console import Console
    from ropescale.recipes import shipped

    if arguments.list:
        table = Table("recipe", "what it does")
        for name, said in shipped.list_recipes().items():
            table.add_row(name, said)
        Console().print(table, markup=False)
        return say_next("train", "pose", "--help")
    if arguments.recipe is None:
        print(
            "ropescale train: RECIPE must be given: a name from --list, or a .yaml file; see --help", file=sys.stderr
        )
        return 2
    shipped.read_text(arguments.recipe)  # a misspelt name is answered before anything heavy loads

    from ropescale.recipes import reading

    wanted = {"-h", "--help", "--help-all"} & set(arguments.options)
    if wanted:
        print(reading.help_text(arguments.recipe, everything="--help-all" in wanted))
        return 0
    given = [option for option in arguments.options if option not in (TRUST, DRY)]
    recipe = reading.read_recipe(arguments.recipe, given)
    if arguments.dry_run or DRY in arguments.options:
        from ropescale.recipes.dry_run import dry_run

        with trusting(arguments.trust_remote_code or TRUST in arguments.options):
            first = recipe.training.process_index == 0
            dry_run(recipe, arguments.command, Console(quiet=not first))
        return say_again(arguments.command, without=DRY) if first else 0

    from ropescale.recipes import train
    from ropescale.recipes.run import Run

    try:
        with trusting(arguments.trust_remote_code or TRUST in arguments.options):
            run = Run.of(train.run(recipe, arguments.command))
    except KeyboardInterrupt:
        return failures.stopped(f"{recipe.output} keeps the checkpoints, the same command goes on")
    if recipe.training.process_index == 0:
        Console().print(train.summary(run))
        print(f"results: {recipe.output}\npage:    {recipe.output / 'training.html'}")
        if recipe.options.tuning == "full":
            return say_next("eval", recipe.output, "--methods", "none", "--quick")
        factor = f"{run.record['target_length'] / run.record['original_length']:g}"
        compared = ["--methods", run.record["method"], "--factors", factor, "--adapters", recipe.output]
        return say_next("eval", recipe.options.model, *compared, "--quick")
    return 0
