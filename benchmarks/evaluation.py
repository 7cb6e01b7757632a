"""What the evaluation engine saves: memory and time against the harness's own HFLM, on the same model and texts.

    python benchmarks/evaluation.py --quick                    # the embedded model, under a minute; no claims
    python benchmarks/evaluation.py                            # SmolLM2-135M on one thread, about forty minutes
    python benchmarks/evaluation.py --sections memory --long   # also 32,768 tokens, which take many minutes more

Every comparison is a ratio within one run. Times are pairs in one process, in turn the one and the other first. The
bars are about wall time; CPU time is given too: where the ratios differ, the machine did something else meanwhile.
Memory is the peak above a loaded model, each engine in a fresh process. The sections:

    memory     perplexity of 8,192 tokens: at most 1/3 of HFLM's memory; with --long 32,768 tokens within 6 GiB in all
    position   loss by position up to 8,192 tokens: at most the time of HFLM's log-likelihood of the same tokens
    strided    windows of 2,048 tokens moved by 1,024: at most 1.5 times the time of HFLM's windows side by side
    passkey    grids at 2,048 and 4,096 tokens: 5 depths 1.25 times and 11 depths 1.5 times faster than one generate
               per prompt. Were every token as costly, sharing beginnings would allow 2k / (k + 2) for k depths; the
               square of attention makes beginnings cheap, so longer prompts gain less
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # the harness has a bar that cannot be turned off otherwise

import lm_eval
import torch
import transformers
from circumstances import circumstances
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ropescale
from ropescale.evals.engine import RopescaleLM, token_losses
from ropescale.evals.passkey import passkey_samples
from ropescale.evals.texts import sample
from ropescale.evals.tokens import named_tokenizer

SECTIONS = ("memory", "position", "strided", "passkey")
LIMIT = 6 * 2**30  # bytes for 32,768 tokens in all


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which model, and how many tokens each section reads."""

    model: str
    factor: float | None  # of a YaRN patch, where the model alone is too short
    read: int  # memory and position
    window: int  # strided
    passkey: tuple[int, ...]


FULL = Sizes(model="smollm2", factor=None, read=8192, window=2048, passkey=(2048, 4096))
QUICK = Sizes(model="tiny", factor=4.0, read=512, window=128, passkey=(480,))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated (default: all)")
    parser.add_argument("--quick", action="store_true", help="the embedded model and short texts: does it run at all")
    parser.add_argument("--long", action="store_true", help="memory: also 32,768 tokens under YaRN x4")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of timed runs (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one engine in a fresh process: its peak memory
    return parser.parse_args()


def model_of(sizes: Sizes) -> PreTrainedModel:
    model = ropescale.load(sizes.model, dtype=torch.float32).eval()
    return ropescale.patch(model, "yarn", factor=sizes.factor) if sizes.factor else model


def harness(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int | None = None) -> HFLM:
    """The harness's own class. Without add_bos_token it would predict the tokenizer's first token after its own."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=length, add_bos_token=False)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """A real text of that many tokens, or one or two fewer where the cut does not survive decoding."""
    whole = "\n\n".join(document.text for document in sample())
    while len(ids := tokenizer.encode(whole, add_special_tokens=False, verbose=False)) < tokens:
        whole += f"\n\n{whole}"
    for last in range(tokens, 0, -1):
        text: str = tokenizer.decode(ids[:last])
        if len(tokenizer.encode(text, add_special_tokens=False, verbose=False)) <= tokens:
            return text
    raise AssertionError("a tokenizer whose texts only grow")


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[dict[str, Any], Any, Any]:
    """Ratios of times, ours / theirs, and what both returned; each round begins with the other one."""
    taken: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    returned: dict[str, Any] = {}
    for number in range(rounds):
        pair = [("ours", ours), ("theirs", theirs)]
        for name, work in pair if number % 2 else pair[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            returned[name] = work()
            taken[name].append({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
    figures: dict[str, Any] = {"seconds": taken}
    for clock in ("wall", "cpu"):
        ratios = [a[clock] / b[clock] for a, b in zip(taken["ours"], taken["theirs"], strict=True)]
        figures[f"{clock}_ratios"] = ratios
        figures[clock] = sorted(ratios)[len(ratios) // 2]
    return figures, returned["ours"], returned["theirs"]


def say(line: str) -> None:
    print(line, flush=True)  # the next one may take a long time


def status(field: str) -> int:
    """Bytes, as Linux counts this process: VmRSS is what it has now, VmHWM the most that it had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def child(task: str, sizes: Sizes) -> dict[str, int]:
    """The peak of one engine (`ours:8192`, `theirs:8192`) above a loaded model, and in all."""
    engine, _, tokens = task.partition(":")
    model = ropescale.load(sizes.model, dtype=torch.float32).eval()
    reach = model.config.max_position_embeddings
    if int(tokens) > reach:
        ropescale.patch(model, "yarn", factor=int(tokens) / reach)
    tokenizer = named_tokenizer(sizes.model)
    lm = RopescaleLM(model, tokenizer) if engine == "ours" else harness(model, tokenizer)
    asked = [request("loglikelihood_rolling", text_of(tokenizer, int(tokens)))]
    lm.loglikelihood_rolling([request("loglikelihood_rolling", "A few words.")], disable_tqdm=True)  # what loads late
    Path("/proc/self/clear_refs").write_text("5")  # the peak of loading does not count
    loaded = status("VmRSS")
    lm.loglikelihood_rolling(asked, disable_tqdm=True)
    return {"loaded": loaded, "above": status("VmHWM") - loaded, "peak": status("VmHWM")}


def memory(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    def measured(task: str) -> dict[str, int]:
        command = [sys.executable, __file__, "--child", task, "--threads", str(arguments.threads)]
        command += ["--quick"] if arguments.quick else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found

    ours, theirs = measured(f"ours:{sizes.read}"), measured(f"theirs:{sizes.read}")
    ratio = ours["above"] / theirs["above"]
    figures: dict[str, Any] = {"tokens": sizes.read, "ours": ours, "theirs": theirs, "ratio": ratio}
    say(
        f"perplexity of {sizes.read:,} tokens: {ours['above'] / 2**20:,.0f} MiB above the model, HFLM "
        f"{theirs['above'] / 2**20:,.0f} MiB: {ratio:.2f} of it (bar: 0.33)"
    )
    met = ratio <= 1 / 3
    if arguments.long:
        long = measured(f"ours:{4 * sizes.read}")
        figures["long"] = {"tokens": 4 * sizes.read, **long}
        say(f"{4 * sizes.read:,} tokens: {long['peak'] / 2**30:.2f} GiB in all (bar: 6)")
        met &= long["peak"] <= LIMIT
    return figures, met


def position(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    model, tokenizer = model_of(sizes), named_tokenizer(sizes.model)
    text = text_of(tokenizer, sizes.read)
    theirs = harness(model, tokenizer)
    ids = torch.tensor([[theirs.prefix_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
    asked = [request("loglikelihood_rolling", text)]
    figures, losses, totals = paired(
        lambda: token_losses(model, ids),
        lambda: theirs.loglikelihood_rolling(asked, disable_tqdm=True),
        arguments.rounds,
    )
    apart = abs(float(losses.double().sum()) + totals[0]) / losses.numel()
    figures |= {"tokens": losses.numel(), "nats_apart_per_token": apart}
    say(
        f"loss by position up to {losses.numel():,}: {figures['wall']:.2f} of the time of one HFLM run (CPU "
        f"{figures['cpu']:.2f}; bar: 1.00); means {apart:.1e} nats apart"
    )
    return figures, figures["wall"] <= 1


def strided(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    model, tokenizer = model_of(sizes), named_tokenizer(sizes.model)
    window = sizes.window
    theirs = harness(model, tokenizer, window)
    ours = RopescaleLM(model, tokenizer, add_bos_token=False, window=window, stride=window // 2)
    beside = RopescaleLM(model, tokenizer, add_bos_token=False, window=window)
    found, met = {}, True
    for times in (2, 4):
        asked = [request("loglikelihood_rolling", text_of(tokenizer, times * window))]
        figures, _, totals = paired(
            lambda asked=asked: ours.loglikelihood_rolling(asked, disable_tqdm=True),
            lambda asked=asked: theirs.loglikelihood_rolling(asked, disable_tqdm=True),
            arguments.rounds,
        )
        same = beside.loglikelihood_rolling(asked, disable_tqdm=True)[0]
        figures["nats_apart_per_token"] = abs(same - totals[0]) / (times * window)
        found[f"{times}W"] = figures
        naive = (2 * times - 1) / times
        say(
            f"strided, windows of {window:,} moved by half, a text of {times} windows: {figures['wall']:.2f} times "
            f"HFLM's windows side by side (CPU {figures['cpu']:.2f}; windows alone {naive:.2f}; bar: 1.50); ours side "
            f"by side {figures['nats_apart_per_token']:.1e} nats per token apart"
        )
        met &= figures["wall"] <= 1.5
    return {"window": window, **found}, met


def passkey(sizes: Sizes, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    model, tokenizer = model_of(sizes), named_tokenizer(sizes.model)
    ours, theirs = RopescaleLM(model, tokenizer), harness(model, tokenizer)
    given = {"until": ["\n"], "max_gen_toks": 10, "do_sample": False}
    found, met = {}, True
    for length, (depths, bar) in product(sizes.passkey, ((5, 1.25), (11, 1.5))):
        samples = passkey_samples(
            tokenizer,
            length=length - given["max_gen_toks"],
            depths=[i / (depths - 1) for i in range(depths)],
            count=1,
            seed=0,
        )
        prompts = [tokenizer.decode(one.input_ids[: -one.answer_length]) for one in samples]
        asked = [request("generate_until", prompt, given) for prompt in prompts]
        figures, replies, alone = paired(
            lambda asked=asked: ours.generate_until(asked, disable_tqdm=True),
            lambda asked=asked: theirs.generate_until(asked, disable_tqdm=True),
            arguments.rounds,
        )
        figures["identical"] = replies == alone
        figures["keys_found"] = sum(one.key in reply for one, reply in zip(samples, replies, strict=True))
        found[f"{length} tokens, {depths} depths"] = figures
        faster = {clock: 1 / figures[clock] for clock in ("wall", "cpu")}
        say(
            f"passkeys at {length:,} tokens, {depths} depths: {faster['wall']:.2f} times faster than one "
            f"generate per prompt (CPU {faster['cpu']:.2f}; bar: {bar}; reuse alone allows "
            f"{2 * depths / (depths + 2):.2f}); replies {'identical' if figures['identical'] else 'DIFFER'}, "
            f"{figures['keys_found']} of {depths} right"
        )
        met &= faster["wall"] >= bar and figures["identical"]
    return found, met


def main() -> int:
    arguments = parsed()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else FULL
    if arguments.child:
        print(json.dumps(child(arguments.child, sizes)))
        return 0
    asked = arguments.sections.split(",")
    unknown = set(asked) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"--sections: must be of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    figures: dict[str, Any] = {
        "measured": circumstances(),
        "versions": {
            "ropescale": ropescale.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "lm_eval": lm_eval.__version__,
        },
        "model": sizes.model,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }
    work = {"memory": memory, "position": position, "strided": strided, "passkey": passkey}
    missed = []
    for name in asked:
        figures[name], met = work[name](sizes, arguments)
        if not met:
            missed.append(name)
        if arguments.output:
            arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.quick:
        print("the embedded model is too small for these bars; nothing is claimed")
        return 0
    print(f"bars missed: {', '.join(missed)}" if missed else "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
