"""Model cards, and a hub that takes what they stand beside: a patched model, an adapter, a report."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluations import write_evaluation
from huggingface_hub import ModelCard
from model_hub import TOKEN, hub_of_models
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import ropescale
from ropescale.adapters import save_adapter
from ropescale.evals import report

IDS = torch.arange(40)[None]


def test_a_patched_model_is_saved_with_a_card_that_says_what_it_is(tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4, beta_fast=16)
    model.save_pretrained(tmp_path / "longer")
    told = ModelCard.load(tmp_path / "longer" / "README.md")
    assert told.data.library_name == "transformers"
    assert told.data.tags == ["long-context", "ropescale"]
    for said in (
        "# tiny, extended to 512 tokens",
        "from 128 to 512 tokens, without training",
        "yarn, factor 4",
        "beta_fast 16",
        'ropescale.load("path/to/this/folder")',
        "AutoModelForCausalLM",
        '"method": "yarn"',
    ):
        assert said in told.text, said
    assert str(tmp_path) not in told.text
    ropescale.unpatch(model).save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "README.md").exists()
    assert "save_pretrained" not in vars(model)


def test_what_acts_in_attention_is_not_said_to_load_in_transformers_alone(tmp_path: Path) -> None:
    ropescale.patch(ropescale.load("tiny"), "self_extend", factor=4).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "ropescale.load(" in text
    assert "AutoModelForCausalLM" not in text


def test_a_card_of_somebody_stays_and_one_of_ours_is_written_anew(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    model = ropescale.load("tiny")
    with ropescale.patched(model, "yarn", factor=4):
        model.save_pretrained(tmp_path)
    with ropescale.patched(model, "ntk", factor=8):
        model.save_pretrained(tmp_path)  # the last one is nobody's work, and would be wrong now
        assert "extended to 1,024 tokens" in card.read_text()
        for mine in ("# mine\n", card.read_text().replace("without training", "with love"), ""):
            card.write_text(mine)
            model.save_pretrained(tmp_path)
            assert card.read_text() == mine
    card.unlink()
    card.symlink_to(tmp_path / "elsewhere.md")
    with ropescale.patched(model, "yarn", factor=4), pytest.raises(ropescale.RopescaleError, match=r"README\.md"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "elsewhere.md").exists()


@pytest.mark.parametrize("pickled", [False, True], ids=["copy", "pickle"])
def test_a_copy_of_a_patched_model_writes_a_card_of_its_own(pickled: bool, tmp_path: Path) -> None:
    model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    copied: PreTrainedModel = pickle.loads(pickle.dumps(model)) if pickled else copy.deepcopy(model)
    ropescale.unpatch(model)
    copied.save_pretrained(tmp_path)
    assert "extended to 512 tokens" in (tmp_path / "README.md").read_text()
    assert "save_pretrained" not in vars(ropescale.unpatch(copied))


def test_a_base_of_the_hub_is_named_and_a_folder_of_this_machine_is_not(tmp_path: Path) -> None:
    model = ropescale.load("tiny")
    for name, base in (("me/some-model", "me/some-model"), (str(tmp_path / "secret" / "mine"), None)):
        model.name_or_path = name
        with ropescale.patched(model, "yarn", factor=2):
            model.save_pretrained(tmp_path / "saved")
        told = ModelCard.load(tmp_path / "saved" / "README.md")
        assert told.data.base_model == base
        assert f"# {name.rpartition('/')[2] if base is None else name}, extended to 256 tokens" in told.text
        assert "secret" not in told.text


def adapter(folder: Path) -> Path:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for key, one in adapted.named_parameters():
        if "lora_B" in key:
            one.data.fill_(0.02)
    return save_adapter(adapted, folder)


def test_an_adapter_and_what_it_is_merged_into_have_cards_that_leave_nothing_to_fill_in(tmp_path: Path) -> None:
    from ropescale.adapters import merge

    merge(adapter(tmp_path / "adapter"), tmp_path / "merged", "tiny")
    told = {name: ModelCard.load(tmp_path / name / "README.md") for name in ("adapter", "merged")}
    assert told["adapter"].data.library_name == "peft"
    assert "ropescale.load_adapter(" in told["adapter"].text
    assert "trained as an adapter, which is merged into the weights" in told["merged"].text
    assert not any("More Information Needed" in card.text for card in told.values())


PUSHING = """\
import sys
from pathlib import Path
import huggingface_hub, torch, ropescale
from huggingface_hub import ModelCard

place, ids = Path(sys.argv[1]), torch.arange(40)[None]
model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
model.save_pretrained(place / "longer")
huggingface_hub.create_repo("me/longer")
huggingface_hub.upload_folder(repo_id="me/longer", folder_path=place / "longer")
model.push_to_hub("me/pushed")

huggingface_hub.create_repo("me/adapter")
huggingface_hub.upload_folder(repo_id="me/adapter", folder_path=place / "adapter")

huggingface_hub.upload_folder(repo_id="me/longer", folder_path=place / "results", path_in_repo="evaluation")
card, section = ModelCard.load("me/longer"), ModelCard.load(place / "results" / "model-card.md")
card.data.model_name, card.data.eval_results = section.data.model_name, section.data.eval_results
card.text += section.text
card.push_to_hub("me/longer")

with torch.inference_mode():
    wanted = model(ids).logits
    again = ropescale.load("me/longer")
    assert ropescale.record(again).target_length == 512
    assert torch.equal(again(ids).logits, wanted)
    assert torch.equal(ropescale.load("me/pushed")(ids).logits, wanted)
    torch.save(ropescale.load_adapter("tiny", "me/adapter")(ids).logits, place / "logits.pt")
"""


@pytest.mark.slow
def test_a_model_an_adapter_and_a_report_are_pushed_and_loaded_from_there(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter")
    report.write(write_evaluation(tmp_path / "results"))
    with hub_of_models() as hub:
        told = {
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # a store of its own, which this hub has not
        }
        command = [sys.executable, "-c", PUSHING, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **told})
        assert done.returncode == 0, done.stderr[-3000:]
    assert hub.faults == []
    assert {"README.md", "config.json", "model.safetensors", "evaluation/report.html"} <= hub.repos["me/longer"].keys()
    assert {"adapter_config.json", "ropescale.json", "README.md"} <= hub.repos["me/adapter"].keys()
    card = ModelCard(hub.repos["me/longer"]["README.md"].decode())
    assert card.data.tags == ["long-context", "ropescale"]
    assert card.data.model_name == "tiny (yarn x4)"
    assert card.data.eval_results
    assert "# tiny, extended to 512 tokens" in card.text
    assert "## Context extension" in card.text
    with torch.inference_mode():
        here = ropescale.load_adapter("tiny", tmp_path / "adapter")(IDS).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), here)
    with torch.inference_mode():  # what arrived, with Transformers alone
        folder = tmp_path / "arrived"
        folder.mkdir()
        for name, body in hub.repos["me/longer"].items():
            if "/" not in name:
                (folder / name).write_bytes(body)
        plain = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
        assert torch.equal(plain, ropescale.load(folder)(IDS).logits)
