"""What is said of damaged checkpoints and records, and that the disk stays as it was."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from wrong_calls import (
    AT_LEAST_ONE,
    CHOICES,
    DEFAULTS,
    METHODS,
    Wrong,
    damaged,
    in_the_one_form,
    parametrized,
    tree,
    untouched,
)

import ropescale
from ropescale import RopescaleError
from ropescale.errors import (
    AlreadyScaledError,
    CheckpointError,
)

ALL_FIELDS = (
    "['added', 'attention_factor', 'before', 'existing', 'knobs', 'layers', 'log_n', 'method', 'original_length', "
    "'original_length_source', 'rotary_dim', 'target_length', 'theta', 'versions']"
)


VERSION = ropescale.__version__


SAME_VERSION = "load with the version of ropescale that saved it"


EDITED = "one of the two was edited: remove the record to keep the config as it is"


RECORDS = [
    Wrong(
        "a record that is a word",
        lambda config: config.update(ropescale="linear"),
        CheckpointError,
        f"config: the ropescale record must hold the fields of version {VERSION}, got missing {ALL_FIELDS} and "
        f"unknown []; {SAME_VERSION}",
    ),
    Wrong(
        "an empty record",
        lambda config: config.update(ropescale={}),
        CheckpointError,
        f"config: the ropescale record must hold the fields of version {VERSION}, got missing {ALL_FIELDS} and "
        f"unknown []; {SAME_VERSION}",
    ),
    Wrong(
        "a record with a field missing and one too many",
        lambda config: config["ropescale"].update(note=config["ropescale"].pop("knobs")),
        CheckpointError,
        f"config: the ropescale record must hold the fields of version {VERSION}, got missing ['knobs'] and "
        f"unknown ['note']; {SAME_VERSION}",
    ),
    Wrong(
        "a record of a method that is not here",
        lambda config: config["ropescale"].update(method="zzz"),
        CheckpointError,
        f"config: the ropescale record must name a method of version {VERSION}, got 'zzz' with "
        f"{{'factor': 4.0, 'resonance': False}} (unknown method 'zzz'; available: {METHODS}); {SAME_VERSION}",
    ),
    Wrong(
        "a record with a knob out of bounds",
        lambda config: config["ropescale"]["knobs"].update(factor=0.5),
        CheckpointError,
        f"config: the ropescale record must name a method of version {VERSION}, got 'linear' with "
        f"{{'factor': 0.5, 'resonance': False}} (linear: factor must be a number of at least 1 and at most "
        f"16777216 {AT_LEAST_ONE}, got 0.5; {DEFAULTS}); {SAME_VERSION}",
    ),
    Wrong(
        "a maximum that was edited",
        lambda config: config.update(max_position_embeddings=512),
        CheckpointError,
        f"PATH: config.max_position_embeddings must be what the ropescale record gives (256), got 512; {EDITED}",
    ),
    Wrong(
        "a factor that was edited",
        lambda config: config["rope_parameters"].update(factor=8.0),
        CheckpointError,
        "PATH: config.rope_parameters must be what the ropescale record gives ({'rope_type': 'linear', 'rope_theta': "
        "10000.0, 'factor': 4.0}), got {'factor': 8.0, 'rope_theta': 10000.0, 'rope_type': 'linear'}; " + EDITED,
    ),
]


@parametrized(RECORDS)
def test_loading_a_damaged_checkpoint(wrong: Wrong, saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path, wrong.call)
    before = tree(tmp_path)
    with pytest.raises(RopescaleError) as refusal:
        ropescale.load(str(folder))
    assert str(refusal.value) == wrong.text.replace("PATH", str(folder))
    assert type(refusal.value) is wrong.error
    assert tree(tmp_path) == before


def test_a_checkpoint_saved_patched_and_loaded_without_ropescale_is_not_patched_twice(saved: Path) -> None:
    before = tree(saved)
    model = AutoModelForCausalLM.from_pretrained(saved).eval()
    with untouched(model), pytest.raises(AlreadyScaledError) as refusal:
        ropescale.patch(model, "yarn", factor=2)
    assert str(refusal.value) == (
        f"llama: the checkpoint is already scaled, got a ropescale record of 'linear'; {CHOICES}"
    )
    assert tree(saved) == before


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        ropescale.load(str(tmp_path / "nowhere"))
    assert str(refusal.value).startswith(
        f"{tmp_path / 'nowhere'}: must be a folder with a Transformers checkpoint, or a hub id that can be "
    )
    assert tree(tmp_path) == {}


def test_every_text_about_a_record_has_the_one_form() -> None:
    in_the_one_form([wrong.text for wrong in RECORDS])
