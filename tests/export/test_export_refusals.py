"""What no engine does is refused, with the nearest that it does; and so is what makes no sense."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from exports import (
    IGNORED,
    LOSSY,
    checkpoint,
    config_in,
    often,
)
from families import (
    LATE,
)

import ropescale
from ropescale.errors import (
    ExportError,
    InvalidArgumentError,
)
from ropescale.export import ENGINES, export, verify

pytestmark = IGNORED


@pytest.mark.parametrize("method", [name for name in LATE if name != "nope"])
@pytest.mark.parametrize("to", ["gguf", "vllm", "transformers"])
def test_what_acts_in_attention_is_refused_with_the_nearest_that_is_held(method: str, to: str, tmp_path: Path) -> None:
    knobs = {"learned": {"max_length": 512}}.get(method, {})
    with pytest.raises(ExportError) as refusal:
        export("tiny", tmp_path / "out.gguf", to=to, method=method, factor=4, **knobs)
    said = str(refusal.value)
    assert said.startswith(f"{method}: must be a method of fixed frequencies to be exported, got ")
    assert "nearest that" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", often(LOSSY, "dynamic_ntk", "linear", "longrope"))
def test_an_approximation_is_labelled_in_the_file_and_in_the_summary(method: str, tmp_path: Path) -> None:
    arguments, static = LOSSY[method]
    with pytest.raises(ExportError, match=rf"nearest that engines hold exactly: {static} x4, which lossy=True"):
        export("tiny", tmp_path / "a.gguf", to="gguf", method=method, factor=4, **arguments)
    done = export("tiny", tmp_path / "a.gguf", to="gguf", method=method, factor=4, lossy=True, **arguments)
    label = f"{static} at every length in the place of {method}: "
    assert done.approximation.startswith(label)
    assert f"approximation ({label}" in str(done)
    found = gguf.GGUFReader(tmp_path / "a.gguf").get_field("ropescale.approximation").contents()
    assert found == done.approximation
    verdict = verify(tmp_path / "a.gguf", engine="llama.cpp")
    assert not verdict.exact
    assert f"labelled an approximation: {label}" in str(verdict)
    # what it is an approximation by is exact
    export("tiny", tmp_path / "folder", to="vllm", method=method, factor=4, lossy=True, **arguments)
    assert config_in(tmp_path / "folder")["ropescale_export"]["approximation"] == done.approximation


def test_what_an_engine_would_switch_by_length_is_refused_without_a_record_too(tmp_path: Path) -> None:
    for rope in (
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 4.0,
            "short_factor": [1.0] * 32,
            "long_factor": [2.0] * 32,
            "original_max_position_embeddings": 128,
        },
    ):
        source = checkpoint(tmp_path / rope["rope_type"], rope_parameters=rope)
        with pytest.raises(ExportError, match=r"^llama: rope_parameters must state fixed frequencies to be exported"):
            export(source, tmp_path / "out", to="vllm")


def test_an_architecture_that_is_not_patched_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(
        ropescale.RopescaleError, match=r"^model type 'gpt2': not a family that this version of ropescale"
    ):
        export(tmp_path, tmp_path.parent / "out-gpt2", to="vllm")
    with pytest.raises(
        ropescale.RopescaleError, match=r"^model type 'gpt2': not a family that this version of ropescale"
    ):
        verify(tmp_path, engine="transformers")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"to": "onnx"}, rf"^to: must be one of {', '.join(sorted(ENGINES))}, got 'onnx'"),
        ({"to": "gguf"}, r"^destination: must be a file name that ends in \.gguf, got "),
        ({"to": "vllm", "outtype": "f16"}, r"^outtype: must be left out for vllm, got 'f16'"),
        ({"to": "vllm", "factor": 4}, r"^method: must be given with factor, got None"),
        ({"to": "vllm", "beta_fast": 4}, r"^method: must be given with beta_fast, got None"),
        ({"to": "vllm", "existing": "replace"}, r"^method: must be given with existing, got None"),
        (
            {"to": "vllm", "method": "yarn", "factor": 4, "beta_fat": 4},
            r"^yarn: unknown knob 'beta_fat'; did you mean",
        ),
        ({"to": "vllm", "method": "yarn"}, r"^yarn: factor or target_length is required, got neither"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        export("tiny", tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []
