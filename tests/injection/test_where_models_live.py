"""Patched models on the meta device, offloaded, quantised, checkpointed, copied: the patch is where it should be."""

import copy
import pickle
from pathlib import Path

import accelerate
import pytest
import torch
from families import config_of, family, inv_freq_of, logits, model_of
from torch import nn
from transformers import AutoModelForCausalLM

import ropescale
from ropescale.checkpoint import added_parameters
from ropescale.errors import RopescaleError, UnsupportedModelError

SEVERAL = ["deepseek_v3", "deepseek_v4", "gemma3_text", "llama", "moshi", "phimoe"]  # every way of being patched


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    family("llama").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def offloaded(model: nn.Module) -> nn.Module:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def dispatched(model: nn.Module) -> nn.Module:
    return accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("placed", [dispatched, offloaded])
@pytest.mark.parametrize("order", ["patched before", "patched after"])
def test_hooks_of_accelerate_leave_the_patch_alone(name: str, placed: object, order: str) -> None:
    plain, model = family(name), family(name)
    before = logits(plain)
    expected = logits(ropescale.patch(plain, "yarn", factor=4))
    if order == "patched before":
        ropescale.patch(model, "yarn", factor=4)
    model = placed(model)
    if order == "patched after":
        assert torch.equal(logits(model), before)
        ropescale.patch(model, "yarn", factor=4)
    assert torch.equal(logits(model), expected)
    ropescale.unpatch(model)
    assert torch.equal(logits(model), before)


def on_disk(model: nn.Module) -> nn.Module:
    return accelerate.disk_offload(model, "offload", execution_device=torch.device("cpu"))


ADDING = {"cope": {}, "learned": {"max_length": 256}, "shaw": {}, "t5": {}}  # methods with parameters of their own


def drawn(model: nn.Module) -> nn.Module:
    """A model whose added parameters are large enough to show."""
    for parameter in added_parameters(model).values():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("method", ["self_extend", "dynamic_yarn", *ADDING])
@pytest.mark.parametrize("placed", [dispatched, offloaded, on_disk])
def test_a_method_that_acts_in_attention_is_put_where_weights_are_offloaded(
    placed: object, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it adds has values, where the decoder computes."""
    monkeypatch.chdir(tmp_path)
    knobs = ADDING.get(method, {})
    plain, model = family("llama"), family("llama")
    before = logits(plain)
    expected = logits(drawn(ropescale.patch(plain, method, **knobs)))
    placed(model)
    ropescale.patch(model, method, **knobs)
    assert torch.equal(logits(drawn(model)), expected)
    assert torch.equal(logits(ropescale.unpatch(model)), before)


@pytest.mark.parametrize("method", ADDING)
def test_parameters_that_are_offloaded_after_the_patch_are_missed_by_name(method: str) -> None:
    """Accelerate brings back what a module reads that it calls, which these are not."""
    model = family("llama")
    before = logits(model)
    accelerate.cpu_offload(ropescale.patch(model, method, **ADDING[method]), execution_device=torch.device("cpu"))
    with pytest.raises(RopescaleError) as refusal:
        logits(model)
    assert str(refusal.value) == (
        f"{method}: the parameters that it added must have values, got some on the meta device; call "
        f"ropescale.unpatch(model), and patch it again where its weights are offloaded already"
    )
    assert torch.equal(logits(ropescale.unpatch(model)), before)
    assert not torch.equal(logits(ropescale.patch(model, method, **ADDING[method])), before)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_model_loaded_with_a_device_map(saved: Path, device_map: object, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map)
    expected = logits(ropescale.patch(family("llama"), "yarn", factor=4))
    assert torch.equal(logits(ropescale.patch(model, "yarn", factor=4)), expected)
    rescaled = ropescale.rescale_checkpoint(saved, tmp_path / "rescaled", factor=4)
    assert torch.equal(logits(ropescale.load(rescaled, device_map=device_map)), expected)


def test_a_model_with_weights_on_the_disk(saved: Path, tmp_path: Path) -> None:
    """Layers whose weights accelerate reads when they are needed."""
    layers = {f"model.layers.{i}": "disk" for i in range(2)}
    device_map = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
        **layers,
    }
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map, offload_folder=tmp_path / "offload")
    before = logits(family("llama"))
    expected = logits(ropescale.patch(family("llama"), "yarn", factor=4))
    assert torch.equal(logits(ropescale.patch(model, "yarn", factor=4)), expected)
    assert torch.equal(logits(ropescale.unpatch(model)), before)
    patched = drawn(ropescale.patch(family("llama"), "cope"))
    patched.save_pretrained(tmp_path / "patched")
    loaded = ropescale.load(tmp_path / "patched", device_map=device_map, offload_folder=tmp_path / "another")
    assert torch.equal(logits(loaded), logits(patched))


def test_a_model_on_the_meta_device_is_refused_until_it_has_weights(saved: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("llama"))
    with pytest.raises(UnsupportedModelError, match="must have its weights, got a rotary module on the meta device"):
        ropescale.patch(model, "yarn", factor=4)
    loaded = AutoModelForCausalLM.from_pretrained(saved, low_cpu_mem_usage=True)
    assert torch.equal(
        logits(ropescale.patch(loaded, "yarn", factor=4)), logits(ropescale.patch(family("llama"), "yarn", factor=4))
    )


@pytest.mark.parametrize("name", SEVERAL)
def test_a_model_made_anew_from_its_config_has_the_patch(name: str) -> None:
    """What FSDP does to a model on the meta device: empty tensors, then initialisation by the config."""
    model = ropescale.patch(family(name), "yarn", factor=4)
    config = copy.deepcopy(model.config)
    del config.ropescale
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config)
    fresh.to_empty(device="cpu")
    fresh.init_weights()
    assert torch.equal(inv_freq_of(fresh), inv_freq_of(model))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_checkpointing_are_those_without(name: str, reentrant: bool) -> None:
    ids = torch.randint(3, 128, (1, 90), generator=torch.Generator().manual_seed(5))
    gradients = []
    for checkpointing in (False, True):
        model = ropescale.patch(family(name), "yarn", factor=4)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name_of, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name_of], rtol=1e-4, atol=1e-6), name_of


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_patched_model_of_its_own(name: str, copied: object) -> None:
    model = family(name)
    before = logits(model)
    expected = logits(ropescale.patch(model, "yarn", factor=4))
    twin = copied(model)
    assert ropescale.record(twin) == ropescale.record(model)
    assert torch.equal(logits(twin), expected)
    assert torch.equal(logits(ropescale.unpatch(twin)), before)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(ropescale.unpatch(model)), before)


def test_dynamically_quantised_layers_are_patched_as_any() -> None:
    """Torch's own int8 layers: the rotary module is none of them."""
    model = family("llama")
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    before = logits(quantised)
    ropescale.patch(quantised, "yarn", factor=4)
    native = model_of(stated(quantised.config))
    native = torch.ao.quantization.quantize_dynamic(native, {nn.Linear}, dtype=torch.qint8)
    assert torch.equal(logits(quantised), logits(native))
    assert torch.equal(logits(ropescale.unpatch(quantised)), before)


def stated(config: object) -> object:
    """A patched config without the record."""
    config = copy.deepcopy(config)
    del config.ropescale
    return config
