"""One pass of a model: losses from chunks of logits, and no trace left in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import config_of, family
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.evals import forward
from ropescale.evals.engine import token_losses
from ropescale.evals.forward import head_way


def losses_from_full_logits(model: nn.Module, ids: Tensor, first: int = 1) -> Tensor:
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    return -logprobs.gather(2, ids[:, 1:, None])[..., 0][:, first - 1 :]


def random_ids(rows: int, length: int, vocabulary: int = 128) -> Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", "cohere", "gemma2", "granite", "phi3", "gpt_neox", "qwen3_moe"])
@pytest.mark.parametrize("first", [1, 20])
def test_chunked_logits_give_the_losses_of_full_ones(name: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", 7 * 128)  # seven positions a chunk, so that rows are cut anywhere
    model, ids = family(name), random_ids(3, 60)
    expected = losses_from_full_logits(model, ids, first)
    assert head_way(model) == "chunked"
    found = token_losses(model, ids, first)
    assert found.shape == (3, 60 - first)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Tilted(LlamaForCausalLM):  # type: ignore[misc]
    """A model whose logits depend on the ids themselves: its head cannot be run on other ids than its own."""

    def forward(self, input_ids: Tensor, **arguments: Any) -> Any:
        found = super().forward(input_ids=input_ids, **arguments)
        found.logits = found.logits + torch.sin(input_ids.float())[..., None] * torch.arange(128)
        return found


def test_a_model_whose_head_cannot_be_run_apart_is_read_with_full_logits() -> None:
    model, ids = Tilted(config_of("llama")).eval(), random_ids(2, 30)
    assert head_way(model) == "full"
    torch.testing.assert_close(token_losses(model, ids), losses_from_full_logits(model, ids), rtol=1e-6, atol=1e-6)


def test_an_adapter_is_read_with_chunked_logits() -> None:
    adapted = get_peft_model(family("llama"), LoraConfig(init_lora_weights=False, target_modules=["q_proj", "v_proj"]))
    adapted.eval()
    ids = random_ids(2, 30)
    assert head_way(adapted) == "chunked"
    torch.testing.assert_close(token_losses(adapted, ids), losses_from_full_logits(adapted, ids), rtol=1e-6, atol=1e-6)


def test_scoring_leaves_no_trace_in_the_model_also_when_it_fails() -> None:
    model, ids = family("llama").train(), random_ids(1, 30)
    hooked = model.model.forward
    model.model.forward = hooked  # as accelerate hooks a module
    before = dict(model.model.__dict__)
    token_losses(model, ids)
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(RopescaleError):
        token_losses(model, ids)
    assert model.model.forward is hooked
    assert model.model.__dict__.keys() == before.keys()
    assert model.training
    del model.model.forward
    token_losses(family("llama"), ids)
    assert "forward" not in family("llama").model.__dict__


def test_a_sequence_without_a_token_to_score_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        token_losses(family("llama"), random_ids(1, 5), first=5)
    assert str(error.value) == (
        "token_losses: first must be at least 1 and below the number of tokens, got 5 for ids of shape (1, 5); "
        "give [batch, n] ids with n of at least 2"
    )


def test_losses_by_position_equal_a_run_for_each_length(model: PreTrainedModel) -> None:
    ids = random_ids(1, 128, 1024)
    whole = token_losses(model, ids)[0]
    for length in (2, 16, 65, 128):
        torch.testing.assert_close(
            token_losses(model, ids[:, :length], first=length - 1)[0],
            whole[length - 2 : length - 1],
            rtol=1e-5,
            atol=1e-5,
        )
