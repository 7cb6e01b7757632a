"""An adapter is put on the head that it was trained with."""

import copy
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, randomise
from heads import KINDS, LABELS, LATE, built, drop, output
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import ropescale
from ropescale.adapters import load_adapter, merge, save_adapter
from ropescale.errors import CheckpointError
from ropescale.export import export

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary module serves sliding-window.*")

TASKS = {"decoder": "FEATURE_EXTRACTION", "answers": "QUESTION_ANS", "sequences": "SEQ_CLS", "tokens": "TOKEN_CLS"}


def adapted(base: PreTrainedModel, kind: str, **method: Any) -> PeftModel:
    """A copy of a base, patched, with random updates and, where it has one, a head of its own."""
    model = ropescale.patch(copy.deepcopy(base), **method)
    lora = LoraConfig(task_type=TASKS[kind], r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, lora).eval()
    with torch.no_grad():
        for name, one in wrapped.named_parameters():
            if "modules_to_save" in name:
                one.normal_(0, 0.5)
    return wrapped


@pytest.fixture(scope="module")
def bases() -> Iterator[Path]:
    """A base of every kind, and a language model with the same decoder."""
    with tempfile.TemporaryDirectory() as root:
        for kind in KINDS:
            built("llama", kind).save_pretrained(Path(root, kind))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of("llama")).eval()
        randomise(model)
        model.save_pretrained(Path(root, "language"))
        yield Path(root)


METHODS = {"yarn": {"method": "yarn", "factor": 4}, "self_extend": LATE}


def on_patched_base(base: PreTrainedModel, folder: Path, method: dict[str, Any]) -> Tensor:
    """What PEFT alone makes of the adapter, on a base that is patched by hand."""
    with warnings.catch_warnings(action="ignore"):  # the notice, among others
        return output(PeftModel.from_pretrained(ropescale.patch(base, **method), folder))


@pytest.mark.parametrize(
    ("kind", "on", "method"),
    [
        (kind, on, method)
        for kind in KINDS
        for on in ("its kind", "language")
        for method in METHODS
        if (kind, on) != ("answers", "language")
    ],
)
def test_an_adapter_is_put_on_the_head_that_it_was_trained_with(
    kind: str, on: str, method: str, bases: Path, tmp_path: Path
) -> None:
    place = bases / (kind if on == "its kind" else "language")
    labels = {"num_labels": LABELS[kind]} if kind in LABELS else {}
    base = KINDS[kind].from_pretrained(place, **labels)
    wrapped = adapted(base, kind, **METHODS[method])
    expected = output(wrapped)
    folder = save_adapter(wrapped, tmp_path / "adapter")
    loaded = load_adapter(place, folder)
    assert type(loaded.get_base_model()) is type(base)
    assert torch.equal(output(loaded), expected)
    assert torch.equal(
        on_patched_base(KINDS[kind].from_pretrained(place, **labels), folder, METHODS[method]), expected
    )
    merged = merge(folder, tmp_path / "merged", place)
    assert json.loads((merged / "config.json").read_text())["architectures"] == [type(base).__name__]
    torch.testing.assert_close(output(ropescale.load(merged)), expected, rtol=0, atol=1e-4)
    if method == "yarn":
        torch.testing.assert_close(output(KINDS[kind].from_pretrained(merged)), expected, rtol=0, atol=1e-4)
        assert ropescale.diagnose(merged) == []
        export(place, tmp_path / "served", to="vllm", adapter=folder)
        assert json.loads((tmp_path / "served" / "config.json").read_text())["architectures"] == [type(base).__name__]
        served = KINDS[kind].from_pretrained(tmp_path / "served")
        torch.testing.assert_close(output(served), expected, rtol=0, atol=1e-4)


def test_a_base_whose_weights_have_other_names_is_refused(bases: Path, tmp_path: Path) -> None:
    """Llama's class for answers does not find its decoder in a language model: Transformers draws it at random."""
    wrapped = adapted(AutoModelForQuestionAnswering.from_pretrained(bases / "answers"), "answers", factor=4)
    folder = save_adapter(wrapped, tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"the weights must be complete, got none for 'transformer\.embed_tokens"
    ):
        load_adapter(bases / "language", folder)


def test_an_adapter_without_the_head_that_its_base_lacks_is_refused(bases: Path, tmp_path: Path) -> None:
    wrapped = adapted(AutoModelForSequenceClassification.from_pretrained(bases / "sequences"), "sequences", factor=4)
    folder = save_adapter(wrapped, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    # as if it were of another task: PEFT then wraps no head
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "task_type": None, "modules_to_save": None}))
    weights = {
        name: one for name, one in load_file(folder / "adapter_model.safetensors").items() if "score" not in name
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    built("llama", "sequences").save_pretrained(tmp_path / "base")
    drop(tmp_path / "base", "score")
    with pytest.raises(
        CheckpointError, match=r"must hold the head of a LlamaForSequenceClassification, which its base"
    ):
        load_adapter(tmp_path / "base", folder)
