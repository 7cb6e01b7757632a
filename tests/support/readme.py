"""The blocks of README and the pages of docs as a reader would paste them: `bash` and `python` ones, in order, in one
folder a page.

python tests/support/readme.py BIN        # the first pages, with the `ropescale` and `python` of BIN, in a new folder
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PASTED = (README, *(DOCS / f"{name}.md" for name in ("quickstart", "tour", "tutorial")))  # read in this order
PAGES = (
    README,
    *(page for page in sorted(DOCS.rglob("*.md")) if page.parent.parent != DOCS / "results"),  # reports, made by runs
    *sorted((ROOT / "evals" / "tasks").glob("*/README.md")),
    ROOT / "CONTRIBUTING.md",
)
PORT = "8080"  # as the pages have it, of which another may be in use
# Why a block is not run, as a comment above it says: <!-- not run: needs a hub -->
REASONS = (
    "installs packages",
    "needs a hub",
    "needs a GPU",
    "needs another machine",  # a cluster, or a server that was started elsewhere
    "needs another program",  # an engine or a framework that no extra of ropescale brings
    "takes long",  # many minutes of two cores, or hours
    "measures anew",  # what the figures of these pages were made with, from a clone: they would be others
)


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    text: str
    reason: str  # why it is not run, empty where it is


def free_port() -> str:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def blocks(path: Path = README, *, port: str = PORT) -> list[Block]:
    """Every fenced block of a page, with a port in the place of its own."""
    return blocks_of(path.read_text(encoding="utf-8").replace(PORT, port))


def blocks_of(text: str) -> list[Block]:
    """Every fenced block of a text."""
    found = re.finditer(
        r"(?:^<!-- not run: (?P<reason>.*?) -->\n\n?)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    return [
        Block(text.count("\n", 0, one.start("language")) + 1, one["language"], one["text"], one["reason"] or "")
        for one in found
    ]


def commands(block: Block) -> list[str]:
    """The commands of a bash block, lines that go on joined, comments and what is written into files left out."""
    text = re.sub(r"<<'END'\n.*?^END$", "<<'END'", block.text, flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines()]
    found: list[str] = []
    for line in lines:
        if found and found[-1].count("'") % 2:  # a quotation goes on
            found[-1] += f" {line}"
        elif line:
            found.append(line)
    return found


class Python:
    """A reader has one Python open, into which block after block is pasted."""

    PASTED = (
        "import json, sys\n"
        "names = {'__name__': '__main__'}\n"
        "for line in sys.stdin:\n"
        "    exec(json.loads(line), names)\n"
        "    print('\\0', flush=True)\n"
    )

    def __init__(self, program: Path, folder: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [program, "-c", self.PASTED],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def paste(self, text: str) -> int:
        """Run a block and show what it prints; the exit code of a Python that ended with it, else 0."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(text) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line == "\0\n":
                return 0
            print(line, end="", flush=True)
        return self.process.wait()


def main() -> int:
    """Run all that needs no installation of its own; the first that fails ends it."""
    place = Path(sys.argv[1]).absolute()
    environment = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    return next((code for page in PASTED if (code := followed(page, place, environment))), 0)


def followed(page: Path, place: Path, environment: dict[str, str]) -> int:
    """The exit code of the first block of a page that fails, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        python = Python(place / "python", folder, environment)
        for block in blocks(page, port=free_port()):
            if block.reason:
                continue
            if block.language == "python":
                code = python.paste(block.text)
            elif block.language == "bash":
                code = subprocess.run(
                    ["bash", "-euc", block.text], cwd=folder, env=environment, check=False
                ).returncode
            else:
                continue
            print(f"{page.name} line {block.line}: {code}", flush=True)
            if code:
                return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
