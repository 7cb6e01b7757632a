"""Files that somebody else made, and the verbs that read them: what the tests of hostile files share."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ropescale
from ropescale.checkpoints import resolve

TINY = Path(resolve("tiny"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}

    before = content()
    yield
    assert content() == before


VERBS = {
    "explain": "explain {} --output {}/a.html",
    "plot": "plot {} --output {}/a.svg",
    "export": "export {} {}/a --to vllm --method none",
    "eval": "eval {} --methods none --tasks passkey --lengths 128 --output {}/a",
    "recommend": "recommend {} --target-length 512 --output {}/a",
    "search": "search {} --factor 2 --candidates 4 --output {}/a",
    "fit": "fit {} --factor 2 --windows 1",
    "demo": "demo --model {} --output {}/a",
    "train": "train lora --model {} --factor 2 --data passkey --max-documents 4 --output {}/a",
    "verify-export": "verify-export {} --engine transformers",
    "verify-server": "verify-server http://127.0.0.1:9 --reference {} --method yarn --factor 2",
    "flags": "flags {} --for axolotl --method yarn --factor 2",
    "merge": "merge {1}/adapter {1}/a --base {0}",
    "memory": "memory {} --length 64",
    "chat": "chat {} --prompt hello",
    "inspect": "inspect {}",
    "doctor": "doctor {}",
    "rescale": "rescale {} {}/a --factor 2",
}


READING: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda folder, out: ropescale.load(folder),
    "doctor": lambda folder, out: ropescale.diagnose(folder),
    "rescale": lambda folder, out: ropescale.rescale_checkpoint(folder, out, factor=2),
    "export": lambda folder, out: ropescale.export.export(folder, out, to="vllm", method="none"),
}
