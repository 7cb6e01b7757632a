"""Whether a device gives the logits that a CPU gives: every method, in float32 and in bfloat16.

    python scripts/device_agreement.py --output agreement.json        # on a GPU, where flex attention reads
    python scripts/device_agreement.py --device cpu --methods yarn    # bfloat16 against float32 alone

The embedded checkpoint reads 512 tokens of held-out text, patched with a method x4. What is held against each other
are its logits on the CPU in float32 with those of the device in float32 (TF32 off) and in bfloat16: the largest
difference as a share of the largest logit, how often both would choose the same token, and the mean KL divergence in
nats. The unpatched model is the first line: what bfloat16 costs without any method. Beyond `--bound` a float32
difference is an error, and the exit status 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

import ropescale
from ropescale.errors import RopescaleError
from ropescale.evals.texts import documents
from ropescale.evals.tokens import named_tokenizer

LENGTH, FACTOR = 512, 4
KNOBS: dict[str, dict[str, Any]] = {
    "abf": {"theta": 5e5},
    "learned": {"max_length": LENGTH},
    "longrope": {"long_factor": [1 + 3 * pair / 16 for pair in range(16)]},
    "proportional": {"partial_rotary_factor": 0.5},
    "self_extend": {"group_size": 8, "window": 64},
}


def main() -> int:
    """Measure, print and write; 1 where a method differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda given: given.split(","), help="default: every one that patches")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--bound", type=float, default=1e-3, help="of a float32 difference (default: 1e-3)")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    asked = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(asked.device)
    ids = named_tokenizer("tiny")(documents("sample")[0].text, return_tensors="pt").input_ids[:, :LENGTH]
    rows: dict[str, Any] = {}
    for method in (None, *(asked.methods or ropescale.list_methods())):
        name = method or "unpatched"
        try:
            rows[name] = compared(method, ids, device)
        except RopescaleError as error:
            rows[name] = {"refused": str(error)}
        print(name, json.dumps(rows[name]), flush=True)
    wrong = [name for name, row in rows.items() if row.get("float32", {}).get("largest", 0) > asked.bound]
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "bound": asked.bound,
        "differ": wrong,
    }
    if asked.output:
        asked.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(f"these differ: {', '.join(wrong)}" if wrong else "every float32 difference is within the bound")
    return bool(wrong)


@torch.inference_mode()
def compared(method: str | None, ids: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """What a method's logits on the device are from those on the CPU, for each type of numbers."""
    model = ropescale.load("tiny").eval()
    if method is not None:
        ropescale.patch(model, method, **{"factor": FACTOR, **KNOBS.get(method, {})})
    exact = model(ids).logits[0].double()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        logits = model.to(device, dtype)(ids.to(device)).logits[0].cpu().double()
        told, meant = logits.log_softmax(-1), exact.log_softmax(-1)
        found[str(dtype).removeprefix("torch.")] = {
            "largest": float((logits - exact).abs().max() / exact.abs().max()),
            "same_token": float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
            "divergence": float((meant.exp() * (meant - told)).sum(-1).mean()),
        }
    return found


if __name__ == "__main__":
    raise SystemExit(main())
