"""Every verb of an installed ropescale, and every late method over a cache, as a user would meet them.

    python scripts/smoke.py           # from an empty folder, with the Python that ropescale was installed for

Run by `make smoke` with the wheel and the newest packages that pip gives, none of them pinned. Warnings of
Transformers are errors. Takes two to four minutes.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers

import ropescale
from ropescale.methods import FixedMethod

FEW = ["--eval-texts", "sample", "--eval-windows", "1", "--eval-passkeys", "0", "--eval-strategy", "no"]
VERBS = [
    ["--help"],
    ["methods"],
    ["inspect", "tiny"],
    ["doctor", "tiny"],
    ["plot", "tiny", "--methods", "yarn,ntk", "--factor", "4", "--output", "plot.svg"],
    ["explain", "tiny", "--methods", "yarn,rerope", "--factor", "4", "--output", "explain.html"],
    ["fit", "tiny", "--factor", "2", "--windows", "1"],
    ["memory", "tiny", "--length", "512"],
    ["flags", "tiny", "--for", "axolotl", "--method", "yarn", "--factor", "4"],
    ["rescale", "tiny", "longer", "--factor", "4"],
    ["doctor", "longer"],
    ["eval", "tiny", "--methods", "none,yarn,self_extend", "--factors", "4", "--tasks", "position,passkey",
     "--lengths", "128,256", "--windows", "1", "--samples", "2", "--output", "results"],
    ["report", "results"],
    ["search", "tiny", "--factor", "2", "--candidates", "12", "--windows", "1", "--batches", "1", "--held-out", "4",
     "--output", "searched"],
    ["rescale", "tiny", "searched-256", "--method", "longrope", "--factor", "2", "--knobs", "searched/knobs.json"],
    ["train", "lora", "--model", "tiny", "--method", "yarn", "--factor", "2", "--data", "passkey",
     "--max-documents", "40", "--max-steps", "2", "--batch-size", "1", "--length", "128", *FEW, "--output", "adapter"],
    ["merge", "adapter", "merged"],
    ["export", "merged", "served", "--to", "transformers"],
    ["verify-export", "served", "--engine", "transformers"],
    ["export", "tiny", "tiny.gguf", "--to", "gguf", "--method", "yarn", "--factor", "4"],
    ["verify-export", "tiny.gguf", "--engine", "llama.cpp"],
]  # fmt: skip


def verb(*arguments: str) -> None:
    """Run one verb in a process of its own, where warnings of Transformers' deprecations are errors."""
    started = time.perf_counter()
    strict = ["-W", "error::FutureWarning:transformers", "-W", "error::DeprecationWarning:transformers"]
    command = [sys.executable, *strict, "-m", "ropescale.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(
        f"ropescale {' '.join(arguments)[:90]}: {done.returncode} in {time.perf_counter() - started:.0f} s", flush=True
    )
    told = [line for line in done.stderr.splitlines() if "FutureWarning" in line or "DeprecationWarning: `" in line]
    ours = [line for line in told if "transformers" in line or "ropescale" in line]
    if done.returncode or ours:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{ours}")


def late_methods() -> None:
    """Each late method: one pass against decoding over a cache, and what `generate` writes with and without one."""
    ids = torch.arange(5, 205)[None]  # beyond the 128 tokens of the original length
    for name in ropescale.list_methods():
        if issubclass(ropescale.get_method(name), FixedMethod):
            continue
        model = ropescale.load("tiny")
        ropescale.patch(model, name, **({"max_length": 512} if name == "learned" else {}))
        with torch.no_grad():
            whole = model(ids).logits
            first = model(ids[:, :-4], use_cache=True)
            cache = next(value for value in first.values() if hasattr(value, "get_seq_length"))
            keyword = next(key for key, value in first.items() if value is cache)
            steps = [model(ids[:, i : i + 1], use_cache=True, **{keyword: cache}).logits for i in range(196, 200)]
            apart = float((torch.cat(steps, dim=1) - whole[:, -4:]).abs().max())
            asked = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
            same = torch.equal(
                model.generate(ids, use_cache=True, **asked), model.generate(ids, use_cache=False, **asked)
            )
        print(
            f"{name}: cached and uncached logits {apart:.1e} apart; generate writes {'the same' if same else 'OTHERS'}"
        )
        if apart > 5e-4 or not same:
            raise SystemExit(f"{name}: cached and uncached decoding must agree, got {apart:.2g}")


def main() -> int:
    where = Path(ropescale.__file__).parent
    print(f"ropescale {ropescale.__version__} of {where}, transformers {transformers.__version__}")
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("error", category=category, module="transformers")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        late_methods()
        for arguments in VERBS:
            verb(*arguments)
        os.chdir("/")
    print(f"smoke test passed: {len(VERBS)} verbs")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
