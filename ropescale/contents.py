"""What lies in a checkpoint: its config, its tokenizer and its files of weights, read with errors in words."""

import os
import re
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError, first_line, shortened
from ropescale.families.today import RENAMED
from ropescale.files import read_json
from ropescale.shards import read_index
from ropescale.trust import is_refusal, refused, trusted

# What from_pretrained needs to find the files, and so what reading the config needs too
FINDING = ("cache_dir", "code_revision", "local_files_only", "proxies", "revision", "subfolder", "token")
CONFIG = "config.json"
# Entries of a config that say how many parts a model has, and more than any has: DeepSeek V3 has 256 experts
COUNTED, MOST_PARTS = re.compile(r"(layers?|experts|blocks|heads?|depth)$"), 10_000
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Any of these holds what a tokenizer knows
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model*",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def lacks_tokenizer(path: str | Path) -> bool:
    """Whether a folder holds a checkpoint and no tokenizer."""
    folder = Path(resolve(str(path)))
    return (folder / CONFIG).is_file() and not any(any(folder.glob(name)) for name in VOCABULARIES)


def read_config(path: str, **finding: Any) -> PreTrainedConfig:
    """The config of a checkpoint in a folder or on a hub.

    Raises:
        CheckpointError: no checkpoint there, or one that needs code of its own.
    """
    file = Path(path, finding.get("subfolder") or "", CONFIG)
    if _may_be(file):
        # Transformers would wait for a pipe, walk brackets within brackets, and build as many layers as are named
        _require_countable(read_json(file), file)
    try:
        return AutoConfig.from_pretrained(path, **{"trust_remote_code": trusted(), **finding})
    except Exception as error:  # config classes raise whatever their own code runs into
        if is_refusal(error):
            raise refused(path, ever=finding.get("trust_remote_code") is not False) from error
        if file.is_file():
            renamed = _renamed(read_json(file)) if "rope" in str(error) else ""  # which is its fault, maybe
            raise CheckpointError(
                f"{path}: must have a {CONFIG} that Transformers {transformers.__version__} reads, got "
                f"{renamed or f'{type(error).__name__}: {first_line(error)}; repair it'}"
            ) from error
        raise absent(path, error) from error


def _may_be(file: Path) -> bool:
    """Whether a file is there, or cannot be looked for: then reading it says why."""
    try:
        return file.exists()
    except OSError:
        return True


def _renamed(settings: dict[str, Any]) -> str:
    """The type of a rotation by a name that Transformers has another one for, and what to write; empty without one."""
    for text in (settings, settings.get("text_config")):
        for key in ("rope_scaling", "rope_parameters"):
            block = text.get(key) if isinstance(text, dict) else None
            named = block.get("rope_type", block.get("type")) if isinstance(block, dict) else None
            if isinstance(named, str) and named in RENAMED:
                meant = RENAMED[named]
                return f"rope_type {named!r}, another name for {meant!r}; write {meant!r} there in {key}"
    return ""


def absent(path: str | Path, error: Exception) -> CheckpointError:
    """The error for a place where no checkpoint is."""
    if Path(path).is_file():
        return CheckpointError(f"{path}: must be the folder of a checkpoint, got a file; give its folder")
    return CheckpointError(
        f"{path}: must be a folder with a Transformers checkpoint, or a hub id that can be reached, got "
        f"{type(error).__name__}: {first_line(error)}; check the path or the connection"
    )


def _require_countable(settings: dict[str, Any], file: Path) -> None:
    """Refuse a config with more layers, experts or heads than any model: each is built, and takes time and memory.

    And one with fewer layers than none, which Transformers builds.

    Raises:
        CheckpointError: such a number.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            _require_countable(value, file)
        elif name in LAYERS and isinstance(value, (int, float)) and value < 0:
            raise CheckpointError(
                f"{file}: {name} must be 0 or more, got {shortened(value)}; restore the config of the checkpoint"
            )
        elif isinstance(value, (int, float)) and value > MOST_PARTS and COUNTED.search(name):
            raise CheckpointError(
                f"{file}: {name} must be at most {MOST_PARTS:,}, got {shortened(value)}; restore the config of the "
                f"checkpoint"
            )


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        CheckpointError: there is none, it is damaged, or it needs code of its own.
    """
    for file in (Path(path, name) for name in TOKENIZER_FILES):
        if os.path.lexists(file):
            if not file.exists():  # which the library takes for no file, and goes on without
                raise CheckpointError(
                    f"{file}: must be a file, got a link to none; restore the file that belongs to the checkpoint"
                )
            read_json(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusted())
        tokenizer.decode(tokenizer.encode("a b"))  # where entries of another kind are found out
        return tokenizer
    except Exception as error:  # whatever the tokenizer's libraries raise on files that are not theirs
        if is_refusal(error):
            raise refused(str(path)) from error
        if not Path(path).is_dir():
            raise absent(path, error) from error
        if Path(path, CONFIG).exists():
            read_config(str(path))  # which the library reads too, and whose fault it is then
        raise CheckpointError(
            f"{path}: must hold a tokenizer, got {type(error).__name__}: {first_line(error)}; add the tokenizer files "
            f"of the model"
        ) from error


def weight_files(path: str, finding: dict[str, Any]) -> list[str]:
    """The files of a checkpoint's weights: one, or those that its index names."""
    quiet = {"_raise_exceptions_for_missing_entries": False, **finding}
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is None:
        whole = cached_file(path, SAFE_WEIGHTS_NAME, **quiet)
        return [] if whole is None else [whole]
    names = sorted(set(read_index(Path(index)).values()))
    return [file for name in names if (file := cached_file(path, name, **quiet)) is not None]
