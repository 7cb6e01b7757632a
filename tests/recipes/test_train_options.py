"""Every option of `ropescale train` that is its own, and not Trainer's, changes what comes of a run, or is refused.

What comes of a run: its steps, the weights, every figure, the account of the data, its record and where its cache is.
Its settings are not looked at, which name every option whether it acts or not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.options import RecipeOptions

BASE: dict[str, Any] = {
    "model": "tiny",
    "factor": 2,
    "data": "{texts}",
    "eval_texts": "sample",
    "eval_windows": 1,
    "eval_passkeys": 0,
    "eval_lengths": 64,
    "eval_strategy": "no",
    "length": 64,
    "max_steps": 1,
    "warmup_steps": 0,
    "batch_size": 1,
    "save_strategy": "no",
    "logging_strategy": "no",
}
DATA: dict[str, Any] = {"data": ["{texts}", "{other}"]}
POSE: dict[str, Any] = {"schedule": "pose", "factor": 4, "length": 96}
ASKED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
LONGCE: dict[str, Any] = {"loss": "longce", "loss_short": 32}
LONGRED: dict[str, Any] = {"loss": "longred", "loss_short": 32, "max_steps": 2}
NOPE: dict[str, Any] = {"method": "nope", "schedule": "full_length"}


@dataclass(frozen=True)
class Case:
    """A value that makes a difference, to a run that is BASE with `base` over it; None leaves an option out."""

    value: Any
    base: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


CASES: dict[str, Case] = {
    "model": Case("{model}"),
    "method": Case("ntk"),
    "factor": Case(4),
    "target_length": Case(512, {"factor": None, "target_length": 256}),
    "original_length": Case(64),
    "knobs": Case('{"beta_fast": 8}'),
    "log_n": Case("true"),
    "temperature": Case("llama4:0.3"),
    "existing": Case("compose", {"model": "{scaled}", "existing": "replace", "original_length": 128}),
    "layers": Case("full"),
    "tuning": Case("lora_plus"),
    "adapter": Case("{adapter}"),
    "rank": Case(2),
    "alpha": Case(64),
    "lora_dropout": Case(0.5),
    "target_modules": Case("q_proj"),
    "schedule": Case("pose"),
    "length": Case(48),
    "chunks": Case(3, POSE),
    "content": Case("contiguous", POSE),
    "document_mask": Case("false", {"data": "{splits}", "data_split": "first", "length": None, "batch_size": 8}),
    "fit_logit_scale": Case("true", NOPE),
    "loss": Case("exact"),
    "loss_alpha": Case(0.5, {"loss": "exact"}),
    "loss_gamma": Case(2, {"loss": "exact"}),
    "loss_from": Case(8, {"loss": "exact"}),
    "loss_short": Case(16, LONGCE),
    "loss_step": Case(4, LONGCE),
    "loss_cap": Case(1.01, LONGCE),
    "loss_restored": Case(1, LONGRED),
    "loss_skipped": Case(1, LONGRED),
    "dtype": Case("bfloat16"),
    "device_map": Case('{"": "disk"}', refused="device-map"),
    "quantization": Case("bnb-8bit", {"tuning": "qlora"}),
    "revision": Case("main", refused="revision"),
    "attention": Case("eager", {"data": "{texts}", "packing": "true"}),
    "ulysses": Case(2, refused="ulysses"),
    "eval_lengths": Case(128),
    "eval_texts": Case("held_out"),
    "eval_windows": Case(2),
    "eval_passkeys": Case(1, {"eval_lengths": 128}),
    "stop_passkey": Case(0.01, {**ASKED, "eval_passkeys": 1, "eval_lengths": 128}),
    "stop_perplexity": Case(1e9, ASKED),
    "data": Case("{other}"),
    "data_weights": Case([3, 1], DATA),
    "text_field": Case("body", {"data": "{rows}"}),
    "data_split": Case("second", {"data": "{splits}", "data_split": "first"}),
    "min_tokens": Case(120),
    "max_tokens": Case(200),
    "max_documents": Case(3),
    "packing": Case("false"),
    "held_out": Case(0.5),
    "cache_dir": Case("{place}/elsewhere", {"cache_dir": "{place}/cache"}),
}


def test_every_option_has_a_value_here() -> None:
    own = {item.name for kind in (RecipeOptions, DataOptions) for item in dataclasses.fields(kind)}
    assert set(CASES) == own


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data, checkpoints and an adapter, by the names that options have for them."""
    place = tmp_path_factory.mktemp("things")
    made = {name: str(place / name) for name in ("model", "scaled", "adapter", "rows", "splits")}
    for name, word in (("texts", "river"), ("other", "zebra")):
        rows = [f"{word} {number} of a small town " * (4 + 5 * number) for number in range(9)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        made[name] = str(place / f"{name}.jsonl")
    both = [{"text": "the text of a row " * 40, "body": f"another body {n} " * 40} for n in range(6)]
    both = [{**row, "text": f"{n} {row['text']}"} for n, row in enumerate(both)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    made["rows"] = str(place / "rows.jsonl")
    parts = {
        name: datasets.Dataset.from_list([{"text": f"{n} {name} things of a kind " * 40} for n in range(6)])
        for name in ("first", "second")
    }
    datasets.DatasetDict(parts).save_to_disk(place / "splits")
    for name in ("model", "scaled"):
        shutil.copytree(resolve("tiny"), place / name)
    weights = load_file(place / "model" / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"] *= 1.5
    save_file(weights, place / "model" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "scaled" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    (place / "scaled" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    assert cli.main(["train", "lora", *given({"output": place / "adapter", "seed": 3}, made, place)]) == 0
    return made


def given(more: dict[str, Any], things: dict[str, str], place: Path) -> list[str]:
    words = []
    for name, value in (BASE | {"cache_dir": "{place}/shared"} | more).items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        if values:
            words += [f"--{name.replace('_', '-')}", *(str(one) for one in values)]
    return [re.sub(r"\{(\w+)\}", lambda found: {**things, "place": str(place)}[found[1]], word) for word in words]


def outcome(place: Path, things: dict[str, str], more: dict[str, Any], capsys: Any) -> tuple[int, Any]:
    """The code, and what came of the run; of a refusal its sentence."""
    place.mkdir()
    torch.set_num_threads(1)
    code = cli.main(["train", "lora", *given({**more, "output": place / "out"}, things, place)])
    said = capsys.readouterr()
    if code:
        return code, said.err.strip().splitlines()[-1]
    told = json.loads((place / "out" / "training.json").read_text())
    kept = {name: told[name] for name in ("account", "before", "after", "unpatched", "parameters", "record", "steps")}
    kept["logit_scale"] = told.get("logit_scale")
    kept["account"] = json.loads(json.dumps(kept["account"]).replace(str(place), ""))
    kept["weights"] = {
        one.name: hashlib.sha256(b"".join(t.float().numpy().tobytes() for _, t in sorted(load_file(one).items())))
        .hexdigest()
        for one in sorted((place / "out").glob("*.safetensors"))
    }  # fmt: skip
    kept["cache"] = sorted(one.name for one in place.iterdir())
    return code, kept


@pytest.fixture(scope="module")
def settled() -> dict[str, Any]:
    return {}


@pytest.mark.slow  # a minute and a half
@pytest.mark.parametrize("name", [*CASES, ""])
def test_an_option_of_train_changes_what_comes_of_it_or_is_refused(
    name: str, things: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], settled: dict[str, Any]
) -> None:
    case = CASES.get(name, Case(None))
    key = json.dumps(case.base)
    if key not in settled:
        settled[key] = outcome(tmp_path / "before", things, case.base, capsys)
    before = settled[key]
    assert before[0] == 0, before
    if not name:
        assert outcome(tmp_path / "again", things, {}, capsys) == before, "what differs from run to run proves nothing"
        return
    after = outcome(tmp_path / "after", things, {**case.base, name: case.value}, capsys)
    if case.refused:
        assert after[0] == 2
        assert case.refused in after[1]
        return
    assert after[0] == 0, after
    assert after != before, f"--{name} was accepted and changed nothing"
