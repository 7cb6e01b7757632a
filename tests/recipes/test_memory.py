"""The memory of a training step: the formula against what is really kept, and the page that is made from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import ropescale
from ropescale.recipes.memory import MODELS, Shape, Step, advice, kept_by_layer, table, training_memory

TOKENS = 256
GIB = 2**30


def small(layers: int, hidden: int = 128, intermediate: int = 320, heads: int = 4, kv_heads: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )


def kept(config: LlamaConfig, tuning: str, dtype: torch.dtype, *, checkpointing: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass of a decoder, weights and buffers not counted."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    if tuning == "lora":
        lora = LoraConfig(r=1, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
        model = get_peft_model(model, lora).get_base_model()
        model.enable_input_require_grads()
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that its memory is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.randint(0, 64, (1, TOKENS)))
    return sum(one.untyped_storage().nbytes() for one in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    "sizes", [{}, {"hidden": 192, "intermediate": 256, "heads": 6, "kv_heads": 6}], ids=["grouped", "plain"]
)
def test_a_layer_keeps_what_the_formula_says(sizes: dict[str, int], tuning: str, dtype: torch.dtype) -> None:
    one, three = (kept(small(layers, **sizes), tuning, dtype) for layers in (1, 3))
    measured = (three - one) / 2 / TOKENS
    expected = kept_by_layer(Shape.of(small(1, **sizes)), tuning=tuning, element=dtype.itemsize)
    assert measured == pytest.approx(expected, rel=0.03)  # beside it: norms' scales, softmax's sums, ranks of LoRA


def test_checkpointing_keeps_the_input_of_a_layer_alone() -> None:
    one, three = (kept(small(layers), "lora", torch.bfloat16, checkpointing=True) for layers in (1, 3))
    assert (three - one) / 2 == pytest.approx(TOKENS * 128 * 2, rel=0.01)


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_parameters_are_counted(name: str) -> None:
    model = ropescale.load("tiny") if name == "tiny" else LlamaForCausalLM(small(3))
    assert Shape.of(model.config).parameters == model.num_parameters()
    lora = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    adapted = get_peft_model(model, lora)
    assert Shape.of(model.config).adapter(8) == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("SmolLM2 135M", 0.1345),
        ("Llama 3.2 1B", 1.236),
        ("Llama 3.1 8B", 8.03),
        ("Qwen 3 32B", 32.76),
        ("Llama 3.1 70B", 70.55),
    ],
)
def test_the_models_of_the_page_have_their_published_sizes(name: str, billions: float) -> None:
    assert MODELS[name].parameters / 1e9 == pytest.approx(billions, rel=1e-3)


def test_the_parts_follow_from_their_definitions() -> None:
    shape = MODELS["Llama 3.1 8B"]
    one = training_memory(shape, Step(length=32768))
    assert one.weights == 2 * shape.parameters
    assert one.trained == 16 * shape.adapter(8)
    assert one.mask == one.gathered == 0
    full = training_memory(shape, Step(length=32768, tuning="full"))
    assert full.trained == 6 * shape.parameters  # gradient and two moments, bfloat16
    shared = training_memory(shape, Step(length=32768, tuning="full"), weights_shared=8)
    assert shared.weights + shared.trained == shape.parameters
    cut = training_memory(shape, Step(length=32768), weights_shared=8, row_shared=8)
    assert cut.activations == one.activations / 8
    assert training_memory(shape, Step(length=65536)).activations == 2 * one.activations
    assert training_memory(shape, Step(length=32768, rows=2)).activations == 2 * one.activations
    assert training_memory(shape, Step(length=32768, checkpointing=False)).activations > 5 * one.activations
    masked = training_memory(shape, Step(length=131072, masked=True))
    assert masked.mask == 3 * 131072**2
    assert masked.total - training_memory(shape, Step(length=131072)).total == masked.mask
    # a quarter of the bits, but for the embeddings, and a little for the scales
    quarter = training_memory(shape, Step(length=32768, tuning="qlora")).weights - 2 * shape.tables
    assert quarter == pytest.approx((one.weights - 2 * shape.tables) / 4, rel=0.04)


def test_advice_takes_the_least_that_fits() -> None:
    shape = MODELS["Llama 3.1 8B"]
    assert advice(shape, length=8192).arrangement == "ddp"
    small_device = advice(shape, length=8192, device=16 * GIB)
    assert small_device.arrangement.startswith("fsdp2")
    assert small_device.memory.total <= 0.9 * 16 * GIB
    longer = [advice(shape, length=2**k) for k in range(13, 22)]
    order = ["ddp", "fsdp2", "fsdp2_cp", "none"]
    ranks = [(order.index(one.arrangement), one.devices) for one in longer]
    assert ranks == sorted(ranks)
    assert advice(shape, length=2**30).arrangement == "none"
    assert advice(MODELS["Llama 3.1 70B"], length=8192, tuning="qlora", device=24 * GIB).arrangement == "none"


def test_the_table_of_the_page_is_the_one_that_is_computed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    assert table() in page
