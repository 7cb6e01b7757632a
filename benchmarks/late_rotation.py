"""What late rotation costs: methods that act when attention reads, against the unpatched model under sdpa.

    python benchmarks/late_rotation.py --quick   # 1,024 tokens, a minute; no claims
    python benchmarks/late_rotation.py           # 4,096 and 8,192 tokens on one thread, about twenty minutes
    python benchmarks/late_rotation.py --methods dpe,jet_long
    python benchmarks/late_rotation.py --methods dpe,lpes --only decode --rounds 10

An 8-layer Llama, 512 wide, 8 heads of 64 (and once 2 key heads), vocabulary 1,000, float32, original length 1,024.
Times are the processor's, in pairs in one process, patched and unpatched in turn, `--rounds` of them; the ratio is the
median of the pairs' ratios, and the seconds kept beside it are the best. Memory is the peak above the loaded model,
each in a fresh process whose allocator gives freed blocks of a megabyte or more back at once
(MALLOC_MMAP_THRESHOLD_): glibc otherwise keeps holes, so that the peak of the same run, the unpatched model's too,
differs by half from one run to the next; `--keep-holes` measures that. The bars, patched / unpatched:

    prefill at 4,096 and 8,192 tokens: 1.6 for methods of two regions and for growth="double", 1.3 for those of one
    memory of a prefill at 4,096 tokens: 1.4
    one decoded token over a cache of 1,024 tokens: 1.2; of 8,192: 2.2

and for dynamic_self_extend, jet_long, dpe, ms_poe and lpes: 1.25 for prefill, and 1.2 for memory, at 8,192 tokens
too.

growth="exact" rotates every key for every query; it is measured at 2,048 tokens and has no bar.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from circumstances import circumstances
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import ropescale
from ropescale.injection.places import cache_keyword

ORIGINAL = 1024  # tokens
# name, knobs, regions that a query of a long prompt meets
METHODS: list[tuple[str, dict[str, Any], int]] = [
    ("self_extend", {"group_size": 16, "window": 512}, 2),
    ("rerope", {}, 2),
    ("dual_chunk", {}, 3),
    ("lm_infinite", {}, 2),
    ("dynamic_yarn", {}, 1),
    ("alibi", {}, 1),
    ("nope", {}, 1),
    ("dynamic_self_extend", {}, 2),
    ("jet_long", {}, 2),
    ("dpe", {}, 2),
    ("ms_poe", {}, 1),
    ("lpes", {}, 1),
]
PREFILL_BARS = {1: 1.3, 2: 1.6, 3: 1.6}
DOUBLING_BAR = 1.6
MEMORY_BAR = 1.4
WHAT = ("prefill", "memory", "decode")
CLOSER = ("dynamic_self_extend", "jet_long", "dpe", "ms_poe", "lpes")  # of prefill 1.25, of memory 1.2


def bars(method: str, regions: int) -> tuple[float, float]:
    """Of prefill and of memory."""
    if method in CLOSER:
        return 1.25, 1.2
    return DOUBLING_BAR if method.startswith("dynamic") else PREFILL_BARS[regions], MEMORY_BAR


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,024 tokens: does it run at all")
    names = [name for name, *_ in METHODS]
    parser.add_argument("--methods", type=lambda given: given.split(","), default=names, help="default: all")
    parser.add_argument("--only", choices=WHAT, help="of a method (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs (default: 3); of the longer cache a third")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--keep-holes", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one prefill in a fresh process: its peak memory
    return parser.parse_args()


def model_of(key_heads: int = 8) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=key_heads, max_position_embeddings=ORIGINAL,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, all threads together: other programs of the machine do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.inference_mode()
def paired(method: str, knobs: dict[str, Any], key_heads: int, work: Callable[[LlamaForCausalLM], object],
           rounds: int) -> dict[str, float]:  # fmt: skip
    """The best seconds of a work on the unpatched and on the patched model, and the median ratio of their pairs."""
    native, patched = model_of(key_heads), model_of(key_heads)
    ropescale.patch(patched, method, **knobs)
    taken: dict[str, list[float]] = {"native": [], "patched": []}
    for _ in range(rounds):
        taken["native"].append(seconds(lambda: work(native)))
        taken["patched"].append(seconds(lambda: work(patched)))
    best = {name: min(values) for name, values in taken.items()}
    ratios = [patched / native for native, patched in zip(taken["native"], taken["patched"], strict=True)]
    return {**best, "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def prefill(length: int) -> Callable[[LlamaForCausalLM], object]:
    ids = torch.randint(0, 1000, (1, length), generator=torch.Generator().manual_seed(1))
    return lambda model: model.model(ids.to(model.device), use_cache=False)


def decode(length: int, steps: int = 8) -> Callable[[LlamaForCausalLM], object]:
    """Some tokens over a cache of a length; the cache is filled by hand, for its content does not matter."""
    ids = torch.randint(0, 1000, (1, steps), generator=torch.Generator().manual_seed(1))

    def work(model: LlamaForCausalLM) -> None:
        config = model.config
        cache = DynamicCache(config=config)
        some = torch.zeros(1, config.num_key_value_heads, length, 64, device=model.device, dtype=model.dtype)
        for layer in range(config.num_hidden_layers):
            cache.update(some, some, layer)
        for step in range(steps):
            model.model(ids[:, step : step + 1].to(model.device), **{cache_keyword(model.model): cache})

    return work


def status(field: str) -> int:
    """Bytes, as Linux counts this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@torch.inference_mode()
def child(task: dict[str, Any]) -> int:
    """The peak of one prefill above a loaded model, in bytes."""
    model = model_of(task["key_heads"])
    if task["method"]:
        ropescale.patch(model, task["method"], **task["knobs"])
    prefill(64)(model)  # what loads late
    Path("/proc/self/clear_refs").write_text("5")
    loaded = status("VmRSS")
    prefill(task["length"])(model)
    return status("VmHWM") - loaded


def memory(method: str, knobs: dict[str, Any], length: int, arguments: argparse.Namespace, key_heads: int = 8) -> int:
    task = json.dumps({"method": method, "knobs": knobs, "length": length, "key_heads": key_heads})
    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--child", task]
    allocator = {} if arguments.keep_holes else {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **allocator})
    return int(done.stdout.splitlines()[-1])


def main() -> int:
    arguments = parsed()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(child(json.loads(arguments.child)))
        return 0
    lengths = (1024,) if arguments.quick else (4096, 8192)
    caches = (256,) if arguments.quick else (1024, 8192)
    figures: dict[str, Any] = {
        "measured": circumstances(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": arguments.threads,
        "rows": [],
    }
    missed = []

    def note(method: str, what: str, value: float, bar: float | None, **more: Any) -> None:
        met = bar is None or value <= bar
        if not met:
            missed.append(f"{method} {what}")
        figures["rows"].append({"method": method, "what": what, "ratio": value, "bar": bar, **more})
        bound = "" if bar is None else f" (bar: {bar}{'' if met else ', MISSED'})"
        print(f"{method:14} {what:42} {value:6.2f}{bound}", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")

    prefills, memories, decodes = (arguments.only in (None, what) for what in WHAT)
    native = {length: memory("", {}, length, arguments) for length in lengths} if memories else {}
    for method, knobs, regions in [one for one in METHODS if one[0] in arguments.methods]:
        bar, memory_bar = bars(method, regions)
        for length in lengths if prefills else ():
            found = paired(method, knobs, 8, prefill(length), arguments.rounds)
            note(method, f"prefill, {length:,} tokens", found["ratio"], bar, **found)
        for length in (lengths if method in CLOSER else lengths[:1]) if memories else ():
            peak = memory(method, knobs, length, arguments)
            note(method, f"memory of a prefill, {length:,} tokens", peak / native[length], memory_bar, bytes=peak)
        for length, limit in zip(caches if decodes else (), (1.2, 2.2), strict=False):
            rounds = arguments.rounds if length == caches[0] else max(2, arguments.rounds // 3)
            found = paired(method, knobs, 8, decode(length), rounds)
            note(method, f"decode over {length:,} tokens", found["ratio"], limit, **found)
    if arguments.only or arguments.methods != [name for name, *_ in METHODS]:
        return ended(missed, arguments)
    method, knobs, regions = METHODS[0]
    found = paired(method, knobs, 2, prefill(lengths[0]), arguments.rounds)
    note(method, f"prefill, {lengths[0]:,} tokens, 2 key heads", found["ratio"], PREFILL_BARS[regions], **found)
    peak = memory(method, knobs, lengths[0], arguments, key_heads=2)
    ratio = peak / memory("", {}, lengths[0], arguments, key_heads=2)
    note(method, f"memory of a prefill, {lengths[0]:,} tokens, 2 key heads", ratio, MEMORY_BAR, bytes=peak)
    found = paired("dynamic_yarn", {"growth": "exact"}, 8, prefill(min(lengths[0], 2048)), 1)
    note("dynamic_yarn", f"prefill, {min(lengths[0], 2048):,} tokens, exact growth", found["ratio"], None, **found)
    return ended(missed, arguments)


def ended(missed: list[str], arguments: argparse.Namespace) -> int:
    """The exit status, with the last line."""
    if arguments.quick:
        print("these lengths are too short for the bars; nothing is claimed")
        return 0
    print(f"bars missed: {', '.join(missed)}" if missed else "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
