"""What a composed factor 1 and a doubled linear factor must be, over every family and over published shapes."""

import warnings
from pathlib import Path

import pytest
import torch
from families import NAMES, NATIVE_ONLY, OLDER, TEXT_CLASSES, family, logits, model_of, rope_of
from shapes import SHAPES, model_type_of, published
from transformers import PreTrainedModel

import ropescale
from ropescale.doctor.diagnosis import diagnose
from ropescale.errors import AlreadyScaledError, ExportError, UnsupportedModelError
from ropescale.export import export
from ropescale.families import entries
from ropescale.families.parts import parts_of, text_of
from ropescale.families.today import depends_on_length, length_of_switch

# Where doubled positions are more than a doubled rotation, and why
COUNTING = {
    "deepseek_v4": "summaries of slots are rotated by the slot's own number",
    **(dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), "up to 5.14 positions are read as slots") if OLDER else {}),
}


def at(model: PreTrainedModel, positions: torch.Tensor) -> torch.Tensor:
    """[1, tokens, vocabulary] of a fixed prompt whose tokens stand at `positions`."""
    ids = torch.randint(3, 128, (1, len(positions)), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(input_ids=ids, attention_mask=mask, position_ids=positions[None], use_cache=False).logits


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in COUNTING])
def test_linear_by_two_at_twice_the_position_is_the_original(name: str) -> None:
    model = family(name)
    before = at(model, torch.arange(24))
    twice = at(model, 2 * torch.arange(24))
    assert (twice - before).abs().max() > 1e-4, "positions that change nothing would show nothing"
    with ropescale.patched(model, "linear", factor=2, layers="all"):
        assert (at(model, 2 * torch.arange(24)) - before).abs().max() <= 1e-4


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("name", [name for name in NAMES if not (OLDER and name == "dbrx")])  # refuses its own fields
def test_factor_one_over_what_was_scaled_natively_is_the_identity(name: str) -> None:
    """A saved extension that has lost its record is a checkpoint that somebody else scaled."""
    model = family(name)
    ropescale.patch(model, "linear", factor=4)
    config = type(model.config)(**{key: value for key, value in model.config.to_dict().items() if key != "ropescale"})
    scaled = model_of(config)
    scaled.load_state_dict(model.state_dict())
    before, rope = logits(scaled), dict(rope_of(config))
    ropescale.patch(scaled, "linear", factor=1, existing="compose", layers="all" if name == "flint" else "global")
    assert (logits(scaled) - before).abs().max() <= 1e-6
    assert rope_of(config) == rope
    assert config.max_position_embeddings == 256
    assert [str(found) for found in diagnose(scaled)] == []


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TEXT_CLASSES])
def test_what_is_saved_and_rescaled_passes_the_own_doctor(name: str, tmp_path: Path) -> None:
    model = family(name)
    method = "linear" if name in NATIVE_ONLY else "yarn"
    model.save_pretrained(tmp_path / "source")
    ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "rescaled", method, factor=4)
    ropescale.patch(model, method, factor=4)
    model.save_pretrained(tmp_path / "saved")
    for case in (model, tmp_path / "rescaled", tmp_path / "saved", ropescale.load(tmp_path / "saved")):
        assert [str(found) for found in diagnose(case)] == []


# Older modules of type dynamic keep the frequencies of the longest text that they read; MiniCPM 3 asks for a factor
# that its longrope does not state
UNREAD = ("hunyuan 7b", "internlm 2.5 as llama", "minicpm 3") if OLDER else ()
PUBLISHED = [name for name in SHAPES if model_type_of(name) in NAMES and name not in UNREAD]
# Within the original length of the shortest, beyond that of most, and far beyond
REACHES = (24, 9000, 100000)


def spread(reach: int) -> torch.Tensor:
    """[24] positions over so many tokens."""
    return torch.arange(24) * (reach // 24)


@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("name", PUBLISHED)
def test_factor_one_over_a_published_shape_is_the_identity(name: str, tmp_path: Path) -> None:
    model = published(name)
    before = [at(model, spread(reach)) for reach in REACHES]
    faults = {str(found) for found in diagnose(model)}
    maximum = text_of(model.config).max_position_embeddings
    for method in ("linear", "yarn", "unscaled"):
        ropescale.patch(model, method, factor=1, existing="compose")
        for reach, expected in zip(REACHES, before, strict=True):
            assert (at(model, spread(reach)) - expected).abs().max() <= 1e-6, (method, reach)
        if method == "yarn":
            assert {str(found) for found in diagnose(model)} <= faults
            assert text_of(model.config).max_position_embeddings >= maximum
            model.save_pretrained(tmp_path)
            for reloaded in (ropescale.load(tmp_path), type(model).from_pretrained(tmp_path)):
                for reach, expected in zip(REACHES, before, strict=True):
                    assert (at(reloaded, spread(reach)) - expected).abs().max() <= 1e-6, reach
        ropescale.unpatch(model)
        for reach, expected in zip(REACHES, before, strict=True):
            assert torch.equal(at(model, spread(reach)), expected), (method, reach)


@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("name", PUBLISHED)
def test_linear_by_two_over_a_published_shape_at_twice_the_position(name: str, tmp_path: Path) -> None:
    """Also where the softmax has a scale of its own, which composing leaves as it is."""
    model = published(name)
    part = parts_of(text_of(model.config))[0]
    by_each_position = length_of_switch(part) > 0  # which Transformers has no type for
    if depends_on_length(part.config) and not by_each_position:
        with pytest.raises(AlreadyScaledError, match="must be a fixed spectrum"):
            ropescale.patch(model, "linear", factor=2, existing="compose")
        return
    before = at(model, torch.arange(24))
    assert (at(model, 2 * torch.arange(24)) - before).abs().max() > 1e-4, "positions that change nothing"
    ropescale.patch(model, "linear", factor=2, existing="compose", layers="all")
    assert (at(model, 2 * torch.arange(24)) - before).abs().max() <= 1e-4
    model.save_pretrained(tmp_path)
    stranger = ropescale.load(tmp_path) if by_each_position else type(model).from_pretrained(tmp_path)
    assert (at(stranger, 2 * torch.arange(24)) - before).abs().max() <= 1e-4
    assert diagnose(model) == diagnose(tmp_path) == [] or name == "longchat 7b"


@pytest.mark.parametrize("name", [name for name in ("phi-3 mini 128k", "phi-3.5 moe") if name in PUBLISHED])
def test_the_limit_alone_is_raised_over_two_lists(name: str, tmp_path: Path) -> None:
    """The attention factor would follow from the maximum where it is not stated."""
    model = published(name)
    before = [at(model, spread(reach)) for reach in REACHES]
    ropescale.patch(model, "unscaled", factor=4, existing="compose")
    assert model.config.max_position_embeddings == 4 * 131072
    model.save_pretrained(tmp_path)
    for case in (model, ropescale.load(tmp_path), type(model).from_pretrained(tmp_path)):
        for reach, expected in zip(REACHES, before, strict=True):
            assert (at(case, spread(reach)) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", [name for name in ("gemma3_text", "modernbert-decoder") if name in NAMES])
def test_a_yarn_that_this_transformers_would_not_read_again_is_stated_pair_by_pair(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Up to 5.8 the original length of a layer type's yarn is looked for beside the layer types."""
    expected = logits(ropescale.patch(family(name), "yarn", factor=4))
    monkeypatch.setattr(entries, "reads_yarn", lambda: False)
    model = ropescale.patch(family(name), "yarn", factor=4)
    assert rope_of(model.config)["rope_type"] == "longrope"
    model.save_pretrained(tmp_path)
    for one in (model, ropescale.load(tmp_path), type(model).from_pretrained(tmp_path)):
        assert (logits(one) - expected).abs().max() <= 1e-5


# What a folder for an engine is read by here: one of each way that a config states its rotation
STATED = (
    "llama",
    "cohere2_moe",
    "deepseek_v3",
    "gemma3_text",
    "gpt_neox",
    "hunyuan_v1_dense",
    "phi3",
    "phimoe",
    "zaya",
)


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("engine", ["mlx", "sglang", "transformers", "vllm"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in STATED else pytest.mark.slow)
        for name in NAMES
        if name not in TEXT_CLASSES
    ],
)
def test_what_is_exported_passes_the_own_doctor(name: str, engine: str, tmp_path: Path) -> None:
    family(name).save_pretrained(tmp_path / "source")
    for method in ("linear", "yarn", *(() if name in NATIVE_ONLY else ("ntk_mixed",))):
        try:
            export(tmp_path / "source", tmp_path / method, to=engine, method=method, factor=4)
        except ExportError:  # what an engine cannot hold is refused by name
            continue
        assert [str(found) for found in diagnose(tmp_path / method)] == []
        assert [str(found) for found in diagnose(ropescale.load(tmp_path / method))] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize("engine", ["mlx", "sglang", "transformers", "vllm"])
@pytest.mark.parametrize("name", [name for name in PUBLISHED if model_type_of(name) not in TEXT_CLASSES])
def test_a_published_shape_is_told_to_an_engine_as_it_is_and_rescaled(name: str, engine: str, tmp_path: Path) -> None:
    """Whatever words the engine wants for it, Transformers reads the same rotation from them."""
    model = published(name)
    model.save_pretrained(tmp_path / "source")
    for case, given in {
        "as it is": {"method": "none"},
        "longer": {"method": "linear", "factor": 2.0, "existing": "compose", "layers": "all"},
    }.items():
        if case == "longer":
            try:
                ropescale.patch(model, **given)
            except ropescale.RopescaleError:  # a base that depends on length, which is refused elsewhere
                return
        before = [at(model, spread(reach)) for reach in REACHES]
        try:
            export(tmp_path / "source", tmp_path / case, to=engine, **given)
        except UnsupportedModelError:  # a text decoder within another model
            return
        except ExportError:  # what the engine cannot hold; Transformers holds whatever is fixed
            assert engine != "transformers" or depends_on_length(parts_of(model.config)[0].config)
            continue
        stranger = type(model).from_pretrained(tmp_path / case)
        for reach, expected in zip(REACHES, before, strict=True):
            assert (at(stranger, spread(reach)) - expected).abs().max() <= 1e-4, (case, reach)
