"""The rotation of pretraining for some tokens of a patched model: what the schedule mixed_window reads short documents
with (LongRoPE2, arXiv:2502.20082, section 3.3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.errors import InvalidArgumentError
from ropescale.families.parts import parts_of, text_of
from ropescale.injection.late import LateRotation
from ropescale.injection.patch import Patch, patch_of
from ropescale.injection.rotation import Substitution
from ropescale.temperature import with_temperature
from ropescale.wrappers import config_of

QUERIES = ("q_b_proj", "q_proj")  # the last linear layer on the way to queries, by name, in latent attention


class MixedRotation:
    """A patched model, told for which tokens to turn, and to weigh scores, as before the patch.

    A method that acts in attention has nothing here to mix: it is let in where it leaves queries within the original
    length alone by itself.

    Raises:
        InvalidArgumentError: a method that acts in attention and does not, or layers whose queries are not found.
    """

    def __init__(self, model: nn.Module) -> None:
        standing = patch_of(model)
        assert standing is not None
        done = standing.record
        self._short: Tensor | None = None  # [batch, n] bool
        if standing.late is not None:
            _require_untouched(standing, standing.late, parts_of(text_of(config_of(model)))[0].prefix)
            return
        self._before = copy.deepcopy(text_of(config_of(model)))
        done.restore(self._before)
        for substitution in standing.substitutions:
            substitution.rotary.register_forward_hook(self._mixed(substitution), with_kwargs=True)
        if standing.sharpening is not None:
            layers: list[Any] = list(standing.sharpening.layers)
            for layer, original in zip(layers, standing.sharpening.originals, strict=True):
                name = next((name for name in QUERIES if hasattr(layer, name)), None)
                if name is None:
                    raise InvalidArgumentError(
                        f"schedule: mixed_window gives queries of short documents the softmax scale of pretraining, "
                        f"got {type(layer).__name__} without {' or '.join(QUERIES)}; use full_length"
                    )
                getattr(layer, name).register_forward_hook(self._weighed(original / layer.scaling))

    @contextmanager
    def keeping(self, short: Tensor) -> Iterator[None]:
        """Within the block, forward and backward, these tokens [batch, n] are read as in pretraining."""
        self._short = short
        try:
            yield
        finally:
            self._short = None

    def _mixed(self, substitution: Substitution) -> Callable[..., Any]:
        """A hook that chooses cos and sin [batch, n, elements], or both as one complex tensor, token by token."""

        def mixed(rotary: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], waves: Any) -> Any:
            if self._short is None:
                return waves
            config = rotary.__dict__.get("config")
            with substitution.lifted():
                if config is not None:
                    rotary.__dict__["config"] = self._before  # what some work their frequencies out from
                try:
                    pretrained = type(rotary).forward(rotary, *inputs, **named)
                finally:
                    if config is not None:
                        rotary.__dict__["config"] = config
            wave = waves if isinstance(waves, Tensor) else waves[0]
            if wave.shape[1] != self._short.shape[1]:
                raise InvalidArgumentError(
                    f"schedule: mixed_window chooses the rotation token by token, got {self._before.model_type}, "
                    f"which rotates summaries of several tokens too; use full_length"
                )
            short = self._short[..., None].to(wave.device)
            if isinstance(waves, Tensor):
                return torch.where(short, pretrained, waves)
            return tuple(torch.where(short, before, after) for before, after in zip(pretrained, waves, strict=True))

        return mixed

    def _weighed(self, ratio: float) -> Callable[..., Tensor | None]:
        """A hook that gives queries of short documents the softmax scale of pretraining: theirs times `ratio`."""

        def weighed(layer: nn.Module, inputs: tuple[Any, ...], queries: Tensor) -> Tensor | None:
            if self._short is None:
                return None
            return torch.where(self._short[..., None].to(queries.device), queries * ratio, queries)

        return weighed


def _require_untouched(standing: Patch, late: LateRotation, prefix: str) -> None:
    """Refuse what acts in attention and rotates queries within the original length otherwise than pretraining did."""
    substitution, done = standing.substitutions[0], standing.record
    pretrained = substitution.originals[f"{prefix}inv_freq"]
    factor = substitution.attributes[f"{prefix}attention_scaling"]
    positions = torch.tensor([0, done.original_length // 2, done.original_length - 1], device=pretrained.device)
    inv_freq, factors = late.guide.late.spectra(positions)
    alike = late.guide.late.factors is None
    alike = alike and torch.allclose(inv_freq, pretrained.to(inv_freq).expand_as(inv_freq), rtol=1e-6, atol=0)
    scale = late.guide.late.query_scale(positions)
    alike = alike and (scale is None or bool((scale == 1).all()))
    if alike and torch.allclose(factors, torch.full_like(factors, factor), rtol=1e-6):
        return
    raise InvalidArgumentError(
        f"schedule: mixed_window needs a method that leaves documents within the original length "
        f"({done.original_length}) as in pretraining, got {done.method!r}{with_temperature(done.temperature)}, which "
        f"rotates them in attention by other frequencies or another attention factor; leave out what makes it act in "
        f"attention (short_factor, unscaled_prefix, log_n, temperature), or use full_length"
    )
