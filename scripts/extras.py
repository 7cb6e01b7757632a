"""The wheel with each of its extras and with none: every verb works, or says in one sentence what it needs.

    python scripts/extras.py              # all of them; an empty virtual environment each, three minutes each
    python scripts/extras.py none eval    # some

What a verb needs an extra for is in `ropescale.failures.EXTRAS`; here a verb that says so must name the command that
installs it, and one whose packages are there must work.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"  # the newest is a CUDA build of several gigabytes
EXTRAS = ("none", "export", "train", "eval")
FEW = ["--eval-texts", "sample", "--eval-windows", "1", "--eval-passkeys", "0", "--eval-strategy", "no"]
# What is run, and the extras that it needs; without them it ends with code 2 and the command that installs them
VERBS: list[tuple[list[str], set[str]]] = [
    (["--help"], set()),
    (["methods"], set()),
    (["inspect", "tiny"], set()),
    (["doctor", "tiny"], set()),
    (["rescale", "tiny", "longer", "--factor", "4"], set()),
    (["memory", "tiny", "--length", "512"], set()),
    (["explain", "tiny", "--methods", "yarn,rerope"], set()),
    (["train", "--list"], set()),
    (["export", "tiny", "served", "--to", "vllm", "--method", "yarn", "--factor", "4"], set()),
    (["plot", "tiny"], {"eval"}),
    (["eval", "tiny", "--methods", "yarn", "--quick", "--output", "results"], {"eval"}),
    (["report", "results"], {"eval"}),
    (["train", "lora", "--model", "tiny", "--factor", "2", "--data", "passkey", "--max-documents", "40", "--max-steps",
      "1", "--batch-size", "1", "--length", "128", *FEW, "--output", "adapter"], {"train"}),
    (["merge", "adapter", "merged"], {"train"}),
    (["demo", "--methods", "yarn", "--factors", "2", "--output", "demo"], {"eval", "train"}),
    (["export", "tiny", "tiny.gguf", "--to", "gguf", "--method", "yarn", "--factor", "4"], {"export"}),
    (["verify-export", "tiny.gguf", "--engine", "llama.cpp"], {"export"}),
]  # fmt: skip


def run(extra: str, wheel: Path, folder: Path) -> None:
    """Install the wheel with one extra into an empty environment, and run every verb there."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    named = str(wheel) if extra == "none" else f"{wheel}[{extra}]"
    for wanted in (TORCH, named):
        subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
    for arguments, needs in VERBS:
        done = subprocess.run(
            [python, "-m", "ropescale", *arguments], capture_output=True, text=True, check=False, cwd=folder
        )
        said = done.stderr.strip().splitlines()[-1:] or [""]
        works = done.returncode == 0 and "Traceback" not in done.stderr
        refuses = done.returncode == 2 and said[0].startswith("ropescale: ") and "pip install" in said[0]
        print(
            f"[{extra}] ropescale {' '.join(arguments)[:60]}: {done.returncode} {'' if works else said[0]}", flush=True
        )
        if not (works if needs <= {extra} else refuses):
            raise SystemExit(
                f"[{extra}] must {'work' if needs <= {extra} else 'name its extra'}, got\n{done.stdout}\n{done.stderr}"
            )


def main() -> int:
    wanted = sys.argv[1:] or EXTRAS
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        source = Path(folder, "source")  # a build leaves folders in the tree that it builds from
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv*", ".git", "out", "build", "*.egg-info"))
        subprocess.run([*build, "--wheel-dir", folder, str(source)], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        for extra in wanted:
            place = Path(folder, extra)
            place.mkdir()
            run(extra, wheel, place)
            shutil.rmtree(place)
    print(f"every verb works or says what it needs: {', '.join(wanted)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
