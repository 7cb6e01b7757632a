"""What vLLM's own server computes, started right and started wrongly on purpose."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from exports import TINY, in_vllm
from servers import shortening, stand_in, vllm_server

from ropescale.export import export
from ropescale.serving import verify_server

pytestmark = in_vllm

YARN = {"method": "yarn", "factor": 4}
NTK = {"method": "ntk", "factor": 4}
BY_PARTS = {"method": "by_parts", "factor": 4}
POWER = {"method": "power", "factor": 4}  # stated as one divisor per pair
PLAIN = {"method": "none"}
LONGER = ["--hf-overrides", '{"max_position_embeddings": 512}', "--max-model-len", "512"]


def overridden(target: int = 512, **rope: Any) -> list[str]:
    """The flags that have vLLM read another yarn than a config states."""
    stated = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    entries = {"rope_parameters": {**stated, **rope}, "max_position_embeddings": target}
    return ["--hf-overrides", json.dumps(entries), "--max-model-len", str(target)]


def source(place: Path, theta: float | None = None) -> str:
    """The embedded checkpoint, or the same with another theta."""
    if theta is None:
        return str(TINY)
    folder = shutil.copytree(TINY, place / "other")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = theta
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@contextmanager
def served(reference: str, place: Path, flags: list[str], to: str = "vllm", **exported: Any) -> Iterator[str]:
    """The address of a server of what is exported."""
    export(reference, place / "served", to=to, **exported)
    with vllm_server(place / "served", *flags) as url:
        yield url


RIGHT: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "yarn by flags": (PLAIN, overridden(), YARN),
    "yarn in bf16": (YARN, ["--dtype", "bfloat16"], YARN),
    "ntk": (NTK, [], NTK),
    "by_parts": (BY_PARTS, [], BY_PARTS),
    "power": (POWER, [], POWER),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_server_that_is_right_is_said_to_be(name: str, tmp_path: Path) -> None:
    exported, flags, meant = RIGHT[name]
    with served(source(tmp_path), tmp_path, flags, **exported) as url:
        verdict = verify_server(url, reference=source(tmp_path), **meant)
    assert verdict.as_meant, str(verdict)
    assert verdict.refused is None


def test_a_server_that_is_right_until_a_gateway_cuts(tmp_path: Path) -> None:
    """The exported folder says by itself what is meant; the gateway says nothing of what it does."""
    with served("tiny", tmp_path, [], **YARN) as url:
        verdict = verify_server(url, reference=tmp_path / "served")
        assert verdict.as_meant, str(verdict)
        with stand_in(shortening(url, 128)) as gateway:
            cut = verify_server(gateway, reference=tmp_path / "served")
            beyond = verify_server(gateway, reference=tmp_path / "served", lengths=[200])
    for one in (cut, beyond):
        assert one.found == "a prompt cut", str(one)
        assert one.distances[0].says == "only the last 128 tokens of a prompt, with the method as meant"
    assert cut.read[511] == 128
    assert "the server says that it read 128 tokens of a prompt of 511" in cut.says


WRONG: dict[str, tuple[dict[str, Any], list[str], dict[str, Any], float | None, str]] = {
    "flags missing": (PLAIN, [], YARN, None, "the unpatched model"),
    "flags missing, but for the length": (PLAIN, LONGER, YARN, None, "the unpatched model"),
    "flags twice": (NTK, ["twice"], NTK, None, "the scaling twice"),
    "attention factor ignored": (PLAIN, overridden(attention_factor=1.0), YARN, None, "the attention factor ignored"),
    "theta lost": (PLAIN, overridden(), YARN, 20_000.0, "theta lost"),
    "original length from the maximum": (
        PLAIN,
        overridden(original_max_position_embeddings=512),
        YARN,
        None,
        "the original length taken from the extended maximum",
    ),
    "a small context": (YARN, ["--max-model-len", "200"], YARN, None, "a prompt cut"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    exported, flags, meant, theta, named = WRONG[name]
    reference = source(tmp_path, theta)
    if flags == ["twice"]:
        export(reference, tmp_path / "look", to="vllm", **exported)
        stated = json.loads((tmp_path / "look" / "config.json").read_text())["rope_parameters"]
        flags = overridden(rope_theta=stated["rope_theta"])
    with served(reference, tmp_path, flags, **exported) as url:
        verdict = verify_server(url, reference=reference, **meant)
    assert verdict.found == named, str(verdict)
    assert verdict.remedy


def test_what_is_exported_for_another_engine_is_read_otherwise(tmp_path: Path) -> None:
    """VLLM works out an attention factor of its own for longrope, whatever the config of Transformers states."""
    with served("tiny", tmp_path, [], to="transformers", **POWER) as url:
        verdict = verify_server(url, reference=tmp_path / "served")
    assert verdict.found == "the attention factor ignored", str(verdict)
    assert "longrope's own attention factor" in verdict.says
