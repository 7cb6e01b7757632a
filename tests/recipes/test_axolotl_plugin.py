"""The plugin of axolotl, called as axolotl calls it: against its own `BasePlugin` where that is installed, else
against one with the hooks that were read in it.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Trainer, TrainingArguments

import ropescale
from ropescale.checkpoints import resolve
from ropescale.errors import InvalidArgumentError
from ropescale.recipes import EvaluationCallback, PoseCollator

NAME = "ropescale.recipes.axolotl"
HOOKS = (  # of BasePlugin, axolotl 067b021c: name, then arguments
    ("get_input_args", ()),
    ("post_model_build", ("cfg", "model")),
    ("get_collator_cls_and_kwargs", ("cfg", "is_eval")),
    ("add_callbacks_post_trainer", ("cfg", "trainer")),
    ("post_train", ("cfg", "model")),
)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if importlib.util.find_spec("axolotl") is None:
        base = types.ModuleType("axolotl.integrations.base")
        base.BasePlugin = type("BasePlugin", (), {name: lambda self, *args, **kwargs: None for name, _ in HOOKS})  # type: ignore[attr-defined]
        for name in ("axolotl", "axolotl.integrations"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME).RopescalePlugin()
    sys.modules.pop(NAME, None)


def test_the_hooks_are_those_of_the_base(plugin: Any) -> None:
    base = importlib.import_module("axolotl.integrations.base").BasePlugin
    assert isinstance(plugin, base)
    own = {name for name in vars(type(plugin)) if not name.startswith("_")}
    assert own == {name for name, _ in HOOKS}
    for name, arguments in HOOKS:
        assert hasattr(base, name), "axolotl would not call it"
        code = getattr(type(plugin), name).__code__
        assert code.co_varnames[1 : code.co_argcount] == arguments


def test_its_settings_are_found_where_it_says(plugin: Any) -> None:
    module, _, name = plugin.get_input_args().rpartition(".")
    assert module == NAME
    read = getattr(importlib.import_module(module), name)(ropescale={"method": "yarn", "factor": 4})
    assert read.ropescale == {"method": "yarn", "factor": 4}


@pytest.mark.parametrize("method", ["yarn", "self_extend"])
def test_a_run_as_axolotl_makes_it(plugin: Any, method: str, tmp_path: Path) -> None:
    given = {"method": method, "factor": 4, "pose": {"chunks": 3}, "evaluate": {"windows": 1, "passkeys": 1}}
    cfg = {"ropescale": given, "sample_packing": False, "output_dir": str(tmp_path / "out")}
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
    model: Any = ropescale.load("tiny")
    plugin.post_model_build(cfg, model)
    done = ropescale.record(model)
    assert done is not None
    assert (done.method, done.target_length) == (method, 512)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    kind, more = plugin.get_collator_cls_and_kwargs(cfg, is_eval=False)
    collator = kind(tokenizer, padding=True, return_tensors="pt", **more)
    assert isinstance(collator, PoseCollator)
    assert plugin.get_collator_cls_and_kwargs(cfg, is_eval=True) is None
    ids = torch.randint(3, 1000, (4, 64), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "labels": row, "attention_mask": [1] * 64} for row in ids]
    batch = collator(rows)
    assert bool((batch["attention_mask"] == 1).all())
    assert int((batch["position_ids"].diff() > 1).sum()) > 4, "three chunks"
    arguments = TrainingArguments(
        cfg["output_dir"], max_steps=1, per_device_train_batch_size=2, remove_unused_columns=False, report_to="none"
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer)
    (callback,) = plugin.add_callbacks_post_trainer(cfg, trainer)
    assert isinstance(callback, EvaluationCallback)
    trainer.add_callback(callback)
    trainer.train()
    assert "eval_passkey_512" in trainer.state.log_history[-1]
    trainer.save_model()
    plugin.post_train(cfg, model)
    assert ropescale.record(ropescale.load_adapter("tiny", tmp_path / "out")) == ropescale.record(model)


def test_what_it_refuses(plugin: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^ropescale: must be settings of axolotl's file"):
        plugin.post_model_build({}, ropescale.load("tiny"))
    with pytest.raises(InvalidArgumentError, match=r"facto.*did you mean|factor"):
        plugin.post_model_build({"ropescale": {"method": "yarn", "facto": 4}}, ropescale.load("tiny"))
    cfg = {"ropescale": {"method": "yarn", "factor": 4, "pose": {}}}
    with pytest.raises(InvalidArgumentError, match="got sample_packing true"):
        plugin.get_collator_cls_and_kwargs({**cfg, "sample_packing": True})
    assert plugin.add_callbacks_post_trainer(cfg, None) == []
