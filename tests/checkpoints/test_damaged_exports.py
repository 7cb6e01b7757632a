"""Damage to an export is found, and what it holds is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import checkpoint
from merges import BOTH, LORA, TINY, adapter, changed, lora
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import ropescale
from ropescale import cli
from ropescale.errors import CheckpointError, ExportError
from ropescale.export import export, verify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


# ---- a verification that can fail


def planted(where: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    match where:
        case "weights":
            held = load_file(file)
            held["model.layers.1.mlp.up_proj.weight"] *= 1.02
            save_file(held, file, metadata={"format": "pt"})
        case "the head":
            held = load_file(file)
            held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
            save_file(held, file, metadata={"format": "pt"})
        case "tokenizer":
            text = json.loads((folder / "tokenizer.json").read_text())
            words = text["model"]["vocab"]
            first, second = sorted(words, key=lambda word: words[word])[400:402]
            words[first], words[second] = words[second], words[first]
            merges = text["model"]["merges"]
            merges[150], merges[10] = merges[10], merges[150]
            (folder / "tokenizer.json").write_text(json.dumps(text))
        case "template":
            (folder / "chat_template.jinja").write_text("{{ messages }}")
        case "config":
            config["rms_norm_eps"] = 1e-2
        case "rotation":
            config["rope_parameters"]["factor"] = 8.0
    (folder / "config.json").write_text(json.dumps(config))


WHERE = ("weights", "tokenizer", "template", "config", "rotation")


@pytest.mark.parametrize(
    ("with_adapter", "where"), [*((True, one) for one in (*WHERE, "the head")), *((False, one) for one in WHERE)]
)
def test_damage_to_an_export_is_found(where: str, with_adapter: bool, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    if with_adapter:
        adapter(tmp_path / "adapter", "tiny", LoraConfig(**LORA, modules_to_save=BOTH))
        given = {"adapter": tmp_path / "adapter"}
    export("tiny", tmp_path / "out", to="transformers", method="yarn", factor=4, **given)
    asked: dict[str, Any] = {"engine": "transformers", "steps": 2, "lengths": [300]}
    assert verify(tmp_path / "out", **asked).exact
    planted(where, tmp_path / "out")
    verdict = verify(tmp_path / "out", **asked)
    assert not verdict.exact, str(verdict)
    assert "OFF in transformers" in str(verdict)


def test_an_export_says_which_adapter_is_in_it(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter", "tiny", LoraConfig(**LORA))
    for to, name in (("gguf", "out.gguf"), ("transformers", "out")):
        engine = "llama.cpp" if to == "gguf" else to
        done = export("tiny", tmp_path / name, to=to, method="yarn", factor=4, adapter=tmp_path / "adapter")
        assert done.verifying == f"ropescale verify-export {tmp_path / name} --engine {engine}"
        asked: dict[str, Any] = {"engine": engine, "steps": 2, "lengths": [300]}
        assert verify(tmp_path / name, **asked).exact
        content = (tmp_path / name / "config.json" if to != "gguf" else tmp_path / name).read_bytes()
        assert str(tmp_path).encode() not in content, "nothing of a disk is published"
        (tmp_path / "adapter").rename(tmp_path / "elsewhere")
        with pytest.raises(
            CheckpointError, match=r"^adapter: must be the one that was merged into .*, 'adapter', got"
        ):
            verify(tmp_path / name, **asked)
        assert verify(tmp_path / name, adapter=tmp_path / "elsewhere", **asked).exact
        (tmp_path / "elsewhere").rename(tmp_path / "adapter")
    changed(tmp_path / "adapter", lambda held: {key: one * 2 for key, one in held.items()})
    with pytest.raises(CheckpointError, match=r"whose weights have changed since; pass adapter=DIR"):
        verify(tmp_path / "out", **asked)
    assert not verify(tmp_path / "out", adapter=tmp_path / "adapter", **asked).exact


def test_weights_in_half_precision_are_held_against_the_adapter_too(tmp_path: Path) -> None:
    """Merged in bfloat16 the sum is rounded to it: what counts is the divergence."""
    source = tmp_path / "source"
    ropescale.load("tiny").to(torch.bfloat16).save_pretrained(source)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(source)
    adapter(tmp_path / "adapter", source, lora("embed_tokens")())
    for to, name in (("gguf", "out.gguf"), ("transformers", "out")):
        export(source, tmp_path / name, to=to, method="yarn", factor=4, adapter=tmp_path / "adapter")
        verdict = verify(tmp_path / name, engine="llama.cpp" if to == "gguf" else to, lengths=[300], steps=4)
        assert verdict.rounded
        assert verdict.exact, str(verdict)


# ---- what is asked for


def test_an_unextended_model_is_exported_on_purpose_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", "tiny", str(tmp_path / "out"), "--to", "vllm"]
    assert cli.main(asked) == 2
    assert "method must be given for a model whose context is as pretrained" in capsys.readouterr().err.replace(
        ":", ""
    )
    assert cli.main([*asked, "--method", "none", "--factor", "4"]) == 2
    assert "must be left out with --method none" in capsys.readouterr().err
    assert cli.main([*asked, "--method", "none"]) == 0
    assert "positions as pretrained" in capsys.readouterr().out


def test_a_source_without_a_tokenizer_is_said_to_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ropescale.patch(ropescale.load("tiny"), "yarn", factor=4).save_pretrained(tmp_path / "source")
    assert cli.main(["export", str(tmp_path / "source"), str(tmp_path / "out"), "--to", "vllm"]) == 0
    assert f"no tokenizer in {tmp_path / 'source'}, and so none in the export" in capsys.readouterr().out
    assert cli.main(["doctor", str(tmp_path / "source")]) == 1
    assert "no-tokenizer: source: a tokenizer must lie beside the weights" in capsys.readouterr().out
    cli.main(["doctor", "tiny"])
    assert "no tokenizer" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gguf_without_a_tokenizer_is_refused_in_words(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (source / file).unlink()
    with pytest.raises(CheckpointError, match=r"source: must hold a tokenizer, got none of tokenizer\.json, "):
        export(source, tmp_path / "out.gguf", to="gguf", method="yarn", factor=2)


def test_the_printed_commands_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["export", "tiny", str(tmp_path / "a b"), "--to", "vllm", "--method", "yarn", "--factor", "4"]) == 0
    )
    said = capsys.readouterr().out
    assert f"to serve it:\n  vllm serve '{tmp_path / 'a b'}'\n" in said
    assert f"\n  VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 vllm serve {TINY} --hf-overrides '{{" in said
    assert f"\nnext: ropescale verify-export '{tmp_path / 'a b'}' --engine vllm\n" in said


# ---- a record that the rest of the config contradicts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda config: config.update(
                rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
            ),
            r"config\.rope_parameters must be what the ropescale record gives",
        ),
        (
            lambda config: config.update(max_position_embeddings=1024),
            r"config\.max_position_embeddings must be what the ropescale record gives",
        ),
        (
            lambda config: config["ropescale"].update(method="bogus"),
            r"the ropescale record must name a method of version",
        ),
    ],
    ids=["another rotation", "another length", "another method"],
)
def test_a_record_that_is_contradicted_is_not_exported(
    change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    source = ropescale.rescale_checkpoint("tiny", tmp_path / "source", factor=4)
    export(source, tmp_path / "right", to="vllm")
    export(tmp_path / "right", tmp_path / "again", to="transformers")
    config = json.loads((source / "config.json").read_text())
    change(config)
    (source / "config.json").write_text(json.dumps(config))
    for to in ("transformers", "gguf"):
        with pytest.raises((CheckpointError, ExportError), match=said):
            export(source, tmp_path / "wrong.gguf", to=to)
    assert not (tmp_path / "wrong.gguf").exists()
