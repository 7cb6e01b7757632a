"""Losses that weigh tokens: against references that share no code with them, and through whole runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from training import run
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from ropescale.errors import InvalidArgumentError
from ropescale.recipes import loss as chunked
from ropescale.recipes import train
from ropescale.recipes.loss import IGNORED, Weights, chunked_loss
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.separation import Separation
from ropescale.recipes.trainer import RecipeTrainer
from ropescale.recipes.weighting import ByContext, ByContrast, require_weighable

SIZES: dict[str, Any] = {
    "vocab_size": 91,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that tokens differ in what they cost
}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 22 + [2] * 1, [0] * 28])


def model_of(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    made: nn.Module = LlamaForCausalLM(LlamaConfig(**SIZES))
    if kind == "lora":
        made = get_peft_model(
            made, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
        )
    return made


def batch() -> tuple[Tensor, Tensor]:
    """Ids and labels, some of which are not learnt."""
    ids = torch.randint(0, 91, DOCUMENTS.shape, generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, 0] = IGNORED
    labels[0, 5] = labels[0, 27] = IGNORED
    labels[1, 9:12] = IGNORED
    return ids, labels


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def apart(row: Tensor) -> list[tuple[int, int]]:
    """First token and number of tokens of each document of a row."""
    found: list[tuple[int, int]] = []
    for place, number in enumerate(row.tolist()):
        if place and number == row[place - 1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return found


def costs_alone(model: Any, ids: Tensor) -> Tensor:
    """What tokens cost with full logits, [batch, n], each document in a row of its own; 0 for the first of each."""
    rows = []
    for number, row in enumerate(DOCUMENTS):
        parts = []
        for first, size in apart(row):
            part = ids[number, first : first + size]
            logits = model(input_ids=part[None], use_cache=False).logits[0]
            cost = functional.cross_entropy(logits[:-1], part[1:], reduction="none")
            parts += [torch.zeros(1), cost]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def ours(model: Any, weights: Weights | None, items: int) -> Tensor:
    """The chunked loss of the batch, its documents kept apart."""
    ids, labels = batch()
    more = {} if weights is None else {"token_weights": weights}
    positions = torch.cat([torch.cat([torch.arange(size) for _, size in apart(row)])[None] for row in DOCUMENTS])
    with chunked_loss(model) as split, Separation(model).keeping(DOCUMENTS) as given:
        assert split
        found: Tensor = model(
            input_ids=ids, position_ids=positions, labels=labels, num_items_in_batch=items, **given, **more
        ).loss
    return found


def rows_of(*documents: Tensor) -> datasets.Dataset:
    """Rows as training reads them."""
    return datasets.Dataset.from_list(
        [{"position_ids": [i for _, size in apart(row) for i in range(size)]} for row in documents]
    )


def exact_weight(context: int, contexts: list[int], beginning: int, alpha: float, gamma: float) -> float:
    """EXACT's weight of a token, by the formula and token by token; `contexts` of all learnt tokens."""
    if math.floor(math.log2(context)) < math.floor(math.log2(beginning)):
        return 1.0

    def rarity(of: int) -> float:
        alike = sum(math.floor(math.log2(one)) == math.floor(math.log2(of)) for one in contexts)
        return (alike / len(contexts) + 1e-8) ** -gamma

    tail = [rarity(one) for one in contexts if math.floor(math.log2(one)) >= math.floor(math.log2(beginning))]
    return 1 + alpha * rarity(context) / (sum(tail) / len(tail))


def least_context(context: int, length: int, step: int) -> int:
    """How many tokens LongCE's short context shows to a token that has `context` before it."""
    if context < length:
        return context
    first = step * math.ceil((context - length + 1) / step)
    return context - first


def reference(kind: str, model: Any) -> Tensor:
    """[batch, n] weights, token by token."""
    ids, _ = batch()
    weights = torch.ones(DOCUMENTS.shape)
    contexts = [size for row in DOCUMENTS for _, total in apart(row) for size in range(1, total)]
    with torch.no_grad():
        costs = costs_alone(model, ids)
        for number, row in enumerate(DOCUMENTS):
            for first, size in apart(row):
                for context in range(1, size):
                    token = first + context
                    if kind == "exact":
                        weights[number, token] = exact_weight(context, contexts, 4, 0.6, 0.7)
                    else:
                        seen = ids[number, token - least_context(context, 8, 3) : token]
                        short = -model(input_ids=seen[None]).logits[0, -1].log_softmax(-1)[ids[number, token]]
                        weights[number, token] = min(math.exp(short - costs[number, token]), 1.7)
    return weights


def weighting_of(kind: str) -> ByContext | ByContrast:
    if kind == "exact":
        return ByContext(rows_of(*DOCUMENTS), beginning=4, alpha=0.6, gamma=0.7)
    return ByContrast(length=8, step=3, most=1.7)


@pytest.mark.parametrize("tuning", ["llama", "lora"])
@pytest.mark.parametrize("kind", ["exact", "longce"])
def test_a_weighted_loss_and_its_gradients_are_those_of_the_formula(
    kind: str, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 7 * SIZES["vocab_size"])
    model = model_of(tuning)
    ids, labels = batch()
    weights = reference(kind, model)
    assert len({round(one, 4) for one in weights.flatten().tolist()}) >= (4 if kind == "exact" else 12)
    learnt = labels != IGNORED
    expected = (costs_alone(model, ids) * weights)[learnt].sum() / 41
    of_expected = gradients(model, expected)
    found = ours(model, weighting_of(kind).weights(model, ids, DOCUMENTS), 41)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    of_found = gradients(model, found)
    assert of_found.keys() == of_expected.keys()
    for name, one in of_expected.items():
        assert float((of_found[name] - one).abs().max()) <= 1e-6 * max(1.0, float(one.abs().max())), name


@pytest.mark.parametrize("tuning", ["llama", "lora"])
def test_weights_of_one_give_the_plain_loss_to_the_bit(tuning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 7 * SIZES["vocab_size"])
    model = model_of(tuning)
    ids, _ = batch()
    plain = ours(model, None, 41)
    expected = gradients(model, plain)
    none_is_long = ByContext(rows_of(*DOCUMENTS), beginning=4, alpha=0.0, gamma=0.5)
    nothing_to_contrast = ByContrast(length=28, step=7, most=5.0)
    for weighting in (none_is_long, nothing_to_contrast):
        found = ours(model, weighting.weights(model, ids, DOCUMENTS), 41)
        assert torch.equal(found, plain)
        own = gradients(model, found)
        assert all(torch.equal(own[name], one) for name, one in expected.items())


def test_what_exact_adds_is_alpha_for_each_long_token() -> None:
    rows = rows_of(*DOCUMENTS, torch.zeros(28, dtype=torch.long))
    table = ByContext(rows, beginning=4, alpha=0.15, gamma=0.5).table
    contexts = [size for row in [*DOCUMENTS, torch.zeros(28)] for _, total in apart(row) for size in range(1, total)]
    added = [float(table[int(math.log2(one))]) - 1 for one in contexts if one >= 4]
    assert sum(added) / len(added) == pytest.approx(0.15, abs=1e-6)
    counts = {bucket: sum(2**bucket <= one < 2 ** (bucket + 1) for one in contexts) for bucket in (2, 3, 4)}
    assert counts[2] < counts[3] < counts[4]
    assert float(table[2]) > float(table[3]) > float(table[4]) > 1  # the rarer, the more
    assert table[:2].tolist() == [1.0, 1.0]


def test_exact_counts_learnt_tokens_alone() -> None:
    rows = [{"position_ids": list(range(28)), "learnt": [0] * 8 + [1] * 20}]
    part = ByContext(datasets.Dataset.from_list(rows), beginning=4, alpha=0.6, gamma=0.7).table
    contexts = list(range(8, 28))
    for context in (8, 16):
        expected = exact_weight(context, contexts, 4, 0.6, 0.7)
        assert float(part[int(math.log2(context))]) == pytest.approx(expected, abs=1e-6)


def test_a_model_that_keeps_its_own_loss_is_refused() -> None:
    sizes = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, output_router_logits=True))
    with pytest.raises(InvalidArgumentError, match=r"^loss: exact needs a model whose head runs apart .* Qwen3Moe"):
        require_weighable(model, "exact")
    require_weighable(model_of(), "exact")


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("lora", ["--loss-alpha=0.3"], "loss_alpha: belongs to loss exact, got 0.3 with 'plain'; leave it out"),
        ("exact", ["--loss-short=64"], "loss_short: belongs to loss longce and longred, got 64 with 'exact'"),
        ("exact", ["--loss-gamma=-1"], "loss_gamma: must be a number of at least 0, got -1.0; leave it out"),
        ("longce", ["--loss-cap=0.5"], "loss_cap: must be a number of at least 1, got 0.5; leave it out"),
        ("longce", ["--loss=short"], "loss: must be one of exact, longce, longred, plain, got 'short'"),
        ("exact", ["--schedule=pose"], "loss: exact weighs tokens by context that they see, which rows of pose do"),
        ("exact", ["--loss-from=512"], "loss_from: must be below the length of a row (512), got 512; leave it out"),
        ("longce", ["--length=128"], "loss_short: must be below the length of a row (128), got 128; give 32"),
        ("longce", ["--loss-step=128"], "loss_step: must be below the short context (128), got 128; leave it out"),
        ("exact", ["--document-mask=false"], "document_mask: must be true for what goes by the length of each docu"),
        ("mixed_window", ["--document-mask=false"], "document_mask: must be true for what goes by the length of e"),
        ("lora", ["--document-mask=false", "--packing=false"], "document_mask: acts on rows of several documents, "),
        ("longred", ["--tuning=full"], "loss: longred needs tuning lora or qlora, whose base is the model to restore"),
        ("longred", ["--loss-short=129"], "loss_short: must be at most the original length (128) with longred, whose"),
        ("exact", ["--loss-skipped=1"], "loss_skipped: belongs to loss longred, got 1.0 with 'exact'; leave it out"),
        ("longce", ["--label-smoothing-factor=0.1"], "label_smoothing_factor: is of Transformers' own loss, got it"),
    ],
)
def test_a_loss_that_would_do_nothing_or_something_else_is_refused(
    recipe: str, more: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="^" + re.escape(message)):
        train.schedule_of(read_recipe(recipe, ["--model=tiny", f"--output={tmp_path / 'out'}", *more]))
    assert not (tmp_path / "out").exists()


def ended(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


BRIEF = ("--max-steps", "4", "--save-steps", "2", "--eval-strategy", "no", "--eval-passkeys", "0", "--length", "128")
LOSSES = {
    "exact": ("--loss-from", "16"),
    "longce": ("--loss-short", "32"),
    "longred": ("--loss-short", "64"),
}


@pytest.mark.parametrize(
    "loss", ["longce", *(pytest.param(one, marks=pytest.mark.slow) for one in ("exact", "longred"))]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*BRIEF, *LOSSES[loss])
    told = run(loss, tmp_path / "whole", *more)
    assert told["settings"]["loss"] == loss
    assert f" with loss {loss}, by ropescale" in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    step = RecipeTrainer.training_step

    def stopped(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(loss, tmp_path / "stopped", *more)
    assert [one.name for one in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-2"]
    run(loss, tmp_path / "stopped", *more)
    whole, resumed = ended(tmp_path / "whole"), ended(tmp_path / "stopped")
    assert all(torch.equal(resumed[name], one) for name, one in whole.items())


@pytest.mark.slow  # four whole runs
@pytest.mark.parametrize("loss", LOSSES)
def test_accumulated_batches_end_in_the_weights_of_one(loss: str, tmp_path: Path) -> None:
    more = (*BRIEF, *LOSSES[loss], "--lora-dropout", "0", "--weight-decay", "0")
    run(loss, tmp_path / "one", *more)
    run(loss, tmp_path / "two", *more, "--batch-size", "1", "--gradient-accumulation-steps", "2")
    one, two = ended(tmp_path / "one"), ended(tmp_path / "two")
    moved = max(float(value.abs().max()) for name, value in one.items() if "lora_B" in name)
    assert moved > 1e-4
    assert max(float((two[name] - value).abs().max()) for name, value in one.items()) < 1e-2 * moved
