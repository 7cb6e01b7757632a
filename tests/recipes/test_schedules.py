"""Where rows stand in training: positions, masks, labels, and what the loss is made of."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import ropescale
from ropescale.recipes import loss as chunked
from ropescale.recipes.loss import IGNORED, chunked_loss
from ropescale.recipes.schedules import Draws, Schedule, cut, shifts, skipped_content, skipped_positions

L, TARGET = 32, 128


def schedule(name: str, **given: Any) -> Schedule:
    length = TARGET if name in ("full_length", "mixed_window") else L
    return Schedule(**{"name": name, "original_length": L, "target_length": TARGET, "length": length} | given)


def row(*sizes: int) -> dict[str, list[int]]:
    """A row of documents of these sizes, of tokens 1, 2, 3 ..."""
    return {
        "input_ids": list(range(1, sum(sizes) + 1)),
        "position_ids": [i for size in sizes for i in range(size)],
        "documents": [number for number, size in enumerate(sizes) for _ in range(size)],
    }


def test_labels_leave_out_what_nothing_tells() -> None:
    made = schedule("full_length").drawn(row(3, 2), random.Random(0))
    assert made["labels"].tolist() == [IGNORED, 2, 3, IGNORED, 5]
    assert made["position_ids"].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("name", ["full_length", "pose"])
def test_without_a_document_mask_a_row_is_one_text_with_the_same_labels(name: str) -> None:
    apart, one = (schedule(name, content="contiguous", apart=kept) for kept in (True, False))
    rows = [row(3, 70, 55), row(128)]
    masked, open_ = ([each.drawn(given, random.Random(0)) for given in rows] for each in (apart, one))
    for some, others in zip(masked, open_, strict=True):
        assert torch.equal(some["labels"], others["labels"])
        assert torch.equal(some["input_ids"], others["input_ids"])
    assert "documents" in apart.batch(masked)
    made = one.batch(open_)
    assert "documents" not in made
    assert (made["position_ids"].diff() > 0).all()  # no document begins anew
    assert ("attention_mask" in made) == (name == "pose")


def test_rows_of_several_documents_say_which_and_others_do_not() -> None:
    full = schedule("full_length")
    made = full.batch([full.drawn(row(*sizes), random.Random(0)) for sizes in ((20, 12), (32,))])
    assert made["documents"].tolist() == [[0] * 20 + [1] * 12, [0] * 32]
    assert "attention_mask" not in made
    assert set(full.batch([full.drawn(row(32), random.Random(0))])) == {"input_ids", "position_ids", "labels"}


@pytest.mark.parametrize("chunks", [2, 3, 5])
def test_pose_covers_every_distance_up_to_the_target(chunks: int) -> None:
    seen: Counter[int] = Counter()
    rng = random.Random(0)
    for _ in range(3000):
        positions = skipped_positions(torch.zeros(L, dtype=torch.long), TARGET, chunks, rng)
        assert positions[0] == 0
        assert positions[-1] < TARGET
        assert bool((positions.diff() >= 1).all())
        assert len(positions) == L  # a step of the original length's cost, whatever the target
        seen.update((positions[:, None] - positions[None])[torch.ones(L, L).tril().bool()].tolist())
    assert set(seen) == set(range(TARGET))


def test_the_first_chunk_of_pose_is_cut_anywhere_and_its_text_begins_anywhere() -> None:
    """Not as in PoSE's code, whose first chunk has half of the tokens at most, from the beginning of the text."""
    rng = random.Random(0)
    first = Counter(cut(L, 2, rng)[0] for _ in range(31_000))
    assert set(first) == set(range(1, L))
    assert max(first.values()) < 1.3 * min(first.values())
    assert {int(skipped_content(TARGET, L, 2, rng)[0]) for _ in range(5000)} > {0, 1, TARGET // 2}


def test_pose_moves_content_and_positions_by_draws_of_their_own() -> None:
    pose = schedule("pose")
    assert pose.source_length == TARGET
    gaps = set()
    for draw in range(200):
        made = pose.drawn(row(TARGET), random.Random(draw))
        assert made["input_ids"].shape == (L,)
        content = made["input_ids"].diff().max().item() - 1  # tokens skipped between the chunks
        position = made["position_ids"].diff().max().item() - 1
        gaps.add((content > position) - (content < position))
    assert gaps == {-1, 0, 1} or gaps == {-1, 1}


@pytest.mark.parametrize("sizes", [(TARGET,), (50, TARGET - 50)], ids=["one document", "two"])
@pytest.mark.parametrize("chunks", [2, 3, 5])
def test_pose_skips_text_and_positions_at_the_same_places(chunks: int, sizes: tuple[int, ...]) -> None:
    """As in PoSE's code: a chunk is text that stood side by side, at positions that stand side by side."""
    pose, both = schedule("pose", chunks=chunks), 0
    for draw in range(300):
        made = pose.drawn(row(*sizes), random.Random(draw))
        for document in made["documents"].unique():
            own = made["documents"] == document
            text, positions = (made[name][own].diff() > 1 for name in ("input_ids", "position_ids"))
            assert int((text | positions).sum()) <= chunks - 1
            both += int((text & positions).sum())
    assert both > 100


def test_pose_with_contiguous_content_reads_rows_of_its_own_length() -> None:
    pose = schedule("pose", content="contiguous")
    assert pose.source_length == L
    assert pose.drawn(row(L), random.Random(0))["input_ids"].tolist() == list(range(1, L + 1))


def test_pose_begins_every_document_of_a_row_anew_and_keeps_them_apart() -> None:
    pose = schedule("pose", content="contiguous")
    made = pose.drawn(row(20, 12), random.Random(1))
    assert made["position_ids"][0] == made["position_ids"][20] == 0
    assert made["position_ids"].max() < TARGET
    batch = pose.batch([made])
    assert "attention_mask" not in batch
    assert batch["documents"].tolist() == [[0] * 20 + [1] * 12]
    assert pose.batch([pose.drawn(row(L), random.Random(1))])["attention_mask"].tolist() == [[1] * L]


def test_chunks_are_cut_anywhere_and_never_moved_back() -> None:
    rng = random.Random(0)
    assert {tuple(cut(4, 2, rng)) for _ in range(200)} == {(1, 3), (2, 2), (3, 1)}
    assert {tuple(shifts(2, 2, rng)) for _ in range(200)} == {(0, 0), (0, 1), (0, 2)}
    assert cut(1, 3, rng) == [1]
    kept = {tuple(skipped_content(3, 2, 2, rng).tolist()) for _ in range(200)}
    assert kept == {(0, 1), (0, 2), (1, 2)}


def test_mixed_window_knows_the_documents_that_fit_into_the_original_length() -> None:
    made = schedule("mixed_window").drawn(row(L, L + 1, 5), random.Random(0))
    assert made["short"].tolist() == [True] * L + [False] * (L + 1) + [True] * 5


def test_draws_are_a_function_of_their_number() -> None:
    rows = [row(L) for _ in range(5)]
    pose = schedule("pose", content="contiguous")
    draws = Draws(rows, pose, count=12, seed=3)
    first = [draws[i]["position_ids"] for i in range(12)]
    again = Draws(rows, pose, count=12, seed=3)
    assert all(torch.equal(again[i]["position_ids"], first[i]) for i in (11, 3, 7, 0))  # in any order
    assert sorted(draws.row(i) for i in range(5)) == sorted(draws.row(i) for i in range(5, 10)) == list(range(5))
    assert [draws.row(i) for i in range(5)] != [draws.row(i) for i in range(5, 10)]
    other = Draws(rows, pose, count=12, seed=4)
    assert any(not torch.equal(other[i]["position_ids"], first[i]) for i in range(12))


SIZES = {
    "vocab_size": 91,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": L,
}


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        made: nn.Module = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    elif kind == "tied":
        made = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    elif kind == "softcap":  # what stands after the head is the family's own
        made = Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=2.0, sliding_window=16))
    elif kind == "scaled":
        made = CohereForCausalLM(CohereConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"}, logit_scale=0.25))
    else:
        made = LlamaForCausalLM(LlamaConfig(**SIZES))
        made = get_peft_model(made, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    return made


def gradients(model: nn.Module, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    found = model(**inputs).loss
    found.backward()
    return found.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("items", [None, 11])
@pytest.mark.parametrize("kind", ["llama", "tied", "softcap", "scaled", "lora on the head"])
def test_the_chunked_loss_and_its_gradients_are_the_plain_ones(
    kind: str, items: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 5 * SIZES["vocab_size"])  # chunks of five places, the last shorter
    model = model_of(kind)
    ids = torch.randint(0, 91, (2, 24), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :7] = IGNORED
    inputs: dict[str, Any] = {"input_ids": ids, "labels": labels}
    if items is not None:
        inputs["num_items_in_batch"] = torch.tensor(items)
    plain, expected = gradients(model, **inputs)
    with chunked_loss(model) as split:
        assert split
        found, own = gradients(model, **inputs)
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    assert own.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(own[name], one, rtol=1e-4, atol=1e-6, msg=name)


def test_the_chunked_loss_leaves_a_model_as_it_was() -> None:
    model = model_of("llama")
    ids = torch.arange(8)[None]
    before = model(input_ids=ids).logits
    with chunked_loss(model):
        assert torch.equal(model(input_ids=ids).logits, before)  # without labels
        assert model(input_ids=ids, labels=ids).logits is None
    assert "forward" not in model.__dict__
    assert model(input_ids=ids, labels=ids).logits is not None


def test_the_chunked_loss_builds_no_logits_of_a_whole_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 5 * SIZES["vocab_size"])
    model: Any = model_of("llama")
    rows = []
    ids = torch.arange(24)[None]
    with chunked_loss(model):
        model.lm_head.register_forward_hook(lambda _, inputs, out: rows.append(out.numel() // SIZES["vocab_size"]))
        model(input_ids=ids, labels=ids).loss.backward()
    assert max(rows) == 5
    assert sum(rows) == 1 + 23  # one for the decoder's run, then each place once: nothing is computed again


def test_a_model_whose_loss_has_another_part_is_left_alone() -> None:
    model: Any = model_of("llama")
    model.config.output_router_logits = True
    with chunked_loss(model) as split:
        assert not split
        assert "forward" not in model.__dict__


def dependence(model: nn.Module, ids: Tensor, **inputs: Tensor) -> float:
    """How much the logits of the last token hang on the first one."""
    found: Any = model
    if found.config._attn_implementation == "flex_attention":  # which has no backward on a CPU
        others = ids.clone()
        others[:, 0] += 100
        with torch.no_grad():
            one, other = (found(input_ids=x, use_cache=False, **inputs).logits[:, -1] for x in (ids, others))
        return float((one - other).abs().max())
    vectors = found.get_input_embeddings()(ids).detach().requires_grad_()
    logits = found(inputs_embeds=vectors, use_cache=False, **inputs).logits  # without a cache, as Trainer has it
    logits[:, -1].logsumexp(-1).sum().backward()
    assert vectors.grad is not None
    return float(vectors.grad[:, 0].abs().max())


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask")  # which Transformers 5.23 passes to torch
@pytest.mark.parametrize(
    "attention",
    ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)],  # which is compiled
)
def test_the_second_chunk_sees_the_first(attention: str) -> None:
    model: Any = ropescale.load("tiny", attn_implementation=attention)
    ropescale.patch(model, "yarn", factor=4)
    pose = Schedule(name="pose", original_length=128, target_length=512, length=128, content="contiguous")
    made = pose.batch([pose.drawn(row(128), random.Random(2))])
    assert int(made["position_ids"].diff().max()) > 1  # it jumps
    ids, inputs = made["input_ids"], {name: made[name] for name in ("position_ids", "attention_mask")}
    assert dependence(model, ids, **inputs) > 1e-6
    del inputs["attention_mask"]  # what Transformers makes of the jump by itself
    assert dependence(model, ids, **inputs) == 0
