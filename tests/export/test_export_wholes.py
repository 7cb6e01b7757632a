"""Models that see images, exported by their text decoder's fields: all other entries and weights as they were."""

import copy
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import IGNORED, config_in, in_mlx, in_vllm, recorded, require_exact, whole_checkpoint
from families import WHOLES, config_of_whole, logits, model_of_whole
from transformers import AutoConfig, AutoModelForImageTextToText, ColPaliConfig

import ropescale
from ropescale.errors import ExportError, UnsupportedModelError
from ropescale.export import export, verify
from ropescale.export.engines import vllm
from ropescale.export.source import source_of
from ropescale.export.weights import loaded
from ropescale.families.parts import parts_of, text_of
from ropescale.families.today import todays_spectrum
from ropescale.methods import YaRN
from ropescale.request import Request
from ropescale.serving.readings import meaning_of, standing

pytestmark = IGNORED
ENGINES = ("mlx", "sglang", "transformers", "vllm")
# What an engine's class of the text does not read
REFUSED = {
    **{("mlx", name): "MLX-LM reads one rotation for all layers" for name in ("gemma3", "gemma4", "gemma4_unified")},
    ("mlx", "qwen3_vl_moe"): "for a class there that reads theta alone",
    **{("sglang", name): "for a class there that reads theta alone" for name in ("gemma3", "gemma4")},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A random whole of the kind that is asked for."""
    return whole_checkpoint(tmp_path_factory.mktemp("whole") / request.param, request.param)


def weights_in(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.safetensors*")}


def without_rotation(config: dict[str, Any]) -> dict[str, Any]:
    """All entries but those of the text's rotation, of its lengths, and of what an export says of itself."""
    rotation = ("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings")
    ours = (*rotation, "max_position_embeddings", "ropescale", "ropescale_export", "_name_or_path")
    kept = copy.deepcopy(config)
    for entries in (kept, kept["text_config"]):
        for name in ours:
            entries.pop(name, None)
    return kept


@pytest.mark.sampled(2)
@pytest.mark.parametrize("to", ENGINES)
@pytest.mark.parametrize("folder", WHOLES, indirect=True)
def test_the_text_alone_is_told_and_everything_else_stays(to: str, folder: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out", folder.name
    if why := REFUSED.get((to, name)):
        with pytest.raises(ExportError, match=why):
            export(folder, out, to=to, method="yarn", factor=4)
        assert not out.exists()
        return
    done = export(folder, out, to=to, method="yarn", factor=4)
    assert (done.serves, done.lacking) == (512, "")
    before, after = config_in(folder), config_in(out)
    if to == "mlx":  # which looks for it there alone
        assert after["text_config"].setdefault("tie_word_embeddings", None) == before["tie_word_embeddings"]
        before["text_config"]["tie_word_embeddings"] = before["tie_word_embeddings"]
    assert without_rotation(after) == without_rotation(before)
    assert weights_in(out) == weights_in(folder) != {}
    assert (out / "preprocessor_config.json").read_bytes() == (folder / "preprocessor_config.json").read_bytes()
    text = after["text_config"]
    assert text["max_position_embeddings"] == 512
    rope, plain = text["rope_parameters"], before["text_config"]["rope_parameters"]
    main, was = (one.get("full_attention", one) for one in (rope, plain))
    assert (main["rope_type"], main["factor"]) == ("yarn", 4)
    for entry in ("mrope_section", "mrope_interleaved", "partial_rotary_factor", "rope_theta"):
        assert main.get(entry) == was.get(entry)
    if done.overrides:  # which an engine merges into the config of the unmodified checkpoint
        told = json.loads(done.overrides.split("'")[1])
        assert told == {"text_config": {"rope_parameters": rope, "max_position_embeddings": 512}}


@pytest.mark.parametrize("folder", WHOLES, indirect=True)
def test_llama_cpp_is_told_no_model_that_sees(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refusal:
        export(folder, tmp_path / "out.gguf", to="gguf", method="yarn", factor=4)
    assert str(refusal.value) == (
        f"{folder.name}: a model must be a text decoder alone to be exported to llama.cpp, got a "
        f"{WHOLES[folder.name][0]} with what sees or hears beside it; write two files with llama.cpp's own converter, "
        f"and then patch_gguf that of the text"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sampled(4)
@pytest.mark.parametrize("folder", WHOLES, indirect=True)
def test_transformers_computes_what_the_patched_model_computes(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", to="transformers", method="yarn", factor=4)
    require_exact(tmp_path / "out", "transformers", str(folder))
    whole = AutoModelForImageTextToText.from_pretrained(folder)
    ropescale.patch(whole, "yarn", factor=4)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")  # with what sees, whatever the verb loads
    assert torch.equal(logits(again, 300), logits(whole, 300))


def test_a_wrong_rotation_of_the_text_is_found(tmp_path: Path) -> None:
    source = whole_checkpoint(tmp_path / "llava", "llava")
    export(source, tmp_path / "out", to="transformers", method="yarn", factor=4)
    config = config_in(tmp_path / "out")
    config["text_config"]["rope_parameters"]["factor"] = 3.0
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert not verify(tmp_path / "out", engine="transformers", reference=str(source)).exact


def test_a_patched_one_is_exported_from_disk_and_live(tmp_path: Path) -> None:
    source = whole_checkpoint(tmp_path / "source", "qwen3_vl")
    whole = ropescale.patch(AutoModelForImageTextToText.from_pretrained(source), "yarn", factor=4)
    expected = logits(whole, 300)
    whole.save_pretrained(tmp_path / "patched")
    export(tmp_path / "patched", tmp_path / "disk", to="vllm")
    export(whole, tmp_path / "live", to="vllm")
    for out in (tmp_path / "disk", tmp_path / "live"):
        loaded = ropescale.load(out)
        assert ropescale.record(loaded) == ropescale.record(whole)
        assert torch.equal(logits(loaded, 300), expected)
        assert without_rotation(config_in(out)) == without_rotation(config_in(tmp_path / "patched"))


def test_old_entries_of_the_text_beside_it_are_no_second_rotation(tmp_path: Path) -> None:
    """As in published configs of Qwen2.5-VL, which state the text's entries at the top too."""
    source = whole_checkpoint(tmp_path / "source", "qwen2_5_vl")
    config = config_in(source)
    text = config["text_config"]
    config |= {"max_position_embeddings": 128, "rope_scaling": {"type": "mrope", "mrope_section": [12, 10, 10]}}
    config["rope_theta"] = text["rope_parameters"]["rope_theta"]
    (source / "config.json").write_text(json.dumps(config))
    export(source, tmp_path / "out", to="transformers", method="yarn", factor=4)
    written = config_in(tmp_path / "out")
    assert not {"rope_scaling", "rope_theta", "rope_parameters"} & written.keys()
    assert written.get("max_position_embeddings", 512) == 512
    require_exact(tmp_path / "out", "transformers", str(source))


def test_an_adapter_of_the_text_alone_says_what_it_leaves_behind(tmp_path: Path) -> None:
    """Qwen3.5 is loaded, and so trained, as the language model that Transformers has of its text."""
    source = whole_checkpoint(tmp_path / "source", "qwen3_5")
    recorded(tmp_path / "adapter", source, method="yarn", factor=4)
    done = export(source, tmp_path / "out", to="transformers", adapter=tmp_path / "adapter")
    assert (
        done.lacking == "nothing that sees or hears in the export, since the adapter is one of the text decoder alone"
    )
    assert config_in(tmp_path / "out")["model_type"] == "qwen3_5_text"
    verdict = verify(
        tmp_path / "out", engine="transformers"
    )  # which reads tokenizers by the family, the text's or not
    assert all(check.agreed == check.steps and check.worst < 1e-4 for check in verdict.checks), str(verdict)


# ---- 1M tokens, as Qwen publishes it

# "Processing Ultra-Long Texts" of the model cards of Qwen3.5 and Qwen3.6 (huggingface.co/Qwen): the `rope_parameters`
# of `text_config`, and the same for --hf-overrides of vLLM and --json-model-override-args of SGLang
PUBLISHED = {
    "mrope_interleaved": True,
    "mrope_section": [11, 11, 10],
    "rope_type": "yarn",
    "rope_theta": 10000000,
    "partial_rotary_factor": 0.25,
    "factor": 4.0,
    "original_max_position_embeddings": 262144,
}
# The defaults of the type, which we state and the card leaves out
DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}


def long_qwen(folder: Path) -> Path:
    """One of the published rotation: heads of 256, a quarter of which turns, pretrained for 262,144 tokens."""
    plain = {name: PUBLISHED[name] for name in ("rope_theta", "partial_rotary_factor", "mrope_section")}
    rope = {**plain, "mrope_interleaved": True, "rope_type": "default"}
    config = config_of_whole("qwen3_5", head_dim=256, max_position_embeddings=262144, rope_parameters=rope)
    model_of_whole(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("to", ["transformers", "vllm", "sglang"])
def test_the_published_spelling_of_a_million_tokens_is_what_is_written(to: str, tmp_path: Path) -> None:
    source = long_qwen(tmp_path / "source")
    done = export(source, tmp_path / "out", to=to, method="yarn", factor=4)
    text = config_in(tmp_path / "out")["text_config"]
    assert text["rope_parameters"] == PUBLISHED | DEFAULTS
    assert text["max_position_embeddings"] == done.serves == 1048576  # the card serves 1,010,000 of them
    if to != "transformers":
        told = json.loads(done.overrides.split("'")[1])["text_config"]
        assert told["rope_parameters"] == PUBLISHED | DEFAULTS


def test_a_patched_one_is_what_transformers_makes_of_the_published_entries(tmp_path: Path) -> None:
    """Built from the card's own entries, without the defaults that we state."""
    source = long_qwen(tmp_path / "source")
    config = AutoConfig.from_pretrained(source)
    config.text_config.rope_parameters = dict(PUBLISHED)
    native = model_of_whole(config)
    model = ropescale.patch(AutoModelForImageTextToText.from_pretrained(source), "yarn", factor=4)
    ours, theirs = (one.model.language_model.rotary_emb for one in (model, native))
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling
    assert torch.equal(logits(model, 300), logits(native, 300))
    text = text_of(model.config)
    spectrum, factor = todays_spectrum(parts_of(text)[0])
    assert (len(spectrum), factor) == (32, pytest.approx(1.13862944))


# ---- what servers read of pairs that go by an image's coordinates


@pytest.mark.parametrize("method", ["linear", "by_parts", "llama3", "power"])
@pytest.mark.parametrize("to", ["vllm", "sglang"])
def test_a_server_rotates_by_coordinates_with_theta_and_yarn_alone(to: str, method: str, tmp_path: Path) -> None:
    model_of_whole(config_of_whole("qwen3_vl")).save_pretrained(tmp_path / "source")
    with pytest.raises(
        ExportError, match="reads rope_type default and yarn alone; nearest that it holds exactly: ntk"
    ):
        export(tmp_path / "source", tmp_path / "out", to=to, method=method, factor=4)
    export(tmp_path / "source", tmp_path / "theta", to=to, method="ntk", factor=4)


@pytest.mark.parametrize(("name", "betas"), [("qwen2_vl", (64, 8)), ("qwen2_5_vl", (64, 8)), ("qwen3_vl", (16, 2))])
def test_vllm_is_told_the_ramp_that_was_meant(name: str, betas: tuple[int, int], tmp_path: Path) -> None:
    """In two families its table, and the length that it works the ramp out for, are four times as long."""
    model_of_whole(config_of_whole(name)).save_pretrained(tmp_path / "source")
    done = export(tmp_path / "source", tmp_path / "out", to="vllm", method="yarn", factor=4, beta_fast=16, beta_slow=2)
    rope = config_in(tmp_path / "out")["text_config"]["rope_parameters"]
    assert (rope["beta_fast"], rope["beta_slow"]) == betas
    assert json.loads(done.overrides.split("'")[1])["text_config"]["rope_parameters"] == rope
    export(tmp_path / "source", tmp_path / "sglang", to="sglang", method="yarn", factor=4, beta_fast=16, beta_slow=2)
    rope = config_in(tmp_path / "sglang")["text_config"]["rope_parameters"]
    assert (rope["beta_fast"], rope["beta_slow"]) == (16, 2)


def test_a_text_within_another_text_is_refused_by_name(tmp_path: Path) -> None:
    config = ColPaliConfig()
    config.architectures = ["ColPaliForRetrieval"]
    config.save_pretrained(tmp_path / "source")
    with pytest.raises(UnsupportedModelError, match="'colpali': the config of its text decoder must be an entry of"):
        export(tmp_path / "source", tmp_path / "out", to="transformers", method="yarn", factor=4)


def test_what_a_server_of_one_may_compute_is_told_apart(tmp_path: Path) -> None:
    source = whole_checkpoint(tmp_path / "source", "qwen3_vl")
    meaning = meaning_of(source_of(source, Request(method=YaRN(factor=4))))
    model = loaded(source).float().eval()
    patched = ropescale.patch(loaded(source).float().eval(), "yarn", factor=4)
    for reading in meaning.readings:
        with standing(model, meaning, reading) as read:
            off = (logits(read, 300) - logits(patched, 300)).abs().max()
        assert (off == 0) == (reading.name == "as meant"), reading.name


# ---- in the engines

IN_MLX = [pytest.param(name, marks=in_mlx) for name in ("llava", "qwen2_vl", "qwen3_5", "qwen3_vl")]
IN_VLLM = [pytest.param(name, marks=in_vllm) for name in ("gemma3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl")]


@pytest.mark.parametrize("folder", IN_MLX, indirect=True)
@pytest.mark.parametrize("method", ["yarn", "linear"])
def test_mlx_computes_what_the_patched_model_computes(folder: Path, method: str, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", to="mlx", method=method, factor=4)
    require_exact(tmp_path / "out", "mlx", str(folder), tolerance=1e-3)


@pytest.mark.parametrize("folder", IN_VLLM, indirect=True)
def test_vllm_computes_what_the_patched_model_computes(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", to="vllm", method="yarn", factor=4)
    require_exact(tmp_path / "out", "vllm", str(folder), tolerance=1e-4)


@pytest.mark.parametrize("name", [pytest.param("gemma4", marks=in_vllm)])
def test_vllm_computes_that_of_one_without_experts(name: str, tmp_path: Path) -> None:
    """With heads of one size: vLLM takes any mention of experts for a mixture."""
    source = whole_checkpoint(tmp_path / name, name, num_experts=None, top_k_experts=None, global_head_dim=64)
    export(source, tmp_path / "out", to="vllm", method="yarn", factor=4)
    require_exact(tmp_path / "out", "vllm", str(source), tolerance=1e-4)


@pytest.mark.parametrize("folder", [pytest.param("qwen2_5_vl", marks=in_vllm)], indirect=True)
def test_vllm_reads_the_published_betas_as_another_ramp(folder: Path, tmp_path: Path) -> None:
    """What we tell it in their place is no other rotation than the one that was meant."""
    export(folder, tmp_path / "out", to="vllm", method="yarn", factor=4)
    config = config_in(tmp_path / "out")
    config["text_config"]["rope_parameters"] |= DEFAULTS
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    verdict = verify(tmp_path / "out", engine="vllm", reference=str(folder))
    assert max(check.worst for check in verdict.checks) > 1e-2, str(verdict)


READER = """
import json, sys, torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.transformers_utils.config import get_config

path, length = sys.argv[1], int(sys.argv[2])
text = get_config(path, trust_remote_code=False).get_text_config()
rope, size = text.rope_parameters, text.head_dim
with set_current_vllm_config(VllmConfig()):
    # as its class of Qwen3.5 calls it
    made = get_rope(size, text.max_position_embeddings, True, rope, torch.float32, mrope_positions_factor=1)
table = made.cos_sin_cache
torch.save((table[:length].clone(), len(table), text.max_position_embeddings), sys.argv[3])
"""


def read_by_vllm(folder: Path, length: int, out: Path) -> tuple[torch.Tensor, int, int]:
    """The cosines and sines [length, pairs x 2] of vLLM's own class for a folder, how many it has, and the maximum."""
    command = [vllm.python_with_vllm(), "-c", READER, str(folder), str(length), str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"})
    table, positions, maximum = torch.load(out)
    return table, positions, maximum


@pytest.mark.parametrize("spelling", [pytest.param(one, marks=in_vllm) for one in ("ours", "published")])
def test_vllm_reads_a_million_tokens_of_qwen_as_they_were_meant(spelling: str, tmp_path: Path) -> None:
    """By its own reader of configs: its linear attention has no float32 on a CPU."""
    source, out = long_qwen(tmp_path / "source"), tmp_path / "out"
    export(source, out, to="vllm", method="yarn", factor=4)
    if spelling == "published":
        config = config_in(out)
        config["text_config"]["rope_parameters"] = PUBLISHED
        (out / "config.json").write_text(json.dumps(config))
    table, positions, maximum = read_by_vllm(out, 4096, tmp_path / "table.pt")
    model = ropescale.patch(AutoModelForImageTextToText.from_pretrained(source), "yarn", factor=4)
    rotary = model.model.language_model.rotary_emb
    angles = torch.arange(4096)[:, None].float() * rotary.inv_freq
    expected = torch.cat((angles.cos(), angles.sin()), -1) * rotary.attention_scaling
    assert (positions, maximum) == (1048576, 1048576)
    assert (
        table - expected
    ).abs().max() < 1e-3  # an angle of 4,096 radians has three digits after the point in float32
    unpatched = torch.arange(4096)[:, None].float() * rotary.original_inv_freq
    assert (unpatched.cos() - table[:, :32]).abs().max() > 0.1
