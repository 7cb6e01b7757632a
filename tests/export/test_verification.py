"""A wrong export is seen, and so is a wrong question."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from exports import (
    IGNORED,
    often,
    with_entry,
)

from ropescale.errors import (
    CheckpointError,
    InvalidArgumentError,
)
from ropescale.export import ENGINES, export, verify

pytestmark = IGNORED


def altered(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"] |= changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes",
    [{"factor": 8.0}, {"attention_factor": 1.0}, {"beta_slow": 2.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrong_rotation_is_found(changes: dict[str, float], tmp_path: Path) -> None:
    export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4)
    altered(tmp_path / "out", **changes)
    verdict = verify(tmp_path / "out", engine="transformers")
    assert not verdict.exact
    assert verdict.worst.worst > 1e-2
    assert str(verdict).startswith(f"{tmp_path / 'out'}: OFF in transformers (yarn x4): ")


def test_a_wrong_file_is_found(tmp_path: Path) -> None:
    """The scaling of another factor in the file that claims this one."""
    export("tiny", tmp_path / "right.gguf", to="gguf", method="yarn", factor=4)
    reader = gguf.GGUFReader(tmp_path / "right.gguf", "r+")
    reader.fields["llama.rope.scaling.factor"].parts[-1][0] = 2.0
    del reader
    verdict = verify(tmp_path / "right.gguf", engine="llama.cpp")
    assert not verdict.exact
    assert verdict.worst.worst > 0.1


@pytest.mark.parametrize("outtype", often(["f16", "bf16", "q8_0"], "f16", "q8_0"))
def test_a_wrong_rotation_is_found_in_rounded_weights(outtype: str, tmp_path: Path) -> None:
    """An attention factor that is forgotten: the smallest of the mistakes that engines make."""
    for name, knobs in (("right", {}), ("wrong", {"attention_factor": 1.0})):
        export("tiny", tmp_path / f"{name}.gguf", to="gguf", method="yarn", factor=4, outtype=outtype, **knobs)
    said = gguf.GGUFReader(tmp_path / "right.gguf").fields["ropescale.record"].contents()
    # what the right one says about itself, the wrong scaling
    with_entry(tmp_path / "wrong.gguf", "ropescale.record", said, tmp_path / "told.gguf")
    verdict = verify(tmp_path / "told.gguf", engine="llama.cpp")
    assert not verdict.exact, str(verdict)


def test_wrong_questions_to_verify_are_refused_in_words(tmp_path: Path) -> None:
    export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4)
    run = sorted(engine.called for engine in ENGINES.values() if engine.running)
    with pytest.raises(InvalidArgumentError, match=rf"^engine: must be one of {', '.join(run)}, got 'onnx'"):
        verify(tmp_path / "out", engine="onnx")
    with pytest.raises(
        InvalidArgumentError, match=r"^engine: must be the one that .* was written for \('transformers'\)"
    ):
        verify(tmp_path / "out", engine="vllm")
    with pytest.raises(
        InvalidArgumentError, match=r"^lengths: must leave room for 16 tokens within the target length"
    ):
        verify(tmp_path / "out", engine="transformers", lengths=[500])
    with pytest.raises(
        CheckpointError, match=r"nowhere: must be a folder that was exported for transformers, got nothing"
    ):
        verify(tmp_path / "nowhere", engine="transformers")
    with pytest.raises(CheckpointError, match=r"nowhere\.gguf: must be a whole GGUF file"):
        verify(tmp_path / "nowhere.gguf", engine="llama.cpp")
    with pytest.raises(CheckpointError, match=r"^adapter: must be a folder with a PEFT adapter"):
        verify(tmp_path / "out", engine="transformers", lengths=[8], adapter=tmp_path / "adapter")
