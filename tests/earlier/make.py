"""What today's version writes, kept: later versions read it with equal content.

    python tests/earlier/make.py FOLDER      # a new folder, named after the day that it was made on

A results folder, an adapter, a run of training, saved patched models and rescaled checkpoints of a small model, each
beside the logits that it gave when it was made.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.checkpoints import resolve
from ropescale.evals.report.findings import read_findings
from ropescale.evals.results import read

TOKENS = list(range(1, 49))  # beyond the 32 of pretraining
PATCHES = {
    "yarn": {"method": "yarn", "factor": 4},
    "self_extend": {"method": "self_extend", "group_size": 4, "window": 8},
    "ntk-log-n": {"method": "ntk", "factor": 2, "log_n": True},
    "dynamic_ntk": {"method": "dynamic_ntk", "factor": 4},
    "shaw": {"method": "shaw", "clip": 4},
}


def small() -> LlamaForCausalLM:
    """A Llama of one layer, with weights drawn by seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        architectures=["LlamaForCausalLM"],
    )
    return LlamaForCausalLM(config).eval()


def logits(model: torch.nn.Module) -> list[float]:
    """Of the last token."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS])).logits[0, -1].double().tolist()


def main(folder: Path) -> None:
    """Make everything."""
    folder.mkdir()
    expected = {}
    small().save_pretrained(folder / "base")
    for name, arguments in PATCHES.items():
        model = ropescale.patch(small(), **arguments)
        expected[name] = logits(model)
        model.save_pretrained(folder / name)
    ropescale.rescale_checkpoint(folder / "base", folder / "rescaled", "by_parts", factor=2)
    expected["rescaled"] = logits(ropescale.load(folder / "rescaled"))
    extended = ropescale.patch(small(), "yarn", factor=4)
    tuned = get_peft_model(extended, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    expected["adapter"] = logits(tuned.eval())
    save_adapter(tuned, folder / "adapter")
    with contextlib.chdir(folder):
        few = ["--tasks", "position,perplexity,passkey,cloze", "--samples", "1", "--windows", "1", "--limit", "4"]
        cli.main(["eval", "tiny", "--methods", "yarn,self_extend", "--factors", "4", *few, "--output", "results"])
        cli.main(
            ["train", "lora", "--model", "tiny", "--method", "yarn", "--factor", "2", "--data", "passkey",
             "--max-documents", "8", "--max-steps", "2", "--save-steps", "1", "--batch-size", "1", "--length", "128",
             "--rank", "1", "--eval-texts", "sample", "--eval-windows", "1", "--eval-passkeys", "1",
             "--eval-strategy", "no", "--output", "trained"]
        )  # fmt: skip
    rows = read_findings(read(folder / "results")).patched
    expected["results"] = {row.arm.label: [row.inside, row.reads, row.keeps, dict(row.averages)] for row in rows}
    # Kept small: without pages that are written from the rest, weights that are those of the base, checkpoints
    weights = (folder / "base" / "model.safetensors").read_bytes()
    same = [
        one for one in folder.glob("*/model.safetensors") if one.parent.name != "base" and one.read_bytes() == weights
    ]
    pages = [*folder.glob("*/*.html"), *folder.glob("trained/tokenizer*")]
    for path in [*same, *pages, *folder.rglob(".lock"), *folder.glob("results/report.*")]:
        path.unlink(missing_ok=True)
    for path in folder.glob("trained/checkpoint-*"):
        shutil.rmtree(path)
    path = folder / "trained" / "adapter_config.json"  # which says where the package lies on this machine
    path.write_text(path.read_text().replace(resolve("tiny"), "tiny"))
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
