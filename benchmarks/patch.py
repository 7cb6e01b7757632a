"""What a patch costs: the call itself, and the forward pass of a patched model against Transformers' own.

    python benchmarks/patch.py            # about four minutes on 2 cores

A patch replaces two buffers, so nothing should be slower afterwards; the call itself reads the model in a few passes
of 16 tokens, which prove it. The claim is a ratio, measured in pairs within one
run: each round times, best of three, the patched model, the native one (the same config read by Transformers)
and a second native one, in random order. Patched / native should lie at 1.00 within the spread of native / native.
"""

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from circumstances import circumstances
from transformers import LlamaConfig, LlamaForCausalLM

import ropescale
from ropescale.injection.places import cache_keyword


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="paired rounds of prefill and decode (default: 25)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best(work: Callable[[], object], times: int = 3) -> float:
    """The shortest of a few runs: what else the machine does only ever adds."""
    return min(seconds(work) for _ in range(times))


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the bounds that hold nine tenths of the values."""
    cuts = statistics.quantiles(values, n=20)
    return {"low": cuts[0], "median": statistics.median(values), "high": cuts[-1]}


def call_cost(method: str, layers: int = 80, times: int = 10) -> dict[str, float]:
    """Milliseconds of patch (with its proof) and of unpatch on a model of 80 layers, and of one forward of 16 tokens.

    With the tokens that the proof reads, counted where they enter the model: ten passes of 16 tokens are the most.
    """
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 256, (1, 16))
    with torch.inference_mode():
        model(ids)
        forward = [seconds(lambda: model(ids)) for _ in range(times)]
    patch, unpatch = [], []
    tokens: list[int] = []
    for _ in range(times):
        tokens.clear()
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _, __, found: tokens.append(found[..., 0].numel())
        )
        patch.append(seconds(lambda: ropescale.patch(model, method, factor=4)))
        hook.remove()
        unpatch.append(seconds(lambda: ropescale.unpatch(model)))
    cost = {"patch_ms": patch, "unpatch_ms": unpatch, "forward_16_tokens_ms": forward}
    medians = {name: 1000 * statistics.median(values) for name, values in cost.items()}
    ratio = medians["patch_ms"] / medians["forward_16_tokens_ms"]
    return {"layers": layers, **medians, "passes": len(tokens), "tokens": sum(tokens), "patch / forward": ratio}


def models() -> dict[str, LlamaForCausalLM]:
    """The patched model, the native one and its twin, with the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    patched = LlamaForCausalLM(config).eval()
    ropescale.patch(patched, "yarn", factor=4)
    native = LlamaForCausalLM(copy.deepcopy(patched.config)).eval()
    native.load_state_dict(patched.state_dict())
    return {"patched": patched, "native": native, "control": copy.deepcopy(native)}


def prefill(model: LlamaForCausalLM, ids: torch.Tensor) -> object:
    return model(ids, use_cache=True, logits_to_keep=1)


def decode(model: LlamaForCausalLM, ids: torch.Tensor, steps: int = 32) -> object:
    step, keyword = prefill(model, ids[:, :128]), cache_keyword(model)
    for position in range(128, 128 + steps):
        step = model(ids[:, position : position + 1], use_cache=True, **{keyword: step[keyword]})
    return step


def paired_ratios(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Ratios of times, in pairs: phase -> comparison -> spread."""
    candidates = models()
    ids = torch.randint(0, 4096, (1, 1024))
    shuffle = random.Random(0)
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    with torch.inference_mode():
        for phase, work in (("prefill of 1024 tokens", prefill), ("decode of 32 tokens", decode)):
            for model in candidates.values():
                work(model, ids)
            taken: list[dict[str, float]] = []
            for _ in range(rounds):
                order = list(candidates)
                shuffle.shuffle(order)
                taken.append({name: best(partial(work, candidates[name], ids)) for name in order})
            ratios[phase] = {
                "patched / native": spread([one["patched"] / one["native"] for one in taken]),
                "native / native": spread([one["control"] / one["native"] for one in taken]),
            }
    return ratios


def help_seconds(times: int = 5) -> float:
    """The median time of a whole `ropescale --help` process."""
    command = [sys.executable, "-m", "ropescale.cli", "--help"]
    return statistics.median(
        seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(times)
    )


def main() -> int:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    figures = {
        "measured": circumstances(),
        "versions": {
            "ropescale": ropescale.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "call": {method: call_cost(method) for method in ("yarn", "self_extend")},
        "ratios": paired_ratios(arguments.rounds),
        "help_seconds": help_seconds(),
    }
    within = True
    for method, call in figures["call"].items():
        print(
            f"patch with {method} and its proof, {call['layers']} layers: {call['patch_ms']:.0f} ms, "
            f"{call['patch / forward']:.1f} times a forward of 16 tokens ({call['forward_16_tokens_ms']:.1f} ms); "
            f"{call['passes']} passes, {call['tokens']} tokens; unpatch: {call['unpatch_ms']:.2f} ms"
        )
        within &= call["tokens"] <= 10 * 16
    for phase, comparisons in figures["ratios"].items():
        control = comparisons["native / native"]
        for name, one in comparisons.items():
            print(f"{phase}, {name}: {one['median']:.3f} (nine tenths in {one['low']:.3f} to {one['high']:.3f})")
        within &= control["low"] <= comparisons["patched / native"]["median"] <= control["high"]
    print(f"patched / native lies {'within' if within else 'OUTSIDE'} the spread of native / native")
    print(f"ropescale --help: {figures['help_seconds']:.2f} s")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
