"""Which heads of a model are most aware of positions, as its attention to a text says: the ranks of `ms_poe`."""

from typing import Any

import torch
from torch import Tensor, nn

from ropescale.checks import is_whole
from ropescale.errors import InvalidArgumentError
from ropescale.families.parts import text_of
from ropescale.injection.patch import patch_of
from ropescale.patching import patched
from ropescale.wrappers import bare, config_of

OUTLIER = 3.0  # times the mean weight: from there on a key counts as one


def head_ranks(model: nn.Module, input_ids: Tensor, *, existing: str = "error") -> list[list[int]]:
    """The ranks of the heads of each layer, from 0 for the one with most outliers; for `ranks` of `ms_poe`.

    A head's outliers are the keys to which the last token of a text gives more than three times the mean weight, by
    queries and keys that are not rotated (Zhang et al. 2024, arXiv:2403.04797, as its code counts them); of several
    texts they are added up, and of two heads alike the first comes first. The texts are read by the model as it
    is, once: the released code reads each prompt in layers whose predecessors have been rescaled already. Layers that
    do not rotate have their heads in their own order.

    Args:
        model: a Transformers model that is not patched; its weights and config stay as they are.
        input_ids: [texts, tokens] int64, without padding, on the device of the model.
        existing: as of `ropescale.patch`, for a checkpoint that is scaled already.

    Example:
        >>> import ropescale, torch
        >>> from ropescale.ranking import head_ranks
        >>> model = ropescale.load("tiny")
        >>> ranks = head_ranks(model, torch.arange(100)[None])
        >>> ropescale.record(ropescale.patch(model, "ms_poe", ranks=ranks)).knobs["ranks"] == ranks
        True

    Raises:
        InvalidArgumentError: no texts, or texts that are not [texts, tokens].
        RopescaleError: whatever `patch` raises for a method that acts in attention.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or not is_whole(input_ids.numel(), 1):
        shown = list(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise InvalidArgumentError(
            f"input_ids: must be token ids of [texts, tokens], got {shown}; tokenize texts of one length"
        )
    config: Any = text_of(config_of(model))
    outliers: dict[int, Tensor] = {}  # of each head, in whole numbers, so that rounding parts no heads that are alike

    def count(layer: nn.Module, query: Tensor, key: Tensor, scaling: float) -> None:
        groups = query.shape[1] // key.shape[1]
        scores = query[:, :, -1:] @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        weights = scores[:, :, 0].float().softmax(-1)
        outliers[int(layer.layer_idx)] = (weights > OUTLIER / key.shape[2]).sum((0, 2))  # type: ignore[arg-type]

    base = bare(model)
    training = base.training
    with patched(model, "ms_poe", low=1, high=1, start=0, existing=existing):
        standing = patch_of(model)
        assert standing is not None
        assert standing.late is not None
        standing.late.guide.listener = count
        try:
            with torch.no_grad():
                base.eval()(input_ids=input_ids, use_cache=False)
        finally:
            base.train(training)
    own = list(range(config.num_attention_heads))
    return [_ranks(outliers[number]) if number in outliers else own for number in range(config.num_hidden_layers)]


def _ranks(outliers: Tensor) -> list[int]:
    """[heads]: 0 for the head with most."""
    return torch.argsort(outliers.argsort(descending=True, stable=True)).tolist()
