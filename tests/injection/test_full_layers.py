"""Layers that read the whole context rescaled alone, where one rotary module serves them and layers of a window."""

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, family, logits, model_of
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

import ropescale
from ropescale.errors import ExportError, InvalidArgumentError
from ropescale.export.canonical import canonical

CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
WINDOWED = ("gemma2", "gpt_oss", "ministral")
FULL: dict[str, dict[str, Any]] = {
    "yarn": {"factor": 4},
    "linear": {"factor": 4, "log_n": True},
    "dynamic_yarn": {},
    "self_extend": {"group_size": 4, "window": 10},
    "alibi": {},
}


def mixed(name: str, **changes: Any) -> PreTrainedModel:
    """Layers of a window and layers that read the whole context, which one rotary module serves."""
    facts = {
        "num_hidden_layers": 4,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 32,
    }
    return model_of(config_of(name, **{**facts, **changes}))


def attended(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """What the attention of every layer gives back, where nothing of it is handed on: all are given the same."""
    found: list[Tensor] = []

    def silenced(_: Any, __: Any, output: Any) -> Any:
        found.append(output[0])
        return (torch.zeros_like(output[0]), *output[1:])

    hooks = [layer.self_attn.register_forward_hook(silenced) for layer in model.model.layers]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.filterwarnings("ignore:.*one rotary module serves sliding-window")
@pytest.mark.parametrize("method", FULL)
@pytest.mark.parametrize("name", WINDOWED)
def test_layers_of_a_window_keep_their_rotation_beside_those_that_are_rescaled(name: str, method: str) -> None:
    ids = torch.randint(3, 97, (2, 90), generator=torch.Generator().manual_seed(1))
    eager = {"attn_implementation": "eager"}  # the only one that caps Gemma 2's scores in every version
    native = attended(mixed(name, **eager), ids)
    every = attended(ropescale.patch(mixed(name, **eager), method, **FULL[method]), ids)
    found = attended(ropescale.patch(mixed(name), method, layers="full", **FULL[method]), ids)
    for number in (0, 2):
        assert (found[number] - native[number]).abs().max() < 1e-5 * native[number].abs().max()
        assert (every[number] - native[number]).abs().max() > 1e-3 * native[number].abs().max()
    for number in (1, 3):
        assert (found[number] - every[number]).abs().max() < 1e-5 * every[number].abs().max()
        assert (found[number] - native[number]).abs().max() > 1e-2 * native[number].abs().max()


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("error:.*one rotary module serves sliding-window")
@pytest.mark.parametrize("method", FULL)
@pytest.mark.parametrize("name", WINDOWED)
def test_a_model_of_which_some_layers_are_rescaled_is_read_saved_and_undone(
    name: str, method: str, tmp_path: Path
) -> None:
    model, ids = mixed(name), torch.randint(3, 97, (1, 90), generator=torch.Generator().manual_seed(1))
    config = model.config.to_dict()
    with torch.no_grad():
        native = model(ids).logits
        ropescale.patch(model, method, layers="full", **FULL[method])
        whole, rows, past = model(ids).logits, [], None
        for piece in (ids[:, :50], *torch.split(ids[:, 50:], 1, dim=1)):
            step = model(piece, use_cache=True, **{CACHE: past})
            past = step[CACHE]
            rows.append(step.logits)
        assert (torch.cat(rows, dim=1) - whole).abs().max() < 5e-4
        done = ropescale.record(model)
        assert done is not None
        assert done.layers == "full"
        assert done.proof["layers"] == "1, 3"
        assert model.config.rope_parameters["rope_type"] == "ropescale"
        model.save_pretrained(tmp_path)
        for one in (ropescale.load(tmp_path), pickle.loads(pickle.dumps(model))):
            assert torch.equal(one(ids).logits, whole)
            assert torch.equal(ropescale.unpatch(one)(ids).logits, native)
        with pytest.raises(ExportError) as refusal:
            canonical(model.config, lossy=True)
        assert str(refusal.value) == (
            f"{method}: must rescale every layer that one rotary module serves to be exported, got layers='full', "
            f"which leaves layers of a window as they are; patch with layers='global', or keep it in Transformers "
            f"with ropescale.load"
        )
        assert torch.equal(ropescale.unpatch(model)(ids).logits, native)
    written = {"architectures": None, "dtype": None}  # by save_pretrained
    assert {**model.config.to_dict(), **written} == {**config, **written}
    assert not any("_ropescale" in field for module in model.modules() for field in module.__dict__)


def test_full_is_global_where_rotations_are_stated_by_layer_type_or_no_layer_has_a_window() -> None:
    for name in ("gemma3_text", "llama"):
        one, other = (ropescale.patch(family(name), "yarn", factor=4, layers=layers) for layers in ("full", "global"))
        assert torch.equal(logits(one), logits(other))
        assert one.config.rope_parameters == other.config.rope_parameters


def test_full_is_refused_where_it_cannot_be_meant(tmp_path: Path) -> None:
    every = mixed("ministral", layer_types=["sliding_attention"] * 4)
    with pytest.raises(InvalidArgumentError) as refusal:
        ropescale.patch(every, "yarn", factor=4, layers="full")
    assert str(refusal.value) == (
        "layers: must be 'global' or 'all' for a ministral of which every layer looks at a window of tokens, got "
        "'full', which leaves nothing to rescale; leave it out"
    )
    with pytest.raises(InvalidArgumentError) as refusal:
        ropescale.patch(mixed("gemma2"), "sinusoidal", layers="full")
    assert str(refusal.value) == (
        "layers: must be 'global' or 'all' for sinusoidal, which changes what enters every layer, got 'full'; leave "
        "it out"
    )
    mixed("gemma2").save_pretrained(tmp_path / "saved")
    with pytest.raises(InvalidArgumentError) as refusal:
        ropescale.rescale_checkpoint(tmp_path / "saved", tmp_path / "rescaled", factor=4, layers="full")
    assert str(refusal.value) == (
        "layers: must be 'global' or 'all' for a gemma2 on disk, where one rotary module serves all layers and a "
        "config states one rotation for it, got 'full'; load, patch and save it with save_pretrained"
    )
