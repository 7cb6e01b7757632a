"""Text decoders of vision-language models: their rotary modules alone are patched, their configs alone edited."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import WHOLES, config_of_whole, fingerprint, logits, model_of_whole
from transformers import AutoModelForImageTextToText, PreTrainedModel

import ropescale
from ropescale.errors import UnsupportedModelError
from ropescale.families import parts_of, text_of


@pytest.fixture(scope="module", params=WHOLES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One whole of each kind; every test leaves it as it found it."""
    return model_of_whole(config_of_whole(request.param))


def frequencies(model: PreTrainedModel, keep: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in model.named_buffers() if "inv_freq" in name and keep(name)}


def of_vision(name: str) -> bool:
    return "vision" in name or "visual" in name


@pytest.mark.parametrize("method", ["by_parts", "linear", "ntk", "yarn"])
def test_the_text_decoder_alone_is_patched_and_equals_native(model: PreTrainedModel, method: str) -> None:
    before, config, state = logits(model), copy.deepcopy(model.config.to_dict()), fingerprint(model)
    seen = {name: (one, one.clone()) for name, one in frequencies(model, of_vision).items()}
    ropescale.patch(model, method, factor=4)
    assert (logits(model) - before).abs().max() > 1e-3
    for name, one in frequencies(model, of_vision).items():
        assert one is seen[name][0]
        assert torch.equal(one, seen[name][1])
    text = text_of(model.config)
    assert text.max_position_embeddings == 256
    assert ropescale.record(model).to_dict() == text.ropescale
    stated = copy.deepcopy(model.config)
    del text_of(stated).ropescale
    assert (logits(model_of_whole(stated)) - logits(model)).abs().max() <= 1e-6
    ropescale.unpatch(model)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert fingerprint(model) == state


def test_it_is_saved_loaded_and_rescaled(model: PreTrainedModel, tmp_path: Path) -> None:
    before = logits(model)
    model.save_pretrained(tmp_path / "source")
    with ropescale.patched(model, "yarn", factor=4):
        expected = logits(model)
        model.save_pretrained(tmp_path / "saved")
        done = ropescale.record(model)
    rescaled = ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "rescaled", "yarn", factor=4)
    for folder in (tmp_path / "saved", rescaled):
        assert ropescale.diagnose(folder) == []
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
        assert (logits(loaded) - expected).abs().max() <= 1e-6
        assert ropescale.record(loaded) == done
        again = ropescale.load(folder)
        assert (logits(again) - expected).abs().max() <= 1e-6
        assert torch.equal(logits(ropescale.unpatch(again)), before)


def test_the_geometry_is_that_of_the_text(model: PreTrainedModel) -> None:
    text = text_of(model.config)
    assert ropescale.read_geometry(model.config) == ropescale.read_geometry(text)
    assert parts_of(text)[0].label in ("", "full_attention")


def test_a_method_that_acts_in_attention_is_refused(model: PreTrainedModel) -> None:
    before, config = logits(model), model.config.to_dict()
    with pytest.raises(UnsupportedModelError, match="needs a text model with one rotary module, got the text decoder"):
        ropescale.patch(model, "rerope", factor=4)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
