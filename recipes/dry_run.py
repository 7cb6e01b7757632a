"""`ropescale train --dry-run`: all that a run does before it loads weights, and a short plan; nothing is written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.table import Table

from ropescale.checkpoint import require_complete
from ropescale.console import Console
from ropescale.contents import read_config
from ropescale.destinations import try_writer
from ropescale.families.parts import text_of
from ropescale.memory import said
from ropescale.recipes import train
from ropescale.recipes.memory import Memory, Shape, Step, training_memory
from ropescale.recipes.options import Recipe
from ropescale.recipes.rehearsal import weightless
from ropescale.recipes.schedules import Schedule
from ropescale.recipes.trainer import last_whole
from ropescale.records import saved_record
from ropescale.trust import trusted

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def dry_run(recipe: Recipe, command: str, console: Console) -> None:
    """Print what a run would read, train and need, where it may begin or go on.

    Tokens that the cache does not have are made in a temporary folder, and are gone afterwards.

    Args:
        recipe: of the run.
        command: as it was typed.
        console: for the account of the data and the plan.

    Raises:
        InvalidArgumentError: whatever the run would refuse before it trains.
        CheckpointError: something that cannot be read, weights that are missing, or a folder that cannot be written.
        RopescaleError: as `ropescale.recipes.train.run` says.
    """
    options, training, folder = recipe.options, recipe.training, recipe.output
    try_writer(folder)
    ledger, schedule, tokenizer, _ = train.begin(recipe, command)
    if "after" in ledger:
        console.print(f"{folder} holds this run, finished; nothing to do", highlight=False, soft_wrap=True)
        return
    resumed = last_whole(folder, console)
    base = Path(options.path)
    if base.is_dir() and not trusted():  # of a class of its own nothing is known before it runs
        config = read_config(str(base))
        if (saved := saved_record(text_of(config))) is not None:
            saved.restore(text_of(config))
        require_complete(base, config)
    model = weightless(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = train.read(recipe, ledger, schedule, tokenizer, console, scratch=Path(scratch))
        train.require_rows(inputs, model)
        rows = inputs.data.account.rows["train"]
        packed = options.document_mask and inputs.data.account.pieces["train"] > rows
        windows = len(inputs.measure.windows)
    read, length = len(inputs.draws), schedule.length
    begun = "" if resumed is None else f", going on after {resumed.name}"
    parameters = f"{model.num_parameters():,} parameters"
    scaled = f"{options.method}, from {schedule.original_length:,} to {schedule.target_length:,} tokens"
    lengths = " and ".join(f"{tokens:,}" for tokens in inputs.measure.lengths)
    meanwhile = f", every {training.eval_steps:g} steps" if training.eval_strategy == "steps" else ""
    table = Table("", "", title=f"{recipe.name}: nothing was loaded or written", show_header=False)
    table.add_row("model", f"{options.model}, {parameters}, in {options.dtype_name}")
    table.add_row("method", scaled)
    table.add_row("tuning", f"{options.tuning}, on from {options.adapter}" if options.adapter else options.tuning)
    table.add_row("loss", options.loss)
    table.add_row("rows", f"{schedule.name}: {length:,} tokens, {rows:,} rows in the data")
    table.add_row(
        "steps",
        f"{training.max_steps:,} of {read // training.max_steps:,} rows: {read * length:,} tokens, the data "
        f"{read / rows:.3g} times{begun}",
    )
    table.add_row("measured", f"at {lengths} tokens, in {windows} windows: before{meanwhile} and after")
    table.add_row("memory", _memory(recipe, schedule, model.config, packed=packed))
    table.add_row("device", str(training.device))
    table.add_row("output", str(folder))
    console.print(table, markup=False)


def _memory(recipe: Recipe, schedule: Schedule, config: object, *, packed: bool) -> str:
    """What a step needs of a device, in words."""
    options, training = recipe.options, recipe.training
    try:
        shape = Shape.of(config)
    except (AttributeError, TypeError):  # of a family that has these sizes by other names
        return "not known: the formula is for decoders of Llama's kind"
    tuning = "lora" if options.tuning == "lora_plus" else options.tuning
    step = Step(
        length=schedule.length,
        rows=training.per_device_train_batch_size,
        tuning=tuning,
        rank=options.rank,
        element=BYTES[options.dtype_name],
        checkpointing=bool(training.gradient_checkpointing),
        masked=packed,
    )
    need: Memory = training_memory(shape, step, row_shared=options.ulysses)
    total = need.total - need.reserved
    least = "at least " if options.tuning == "lora_plus" else "about "  # whose whole tables the formula leaves out
    return (
        f"{least}{said(total)} by formula, with AdamW ({said(need.weights)} of weights, {said(need.activations)} of "
        f"activations), and what the driver takes"
    )
