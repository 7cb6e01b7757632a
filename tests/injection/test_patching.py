"""patch and unpatch over every family and every method."""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from families import (
    NAMES,
    NATIVE,
    family,
    fingerprint,
    fixed_methods,
    in_turn,
    inv_freq_of,
    knobs_for,
    logits,
    model_of,
    rope_of,
)
from patches import patched_with, rotary_of
from transformers import PreTrainedModel

import ropescale
from ropescale.errors import RopescaleError
from ropescale.families.catalogue import family_of
from ropescale.injection.places import cache_keyword

# expected of every family with sliding windows, and checked on its own below
pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")


def adapter(model: torch.nn.Module) -> peft.LoraConfig:
    """An adapter of every projection that PEFT allows.

    Those of a Mamba layer it refuses; a router that returns more than one tensor, and one that takes its input in
    groups, it breaks.
    """
    left = [name for name, _ in model.named_modules() if ".mamba." in name or name.endswith((".router", ".o_a_proj"))]
    return peft.LoraConfig(target_modules="all-linear", exclude_modules=left or None, r=2, init_lora_weights=False)


@pytest.mark.sampled(2)
def test_undo_is_exact(model: PreTrainedModel) -> None:
    """Some methods in turn, from the same starting point; each is among those of a sixth of the families."""
    methods = fixed_methods(model.config.model_type)
    undone(model, methods[NAMES.index(model.config.model_type) % 6 :: 6])


@pytest.mark.slow
def test_undo_of_every_method_is_exact(model: PreTrainedModel) -> None:
    undone(model, fixed_methods(model.config.model_type))


def undone(model: PreTrainedModel, methods: list[str]) -> None:
    """Patch with each method and unpatch: logits, config and tensors are as they were."""
    before, config, state = logits(model), copy.deepcopy(model.config.to_dict()), fingerprint(model)
    for method in methods:
        patched_with(model, method)
        assert torch.equal(logits(model), before) == (method == "unscaled"), method
        assert fingerprint(model) == state, method
        ropescale.unpatch(model)
        assert torch.equal(logits(model), before), method
        assert model.config.to_dict() == config, method
        assert fingerprint(model) == state, method
        assert ropescale.record(model) is None, method


@pytest.mark.sampled(2)
def test_patched_equals_native_bit_for_bit(model: PreTrainedModel) -> None:
    """Some methods in turn; each is among those of a third of the families."""
    as_native(model, NATIVE[NAMES.index(model.config.model_type) % 3 :: 3])


@pytest.mark.slow
def test_every_patched_method_equals_native_bit_for_bit(model: PreTrainedModel) -> None:
    as_native(model, NATIVE)


def as_native(model: PreTrainedModel, methods: Sequence[str]) -> None:
    """Against a second model, built by Transformers from a config of the same parameters."""
    for method in methods:
        with ropescale.patched(model, method, factor=4, **knobs_for(method)):
            config = copy.deepcopy(model.config)
            del config.ropescale
            assert rope_of(config)["rope_type"] == spelled(config.model_type, method)
            native = model_of(config)
            assert torch.equal(inv_freq_of(native), inv_freq_of(model)), method
            assert torch.equal(logits(native), logits(model)), method


def spelled(family_name: str, method: str) -> str:
    """The rope_type that states a method natively; Phi-3's have longrope alone, which states it pair by pair."""
    native = {"abf": "default", "ntk": "default", "by_parts": "llama3", "unscaled": "default"}.get(method, method)
    return "longrope" if family_of(family_name).longrope_only and native != "default" else native


JOURNEYS = ("through PEFT", "after deepcopy", "after a cast", "through pickle")
# Each family makes one of them by default
TRAVELS = [
    pytest.param(*one.values, journey, marks=one.marks)
    for turn, journey in enumerate(JOURNEYS)
    for one in in_turn(NAMES, turn, len(JOURNEYS))
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("model", "journey"), TRAVELS, indirect=["model"])
def test_undo_is_exact_on_a_journey(model: PreTrainedModel, journey: str) -> None:
    """Patched here, unpatched there: the result is the model that made the same journey unpatched."""
    traveller, control = copy.deepcopy(model), copy.deepcopy(model)
    patched_with(traveller, "yarn")
    if journey == "through PEFT":
        lora = adapter(model)
        torch.manual_seed(3)
        control = peft.get_peft_model(control, lora)
        torch.manual_seed(3)
        traveller = peft.get_peft_model(traveller, lora)
    elif journey == "after deepcopy":
        original, traveller = traveller, copy.deepcopy(traveller)
    elif journey == "after a cast":
        traveller.to(torch.bfloat16)
        control.to(torch.bfloat16)
        assert inv_freq_of(traveller).dtype == torch.float32
    else:
        traveller = pickle.loads(pickle.dumps(traveller))
    assert not torch.equal(logits(traveller), logits(control))
    state = fingerprint(traveller)
    ropescale.unpatch(traveller)
    assert torch.equal(logits(traveller), logits(control))
    assert fingerprint(traveller) == state == fingerprint(control)
    config, reference = (getattr(m, "config", None).to_dict() for m in (traveller, control))
    assert config == reference
    if journey == "after deepcopy":
        assert ropescale.record(original) is not None


@pytest.mark.parametrize("model", in_turn(NAMES, 2, 4), indirect=True)
def test_patching_through_peft_is_patching_the_base(model: PreTrainedModel) -> None:
    lora = adapter(model)
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora)
    before = logits(wrapped)
    assert patched_with(wrapped, "linear") is wrapped
    bare = wrapped.get_base_model()
    assert ropescale.record(bare) == ropescale.record(wrapped)
    after = logits(wrapped)
    assert not torch.equal(after, before)
    ropescale.unpatch(bare)
    assert torch.equal(logits(wrapped), before)


def test_a_model_under_ddp_is_patched_and_undone(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'meet'}")
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(family("llama"))
        before = logits(wrapped)
        ropescale.patch(wrapped, "yarn", factor=4)
        assert ropescale.record(wrapped.module) == ropescale.record(wrapped)
        assert not torch.equal(logits(wrapped), before)
        ropescale.unpatch(wrapped)
        assert torch.equal(logits(wrapped), before)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("cast", ["before", "after"])
def test_spectrum_stays_float32_when_the_model_is_cast(dtype: torch.dtype, cast: str) -> None:
    model = family("llama")
    expected = ropescale.get_method("yarn")(factor=4).spectrum(ropescale.read_geometry(model.config)).inv_freq
    if cast == "before":
        model.to(dtype)
    rounded = rotary_of(model).inv_freq.clone()
    ropescale.patch(model, "yarn", factor=4)
    if cast == "after":
        model.to(dtype)
    assert rotary_of(model).inv_freq.dtype == torch.float32
    assert torch.equal(rotary_of(model).inv_freq, expected)
    assert next(model.parameters()).dtype == dtype
    ropescale.unpatch(model)
    if cast == "before":
        assert torch.equal(rotary_of(model).inv_freq, rounded)
    assert rotary_of(model).inv_freq.dtype == dtype


def test_spectrum_survives_a_journey_that_loses_values() -> None:
    """Through the meta device and .to_empty, which is how large models change places."""
    model = ropescale.patch(family("llama"), "power", factor=4)
    expected = rotary_of(model).inv_freq.clone()
    model.to("meta").to_empty(device="cpu")
    assert torch.equal(rotary_of(model).inv_freq, expected)
    assert torch.equal(rotary_of(model).original_inv_freq, expected)


def test_a_move_that_moves_nothing_keeps_the_tensors() -> None:
    """A captured graph replays from their addresses."""
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    before = rotary_of(model).inv_freq
    assert rotary_of(model.to("cpu").float()).inv_freq is before


@pytest.mark.parametrize("order", ["patched before", "patched after"])
def test_compiled_model_sees_the_patch_and_its_undo(order: str) -> None:
    model = family("llama")
    before = logits(model)
    if order == "patched before":
        ropescale.patch(model, "yarn", factor=4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    if order == "patched after":
        assert torch.allclose(logits(compiled), before, atol=1e-5)
        ropescale.patch(compiled, "yarn", factor=4)
    assert torch.allclose(logits(compiled), logits(model), atol=1e-5)
    assert (logits(compiled) - before).abs().max() > 0.1
    ropescale.unpatch(compiled)
    assert torch.allclose(logits(compiled), before, atol=1e-5)
    assert torch.equal(logits(model), before)


def test_decoding_with_a_cache_equals_one_forward_across_the_original_length() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    ids = torch.randint(3, 128, (1, 100), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        whole = model(ids).logits
        step, keyword = model(ids[:, :50], use_cache=True), cache_keyword(model)
        rows = [step.logits]
        for position in range(50, 100):
            step = model(ids[:, position : position + 1], use_cache=True, **{keyword: step[keyword]})
            rows.append(step.logits)
    assert (torch.cat(rows, dim=1) - whole).abs().max() < 5e-5


def test_generation_runs_to_the_target_length() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=100, do_sample=False, eos_token_id=None)
    assert out.shape == (1, 103)
    assert model.config.max_position_embeddings == 256


def test_gradients_flow_as_in_the_native_model() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    config = copy.deepcopy(model.config)
    del config.ropescale
    native = model_of(config)
    ids = torch.randint(3, 128, (1, 90), generator=torch.Generator().manual_seed(5))
    for one in (model, native):
        one.train()
        one(ids, labels=ids).loss.backward()
    for ours, theirs in zip(model.parameters(), native.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_module_identity_and_wrappers_survive() -> None:
    model = family("llama")
    rotary = rotary_of(model)
    ropescale.patch(model, "yarn", factor=4)
    assert rotary_of(model) is rotary
    assert rotary.config is model.config


def test_state_dict_never_holds_frequencies() -> None:
    model = ropescale.patch(family("llama"), "yarn", factor=4)
    assert not [name for name in model.state_dict() if "inv_freq" in name]


def test_context_manager_restores_after_an_error() -> None:
    model = family("llama")
    before = logits(model)
    inside = []

    def use() -> None:
        with ropescale.patched(model, "ntk", factor=8) as same:
            inside.append((same is model, ropescale.record(model).method))
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        use()
    assert inside == [(True, "ntk")]
    assert torch.equal(logits(model), before)
    assert ropescale.record(model) is None


def test_a_failure_after_the_first_change_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    before, config = logits(model), model.config.to_dict()

    whole = type(rotary_of(model)).forward

    def broken(rotary: torch.nn.Module, *arguments: object, **keywords: object) -> object:
        if "_apply" in vars(rotary):  # from the first change on
            raise MemoryError("no room")
        return whole(rotary, *arguments, **keywords)

    monkeypatch.setattr(type(rotary_of(model)), "forward", broken)
    with pytest.raises(RopescaleError, match="must run with yarn, got MemoryError: no room; this version cannot"):
        ropescale.patch(model, "yarn", factor=4)
    monkeypatch.undo()
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert ropescale.record(model) is None


def test_a_rotary_module_that_ignores_its_buffers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    rotary, fixed = rotary_of(model), rotary_of(model).inv_freq.clone()
    before, config = logits(model), model.config.to_dict()

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * fixed
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    monkeypatch.setattr(rotary, "forward", forward)
    with pytest.raises(RopescaleError, match="does not read its frequencies from its buffer"):
        ropescale.patch(model, "yarn", factor=4)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
