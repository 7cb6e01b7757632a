"""What llama.cpp's own server computes, started right and started wrongly on purpose."""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import xllamacpp
from exports import TINY
from servers import Answer, forwarded, llama_server, send, stand_in

from ropescale import cli
from ropescale.export import export
from ropescale.serving import ServerVerdict, verify_server

YARN = {"method": "yarn", "factor": 4}
SCALING = xllamacpp.llama_rope_scaling_type
# --rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 128, and --rope-scaling linear --rope-scale 4, of the program
AS_YARN = {
    "rope_scaling_type": SCALING.LLAMA_ROPE_SCALING_TYPE_YARN,
    "rope_freq_scale": 0.25,
    "yarn_orig_ctx": 128,
}
AS_LINEAR = {"rope_scaling_type": SCALING.LLAMA_ROPE_SCALING_TYPE_LINEAR, "rope_freq_scale": 0.25}


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a server is started, and what is meant."""

    file: dict[str, Any]  # what is exported to it
    flags: dict[str, Any] = field(default_factory=dict)
    meant: dict[str, Any]
    source: str = "tiny"  # or "other", the same with another theta
    lengths: list[int] | None = None

    def verdict(self, place: Path, **asked: Any) -> ServerVerdict:
        """What the server is found to compute."""
        source = str(TINY)
        if self.source == "other":
            source = str(shutil.copytree(TINY, place / "other"))
            config = json.loads((place / "other" / "config.json").read_text())
            config["rope_parameters"]["rope_theta"] = 20_000.0
            (place / "other" / "config.json").write_text(json.dumps(config))
        export(source, place / "model.gguf", to="gguf", **self.file)
        server = llama_server(place / "model.gguf", **self.flags)
        url = server.listening_address
        return verify_server(url, reference=source, lengths=self.lengths, **self.meant, **asked)


PLAIN = {"method": "none"}
DYNAMIC = {"method": "dynamic_ntk", "factor": 4}
BY_PARTS = {"method": "by_parts", "factor": 4}
LISTED = {"method": "longrope", "factor": 4, "long_factor": [1.0 + place / 4 for place in range(16)]}
RIGHT = {
    "yarn": Start(file=YARN, meant=YARN),
    "yarn by flags": Start(file=PLAIN, flags={"n_ctx": 512, **AS_YARN}, meant=YARN),
    "yarn in bf16": Start(file={**YARN, "outtype": "bf16"}, meant=YARN),
    "yarn in 8 bits": Start(file={**YARN, "outtype": "q8_0"}, meant=YARN),
    "ntk": Start(file={"method": "ntk", "factor": 4}, meant={"method": "ntk", "factor": 4}),
    "linear": Start(file={"method": "linear", "factor": 4}, meant={"method": "linear", "factor": 4}),
    "by_parts": Start(file=BY_PARTS, meant=BY_PARTS),
    "longrope": Start(file=LISTED, meant=LISTED),
    "yarn on another theta": Start(file=YARN, meant=YARN, source="other"),
    "unpatched": Start(file=PLAIN, meant=PLAIN),
}
OFTEN = ("yarn",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in RIGHT]
)
def test_a_server_that_is_right_is_said_to_be(name: str, tmp_path: Path) -> None:
    verdict = RIGHT[name].verdict(tmp_path)
    assert verdict.as_meant, str(verdict)
    assert verdict.refused is None
    assert verdict.distances[0].mean < 1e-3


WRONG = {
    "flags missing": (Start(file=PLAIN, meant=YARN), "the unpatched model"),
    "flags missing, and theta": (
        Start(file=PLAIN, flags={"rope_freq_base": 10_000.0}, meant=YARN, source="other"),
        "theta lost",
    ),
    "flags twice": (Start(file=BY_PARTS, flags=AS_YARN, meant=BY_PARTS), "the scaling twice"),
    "flags of linear on top": (Start(file=BY_PARTS, flags=AS_LINEAR, meant=BY_PARTS), "the scaling twice"),
    "flags on a theta that is scaled": (
        Start(file={"method": "ntk", "factor": 4}, flags=AS_YARN, meant={"method": "ntk", "factor": 4}),
        "the scaling twice",
    ),
    "attention factor ignored": (
        Start(file={**YARN, "attention_factor": 1.0}, meant=YARN),
        "the attention factor ignored",
    ),
    "attention factor ignored, in 8 bits": (
        Start(file={**YARN, "attention_factor": 1.0, "outtype": "q8_0"}, meant=YARN),
        "the attention factor ignored",
    ),
    "attention factor repeated": (
        Start(file={**YARN, "attention_factor": (1 + 0.1 * math.log(4)) ** 2}, meant=YARN),
        "the attention factor repeated",
    ),
    "theta lost": (Start(file=YARN, flags={"rope_freq_base": 10_000.0}, meant=YARN, source="other"), "theta lost"),
    "original length from the maximum": (
        Start(file=YARN, flags={"yarn_orig_ctx": 512}, meant=YARN),
        "the original length taken from the extended maximum",
    ),
    "a small context": (Start(file=YARN, flags={"n_ctx": 256}, meant=YARN), "a prompt cut"),
}
OFTEN_WRONG = ("attention factor ignored",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN_WRONG else pytest.mark.slow) for name in WRONG]
)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    start, named = WRONG[name]
    verdict = start.verdict(tmp_path)
    assert verdict.found == named, str(verdict)
    assert not verdict.as_meant
    assert verdict.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [{"method": "yarn", "factor": 8}, {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}, {"method": "ntk", "factor": 4}],
    ids=["another factor", "another ramp", "another method"],
)
def test_what_is_none_of_the_readings_is_not_named(file: dict[str, Any], tmp_path: Path) -> None:
    verdict = Start(file=file, meant=YARN).verdict(tmp_path)
    assert verdict.found in ("cannot tell", "none of the readings"), str(verdict)
    strict = Start(file=file, meant=YARN)
    again = tmp_path / "again"
    again.mkdir()
    assert strict.verdict(again, tolerance=1e-3).found == "none of the readings"


SHORT, LONG = [1.0 + place / 16 for place in range(16)], [1.0 + place / 4 for place in range(16)]
TWO_LISTS = {"method": "longrope", "factor": 4, "long_factor": LONG, "short_factor": SHORT}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "meant", "named"),
    [
        (PLAIN, {"method": "rerope", "factor": 4}, "the unpatched model"),
        ({"method": "dynamic_ntk", "factor": 4, "lossy": True}, DYNAMIC, "fixed frequencies in its place"),
        ({**TWO_LISTS, "short_factor": LONG}, TWO_LISTS, "fixed frequencies in its place"),
    ],
    ids=["a method that acts in attention", "a method that depends on length", "two lists"],
)
def test_what_no_engine_does_is_not_said_to_be_done(
    file: dict[str, Any], meant: dict[str, Any], named: str, tmp_path: Path
) -> None:
    verdict = Start(file=file, meant=meant).verdict(tmp_path)
    assert verdict.found == named, str(verdict)


@pytest.mark.slow
def test_two_lists_that_were_published_are_one_list_in_the_engine(tmp_path: Path) -> None:
    export("tiny", tmp_path / "model.gguf", to="gguf", method="longrope", factor=4, long_factor=LONG)
    published = shutil.copytree(TINY, tmp_path / "published")
    config = json.loads((published / "config.json").read_text())
    lists = {"long_factor": LONG, "short_factor": SHORT, "factor": 4.0, "original_max_position_embeddings": 128}
    config["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 10_000.0, **lists}
    config["max_position_embeddings"] = 512
    (published / "config.json").write_text(json.dumps(config))
    server = llama_server(tmp_path / "model.gguf")
    verdict = verify_server(server.listening_address, reference=published)
    assert verdict.found == "fixed frequencies in its place", str(verdict)
    assert "its long_factor at every length" in verdict.says


@pytest.mark.slow
def test_a_label_that_says_approximation_is_what_is_meant(tmp_path: Path) -> None:
    export("tiny", tmp_path / "model.gguf", to="gguf", **DYNAMIC, lossy=True)
    export("tiny", tmp_path / "meant", to="transformers", **DYNAMIC, lossy=True)
    server = llama_server(tmp_path / "model.gguf")
    verdict = verify_server(server.listening_address, reference=tmp_path / "meant")
    assert verdict.as_meant, str(verdict)


def by_text(url: str) -> Answer:
    """A gateway that takes text alone, and names tokens by their texts alone."""

    def answer(connection: Any, question: dict[str, Any]) -> None:
        if isinstance(question.get("prompt"), list):
            send(connection, {"error": "prompt: invalid type, expected a string"}, 422)
            return
        status, content = forwarded(url + connection.path, question)
        for choice in content.get("choices", ()):
            (step,) = choice["logprobs"]["content"]
            choice["logprobs"] = {"top_logprobs": [{one["token"]: one["logprob"] for one in step["top_logprobs"]}]}
        send(connection, content, status)

    return answer


def test_a_server_that_takes_text_alone_is_asked_in_text(tmp_path: Path) -> None:
    export("tiny", tmp_path / "model.gguf", to="gguf", **YARN)
    server = llama_server(tmp_path / "model.gguf")
    with stand_in(by_text(server.listening_address)) as url:
        verdict = verify_server(url, reference="tiny", lengths=[40, 200], **YARN)
    assert verdict.as_meant, str(verdict)
    assert verdict.places >= 8


def test_the_command_says_what_the_function_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an exported folder, which says by itself what is meant."""
    export("tiny", tmp_path / "model.gguf", to="gguf", **YARN)
    export("tiny", tmp_path / "meant", to="transformers", **YARN)
    server = llama_server(tmp_path / "model.gguf")
    asked = ["verify-server", f"{server.listening_address}/v1", "--reference", str(tmp_path / "meant")]
    assert cli.main([*asked, "--lengths", "40,200", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["found"], verdict["method"], verdict["lengths"]) == ("as meant", "yarn x4", [40, 200])
    assert verdict["distances"][0]["mean"] < 1e-5 < verdict["distances"][-1]["mean"]
