"""Adapters that carry their scaling: trained, loaded in a fresh process, merged, refused where they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import family, knobs_for
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import ropescale
from ropescale import cli
from ropescale.adapters import NOTICE, add_record, load_adapter, merge, save_adapter
from ropescale.checkpoint import added_parameters
from ropescale.checkpoints import resolve
from ropescale.errors import AlreadyPatchedError, CheckpointError, InvalidArgumentError, NotPatchedError
from ropescale.methods import FixedMethod

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.arange(1, 201)[None] * 5 % 1024  # beyond the 128 tokens of the embedded model
# what the method needs, and which parameters are trained beside the adapter
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[str], bool]]] = {
    "yarn": ({"method": "yarn", "factor": 4}, {}, lambda _: False),
    "ntk with resonance and log_n": (
        {"method": "ntk", "factor": 4, "resonance": True, "log_n": True},
        {},
        lambda _: False,
    ),
    "dynamic_yarn": ({"method": "dynamic_yarn"}, {}, lambda _: False),
    "self_extend": ({"method": "self_extend", "group_size": 4, "window": 64}, {}, lambda _: False),
    "t5": ({"method": "t5"}, {}, lambda name: ".ropescale." in name),
    "shaw": ({"method": "shaw"}, {}, lambda name: ".ropescale." in name),
    "cope": ({"method": "cope"}, {}, lambda name: ".ropescale." in name),
    "learned": ({"method": "learned", "max_length": 512}, {}, lambda name: ".ropescale." in name),
    "t5, left as it began": ({"method": "t5"}, {}, lambda _: False),
    "yarn with norms as modules to save": (
        {"method": "yarn", "factor": 4},
        {"modules_to_save": ["input_layernorm", "norm"]},
        lambda _: False,
    ),
    "yarn with embeddings to save": (
        {"method": "yarn", "factor": 4},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        lambda _: False,
    ),
    "yarn with norms set free": ({"method": "yarn", "factor": 4}, {}, lambda name: "norm" in name),
}
cases = pytest.mark.parametrize("case", CASES)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def trained(case: str) -> peft.PeftModel:
    """The embedded model, patched, with an adapter after two steps."""
    method, lora, free = CASES[case]
    torch.manual_seed(0)
    model = peft.get_peft_model(ropescale.patch(ropescale.load("tiny"), **method), peft.LoraConfig(**LORA, **lora))
    for name, parameter in model.named_parameters():
        if free(name):
            parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case's adapter, with the logits of the trained model beside it."""
    root = tmp_path_factory.mktemp("adapters")
    folders = {}
    for number, case in enumerate(CASES):
        model = trained(case)
        folders[case] = save_adapter(model, root / f"{number}")
        torch.save(logits(model), folders[case] / "logits.pt")
    return folders


FRESH = """
import sys
from pathlib import Path

import torch

import ropescale

torch.set_num_threads(1)
ids = torch.arange(1, 201)[None] * 5 % 1024
for folder in map(Path, sys.argv[1:]):
    model = ropescale.load_adapter("tiny", folder)
    assert not model.training
    assert not any(one.requires_grad for one in model.base_model.model.model.layers.parameters())
    with torch.no_grad():
        print(torch.equal(model(input_ids=ids).logits, torch.load(folder / "logits.pt")), folder)
"""


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_a_fresh_process_gets_the_trained_models_logits_bit_for_bit(saved: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:peft", "-c", FRESH, *map(str, saved.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True {folder}" for folder in saved.values()]


@cases
def test_training_changed_what_is_saved(case: str, saved: dict[str, Path]) -> None:
    """The control: without the adapter, the same patched model gives other logits."""
    untrained = ropescale.patch(ropescale.load("tiny"), **CASES[case][0])
    assert not torch.equal(logits(untrained), torch.load(saved[case] / "logits.pt"))


@cases
def test_a_merged_checkpoint_has_the_trained_models_logits(case: str, saved: dict[str, Path], tmp_path: Path) -> None:
    merge(saved[case], tmp_path / "merged", "tiny")
    expressible = ropescale.get_method(CASES[case][0]["method"]).__mro__  # for plain Transformers
    native = FixedMethod in expressible and not CASES[case][0].get("log_n")
    loader = AutoModelForCausalLM.from_pretrained if native else ropescale.load
    model = loader(tmp_path / "merged")
    torch.testing.assert_close(logits(model), torch.load(saved[case] / "logits.pt"), rtol=0, atol=1e-5)
    record = ropescale.record(model)
    assert record is not None
    assert record.method == CASES[case][0]["method"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.model_max_length == model.config.max_position_embeddings == record.target_length
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_the_record_is_the_one_of_the_model(saved: dict[str, Path]) -> None:
    model = trained("yarn")
    record = ropescale.record(model)
    assert record is not None
    values = json.loads((saved["yarn"] / "ropescale.json").read_text())
    assert 30 < len(values.pop("base")) <= 64, "the digest of the base's weights"
    assert values == json.loads(json.dumps(record.to_dict()))


def test_plain_peft_warns_where_it_loads_the_adapter_alone(saved: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match=r"'trained with rescaled positions: load it with ropescale\.load_adapter'"):
        model = peft.PeftModel.from_pretrained(ropescale.load("tiny"), saved["yarn"])
    assert not torch.equal(logits(model), torch.load(saved["yarn"] / "logits.pt")), "which is why it warns"
    assert NOTICE in json.loads((saved["yarn"] / "adapter_config.json").read_text())


def test_plain_peft_on_a_patched_base_gives_the_trained_model(saved: dict[str, Path]) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    with pytest.warns(UserWarning, match="Unexpected keyword arguments"):
        model = peft.PeftModel.from_pretrained(base, saved["yarn"])
    assert torch.equal(logits(model), torch.load(saved["yarn"] / "logits.pt"))


def test_transformers_own_adapter_loading_warns_too(saved: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="trained with rescaled positions"):
        ropescale.load("tiny").load_adapter(str(saved["yarn"]))


def test_a_base_that_is_patched_alike_is_taken_as_it_is(saved: dict[str, Path]) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", target_length=512)
    model = load_adapter(base, saved["yarn"])
    assert torch.equal(logits(model), torch.load(saved["yarn"] / "logits.pt"))


def test_a_base_that_was_saved_patched_is_taken_too(saved: dict[str, Path], tmp_path: Path) -> None:
    ropescale.patch(ropescale.load("tiny"), "yarn", factor=4).save_pretrained(tmp_path)
    model = load_adapter(tmp_path, saved["yarn"])
    assert torch.equal(logits(model), torch.load(saved["yarn"] / "logits.pt"))


def test_training_goes_on_where_it_is_asked_to(saved: dict[str, Path]) -> None:
    model = load_adapter("tiny", saved["yarn"], trainable=True)
    assert {name.split(".")[-3] for name, one in model.named_parameters() if one.requires_grad} == {"lora_A", "lora_B"}
    model(input_ids=IDS, labels=IDS).loss.backward()
    ropescale.unpatch(model)
    assert ropescale.record(model) is None


def test_a_trainer_adds_the_record_to_what_peft_saved(tmp_path: Path) -> None:
    model = trained("t5")
    model.save_pretrained(tmp_path)
    add_record(model, tmp_path)
    add_record(model, tmp_path)  # once more is the same
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ropescale.json",
        "ropescale.safetensors",
    ]
    assert load_file(tmp_path / "ropescale.safetensors").keys() == added_parameters(model.get_base_model()).keys()
    assert torch.equal(logits(load_adapter("tiny", tmp_path)), logits(model))


def test_an_adapter_of_another_name_is_saved_alike(tmp_path: Path) -> None:
    base = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights=False), adapter_name="long")
    save_adapter(model, tmp_path / "long")
    assert torch.equal(logits(load_adapter("tiny", tmp_path / "long")), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["long"]


def fingerprint(model: PreTrainedModel) -> tuple[Any, ...]:
    state = {name: (one.data_ptr(), one.sum().item()) for name, one in model.state_dict().items()}
    return state, json.dumps(model.config.to_dict(), sort_keys=True), [name for name, _ in model.named_modules()]


def other_theta() -> PreTrainedModel:
    config = ropescale.load("tiny").config
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def other_length() -> PreTrainedModel:
    config = ropescale.load("tiny").config
    config.max_position_embeddings = 256
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def narrower() -> PreTrainedModel:
    config = ropescale.load("tiny").config
    config.hidden_size = 64
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def shallower() -> PreTrainedModel:
    config = ropescale.load("tiny").config
    config.num_hidden_layers = 2
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def otherwise() -> PreTrainedModel:
    return ropescale.patch(ropescale.load("tiny"), "yarn", factor=8)


REFUSED: list[tuple[Callable[[], PreTrainedModel], type[Exception], str]] = [
    (other_theta, InvalidArgumentError, r"base: config\.rope_parameters must be what the adapter .* got .*500000"),
    (other_length, InvalidArgumentError, r"base: config\.max_position_embeddings must be .* \(128\), got 256; give"),
    (
        otherwise,
        AlreadyPatchedError,
        r"base: must be unpatched, or patched as the adapter .* \(yarn\(factor=4\.0, .*512 tokens\), got one patched "
        r"with yarn\(factor=8\.0, .* to 1024 tokens; call ropescale\.unpatch\(base\) first",
    ),
    (narrower, CheckpointError, r"the adapter's weights must fit the base, got RuntimeError"),
    (shallower, InvalidArgumentError, r"base: weights must be those that the adapter .* got other values in \d+ of"),
]


@pytest.mark.parametrize(("base", "error", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_base_that_does_not_fit_is_refused_and_left_as_it_was(
    base: Callable[[], PreTrainedModel], error: type[Exception], message: str, saved: dict[str, Path]
) -> None:
    model = base()
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        load_adapter(model, saved["yarn"])
    assert fingerprint(model) == before


def test_a_base_with_an_adapter_is_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^base: must be without an adapter, got a PeftModelForCausalLM; "):
        load_adapter(trained("yarn"), saved["yarn"])  # type: ignore[arg-type]


def test_an_adapter_without_a_record_is_refused(tmp_path: Path) -> None:
    peft.get_peft_model(ropescale.load("tiny"), peft.LoraConfig(**LORA)).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"with a ropescale\.json, got none; an adapter that was trained without"
    ):
        load_adapter("tiny", tmp_path)


def test_a_damaged_record_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    model = trained("yarn")
    save_adapter(model, tmp_path / "a")
    record = tmp_path / "a" / "ropescale.json"
    record.write_text(record.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"ropescale\.json: must be a JSON file, got JSONDecodeError"):
        load_adapter("tiny", tmp_path / "a")


def test_lost_parameters_of_the_method_are_refused(tmp_path: Path) -> None:
    folder = save_adapter(trained("t5"), tmp_path / "t5")
    (folder / "ropescale.safetensors").unlink()
    base = ropescale.load("tiny")
    before = fingerprint(base)
    with pytest.raises(
        CheckpointError, match=r"must hold what the method added to the base, got none for '.*ropescale"
    ):
        load_adapter(base, folder)
    assert fingerprint(base) == before
    save_file({"model.norm.weight": torch.zeros(3)}, folder / "ropescale.safetensors")
    with pytest.raises(CheckpointError, match=r"must be a parameter of the base with the shape \[3\], got \[128\]"):
        load_adapter(base, folder)


def test_an_unpatched_model_has_no_record_to_carry(tmp_path: Path) -> None:
    model = peft.get_peft_model(ropescale.load("tiny"), peft.LoraConfig(**LORA))
    with pytest.raises(NotPatchedError, match="model: must be patched for its adapter to carry a record"):
        save_adapter(model, tmp_path / "a")
    with pytest.raises(InvalidArgumentError, match="model: must be a PEFT model with one active adapter, got Llama"):
        save_adapter(model.get_base_model(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_patched_checkpoint_that_transformers_alone_loaded_has_one(tmp_path: Path) -> None:
    """Its rotation is that of its config: the adapter goes with it, and with the same patch made by ropescale."""
    ropescale.patch(ropescale.load("tiny"), "yarn", factor=4).save_pretrained(tmp_path / "patched")
    torch.manual_seed(0)
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "patched")
    model = peft.get_peft_model(native, peft.LoraConfig(**LORA, init_lora_weights=False)).eval()
    ids = torch.arange(3, 203)[None]
    with torch.no_grad():
        expected = model(ids).logits
        folder = save_adapter(model, tmp_path / "adapter")
        for base in (
            "tiny",
            tmp_path / "patched",
            AutoModelForCausalLM.from_pretrained(tmp_path / "patched"),
            ropescale.load(tmp_path / "patched"),
        ):
            assert torch.equal(load_adapter(base, folder)(ids).logits, expected)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "patched")
    with pytest.raises(AlreadyPatchedError, match=r"got one patched with yarn\(factor=4"):
        load_adapter(other, save_adapter(trained("dynamic_yarn"), tmp_path / "another"))


def test_a_record_that_the_config_contradicts_is_carried_by_no_adapter(tmp_path: Path) -> None:
    ropescale.patch(ropescale.load("tiny"), "yarn", factor=4).save_pretrained(tmp_path / "patched")
    file = tmp_path / "patched" / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"]["factor"] = 2.0
    file.write_text(json.dumps(config))
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "patched")
    model = peft.get_peft_model(native, peft.LoraConfig(**LORA))
    with pytest.raises(
        CheckpointError, match=r"model: config\.rope_parameters must be what the ropescale record in it"
    ):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("verb", ["save_adapter", "merge"])
def test_a_folder_that_is_not_empty_is_left_alone(verb: str, saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    argument = "path" if verb == "save_adapter" else "destination"
    with pytest.raises(InvalidArgumentError, match=rf"^{argument}: must be new, or an empty folder, got '.*'"):
        save_adapter(trained("yarn"), tmp_path) if verb == "save_adapter" else merge(saved["yarn"], tmp_path, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"^destination: must be a place with room .*, got .*No space left"):
        merge(saved["yarn"], tmp_path / "merged", "tiny")
    assert not list(tmp_path.iterdir())


def test_the_command_merges(saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", str(saved["yarn"]), str(tmp_path / "a")]) == 0, "its config names the base"
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "a")
    assert cli.main(["merge", str(saved["yarn"]), str(tmp_path / "b"), "--base", "tiny", "--dtype", "bfloat16"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "b").dtype == torch.bfloat16
    assert cli.main(["merge", str(saved["yarn"]), str(tmp_path / "a")]) == 2
    assert "DST: must be new, or an empty folder, got " in capsys.readouterr().err


def test_the_base_may_be_a_name_or_a_path_with_keywords(saved: dict[str, Path]) -> None:
    model = load_adapter(resolve("tiny"), saved["yarn"], dtype=torch.bfloat16)
    assert model.get_base_model().dtype == torch.bfloat16
    with pytest.raises(InvalidArgumentError, match=r"^base: must be a path or a name for dtype to have a meaning"):
        load_adapter(ropescale.load("tiny"), saved["yarn"], dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "gpt_neox", "mistral"])
@pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")
def test_other_families_carry_their_scaling_too(name: str, tmp_path: Path) -> None:
    base = family(name)
    pairs = ropescale.read_geometry(base.config).pairs
    ropescale.patch(base, "yarn", factor=4, **knobs_for("yarn", pairs))
    lora = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(base, lora)
    save_adapter(model, tmp_path / "a")
    again = load_adapter(family(name), tmp_path / "a")
    ids = IDS[:, :100] % 128
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
