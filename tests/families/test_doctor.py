"""ropescale doctor: every planted fault is found, its remedy makes it go, and clean checkpoints are left in peace."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NAMES, config_of, family, knobs_for, model_of
from faults import FORM, YARN, checks, edited, patched, scaled, without_value
from safetensors.torch import load_file, save_file

import ropescale
from ropescale import cli
from ropescale.errors import CheckpointError, InvalidArgumentError, UnsupportedModelError

LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {**YARN, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@dataclass(frozen=True)
class Fault:
    """A way in which a checkpoint goes wrong: what breaks it, the check that must find it, what its remedy says."""

    name: str
    check: str
    plant: Callable[[Path], Any]
    cure: Callable[[Path], Any]


def then(*steps: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [step(folder) for step in steps]


def with_frequencies(dtype: torch.dtype, stretch: float) -> Callable[[Path], Any]:
    """Leak frequencies into the weights, as old checkpoints have them."""

    def leak(folder: Path) -> None:
        path = folder / "model.safetensors"
        inv_freq = (1 / (1e4 ** (torch.arange(0, 16, 2) / 16) * stretch)).to(dtype)
        save_file({**load_file(path), "model.rotary_emb.inv_freq": inv_freq}, path, metadata={"format": "pt"})

    return leak


def without_frequencies(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("inv_freq")}
    save_file(kept, path, metadata={"format": "pt"})


def record_edited(**entries: Any) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values["ropescale"] |= entries
        (folder / "config.json").write_text(json.dumps(values))

    return edit


def sharded(folder: Path) -> None:
    """Weights in two files, of which a broken copy brought one."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "kept.bin")
    (folder / "model-00002-of-00002.safetensors").unlink()


def copied_again(folder: Path) -> None:
    (folder / "kept.bin").rename(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()


def beside_yarn(**entries: Any) -> Fault:
    """An entry that Transformers' yarn does not read."""
    (name,) = entries
    cure = scaled(attention_factor=entries[name]) if name == "attn_factor" else scaled()
    return Fault(f"an entry that is ignored: {name}", "ignored-key", scaled(**entries), cure)


LEGACY = {"rope_parameters": None, "rope_theta": 5e5}
FAULTS = [
    Fault(
        "a maximum of null",
        "maximum",
        without_value("max_position_embeddings"),
        edited(max_position_embeddings=64),
    ),
    Fault("no theta in rope_parameters", "theta-lost", scaled(rope_theta=None), scaled()),
    Fault("a theta in words", "theta-lost", scaled(rope_theta="5e5"), scaled()),
    Fault(
        "rope_scaling set beside rope_parameters",
        "theta-lost",
        edited(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        edited(rope_scaling=None, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    ),
    Fault("two thetas", "two-thetas", then(scaled(), edited(rope_theta=1e6)), edited(rope_theta=None)),
    Fault("two types", "two-types", scaled(type="linear"), scaled()),
    Fault("a type that nobody knows", "unknown-type", scaled(rope_type="yarm"), scaled()),
    Fault(
        "the maximum multiplied twice",
        "double-scaling",
        then(scaled(), edited(max_position_embeddings=1024)),
        scaled(),
    ),
    Fault(
        "a patched checkpoint edited again",
        "double-scaling",
        then(
            patched("ntk"),
            edited(rope_parameters={**YARN, "original_max_position_embeddings": 256}, max_position_embeddings=1024),
        ),
        then(edited(ropescale=None), edited(rope_parameters=dict(YARN), max_position_embeddings=256)),
    ),
    Fault(
        "the maximum of a patched checkpoint edited",
        "double-scaling",
        then(patched("ntk"), edited(max_position_embeddings=1024)),
        edited(max_position_embeddings=256),
    ),
    Fault("no original length", "original-length", scaled(original_max_position_embeddings=None), scaled()),
    Fault(
        "two original lengths",
        "original-length",
        then(scaled(), edited(original_max_position_embeddings=128)),
        edited(original_max_position_embeddings=64),
    ),
    Fault("an original length in words", "original-length", scaled(original_max_position_embeddings="64"), scaled()),
    Fault(
        "the maximum left at the original length",
        "maximum",
        then(scaled(), edited(max_position_embeddings=64)),
        scaled(),
    ),
    Fault(
        "a maximum below the original length", "maximum", then(scaled(), edited(max_position_embeddings=32)), scaled()
    ),
    Fault("a maximum below the factor's", "maximum", then(scaled(), edited(max_position_embeddings=128)), scaled()),
    Fault(
        "a maximum that is a float",
        "maximum",
        edited(max_position_embeddings=128.0),
        edited(max_position_embeddings=128),
    ),
    beside_yarn(attn_factor=1.2),
    beside_yarn(low_freq_factor=1.0),
    beside_yarn(mscale=0.7),
    Fault(
        "dynamic with an original length",
        "ignored-key",
        scaled(rope_type="dynamic"),
        scaled(rope_type="dynamic", original_max_position_embeddings=None),
    ),
    Fault(
        "a factor beside the default type",
        "ignored-key",
        scaled(rope_type="default", original_max_position_embeddings=None),
        edited(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    ),
    Fault("a factor below 1", "bad-number", scaled(factor=0.25), scaled()),
    Fault("an attention factor of 0", "bad-number", scaled(attention_factor=0.0), scaled()),
    Fault(
        "beta_fast below beta_slow", "bad-number", scaled(beta_fast=1, beta_slow=32), scaled(beta_fast=32, beta_slow=1)
    ),
    Fault("llama3 without its bounds", "missing-key", scaled(rope_type="llama3"), edited(rope_parameters=LLAMA3)),
    Fault(
        "a longrope list of negative numbers",
        "bad-number",
        edited(rope_parameters={**LONGROPE, "long_factor": [-2.0] * 8}, max_position_embeddings=256),
        edited(rope_parameters=LONGROPE),
    ),
    Fault(
        "a longrope list of the wrong length",
        "rope-parameters",
        edited(
            rope_parameters={**LONGROPE, "long_factor": [2.0] * 6, "short_factor": [1.0] * 6},
            max_position_embeddings=256,
        ),
        edited(rope_parameters=LONGROPE),
    ),
    Fault(
        "a share of the head above 1",
        "rope-parameters",
        scaled(partial_rotary_factor=2.0),
        scaled(),
    ),
    Fault(
        "no record of a method that acts in attention",
        "record",
        then(patched("rerope"), edited(ropescale=None)),
        edited(rope_parameters={"rope_type": "default", "rope_theta": 1e4}, max_position_embeddings=64),
    ),
    Fault("a damaged record", "record", then(patched(), record_edited(method="yran")), record_edited(method="yarn")),
    Fault(
        "a tokenizer that stops at the old length",
        "short-limit",
        then(scaled(), edited("tokenizer_config.json", model_max_length=64)),
        edited("tokenizer_config.json", model_max_length=256),
    ),
    Fault(
        "generation that stops at the old length",
        "short-limit",
        then(scaled(), edited("generation_config.json", max_length=64)),
        edited("generation_config.json", max_length=256),
    ),
    Fault(
        "frequencies of half precision among the weights",
        "low-precision",
        with_frequencies(torch.bfloat16, 1.0),
        without_frequencies,
    ),
    Fault(
        "frequencies of another scaling among the weights",
        "saved-frequencies",
        with_frequencies(torch.float32, 4.0),
        without_frequencies,
    ),
    Fault("a shard that was not copied", "missing-weights", sharded, copied_again),
    Fault(
        "weights cut off in the middle",
        "missing-weights",
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:900]),
        lambda folder: family("llama").save_pretrained(folder),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found_and_its_remedy_makes_it_go(
    fault: Fault, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault.plant(checkpoint)
    found = ropescale.diagnose(checkpoint)
    assert checks(found) == {fault.check}
    assert [str(one) for one in found if not FORM.fullmatch(str(one))] == []
    assert cli.main(["doctor", str(checkpoint)]) == 1
    assert capsys.readouterr().out.startswith(f"{fault.check}: ")
    fault.cure(checkpoint)
    assert ropescale.diagnose(checkpoint) == []
    assert cli.main(["doctor", str(checkpoint)]) == 0
    said, after = capsys.readouterr().out.splitlines()
    assert said == f"{checkpoint}: nothing found in its files; ropescale.diagnose(model) looks at a loaded model"
    assert after == f"next: ropescale inspect {checkpoint}"


def test_an_old_config_without_a_theta_has_the_default_of_its_family(checkpoint: Path) -> None:
    edited(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0})(checkpoint)
    assert ropescale.diagnose(checkpoint) == []


def saved(method: str, **arguments: Any) -> Callable[[Path], Any]:
    """A checkpoint that ropescale patched and saved."""

    def save(folder: Path) -> None:
        model = family("llama")
        pairs = ropescale.read_geometry(model.config).pairs
        ropescale.patch(model, method, factor=4, **knobs_for(method, pairs), **arguments).save_pretrained(folder)

    return save


def built(name: str, **changes: Any) -> Callable[[Path], Any]:
    return lambda folder: model_of(config_of(name, **changes)).save_pretrained(folder)


def rescaled(folder: Path) -> None:
    family("llama").save_pretrained(folder.with_name("before"))
    folder.rmdir()
    ropescale.rescale_checkpoint(folder.with_name("before"), folder, factor=4)


# As they are published: Llama 3.1 states a factor that is not its ratio of lengths, Phi-3 states no factor
CLEAN: dict[str, Callable[[Path], Any]] = {
    "Llama": built("llama"),
    "Llama 3.1": built("llama", rope_parameters={**LLAMA3, "factor": 8.0}, max_position_embeddings=1024),
    "Qwen with yarn": built("qwen2", rope_parameters=YARN, max_position_embeddings=256),
    "Phi-3": built(
        "phi3",
        rope_parameters={key: value for key, value in LONGROPE.items() if key != "factor"},
        max_position_embeddings=256,
    ),
    "gpt-oss": built(
        "gpt_oss",
        rope_parameters={**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        max_position_embeddings=256,
    ),
    "Gemma 3": built("gemma3_text"),
    "OLMo 3": built("olmo3"),
    "DeepSeek V3": built("deepseek_v3"),
    "StableLM, a part of the head": built("stablelm"),
    "Qwen3.5, mRoPE": built("qwen3_5_text"),
    "Falcon-H1": built("falcon_h1"),
    "GPT-NeoX": built("gpt_neox"),
    "linear": built("llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "dynamic": built("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "an old config": then(built("llama"), edited(**LEGACY)),
    "an old config with scaling": then(
        built("llama"), edited(**LEGACY, rope_scaling={"type": "linear", "factor": 2.0}, max_position_embeddings=128)
    ),
    "saved yarn": saved("yarn"),
    "saved ntk": saved("ntk"),
    "saved longrope": saved("longrope"),
    "saved power": saved("power"),
    "saved with resonance": saved("yarn", resonance=True),
    "saved rerope": saved("rerope"),
    "saved dynamic_ntk": saved("dynamic_ntk"),
    "rescaled": rescaled,
}


NEEDS = {"StableLM, a part of the head": "stablelm", "Qwen3.5, mRoPE": "qwen3_5_text"}  # what early versions lack


@pytest.mark.parametrize("name", [name for name in CLEAN if NEEDS.get(name, "llama") in NAMES])
def test_a_clean_checkpoint_is_left_in_peace(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    CLEAN[name](folder)
    assert [str(finding) for finding in ropescale.diagnose(folder)] == []


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer.model.v3", "vocab.txt", "qwen.tiktoken"])
def test_a_tokenizer_that_is_missing_beside_weights_is_found(
    place: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert cli.main(["doctor", str(checkpoint)]) == 1
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("no-tokenizer: checkpoint: a tokenizer must lie beside the weights to evaluate, train or ")
    assert FORM.fullmatch(said)
    (checkpoint / place).write_text("{}")
    assert cli.main(["doctor", str(checkpoint)]) == 0
    (checkpoint / place).unlink()
    (checkpoint / "model.safetensors").unlink()  # a config that is looked at is served by nobody
    assert cli.main(["doctor", str(checkpoint)]) == 0


def test_the_embedded_checkpoint_is_clean() -> None:
    assert ropescale.diagnose("tiny") == []


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="must be the folder of a checkpoint or of an adapter, got no folder"):
        ropescale.diagnose(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"must hold a config\.json, got none or an empty one"):
        ropescale.diagnose(tmp_path)
    with pytest.raises(InvalidArgumentError, match="must be a path, a hub id, a short name or a loaded model, got 7"):
        ropescale.diagnose(7)
    edited(model_type="bert")(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"^model type 'bert': not a family"):
        ropescale.diagnose(tmp_path)
    assert cli.main(["doctor", str(tmp_path / "nowhere")]) == 2
    assert "must be the folder of a checkpoint" in capsys.readouterr().err


def test_nothing_is_changed_by_a_look(checkpoint: Path) -> None:
    scaled(attn_factor=2.0)(checkpoint)
    before = {path: path.read_bytes() for path in checkpoint.rglob("*")}
    ropescale.diagnose(checkpoint)
    assert {path: path.read_bytes() for path in checkpoint.rglob("*")} == before
    model = family("llama")
    config = copy.deepcopy(model.config.to_dict())
    ropescale.diagnose(model)
    assert model.config.to_dict() == config
