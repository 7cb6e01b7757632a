"""Checkpoints that are scaled already: the figures of docs/scaled-checkpoints.md, and patching models built so."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, inv_freq_of, logits, model_of
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig, Qwen2Config

import ropescale
from ropescale.errors import AlreadyScaledError
from ropescale.extension import Extension, extended
from ropescale.families.parts import parts_of
from ropescale.families.today import todays_spectrum
from ropescale.request import Request
from ropescale.spectrum import theta_inv_freq

PAGE = (Path(__file__).parents[2] / "docs" / "scaled-checkpoints.md").read_text(encoding="utf-8")
LLAMA = LlamaConfig(
    hidden_size=4096,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_hidden_layers=2,
    max_position_embeddings=131072,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
QWEN = Qwen2Config(
    hidden_size=3584,
    num_attention_heads=28,
    num_key_value_heads=4,
    num_hidden_layers=2,
    max_position_embeddings=131072,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
)
PHI = Phi3Config(
    hidden_size=3072,
    num_attention_heads=32,
    num_hidden_layers=2,
    max_position_embeddings=131072,
    original_max_position_embeddings=4096,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 48,
        "long_factor": [1.0 + pair for pair in range(48)],
    },
)


def extension(config: PreTrainedConfig, method: str, existing: str, factor: float, **knobs: Any) -> Extension:
    return extended(config, Request(method=method, factor=factor, existing=existing, knobs=knobs))


def stretches(config: PreTrainedConfig, inv_freq: torch.Tensor) -> torch.Tensor:
    return theta_inv_freq(config.rope_parameters["rope_theta"], 2 * len(inv_freq)) / inv_freq


def row(config: PreTrainedConfig, method: str, existing: str, factor: float) -> str:
    """The row of the page for a call, as it should read."""
    found = extension(config, method, existing, factor)
    spectrum, record = found.rotations[0].spectrum, found.record
    largest = float(stretches(config, spectrum.inv_freq).max())
    attention = f"{spectrum.attention_factor:.4f}".rstrip("0").rstrip(".")
    return (
        f'| `patch(model, "{method}", factor={factor:g}, existing="{existing}")` | {record.original_length:,} | '
        f"{record.target_length:,} | {largest:.3g} | {attention} |"
    )


@pytest.mark.parametrize(
    ("config", "method", "existing", "factor"),
    [
        (LLAMA, "linear", "compose", 2),
        (LLAMA, "yarn", "compose", 2),
        (LLAMA, "yarn", "replace", 32),
        (LLAMA, "llama3", "replace", 16),
        (QWEN, "yarn", "replace", 4),
        (QWEN, "yarn", "replace", 8),
        (QWEN, "yarn", "compose", 2),
    ],
)
def test_every_row_of_the_page(config: PreTrainedConfig, method: str, existing: str, factor: float) -> None:
    expected = row(config, method, existing, factor)
    assert expected in PAGE
    if config is LLAMA:
        assert f"{expected} {extension(config, method, existing, factor).rotations[0].rope_type} |" in PAGE


def test_the_figures_of_llama() -> None:
    inv_freq, attention_factor = todays_spectrum(parts_of(LLAMA)[0])
    stretch = stretches(LLAMA, inv_freq)
    kept, slowed = int((stretch < 1 + 1e-6).sum()), int((stretch > 8 - 1e-5).sum())
    assert f"of more than 4 turns in 8,192 tokens ({kept} of them) are kept" in PAGE
    assert f"less than one turn ({slowed}) are\nslowed by 8, the {64 - kept - slowed} between are blended" in PAGE
    before = (2 * math.pi / theta_inv_freq(5e5, 128))[-1].item()
    assert f"needed {before:,.0f} tokens for a turn, and needs {(2 * math.pi / inv_freq)[-1].item():,.0f} now" in PAGE
    assert attention_factor == 1
    composed = stretches(LLAMA, extension(LLAMA, "linear", "compose", 2).rotations[0].spectrum.inv_freq)
    assert torch.allclose(composed, 2 * stretch, rtol=1e-5)


def test_the_figures_of_qwen() -> None:
    inv_freq, attention_factor = todays_spectrum(parts_of(QWEN)[0])
    assert torch.equal(extension(QWEN, "yarn", "replace", 4).rotations[0].spectrum.inv_freq, inv_freq)
    once, twice = 0.1 * math.log(4) + 1, 0.1 * math.log(2) + 1
    assert attention_factor == pytest.approx(once)
    assert f"{once:.4f} x {twice:.4f} = {once * twice:.4f}" in PAGE
    assert f"0.1 ln 8 + 1 = {0.1 * math.log(8) + 1:.4f}" in PAGE
    composed, alone = (
        extension(QWEN, "yarn", existing, factor).rotations[0].spectrum
        for existing, factor in (("compose", 2), ("replace", 8))
    )
    assert not torch.allclose(composed.inv_freq, alone.inv_freq, rtol=1e-3)


def test_the_figures_of_phi() -> None:
    _, attention_factor = todays_spectrum(parts_of(PHI)[0])
    assert f"= {attention_factor:.4f}. The lists" in PAGE
    composed = extension(PHI, "yarn", "compose", 2)
    assert (composed.record.original_length, composed.record.target_length) == (131072, 262144)
    both = attention_factor * (0.1 * math.log(2) + 1)
    assert f"{attention_factor:.4f} x {0.1 * math.log(2) + 1:.4f} = {both:.4f}" in PAGE
    twice = extension(PHI, "linear", "compose", 2)
    assert composed.late is not None
    assert twice.late is not None
    for place, slowest in ((0, 1.0), (4095, 1.0), (4096, 48.0), (262143, 48.0)):
        assert float(composed.late.spectra(torch.tensor(place))[1]) == pytest.approx(both)
        inv_freq, factor = twice.late.spectra(torch.tensor(place))
        assert float(factor) == pytest.approx(attention_factor)
        assert float(stretches(PHI, inv_freq)[-1]) == pytest.approx(2 * slowest, rel=1e-5)
    replaced = extension(PHI, "yarn", "replace", 32)
    assert (replaced.record.original_length, replaced.record.target_length) == (4096, 131072)
    assert f"has the attention factor {replaced.rotations[0].spectrum.attention_factor:.4f}" in PAGE
    kept = extension(
        PHI, "longrope", "replace", 32, long_factor=PHI.rope_parameters["long_factor"], attention_factor=1.1902
    ).rotations[0]
    expected = theta_inv_freq(1e4, 96) / torch.tensor(PHI.rope_parameters["long_factor"])
    assert torch.allclose(kept.spectrum.inv_freq, expected, rtol=1e-6)


SMALL = {
    "llama": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "qwen2": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    "gpt_oss": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["linear", "ntk", "by_parts", "yarn"])
@pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")
def test_a_live_model_is_replaced_composed_and_put_back(name: str, method: str, tmp_path: Path) -> None:
    model = model_of(config_of(name, rope_parameters=dict(SMALL[name]), max_position_embeddings=512))
    fresh = model_of(config_of(name))
    before, live = logits(model), inv_freq_of(model).clone()
    with pytest.raises(AlreadyScaledError, match="is already scaled, got rope_type"):
        ropescale.patch(model, method, factor=2)
    with ropescale.patched(model, method, factor=2, existing="replace"):
        assert ropescale.record(model).original_length == 64
        with ropescale.patched(fresh, method, factor=2):
            assert torch.equal(logits(model), logits(fresh))
    with ropescale.patched(model, method, factor=2, existing="compose"):
        assert ropescale.record(model).original_length == 512
        assert (inv_freq_of(model) <= live * (1 + 1e-6)).all()
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(ropescale.load(tmp_path)), logits(model))
    assert torch.equal(logits(model), before)
    assert (model.config.rope_parameters, model.config.max_position_embeddings) == (SMALL[name], 512)
    assert torch.equal(inv_freq_of(model), live)
