"""Transformers' Trainer, with what a brief fine-tune that has to survive needs besides.

Rows in an order that a resumed run repeats, checkpoints that are whole or not there, an end at the first number that
is none, and evaluations that read positions.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from ropescale.adapter_files import PARAMETERS_FILE
from ropescale.adapters import add_record
from ropescale.console import Console
from ropescale.destinations import fresh_folder, removed
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError
from ropescale.recipes.evaluation import Yardstick, flat
from ropescale.recipes.options import Recipe
from ropescale.recipes.parallel import Machines
from ropescale.recipes.proof import Proof, proven
from ropescale.recipes.restoration import restoration
from ropescale.recipes.rotation import MixedRotation
from ropescale.recipes.schedules import DOCUMENTS, SHORT, Draws, Schedule
from ropescale.recipes.seals import fault, seal
from ropescale.recipes.separation import Separation
from ropescale.recipes.tuning import unpack
from ropescale.recipes.ulysses import Ulysses
from ropescale.recipes.weighting import Weighting
from ropescale.wrappers import bare

UNFINISHED = ".unfinished"  # folder of checkpoints that are being written
CARD = "README.md"


class RecipeTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """One run of a recipe: the loop, the optimizer and the machines are Trainer's."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        *,
        draws: Draws,
        schedule: Schedule,
        yardstick: Yardstick,
        tokenizer: Any,
        weighting: Weighting | None = None,
    ):
        super().__init__(
            model=model,
            args=recipe.training,
            train_dataset=draws,
            eval_dataset=draws,  # Trainer asks for one where it is to evaluate; `evaluate` has its own
            data_collator=schedule.batch,
            processing_class=tokenizer,
        )
        self.recipe, self.draws, self.yardstick = recipe, draws, yardstick
        for theirs in (ProgressCallback, PrinterCallback):
            self.remove_callback(theirs)
        if self.is_world_process_zero() and not recipe.training.disable_tqdm:
            self.add_callback(Bar())
        self._staging = False
        self._ulysses = Ulysses(model, recipe.options.ulysses) if recipe.options.ulysses > 1 else None
        self.separation = Separation(model)
        shards = Machines.launched(recipe.training, ulysses=recipe.options.ulysses).shards_of_a_row
        if self.separation.stateful and shards > 1:
            raise InvalidArgumentError(
                f"rows: layers that carry a state from token to token need whole rows, got "
                f"{type(self.separation.stateful[0]).__name__} and rows cut among {shards} processes, which would "
                f"each begin anew; do not cut rows"
            )
        self._schedule, self._weighting = schedule, weighting
        self._mixed = MixedRotation(model) if schedule.name == "mixed_window" else None
        self._restoration = restoration(recipe.options, schedule, model)

    def proven(self, ids: Tensor, unpatched: list[Tensor] | None) -> Proof:
        """What a few short passes show of this model before it is trained; `unpatched` as `proof.alone` gave it.

        Raises:
            InvalidArgumentError: something that would silently be trained otherwise.
        """
        return proven(
            self.model,
            self._schedule,
            ids,
            separation=self.separation,
            mixed=self._mixed,
            before=unpatched,
            packed=self.recipe.separates,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """Draws have their order already."""
        return SequentialSampler(self.draws)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Trainer's, which gives each process rows of its own; the same rows for all that share them."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self._ulysses is None:
            return loader
        return DataLoader(
            self.draws,
            batch_size=self._train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's, of a row that several processes share where they do, with what a restoration adds."""
        items = kwargs.get("num_items_in_batch")
        if items is not None:  # a batch may show nothing of a conversation that is to be learnt
            kwargs["num_items_in_batch"] = items.clamp(min=1) if isinstance(items, Tensor) else max(items, 1)
        if self._restoration is not None:
            added = self._restoration.loss(inputs["input_ids"])
            if self.model_accepts_loss_kwargs and items is not None:  # where Trainer takes no mean over batches itself
                added = added / self.current_gradient_accumulation_steps
            return super().compute_loss(model, inputs, *args, **kwargs) + added
        if self._ulysses is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        # Trainer counts the labels of every process, which here are the same ones
        loss: Tensor = super().compute_loss(model, self._ulysses.part(inputs), *args, **kwargs)
        return loss * self.args.world_size

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's, with documents kept apart and the rotation that a schedule asked for, forward and backward.

        Backward too, since checkpointed layers are run again there.

        Raises:
            RopescaleError: the loss is not a number.
        """
        inputs = dict(inputs)
        documents, short = (
            None if tensor is None else tensor.to(self.args.device)
            for tensor in (inputs.pop(DOCUMENTS, None), inputs.pop(SHORT, None))
        )
        if self._weighting is not None:
            ids = inputs["input_ids"]
            of_rows = torch.zeros_like(ids) if documents is None else documents
            inputs["token_weights"] = self._weighting.weights(self.model, ids, of_rows)
        if self.recipe.options.tuning == "qlora":
            unpack(self.model)
        with ExitStack() as stack:
            if self._ulysses is not None:  # whose attention reads boundaries from positions
                stack.enter_context(self._ulysses.sharing())
            else:
                inputs |= stack.enter_context(self.separation.keeping(documents))
            if self._mixed is not None and short is not None:
                stack.enter_context(self._mixed.keeping(short))
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not bool(loss.isfinite()):
            raise RopescaleError(self._not_a_number("the loss", float(loss)))
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        # weights that such gradients made must not be saved
        if grad_norm is not None and not math.isfinite(float(grad_norm)):
            raise RopescaleError(self._not_a_number("the norm of the gradients", float(grad_norm), done=1))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def _not_a_number(self, what: str, value: float, *, done: int = 0) -> str:
        """The text of the error; `done` is how many steps the state counts too many."""
        step = self.state.global_step - done
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        size //= self.recipe.options.ulysses
        rows = [self.draws.row(draw) for draw in range(step * size, min((step + 1) * size, len(self.draws)))]
        return (
            f"train: {what} must be a number, got {value} at step {step + 1}, in the batch of rows "
            f"{', '.join(map(str, rows))} of the prepared data; {self._again()}"
        )

    def _again(self) -> str:
        """What to do after numbers that are none."""
        last = get_last_checkpoint(self.args.output_dir)
        remedy = "a lower learning rate, more warm-up, or dtype float32"
        if last is None:
            return f"no checkpoint was written yet: begin again with {remedy}"
        return (
            f"the weights of {last} are numbers, and the same command would go on from there to the same end: begin "
            f"in another folder with {remedy}"
        )

    def require_numbers(self) -> None:
        """Refuse to keep weights that are none; an optimizer can make such from gradients that are numbers.

        Raises:
            RopescaleError: some trained parameter has NaN or infinity in it.
        """
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(parameter.detach().isfinite().all()):
                raise RopescaleError(
                    f"train: the weights must be numbers, got NaN or infinity in {name} after step "
                    f"{self.state.global_step}; {self._again()}"
                )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Perplexity and passkeys by length, logged; ends training where the recipe's targets are reached."""
        metrics = flat(self.yardstick.measured(self.model))
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.reached(metrics):
            self.control.should_training_stop = True
        return metrics

    def reached(self, metrics: dict[str, float]) -> bool:
        """Whether every target that the recipe sets is reached, and it sets one."""
        options, longest = self.recipe.options, self.yardstick.lengths[-1]
        passed = []
        if options.stop_perplexity is not None:
            passed.append(metrics[f"eval_perplexity_{longest}"] <= options.stop_perplexity)
        if options.stop_passkey is not None:
            answered = [value for name, value in metrics.items() if name.startswith("eval_passkey")]
            passed.append(min(answered) >= options.stop_passkey)
        return bool(passed) and all(passed)

    def _get_output_dir(self, trial: Any) -> str:
        """While a checkpoint is being written, a folder beside those that are whole."""
        place: str = super()._get_output_dir(trial)
        return os.path.join(place, UNFINISHED) if self._staging else place

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's, written beside its place and moved there.

        Raises:
            RopescaleError: weights that are no numbers.
            CheckpointError: it could not be written; the last one is still there.
        """
        self.require_numbers()
        run = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with whole(run, self.args.should_save):
            self._staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = False
            self.accelerator.wait_for_everyone()  # every process writes a part
            if self.args.should_save:
                seal(run / UNFINISHED / name)
                removed(run / name)
                os.replace(run / UNFINISHED / name, run / name)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Trainer's; an adapter carries its scaling."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and hasattr(self.model, "peft_config"):
            place = Path(output_dir or self.args.output_dir)
            add_record(self.model, place)
            (place / CARD).unlink(missing_ok=True)  # PEFT's, with the path of this machine in it

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Trainer's, and what was trained beside an adapter."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        beside = Path(resume_from_checkpoint, PARAMETERS_FILE)
        if beside.exists():
            own = dict(bare(self.model).named_parameters())
            with safe_open(beside, framework="pt") as weights, torch.no_grad():
                for name in weights.keys():  # noqa: SIM118 # not a mapping
                    own[name].copy_(weights.get_tensor(name))


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    numbered = [
        (path.name.partition("-")[2], path) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()
    ]
    return [
        path for step, path in sorted(((int(step), path) for step, path in numbered if step.isdecimal()), reverse=True)
    ]


def last_whole(folder: Path, console: Console) -> Path | None:
    """The newest checkpoint that is as it was written; None where a run has written none, or none is so.

    Those that are not are named on the console: a run that goes on from the one before, or begins again, ends in the
    same weights.
    """
    candidates = checkpoints(folder)
    for candidate in candidates:
        damage = fault(candidate)
        if damage is None:
            return candidate
        console.print(
            f"{folder}: {candidate.name} is damaged ({damage}) and is not used", highlight=False, soft_wrap=True
        )
    if candidates:
        console.print(f"{folder}: no checkpoint is whole; the run begins again", highlight=False, soft_wrap=True)
    return None


class Bar(TrainerCallback):  # type: ignore[misc]  # as above
    """The progress of a run: steps, the time that is left, and the last figures; lines where there is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            # in a column of its own size: a long note would leave no room for the bar
            TextColumn("{task.fields[note]}", table_column=Column(width=14, no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, note="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar where the run goes on."""
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The newest figures."""
        shown = {
            "loss": "loss {:.3f}",
            "eval_perplexity": "perplexity {:.2f} at {:,}",
            "eval_passkey": "passkey {:.0%} at {:,}",
        }
        notes = []
        for name, value in (logs or {}).items():
            kind, _, length = name.rpartition("_") if name.startswith("eval_") else (name, "", "0")
            if kind in shown:
                notes.append(shown[kind].format(value, int(length)))
        if not notes:
            return
        note = ", ".join(notes)
        if "loss" in (logs or {}):
            self._progress.update(self._task, note=notes[0])
        if self._progress.disable or "loss" not in (logs or {}):  # the bar has no room for what was measured
            self._progress.console.print(
                f"step {state.global_step} of {state.max_steps}: {note}", highlight=False, soft_wrap=True
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


@contextmanager
def whole(folder: Path, writes: bool = True) -> Iterator[Path]:
    """A folder to write into, whose content takes its place within the block; nothing of it is left behind.

    Raises:
        CheckpointError: it could not be written.
    """
    beside = folder / UNFINISHED
    try:
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            fresh_folder(beside)  # in the place of what a killed run left
        yield beside
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        if isinstance(error, RopescaleError):
            raise
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"train: {str(folder)!r} must have room for a checkpoint, got {said}; make room and give the same command "
            f"again{f', {Path(last).name} is kept' if last else ''}"
        ) from error
    finally:
        if writes:
            shutil.rmtree(beside, ignore_errors=True)
