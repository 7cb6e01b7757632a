"""The blocks of README as a reader would paste them: `bash` and `python` ones, in order, in one folder.

python tests/readme.py BIN        # with the `ropescale` and `python` of BIN, in a new folder
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parent.parent / "README.md"


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    text: str


def blocks(path: Path = README) -> list[Block]:
    """Every fenced block of a page."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, one.start()) + 1, one[1], one[2]) for one in found]


def commands(block: Block) -> list[str]:
    """The commands of a bash block, lines that go on joined, comments left out."""
    joined = block.text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def main() -> int:
    """Run all that needs no installation of its own; the first that fails ends it."""
    place = Path(sys.argv[1]).absolute()
    environment = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        before = ""  # a reader has one Python open
        for block in blocks():
            if block.language == "python":
                before += block.text
                done = subprocess.run([place / "python", "-c", before], cwd=folder, env=environment, check=False)
            elif block.language == "bash" and not block.text.startswith("pip "):
                done = subprocess.run(["bash", "-euc", block.text], cwd=folder, env=environment, check=False)
            else:
                continue
            print(f"README line {block.line}: {done.returncode}", flush=True)
            if done.returncode:
                return done.returncode
            if block.language == "python":  # what it wrote is there; it writes it again with the next block
                before = before.replace('model.save_pretrained("tiny-512")', "pass")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
