"""What is shown of a live model before its first step, by running it on a few tokens.

A mask or a state that lets documents see one another, a window that is lost, a rotation that short documents should
not have: none of them is an error to anyone, and training goes on, on something else than was asked for. So each is
tried on this model, with this schedule and this attention, against references that share nothing with what keeps
documents apart: the gradient of a document at the others, the document in a row of its own, the model before it was
patched.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.errors import InvalidArgumentError
from ropescale.evals.forward import resting
from ropescale.families.layers import layers_of
from ropescale.families.parts import text_of
from ropescale.injection.patch import patch_of
from ropescale.recipes.rotation import MixedRotation
from ropescale.recipes.schedules import DOCUMENTS, SHORT, Schedule
from ropescale.recipes.separation import Separation, carries_state
from ropescale.wrappers import bare, config_of

SIZES = (9, 14, 7)  # of the documents that are tried, tokens: the second outgrows WINDOW twice, and is the longest
WINDOW = 5  # tokens, of sliding windows and chunks meanwhile, so that short documents outgrow them
WINDOWED = ("sliding_window", "attention_chunk_size")  # names of these, in configs and in layers
SLIDING, CHUNKED = ("hybrid_sliding", "sliding_attention"), ("chunked_attention",)  # layer types
# Of the largest logit. In float32 sums in another order are at most 1e-5; in bfloat16, experts that are chosen by a
# rounding may change single tokens altogether, so there the median over tokens counts.
TOLERANCE, TOLERANCE_HALF = 1e-4, 5e-2


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was seen; anything that must not be is an error instead."""

    documents: int  # in the row that was tried
    separate: bool  # the gradient of the last document is 0 at the others
    alone: float  # largest difference from documents in rows of their own, of the largest logit
    windows: int  # layers whose sliding window or chunk held
    chunks: bool  # later chunks of pose see earlier ones
    short: float | None  # the same difference of short documents from the model before it was patched
    forwards: int  # of at most 30 tokens

    def said(self) -> str:
        """It in one line."""
        sentences = [f"{self.documents} documents in a row do not see one another" if self.separate else ""]
        sentences.append(f"each is read as in a row of its own ({self.alone:.0e} of the largest logit)")
        sentences.append(f"windows hold in {self.windows} layers" if self.windows else "")
        sentences.append("later chunks see earlier ones" if self.chunks else "")
        if self.short is not None:
            sentences.append(f"short ones as before the patch ({self.short:.0e})")
        return ", ".join(filter(None, sentences))


def alone(model: nn.Module, ids: Tensor, *, packed: bool = True) -> list[Tensor]:
    """[tokens, vocabulary] logits of the documents that `proven` tries, each in a row of its own.

    Called before the model is patched, for schedule mixed_window. `ids` are at least 30 tokens.
    """
    with narrowed(model), resting(model), torch.no_grad():
        return [_logits(model, part[None]) for part in _documents(ids, packed)]


def proven(
    model: nn.Module,
    schedule: Schedule,
    ids: Tensor,
    *,
    separation: Separation,
    mixed: MixedRotation | None = None,
    before: list[Tensor] | None = None,
    packed: bool = True,
) -> Proof:
    """Try a patched model on one row of three documents (of one, where rows are not packed), 30 tokens in all.

    Arguments:
        model: as it will be trained.
        schedule: of the run; lengths apart, what is tried is drawn by it.
        ids: at least 30 tokens of a text.
        separation: what keeps documents apart in this model.
        mixed: its rotation, with mixed_window.
        before: what `alone` gave for the same ids before the patch, with mixed_window.
        packed: whether a row may hold several documents.

    Raises:
        InvalidArgumentError: something that would silently be trained otherwise; the message says what to set.
    """
    config = text_of(config_of(model))
    sizes = {name: getattr(config, name, None) for name in WINDOWED}
    with narrowed(model), resting(model):
        return _Trial(model, schedule, ids, separation, mixed, before, packed, sizes).carried_out()


@contextmanager
def narrowed(model: nn.Module) -> Iterator[None]:
    """Within the block, sliding windows and chunks are of `WINDOW` tokens, for configs and layers alike."""
    changed: list[tuple[Any, str, int]] = []
    for owner in (text_of(config_of(model)), *bare(model).modules()):
        for name in WINDOWED:
            size = owner.__dict__.get(name)
            if type(size) is int and size > WINDOW:
                changed.append((owner, name, size))
    try:
        for owner, name, _ in changed:
            owner.__dict__[name] = WINDOW
        yield
    finally:
        for owner, name, size in changed:
            owner.__dict__[name] = size


class _Trial:
    """One row, and what a model made of it."""

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        ids: Tensor,
        separation: Separation,
        mixed: MixedRotation | None,
        before: list[Tensor] | None,
        packed: bool,
        sizes: dict[str, Any],  # of its windows otherwise
    ) -> None:
        self.sizes = sizes
        # float32 throughout: weights in 4 bits are multiplied by kernels of fewer digits
        self.exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
        self.model, self.separation, self.mixed, self.before = model, separation, mixed, before
        self.config: Any = text_of(config_of(model))
        self.attention = separation.attention
        self.packed, self.schedule = packed, schedule
        documents = _documents(ids, packed)
        # the longest is too long to be read as in pretraining, the others are not
        limit = SIZES[0] if packed else SIZES[1]
        tried = replace(schedule, original_length=limit, length=sum(map(len, documents)), content="contiguous")
        self.documents = torch.tensor([n for n, part in enumerate(documents) for _ in part], device=ids.device)
        row = {
            "input_ids": torch.cat(documents).tolist(),
            "position_ids": [place for part in documents for place in range(len(part))],
            DOCUMENTS: self.documents.tolist(),
        }
        for seed in range(100):  # until a jump of pose stands where no chunk of attention ends
            drawn = tried.drawn(row, random.Random(seed))
            self.jump = self._first_jump(drawn["position_ids"])
            if self.jump is not None or schedule.name != "pose":
                break
        self.batch = {name: tensor.to(ids.device) for name, tensor in tried.batch([drawn]).items()}
        del self.batch["labels"]
        self.of = self.batch.pop(DOCUMENTS, None)
        self.short = self.batch.pop(SHORT, None)
        self.forwards = 0

    def _first_jump(self, positions: Tensor) -> int | None:
        """The token before the first jump of positions within the last document, but for those that end a chunk."""
        begin = int((self.documents == self.documents[-1]).nonzero()[0])
        jumps = (positions[begin:].diff() != 1).nonzero()[:, 0].tolist()
        return begin + jumps[0] if jumps and (jumps[0] + 1) % WINDOW else None

    def carried_out(self) -> Proof:
        logits, separate, windows, chunks = self._dependences()
        differences: dict[bool, list[float]] = {True: [], False: []}
        for number in range(int(self.documents[-1]) + 1):
            own = self.documents == number
            short = self.short is not None and bool(self.short[0, own].all())
            if short:
                assert self.before is not None
                reference = self.before[number]
            else:
                reference = self._alone(own)
            differences[short].append(self._difference(logits[own], reference))
        self._require_alike(differences)
        return Proof(
            documents=int(self.documents[-1]) + 1,
            separate=separate,
            alone=max(differences[False], default=0.0),
            windows=windows,
            chunks=chunks,
            short=max(differences[True], default=None),
            forwards=self.forwards,
        )

    def _read(self, batch: dict[str, Tensor], **more: Any) -> Tensor:
        """[n, vocabulary] logits of a row as a step reads it."""
        self.forwards += 1
        with ExitStack() as stack:
            given = stack.enter_context(self.separation.keeping(self.of))
            if self.mixed is not None and self.short is not None:
                stack.enter_context(self.mixed.keeping(self.short))
            return _logits(self.model, **{**batch, **given}, **more)

    def _alone(self, own: Tensor) -> Tensor:
        """[tokens, vocabulary] logits of one document in a row of its own, read without what keeps documents apart."""
        self.forwards += 1
        flash = "flash" in self.attention
        ids, places = (self.batch[name][:, own] for name in ("input_ids", "position_ids"))
        mask = {} if flash else {"attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            return _logits(self.model, ids, position_ids=places, **mask)

    def _difference(self, logits: Tensor, reference: Tensor) -> float:
        """How far logits are from others, of the largest."""
        by_token = (logits.float() - reference.float()).abs().amax(-1) / reference.float().abs().max()
        return float(by_token.max() if self.exact else by_token.median())

    def _dependences(self) -> tuple[Tensor, bool, int, bool]:
        """The row's logits; whether its last document is without gradient at the others, in how many layers windows
        hold, and whether a later chunk sees an earlier one.

        Where attention or weights have no backward (flex attention, packed 4 bits on a CPU), tokens are exchanged for
        others instead, and what only a gradient shows is not claimed.
        """
        ids = self.batch["input_ids"]
        if self.attention == "flex_attention" and ids.device.type == "cpu":
            with torch.no_grad():
                logits = self._read(self.batch)
                moved = self._moved(logits)
            if moved > 0:
                self._require_separate(moved)
            return logits, self.packed, 0, False
        with torch.enable_grad(), _watched(self.model, self._windowed()) as seen:
            embedded: list[Tensor] = []

            def followed(layer: nn.Module, inputs: Any, vectors: Tensor) -> Tensor:
                embedded.append(vectors.detach().requires_grad_())
                return embedded[-1]

            embedding: Any = bare(self.model).get_input_embeddings()  # type: ignore[operator]
            hook = embedding.register_forward_hook(followed)
            try:
                logits = self._read(self.batch)
            finally:
                hook.remove()
            last = self.documents == self.documents[-1]
            vectors = embedded[0]
            gradient = _gradient(logits[last].float().logsumexp(-1).sum(), vectors)[0].abs().amax(-1)
            # none at all: weights in 4 bits that were packed for a CPU pass no gradients
            follows = bool(gradient[last].any())
            if self.packed:
                self._require_separate(float(gradient[~last].max()) if follows else self._moved(logits.detach()))
            chunks = follows and self.jump is not None
            if follows and self.jump is not None:
                later = logits[self.jump + 1 :].float().logsumexp(-1).sum()
                self._require_seen(float(_gradient(later, vectors)[0, self.jump].abs().max()))
            windows = self._windows(seen) if follows else 0
        return logits.detach(), self.packed, windows, chunks

    def _moved(self, logits: Tensor) -> float:
        """How far the last document's logits move when the tokens before it are others; 0 within rounding."""
        last = self.documents == self.documents[-1]
        if not self.packed:
            return 0.0
        ids = self.batch["input_ids"]
        others = torch.where(last, ids, ids.roll(3, 1).flip(1))
        moved = self._difference(self._read({**self.batch, "input_ids": others})[last], logits[last])
        return moved if moved > self._tolerance else 0.0

    def _windowed(self) -> dict[int, str]:
        """Layers that read a window or a chunk alone, by number, and their type."""
        reach = self.schedule.length  # rows that fit into a window have nothing to lose
        sizes = [size for name in WINDOWED if type(size := self.sizes.get(name)) is int and size < reach]
        if "flash" in self.attention or not sizes:
            return {}
        types = getattr(self.config, "layer_types", None)
        if types is None:
            count = self.config.num_hidden_layers if any(layer.window for layer in layers_of(self.config)) else 0
            types = [SLIDING[1]] * count
        return {number: kind for number, kind in enumerate(types) if kind in SLIDING or kind in CHUNKED}

    def _windows(self, seen: dict[int, tuple[str, Tensor, Tensor]]) -> int:
        """In how many layers the longest document's last token sees its window and no further."""
        longest = (self.documents == min(1, int(self.documents[-1]))).nonzero()[:, 0]
        place = len(longest) - 1
        for number, (kind, given, made) in seen.items():
            tokens = list(given.shape).index(len(self.documents))
            made = made.select(list(made.shape).index(len(self.documents)), int(longest[-1]))
            gradient = _gradient(made.float().square().sum(), given).movedim(tokens, 0).flatten(1).abs().amax(1)
            for distance in range(1, place + 1):
                within = distance < WINDOW if kind in SLIDING else (place - distance) // WINDOW == place // WINDOW
                if not within and bool(gradient[longest[place - distance]]):
                    raise InvalidArgumentError(
                        f"attention: a layer that reads a window must not see beyond it, got "
                        f"{self.config.model_type} with {self.attention}, whose layer {number} ({kind}) sees "
                        f"{distance} tokens back in a window of {WINDOW}; give another attention=NAME, or "
                        f"packing=False"
                    )
        return len(seen)

    @property
    def _tolerance(self) -> float:
        return TOLERANCE if self.exact else TOLERANCE_HALF

    def _require_separate(self, size: float) -> None:
        if size:
            raise InvalidArgumentError(
                f"packing: documents of a row must not see one another, got {self.config.model_type} with "
                f"{self.attention} attention and schedule {self.schedule.name}, where one moves the loss of a later "
                f"one ({size:.2g}); give packing=False, or another attention=NAME"
            )

    def _require_seen(self, size: float) -> None:
        if not size:
            raise InvalidArgumentError(
                f"schedule: later chunks of pose must see earlier ones, got {self.config.model_type} with "
                f"{self.attention} attention, which takes the jump of positions for another document; use "
                f"full_length, or another attention=NAME"
            )

    def _require_alike(self, differences: dict[bool, list[float]]) -> None:
        tolerance = self._tolerance
        if (worst := max(differences[True], default=0.0)) > tolerance:
            raise InvalidArgumentError(
                f"schedule: mixed_window must read short documents as before the patch, got {self.config.model_type} "
                f"with {self.attention} attention, whose logits differ by {worst:.2g} of the largest; use full_length"
            )
        if (worst := max(differences[False], default=0.0)) > tolerance:
            raise InvalidArgumentError(
                f"packing: a document in a row of several must be read as in a row of its own, got "
                f"{self.config.model_type} with {self.attention} attention and schedule {self.schedule.name}, whose "
                f"logits differ by {worst:.2g} of the largest; give packing=False, or another attention=NAME"
            )


@contextmanager
def _watched(model: nn.Module, kinds: dict[int, str]) -> Iterator[dict[int, tuple[str, Tensor, Tensor]]]:
    """Within the block, what these layers of the decoder are given and make: by number, with their type."""
    seen: dict[int, tuple[str, Tensor, Tensor]] = {}
    layers = _layers(model)

    def watching(number: int, kind: str) -> Any:
        def watched(layer: nn.Module, args: Any, kwargs: dict[str, Any], made: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            seen[number] = (kind, given, made[0] if isinstance(made, tuple) else made)

        return watched

    hooks = [
        layers[number].register_forward_hook(watching(number, kind), with_kwargs=True)
        for number, kind in kinds.items()
        # a convolution reaches further than the window of the attention behind it
        if number < len(layers) and not any(carries_state(module) for module in layers[number].modules())
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the decoder, in their order: the list beside its rotary module, or the next one above."""
    standing, whole = patch_of(model), bare(model)
    name = next(name for name, module in whole.named_modules() if standing and module is standing.rotary)
    while name:
        name = name.rpartition(".")[0]
        for child in whole.get_submodule(name).children():
            if isinstance(child, nn.ModuleList):
                return list(child)
    return []


def _documents(ids: Tensor, packed: bool) -> list[Tensor]:
    """The documents that are tried."""
    sizes = SIZES if packed else SIZES[1:2]
    return list(torch.split(ids[: sum(sizes)], list(sizes)))


def _logits(model: nn.Module, input_ids: Tensor, **given: Any) -> Tensor:
    """[n, vocabulary] of one row."""
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **given).logits[0]
    return logits


def _gradient(of: Tensor, at: Tensor) -> Tensor:
    """Zeros where nothing depends on it."""
    (gradient,) = torch.autograd.grad(of, [at], retain_graph=True, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient
