"""What is verified: an export, with what it says about itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ropescale.checkpoints import require_visible
from ropescale.contents import VOCABULARIES, read_config, read_tokenizer
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.export.canonical import read_original
from ropescale.export.running import Prompt, Run
from ropescale.export.weights import text_in
from ropescale.heads import require_language_model
from ropescale.records import EXPORT_FIELD, Record, saved_record

Runner = Callable[[Path, Sequence[str], Sequence[Prompt], int], list[Run]]
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template")
# What tokenizers split differently: digits, white space before digits, contractions, capitals, accents, other scripts
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1984, 12345 of them\n\n1. weren't    here; we'LL see.",
    "    def f(x):\n\treturn x**2  # naïve café, 你好, 🙂\r\n",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An export, with what it says about itself."""

    path: Path
    record: Record | None
    source: str = ""  # a name to take the reference from; empty where the weights are in `path`
    original_length: int
    target_length: int
    precision: str = "f32"  # what it computes with: f32, a key of DIVERGENCES, or another type of weights
    approximation: str
    tokens: list[int]  # that prompts are made of
    run: Callable[[Sequence[Prompt], int], list[Run]]
    origin: dict[str, Any] = field(default_factory=dict)  # what it says that it was made from
    dtype: str = "f32"  # of its weights, to which a sum with an adapter was rounded
    rounded: Callable[[nn.Module], None] = lambda model: None  # rounds weights to what the export holds
    tokenization: Callable[[Path], str] = lambda folder: ""  # what the engine's tokenizer does otherwise than theirs

    @property
    def method(self) -> str:
        """What made it, in words."""
        factor = self.target_length / self.original_length
        return "as published" if self.record is None else f"{self.record.method} x{factor:g}"


def of_folder(path: Path, engine: str, unlabelled: str, run: Runner) -> Subject:
    """An export to a folder.

    Args:
        path: of the folder.
        engine: that is to run it.
        unlabelled: the engine whose folders say nothing of themselves.
        run: `Engine.run`.

    Raises:
        CheckpointError: no folder there, or no checkpoint in it.
        InvalidArgumentError: it was written for another engine.
        UnsupportedModelError: a family that is not patched.
    """
    require_visible(str(path))
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: must be a folder that was exported for {engine}, got {'a file' if path.exists() else 'nothing'}"
            f"; write it with `ropescale export --to {engine}`"
        )
    config = read_config(str(path))
    text = text_in(config)
    require_language_model(config, str(path))
    record, label = saved_record(text), getattr(config, EXPORT_FIELD, None) or {}
    written = label.get("engine", unlabelled)
    if written != engine:
        raise InvalidArgumentError(
            f"engine: must be the one that {path} was written for ({written!r}), got {engine!r}; give "
            f"engine={written!r}, or export it again with to={engine!r}"
        )
    return Subject(
        path=path,
        record=record,
        original_length=read_original(text, record),
        target_length=int(text.max_position_embeddings) if record is None else record.target_length,
        approximation=label.get("approximation", ""),
        tokens=_plain_tokens(path, config),
        run=lambda prompts, steps: run(path, label.get("flags", []), prompts, steps),
        origin=label,
        dtype={"torch.float16": "f16", "torch.bfloat16": "bf16"}.get(str(config.dtype), "f32"),
        tokenization=lambda folder: _tokenization(folder, path),
    )


def _tokenization(theirs: Path, path: Path) -> str:
    """What the tokenizer of an exported folder does otherwise than that of its source; empty for nothing."""
    if not any(any(theirs.glob(name)) for name in VOCABULARIES):
        return ""
    expected = read_tokenizer(theirs)
    try:
        written = read_tokenizer(path)
        special = [getattr(written, name) == getattr(expected, name) for name in SPECIAL]
    except Exception as error:  # whatever the tokenizer's libraries raise on files that are damaged
        return f"its tokenizer cannot be read ({type(error).__name__})"
    for text in TEXTS:
        ours, given = expected(text).input_ids, written(text).input_ids
        if ours != given:
            return f"its tokenizer makes {given} of {text!r}, where the model's makes {ours}"
    if written.get_vocab() != expected.get_vocab():
        return "its tokenizer has another vocabulary than the model's"
    if _serialised(written) != _serialised(expected):
        return "its tokenizer splits or merges otherwise than the model's"
    if not all(special):
        return f"its tokenizer has another {SPECIAL[special.index(False)]} than the model's"
    return ""


def _serialised(tokenizer: Any) -> str:
    """All that a tokenizer does, in JSON; nothing of one that is not made of JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None else str(backend.to_str())


def _plain_tokens(path: Path, config: PreTrainedConfig) -> list[int]:
    """Token ids that are no special ones, as far as there is a tokenizer to say so, and stand for no image."""
    entries = config.to_dict()
    places = {entries.get(name) for name in entries if name.endswith(("_token_id", "_token_index"))}
    special = {token for token in places if isinstance(token, int)}
    size = int(text_in(config).vocab_size)
    if (path / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(path)
        special, size = set(tokenizer.all_special_ids), min(size, len(tokenizer))
    return [token for token in range(size) if token not in special]
