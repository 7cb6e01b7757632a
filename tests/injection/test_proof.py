"""The behavioural proof of a patch: what it shows, and faults of a host that it must refuse, planted on purpose."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import NAMES, config_of, family, fingerprint, fixed_methods, logits, model_of
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

import ropescale
from ropescale.errors import UnsupportedModelError, VerificationError
from ropescale.injection import late as late_door
from ropescale.injection import proven
from ropescale.injection.proof import decoder_of
from ropescale.injection.rotation import Substitution

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")
ROOT = Path(__file__).parents[2]
ROWS = {"padding", "cache", "rows"}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_of_every_family(name: str) -> None:
    """The layers that the record names are those whose attention a second look finds changed."""
    model = family(name)
    before = attention_outputs(model)
    ropescale.patch(model, "linear", factor=4)
    proof = ropescale.record(model).proof
    assert proof["how"] == "on this model"
    assert set(proof["shown"]) == {"change", "undo"}
    changed = [(one - other).abs().max() > 1e-6 for one, other in zip(before, attention_outputs(model), strict=True)]
    assert proof["layers"]
    assert any(changed)


def attention_outputs(model: PreTrainedModel) -> list[Tensor]:
    """What modules that Transformers calls attention give back, in a text that reaches beyond the original length."""
    found: list[Tensor] = []

    def note(_: nn.Module, __: Any, answer: Any) -> None:
        found.append((answer if isinstance(answer, Tensor) else answer[0]).detach().float())

    hooks = [one.register_forward_hook(note) for one in model.modules() if "Attention" in type(one).__name__]
    hooks += [one.register_forward_hook(note) for one in model.modules() if type(one).__name__.endswith("Model")]
    logits(model)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("method", ["self_extend", "dynamic_yarn", "alibi", "nope", "cope"])
def test_what_is_shown_of_late_methods(method: str) -> None:
    model = ropescale.patch(family("llama"), method)
    assert ropescale.record(model).proof == {
        "how": "on this model",
        "shown": ["change", "undo", "padding", "cache", "rows"],
        "unlike by itself": [],
        "layers": "0-1",
    }


def test_the_layers_of_one_type_are_named() -> None:
    model = ropescale.patch(family("gemma3_text"), "yarn", factor=4)
    assert ropescale.record(model).proof["layers"] == "1"  # its full-attention layer
    ropescale.unpatch(model)
    assert ropescale.record(ropescale.patch(model, "yarn", factor=4, layers="all")).proof["layers"] == "0-1"


def test_the_identity_is_held_to_change_nothing() -> None:
    model = family("llama")
    before = logits(model)
    ropescale.patch(model, "linear", factor=1)
    assert torch.equal(logits(model), before)
    assert ropescale.record(model).proof["shown"] == ["change", "undo"]
    assert ropescale.record(model).proof["layers"] == ""


def test_a_model_that_does_not_do_a_thing_by_itself_is_not_blamed_on_the_patch() -> None:
    """Bamba's own decoding over a cache differs from its own reading in one pass."""
    if "bamba" not in NAMES:
        pytest.skip("not a family of this version of Transformers")
    proof = ropescale.record(ropescale.patch(family("bamba"), "self_extend")).proof
    assert set(proof["shown"]) | set(proof["unlike by itself"]) == {"change", "undo", *ROWS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["yarn", "self_extend"])
@pytest.mark.parametrize("spread", [0.02, 0.15])
def test_half_precision_and_small_weights(dtype: torch.dtype, method: str, spread: float) -> None:
    """A model as it is before training, whose attention is nearly uniform, shows it too."""
    model = family("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread, generator=torch.Generator().manual_seed(0))
    model.to(dtype)
    ropescale.patch(model, method, factor=4)
    assert ropescale.record(model).proof["layers"] == "0-1"


@pytest.mark.parametrize(("length", "method", "factor"), [(4, "yarn", 4), (8, "linear", 1.01), (16, "linear", 1.01)])
def test_a_target_within_one_pass_is_shown_nearby(length: int, method: str, factor: float) -> None:
    model = LlamaForCausalLM(config_of("llama", max_position_embeddings=length))
    ropescale.patch(model, method, factor=factor)
    assert ropescale.record(model).proof["shown"] == ["change nearby", "undo"]


@pytest.mark.parametrize("method", ["yarn", "self_extend", "nope"])
def test_a_model_within_autocast_is_read_as_its_weights_are(method: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model = ropescale.patch(family("llama"), method, factor=4)
    assert ropescale.record(model).proof["layers"] == "0-1"


def refused(model: PreTrainedModel, method: str, words: str, **arguments: Any) -> None:
    """The patch is an error with these words, and the model is as it was."""
    state, config = fingerprint(model), model.config.to_dict()
    with pytest.raises(VerificationError, match=words):
        ropescale.patch(model, method, **arguments)
    assert ropescale.record(model) is None
    assert fingerprint(model) == state
    assert model.config.to_dict() == config


def frozen(layer: nn.Module) -> Callable[..., Any]:
    """An attention layer's forward that rotates by frequencies of its own, whatever it is given."""
    whole = layer.forward

    def forward(hidden_states: Tensor, position_embeddings: Any, *args: Any, **kwargs: Any) -> Any:
        at = (
            kwargs["position_ids"] if "position_ids" in kwargs else torch.arange(hidden_states.shape[1])[None]
        ).float()
        angles = at[..., None] * 10000.0 ** -(torch.arange(0, 16, 2) / 16)
        both = torch.cat((angles, angles), dim=-1)
        return whole(hidden_states, (both.cos(), both.sin()), *args, **kwargs)

    return forward


@pytest.mark.parametrize("layers", [(0, 1), (1,)])
def test_a_layer_that_ignores_what_the_rotary_module_gives_is_refused(layers: tuple[int, ...]) -> None:
    """The module's cos and sin are right, and attention does not use them."""
    model = family("llama")
    before = logits(model)
    for number in layers:
        layer = model.model.layers[number].self_attn
        layer.forward = frozen(layer)
    assert torch.allclose(logits(model), before, atol=1e-4)  # unpatched it is the same model
    refused(model, "yarn", f"must change what attention reads far away, .* layer {layers[0]}", factor=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_that_gives_no_numbers_with_the_patch_is_refused(value: float) -> None:
    """NaN differs from what was there before, and is no change that anybody wants."""
    model = family("llama")
    layer, rotary = model.model.layers[1].self_attn, model.model.rotary_emb
    whole, own = layer.forward, rotary.inv_freq.clone()

    def forward(*args: Any, **kwargs: Any) -> Any:
        answer, *rest = whole(*args, **kwargs)
        return (answer if torch.equal(rotary.inv_freq, own) else answer * value, *rest)

    layer.forward = forward
    refused(model, "yarn", "must give finite numbers, .* layer 1", factor=4)


def test_a_module_that_mixes_layer_types_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding layers that are given the rotation of full ones would be rescaled with them."""
    model = family("gemma3_text")
    rotary = model.model.rotary_emb
    whole = type(rotary).forward
    monkeypatch.setattr(rotary, "forward", lambda x, at, layer_type=None: whole(rotary, x, at, "full_attention"))
    refused(model, "yarn", "must leave alone what it does not name, .* layer 0", factor=4)


def test_a_hook_that_finds_no_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = late_door.Guide.__call__

    def blind(guide: Any, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = {name: value for name, value in kwargs.items() if hasattr(value, "get_seq_length")}
        seen = {name: value for name, value in kwargs.items() if name not in hidden and name != "position_ids"}
        args, found = whole(guide, decoder, args, seen)
        return args, {**found, **hidden}

    monkeypatch.setattr(late_door.Guide, "__call__", blind)
    refused(family("llama"), "self_extend", "must read a token over a cache as it reads it in one pass")


@pytest.mark.parametrize("method", ["self_extend", "dynamic_yarn", "alibi"])
def test_a_hook_that_loses_count_at_the_second_step_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = late_door.Guide.__call__
    steps: list[int] = []

    def losing(guide: Any, decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        args, found = whole(guide, decoder, args, kwargs)
        reading = found[late_door.NAME]
        steps.append(reading.past)
        if len(steps) > 1 and steps[-1] > steps[-2] > 0:  # the second token over one cache
            found[late_door.NAME] = type(reading)(reading.late, torch.zeros_like(reading.positions), 0)
        return args, found

    monkeypatch.setattr(late_door.Guide, "__call__", losing)
    refused(family("llama"), method, "must read a token over a cache as it reads it in one pass")
    assert steps[-1] > steps[-2] > 0


@pytest.mark.parametrize("method", ["yarn", "self_extend", "t5"])
def test_a_thread_that_reads_meanwhile_reads_the_patched_model_and_does_not_disturb_the_proof(method: str) -> None:
    """At the end of every pass of the proof another thread begins to read a text of its own."""
    knobs = {"yarn": {"factor": 4}, "self_extend": {"group_size": 4, "window": 16}}.get(method, {})
    model, ids = family("llama"), torch.arange(3, 103)[None]
    patching = threading.get_ident()
    read: list[Tensor] = []
    threads: list[threading.Thread] = []

    def reading() -> None:
        with torch.no_grad():
            read.append(model(ids).logits)

    def passed(*_: Any) -> None:
        if threading.get_ident() == patching:
            threads.append(threading.Thread(target=reading))
            threads[-1].start()

    with torch.no_grad():
        hook = model.model.norm.register_forward_hook(passed)
        ropescale.patch(model, method, **knobs)
        hook.remove()
        for thread in threads:
            thread.join()
        after = model(ids).logits
    assert ropescale.record(model).proof["layers"] == "0-1"
    assert len(read) == len(threads) >= 4
    assert all(torch.equal(one, after) for one in read)


class Renamed(modeling_llama.LlamaModel):
    """A decoder that takes its cache by a name of its own, as a later version might."""

    def forward(self, input_ids: Any = None, memory: modeling_llama.Cache | None = None, **kwargs: Any) -> Any:
        if memory is not None:
            kwargs[CACHE] = memory
        return super().forward(input_ids, **kwargs)


CACHE = "cache" if "cache" in modeling_llama.LlamaModel.forward.__wrapped__.__code__.co_varnames else "past_key_values"


def test_a_renamed_keyword_is_no_fault() -> None:
    """The hook knows a cache by what it is, so that patched it decodes over its cache as in one pass."""
    model = family("llama")
    decoder = Renamed(model.config).eval()
    decoder.load_state_dict(model.model.state_dict())
    model.model = decoder
    ropescale.patch(model, "self_extend", group_size=4, window=16)
    ids = torch.arange(3, 100)[None]
    with torch.no_grad():
        whole = decoder(ids, use_cache=False).last_hidden_state
        first = decoder(ids[:, :-1], use_cache=True)
        memory = next(value for value in first.values() if hasattr(value, "get_seq_length"))
        last = decoder(ids[:, -1:], memory=memory).last_hidden_state
    assert (last[:, -1] - whole[:, -1]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("blind to padding", "must read a row that is padded on the left as it reads the row alone"),
        ("rows mixed", "must read a row .* as it reads .* alone"),
    ],
)
def test_attention_that_reads_what_it_must_not_is_refused(
    fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = late_door.attend

    def attend(reading: Any, query: Tensor, key: Tensor, value: Tensor, call: Any) -> Tensor:
        if fault == "rows mixed":
            return whole(reading, query, key, (value + value.roll(1, 0)) / 2, call)  # a row alone is itself
        return whole(reading, query, key, value, type(call)(**{**vars(call), "mask": None}))

    monkeypatch.setattr(late_door, "attend", attend)
    model = family("llama")
    with pytest.raises((VerificationError, UnsupportedModelError), match=words):
        ropescale.patch(model, "nope")
    assert ropescale.record(model) is None


@pytest.mark.parametrize("left", ["rope_type", "a buffer"])
def test_a_patch_that_cannot_be_taken_out_is_refused(left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Substitution.undo

    def undo(substitution: Substitution) -> None:
        kept = substitution.rotary.__dict__["attention_scaling"], substitution.rotary._buffers["inv_freq"]
        whole(substitution)
        if left == "a buffer":
            substitution.rotary._buffers["inv_freq"] = kept[1]
        else:
            substitution.rotary.__dict__["attention_scaling"] = kept[0]

    monkeypatch.setattr(Substitution, "undo", undo)
    refused(family("llama"), "yarn", "must leave no trace when it is taken out", factor=4)


def test_on_a_disk_the_proof_is_still_to_come(tmp_path: Path) -> None:
    family("llama").save_pretrained(tmp_path / "source")
    folder = ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "longer", factor=4)
    assert json.loads((folder / "config.json").read_text())["ropescale"]["proof"]["how"] == "when the model is loaded"
    assert ropescale.record(ropescale.load(folder)).proof["how"] == "on this model"


def test_a_record_of_a_version_that_proved_nothing_is_read(tmp_path: Path) -> None:
    ropescale.patch(family("llama"), "yarn", factor=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["ropescale"]["proof"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ropescale.record(ropescale.load(tmp_path)).proof["how"] == "on this model"


def test_a_model_too_large_to_read_takes_the_proof_of_its_class_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llama")
    monkeypatch.setattr(proven, "LARGEST", 1000)
    kinds = {"static": ["LlamaModel"], "late": []}
    monkeypatch.setattr(proven, "table", lambda: {transformers.__version__: kinds})
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: read.append(1))
    ropescale.patch(model, "yarn", factor=4)
    assert (
        ropescale.record(model).proof["how"] == f"on another LlamaModel, with transformers {transformers.__version__}"
    )
    assert not read
    ropescale.unpatch(model)
    ropescale.patch(model, "self_extend")  # of which nothing was shown
    assert ropescale.record(model).proof["how"] == "on this model"
    ropescale.unpatch(model)
    monkeypatch.setattr(proven, "table", lambda: {"5.99.0": kinds})
    ropescale.patch(model, "yarn", factor=4)
    assert ropescale.record(model).proof["how"] == "on this model"
    hook.remove()


def test_what_was_proven_is_of_the_pinned_version_too() -> None:
    """scripts/proven.py writes the table; a class that it names must be one of the families."""
    kinds = proven.table()[transformers.__version__]
    models = [family(name) for name in ("llama", "gemma3_text")]
    decoders = {type(decoder_of(model, rotary_of(model))).__name__ for model in models}
    assert decoders <= set(kinds["static"])
    assert decoders <= set(kinds["late"])


def rotary_of(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


def test_training_mode_gradients_and_hooks_are_left_alone() -> None:
    model = model_of(config_of("llama", attention_dropout=0.5)).train()
    ropescale.patch(model, "self_extend")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    ropescale.unpatch(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3"])
def test_a_patch_reads_at_most_ten_short_passes(name: str) -> None:
    """Ten passes of 16 tokens, all that a patch reads of the model counted."""
    for method in ("yarn", "self_extend"):
        model = family(name)
        read: list[int] = []

        def count(_: nn.Module, args: Any, answer: Tensor, read: list[int] = read) -> None:
            read.append(answer.shape[0] * answer.shape[1])

        model.get_input_embeddings().register_forward_hook(count)
        ropescale.patch(model, method, factor=4)
        assert sum(read) <= 10 * 16, (method, read)


def test_every_method_is_proven_on_the_smallest_model() -> None:
    model = LlamaForCausalLM(config_of("llama"))
    for method in fixed_methods("llama"):
        pairs = ropescale.read_geometry(model.config).pairs
        knobs = {"abf": {"theta": 5e5}, "longrope": {"long_factor": [2.0] * pairs}}
        knobs["proportional"] = {"partial_rotary_factor": 0.5}
        ropescale.patch(model, method, factor=4, **knobs.get(method, {}))
        named = "" if method == "unscaled" else "0-1"  # which claims to change nothing, and is held to it
        assert ropescale.record(model).proof["layers"] == named, method
        ropescale.unpatch(model)


def test_an_untried_version_is_named_once_and_the_proof_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "table", lambda: {"4.0.0": {}, "4.9.0": {}})
    proven.warn_of_untried_version.cache_clear()
    model = family("llama")
    with pytest.warns(UserWarning, match=r"newer than .* \(4.0.0 to 4.9.0\); every patch"):
        ropescale.patch(model, "yarn", factor=4)
    ropescale.unpatch(model)
    with warnings.catch_warnings():  # once in a process
        warnings.simplefilter("error")
        ropescale.patch(model, "yarn", factor=4)
    assert ropescale.record(model).proof["how"] == "on this model"


def test_the_page_of_versions_is_of_those_that_were_tried() -> None:
    """docs/versions.md, the table of what was proven and the environments of scripts/compat.py name the same."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import compat

    figures = json.loads(compat.FIGURES.read_text())
    assert set(compat.PINS) == set(proven.table()) >= set(figures)
    assert compat.PAGE.read_text() == compat.page(figures)
    assert all(one["pins"] == compat.PINS[version] for version, one in figures.items())
    assert sum(one["failed"] for one in figures.values()) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_as_such(value: float) -> None:
    model = family("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = value
    with pytest.raises(VerificationError, match="got NaN or infinity in layer 1 of the unpatched one; restore them"):
        ropescale.patch(model, "yarn", factor=4)
