"""The coefficient of a temperature, fitted on the model itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ropescale.checks import require_choice, require_whole
from ropescale.errors import InvalidArgumentError
from ropescale.evals.forward import resting
from ropescale.evals.texts import Document
from ropescale.injection.patch import patch_of
from ropescale.methods import Method
from ropescale.methods.late import UNBOUNDED
from ropescale.patching import patched
from ropescale.search.objective import OBJECTIVES, Weights, samples
from ropescale.search.searching import two_sides
from ropescale.temperature import RULES, Temperature, least


def fit_temperature(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rule: str = "log_n",
    *,
    method: str | Method = "yarn",
    data: str | Sequence[Document] = "sample",
    objective: str = "sum",
    windows: int = 8,
    **arguments: Any,
) -> Temperature:
    """The coefficient with which a rule costs least on texts and needles of the target length.

    Golden-section search between 0 (no temperature) and the largest coefficient that is sensible for the rule, on
    the texts and by the objectives of `search`; one pass over all samples for each of a dozen coefficients. The model
    is patched meanwhile, and is in the end as it was. What is read has two needles at each of five depths.

    Arguments:
        model: not patched.
        tokenizer: the model's.
        rule: of `ropescale.temperature`.
        method: what the model is patched with beside the temperature.
        data: as of `search`; the half of the texts that a search judges candidates by.
        objective: "sum" of the losses on text and needles, or one of the others of `search`.
        windows: texts of the target length, at most.
        arguments: of `ropescale.patch`, with a factor or a target length.

    Example:
        >>> import ropescale
        >>> from ropescale.contents import read_tokenizer
        >>> from ropescale.checkpoints import resolve
        >>> from ropescale.search import fit_temperature
        >>> model, tokenizer = ropescale.load("tiny"), read_tokenizer(resolve("tiny"))
        >>> found = fit_temperature(model, tokenizer, "log_n", method="yarn", factor=2, windows=1)
        >>> ropescale.patch(model, "yarn", factor=2, temperature=found).config.max_position_embeddings
        256

    Raises:
        InvalidArgumentError: no such rule or objective, neither factor nor target length, no window, texts that
            are too short.
        RopescaleError: whatever `patch` raises.
    """
    require_choice("rule:", rule, RULES, remedy="leave it out for 'log_n'")
    require_choice("objective:", objective, OBJECTIVES, remedy="leave it out for 'sum'")
    require_whole("windows:", windows, 1, rule="a whole number of at least 1", remedy="leave it out for 8")
    with patched(model, method, temperature=rule, **arguments):
        standing = patch_of(model)
    assert standing is not None
    done = standing.record
    if not done.original_length < done.target_length < UNBOUNDED:
        raise InvalidArgumentError(
            f"target_length: must be given, or factor instead, and lie above the original length "
            f"({done.original_length}), got {done.target_length}; give factor=4, say"
        )
    read = samples(
        tokenizer,
        two_sides(data)[0],
        original_length=done.original_length,
        length=done.target_length,
        needles=2,
        limit=windows,
        seed=0,
    )
    weights = Weights.of(objective, {})
    with resting(model):
        before = read.figures(model)
        with patched(model, method, temperature=rule, **arguments):
            standing = patch_of(model)
            assert standing is not None
            assert standing.late is not None
            guide = standing.late.guide

            def cost(coefficient: float) -> float:
                temperature = Temperature(rule=rule, coefficient=round(coefficient, 6))
                guide.late = dataclasses.replace(guide.late, temperature=temperature)
                return read.figures(model).total(weights, before)

            best, _ = least(cost, RULES[rule].highest)
    return Temperature(rule=rule, coefficient=round(best, 6))
