"""What tests here are given."""

import pytest
import torch
from gguf_files import TOKENS
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """A random model with grouped heads; its sizes are multiples of the 32 numbers that GGUF quantises together."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()
