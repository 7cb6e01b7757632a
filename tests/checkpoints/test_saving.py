"""Saved patched models: loaded by plain Transformers, and brought back by ropescale.load."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    FIXED,
    NAMES,
    TEXT_CLASSES,
    config_of,
    family,
    fingerprint,
    fixed_methods,
    in_turn,
    knobs_for,
    logits,
    model_of,
    opened,
)
from transformers import AutoModelForCausalLM

import ropescale
from ropescale.errors import CheckpointError

# Mixtures of experts are the slowest to save and load, and have nothing of their own here
MIXTURES = (
    "aria_text",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "beam",
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "dots3_note_text",
    "flint",
    "gpt_oss",
    "hy_v4",
    "kolibri1",
    "laguna",
    "llama4_text",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax_m3_vl_text",
    "qwen3_next",
    "qwen4_exp_text",
    "solar_open",
    "zaya",
)
# the text decoders of vision-language models, which the automatic classes load with all of it, have nothing either
RELOADED = [name for name in NAMES if "moe" not in name and name not in (*MIXTURES, *TEXT_CLASSES)]

STRANGER = """
import json, sys, warnings
from pathlib import Path

sys.modules["ropescale"] = None  # as where it is not installed: importing it raises ImportError
try:
    import ropescale
except ImportError:
    pass
else:
    raise SystemExit("ropescale could be imported")

import torch
import transformers
from transformers import AutoModelForCausalLM

transformers.utils.logging.disable_progress_bar()
root = Path(sys.argv[1])
ids = torch.load(root / "ids.pt")
differences = {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(input_ids=ids).logits
    differences[folder.name] = (found - torch.load(folder / "logits.pt")).abs().max().item()
(root / "differences.json").write_text(json.dumps(differences))
"""


# families with sliding windows say that all their layers are rescaled; test_patching.py checks that they do
pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")


def patched_family(name: str, method: str) -> torch.nn.Module:
    model = family(name)
    pairs = ropescale.read_geometry(model.config).pairs
    return ropescale.patch(model, method, factor=4, **knobs_for(method, pairs))


def one_in_turn(name: str) -> list[str]:
    """One method of a family; each method is that of several families."""
    methods = fixed_methods(name)
    return [methods[RELOADED.index(name) % len(methods)]]


def reloaded(root: Path, methods: Callable[[str], Iterable[str]]) -> dict[str, float]:
    """Family and method -> the largest difference between the logits here and in a process without ropescale."""
    ids = torch.randint(3, 128, (1, 160), generator=torch.Generator().manual_seed(1))
    torch.save(ids, root / "ids.pt")
    for name in RELOADED:
        model = family(name)
        pairs = ropescale.read_geometry(model.config).pairs
        for method in methods(name):
            patch = ropescale.patched(model, method, factor=4, **knobs_for(method, pairs))
            with warnings.catch_warnings(action="ignore"), patch:
                model.save_pretrained(root / f"{name}-{method}")
                torch.save(logits(model), root / f"{name}-{method}" / "logits.pt")
    subprocess.run([sys.executable, "-c", STRANGER, str(root)], check=True, cwd=root, timeout=1200)
    found = json.loads((root / "differences.json").read_text())
    shutil.rmtree(root)
    return found


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return reloaded(tmp_path_factory.mktemp("saved"), one_in_turn)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", RELOADED)
def test_reloads_in_a_process_without_ropescale(name: str, differences: dict[str, float]) -> None:
    found = {method: differences[f"{name}-{method}"] for method in one_in_turn(name)}
    assert {method: value for method, value in found.items() if value > 1e-5} == {}


@pytest.mark.slow
def test_every_method_of_every_family_reloads_in_a_process_without_ropescale(tmp_path: Path) -> None:
    found = reloaded(tmp_path, fixed_methods)
    assert len(found) == sum(len(list(fixed_methods(name))) for name in RELOADED)
    assert {name: value for name, value in found.items() if value > 1e-5} == {}


# test_rescale.py has those between saved, loaded and unpatched
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", in_turn(NAMES, 0, 2))
def test_load_brings_it_back_patched_and_unpatch_takes_it_out(name: str, tmp_path: Path) -> None:
    original = family(name)
    before, state = logits(original), fingerprint(original)
    original.save_pretrained(tmp_path / "original")
    model = patched_family(name, "yarn")
    model.save_pretrained(tmp_path / "patched")
    loaded = ropescale.load(str(tmp_path / "patched"))
    assert ropescale.record(loaded) == ropescale.record(model)
    assert torch.equal(logits(loaded), logits(model))
    ropescale.unpatch(loaded)
    assert torch.equal(logits(loaded), before)
    assert fingerprint(loaded) == state
    plain = opened(tmp_path / "original")
    ours, theirs = ({**one.config.to_dict(), "_name_or_path": ""} for one in (loaded, plain))
    assert ours == theirs


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("modifier", [{}, {"resonance": True}, {"clipped": 4}], ids=["plain", "resonance", "clipped"])
def test_load_gives_the_same_logits_for_every_method(method: str, modifier: dict[str, Any], tmp_path: Path) -> None:
    model = family("llama")
    ropescale.patch(model, method, factor=4, **modifier, **knobs_for(method))
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert ropescale.record(loaded) == ropescale.record(model)
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(stranger), logits(model))
    assert ropescale.record(stranger) == ropescale.record(model)


def test_a_checkpoint_without_a_record_loads_as_it_is(tmp_path: Path) -> None:
    model = family("llama")
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(str(tmp_path))
    assert ropescale.record(loaded) is None
    assert torch.equal(logits(loaded), logits(model))


def test_load_passes_its_keywords_on(tmp_path: Path) -> None:
    patched_family("llama", "yarn").save_pretrained(tmp_path)
    loaded = ropescale.load(str(tmp_path), dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert ropescale.record(loaded).method == "yarn"


@pytest.mark.parametrize("method", ["ntk", "yarn"])
def test_a_saved_patch_is_never_scaled_twice_by_accident(method: str, tmp_path: Path) -> None:
    """A scaled theta (ntk) looks like a pretrained one: the record is what tells."""
    patched_family("llama", method).save_pretrained(tmp_path)
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ropescale.RopescaleError, match="already scaled, got a ropescale record"):
        ropescale.patch(stranger, "linear", factor=2)
    ropescale.patch(stranger, "linear", factor=2, existing="replace")
    fresh = patched_family("llama", "yarn")
    ropescale.unpatch(fresh)
    assert torch.equal(logits(stranger), logits(ropescale.patch(fresh, "linear", factor=2)))
    assert ropescale.record(stranger).original_length_source == "record"


def test_config_without_head_dim_reloads(tmp_path: Path) -> None:
    """Transformers' yarn breaks on head_dim None, which Mixtral's config has by default."""
    model = model_of(config_of("mixtral", head_dim=None))
    ropescale.patch(model, "yarn", factor=4)
    model.save_pretrained(tmp_path)
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (logits(stranger) - logits(model)).abs().max() < 1e-5
    ropescale.unpatch(model)
    assert model.config.head_dim is None


def test_an_edited_config_is_told_from_its_record(tmp_path: Path) -> None:
    patched_family("llama", "yarn").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["max_position_embeddings"] = 999
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.max_position_embeddings must be what the ropescale record"):
        ropescale.load(str(tmp_path))


def test_a_composed_patch_comes_back(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    model = model_of(config_of("llama", rope_parameters=rope, max_position_embeddings=256))
    ropescale.patch(model, "yarn", factor=2, existing="compose")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(ropescale.load(str(tmp_path))), logits(model))
    stranger = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (logits(stranger) - logits(model)).abs().max() < 1e-5


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["no config", "half a config", "an empty config"])
def test_a_folder_without_a_checkpoint_is_refused_in_words(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as refusal:
        ropescale.load(tmp_path)
    said = str(refusal.value)
    if content == "{":
        assert said.startswith(f"{tmp_path / 'config.json'}: must be a JSON file, got JSONDecodeError: ")
        assert said.endswith("; restore the file that belongs to the checkpoint")
        return
    if content is not None:
        assert said.startswith(f"{tmp_path}: must have a config.json that Transformers ")
        assert said.endswith("; repair it")
        return
    assert said.startswith(f"{tmp_path}: must be a folder with a Transformers checkpoint, or a hub id that can be ")
    assert said.endswith("; check the path or the connection")
