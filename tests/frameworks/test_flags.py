"""Settings of training frameworks: each is carried out by the rule that was read in its source, on Transformers, and
the model that comes of it is held against the one that `patch` makes.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exports import checkpoint
from families import logits
from transformers import AutoConfig, AutoModelForCausalLM

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.errors import ExportError
from ropescale.frameworks import FRAMEWORKS, flags

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
METHODS = ("yarn", "ntk", "linear", "by_parts", "ntk_fixed")


def built(folder: str, config: Any = None) -> Any:
    """The model as a framework builds it: Transformers alone, from the config that it was left with."""
    given = {} if config is None else {"config": config}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).eval()


def by_axolotl(settings: str) -> Any:
    """Each entry of `overrides_of_model_config` is set on the config that was read."""
    told = yaml.safe_load(settings)
    config = AutoConfig.from_pretrained(told["base_model"])
    for name, value in told.get("overrides_of_model_config", {}).items():
        setattr(config, name, value)
    assert config.max_position_embeddings >= told["sequence_len"]
    return built(told["base_model"], config)


def by_ms_swift(settings: str) -> Any:
    """The JSON takes the place of the scaling, and the length that of the maximum."""
    words = shlex.split(settings)
    told = dict(zip(words[2::2], words[3::2], strict=True))
    config = AutoConfig.from_pretrained(told["--model"])
    if "--rope_scaling" in told:
        config.rope_parameters = json.loads(told["--rope_scaling"])
        config.max_position_embeddings = int(told["--max_model_len"])
    assert config.max_position_embeddings >= int(told["--max_length"])
    return built(told["--model"], config)


def by_folder(settings: str) -> Any:
    """The folder is read as it is; verl names it for each of its models, and none is longer than its config says."""
    words = (
        settings.replace("\n", " ").replace("(", " ").replace(")", " ").replace(",", " ").replace(": ", "=").split()
    )
    folder = next(word for word in words if "out" in word).rpartition("=")[2].strip('"')
    lengths = [int(end) for end in (word.rpartition("=")[2] for word in words) if end.isdecimal()]
    model = built(folder)
    reach, rope = model.config.max_position_embeddings, model.config.rope_parameters
    if "rollout" in settings and rope["rope_type"] == "linear":  # whose engine multiplies it
        reach = round(reach * rope["factor"])
    assert lengths == [reach]
    return model


RULES = {
    "axolotl": by_axolotl,
    "llama_factory": by_folder,
    "ms_swift": by_ms_swift,
    "unsloth": by_folder,
    "verl": by_folder,
}


def test_every_framework_has_its_rule_here_and_its_name_on_the_page() -> None:
    assert FRAMEWORKS.keys() == RULES.keys()
    page = PAGE.read_text(encoding="utf-8")
    assert all(one.title in page and one.read.partition(",")[0] in page for one in FRAMEWORKS.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RULES)
def test_the_settings_mean_what_patch_means(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = flags("tiny", framework=name, method=method, factor=4)
    if told.write:
        assert cli.main(shlex.split(told.write)[1:]) == 0
    patched = ropescale.patch(ropescale.load("tiny"), method, factor=4)
    model = RULES[name](told.settings)
    assert (logits(model, 300) - logits(patched, 300)).abs().max() < 1e-5
    assert told.target_length == 512


@pytest.mark.parametrize(
    ("family", "name"), [("gemma3_text", "axolotl"), ("gemma3_text", "ms_swift"), ("phi3", "ms_swift")]
)
def test_what_states_its_rotation_otherwise(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation for each layer type, or an original length that is an entry of its own."""
    monkeypatch.chdir(tmp_path)
    source = checkpoint(tmp_path / "source", family)
    told = flags(source, framework=name, method="yarn", factor=4)
    assert bool(told.write) == (name == "ms_swift"), "its arguments have no words for it"
    if told.write:
        assert "--max_model_len" not in told.settings, "with which it would work out the factor anew"
        assert cli.main(shlex.split(told.write)[1:]) == 0
    patched = built(str(source))
    ropescale.patch(patched, "yarn", factor=4)
    assert (logits(RULES[name](told.settings), 300) - logits(patched, 300)).abs().max() < 1e-5


@pytest.mark.parametrize("name", RULES)
def test_a_folder_that_is_extended_already_is_named_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for verl, whose rollouts want it in the words of their engine: then the folder that was written so."""
    monkeypatch.chdir(tmp_path)
    folder = ropescale.rescale_checkpoint("tiny", tmp_path / "out" / "longer", "linear", factor=4)
    told = flags(folder, framework=name)
    expected = ropescale.load(folder)
    if name == "verl":
        assert cli.main(shlex.split(told.write)[1:]) == 0
        folder = tmp_path / "out" / "longer-vllm-512"
        told = flags(folder, framework=name)
    assert (told.write, told.method, told.target_length) == ("", "linear x4", 512)
    assert str(folder) in told.settings
    assert (logits(RULES[name](told.settings), 300) - logits(expected, 300)).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["self_extend", "dynamic_ntk"])
@pytest.mark.parametrize("name", RULES)
def test_what_no_config_states_is_refused_with_the_remedy(name: str, method: str) -> None:
    remedy = "ropescale.recipes.axolotl.RopescalePlugin" if name == "axolotl" else "ropescale train"
    with pytest.raises(ExportError, match=rf"^{method}: must be a method of fixed frequencies.*{remedy}"):
        flags("tiny", framework=name, method=method, factor=4)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["flags", "tiny", "--for", "ms-swift", "--method", "yarn", "--factor", "4"]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert said.startswith("ms-swift, by its source (3602360a, 2026-08-22), not run: yarn x4, 512 tokens\n")
    assert all(f"  - {one}\n" in said for one in FRAMEWORKS["ms_swift"].misreads)
    assert cli.main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["framework"], found["target_length"], found["write"]) == ("ms_swift", 512, "")
    assert cli.main(["flags", "tiny", "--for", "axolot", "--method", "yarn", "--factor", "4"]) == 2
    known = "--for: must be one of axolotl, llama_factory, ms_swift, unsloth, verl, got 'axolot'"
    assert known in capsys.readouterr().err
    assert cli.main(["flags", "tiny", "--for", "verl", "--method", "self_extend", "--factor", "4"]) == 2
    assert "ropescale train" in capsys.readouterr().err


# What frameworks read otherwise, as far as Transformers alone shows it


def test_a_scaling_in_the_place_of_the_parameters_loses_theta() -> None:
    config = AutoConfig.from_pretrained(resolve("tiny"))
    with pytest.warns(FutureWarning, match="rope_scaling"):
        config.rope_scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    with pytest.raises(TypeError, match="NoneType"):
        built(resolve("tiny"), config)


def test_a_length_that_is_a_float_is_refused() -> None:
    config = AutoConfig.from_pretrained(resolve("tiny"))
    with pytest.raises(Exception, match="max_position_embeddings"):
        config.max_position_embeddings = 128 * 4.0


def test_the_entries_of_a_scaling_are_no_attributes() -> None:
    config = AutoConfig.from_pretrained(resolve("tiny"))
    with pytest.raises(AttributeError, match="rope_type"):
        config.rope_parameters.rope_type = "yarn"
