"""Text decoders of vision-language models: their rotary modules alone are patched, their configs alone edited.

What is built on that (adapters, evaluation, training) reads the text decoder's facts and trains its layers.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import WHOLES, config_of_whole, fingerprint, logits, model_of_whole
from lm_eval.api.instance import Instance
from peft import LoraConfig, PeftModel, get_peft_model
from training import run
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedConfig, PreTrainedModel

import ropescale
from ropescale import cli
from ropescale.adapters import load_adapter, merge, save_adapter
from ropescale.errors import InvalidArgumentError, UnsupportedModelError
from ropescale.evals.engine import RopescaleLM
from ropescale.evals.plan import Options, Plan
from ropescale.evals.results import UNPATCHED, read
from ropescale.evals.served import Served
from ropescale.evals.tokens import named_tokenizer
from ropescale.families.parts import parts_of, text_of
from ropescale.recipes import train, tuning
from ropescale.recipes.reading import read_recipe

# What others of the list stand for: Qwen2.5-VL for Qwen2-VL, and a dense model for a mixture
ALIKE = ("qwen2_vl", "qwen3_5_moe", "qwen3_vl_moe")
MOST = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in WHOLES]


@pytest.fixture(scope="module", params=MOST)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One whole of each kind; every test leaves it as it found it."""
    return model_of_whole(config_of_whole(request.param))


def frequencies(model: PreTrainedModel, keep: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in model.named_buffers() if "inv_freq" in name and keep(name)}


def of_vision(name: str) -> bool:
    return "vision" in name or "visual" in name


@pytest.mark.parametrize("method", ["by_parts", "linear", "ntk", "yarn"])
def test_the_text_decoder_alone_is_patched_and_equals_native(model: PreTrainedModel, method: str) -> None:
    before, config, state = logits(model), copy.deepcopy(model.config.to_dict()), fingerprint(model)
    seen = {name: (one, one.clone()) for name, one in frequencies(model, of_vision).items()}
    ropescale.patch(model, method, factor=4)
    assert (logits(model) - before).abs().max() > 1e-3
    for name, one in frequencies(model, of_vision).items():
        assert one is seen[name][0]
        assert torch.equal(one, seen[name][1])
    text = text_of(model.config)
    assert text.max_position_embeddings == 256
    assert ropescale.record(model).to_dict() == text.ropescale
    stated = copy.deepcopy(model.config)
    del text_of(stated).ropescale
    assert (logits(model_of_whole(stated)) - logits(model)).abs().max() <= 1e-6
    ropescale.unpatch(model)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert fingerprint(model) == state


def test_it_is_saved_loaded_and_rescaled(model: PreTrainedModel, tmp_path: Path) -> None:
    before = logits(model)
    model.save_pretrained(tmp_path / "source")
    with ropescale.patched(model, "yarn", factor=4):
        expected = logits(model)
        model.save_pretrained(tmp_path / "saved")
        done = ropescale.record(model)
    rescaled = ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "rescaled", "yarn", factor=4)
    for folder in (tmp_path / "saved", rescaled):
        assert ropescale.diagnose(folder) == []
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
        assert (logits(loaded) - expected).abs().max() <= 1e-6
        assert ropescale.record(loaded) == done
        again = ropescale.load(folder)
        assert (logits(again) - expected).abs().max() <= 1e-6
        assert torch.equal(logits(ropescale.unpatch(again)), before)


# ---- positions of an image's time, height and width


def with_sections(name: str) -> PreTrainedConfig:
    """A whole whose pairs turn by different coordinates: those of Qwen3.5 are a quarter of a head."""
    config = config_of_whole(name)
    if name.startswith("qwen3_5"):
        config.text_config.head_dim = 32
        config.text_config.rope_parameters |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return config


def pictured(text: int = 150) -> dict[str, torch.Tensor]:
    """Text around an image of 4 x 4 patches, which merge to 4 tokens that stand side by side and one above another."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(8, 128, (text,), generator=draw).tolist()
    ids = torch.tensor([[*words[:10], 5, 3, 3, 3, 3, 6, *words[10:]]])
    kinds = (ids == 3).long()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": kinds,
        "pixel_values": torch.randn(16, 3 * 2 * 14 * 14, generator=draw),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def read_pictures(model: PreTrainedModel) -> torch.Tensor:
    """[1, tokens, vocabulary] of text with an image, and the positions that the rotary module was given are 3-D."""
    met = []
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_pre_hook(
        lambda module, given, named: met.append(named.get("position_ids", given[-1])), with_kwargs=True
    )
    with torch.no_grad():
        found = model(**pictured()).logits
    hook.remove()
    (positions,) = met
    assert positions.shape[0] == 3
    assert not torch.equal(positions[1], positions[2])
    assert positions.max() < pictured()["input_ids"].shape[1] - 1  # an image is shorter than its tokens are many
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["yarn", "linear", "ntk", "by_parts"])
@pytest.mark.parametrize("name", [name for name in WHOLES if name.startswith("qwen")])
def test_images_are_rotated_as_by_transformers_own(name: str, method: str) -> None:
    """Against a model whose config says it natively; without sections every pair would go by time."""
    model = model_of_whole(with_sections(name))
    before, sections = read_pictures(model), text_of(model.config).rope_parameters["mrope_section"]
    with ropescale.patched(model, method, factor=4):
        assert text_of(model.config).rope_parameters["mrope_section"] == sections
        stated = copy.deepcopy(model.config)
        del text_of(stated).ropescale
        native = model_of_whole(stated)
        assert torch.equal(read_pictures(native), read_pictures(model))
        assert (read_pictures(model) - before).abs().max() > 1e-3
        native.model.language_model.rotary_emb.mrope_section = [sum(sections), 0, 0]
        assert (read_pictures(native) - read_pictures(model)).abs().max() > 1e-3
    assert torch.equal(read_pictures(model), before)


def test_the_geometry_is_that_of_the_text(model: PreTrainedModel) -> None:
    text = text_of(model.config)
    assert ropescale.read_geometry(model.config) == ropescale.read_geometry(text)
    assert parts_of(text)[0].label in ("", "full_attention")


def test_a_method_that_acts_in_attention_is_refused(model: PreTrainedModel) -> None:
    before, config = logits(model), model.config.to_dict()
    with pytest.raises(UnsupportedModelError, match="needs a text model with one rotary module, got the text decoder"):
        ropescale.patch(model, "rerope", factor=4)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


def with_lora(model: PreTrainedModel) -> PeftModel:
    """A copy, patched, with random updates of the text decoder's attention."""
    whole = ropescale.patch(copy.deepcopy(model), "yarn", factor=4)
    layers = tuning.attention_layers(whole)
    return get_peft_model(
        whole, LoraConfig(task_type="CAUSAL_LM", target_modules=layers, init_lora_weights=False)
    ).eval()


def test_an_adapter_is_saved_loaded_and_merged(model: PreTrainedModel, tmp_path: Path) -> None:
    wrapped = with_lora(model)
    expected, plain = logits(wrapped), logits(ropescale.patch(copy.deepcopy(model), "yarn", factor=4))
    assert (expected - plain).abs().max() > 1e-3
    folder = save_adapter(wrapped, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(copy.deepcopy(model), folder)), expected)
    merged = merge(folder, tmp_path / "merged", copy.deepcopy(model))
    loaded = AutoModelForImageTextToText.from_pretrained(merged)
    assert (logits(loaded) - expected).abs().max() <= 1e-4
    assert ropescale.record(loaded) == ropescale.record(wrapped)


def test_an_adapter_is_refused_by_a_text_decoder_of_another_length(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save_adapter(with_lora(model), tmp_path / "adapter")
    other = copy.deepcopy(model)
    text_of(other.config).max_position_embeddings = 128
    with pytest.raises(InvalidArgumentError, match=r"config\.max_position_embeddings must be .* \(64\), got 128;"):
        load_adapter(other, folder)


def worded(name: str) -> PreTrainedConfig:
    """A config of a whole with the vocabulary of the tokenizer of `tiny`."""
    config, tokenizer = config_of_whole(name), named_tokenizer("tiny")
    for field in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(config.text_config, field):
            setattr(config.text_config, field, len(tokenizer))
    return config


def saved(name: str, folder: Path) -> Path:
    """A whole with a tokenizer beside it, and a file that says how images are read."""
    model_of_whole(worded(name)).save_pretrained(folder)
    named_tokenizer("tiny").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    return folder


def test_a_merged_checkpoint_reads_as_many_tokens_and_the_same_images(tmp_path: Path) -> None:
    base = saved("llava", tmp_path / "base")
    folder = save_adapter(with_lora(AutoModelForImageTextToText.from_pretrained(base)), tmp_path / "adapter")
    merged = merge(folder, tmp_path / "merged", base)
    assert AutoTokenizer.from_pretrained(merged).model_max_length == 256
    file = "preprocessor_config.json"
    assert (merged / file).read_bytes() == (base / file).read_bytes()


@pytest.mark.parametrize("name", MOST)
def test_the_harness_reads_text_as_the_model_does(name: str) -> None:
    whole = ropescale.patch(model_of_whole(worded(name)), "yarn", factor=4)
    lm = RopescaleLM(pretrained=whole, tokenizer="tiny")
    assert lm.max_length == 256

    def request(kind: str, *arguments: Any) -> list[Instance]:
        return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]

    context, continuation = "It was a bright cold day " * 12, "in April, and the clocks were striking thirteen"
    ids = torch.tensor([lm.tok_encode(context + continuation)])
    assert ids.shape[1] > 64
    first = len(lm.tok_encode(context.rstrip()))
    with torch.no_grad():
        scored = whole(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
        written = whole.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    ((found, _),) = lm.loglikelihood(request("loglikelihood", context.rstrip(), " " + continuation), disable_tqdm=True)
    assert found == pytest.approx(float(scored.gather(1, ids[0, first:, None]).sum()), abs=1e-3)
    asked = request("generate_until", context + continuation, {"until": [], "max_gen_toks": 4})
    (reply,) = lm.generate_until(asked, disable_tqdm=True)
    assert reply == lm.tok_decode(written[0, ids.shape[1] :].tolist())


def test_a_saved_one_is_served_to_its_own_length(tmp_path: Path) -> None:
    whole = ropescale.patch(model_of_whole(worded("llava")), "yarn", factor=4)
    whole.save_pretrained(tmp_path)
    asked = Options(model=str(tmp_path), methods=("none",), backend="vllm", lengths=(64, 256))
    served = Served(asked, str(tmp_path), Plan.of(asked, 64, 256))
    assert served.reach(UNPATCHED) == 256
    assert served.record(UNPATCHED) == ropescale.record(whole)
    with served.folder(UNPATCHED) as folder:
        config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert config["text_config"]["rope_parameters"]["factor"] == 4


@pytest.mark.parametrize("recipe", ["lora", "lora_plus"])
@pytest.mark.parametrize("name", ["gemma4", "llava"])  # the one's vision tower has layers that LoRA cannot be put on
def test_the_text_decoder_alone_is_trained(name: str, recipe: str, tmp_path: Path) -> None:
    base, folder = saved(name, tmp_path / "base"), tmp_path / "run"
    more = ("--factor=4", "--max-steps=1", "--eval-passkeys=0", "--eval-windows=1")
    told = run(recipe, folder, f"--model={base}", *more)
    assert told["steps"] == 1
    config = json.loads((folder / "adapter_config.json").read_text())
    named = [*config["target_modules"], *(config["modules_to_save"] or ())]
    assert all(one.startswith("model.language_model.") for one in named)
    loaded = load_adapter(base, folder, trainable=True)
    assert sum(one.numel() for one in loaded.parameters() if one.requires_grad) == told["parameters"]["trained"]


def test_everything_that_reads_text_is_trained() -> None:
    whole = model_of_whole(worded("llava"))
    trained = tuning.tuned(whole, read_recipe("full", ["--model=tiny"]).options)
    frozen = {name for name, one in trained.named_parameters() if not one.requires_grad}
    assert frozen == {name for name in dict(trained.named_parameters()) if "vision" in name or "projector" in name}


def test_a_patched_one_is_trained_on_with_the_scaling_that_it_has(tmp_path: Path) -> None:
    ropescale.patch(model_of_whole(worded("llava")), "yarn", factor=4).save_pretrained(tmp_path)
    assert train.schedule_of(read_recipe("lora", [f"--model={tmp_path}", "--factor=4"])).length == 256
    with pytest.raises(InvalidArgumentError, match=r"^model: must be trained on with the scaling that it has, yarn"):
        train.schedule_of(read_recipe("lora", [f"--model={tmp_path}", "--factor=8"]))


def test_a_grid_of_one_on_disk_reads_text_patched_and_not(tmp_path: Path) -> None:
    base = saved("qwen2_5_vl", tmp_path / "base")
    chosen = ["--methods=yarn", "--factors=4", "--tasks=perplexity", "--lengths=64,128", "--windows=1"]
    assert cli.main(["eval", str(base), *chosen, f"--output={tmp_path / 'results'}"]) == 0
    found = read(tmp_path / "results")
    whole = ropescale.patch(AutoModelForImageTextToText.from_pretrained(base), "yarn", factor=4)
    arm = next(arm for arm in found.arms() if arm.method == "yarn")
    assert found.cell(arm, "record").record == ropescale.record(whole).to_dict()
    losses = {one.method: found.cell(one, "perplexity", 128).samples for one in found.arms()}
    assert losses["yarn"] != losses["none"]
