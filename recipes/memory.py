"""What a training step needs of a device's memory, by formula, and which arrangement fits.

    python -m ropescale.recipes.memory        # the table of docs/distributed.md

The formula is for decoders of Llama's kind and counts what autograd keeps; a test compares it with what it does keep.
This room is pure: it knows sizes alone. Everything is in bytes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

FLOAT = 4  # bytes
RESERVED = 2 * 2**30  # what the driver, the communication buffers and fragmentation take
LOSS = 2**22 * 3 * FLOAT  # a chunk of logits, its log-probabilities and its gradients, whatever the vocabulary
NF4 = 4.127 / 8  # bytes of a 4-bit weight with doubly quantised scales (QLoRA, arXiv:2305.14314, section 3)
DEVICE = 80 * 2**30
FILLED = 0.9  # of a device, at most: the formula is not exact
TUNINGS = ("lora", "qlora", "full")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a decoder."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocabulary: int
    tied: bool  # embeddings and head are one table

    @classmethod
    def of(cls, config: Any) -> Self:
        """The shape that a config of Transformers states."""
        text = config.get_text_config()
        return cls(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            tied=text.tie_word_embeddings,
        )

    @property
    def query(self) -> int:
        """Elements of all query heads of one token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Elements of all keys of one token."""
        return self.kv_heads * self.head_dim

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        attention = 2 * self.hidden * (self.query + self.keys)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def tables(self) -> int:
        """Parameters of embeddings and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.tables + self.layers * self.layer + self.hidden

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on the four linear layers of attention."""
        return self.layers * rank * (4 * self.hidden + 2 * self.query + 2 * self.keys)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device at the peak of a step, by what they are for."""

    weights: float
    trained: float  # trained weights where they are apart, gradients, and the two moments of AdamW
    gathered: float  # whole layers that are fetched from other devices while they are used
    activations: float
    mask: float
    loss: float
    reserved: float = RESERVED

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(getattr(self, item.name) for item in dataclasses.fields(self)))


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of AdamW, attention being fused (SDPA or flash) and the loss chunked."""

    length: int  # tokens of a row
    rows: int = 1  # that a device reads at a time
    tuning: str = "lora"  # on attention, adapters in float32; qlora: the same over 4-bit layers; or full
    rank: int = 8  # of LoRA
    element: int = 2  # bytes of a weight and of an activation: 2 for bfloat16, 4 for float32
    checkpointing: bool = True  # the input of every layer alone is kept, and the rest computed again, layer by layer
    masked: bool = False  # SDPA with a mask of a row's tokens by its tokens, which packed documents need


def training_memory(shape: Shape, step: Step, *, weights_shared: int = 1, row_shared: int = 1) -> Memory:
    """The memory of one device in a step.

    Args:
        shape: of the model.
        step: what is trained, on which rows.
        weights_shared: devices among which weights, gradients and optimizer are shared (FSDP2, ZeRO-3).
        row_shared: devices among which every row is cut (context or sequence parallelism).
    """
    element, tokens = step.element, step.rows * step.length / row_shared
    adapter = shape.adapter(step.rank)
    layers = shape.layers * shape.layer
    weights = element * (shape.parameters - layers) + (NF4 if step.tuning == "qlora" else element) * layers
    # weight, gradient and two moments of adapters, all float32; of full tuning the last three, in the weights' type
    trained = 3 * element * shape.parameters if step.tuning == "full" else 4 * FLOAT * adapter
    one_layer = tokens * kept_by_layer(shape, tuning=step.tuning, element=element)
    if step.checkpointing:
        activations = tokens * shape.hidden * element * shape.layers + one_layer
    else:
        activations = one_layer * shape.layers
    activations += 3 * tokens * shape.hidden * element  # of the last layer: its output, normalised, and the gradient
    return Memory(
        weights=weights / weights_shared,
        trained=trained / weights_shared,
        gathered=0 if weights_shared == 1 else element * (2 * shape.layer + shape.tables),
        activations=activations,
        mask=step.rows * step.length**2 / row_shared * (1 + element) if step.masked else 0,
        loss=LOSS,
    )


def kept_by_layer(shape: Shape, *, tuning: str, element: int) -> float:
    """Bytes that autograd keeps of one token in one layer.

    The inputs of both norms in float32; queries, keys, values and attention's output; gate, its activation and the
    projection beside it. Full tuning also keeps the inputs of linear layers and the normalised inputs; adapters in
    float32 keep copies of theirs, one for each of the four layers where activations are not float32 already.
    """
    kept = element * (3 * shape.intermediate + 2 * shape.query + 2 * shape.keys) + FLOAT * 2 * shape.hidden
    if tuning == "full":
        return kept + element * (shape.intermediate + 4 * shape.hidden)
    return kept + FLOAT * (shape.hidden if element == FLOAT else 3 * shape.hidden + shape.query)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The least arrangement that fits."""

    arrangement: str  # as in recipes/machines: ddp, fsdp2, fsdp2_cp; or "none"
    devices: int
    memory: Memory


def advice(shape: Shape, *, length: int, tuning: str = "lora", device: float = DEVICE, most: int = 64) -> Advice:
    """What to train rows of `length` with on devices of so many bytes: one device, else weights shared, else rows too.

    Up to 8 devices for weights alone, up to `most` for rows; 4-bit weights are not shared. Where nothing fits the
    arrangement is "none".
    """
    tried = [("ddp", 1, 1, 1)]
    if tuning != "qlora":
        tried += [("fsdp2", devices, devices, 1) for devices in (2, 4, 8)]
        tried += [("fsdp2_cp", devices, devices, devices) for devices in (2**k for k in range(1, most.bit_length()))]
    step = Step(length=length, tuning=tuning)
    best = Advice(arrangement="none", devices=0, memory=training_memory(shape, step))
    for arrangement, devices, weights_shared, row_shared in tried:
        memory = training_memory(shape, step, weights_shared=weights_shared, row_shared=row_shared)
        if memory.total <= FILLED * device:
            return Advice(arrangement=arrangement, devices=devices, memory=memory)
    return best


MODELS = {
    "SmolLM2 135M": Shape(
        hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, layers=30, vocabulary=49152, tied=True
    ),
    "Llama 3.2 1B": Shape(
        hidden=2048, intermediate=8192, heads=32, kv_heads=8, head_dim=64, layers=16, vocabulary=128256, tied=True
    ),
    "Llama 3.1 8B": Shape(
        hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, layers=32, vocabulary=128256, tied=False
    ),
    "Qwen 3 32B": Shape(
        hidden=5120, intermediate=25600, heads=64, kv_heads=8, head_dim=128, layers=64, vocabulary=151936, tied=False
    ),
    "Llama 3.1 70B": Shape(
        hidden=8192, intermediate=28672, heads=64, kv_heads=8, head_dim=128, layers=80, vocabulary=128256, tied=False
    ),
}
LENGTHS = (8192, 32768, 131072, 524288)


def table() -> str:
    """The advice for models and lengths, in Markdown."""
    lines = [
        "| model | tuning | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |",
        "|---|---|" + "---|" * len(LENGTHS),
    ]
    for name, shape in MODELS.items():
        for tuning in TUNINGS:
            cells = [advice(shape, length=length, tuning=tuning) for length in LENGTHS]
            lines.append(f"| {name} | {tuning} | " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(advised: Advice) -> str:
    if advised.arrangement == "none":
        return "-"
    return f"`{advised.arrangement}` x{advised.devices}, {advised.memory.total / 2**30:.0f} GiB"


if __name__ == "__main__":
    print(table())
