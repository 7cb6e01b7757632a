"""What a file says about itself, believed of nothing that was not looked at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers import LlamaConfig

from ropescale.errors import CheckpointError, ExportError, shortened
from ropescale.export.gguf.architectures import patchable
from ropescale.export.gguf.header import require_sound
from ropescale.export.gguf.weights import OUTTYPES

# Keys of the file that are ropescale's own
RECORD_KEY, SOURCE_KEY, APPROXIMATION_KEY = "ropescale.record", "ropescale.source", "ropescale.approximation"
ORIGIN_KEY = "ropescale.origin"  # JSON, as in `origin.py`


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file says about itself, as far as a check needs it."""

    architecture: str
    vocabulary: int
    length: int  # tokens that it is served for
    texts: list[str]  # of every id
    tokens: list[int]  # ids of ordinary text
    letter: int  # id of an ASCII letter
    precision: str  # a key of OUTTYPES, or the name of another type
    record: str | None  # JSON
    source: str
    approximation: str
    origin: str  # JSON


def reader_of(path: Path) -> gguf.GGUFReader:
    """The file, mapped.

    Raises:
        CheckpointError: none there, or not a whole GGUF file.
    """
    try:
        require_sound(path)
        return gguf.GGUFReader(path)
    except CheckpointError:
        raise
    except Exception as error:  # the package checks nothing, and runs into whatever a damaged file leads to
        raise CheckpointError(
            f"{path}: must be a whole GGUF file, got one that cannot be read ({type(error).__name__}: {error}); write "
            f"or fetch it again"
        ) from error


@dataclass(frozen=True)
class Kind:
    """What the value of a metadata entry has to be."""

    said: str
    holds: Callable[[Any], bool]


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(element) is kind for element in value)


TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", _are(str))
WHOLE = Kind("a list of whole numbers", _are(int))
COUNT = Kind("a whole number of at least 1", lambda value: type(value) is int and value >= 1)
POSITIVE = Kind("a number above 0", lambda value: type(value) in (int, float) and 0 < value < float("inf"))


def contents(reader: gguf.GGUFReader, path: Path, key: str, kind: Kind, default: Any = None) -> Any:
    """The value of a metadata entry; the default where there is none.

    Raises:
        CheckpointError: a value of another kind: the format lets every entry be of every type.
    """
    field = reader.get_field(key)
    if field is None:
        return default
    value = value_of(field, path)
    if not kind.holds(value):
        raise CheckpointError(
            f"{path}: metadata entry {key!r} must be {kind.said}, got {shortened(value)}; write or fetch it again"
        )
    return value


def value_of(field: gguf.ReaderField, path: Path) -> Any:
    """The value of an entry, whichever it is.

    Raises:
        CheckpointError: a text that is none.
    """
    try:
        return field.contents()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: metadata entry {field.name!r} must be text in UTF-8, got the byte "
            f"{error.object[error.start]:#04x}; write or fetch the file again"
        ) from error


def required(reader: gguf.GGUFReader, path: Path, key: str, kind: Kind) -> Any:
    """The value of a metadata entry that has to be there.

    Raises:
        CheckpointError: it is not, or is of another kind.
    """
    value = contents(reader, path, key, kind)
    if value is None:
        raise CheckpointError(f"{path}: metadata must hold {key!r}, got none; take a file with complete metadata")
    return value


def read_facts(path: Path) -> Facts:
    """What a file says about itself.

    Raises:
        CheckpointError: no such file, or not one of a model with a tokenizer.
    """
    reader = reader_of(path)
    arch = required(reader, path, "general.architecture", TEXT)
    texts = required(reader, path, "tokenizer.ggml.tokens", TEXTS)
    types = contents(reader, path, "tokenizer.ggml.token_type", WHOLE, [int(gguf.TokenType.NORMAL)] * len(texts))
    if len(types) != len(texts):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.token_type must have one entry a token, got {len(types):,} for {len(texts):,}; "
            f"write or fetch it again"
        )
    ordinary = [place for place, kind in enumerate(types) if kind == gguf.TokenType.NORMAL]
    letters = [
        place for place in ordinary if len(texts[place]) == 1 and texts[place].isascii() and texts[place].isalpha()
    ]
    if not letters:
        raise CheckpointError(
            f"{path}: the vocabulary must hold an ASCII letter to be checked, got none; give a file of a text model"
        )
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise CheckpointError(f"{path}: tensors must hold token_embd.weight, got none; write or fetch it again")
    kinds = {kind: name for name, kind in OUTTYPES.items()}
    precision = kinds.get(embedding.tensor_type, embedding.tensor_type.name.lower())
    return Facts(
        architecture=arch,
        vocabulary=len(texts),
        length=required(reader, path, f"{arch}.context_length", COUNT),
        texts=texts,
        tokens=ordinary,
        letter=letters[0],
        precision=precision,
        record=contents(reader, path, RECORD_KEY, TEXT),
        source=contents(reader, path, SOURCE_KEY, TEXT, ""),
        approximation=contents(reader, path, APPROXIMATION_KEY, TEXT, ""),
        origin=contents(reader, path, ORIGIN_KEY, TEXT, "{}"),
    )


def file_config(reader: gguf.GGUFReader, path: Path) -> LlamaConfig:
    """The rotary facts of a file that is as pretrained, in a config that methods can be asked with.

    Raises:
        CheckpointError: incomplete metadata.
        ExportError: an architecture that is not known here, or a file that is scaled already.
    """
    arch = required(reader, path, "general.architecture", TEXT)
    if arch not in patchable():
        raise ExportError(
            f"{path}: general.architecture must be one that was run with a scaling, got {arch!r}; these were: "
            f"{', '.join(patchable())}"
        )
    scaled = sorted(
        [key for key in reader.fields if key.startswith(f"{arch}.rope.scaling.")]
        + [tensor.name for tensor in reader.tensors if tensor.name.startswith(("rope_freqs", "rope_factors"))]
    )
    if scaled:
        raise ExportError(
            f"{path}: positions must be as pretrained, got {', '.join(scaled)}; take the file of the unscaled model"
        )
    if (files := contents(reader, path, "split.count", COUNT, 1)) > 1:
        raise ExportError(f"{path}: must be one file, got one of {files}; merge them first")
    heads, width = (
        required(reader, path, f"{arch}.{key}", COUNT) for key in ("attention.head_count", "embedding_length")
    )
    head_dim = contents(reader, path, f"{arch}.attention.key_length", COUNT, max(width // heads, 1))
    return LlamaConfig(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_hidden_layers=required(reader, path, f"{arch}.block_count", COUNT),
        head_dim=head_dim,
        max_position_embeddings=required(reader, path, f"{arch}.context_length", COUNT),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": contents(reader, path, f"{arch}.rope.freq_base", POSITIVE, 10000.0),
            "partial_rotary_factor": contents(reader, path, f"{arch}.rope.dimension_count", COUNT, head_dim)
            / head_dim,
        },
    )
