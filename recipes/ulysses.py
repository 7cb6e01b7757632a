"""Rows cut among processes that exchange heads for tokens before attention (DeepSpeed-Ulysses, arXiv:2309.14509).

`axolotl-ringmaster` does the work: a registered attention function that wraps Transformers' own. Between two
exchanges a process holds every token of its share of the heads, so masks, packed documents and rotation stay exact.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ropescale.errors import InvalidArgumentError
from ropescale.wrappers import bare

Batch = dict[str, Tensor]


class Ulysses:
    """A model whose attention all processes of a run can share.

    Raises:
        InvalidArgumentError: axolotl-ringmaster is not installed, or the heads cannot be shared evenly.
    """

    def __init__(self, model: nn.Module, processes: int):
        if importlib.util.find_spec("ringmaster") is None:
            raise InvalidArgumentError(
                "ulysses: needs axolotl-ringmaster, got no package of that name; pip install axolotl-ringmaster"
            )
        import ringmaster

        base: Any = bare(model)
        self._model = base
        config = base.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        if heads % processes or config.num_attention_heads % processes:
            raise InvalidArgumentError(
                f"ulysses: must divide the number of key-value heads ({heads}), got {processes}; start fewer processes"
            )
        self._before: str = config._attn_implementation
        self._runtime = ringmaster.setup(
            ringmaster.RingmasterConfig(size=processes, backend=ringmaster.Backend.ULYSSES),
            num_kv_heads=heads,
            device_type=next(base.parameters()).device.type,
            inner_attn=self._before,
        )

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Within the block, attention is shared, and batches must be parts; outside, the model reads whole rows."""
        self._model.set_attn_implementation(self._runtime.attn_implementation)
        try:
            yield
        finally:
            self._model.set_attn_implementation(self._before)

    def part(self, batch: Batch) -> Batch:
        """Of a batch that is the same in every process, the part of this one: [rows, length / processes].

        Positions stay those of the whole row. `labels` and `shift_labels` both hold what each token is to predict,
        also across the cut. Documents are told by positions that are 0, which every document of a row begins with.
        """
        from ringmaster.shard import prepare_global_batch, shard_batch, varlen_meta

        runtime = self._runtime
        whole = prepare_global_batch(dict(batch))
        positions = whole.get("position_ids")
        part, cut = shard_batch(whole, cp_rank=runtime.cp_rank, cp_size=runtime.cp_size)
        runtime.varlen = varlen_meta(positions, cut.original_seq_len + cut.pad_len)
        return {**part, "labels": part["shift_labels"]}
