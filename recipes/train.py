"""`ropescale train`: a model patched, tuned on long documents, and measured before, meanwhile and after.

The program is `run`, from top to bottom. Everything that can be refused is refused before the model loads; a run that
was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from peft import PeftModel
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

import ropescale
from ropescale.adapter_files import record_of, tokenizer_of
from ropescale.adapters import add_record
from ropescale.checkpoints import note_on
from ropescale.console import Console
from ropescale.contents import read_config
from ropescale.destinations import LOCK, sole_writer
from ropescale.errors import InvalidArgumentError
from ropescale.evals.forward import place_of, require_embedded
from ropescale.evals.results import write_atomically
from ropescale.evals.tokens import named_tokenizer
from ropescale.families.parts import text_of
from ropescale.heads import require_language_model
from ropescale.limits import raise_limits
from ropescale.loading import Loading
from ropescale.patching import put_in
from ropescale.patching import record as live_record
from ropescale.recipes import page
from ropescale.recipes.card import card
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.data.preparing import Prepared, identify, prepare
from ropescale.recipes.evaluation import Yardstick, digest, yardstick
from ropescale.recipes.logit_scale import fitted_logit_scale
from ropescale.recipes.loss import chunked_loss
from ropescale.recipes.options import Recipe, RecipeOptions
from ropescale.recipes.parallel import Machines, refuse_combinations
from ropescale.recipes.proof import alone
from ropescale.recipes.rehearsal import rehearse
from ropescale.recipes.run import Run
from ropescale.recipes.schedules import Draws, Schedule
from ropescale.recipes.seals import digest_of
from ropescale.recipes.trainer import CARD, UNFINISHED, RecipeTrainer, checkpoints, last_whole, whole
from ropescale.recipes.tuning import loading, require_held, tuned
from ropescale.recipes.weighting import require_contexts, require_weighable, weighting
from ropescale.records import saved_record
from ropescale.temperature import with_temperature

RUN = "training.json"  # what is known of a run
SPELLINGS = ("recipe", "data")  # of settings, those whose content is compared instead
# What of it is known at the end alone
RESULTS = ("after", "log", "logit_scale", "proof", "record", "steps", "tokens")
PACKAGES = ("ropescale", "torch", "transformers", "peft", "accelerate")

# What the file of a run holds so far: entries come one by one and stay in their order, another version's too, and
# `ropescale.train` returns them; who reads a finished one takes a `Run`
Ledger = dict[str, Any]


def run(recipe: Recipe, command: str) -> Ledger:
    """Carry out a recipe, or go on with it; returns what `training.json` then holds.

    The output folder gets the adapter with its record (or the whole model, patched, where all of it was trained), the
    tokenizer, checkpoints, `training.json` and `training.html`.

    Raises:
        InvalidArgumentError: a recipe that does not fit the model or the data, or a folder of another run.
        CheckpointError: something that cannot be read or written.
        RopescaleError: a loss that is not a number; whatever `patch` raises.
    """
    first = recipe.training.process_index == 0
    with sole_writer(recipe.output) if first else nullcontext():
        return _run(recipe, command, first=first)


def _run(recipe: Recipe, command: str, *, first: bool) -> Ledger:
    """As `run`, in a folder that nobody else writes to."""
    options, training, folder = recipe.options, recipe.training, recipe.output
    console = Console(stderr=True, quiet=not first)

    # before the model: is this a run that may begin, what will it read, what is it measured by
    ledger, schedule, tokenizer, how = begin(recipe, command)
    if "after" in ledger:
        console.print(f"{folder} holds this run, finished; nothing to do", highlight=False, soft_wrap=True)
        return ledger
    resumed = last_whole(folder, console)
    inputs = read(recipe, ledger, schedule, tokenizer, console)
    data, draws, measure, count = inputs.data, inputs.draws, inputs.measure, inputs.draws.count

    # the model: as it was, patched, and with what is to be trained
    set_seed(training.seed)
    with _quiet():
        model = how.model(options.model)
    require_held(model, options.device_map)
    _require_same(folder, ledger, "weights", digest_of(model.named_parameters()))
    require_rows(inputs, model)
    weighed = weighting(options, schedule, data.train)
    if weighed is not None:
        require_weighable(model, options.loss)
    extended = live_record(model) is not None  # a model that is trained on: what it was before is not here
    if "unpatched" not in ledger:
        ledger["unpatched"] = _noted(
            console, "as it was", measure, model, longest=0 if extended else schedule.original_length
        )
    tried = measure.windows[0].to(place_of(model))
    unpatched = alone(model, tried, packed=recipe.separates) if schedule.name == "mixed_window" else None
    if not extended:
        put_in(model, options.request)
    trained = tuned(model, options)
    if options.adapter is not None:
        began_with = ((name, parameter) for name, parameter in trained.named_parameters() if parameter.requires_grad)
        _require_same(folder, ledger, "adapter", digest_of(began_with))
    parameters = {"trained": sum(p.numel() for p in trained.parameters() if p.requires_grad)}
    parameters["all"] = sum(p.numel() for p in trained.parameters())
    if "before" not in ledger:
        ledger["before"] = _noted(console, f"with {options.method}", measure, trained)
        ledger |= {"parameters": parameters, "account": data.account.to_dict()}
        if first:
            _written(folder, ledger)

    # training
    began = time.monotonic()
    with _quiet(), chunked_loss(trained) as chunked:
        trainer = RecipeTrainer(
            recipe,
            trained,
            draws=draws,
            schedule=schedule,
            yardstick=measure,
            tokenizer=tokenizer,
            weighting=weighed,
        )
        proof = trainer.proven(tried, unpatched)
        ledger["proof"] = asdict(proof)
        console.print(f"tried: {proof.said()}", highlight=False, soft_wrap=True)
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        trainer.require_numbers()
    trainer.separation.undo()
    ledger["seconds"] = round(ledger.get("seconds", 0.0) + time.monotonic() - began, 1)
    ledger |= {"chunked_loss": chunked, "steps": trainer.state.global_step, "log": trainer.state.log_history}
    ledger["tokens"] = trainer.state.global_step * (count // training.max_steps) * schedule.length

    # what became of it
    if options.fit_logit_scale:
        ledger["logit_scale"] = fitted_logit_scale(trained, measure, schedule.target_length)
    ledger["after"] = _noted(console, "after training", measure, trained)
    done = live_record(trained)
    assert done is not None
    ledger["record"] = done.to_dict()
    if first:
        save(trained, tokenizer, folder, ledger)
        _written(folder, ledger)
        write_atomically(folder / "training.html", page.page(Run.of(ledger)))
    return ledger


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a run reads, and what it is measured by."""

    data: Prepared
    draws: Draws  # the rows of all its steps
    measure: Yardstick


def begin(recipe: Recipe, command: str) -> tuple[Ledger, Schedule, PreTrainedTokenizerBase, Loading]:
    """What is known of a run that may begin, or go on: with its schedule, its tokenizer, and how its model is loaded.

    Reads neither weights nor texts as tokens, and writes nothing.

    Raises:
        InvalidArgumentError: a recipe that does not fit the model or the data, or a folder of another run.
        CheckpointError: something that cannot be read.
        RopescaleError: whatever `rehearse` raises.
    """
    ledger = _ledger_of(recipe.output, recipe, command)
    schedule = schedule_of(recipe)
    how = loading(recipe)
    rehearse(recipe)
    own = None if recipe.options.adapter is None else tokenizer_of(recipe.options.adapter)  # or none
    tokenizer = named_tokenizer(recipe.options.path) if own is None else own
    _require_same(recipe.output, ledger, "data", identify(recipe.data, tokenizer))
    return ledger, schedule, tokenizer, how


def read(
    recipe: Recipe,
    ledger: Ledger,
    schedule: Schedule,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
    *,
    scratch: Path | None = None,
) -> Read:
    """The rows of a run and its yardstick; the account of its data is printed.

    Args:
        recipe: of the run.
        ledger: what is known of it.
        schedule: of its rows.
        tokenizer: of its model.
        console: for the account.
        scratch: a folder for what the cache of tokens does not have, where that is to stay as it is.

    Raises:
        InvalidArgumentError: too little data or text, or others than the run began with.
        CheckpointError: the cache cannot be written.
    """
    options, training = recipe.options, recipe.training
    rows = partial(prepare, recipe.data, tokenizer, seed=training.seed, scratch=scratch)
    data = rows(schedule.source_length)
    console.print(data.account.table())
    _require_readable(schedule, data.train, options.attention)
    readers = training.world_size // options.ulysses  # processes that read rows of their own
    count = training.max_steps * training.gradient_accumulation_steps * training.train_batch_size * readers
    draws = Draws(data.train, schedule, count=count, seed=training.seed)
    lengths = options.eval_lengths or sorted({schedule.original_length, schedule.target_length})
    measure = yardstick(
        tokenizer,
        lengths=lengths,
        texts=options.eval_texts,
        held_out=lambda: rows(max(lengths)).held_out,
        limit=options.eval_windows,
        passkeys=options.eval_passkeys,
    )
    _require_same(recipe.output, ledger, "texts and passkeys", digest(measure))
    return Read(data=data, draws=draws, measure=measure)


def require_rows(inputs: Read, model: nn.Module) -> None:
    """Refuse rows and windows with tokens that the model has no embedding for, before the first figure.

    Raises:
        InvalidArgumentError: names the largest of them.
    """
    rows = (
        pyarrow.compute.max(split.data.column("input_ids").combine_chunks().flatten())
        for split in (inputs.data.train, inputs.data.held_out)
    )
    require_embedded([int(inputs.measure.windows.max()), *(largest.as_py() or 0 for largest in rows)], model)


def schedule_of(recipe: Recipe) -> Schedule:
    """The schedule of a recipe, on its model's lengths.

    Raises:
        InvalidArgumentError: a length that does not fit the schedule, a model or an adapter of another scaling, or
            processes that would silently train something else.
        CheckpointError: no checkpoint or no adapter there.
        UnsupportedModelError: a model without a head over the vocabulary.
    """
    options = recipe.options
    config = read_config(options.path)
    require_language_model(config, options.model)
    saved = saved_record(text_of(config))
    if saved is not None:
        saved.restore(text_of(config))
        if options.schedule == "mixed_window":
            raise InvalidArgumentError(
                f"schedule: mixed_window needs a model as pretraining left it, got {options.model!r} which was saved "
                f"patched; use full_length"
            )
        if options.loss == "longred":
            raise InvalidArgumentError(
                f"loss: longred restores a model as pretraining left it, got {options.model!r} which was saved "
                f"patched; use loss plain"
            )
    geometry = ropescale.read_geometry(config, original_length=options.original_length, existing=options.existing)
    method, reach = options.request.resolved(geometry)
    temperature = options.request.multiplied
    begun = [] if saved is None else [("model", options.model, saved)]
    carried = None if options.adapter is None else record_of(options.adapter)  # a plain one takes every scaling
    begun += [] if carried is None else [("adapter", str(options.adapter), carried)]
    for name, given, record in begun:
        if (record.method_instance(), record.target_length, record.temperature) != (method, reach, temperature):
            raise InvalidArgumentError(
                f"{name}: must be trained on with the scaling that it has, {record.method_instance()} to "
                f"{record.target_length} tokens{with_temperature(record.temperature)}, got {method} to {reach} "
                f"tokens for {given!r}; give that, or what {given!r} was made from"
            )
    original = geometry.original_length
    # what is recalibrated without a factor reads what its knobs say, and is trained at the original length
    target = reach if options.factor or options.target_length else original
    own = target if options.schedule in ("full_length", "mixed_window") else original
    length = options.length or own
    if length > (target if options.schedule != "recalibrate" else original):
        raise InvalidArgumentError(
            f"length: must be at most the schedule's ({own} tokens with {options.schedule}), got {length}; leave it "
            f"out"
        )
    if options.schedule == "pose" and length >= target:
        raise InvalidArgumentError(
            f"length: must be below the target length ({target}) with pose, got {length}; use full_length, or a "
            f"larger factor"
        )
    schedule = Schedule(
        name=options.schedule,
        original_length=original,
        target_length=target,
        length=length,
        chunks=options.chunks,
        content=options.content,
        apart=options.document_mask,
    )
    machines = Machines.launched(recipe.training, ulysses=options.ulysses)
    refuse_combinations(
        machines,
        schedule,
        method=method,
        geometry=geometry,
        temperature=temperature,
        batch_size=recipe.training.per_device_train_batch_size,
        packing=recipe.separates,
        attention=options.attention,
    )
    require_contexts(options, schedule, machines)
    return schedule


def save(
    trained: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, ledger: Ledger
) -> None:
    """Write what was trained into the folder, each file whole or not at all.

    Raises:
        CheckpointError: it could not be written.
    """
    adapter = hasattr(trained, "peft_config")
    with whole(folder) as beside:
        trained.save_pretrained(beside)
        if adapter:
            add_record(trained, beside)
        tokenizer.save_pretrained(beside)
        record = ledger["record"]
        raise_limits(beside, record["before"]["max_position_embeddings"], record["target_length"])
        (beside / CARD).write_text(card(Run.of(ledger), adapter=adapter), encoding="utf-8")
        # the config last: a folder without one is not taken for a finished adapter or model
        for file in sorted(beside.iterdir(), key=lambda path: (path.name.endswith("config.json"), path.name)):
            os.replace(file, folder / file.name)


def summary(run: Run) -> Table:
    """What training changed, for a terminal."""
    table = Table("", "before", "after", title=f"{run.settings['model']}: {run.steps} steps")
    for column in table.columns[1:]:
        column.justify = "right"
    shown = {"perplexity": "{:.2f}", "passkey": "{:.0%}"}
    for name, said, before, after in run.compared():
        table.add_row(said, shown[name].format(before), shown[name].format(after))
    first = next(iter(run.unpatched.perplexity), None)
    if first is not None:
        table.caption = f"unpatched at {int(first):,}: perplexity {run.unpatched.perplexity[first]:.2f}"
    return table


def _ledger_of(folder: Path, recipe: Recipe, command: str) -> Ledger:
    """What is known of a run in this folder, or the beginning of a new one.

    A run that has written no checkpoint has nothing to go on from, so that its folder is as good as new.

    Raises:
        InvalidArgumentError: a folder of another run.
    """
    settings = recipe.settings()
    file = folder / RUN
    ledger: Ledger | None = None
    if file.exists():
        try:
            ledger = json.loads(file.read_text(encoding="utf-8"))
            earlier = {**_defaults(), **ledger["settings"]}
            names = sorted({*settings, *earlier})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"output: {str(file)!r} must be as a training run wrote it, got {type(error).__name__}; choose "
                f"another folder"
            ) from error
        assert ledger is not None
        differing = [name for name in names if name not in SPELLINGS and settings.get(name) != earlier.get(name)]
        if differing == ["max_steps"] and _may_be_extended(ledger, folder, recipe.training.max_steps):
            return _extended(ledger, settings)
        begun = "after" in ledger or bool(checkpoints(folder))
        if begun and not differing:
            return ledger
        if begun:
            name = differing[0]
            raise InvalidArgumentError(
                f"output: the run in {str(folder)!r} must be of the same {name} ({earlier.get(name)!r}), got "
                f"{settings.get(name)!r}; choose another folder with output=DIR"
            )
    elif folder.is_dir() and any(path.name not in (LOCK, UNFINISHED) for path in folder.iterdir()):
        raise InvalidArgumentError(
            f"output: must be a new folder, or one of a run that goes on, got {str(folder)!r} with other files; "
            f"choose another with output=DIR"
        )
    return {
        "settings": settings,
        "command": command,
        "note": note_on(recipe.options.model),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "device": str(recipe.training.device),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _defaults() -> dict[str, Any]:
    """What options were that an earlier version did not have."""
    of_both = (*fields(RecipeOptions), *fields(DataOptions))
    return {item.name: item.default for item in of_both if item.default is not MISSING}


def _may_be_extended(ledger: Ledger, folder: Path, steps: int) -> bool:
    """Whether a run is finished, at its last step, and is to take more."""
    last = checkpoints(folder)
    done = ledger.get("steps")
    return (
        "after" in ledger
        and done == ledger["settings"]["max_steps"] < steps
        and bool(last)
        and (last[0].name == f"checkpoint-{done}")
    )


def _extended(ledger: Ledger, settings: dict[str, Any]) -> Ledger:
    """A finished run that is to take more steps: its figures before training stay, those after it are to come."""
    kept = {name: value for name, value in ledger.items() if name not in RESULTS}
    return {**kept, "settings": settings, "extended": [*ledger.get("extended", []), ledger["steps"]]}


def _require_same(folder: Path, ledger: Ledger, what: str, given: Any) -> None:
    """Note by what something is known when a run begins, and refuse to go on with something else.

    Raises:
        InvalidArgumentError: it was another one.
    """
    known = ledger.setdefault("identity", {}).setdefault(what, given)
    if known != given:
        differing = ""
        if isinstance(known, dict) and isinstance(given, dict):
            differing = (
                f" in {', '.join(name for name in sorted({*known, *given}) if known.get(name) != given.get(name))}"
            )
        raise InvalidArgumentError(
            f"{what}: the run in {str(folder)!r} must go on with those that it began with, got others{differing}; "
            f"bring them back, or choose another folder with output=DIR"
        )


def _require_readable(schedule: Schedule, rows: Any, attention: str | None) -> None:
    """Refuse rows whose mask an attention implementation cannot be given."""
    if schedule.name == "pose" and schedule.apart and attention is not None and "flash" in attention:
        packed = next((number for number, row in enumerate(rows) if max(row["documents"]) > 0), None)
        if packed is not None:
            raise InvalidArgumentError(
                f"attention: {attention} reads pose from rows of one document each, got row {packed} with several; "
                f"set min_tokens to {schedule.source_length}, or use sdpa"
            )


def _noted(console: Console, what: str, measure: Yardstick, model: nn.Module, **limits: Any) -> dict[str, Any]:
    """Measure, and say what came out."""
    figures = measure.measured(model, **limits)
    if figures.perplexity:
        said = [f"perplexity {value:.2f} at {int(length):,}" for length, value in figures.perplexity.items()]
        said += [f"passkey {value:.0%} at {int(length):,}" for length, value in figures.passkey.items()]
        console.print(f"{what}: {', '.join(said)}", highlight=False, soft_wrap=True)
    return asdict(figures)


def _written(folder: Path, ledger: Ledger) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RUN, json.dumps(ledger, indent=1) + "\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its notices: what a user should know is said by the errors and the progress bar."""
    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
