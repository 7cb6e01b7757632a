"""Methods that act when attention reads, in padded batches."""

from __future__ import annotations

import copy

import pytest
import torch
from late import (
    CASES,
    TOLERANCE,
    apart,
    every_case,
    llama,
    no_grad,  # noqa: F401  # a fixture of every test here
    over,
    patched,
    prompts,
    unpatched,
)
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    StaticCache,
)

import ropescale
from ropescale.errors import (
    RopescaleError,
)
from ropescale.injection.late import implementations

LENGTHS = (60, 47, 21)  # of the rows of a padded batch


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Rows of unlike lengths and their mask."""
    ids = prompts(rows=3, length=60)
    rows, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, length in enumerate(LENGTHS):
        begin = {"left": 60 - length, "right": 0, "both": (60 - length) // 2}[side]
        rows[number, begin : begin + length] = ids[number, :length]
        mask[number, begin : begin + length] = 1
    return rows, mask


def apart_from_rows_alone(found: Tensor, model: LlamaForCausalLM, rows: Tensor, mask: Tensor) -> float:
    return max(
        apart(got[real.bool()], model(row[real.bool()][None]).logits[0])
        for got, row, real in zip(found, rows, mask, strict=True)
    )


@pytest.mark.sampled(3)
@every_case
def test_padding_without_positions_moves_nothing(case: str) -> None:
    """Reward models, embeddings and log-probabilities send a mask and no positions."""
    model = patched(case)
    for side in ("left", "right", "both"):
        rows, mask = padded(side)
        found = model(rows, attention_mask=mask).logits
        assert apart_from_rows_alone(found, model, rows, mask) < TOLERANCE
        room = torch.cat((mask, torch.ones(3, 7, dtype=torch.long)), dim=1)
        for past in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=67)):
            static = isinstance(past, StaticCache)
            pieces = [
                model(rows[:, low:high], attention_mask=room if static else mask[:, :high], **over(past)).logits
                for low, high in ((0, 15), (15, 58), (58, 59), (59, 60))
            ]
            assert apart_from_rows_alone(torch.cat(pieces, dim=1), model, rows, mask) < TOLERANCE


@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "dual_chunk", "learned", "sinusoidal", "cope"])
def test_text_goes_on_after_padding_on_the_right(case: str) -> None:
    """Cached padding stands between neighbours; with positions as generation gives them, and without."""
    model = patched(case)
    rows, mask = padded("right")
    more = prompts(rows=3, length=6).flip(0)
    rows, mask = torch.cat((rows, more), dim=1), torch.cat((mask, torch.ones_like(more)), dim=1)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    for given in (False, True):
        for past in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=66)):
            pieces = [
                model(
                    rows[:, low:high],
                    attention_mask=mask[:, :high],
                    **({"position_ids": positions[:, low:high]} if given else {}),
                    **over(past),
                ).logits
                for low, high in ((0, 60), (60, 64), (64, 65), (65, 66))
            ]
            assert apart_from_rows_alone(torch.cat(pieces, dim=1), model, rows, mask) < TOLERANCE


@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}])
def test_generation_from_padded_rows_is_that_from_each_alone(way: dict[str, str]) -> None:
    model = patched("self_extend")
    rows, mask = padded("left")
    common = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.generate(rows, attention_mask=mask, **common, **way)[:, 60:]
    for got, row, real in zip(found, rows, mask, strict=True):
        alone = row[real.bool()][None]
        expected = model.generate(alone, attention_mask=torch.ones_like(alone), **common)
        assert torch.equal(got, expected[0, alone.shape[1] :])


@pytest.mark.parametrize("static", [False, True])
def test_positions_that_start_again_after_cached_padding_are_refused(static: bool) -> None:
    """As generation counts on from padding on the right: where cached keys stand is then unknown."""
    model = patched("self_extend")
    rows, mask = padded("right")
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    past = StaticCache(config=model.config, max_cache_len=66) if static else DynamicCache(config=model.config)
    model(rows, attention_mask=mask, position_ids=positions, **over(past))
    longer = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), dim=1)
    square = torch.nn.functional.pad(longer, (0, 5)).bool()[:, None, None, :]
    with pytest.raises(RopescaleError) as refusal:
        model(
            rows[:, :1],
            attention_mask=square if static else longer,
            position_ids=positions[:, -1:] + 1,
            **over(past),
        )
    assert str(refusal.value) == (
        "position_ids: must count the tokens that the mask shows with self_extend, over a cache with padding between "
        "them, got others; pad on the left, or leave position_ids out"
    )


def test_masks_of_four_dimensions_are_read_or_refused() -> None:
    model = patched("self_extend")
    rows, mask = padded("left")
    seen = torch.ones(60, 60, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    lowest = torch.finfo(torch.float32).min
    for square in (seen, torch.zeros(3, 1, 60, 60).masked_fill(~seen, lowest)):
        found = model(rows, attention_mask=square).logits
        assert apart_from_rows_alone(found, model, rows, mask) < TOLERANCE
    past = DynamicCache(config=model.config)
    model(rows[:, :59], attention_mask=mask[:, :59], **over(past))
    with pytest.raises(RopescaleError) as refusal:
        model(rows[:, 59:], attention_mask=seen[:, :, 59:], **over(past))
    assert str(refusal.value) == (
        "position_ids: must be given with self_extend over a cache where a mask of four dimensions hides cached "
        "tokens, got none; give position_ids, or a mask of [batch, tokens]"
    )


def test_a_mask_that_leaves_out_cached_tokens_is_refused() -> None:
    model, ids = patched("self_extend"), prompts(length=20)
    past = DynamicCache(config=model.config)
    model(ids[:, :15], **over(past))
    with pytest.raises(RopescaleError) as refusal:
        model(ids[:, 15:], attention_mask=torch.ones(1, 5, dtype=torch.long), **over(past))
    assert str(refusal.value) == (
        "attention_mask: must cover the cached tokens and the new ones with self_extend, got 5 of 20; give a mask of "
        "[batch, 20], or leave it out"
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", ["dynamic_yarn", "self_extend", "yarn with log_n"])
def test_a_classifier_scores_a_padded_row_as_the_row_alone(case: str, side: str) -> None:
    config = copy.deepcopy(unpatched().config)
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.model.load_state_dict(unpatched().model.state_dict())
    name, knobs = CASES[case]
    ropescale.patch(model, name, **knobs)
    rows, mask = padded(side)
    found = model(rows, attention_mask=mask).logits
    for score, row, real in zip(found, rows, mask, strict=True):
        assert apart(score, model(row[real.bool()][None]).logits[0]) < TOLERANCE


@pytest.mark.parametrize(
    "case", ["self_extend", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dynamic_yarn", "learned"))]
)
def test_padded_rows_compile_to_one_graph(case: str) -> None:
    model = patched(case)
    rows, mask = padded("left")
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    found = compiled(rows, attention_mask=mask, use_cache=False).logits
    assert apart_from_rows_alone(found, model, rows, mask) < TOLERANCE
    past = StaticCache(config=model.config, max_cache_len=60)
    pieces = [model(rows[:, :57], attention_mask=mask[:, :57], **over(past)).logits]
    pieces += [compiled(rows[:, at : at + 1], attention_mask=mask, **over(past)).logits for at in range(57, 60)]
    assert apart_from_rows_alone(torch.cat(pieces, dim=1), model, rows, mask) < TOLERANCE


def test_undoing_puts_back_the_attention_function_of_each_part_of_a_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transformers writes it into all of them, and parts may have named none."""
    model = llama()
    monkeypatch.setattr(LlamaConfig, "sub_configs", {"part": LlamaConfig})
    model.config.part = LlamaConfig()
    before = [(id(part), name) for part, name in implementations(model.config)]
    assert [name for _, name in before] == ["sdpa", None]
    ropescale.patch(model, "self_extend")
    ropescale.unpatch(model)
    assert [(id(part), name) for part, name in implementations(model.config)] == before
