"""What measures a model while any Trainer trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback

from ropescale.checks import require_at_least
from ropescale.errors import InvalidArgumentError
from ropescale.evals.forward import resting
from ropescale.patching import record
from ropescale.recipes.evaluation import Yardstick, flat, yardstick


class EvaluationCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Perplexity and passkeys by length, measured and logged as `ropescale train` does it.

    Measured every `steps` steps, whenever the trainer evaluates, and at the end of training; logged through the
    trainer, so that its history and its trackers have `eval_perplexity_512` and `eval_passkey_512`. A passkey counts
    where every token of the answer is the model's first choice.

    Arguments:
        trainer: Transformers' Trainer or one that builds on it, with `processing_class` set to the tokenizer.
        lengths: tokens; the original and the target length of a patched model where they are not given.
        texts: for perplexity, as `ropescale eval --texts` takes them: "sample" (embedded), "speeches", a path.
        windows: texts of the longest length, at most.
        passkeys: for each length and each of five depths; 0 for none.
        steps: how often; None for the end, and the trainer's own evaluations, alone.

    Example:
        >>> import ropescale
        >>> from ropescale.checkpoints import resolve
        >>> from ropescale.recipes import EvaluationCallback
        >>> from transformers import AutoTokenizer, Trainer, TrainingArguments
        >>> model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=2)
        >>> tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
        >>> trainer = Trainer(model, TrainingArguments("run", report_to="none"), processing_class=tokenizer)
        >>> callback = EvaluationCallback(trainer, windows=2, passkeys=1)
        >>> trainer.add_callback(callback)
        >>> sorted(callback.measured())
        ['eval_passkey_128', 'eval_passkey_256', 'eval_perplexity_128', 'eval_perplexity_256']

    Raises:
        InvalidArgumentError: a trainer without a tokenizer, a model that is not patched and no lengths, or texts that
            are shorter than the longest length.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        lengths: Sequence[int] = (),
        texts: str = "sample",
        windows: int = 8,
        passkeys: int = 10,
        steps: int | None = None,
    ) -> None:
        for name, value, least in (("windows", windows, 1), ("passkeys", passkeys, 0), ("steps", steps, 1)):
            require_at_least(f"{name}:", value, least)
        if trainer.processing_class is None:
            raise InvalidArgumentError(
                "trainer: must have the tokenizer, which writes passkeys, got processing_class None; give "
                "`processing_class=TOKENIZER` to the trainer"
            )
        done = record(trainer.model)
        if not lengths and done is None:
            raise InvalidArgumentError(
                "lengths: must be given for a model that is not patched, got none; give lengths=[TOKENS]"
            )
        reached = () if done is None else (done.original_length, done.target_length)
        self._trainer, self._steps = trainer, steps
        self._at = -1  # the step that was measured last
        self._yardstick: Yardstick = yardstick(
            trainer.processing_class,
            lengths=lengths or reached,
            texts=texts,
            held_out=list,  # of no recipe's data
            limit=windows,
            passkeys=passkeys,
        )

    def measured(self) -> dict[str, float]:
        """The figures of the model as it is now."""
        return flat(self._yardstick.measured(self._trainer.model))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every `steps` steps."""
        if self._steps is not None and state.global_step % self._steps == 0:
            self._log(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside what the trainer measures."""
        self._log(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What training brought."""
        self._log(state)

    def _log(self, state: Any) -> None:
        if state.global_step == self._at:
            return
        self._at = state.global_step
        figures = self.measured()
        with resting(self._trainer.model):  # TRL adds what it counted in training to what is logged in that mode
            self._trainer.log(figures)
