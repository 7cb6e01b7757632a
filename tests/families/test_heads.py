"""A checkpoint is loaded with the head that it was saved with: classifiers and embedding models."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import NAMES, WHOLES, config_of, config_of_whole, randomise
from heads import KINDS, LATE, built, drop, output
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

import ropescale
from ropescale import cli
from ropescale.checkpoint import load_language_model
from ropescale.checkpoints import resolve
from ropescale.errors import CheckpointError, InvalidArgumentError, NotPatchedError, UnsupportedModelError
from ropescale.evals.engine import RopescaleLM
from ropescale.export import export, verify
from ropescale.heads import class_of

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")
FEW = ("deepseek_v3", "gemma3_text", "gpt_neox", "llama", "mistral", "qwen3")


def there(name: str, kind: str) -> bool:
    return type(config_of(name)) in KINDS[kind]._model_mapping


def heads() -> list[Any]:
    """Every head of every family; by default one of each but for a few that have all."""
    cases = []
    for number, name in enumerate(name for name in NAMES if name in CONFIG_MAPPING):
        kinds = [kind for kind in KINDS if there(name, kind) and (kind != "decoder" or name in FEW)]
        for place, kind in enumerate(kinds):
            wanted = name in FEW or place == number % len(kinds)
            cases.append(pytest.param(name, kind, marks=() if wanted else pytest.mark.slow))
    return cases


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "kind"), heads())
def test_the_head_comes_back(name: str, kind: str, tmp_path: Path) -> None:
    model = built(name, kind)
    before = output(model)
    ropescale.patch(model, "yarn", factor=4)
    expected = output(model)
    assert not torch.equal(expected, before)
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded), expected)
    assert torch.equal(output(KINDS[kind].from_pretrained(tmp_path)), expected)  # as Transformers alone loads it
    assert torch.equal(output(ropescale.unpatch(loaded)), before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "decoder"])
@pytest.mark.parametrize("name", ["gemma2", "llama", "qwen3"])
def test_the_head_comes_back_under_a_method_that_acts_in_attention(name: str, kind: str, tmp_path: Path) -> None:
    if not there(name, kind):
        kind = "sequences"
    model = built(name, kind)
    before = output(model)
    ropescale.patch(model, **LATE)
    expected = output(model)
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded), expected)
    assert not torch.equal(expected, before)
    assert torch.equal(output(ropescale.unpatch(loaded)), before)


def test_what_transformers_alone_loaded_is_not_unpatched_but_the_remedy_is_named(tmp_path: Path) -> None:
    before = output(model := built("llama", "sequences"))
    ropescale.patch(model, "yarn", factor=4).save_pretrained(tmp_path)
    native = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(
        NotPatchedError,
        match=r"a LlamaForSequenceClassification that Transformers alone loaded from a checkpoint saved with 'yarn' "
        r"\(256 tokens\); load it with ropescale\.load\(path\), and unpatch that",
    ):
        ropescale.unpatch(native)
    assert torch.equal(output(ropescale.unpatch(ropescale.load(tmp_path))), before)


def test_labels_problem_dtype_device_map_and_a_longer_vocabulary_come_along(tmp_path: Path) -> None:
    facts = {"id2label": {0: "bad", 1: "good"}, "problem_type": "multi_label_classification"}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of("llama", **facts)).eval()
    randomise(model)
    model.resize_token_embeddings(160)
    model.bfloat16()
    ropescale.patch(model, "yarn", factor=4).save_pretrained(tmp_path / "saved")
    loaded = ropescale.load(tmp_path / "saved", dtype=torch.bfloat16, device_map="cpu")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.id2label == facts["id2label"]
    assert loaded.config.problem_type == facts["problem_type"]
    assert loaded.get_input_embeddings().weight.shape[0] == 160
    assert torch.equal(output(loaded), output(model))


def test_a_classifier_is_rescaled_inspected_and_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = built("llama", "sequences")
    model.save_pretrained(tmp_path / "source")
    folder = ropescale.rescale_checkpoint(tmp_path / "source", tmp_path / "rescaled", factor=4)
    assert torch.equal(output(ropescale.load(folder)), output(ropescale.patch(model, factor=4)))
    assert ropescale.diagnose(folder) == []
    assert ropescale.diagnose(ropescale.load(folder)) == []
    assert cli.main(["inspect", str(folder)]) == 0
    assert "yarn" in capsys.readouterr().out


@pytest.mark.parametrize("architectures", [["MistralForSequenceClassification"], ["LLaMAForSequenceClassification"]])
def test_the_kind_counts_where_another_family_is_named(architectures: list[str], tmp_path: Path) -> None:
    model = built("llama", "sequences")
    model.save_pretrained(tmp_path)
    edit(tmp_path, architectures=architectures)
    loaded = ropescale.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize("architectures", [None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"], ["GPT2LMHeadModel"]])
def test_language_models_are_loaded_whatever_they_are_called(architectures: list[str] | None, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(config_of("llama")).eval()
    model.save_pretrained(tmp_path)
    edit(tmp_path, architectures=architectures)
    assert torch.equal(output(ropescale.load(tmp_path)), output(model))


@pytest.mark.parametrize("name", ["LlamaForRewardModel", "LlamaBidirectionalModel", "Linear", "BertModel2"])
def test_a_class_that_transformers_does_not_have_is_named(name: str, tmp_path: Path) -> None:
    built("llama", "decoder").save_pretrained(tmp_path)
    edit(tmp_path, architectures=[name])
    with pytest.raises(
        CheckpointError, match=rf"architectures must name a class .* for 'llama', got '{name}'; load it w"
    ):
        ropescale.load(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.architectures = ["LlamaModel"]
    ropescale.load(tmp_path, config=config)
    assert config.architectures == ["LlamaModel"]


OWN = """
from transformers import LlamaPreTrainedModel, LlamaModel
from torch import nn

class LlamaForRewards(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.reward = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, **inputs):
        return (self.reward(self.model(**inputs)[0]),)
"""


def test_a_class_of_the_checkpoints_own_code_is_taken_where_it_is_trusted(tmp_path: Path) -> None:
    model = built("llama", "decoder")
    model.save_pretrained(tmp_path)
    weights = {f"model.{name}": one for name, one in load_file(tmp_path / "model.safetensors").items()}
    weights |= {"reward.weight": torch.ones(1, 64), "reward.bias": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "own.py").write_text(OWN)
    edit(tmp_path, architectures=["LlamaForRewards"], auto_map={"AutoModel": "own.LlamaForRewards"})
    with pytest.raises(CheckpointError, match=r"got 'LlamaForRewards'; pass trust_remote_code=True if you trust"):
        ropescale.load(tmp_path, trust_remote_code=False)
    loaded = ropescale.load(tmp_path, trust_remote_code=True)
    assert type(loaded).__name__ == "LlamaForRewards"
    torch.testing.assert_close(output(loaded), output(model).sum(-1, keepdim=True))


def edit(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("patched", [False, True])
def test_a_head_without_weights_is_said_to_be_random(patched: bool, tmp_path: Path) -> None:
    model = built("llama", "sequences")
    (ropescale.patch(model, factor=4) if patched else model).save_pretrained(tmp_path)
    drop(tmp_path, "score")
    with pytest.warns(
        UserWarning, match=r"none for 'score\.weight' of LlamaForSequenceClassification, so its head is"
    ):
        loaded = ropescale.load(tmp_path)
    assert torch.equal(output(loaded.model), output(model.model))


def test_an_embedding_model_that_calls_itself_a_language_model_is_said_to_have_no_head(tmp_path: Path) -> None:
    model = built("qwen3", "decoder")
    model.save_pretrained(tmp_path)
    edit(tmp_path, architectures=["Qwen3ForCausalLM"])
    with pytest.warns(UserWarning, match=r"the weights hold none for 'lm_head\.weight' of Qwen3ForCausalLM"):
        ropescale.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"the weights must be complete, got none for 'lm_head\.weight'"):
        load_language_model(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.architectures = ["Qwen3Model"]
    assert torch.equal(output(ropescale.load(tmp_path, config=config)), output(model))


def test_a_head_that_the_class_has_no_place_for_is_named(tmp_path: Path) -> None:
    model = built("llama", "sequences", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    edit(tmp_path, architectures=None)
    with pytest.warns(UserWarning, match=r"the weights hold 'score\.weight', for which LlamaForCausalLM has no place"):
        ropescale.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patched", [False, True])
def test_weights_that_are_missing_below_the_head_are_an_error(kind: str, patched: bool, tmp_path: Path) -> None:
    model = built("llama", kind)
    (ropescale.patch(model, factor=4) if patched else model).save_pretrained(tmp_path)
    drop(tmp_path, "layers.1.mlp")
    with pytest.raises(CheckpointError, match=r"the weights must be complete, got none for .*mlp.* \(3 missing\)"):
        ropescale.load(tmp_path)


def test_a_model_alone_is_returned() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^output_loading_info: must be left out, since a model alone is"):
        ropescale.load("tiny", output_loading_info=True)
    assert ropescale.load("tiny", output_loading_info=False) is not None


@pytest.fixture(scope="module", params=["decoder", "sequences"])
def headless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a head over the vocabulary, with a tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny = AutoConfig.from_pretrained(resolve("tiny"))
    tiny.num_labels = 2
    KINDS[request.param].from_config(tiny).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(resolve("tiny")) / name).read_bytes())
    return folder


VERBS = {
    "eval": ("eval", "SRC", "--methods", "yarn", "--factors", "4", "--tasks", "passkey", "--output", "OUT"),
    "train": ("train", "lora", "--model", "SRC", "--factor", "4", "--max-steps", "1", "--output", "OUT"),
    "gguf": ("export", "SRC", "OUT.gguf", "--to", "gguf", "--method", "yarn", "--factor", "4"),
    "mlx": ("export", "SRC", "OUT", "--to", "mlx", "--method", "yarn", "--factor", "4"),
    "verify": ("verify-export", "SRC", "--engine", "transformers"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_need_a_language_model_say_what_they_got(
    verb: str, headless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("SRC", str(headless)).replace("OUT", str(tmp_path / "out")) for word in VERBS[verb]]
    assert cli.main(given) == 2
    name = json.loads((headless / "config.json").read_text())["architectures"][0]
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"must be a causal language model, which has a head over the vocabulary, got a {name}, which has none" in last
    )
    assert not (tmp_path / "out.gguf").exists()


def test_the_harness_takes_no_classifier() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"^pretrained: must be a causal language model.* LlamaForSequence"
    ):
        RopescaleLM(pretrained=built("llama", "sequences"), tokenizer="tiny")
    with pytest.raises(
        UnsupportedModelError, match=r"^a live model: must be a causal language model.* LlamaForSequence"
    ):
        export(built("llama", "sequences"), "nowhere.gguf", to="gguf", method="none")


@pytest.mark.parametrize("to", ["transformers", "vllm", "sglang"])
def test_engines_that_serve_classifiers_get_them(to: str, tmp_path: Path) -> None:
    model = built("llama", "sequences")
    model.save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "out", to=to, method="yarn", factor=4)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(output(loaded), output(ropescale.patch(model, "yarn", factor=4)))
    with pytest.raises(UnsupportedModelError, match="must be a causal language model"):
        verify(tmp_path / "out", engine="transformers" if to == "sglang" else to)


# Vision-language models


def test_a_classifier_over_a_vision_language_model_keeps_its_head(tmp_path: Path) -> None:
    config = config_of_whole("gemma3")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    randomise(model)
    ropescale.patch(model, "yarn", factor=4).save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded), output(model))


EMU3 = {
    "vq_config": {
        "base_channels": 32,
        "channel_multiplier": [1],
        "embed_dim": 8,
        "codebook_size": 16,
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
        "num_attention_heads": 2,
        "z_channels": 32,
        "in_channels": 3,
        "temporal_downsample_factor": 1,
    },
    "vocabulary_map": {"<image>": 100},
}


def test_a_whole_whose_text_decoder_is_not_found_in_it_is_loaded_whole(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["emu3"](text_config=config_of("emu3_text_model").to_dict(), **copy.deepcopy(EMU3))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path)
    loaded = ropescale.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize("name", WHOLES)
def test_wholes_are_loaded_as_they_were_saved_but_for_those_that_are_language_models_too(name: str) -> None:
    config = config_of_whole(name)
    whole = AutoModelForImageTextToText._model_mapping[type(config)]
    config.architectures = [whole.__name__]
    loader = class_of(config)
    if loader is AutoModelForCausalLM:
        loader = loader._model_mapping[type(config)]
    alone = {"qwen3_5": "Qwen3_5ForCausalLM", "qwen3_5_moe": "Qwen3_5MoeForCausalLM"}
    assert loader.__name__ == alone.get(name, whole.__name__)
