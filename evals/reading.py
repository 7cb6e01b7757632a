"""Documents in local files: which files of a folder hold some, and what each holds, one at a time.

Training and evaluation read the same files by the same rules. What is read is a stream, so that memory holds one
document (of Arrow and Parquet one batch of rows), and whatever is wrong with a file is said in one sentence that names
it. This room knows files, neither tokenizers nor models.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ropescale.errors import InvalidArgumentError, shortened

TEXT = (".txt", ".md", ".rst")  # a file is a document
LINES = (".jsonl", ".ndjson")  # a line is a document
VALUES = (".json",)  # a list of documents, or one after the other
TABLES = (".parquet", ".arrow")  # a row is a document
COMPRESSED = (".gz", ".zst")  # text and JSON alone
ENDINGS = (*TEXT, *LINES, *VALUES, *TABLES)
# What libraries write beside rows, which holds none
ABOUT = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
CARD = "readme.md"
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character: JSON can write it, no encoding can
AT_ONCE = 64  # rows of a table that are in memory at a time
PIECE = 2**20  # characters of a .json file that are read at a time

Row = dict[str, Any]


def files_of(path: Path, what: str, *, split: str = "train") -> list[Path]:
    """The files with documents that a path leads to, sorted: itself, or those in a folder and its folders.

    Hidden files and folders hold none (what macOS leaves beside a file among them), nor do the files that describe a
    data set; README.md is one of them where there are rows beside it, or where it begins as such a card does. Of a
    folder that `datasets` has saved, the files that it names are read; of one with several splits, one split.

    Args:
        path: a file or folder that exists.
        what: the caller's argument, for messages.
        split: of a saved folder with several.

    Raises:
        InvalidArgumentError: no such file, or a split that is not there.
    """
    if path.is_file():
        paths = [path]
    else:
        if (path / "dataset_dict.json").is_file():
            path = _split_of(path, what, split)
        with said(path, what):
            paths = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
        saved = {file.parent for file in paths if file.name == "state.json"}
        paths = [file for file in paths if file.parent not in saved or file.name in _saved(file.parent, what)]
    files = [file for file in paths if ending(file) in ENDINGS and file.name not in ABOUT]
    rest = [file for file in files if file.name.lower() != CARD]
    tables = any(ending(file) not in TEXT for file in rest)
    files = rest if tables else [file for file in files if file in rest or not _is_card(file, what)]
    if not files:
        raise InvalidArgumentError(
            f"{what}: a path must lead to {', '.join(ENDINGS)} files (text and JSON also as "
            f"{' or '.join(COMPRESSED)}), got {str(path)!r} without any; convert them"
        )
    return files


def ending(file: Path) -> str:
    """What a file holds, by its name: one of `ENDINGS`, or something else."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in COMPRESSED and suffixes[0] not in TABLES:
        return suffixes[0]
    return suffixes[-1] if suffixes else ""


def rows(file: Path, what: str, fields: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file in their order; a file of text is one row with `text`.

    Args:
        file: one of those that `files_of` gave.
        what: the caller's argument, for messages.
        fields: what the caller will look at; of tables nothing else is read, unless none of these is there.

    Raises:
        InvalidArgumentError: a file that cannot be read, is cut off, no UTF-8, or holds something else than rows.
    """
    kind = ending(file)
    with said(file, what):
        if kind in TABLES:
            yield from _table(file, kind, fields)
        elif kind in TEXT:
            with _stream(file) as stream:
                yield {"text": stream.read()}
        else:
            for number, value in enumerate(_lines(file, what) if kind in LINES else _values(file, what), 1):
                if not isinstance(value, dict):
                    raise InvalidArgumentError(
                        f"{what}: row {number} of {str(file)!r} must be a JSON object, got {shortened(value)}; "
                        f"correct the file, or leave it out"
                    )
                yield value


def fields_of(row: Row) -> str:
    """The names of a row's fields, for a message."""
    return ", ".join(sorted(map(str, row))) or "no fields"


def cleaned(text: str) -> str:
    """A text without what is none of it: a byte-order mark at its start; halves of characters become U+FFFD."""
    return SURROGATE.sub("\ufffd", text.removeprefix("\ufeff"))


def contents(files: Sequence[Path], what: str) -> str:
    """A digest of the files' bytes, in their order; neither names nor places matter.

    Raises:
        InvalidArgumentError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        with said(path, what), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def said(file: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong with a file within the block as one sentence that names it.

    Raises:
        InvalidArgumentError: something did.
    """
    try:
        yield
    except InvalidArgumentError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:  # pyarrow's are among these
        if isinstance(error, UnicodeDecodeError):
            fault = f"the byte 0x{error.object[error.start]:02x}, which is none"
            rule = "must be UTF-8"
        elif isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)):
            fault, rule = f"{type(error).__name__}: {error}", "must be compressed whole"
        else:
            words = " ".join(str(error).split()) or type(error).__name__
            fault, rule = f"{type(error).__name__}: {words[:200]}", "must be a file that can be read"
        raise InvalidArgumentError(
            f"{what}: {str(file)!r} {rule}, got {fault}; correct the file, or leave it out"
        ) from error


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _is_card(file: Path, what: str) -> bool:
    """Whether a README.md begins as the card of a data set on a hub: with facts between two lines of dashes."""
    with said(file, what), file.open("rb") as stream:
        return stream.readline().strip() == b"---"


def _split_of(path: Path, what: str, split: str) -> Path:
    """The folder of one split of a data set that was saved with several."""
    with said(path / "dataset_dict.json", what):
        about = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))
    named = about.get("splits") if isinstance(about, dict) else None
    splits = [str(name) for name in named] if isinstance(named, list) else []
    if split not in splits or not (path / Path(split).name).is_dir():
        by_name = ", or name one with data_split=NAME" if what == "data" else ""
        raise InvalidArgumentError(
            f"{what}: the data set {str(path)!r} must have a split {split!r}, got "
            f"{', '.join(sorted(splits)) or 'none'}; give the folder of one split{by_name}"
        )
    return path / Path(split).name


def _saved(folder: Path, what: str) -> set[str]:
    """The names of the files that `datasets` has saved a data set in; those of its caches lie beside them."""
    with said(folder / "state.json", what):
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = state.get("_data_files", []) if isinstance(state, dict) else None
        if not isinstance(files, list):
            raise ValueError("no list of files")
        return {Path(str(entry.get("filename"))).name for entry in files if isinstance(entry, dict)}


@contextmanager
def _stream(file: Path) -> Iterator[IO[str]]:
    """A file as text: decompressed by its ending, without a byte-order mark, lines ending in a line feed."""
    with _bytes(file) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        yield stream


def _bytes(file: Path) -> IO[bytes]:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(file))  # the caller closes it
    if suffix == ".zst":
        import pyarrow

        if not file.stat().st_size:  # which zstd takes for a whole stream
            raise EOFError("an empty file")
        stream: IO[bytes] = io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd"))
        return stream
    return file.open("rb")


def _lines(file: Path, what: str) -> Iterator[Any]:
    """JSON lines. A line ends at a line feed and nowhere else: strings may hold whatever else ends lines."""
    with _bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield _value(text, f"line {number}", file, what)


def _value(text: str, where: str, file: Path, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{what}: {where} of {str(file)!r} must be JSON, got {shortened(text.strip()[:60])} "
            f"({' '.join(str(error).split())}); correct the file, or leave it out"
        ) from error


def _values(file: Path, what: str) -> Iterator[Any]:
    """The values of a JSON file: the elements of the list that it holds, or whatever stands in it one by one."""
    decoder, buffer, more, number = json.JSONDecoder(), "", True, 0
    with _stream(file) as stream:
        listed: bool | None = None
        size = PIECE
        while True:
            buffer = buffer.lstrip()
            if listed is None and buffer:
                listed = buffer[0] == "["
                buffer = buffer[1:].lstrip() if listed else buffer
            if listed and number:
                buffer = buffer.removeprefix(",").lstrip()
            if listed and buffer.startswith("]"):
                rest = buffer[1:] + stream.read()
                if rest.strip():
                    raise InvalidArgumentError(
                        f"{what}: {str(file)!r} must hold one list, got more behind it; correct the file"
                    )
                return
            if not more and not buffer:
                if listed:
                    raise EOFError("a list without its end")
                return
            try:
                if not buffer:
                    raise ValueError("nothing")
                value, end = decoder.raw_decode(buffer)
                if end == len(buffer) and more:
                    raise ValueError("perhaps not its end")  # of a number
            except ValueError:
                if not more:
                    _value(buffer, f"row {number + 1}", file, what)
                    raise
                piece = stream.read(size)
                more, size = bool(piece), 2 * size  # what did not suffice is read again: so twice in all
                buffer += piece
                continue
            number, size = number + 1, PIECE
            buffer = buffer[end:]
            yield value


def _table(file: Path, kind: str, fields: Sequence[str]) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file, a few at a time."""
    import pyarrow
    from pyarrow import parquet

    if kind == ".parquet":
        with parquet.ParquetFile(file) as table:
            names = [name for name in table.schema_arrow.names if name in fields] or None
            for batch in table.iter_batches(batch_size=AT_ONCE, columns=names):
                yield from batch.to_pylist()
        return
    with pyarrow.memory_map(str(file)) as source:
        try:
            stream = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:  # the other of Arrow's two formats
            file_reader = pyarrow.ipc.open_file(source)
            stream = (file_reader.get_batch(number) for number in range(file_reader.num_record_batches))
        for batch in stream:
            batch.validate(full=True)  # lengths and offsets of a damaged file lead anywhere
            names = [name for name in batch.schema.names if name in fields] or batch.schema.names
            for start in range(0, batch.num_rows, AT_ONCE):
                yield from batch.select(names).slice(start, AT_ONCE).to_pylist()
