"""What lies beside the weights in a checkpoint's folder, and goes with them."""

from collections.abc import Iterator
from pathlib import Path

from ropescale.errors import CheckpointError

# What a checkpoint's folder holds besides config and weights, and every engine reads
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
# How images and videos are read
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
# What sentence-transformers keeps beside them of an embedding model: how states become one vector, and to what length
POOLING = ("config_sentence_transformers.json", "modules.json", "sentence_bert_config.json", "[0-9]_*/*")
TOKENIZER = tuple(name for name in COMPANIONS if name != "generation_config.json")


def of(folder: Path | None, beside: Path | None = None) -> dict[str, Path]:
    """The files of tokenizer, generation and images, by their names.

    Args:
        folder: of the checkpoint.
        beside: an adapter's folder, whose tokenizer or chat template comes before.
    """
    files = {} if folder is None else _in(folder, (*COMPANIONS, *PROCESSORS))
    if beside is not None:
        theirs = _in(beside, TOKENIZER)
        if "tokenizer_config.json" in theirs:  # a whole one: nothing of the other is mixed in
            files = {name: file for name, file in files.items() if name not in TOKENIZER}
            files |= theirs
        else:  # a template alone
            files |= {name: file for name, file in theirs.items() if name.startswith("chat_template")}
    return files


def pooling(folder: Path) -> dict[str, Path]:
    """The files of an embedding model's pooling, by their places in the folder.

    Raises:
        CheckpointError: a link that leads out of the folder, to nothing, or in a circle.
    """
    real = folder.resolve()
    # a snapshot in the hub's cache is of links to the blobs beside it
    kept = (real, real.parents[1] / "blobs") if real.parent.name == "snapshots" else (real,)
    return {
        str(file.relative_to(folder)): file
        for pattern in POOLING
        for path in sorted(folder.glob(pattern))
        for file in _files_below(path, kept)
    }


def _in(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_file()}


def _files_below(path: Path, kept: tuple[Path, ...], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A file, or those below a folder, through links that stay within the places where a checkpoint is kept.

    Raises:
        CheckpointError: a link that leads elsewhere, to nothing, or in a circle.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # to nothing, or to itself
        real = None
    inside = real is not None and any(real.is_relative_to(place) for place in kept) and real not in above
    if real is None or not inside or not (real.is_dir() or real.is_file()):
        raise CheckpointError(
            f"source: what is copied must be files and folders of the checkpoint itself, got {str(path)!r}, which "
            f"leads out of it, to nothing, or in a circle; replace it by what it stands for, or remove it"
        )
    if real.is_file():
        yield path
        return
    for child in sorted(path.iterdir()):
        yield from _files_below(child, kept, (*above, real))
