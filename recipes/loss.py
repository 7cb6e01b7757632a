"""The loss of a causal language model without its logits.

The decoder runs once over whole sequences; the head runs on the tokens that are to be learnt, some at a time, and
each time its gradients are taken at once. So neither logits nor their gradients ever exist for more than a chunk, the
head is not run a second time, and what a step holds does not grow with the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ropescale.evals.forward import Split, head_way, vocabulary
from ropescale.wrappers import bare

CHUNK_ELEMENTS = 2**24  # logits that exist at a time: 64 MiB in float32, and as much again for their gradients
IGNORED = -100  # the label of a token that is not learnt


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What each token of a batch counts in its loss."""

    tokens: Tensor  # [batch, n] the weights; with `most`, what each token costs with little context (nats), or NaN
    most: float | None = None  # the largest weight, where weights are exp(cost with little context - cost)

    def of(self, given: Tensor, costs: Tensor) -> Tensor:
        """The weights of some tokens: `given` of `tokens`, `costs` in nats of these tokens here."""
        if self.most is None:
            return given
        return (given - costs).exp().clamp(max=self.most).nan_to_num(nan=1.0)


@contextmanager
def chunked_loss(model: nn.Module) -> Iterator[bool]:
    """Within the block, `model(..., labels=...)` gives the loss alone, and builds no logits for it.

    The loss is Transformers' own: each token predicts the next one, the mean over `num_items_in_batch`, or over the
    labels that are not -100. Gradients are those of the plain loss up to rounding. A model is taken as it is, under
    PEFT or not; without labels it answers as before. With `token_weights` (a `Weights`) what each token costs is
    multiplied by what it counts, and the sum divided by the same number. Yields False and leaves a model alone whose
    head cannot be run apart from its decoder, or whose loss has a part for the routing of experts.

    Example:
        >>> import ropescale, torch
        >>> from ropescale.recipes import chunked_loss
        >>> model = ropescale.load("tiny")
        >>> ids = torch.arange(3, 67)[None]
        >>> plain = model(input_ids=ids, labels=ids)
        >>> with chunked_loss(model):
        ...     lean = model(input_ids=ids, labels=ids)
        >>> torch.allclose(lean.loss, plain.loss), lean.logits is None
        (True, True)
    """
    base: Any = bare(model)
    if head_way(base) != "chunked" or getattr(base.config.get_text_config(), "output_router_logits", False):
        yield False
        return
    before = base.__dict__.get("forward")
    forward = base.forward

    @functools.wraps(forward)
    def with_loss(*args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return forward(*args, **inputs)
        items, weights = inputs.pop("num_items_in_batch", None), inputs.pop("token_weights", None)
        for name in ("use_cache", "return_dict", "output_hidden_states"):
            inputs.pop(name, None)
        return CausalLMOutput(loss=_loss(base, forward, inputs, labels, items, weights))

    base.forward = with_loss
    try:
        yield True
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def _loss(
    base: PreTrainedModel,
    forward: Callable[..., Any],
    inputs: dict[str, Any],
    labels: Tensor,
    items: Tensor | int | None,
    weights: Weights | None,
) -> Tensor:
    """The mean negative log-likelihood of the labels, nats, each times what it counts."""
    shifted = inputs.pop("shift_labels", None)  # of a part of a row: what follows its last token is in the next part
    split = Split(base, forward)
    with split:
        hidden = split.hidden(**inputs)
    following = shifted
    if following is None:
        following, hidden = labels[:, 1:], hidden[:, :-1]
    learnt = following != IGNORED
    head: nn.Module | None = base.get_output_embeddings()
    trained = [parameter for parameter in ([] if head is None else head.parameters()) if parameter.requires_grad]
    wanted, places = following[learnt.to(following.device)], hidden[learnt.to(hidden.device)]
    weigh: tuple[Weights, Tensor] | None = None
    if weights is not None:
        given = weights.tokens[:, 1:]
        weigh = weights, given[learnt.to(given.device)].to(places.device)
    apply: Callable[..., Tensor] = _HeadLoss.apply  # torch states no types for it
    total = apply(split, places, wanted.to(places.device), weigh, *trained)
    return total / (learnt.sum().to(total.device) if items is None else items)


class _HeadLoss(torch.autograd.Function):
    """The summed loss of places, with the gradients of places and head taken chunk by chunk on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        split: Split,
        hidden: Tensor,
        labels: Tensor,
        weigh: tuple[Weights, Tensor] | None,
        *trained: nn.Parameter,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        needed = any(ctx.needs_input_grad)
        of_hidden = torch.empty_like(hidden)
        of_head = [torch.zeros_like(parameter) for parameter in trained]
        pieces = max(1, -(-len(hidden) * vocabulary(split.model) // CHUNK_ELEMENTS))
        weights, given = (None, labels) if weigh is None else weigh  # without weights nothing reads the second
        alike = (hidden.detach(), labels[:, None], given[:, None], of_hidden)
        for some, label, own_given, place in zip(*(tensor.tensor_split(pieces) for tensor in alike), strict=True):
            with split, torch.set_grad_enabled(needed):
                logits = split.logits(some.requires_grad_(needed))
            of_logits = logits.detach().float().log_softmax(-1)
            found = of_logits.gather(1, label)
            weight = None if weights is None else weights.of(own_given, -found)
            total -= (found if weight is None else found * weight).sum()
            if not needed:
                continue
            # cross-entropy's gradient, probabilities less one at the label, takes the place of their logarithms
            of_logits = of_logits.exp_().scatter_add_(1, label, -torch.ones_like(label, dtype=of_logits.dtype))
            if weight is not None:
                of_logits *= weight
            own, *others = torch.autograd.grad(logits, [some, *trained], of_logits.to(logits.dtype), allow_unused=True)
            place.copy_(own)
            for sum_of_one, gradient in zip(of_head, others, strict=True):
                if gradient is not None:
                    sum_of_one += gradient
            del logits, of_logits
        ctx.save_for_backward(of_hidden, *of_head)
        return total

    @staticmethod
    def backward(ctx: Any, *of_total: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_head = ctx.saved_tensors
        return None, of_hidden * of_total[0], None, None, *(gradient * of_total[0] for gradient in of_head)
