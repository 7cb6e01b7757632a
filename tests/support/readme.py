"""The blocks of README and of the first pages as a reader would paste them: `bash` and `python` ones, in order, in one
folder a page.

python tests/support/readme.py BIN        # with the `ropescale` and `python` of BIN, in a new folder
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
PASTED = (README, *(ROOT / "docs" / f"{name}.md" for name in ("quickstart", "tour", "tutorial")))  # read in this order
PORT = "8080"  # as the pages have it, of which another may be in use


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    text: str


def free_port() -> str:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def blocks(path: Path = README, *, port: str = PORT) -> list[Block]:
    """Every fenced block of a page, with a port in the place of its own."""
    text = path.read_text(encoding="utf-8").replace(PORT, port)
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, one.start()) + 1, one[1], one[2]) for one in found]


def commands(block: Block) -> list[str]:
    """The commands of a bash block, lines that go on joined, comments left out."""
    joined = block.text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


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
            if block.language == "python":
                code = python.paste(block.text)
            elif block.language == "bash" and not block.text.startswith("pip "):
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
