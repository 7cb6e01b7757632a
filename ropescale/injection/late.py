"""The door for methods that act when attention reads.

The rotary module gives the identity, so queries, keys and the cache are un-rotated; one registered attention function
rotates them where it reads them. A hook before the decoder tells it where the tokens of a call stand.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ropescale.errors import RopescaleError
from ropescale.injection.forward_pass import NOTHING, ForwardPass, Late, Listener
from ropescale.injection.kernels import Call, attend
from ropescale.injection.places import cache_among, placed
from ropescale.methods.late import Added, Sizes

LAYOUT = "_ropescale_layout"  # attribute of an attention layer: how it rotates, None if it does not
KEPT = "_ropescale_kept"  # attribute of an attention layer that rotates as it did before; others have none
NAME = "ropescale"  # of the attention function, and of the keyword that carries a `ForwardPass` to it


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that Transformers calls in every layer of a late-rotated model.

    `query` is [batch, heads, n, head_dim], `key` and `value` are [batch, key heads, slots, head_dim], all un-rotated;
    what comes back is [batch, n, heads, head_dim] and no weights.

    Raises:
        RopescaleError: a layer that was not told where its tokens stand.
    """
    forward_pass = kwargs.get(NAME)
    if isinstance(forward_pass, Recorder):
        return forward_pass.noted(module, query, key, value), None
    if not isinstance(forward_pass, ForwardPass) or LAYOUT not in module.__dict__:
        raise RopescaleError(
            f"{type(module).__name__}: attention must be told where its tokens stand, got no {NAME} keyword; call "
            f"the model through its decoder, or ropescale.unpatch(model) first"
        )
    if attention_mask is not None and attention_mask.shape[1] != 1:
        raise RopescaleError(
            f"{type(module).__name__}: attention must get one mask for all heads, got "
            f"{list(attention_mask.shape)}; call ropescale.unpatch(model) first"
        )
    if forward_pass.listener is not None and module.__dict__[LAYOUT] is not None:
        forward_pass.listener(module, query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
    if KEPT in module.__dict__:
        assert forward_pass.kept is not None
        forward_pass = forward_pass.kept
    if forward_pass.late.factors is not None and module.__dict__[LAYOUT] is not None:
        number: Any = module.layer_idx
        forward_pass = forward_pass.in_layer(number)
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and forward_pass.late.tells_heads_apart:  # each reads its group's keys by a rotation of its own
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    call = Call(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        layout=module.__dict__[LAYOUT],
        # Persimmon of Transformers 5.0 makes a column more than there are keys, which no key fills
        mask=None if attention_mask is None else attention_mask[..., : key.shape[2]],
        added=_added_to(module, forward_pass.late) or forward_pass.added,
        dropout=dropout if module.training else 0.0,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    scale = forward_pass.late.query_scale(forward_pass.positions)
    if scale is not None and call.layout is not None:
        query = query * scale[:, None, :, None].to(query.dtype)
    grouped = torch.unflatten(query, 1, (key.shape[1], query.shape[1] // key.shape[1]))
    out = attend(forward_pass, grouped, key, value, call)
    return out.flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _added_to(owner: nn.Module, late: Late) -> Added:
    """The parameters that a method added to a module.

    Raises:
        RopescaleError: they were offloaded, by hooks that do not bring back what attention reads by itself.
    """
    added: Any = owner._modules.get(NAME) or NOTHING
    if any(tensor.is_meta for tensor in added.values()):
        raise RopescaleError(
            f"{late.name}: the parameters that it added must have values, got some on the meta device; call "
            f"ropescale.unpatch(model), and patch it again where its weights are offloaded already"
        )
    return added  # type: ignore[no-any-return]  # a ParameterDict is a mapping


class Guide:
    """A hook before the decoder: tells attention where the tokens of a call stand."""

    def __init__(self, late: Late, order: tuple[str, ...], kept: Late | None = None):
        self.late = late
        self.kept = kept  # what layers do that rotate as they did before
        self.order = order  # the names of the decoder's arguments
        self.listener: Listener | None = None  # who is told what layers that rotate are given

    def __call__(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config: Any = decoder.config
        if config._attn_implementation != NAME:
            raise RopescaleError(
                f"attention: must stay {NAME!r} while {self.late.name} is patched in, got "
                f"{config._attn_implementation!r}; call ropescale.unpatch(model) before set_attn_implementation"
            )
        kwargs = {**kwargs, **dict(zip(self.order, args, strict=False))}
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids")
        kinds = kwargs.get("token_type_ids")
        if kinds is not None and not torch.compiler.is_compiling() and bool(kinds.any()):
            raise RopescaleError(
                f"token_type_ids: must be absent or zero with {self.late.name}, which reads backwards only, got "
                f"tokens of another type; leave them out, or call ropescale.unpatch(model) first"
            )
        if kwargs.get("is_causal") is False:
            raise RopescaleError(
                f"is_causal: must be left out with {self.late.name}, which reads backwards only, got False; leave it "
                f"out, or call ropescale.unpatch(model) first"
            )
        cache = cache_among(kwargs.values())
        past: int | Tensor = 0 if cache is None else cache.get_seq_length()
        if isinstance(past, Tensor):
            # a static cache counts in place, and layers ask later than this
            past = past.clone() if torch.compiler.is_compiling() else int(past)
        if tokens is None:
            return (), kwargs  # the decoder says what is missing
        places = placed(kwargs, tokens.shape[1], past, tokens.device, cached=cache is not None, name=self.late.name)
        positions = kwargs["position_ids"] = places.queries
        shared = _added_to(decoder, self.late)
        added = self.late.method.embedding(positions, config.hidden_size, shared)
        if added is not None:
            if kwargs.get("inputs_embeds") is None:
                embed: Any = decoder.get_input_embeddings()  # type: ignore[operator]
                kwargs["inputs_embeds"] = embed(tokens)
                kwargs.pop("input_ids", None)
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"] + added.to(kwargs["inputs_embeds"])
        kept = None if self.kept is None else ForwardPass(self.kept, positions, past, NOTHING, places.slots)
        forward_pass = kwargs[NAME] = ForwardPass(self.late, positions, past, shared, places.slots, kept)
        forward_pass.listener = self.listener
        return (), kwargs


class GuidedForward:
    """The `forward` of a decoder, guided also where somebody calls it by itself, past every hook.

    sentence-transformers does. It stands among the decoder's own attributes, as the hooks of accelerate do, and guides
    for as long as the hook stands: something else may go on calling it.
    """

    def __init__(self, decoder: nn.Module, guide: Guide) -> None:
        self.decoder, self.guide = decoder, guide
        self.before = decoder.__dict__.get("forward")
        decoder.__dict__["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if NAME not in kwargs and self.guide in self.decoder._forward_pre_hooks.values():
            args, kwargs = self.guide(self.decoder, args, kwargs)
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.decoder).forward(self.decoder, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the decoder, by which callers choose what to give."""
        own = MethodType(type(self.decoder).forward, self.decoder)
        return inspect.signature(own if self.before is None else self.before)

    def undo(self) -> None:
        """Put back what was there before, unless something else stands around it by now."""
        if self.decoder.__dict__.get("forward") is not self:
            return
        del self.decoder.__dict__["forward"]
        if self.before is not None:
            self.decoder.__dict__["forward"] = self.before


def implementations(config: Any) -> list[tuple[Any, str | None]]:
    """A config and those within it, whole before parts, each with the attention function that it names."""
    pairs = [(config, config._attn_implementation)]
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            pairs += implementations(part)
    return pairs


def put_back(before: list[tuple[Any, str | None]]) -> None:
    """Undo a change of attention function, which Transformers writes into every part."""
    for config, implementation in before:
        config._attn_implementation = implementation


class Recorder:
    """Takes the place of a forward pass: notes what attention is given, and answers with nothing.

    Attention that gives nothing leaves the hidden states of every layer independent of rotation, so that the queries
    of one run can be compared with those of another in which the rotary module gave the identity.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        self.value_dim = 0  # elements that a head reads of one token

    def noted(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, n, heads, value_dim] zeros."""
        self.calls.append((module, query, key))
        self.value_dim = value.shape[3]
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


def _computing(owner: nn.Module, otherwise: torch.device | None) -> torch.device | None:
    """Where an offloaded module computes, as the hooks of accelerate know it."""
    for part in owner.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return otherwise


class LateRotation:
    """A late method put into a live model, and what was there before.

    The rotary module itself is emptied by a `Substitution`; this is the rest: the attention function, the hook that
    guides it, and each layer's layout.
    """

    def __init__(
        self,
        decoder: nn.Module,
        late: Late,
        layouts: dict[nn.Module, str | None],
        sizes: Sizes | None,
        before: Late | None = None,
        place: torch.device | None = None,
    ) -> None:
        """`sizes` shape the parameters that the method adds; None for a method that adds none.

        `before` is the rotation of the layers that `late.kept` numbers. `place` is where the decoder computes, if its
        weights are offloaded.
        """
        self.decoder = decoder
        self.layers = list(layouts)
        kept = [layer for layer in layouts if before is not None and getattr(layer, "layer_idx", None) in late.kept]
        self.guide = Guide(late, tuple(inspect.signature(decoder.forward).parameters), before if kept else None)
        config: Any = decoder.config
        self.before = implementations(config)
        rotating = [layer for layer, layout in layouts.items() if layout is not None and layer not in kept]
        self.owners = [] if sizes is None else [decoder] if late.method.shared else rotating
        for owner in self.owners:
            assert sizes is not None
            begun = late.method.added(late.geometry, sizes)
            if begun:
                weight = next(owner.parameters())
                device = _computing(owner, place) if weight.is_meta else weight.device
                begun = {name: tensor.to(device, weight.dtype) for name, tensor in begun.items()}
                owner.add_module(NAME, nn.ParameterDict(begun))
        for layer, layout in layouts.items():
            layer.__dict__[LAYOUT] = layout
        for layer in kept:
            layer.__dict__[KEPT] = True
        config._attn_implementation = NAME
        self._hook = decoder.register_forward_pre_hook(self.guide, with_kwargs=True)
        self._forward = GuidedForward(decoder, self.guide)

    def undo(self) -> None:
        """Put back what was there before."""
        self._hook.remove()
        self._forward.undo()
        put_back(self.before)
        for layer in self.layers:
            layer.__dict__.pop(LAYOUT, None)
            layer.__dict__.pop(KEPT, None)
        for owner in self.owners:
            owner._modules.pop(NAME, None)
