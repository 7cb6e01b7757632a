"""Documents of one row do not see one another in a live model, and what would let them is refused before training."""

import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import NAMES, NATIVE_ONLY, config_of, family, in_turn, model_of
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

import ropescale
from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.recipes import proof, separation
from ropescale.recipes.proof import Proof, alone, proven
from ropescale.recipes.rotation import MixedRotation
from ropescale.recipes.schedules import DOCUMENTS, SHORT, Schedule
from ropescale.recipes.separation import Separation

L, TARGET = 64, 192
SCHEDULES = ("full_length", "mixed_window", "pose")
ROWS = ((37, 53), (66, 17, 7))  # sizes of documents, tokens: two of each row fit into L, or one
# Its attention reads summaries of several slots in a row, which may belong to two documents
LEAKING = ("deepseek_v4",)
# An indexer of two heads gives many keys the same score, 0, and which of them are read is then a matter of rounding
INDEXED = {name: {"index_n_heads": 32} for name in ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4")}
STATEFUL = ("bamba", "falcon_h1", "granitemoehybrid", "lfm2", "lfm3", "minimax", "olmo_hybrid", "qwen3_next", "zaya")
IDS = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(3))


def schedule(name: str, **given: Any) -> Schedule:
    sizes = {"original_length": L, "target_length": TARGET, "length": 90, "content": "contiguous"}
    return Schedule(**{"name": name, **sizes, **given})


def patched(name: str, method: str | None = None, **changes: Any) -> Any:
    if name == "lfm2":  # whose tiny config has no convolution
        changes = {"layer_types": ["conv", "full_attention"], **changes}
    changes = {**INDEXED.get(name, {}), **changes}
    model = model_of(config_of(name, **changes)) if changes else family(name)
    model.before = alone(model, IDS)
    return ropescale.patch(model, method or ("linear" if name in NATIVE_ONLY else "yarn"), factor=3.0)


def batch_of(kind: Schedule) -> dict[str, Tensor]:
    rows = []
    for seed, sizes in enumerate(ROWS):
        count = sum(sizes)
        row = {
            "input_ids": torch.randint(3, 128, (count,), generator=torch.Generator().manual_seed(seed)).tolist(),
            "position_ids": [i for size in sizes for i in range(size)],
            "documents": [number for number, size in enumerate(sizes) for _ in range(size)],
        }
        rows.append(kind.drawn(row, random.Random(seed)))
    made = kind.batch(rows)
    del made["labels"]
    return made


def read(model: Any, batch: dict[str, Tensor], apart: Separation, mixed: MixedRotation | None = None) -> Tensor:
    inputs = dict(batch)
    documents, short = inputs.pop(DOCUMENTS), inputs.pop(SHORT, None)
    with apart.keeping(documents) as more:
        if mixed is None or short is None:
            return model(**inputs, **more, use_cache=False).logits
        with mixed.keeping(short):
            return model(**inputs, **more, use_cache=False).logits


def own_rows(model: Any, batch: dict[str, Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """Row, tokens and logits of every document in a row of its own."""
    found = []
    for row, documents in enumerate(batch[DOCUMENTS]):
        for number in range(int(documents[-1]) + 1):
            own = documents == number
            ids, places = (batch[name][row : row + 1, own] for name in ("input_ids", "position_ids"))
            with torch.no_grad():
                logits = model(
                    input_ids=ids, position_ids=places, attention_mask=torch.ones_like(ids), use_cache=False
                ).logits[0]
            found.append((row, own, logits))
    return found


def farthest(model: Any, batch: dict[str, Tensor]) -> float:
    """How far a row of several documents is from each of them in a row of its own."""
    with torch.no_grad():
        logits = read(model, batch, Separation(model))
    return max(float((logits[row, own] - one).abs().max()) for row, own, one in own_rows(model, batch))


def tried(model: Any, kind: str, **given: Any) -> Proof:
    own = schedule(kind)
    mixed = MixedRotation(model) if kind == "mixed_window" else None
    apart = Separation(model)
    try:
        return proven(model, own, IDS, separation=apart, mixed=mixed, before=model.before, **given)
    finally:
        apart.undo()


# Every other family here, and those between below
@pytest.mark.parametrize("name", in_turn([name for name in NAMES if name not in LEAKING], 0, 6))
def test_a_document_has_no_gradient_at_those_before_it_and_is_read_as_in_a_row_of_its_own(name: str) -> None:
    for kind in ("full_length", "pose"):
        model = patched(name)
        batch = batch_of(schedule(kind))
        vectors: list[Tensor] = []

        def followed(layer: nn.Module, inputs: Any, made: Tensor, kept: list[Tensor] = vectors) -> Tensor:
            kept.append(made.detach().requires_grad_())
            return kept[-1]

        hook = model.get_input_embeddings().register_forward_hook(followed)
        logits = read(model, batch, Separation(model))
        hook.remove()
        last = batch[DOCUMENTS] == batch[DOCUMENTS][:, -1:]
        logits[last].logsumexp(-1).sum().backward()
        gradient = vectors[0].grad
        assert gradient is not None
        assert bool(gradient[last].any())
        assert not bool(gradient[~last].any())
        tolerance = 1e-5 * max(1.0, float(logits.abs().max()))
        for row, own, one in own_rows(model, batch):
            assert float((logits[row, own] - one).abs().max()) < tolerance


@pytest.mark.parametrize("name", in_turn([name for name in NAMES if name not in LEAKING], 3, 6))
def test_short_documents_have_the_logits_of_the_unpatched_model_and_long_ones_those_of_the_patched(name: str) -> None:
    method = "linear" if name in NATIVE_ONLY else "yarn"
    model = model_of(config_of(name, **INDEXED.get(name, {})))
    batch = batch_of(schedule("mixed_window"))
    short = batch[SHORT]
    unpatched = own_rows(model, batch)
    ropescale.patch(model, method, factor=3.0)
    with torch.no_grad():
        logits = read(model, batch, Separation(model), MixedRotation(model))
    for (row, own, before), (_, _, after) in zip(unpatched, own_rows(model, batch), strict=True):
        expected = before if bool(short[row, own].all()) else after
        assert float((logits[row, own] - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()) / 4)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "minicpm3", "glm4_moe_lite"])
def test_a_lifted_rotation_lifts_the_softmax_scale_too(name: str) -> None:
    model = family(name)
    batch = batch_of(schedule("mixed_window"))
    unpatched = own_rows(model, batch)
    ropescale.patch(model, "yarn", factor=3.0, mscale=1.0, mscale_all_dim=1.0)
    with torch.no_grad():
        logits = read(model, batch, Separation(model), MixedRotation(model))
    for row, own, before in unpatched:
        if bool(batch[SHORT][row, own].all()):
            assert float((logits[row, own] - before).abs().max()) < 1e-5 * max(1.0, float(before.abs().max()) / 4)


def test_mixed_window_refuses_what_rotates_short_documents_in_attention() -> None:
    lists = {"long_factor": [1 + 0.3 * i for i in range(8)], "short_factor": [1.0] * 8}
    for method, given in (("longrope", lists), ("yarn", {"log_n": True})):
        model = ropescale.patch(family("llama"), method, factor=3.0, **given)
        with pytest.raises(
            InvalidArgumentError, match=r"^schedule: mixed_window needs a method that leaves documents"
        ):
            MixedRotation(model)
    model = ropescale.patch(family("llama"), "dynamic_yarn", factor=3.0)
    MixedRotation(model)


WINDOWS: dict[str, dict[str, Any]] = {
    "gemma2": {},
    "gemma3_text": {},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": {"attention_chunk_size": 12},
    "mistral": {},
    "olmo3": {},
    "phi3": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 0},
    "starcoder2": {},
}


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (name, attention)
        for name in sorted(WINDOWS)
        for attention in ("sdpa", "eager")
        if attention == "eager" or name not in ("gemma2", "gpt_oss")  # which Transformers does not run with sdpa
    ],
)
@pytest.mark.parametrize("kind", ["full_length", "pose"])
def test_windows_are_those_of_pretraining(name: str, kind: str, attention: str) -> None:
    changes = {"sliding_window": 12, **WINDOWS[name]}
    if name == "llama4_text":
        del changes["sliding_window"]
    model = patched(name, "linear", **changes)
    model.set_attn_implementation(attention)
    assert farthest(model, batch_of(schedule(kind))) < 2e-5
    assert tried(model, kind).windows > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in SCHEDULES[:-1]), SCHEDULES[-1]]
)
def test_every_family_is_tried_before_training(kind: str) -> None:
    for name in NAMES:
        if name in LEAKING:
            refusal = (
                "^schedule: mixed_window chooses" if kind == "mixed_window" else "^packing: documents of a row must"
            )
            with pytest.raises(InvalidArgumentError, match=refusal):
                tried(patched(name), kind)
            continue
        found = tried(patched(name), kind)
        assert found.separate
        assert found.chunks == (kind == "pose")
        assert (found.short is not None) == (kind == "mixed_window")
        assert found.forwards <= 4


@pytest.mark.parametrize("method", ["self_extend", "dynamic_yarn", "alibi", "cope"])
def test_methods_that_act_in_attention_keep_documents_apart(method: str) -> None:
    model = ropescale.patch(family("llama"), method, **({} if method in ("alibi", "cope") else {"factor": 3.0}))
    model.before = None
    assert farthest(model, batch_of(schedule("pose"))) < 2e-5
    assert tried(model, "pose").separate


@pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated"
)  # its new name is of Transformers 5.23
def test_checkpointed_layers_are_run_again_on_the_same_documents() -> None:
    found = []
    for checkpointed in (False, True):
        model = patched("qwen3_next")
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        batch = batch_of(schedule("full_length"))
        documents = batch.pop(DOCUMENTS)
        with Separation(model).keeping(documents) as more:
            model(**batch, **more, use_cache=False).logits.logsumexp(-1).sum().backward()
        found.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_outside_the_block_a_model_reads_as_before() -> None:
    model = patched("qwen3_next")
    ids = IDS[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        apart = Separation(model)
        read(model, batch_of(schedule("full_length")), apart)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)
        apart.undo()
        assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_batch_that_is_split_on_its_way_is_refused() -> None:
    for name in ("llama", "qwen3_next"):
        model = patched(name)
        batch = batch_of(schedule("full_length"))
        documents = batch.pop(DOCUMENTS)
        half = {key: one[:1] for key, one in batch.items()}
        with (
            pytest.raises(RopescaleError, match=r"^rows: a batch must reach the model whole \(2 rows\), got 1"),
            Separation(model).keeping(documents),
        ):
            model(**half, use_cache=False)


# What a host or this package might do wrong, and how it is refused


def plain_causal(**given: Any) -> Tensor:
    """A mask that knows of nothing but the order of tokens."""
    length = given["inputs_embeds"].shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]


def modeling(model: nn.Module) -> Any:
    return importlib.import_module(type(model).__module__)


def without_blocks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling(model), "create_causal_mask", plain_causal)


def without_windows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling(model), "create_sliding_window_causal_mask", create_causal_mask)


def with_windows_in_single_rows_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(own: Callable[..., Any], documents: Tensor, slots: Tensor) -> Callable[..., Any]:
        def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (documents[batch, query] == documents[batch, key]) & (key <= query)

        return lambda **given: own(**{**given, "mask_function": same, "allow_is_causal_skip": False})

    monkeypatch.setattr(separation, "_apart", apart)


def with_chunks_of_the_row(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = separation._apart
    monkeypatch.setattr(
        separation,
        "_apart",
        lambda own, documents, slots: apart(own, documents, torch.arange(documents.shape[1]).expand_as(documents)),
    )


def with_a_state_carried(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separation, "carries_state", lambda module: False)


def with_one_rotation(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixedRotation, "_mixed", lambda *_: lambda rotary, inputs, named, waves: waves)


def without_a_mask_of_ones(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Schedule.batch

    def bare(self: Schedule, rows: Any) -> dict[str, Tensor]:
        return {name: one for name, one in batch(self, rows).items() if name != "attention_mask"}

    monkeypatch.setattr(Schedule, "batch", bare)


FAULTS: dict[str, tuple[str, str, Any, str]] = {
    "no block mask": ("llama", "full_length", without_blocks, "packing: documents of a row must not see one another"),
    "no block mask, pose": ("gpt_oss", "pose", without_blocks, "packing: documents of a row must not see one another"),
    "no window": ("mistral", "pose", without_windows, "attention: a layer that reads a window must not see beyond it"),
    "no window in one layer of two": (
        "gemma3_text",
        "full_length",
        without_windows,
        "attention: a layer that reads a window must not see beyond it",
    ),
    "a window lost in packed rows": (
        "olmo3",
        "pose",
        with_windows_in_single_rows_alone,
        "attention: a layer that reads a window must not see beyond it",
    ),
    "chunks of the row": ("llama4_text", "full_length", with_chunks_of_the_row, "packing: a document in a row of"),
    **{
        f"a state carried, {name}": (
            name,
            "full_length",
            with_a_state_carried,
            "packing: documents of a row must not see one another",
        )
        for name in STATEFUL
    },
    "one rotation": (
        "llama",
        "mixed_window",
        with_one_rotation,
        "schedule: mixed_window must read short documents as",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_planted_fault_is_refused_before_training(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, kind, plant, refusal = FAULTS[fault]
    changes = {
        "mistral": {"sliding_window": 48},
        "llama4_text": {"attention_chunk_size": 48},
    }.get(name, {})
    model = patched(name, **changes)
    tried(model, kind)  # without it nothing is
    plant(model, monkeypatch)
    with pytest.raises(InvalidArgumentError) as caught:
        tried(model, kind)
    assert str(caught.value).startswith(refusal)
    assert name in str(caught.value)


def test_a_chunk_that_is_blind_to_those_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched("llama")
    assert tried(model, "pose", packed=False).chunks
    without_a_mask_of_ones(model, monkeypatch)
    with pytest.raises(
        InvalidArgumentError, match=r"^schedule: later chunks of pose must see earlier ones, got llama"
    ):
        tried(model, "pose", packed=False)


def test_trying_leaves_the_model_as_it_was() -> None:
    model = patched("mistral", sliding_window=48).train()
    config = model.config.to_dict()
    tried(model, "pose")
    assert model.config.to_dict() == config
    assert model.training
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask")  # which Transformers 5.23 passes to torch
@pytest.mark.slow
def test_flex_attention_is_tried_without_gradients() -> None:
    model = patched("mistral", sliding_window=48)
    model.set_attn_implementation("flex_attention")
    assert tried(model, "pose").separate


def test_what_was_seen_is_said_in_one_line() -> None:
    seen = Proof(documents=3, separate=True, alone=3e-7, windows=2, chunks=True, short=None, forwards=4)
    assert seen.said() == (
        "3 documents in a row do not see one another, each is read as in a row of its own (3e-07 of the largest "
        "logit), windows hold in 2 layers, later chunks see earlier ones"
    )
    assert proof.SIZES[1] > 2 * proof.WINDOW  # or a window would hide nothing
