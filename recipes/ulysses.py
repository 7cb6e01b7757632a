"""Rows cut among processes that exchange heads for tokens before attention (DeepSpeed-Ulysses, arXiv:2309.14509).

`axolotl-ringmaster` does the work: a registered attention function that wraps Transformers' own. Between two
exchanges a process holds every token of its share of the heads, so masks, packed documents and rotation stay exact.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropescale.errors import InvalidArgumentError
from ropescale.patching import bare

Batch = dict[str, Tensor]


@contextmanager
def ulysses(model: nn.Module, processes: int) -> Iterator[None]:
    """Within the block, the model's attention is shared among all processes; batches go through `share`.

    Raises:
        InvalidArgumentError: axolotl-ringmaster is not installed, or the heads cannot be shared evenly.
    """
    if importlib.util.find_spec("ringmaster") is None:
        raise InvalidArgumentError(
            "ulysses: needs axolotl-ringmaster, got no package of that name; pip install axolotl-ringmaster"
        )
    import ringmaster

    base: Any = bare(model)
    config = base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if heads % processes or config.num_attention_heads % processes:
        raise InvalidArgumentError(
            f"ulysses: must divide the number of key-value heads ({heads}), got {processes}; start fewer processes"
        )
    before = config._attn_implementation
    runtime = ringmaster.setup(
        ringmaster.RingmasterConfig(size=processes, backend=ringmaster.Backend.ULYSSES),
        num_kv_heads=heads,
        device_type=next(base.parameters()).device.type,
        inner_attn=before,
    )
    base.set_attn_implementation(runtime.attn_implementation)
    try:
        yield
    finally:
        base.set_attn_implementation(before)
        ringmaster.teardown()


def share(batch: Batch) -> Batch:
    """Of a batch that is the same in every process, the part of this one: [rows, length / processes].

    Positions stay those of the whole row, and `shift_labels` holds what each token is to predict, also across the
    cut. Documents are told by positions that are 0, which every document of a row begins with.
    """
    from ringmaster.runtime import get_runtime
    from ringmaster.shard import prepare_global_batch, shard_batch, varlen_meta

    runtime = get_runtime()
    whole = prepare_global_batch(dict(batch))
    positions = whole.get("position_ids")
    part, cut = shard_batch(whole, cp_rank=runtime.cp_rank, cp_size=runtime.cp_size)
    runtime.varlen = varlen_meta(positions, cut.original_seq_len + cut.pad_len)
    part.pop("labels", None)
    return part


def shared_loss(losses: Tensor, batch: Batch) -> Tensor:
    """The loss of this process, such that DDP's mean of gradients is the gradient of the mean over all tokens.

    Args:
        losses: the sum of this process's token losses.
        batch: what `share` gave.
    """
    counted = (batch["shift_labels"] != -100).sum().to(losses.dtype)
    torch.distributed.all_reduce(counted)
    return losses * torch.distributed.get_world_size() / counted
