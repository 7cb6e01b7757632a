"""Models that are larger than a device, as an evaluation sees them."""

import json
from dataclasses import replace

import pytest
from grids import run

from ropescale.errors import InvalidArgumentError


@pytest.fixture
def asked(options):
    return replace(
        options, methods=("yarn", "dynamic_yarn", "self_extend"), tasks=("perplexity", "passkey", "cloze"), limit=4
    )


def test_a_model_of_which_most_lies_on_the_disk_has_the_figures_and_the_weights_of_a_whole_one(asked, tmp_path):
    whole = run(asked, tmp_path / "whole")
    places = {"model.norm": "cpu", "model.rotary_emb": "cpu", "model.embed_tokens": "disk", "lm_head": "disk"}
    places |= {"model.layers.0": "disk", "model.layers.1": "cpu"}
    spread = run(replace(asked, device_map=json.dumps(places)), tmp_path / "spread")
    assert spread.settings == whole.settings  # one may go on where the other was
    for key, cell in whole.cells.items():
        assert spread.cells[key].samples == cell.samples
    assert spread.session.device.startswith("cpu, by device_map {")


def test_cells_of_weights_in_8_bits_stay_apart_from_those_in_full(asked, tmp_path):
    few = replace(asked, methods=("yarn",), tasks=("cloze",))
    run(few, tmp_path / "whole")
    with pytest.raises(InvalidArgumentError, match="must be of the same weights"):
        run(replace(few, quantization="bnb-8bit"), tmp_path / "whole")
    eight = run(replace(few, quantization="bnb-8bit"), tmp_path / "eight")
    assert eight.settings.form == "float32, quantization bnb-8bit"
    with pytest.raises(InvalidArgumentError, match="must be of the same loading"):
        run(replace(few, attention="eager"), tmp_path / "whole")


def test_what_vllm_does_in_its_own_way_is_refused(asked):
    with pytest.raises(InvalidArgumentError) as caught:
        replace(asked, methods=("none",), backend="vllm", quantization="bnb-8bit")
    assert str(caught.value) == (
        "eval: quantization is of the backend transformers, got 'bnb-8bit' with vllm, which loads in its own way; "
        "leave it out"
    )
