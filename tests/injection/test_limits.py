"""Limits of tokenizer and generation: raised by whatever extends a model, put back by what undoes it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LATE, config_of_whole, family, model_of_whole
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, PreTrainedModel

import ropescale
from ropescale import patching
from ropescale.adapters import load_adapter, merge, save_adapter
from ropescale.checkpoints import resolve
from ropescale.errors import VerificationError
from ropescale.export import export
from ropescale.limits import GENERATION, TOKENIZER, outdated

METHODS: dict[str, dict[str, Any]] = {
    "yarn": {"method": "yarn", "factor": 4},
    "self_extend": {"method": "self_extend", "group_size": 8, "window": 32, "target_length": 256},
}


def chat(limit: int | None = 64) -> PreTrainedModel:
    """As Llama 2 Chat is published: generation stops at the maximum of the config, here 64 tokens."""
    model = family("llama")
    model.generation_config.max_length = limit
    return model


def saved(folder: Path, limit: int | None = 64) -> Path:
    """The same on disk, with a tokenizer."""
    chat(limit).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def limits_in(folder: Path) -> tuple[Any, Any]:
    """Of generation and of the tokenizer."""
    generation, tokenizer = (json.loads((folder / name).read_text()) for name in (GENERATION, TOKENIZER))
    return generation.get("max_length"), tokenizer.get("model_max_length")


@pytest.mark.parametrize("method", METHODS)
def test_a_patched_model_generates_to_its_new_length(method: str) -> None:
    model = chat()
    before = copy.deepcopy(model.generation_config.to_dict())
    ropescale.patch(model, **METHODS[method])
    assert model.generation_config.max_length == 256
    prompt = torch.arange(3, 103)[None]
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=None)
    assert written.shape == (1, 256)
    ropescale.unpatch(model)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize(
    ("limit", "raised"), [(None, None), (20, 20), (63, 63), (64, 256), (100, 256), (256, 256), (1000, 1000)]
)
def test_a_length_that_somebody_chose_stays(limit: int | None, raised: int | None, tmp_path: Path) -> None:
    """Below the old maximum, or beyond the new one."""
    model = chat(limit)
    model.generation_config.max_new_tokens = None if limit else 30
    with ropescale.patched(model, "yarn", factor=4):
        assert model.generation_config.max_length == raised
        assert model.generation_config.max_new_tokens == (None if limit else 30)
        model.save_pretrained(tmp_path / "saved")
    assert model.generation_config.max_length == limit
    source = saved(tmp_path / "source", limit)
    ropescale.rescale_checkpoint(source, tmp_path / "rescaled", "yarn", factor=4)
    export(source, tmp_path / "exported", to="vllm", method="yarn", factor=4)
    for folder in ("saved", "rescaled", "exported"):
        assert json.loads((tmp_path / folder / GENERATION).read_text()).get("max_length") == raised
        assert ropescale.diagnose(tmp_path / folder) == []
        loaded = ropescale.load(tmp_path / folder)
        assert loaded.generation_config.max_length == raised
        assert ropescale.unpatch(loaded).generation_config.max_length == limit


def test_every_way_to_disk_raises_both(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    model = ropescale.patch(ropescale.load(source), "yarn", factor=4)
    model.save_pretrained(tmp_path / "patched")
    written = ropescale.rescale_checkpoint(source, tmp_path / "rescaled", "yarn", factor=4)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (written, tmp_path / "patched")]
    for config in configs:
        config["ropescale"].pop("proof")  # which is still to come on a disk
    assert configs[0] == configs[1]
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    adapter = save_adapter(get_peft_model(model, lora), tmp_path / "adapter")
    merge(adapter, tmp_path / "merged", source)
    for to in ("transformers", "vllm", "sglang", "mlx"):
        export(source, tmp_path / to, to=to, method="yarn", factor=4)
        export(source, tmp_path / f"{to}-adapter", to=to, adapter=adapter)
    for folder in ("rescaled", "merged", "transformers", "vllm", "sglang", "mlx", "vllm-adapter", "mlx-adapter"):
        assert limits_in(tmp_path / folder) == (256, 256), folder
        assert ropescale.diagnose(tmp_path / folder) == [], folder
    for folder in ("patched", "rescaled", "merged", "vllm", "vllm-adapter"):
        loaded = ropescale.load(tmp_path / folder)
        assert ropescale.record(loaded).generation == {"max_length": 64}
        assert ropescale.unpatch(loaded).generation_config.max_length == 64, folder
    loaded = load_adapter(source, adapter)
    assert loaded.generation_config.max_length == 256
    assert ropescale.unpatch(loaded).generation_config.max_length == 64


def test_a_live_model_is_exported_with_its_limits_raised(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved(tmp_path / "source"))
    export(chat(), tmp_path / "a", to="vllm", method="yarn", factor=4, tokenizer=tokenizer)
    export(ropescale.patch(chat(), factor=4), tmp_path / "b", to="vllm", tokenizer=tokenizer)
    for folder in ("a", "b"):
        assert limits_in(tmp_path / folder) == (256, 256)
        assert ropescale.unpatch(ropescale.load(tmp_path / folder)).generation_config.max_length == 64


def test_a_tokenizer_without_a_limit_keeps_none(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    path = source / TOKENIZER
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10**30}))
    model = ropescale.patch(ropescale.load(source), factor=4)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    adapter = save_adapter(get_peft_model(model, lora), tmp_path / "adapter")
    merge(adapter, tmp_path / "merged", source)
    assert limits_in(tmp_path / "merged") == (256, 10**30)


def test_composed_patches_are_undone_one_by_one(tmp_path: Path) -> None:
    source = saved(tmp_path / "source")
    once = ropescale.rescale_checkpoint(source, tmp_path / "once", "linear", factor=2)
    twice = ropescale.rescale_checkpoint(once, tmp_path / "twice", "linear", factor=2, existing="compose")
    assert limits_in(twice) == (256, 256)
    model = ropescale.unpatch(ropescale.load(twice))
    assert (model.generation_config.max_length, model.config.max_position_embeddings) == (128, 128)


def test_what_the_user_sets_meanwhile_stays() -> None:
    model = ropescale.patch(chat(), factor=4)
    model.generation_config.max_length = 77
    assert ropescale.unpatch(model).generation_config.max_length == 77


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    ropescale.patch(chat(), factor=4).save_pretrained(tmp_path)
    for name, entry in (("config.json", "ropescale"), (GENERATION, "max_length")):
        values = json.loads((tmp_path / name).read_text())
        if name == GENERATION:
            values[entry] = 64  # which they left as it was
        else:
            del values[entry]["generation"]
        (tmp_path / name).write_text(json.dumps(values))
    model = ropescale.load(tmp_path)
    assert model.generation_config.max_length == 256
    assert ropescale.unpatch(model).generation_config.max_length == 64
    export(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", to="vllm")
    assert json.loads((tmp_path.parent / f"{tmp_path.name}-out" / GENERATION).read_text())["max_length"] == 256


def test_a_patch_that_fails_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise VerificationError("no")

    model = chat()
    monkeypatch.setattr(patching, "verify", refused)
    with pytest.raises(VerificationError):
        ropescale.patch(model, factor=4)
    assert model.generation_config.max_length == 64


def test_the_limit_of_a_whole_is_that_of_its_text(tmp_path: Path) -> None:
    model = model_of_whole(config_of_whole("llava"))
    model.generation_config.max_length = 64
    ropescale.patch(model, factor=4).save_pretrained(tmp_path)
    assert model.generation_config.max_length == 256
    loaded = ropescale.load(tmp_path)
    assert loaded.generation_config.max_length == 256
    assert ropescale.unpatch(loaded).generation_config.max_length == 64


@pytest.mark.parametrize("method", sorted(set(LATE) & {"rerope", "nope", "alibi"}))
def test_without_a_ceiling_the_limit_is_the_config_s(method: str) -> None:
    model = chat()
    with ropescale.patched(model, method):
        assert model.generation_config.max_length == model.config.max_position_embeddings > 64
    assert model.generation_config.max_length == 64


@pytest.mark.parametrize("value", [True, None, "64", [64]])
def test_what_is_no_number_is_no_limit(value: Any) -> None:
    assert outdated(GENERATION, {"max_length": value}, 64, 256) == {}
    assert outdated(TOKENIZER, {"model_max_length": value}, 64, 256) == {}


def test_an_embedding_model_keeps_its_pooling_and_reads_to_its_new_length(tmp_path: Path) -> None:
    """As sentence-transformers saves one: beside the config stand the pooling and a length of its own."""
    source = saved(tmp_path / "source")
    decoder = family("llama").model
    decoder.save_pretrained(source)
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    ropescale.rescale_checkpoint(source, tmp_path / "rescaled", "yarn", factor=4)
    export(source, tmp_path / "exported", to="vllm", method="yarn", factor=4)
    for folder in (tmp_path / "rescaled", tmp_path / "exported"):
        settings = json.loads((folder / "sentence_bert_config.json").read_text())
        assert settings == {"max_seq_length": 256, "do_lower_case": False}
        for file in ("modules.json", "1_Pooling/config.json"):
            assert (folder / file).read_bytes() == (source / file).read_bytes()
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaModel"]
        assert ropescale.diagnose(folder) == []
