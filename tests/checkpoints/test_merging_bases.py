"""Adapters merged onto another base than theirs, or the same in other files."""

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from merges import LORA, TINY
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

import ropescale
from ropescale import cli
from ropescale.adapters import load_adapter, save_adapter
from ropescale.digest import differing, digest_of
from ropescale.errors import InvalidArgumentError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


# ---- another base


def test_another_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(9)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(tmp_path / "other")
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    save_adapter(peft.get_peft_model(base, LoraConfig(**LORA)), tmp_path / "adapter")
    said = r"base: weights must be those that the adapter .* was trained on, got other values in \d+ of \d+ tensors"
    with pytest.raises(InvalidArgumentError, match=said):
        load_adapter(tmp_path / "other", tmp_path / "adapter")
    other, path = str(tmp_path / "other"), str(tmp_path / "adapter")
    assert cli.main(["merge", path, str(tmp_path / "merged"), "--base", other]) == 2
    assert cli.main(["export", other, str(tmp_path / "out"), "--to", "vllm", "--adapter", path]) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert len(refusals) == 2
    assert all(re.search(said, line) for line in refusals)
    # what the user insists on, and records of earlier versions
    record = tmp_path / "adapter" / "ropescale.json"
    record.write_text(
        json.dumps({name: one for name, one in json.loads(record.read_text()).items() if name != "base"})
    )
    load_adapter(tmp_path / "other", tmp_path / "adapter")


def nearly(model: Any) -> Any:
    """A tenth of a percent more in one layer, as a longer training leaves it."""
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.001)
    return model


def test_a_base_is_the_same_in_another_type_and_in_other_files(tmp_path: Path) -> None:
    base = ropescale.load("tiny")
    digest = digest_of(base, without=set())
    assert differing(base, digest) == ([], len(digest))
    base.save_pretrained(tmp_path / "shards", max_shard_size="500KB")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=dtype)
        assert differing(again, digest) == ([], len(digest))
        assert differing(base, digest_of(again, without=set())) == ([], len(digest))
        assert differing(again.float(), digest_of(base.to(torch.bfloat16), without=set())) == ([], len(digest))
        base = ropescale.load("tiny")
    assert differing(nearly(base), digest)[0] == ["model.layers.0.mlp.up_proj.weight"]


def test_a_quantised_base_is_said_to_be_one_rather_than_refused(tmp_path: Path) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    save_adapter(peft.get_peft_model(base, LoraConfig(**LORA)), tmp_path / "adapter")
    quantised = nearly(ropescale.load("tiny"))
    quantised.is_quantized = True
    with pytest.warns(
        UserWarning, match=r"base: whether its weights are those that the adapter .* cannot be seen: 1 of"
    ):
        load_adapter(quantised, tmp_path / "adapter")
