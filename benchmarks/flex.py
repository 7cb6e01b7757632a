"""What late rotation costs on an accelerator: prefill and decoding against the unpatched model under sdpa.

    python benchmarks/flex.py --lengths 32768 --output flex-32k.json       # on a GPU
    python benchmarks/flex.py --lengths 131072 --methods self_extend
    python benchmarks/flex.py --device cpu --lengths 512 --rounds 1        # does it run at all

The model is that of benchmarks/late_rotation.py (8 layers, 512 wide, original length 1,024) in bfloat16 on a GPU and
float32 on a CPU. Both models read the same tokens in turn, each time the best of `--rounds` after one that compiles;
the device is waited for before the clock is read. Memory is the peak that is allocated above the loaded models; a CPU
does not say it, so that it is left out there. There is no bar yet: nothing was measured on a GPU.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from circumstances import circumstances
from late_rotation import METHODS, decode, model_of, prefill
from transformers import LlamaForCausalLM

import ropescale


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, *_ in METHODS]
    parser.add_argument("--methods", type=lambda given: given.split(","), default=names, help="default: all")
    parser.add_argument("--lengths", type=lambda given: [int(one) for one in given.split(",")], default=[32768])
    parser.add_argument("--rounds", type=int, default=3, help="pairs of which the best counts (default: 3)")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()


def waited(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def taken(model: LlamaForCausalLM, work: Callable[[LlamaForCausalLM], object]) -> tuple[float, int | None]:
    """Seconds, and bytes at the peak above what was there (None on a CPU)."""
    device = model.device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    waited(device)
    start = time.perf_counter()
    work(model)
    waited(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) - before if cuda else None


def paired(
    native: LlamaForCausalLM, patched: LlamaForCausalLM, work: Callable[[LlamaForCausalLM], object], rounds: int
) -> dict[str, Any]:
    """The best seconds of both, the peak of both, and what the patched one is of the other."""
    found: dict[str, list[tuple[float, int | None]]] = {"native": [], "patched": []}
    for _ in range(1 + rounds):
        found["native"].append(taken(native, work))
        found["patched"].append(taken(patched, work))
    best = {name: min(seconds for seconds, _ in runs[1:]) for name, runs in found.items()}
    peaks = {name: runs[-1][1] for name, runs in found.items()}
    ratio = {"ratio": best["patched"] / best["native"], "first": found["patched"][0][0]}
    if peaks["native"] and peaks["patched"] is not None:
        ratio["memory"] = peaks["patched"] / peaks["native"]
    return {**ratio, "seconds": best, "bytes": peaks}


def main() -> None:
    arguments = parsed()
    transformers.utils.logging.set_verbosity_error()
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows: list[dict[str, Any]] = []
    about = {
        "measured": circumstances(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    native = model_of().to(device, dtype)
    for method, knobs, _ in [one for one in METHODS if one[0] in arguments.methods]:
        patched = ropescale.patch(model_of().to(device, dtype), method, **knobs)
        for length in arguments.lengths:
            for what, work in (("prefill", prefill(length)), ("decode over", decode(length))):
                found = paired(native, patched, work, arguments.rounds)
                rows.append({"method": method, "what": what, "length": length, **found})
                memory = f", memory {found['memory']:.2f}" if "memory" in found else ""
                print(f"{method:20} {what:12} {length:8,} tokens {found['ratio']:6.2f}{memory}", flush=True)
                if arguments.output:
                    arguments.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
