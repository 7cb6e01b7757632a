"""How each layer of a live model rotates, found by trying, before a late method is put in.

A family's own code decides what happens between projection and attention. Three short forward passes tell: what
attention is given as the model is, what it is given when the rotary module gives the identity, and whether rotating
late gives the hidden states that rotating early gave. What does not fit is refused, so nothing is silently wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.errors import RopescaleError, UnsupportedModelError
from ropescale.families.modules import live_spectrum
from ropescale.families.parts import Part
from ropescale.families.today import length_of_switch, todays_spectrum
from ropescale.injection.forward_pass import Late
from ropescale.injection.kernels import LAYOUTS, rotate
from ropescale.injection.late import NAME, LateRotation, Recorder, implementations, put_back
from ropescale.injection.proof import Answers, Watch, decoder_of, gap, tensors_in
from ropescale.methods.late import Fixed, Sizes, with_spectrum
from ropescale.spectrum import Spectrum

TOKENS = 8  # of a probing pass
FIRST = 3  # position of its first token: at 0 nothing rotates
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative to the largest element
COARSE = 5e-2  # in half precision


class Probe:
    """What a model does before a late method; made while it is unpatched, and asked to put the method in after the
    rotary module was emptied.

    Raises:
        UnsupportedModelError: layers that cannot be rotated late; the message says why.
    """

    def __init__(self, model: nn.Module, rotary: nn.Module, part: Part, late: Late, watch: Watch) -> None:
        """`part` is of the layers whose rotary buffers will be emptied; `watch` hears what each layer gives back."""
        self._model, self._late, self._watch = model, late, watch
        # now: the config will say otherwise
        self._switch = length_of_switch(part)
        self._beyond = Spectrum(*todays_spectrum(part, beyond=True)) if self._switch else None
        self._decoder = decoder_of(model, rotary)
        embeddings: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
        self._ids = torch.arange(1, TOKENS + 1, device=watch.device).remainder(embeddings.num_embeddings)[None]
        self._positions = torch.arange(FIRST, FIRST + TOKENS, device=self._ids.device)[None]
        self._tolerance = TOLERANCES.get(embeddings.weight.dtype, COARSE)
        if self._decoder.get_output_embeddings() is not None:  # type: ignore[operator]
            raise self._refused("a decoder apart from its head", "one that is both")
        with _evaluating(self._decoder):
            try:
                self._answers = watch.text(FIRST, TOKENS)
                others = watch.text(FIRST, TOKENS, ending=0)
            except Exception as error:  # whatever a family's own code says to text that does not begin at 0
                raise self._refused(
                    f"a decoder that reads text from position {FIRST} on", f"{type(error).__name__}: {error}"
                ) from error
            with _followed(self._decoder, rotary) as takers:
                self._native = self._noted()
        # after the passes: Transformers' length-dependent types have then what these rotated by
        self._spectrum = live_spectrum(rotary, part.prefix, FIRST + TOKENS - 1)
        angles = self._positions[0, :, None].float() * self._spectrum.inv_freq.to(self._ids.device)
        factor = self._spectrum.attention_factor
        self._cos, self._sin = angles.cos() * factor, angles.sin() * factor
        self._require_no_rotation_elsewhere(takers)
        self._require_backwards(others)

    def put(self) -> LateRotation:
        """The method put in, once it is known that rotating late changes nothing by itself.

        Raises:
            UnsupportedModelError: layers that cannot be rotated late; the model has nothing of this left in it.
        """
        with _evaluating(self._decoder):
            layouts = self._layouts(self._noted())
            geometry = with_spectrum(self._late.geometry, self._spectrum)
            before = Late(name=self._late.name, method=Fixed(), geometry=geometry)
            trial = LateRotation(self._decoder, before, layouts, None)
            try:
                answers = self._watch.text(FIRST, TOKENS)
            except Exception as error:  # whatever a family's own code says to attention that it did not expect
                raise self._refused(
                    "layers that take what attention gives back", f"{type(error).__name__}: {error}"
                ) from error
            finally:
                trial.undo()
        # layer by layer: in half precision the rounding of many layers is as large as their sum
        apart = max(gap(answers[layer], answer) for layer, answer in self._answers.items())
        if not apart <= self._tolerance:
            raise self._refused(
                "the same answers of attention whether keys are rotated before or after the cache",
                f"a difference of {apart:.3g} of the largest element",
            )
        config: Any = self._decoder.config
        sizes = Sizes(
            heads=config.num_attention_heads,
            head_dim=self._native.calls[0][1].shape[-1],
            value_dim=self._native.value_dim,
            hidden=config.hidden_size,
        )
        self._require_numbers(layouts)
        beside = dataclasses.replace(before, method=self._late.method.beside())
        if self._beyond is not None:
            far = with_spectrum(self._late.geometry, self._beyond)
            beside = dataclasses.replace(beside, geometry=far, near=beside, near_length=self._switch)
        return LateRotation(self._decoder, self._late, layouts, sizes, beside, self._watch.device)

    def _require_numbers(self, layouts: dict[nn.Module, str | None]) -> None:
        """Refuse layers that are to rotate otherwise than one another, and which do not say which they are."""
        numbers = [getattr(layer, "layer_idx", None) for layer in layouts]
        late = self._late
        if late.kept and len({*numbers} - {None}) != len(numbers):
            raise self._refused("layers that each have a number of their own to rescale some of them", f"{numbers}")
        if late.factors is not None and not {*numbers} <= {*range(len(late.rows))}:
            raise self._refused(
                f"layers that each have a number from 0 to {len(late.rows) - 1}, since they rotate apart", f"{numbers}"
            )

    def _require_backwards(self, others: Answers) -> None:
        """Refuse layers that read later tokens too; `others` is what they answer where the last token is another.

        Regions and blocks of queries stop at the query itself, and in texts within one region nothing would show it.
        """
        for layer, answer in self._answers.items():
            apart = gap(others[layer][:, :, :-1], answer[:, :, :-1])
            if apart > self._tolerance:
                number = self._watch.number(layer)
                raise self._refused(
                    "layers that read earlier tokens alone",
                    f"layer {number}, which reads later ones too, as embedding models are built to do",
                )

    @torch.no_grad()
    def _noted(self) -> Recorder:
        """What every layer's attention is given, with nothing given back."""
        recorder = Recorder()
        try:
            with _attending(self._decoder.config, NAME):
                self._decoder(input_ids=self._ids, position_ids=self._positions, use_cache=False, **{NAME: recorder})
        except (RuntimeError, TypeError, RopescaleError) as error:
            raise self._refused("a decoder that hands keywords down to its attention", str(error)) from error
        return recorder

    def _require_no_rotation_elsewhere(self, takers: dict[nn.Module, str]) -> None:
        """Refuse a model in which more than attention rotates.

        An indexer that chooses the keys which attention reads rotates queries and keys of its own: with the identity
        it would choose others, and only in texts longer than its choice.
        """
        through = {layer for layer, *_ in self._native.calls}
        # a layer without attention is given cos and sin as well, and leaves them alone
        whole = [block for part in self._decoder.modules() if isinstance(part, nn.ModuleList) for block in part]
        attending = {part for block in whole if through.intersection(block.modules()) for part in block.modules()}
        for module, name in takers.items():
            if module in attending and not through.intersection(module.modules()):
                raise self._refused("a model that rotates in attention alone", f"{name}, which is given cos and sin")

    def _layouts(self, bare: Recorder) -> dict[nn.Module, str | None]:
        """Layer -> its layout, or None where it does not rotate."""
        if not bare.calls or len(self._native.calls) != len(bare.calls):
            raise self._refused(
                "layers whose attention goes through the function that Transformers looks up",
                f"{len(bare.calls)} that do",
            )
        layouts: dict[nn.Module, str | None] = {}
        for (layer, *turned), (_, *plain) in zip(self._native.calls, bare.calls, strict=True):
            # a layer may be passed several times
            choices = (layouts[layer],) if layer in layouts else (None, *LAYOUTS)
            fitting = [choice for choice in choices if self._fits(choice, plain, turned)]
            if not fitting:
                number = getattr(layer, "layer_idx", len(layouts))
                raise self._refused(
                    "layers that rotate queries and keys last before attention",
                    f"layer {number}, which does something else",
                )
            layouts[layer] = fitting[0]
        if all(choice is None for choice in layouts.values()):
            raise self._refused("a layer that rotates", "none")
        return layouts

    def _fits(self, layout: str | None, plain: list[Tensor], turned: list[Tensor]) -> bool:
        """Whether this is what makes `turned` of `plain`."""
        for before, after in zip(plain, turned, strict=True):
            if layout is not None and before.shape[-1] < 2 * self._cos.shape[-1]:
                return False
            made = before if layout is None else rotate(before.float(), self._cos, self._sin, layout)
            apart = (made.float() - after.float()).abs().max()
            if not apart <= self._tolerance * after.float().abs().max():
                return False
        return True

    def _refused(self, needed: str, got: str) -> UnsupportedModelError:
        config: Any = self._decoder.config
        return UnsupportedModelError(
            f"{config.model_type}: {self._late.name} needs {needed}, got {got}; {self._late.remedy}"
        )


@contextmanager
def _attending(config: Any, implementation: str) -> Iterator[None]:
    """A model whose layers attend with another function for a while."""
    before = implementations(config)
    config._attn_implementation = implementation
    try:
        yield
    finally:
        put_back(before)


@contextmanager
def _followed(decoder: nn.Module, rotary: nn.Module) -> Iterator[dict[nn.Module, str]]:
    """Which modules are given what the rotary module returned, with their names."""
    waves: list[Tensor] = []
    takers: dict[nn.Module, str] = {}

    def returned(_: nn.Module, __: Any, outputs: Any) -> None:
        waves.extend(tensors_in(outputs))

    def given(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            if any(tensor is wave for tensor in tensors_in((args, kwargs)) for wave in waves):
                takers[module] = name

        return note

    hooks = [rotary.register_forward_hook(returned)]
    hooks += [
        module.register_forward_pre_hook(given(name), with_kwargs=True) for name, module in decoder.named_modules()
    ]
    try:
        yield takers
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """A module without dropout for a while."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
