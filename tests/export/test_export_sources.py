"""What is exported: a folder, a live model, and adapters of either kind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from exports import (
    IGNORED,
    TINY,
    checkpoint,
    often,
    recorded,
    require_exact,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import ropescale
from ropescale.errors import (
    AlreadyPatchedError,
    CheckpointError,
    ExportError,
    InvalidArgumentError,
)
from ropescale.export import export, verify

pytestmark = IGNORED


def test_a_folder_saved_patched_is_exported_as_it_is(tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), "power", factor=4, k=0.2)
    model.save_pretrained(tmp_path / "patched")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "patched")
    export(tmp_path / "patched", tmp_path / "model.gguf", to="gguf")
    require_exact(tmp_path / "model.gguf", "llama.cpp", str(tmp_path / "patched"))
    with pytest.raises(ropescale.RopescaleError, match="already scaled, got a ropescale record of 'power'"):
        export(tmp_path / "patched", tmp_path / "b.gguf", to="gguf", method="yarn", factor=4)
    export(tmp_path / "patched", tmp_path / "b.gguf", to="gguf", method="yarn", factor=4, existing="replace")
    require_exact(tmp_path / "b.gguf", "llama.cpp", "tiny")


def test_a_live_model_is_exported(tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), "by_parts", factor=4)
    with pytest.raises(InvalidArgumentError, match=r"^tokenizer: must be given for a live model"):
        export(model, tmp_path / "model.gguf", to="gguf")
    export(model, tmp_path / "model.gguf", to="gguf", tokenizer=AutoTokenizer.from_pretrained(TINY))
    require_exact(tmp_path / "model.gguf", "llama.cpp", "tiny")
    with pytest.raises(CheckpointError, match=r"^reference: must be the model that .* was made from, got none"):
        verify(tmp_path / "model.gguf", engine="llama.cpp")
    export(model, tmp_path / "folder", to="vllm")
    assert ropescale.record(ropescale.load(tmp_path / "folder")).method == "by_parts"


def test_a_checkpoint_that_was_published_scaled_is_exported_as_it_is(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    source = checkpoint(tmp_path / "source", rope_parameters=rope, max_position_embeddings=512)
    done = export(source, tmp_path / "model.gguf", to="gguf")
    assert "rope_type llama3 as one divisor per pair" in str(done)
    verdict = verify(tmp_path / "model.gguf", engine="llama.cpp", reference=source)
    assert verdict.exact, str(verdict)
    assert [check.agreed for check in verdict.checks] == [16, 16]


def adapted(folder: Path, base: Path) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_is_merged(llama: Path, tmp_path: Path) -> None:
    adapter = adapted(tmp_path / "adapter", llama)
    export(llama, tmp_path / "out", to="transformers", method="yarn", factor=4, adapter=adapter)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    plain = load_file(llama / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights[name], plain[name])
    require_exact(tmp_path / "out", "transformers", str(llama), adapter=adapter)
    export(llama, tmp_path / "model.gguf", to="gguf", method="yarn", factor=4, adapter=adapter)
    require_exact(tmp_path / "model.gguf", "llama.cpp", str(llama), adapter=adapter)
    require_exact(tmp_path / "model.gguf", "llama.cpp", str(llama))  # which says itself what is in it
    served = export(llama, tmp_path / "served", to="vllm", method="yarn", factor=4, adapter=adapter)
    assert served.overrides == ""  # no flag gives the unmodified checkpoint these weights


RECORDED: dict[str, tuple[dict[str, Any], str]] = {
    "yarn": ({"method": "yarn", "factor": 4, "beta_fast": 16.0}, ""),
    "yarn with norms trained beside": ({"method": "yarn", "factor": 4}, "norm"),
    "ntk": ({"method": "ntk", "target_length": 512}, ""),
}


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(1, 401)[None] * 5 % 1024).logits
    return found


@pytest.mark.parametrize("case", often(RECORDED, "yarn", "yarn with norms trained beside"))
def test_an_adapter_that_carries_its_record_is_exported_as_it_was_trained(case: str, tmp_path: Path) -> None:
    arguments, beside = RECORDED[case]
    trained = recorded(tmp_path / "adapter", "tiny", beside, **arguments)
    expected = logits_of(trained)
    done = export("tiny", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter")
    assert (done.method, done.serves) == (f"{arguments['method']} x4", 512)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5)
    assert ropescale.record(plain) == ropescale.record(trained)
    assert torch.equal(logits_of(ropescale.load(tmp_path / "out")), logits_of(plain))
    unadapted = ropescale.patch(ropescale.load("tiny"), **arguments)
    assert (logits_of(unadapted) - expected).abs().max() > 1e-2
    require_exact(tmp_path / "out", "transformers", "tiny", adapter=tmp_path / "adapter")
    export("tiny", tmp_path / "model.gguf", to="gguf", adapter=tmp_path / "adapter")
    require_exact(tmp_path / "model.gguf", "llama.cpp", "tiny", adapter=tmp_path / "adapter")
    assert verify(tmp_path / "model.gguf", engine="llama.cpp").exact, "it says itself what is in it"


def test_the_adapter_s_record_is_what_an_export_is_held_against(tmp_path: Path) -> None:
    recorded(tmp_path / "adapter", "tiny", method="yarn", factor=4)
    export("tiny", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter")
    (tmp_path / "adapter" / "ropescale.json").rename(tmp_path / "ropescale.json")
    with pytest.warns(UserWarning, match="load it with ropescale.load_adapter"):  # PEFT, of an adapter without it
        export("tiny", tmp_path / "wrong", to="transformers", method="linear", factor=4, adapter=tmp_path / "adapter")
    (tmp_path / "ropescale.json").rename(tmp_path / "adapter" / "ropescale.json")
    for name, right in (("out", True), ("wrong", False)):
        verdict = verify(tmp_path / name, engine="transformers", reference="tiny", adapter=tmp_path / "adapter")
        assert verdict.exact is right, str(verdict)


def test_a_base_that_was_saved_patched_is_taken_where_the_record_is_the_same(tmp_path: Path) -> None:
    expected = logits_of(recorded(tmp_path / "adapter", "tiny", method="yarn", factor=4))
    for factor in (4, 8):
        ropescale.patch(ropescale.load("tiny"), "yarn", factor=factor).save_pretrained(tmp_path / f"x{factor}")
    export(tmp_path / "x4", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5)
    require_exact(tmp_path / "out", "transformers", str(tmp_path / "x4"), adapter=tmp_path / "adapter")
    with pytest.raises(AlreadyPatchedError, match=r"^base: must be unpatched, or patched as the adapter .*, got"):
        export(tmp_path / "x8", tmp_path / "other", to="transformers", adapter=tmp_path / "adapter")
    assert not (tmp_path / "other").exists()


def test_an_adapter_of_a_method_that_acts_in_attention_is_exported_as_any_other(tmp_path: Path) -> None:
    recorded(tmp_path / "adapter", "tiny", method="yarn", factor=4, log_n=True)
    with pytest.raises(ExportError, match=r"^yarn: must be a method of fixed frequencies to be exported"):
        export("tiny", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter")
    done = export("tiny", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter", lossy=True)
    assert done.approximation.startswith("yarn at every length in the place of yarn: queries multiplied by")
    verdict = verify(tmp_path / "out", engine="transformers", reference="tiny", adapter=tmp_path / "adapter")
    assert not verdict.exact  # held against the model with log-n


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "linear", "factor": 4}, "method: {rule}, got 'linear'; leave out method, factor, {remedy}"),
        ({"method": "yarn", "factor": 4}, "method: {rule}, got 'yarn'; leave out method, factor, {remedy}"),
        ({"target_length": 512}, "target_length: {rule}, got 512; leave out target_length, {remedy}"),
        ({"log_n": True}, "log_n: {rule}, got True; leave out log_n, {remedy}"),
        ({"existing": "replace"}, "existing: {rule}, got 'replace'; leave out existing, {remedy}"),
        ({"beta_fast": 16}, "beta_fast: {rule}, got 16; leave out beta_fast, {remedy}"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_method_beside_an_adapter_that_carries_its_record_is_refused(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trained = recorded(tmp_path / "adapter", "tiny", method="yarn", factor=4)
    with pytest.raises(InvalidArgumentError) as refusal:
        export("tiny", tmp_path / "out", to="transformers", adapter=tmp_path / "adapter", **arguments)
    rule = (
        f"must be left out with an adapter that carries how its base was patched "
        f"({ropescale.record(trained).method_instance()}, 512 tokens)"
    )
    assert str(refusal.value) == said.format(rule=rule, remedy="and the export is patched as in training")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_is_no_adapter_of_the_model_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^adapter: must be a folder with a PEFT adapter \(adapter_config\.json\)"
    ):
        export(llama, tmp_path / "out", to="transformers", method="yarn", factor=4, adapter=tmp_path)
    adapter = adapted(tmp_path / "adapter", llama)
    with pytest.raises(CheckpointError, match=r"adapter: the adapter's weights must fit the base, got RuntimeError"):
        export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4, adapter=adapter)
    assert not (tmp_path / "out").exists()
