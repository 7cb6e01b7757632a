"""ropescale.diagnose of an adapter: what it was trained on is what its config names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import checks, edited, patched

import ropescale
from ropescale.adapter_files import RECORD_FILE


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """An adapter that was trained on the checkpoint patched with yarn x4, and says so."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    edited("adapter_config.json", base_model_name_or_path=str(checkpoint), peft_type="LORA")(folder)
    record = ropescale.record(ropescale.patch(ropescale.load(checkpoint), "yarn", factor=4))
    (folder / RECORD_FILE).write_text(json.dumps(record.to_dict()))
    return folder


def test_an_adapter_for_its_unscaled_base_is_clean(adapter: Path) -> None:
    assert ropescale.diagnose(adapter) == []


def test_an_adapter_for_its_patched_base_is_clean(adapter: Path, checkpoint: Path) -> None:
    patched()(checkpoint)
    assert ropescale.diagnose(adapter) == []


@pytest.mark.parametrize("other", [patched("linear"), patched("yarn", beta_fast=16)], ids=["method", "knob"])
def test_an_adapter_that_was_trained_under_another_scaling_is_found(
    other: Callable[[Path], Any], adapter: Path, checkpoint: Path, plain: Path
) -> None:
    other(checkpoint)
    assert checks(ropescale.diagnose(adapter)) == {"adapter-scaling"}
    edited("adapter_config.json", base_model_name_or_path=str(plain))(adapter)  # "or name the unscaled base"
    assert ropescale.diagnose(adapter) == []


def test_an_adapter_of_another_base_is_found(adapter: Path, checkpoint: Path) -> None:
    edited(rope_parameters={"rope_type": "default", "rope_theta": 5e5})(checkpoint)
    assert checks(ropescale.diagnose(adapter)) == {"adapter-scaling"}


def test_an_adapter_without_a_record_for_a_patched_base_is_found(adapter: Path, checkpoint: Path) -> None:
    record = (adapter / RECORD_FILE).read_text()
    (adapter / RECORD_FILE).unlink()
    assert ropescale.diagnose(adapter) == []  # an unscaled base: nothing says that it was another
    patched()(checkpoint)
    assert checks(ropescale.diagnose(adapter)) == {"adapter-record"}
    (adapter / RECORD_FILE).write_text(record)
    assert ropescale.diagnose(adapter) == []


def test_an_adapter_without_a_base_is_found(adapter: Path, checkpoint: Path) -> None:
    edited("adapter_config.json", base_model_name_or_path="")(adapter)
    assert checks(ropescale.diagnose(adapter)) == {"adapter-base"}
    edited("adapter_config.json", base_model_name_or_path=str(checkpoint))(adapter)
    assert ropescale.diagnose(adapter) == []
