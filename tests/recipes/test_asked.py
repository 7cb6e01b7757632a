"""Training is what was asked: a run goes on with what it began with, and no option is accepted and ignored."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

import ropescale
from ropescale.checkpoints import resolve
from ropescale.cli import main
from ropescale.destinations import sole_writer
from ropescale.errors import InvalidArgumentError, RopescaleError
from ropescale.evals.tokens import named_tokenizer
from ropescale.loading import Loading
from ropescale.recipes import train, trainer
from ropescale.recipes import training_options as said
from ropescale.recipes.data.options import DataOptions
from ropescale.recipes.options import RecipeOptions
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.trainer import RecipeTrainer
from ropescale.recipes.training_options import TrainingOptions

STEPS = 4
WEIGHTS = "adapter_model.safetensors"


class Struck(BaseException):
    """What ends a run in its middle."""


def arguments(folder: Path, **more: Any) -> list[str]:
    """A run of four steps over one file, which lies beside the folder."""
    data = folder.parent / "text.jsonl"
    if "data" not in more and not data.exists():
        data.write_text(rows("river"))
    given = {
        "model": "tiny",
        "factor": 2,
        "data": data,
        "cache_dir": folder.parent / "cache",
        "eval_texts": "sample",
        "eval_windows": 1,
        "eval_passkeys": 0,
        "eval_lengths": 64,
        "eval_strategy": "no",
        "length": 64,
        "max_steps": STEPS,
        "warmup_steps": 0,
        "batch_size": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "lora_dropout": 0.1,
        "output": folder,
    } | more
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]


def rows(word: str) -> str:
    return "".join(json.dumps({"text": f"{word} {number} of a small town " * 40}) + "\n" for number in range(6))


def trained(folder: Path, **more: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    return train.run(read_recipe("lora", arguments(folder, **more)), "ropescale train ...")


def stopped(folder: Path, step: int = 3, **more: Any) -> None:
    """The same, struck in a step of its second half."""
    with pytest.MonkeyPatch.context() as patched:
        before = RecipeTrainer.training_step

        def struck(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step >= step:
                raise Struck
            return before(self, *args, **kwargs)

        patched.setattr(RecipeTrainer, "training_step", struck)
        with pytest.raises(Struck):
            trained(folder, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asked")


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    trained(place / "whole")
    return place / "whole"


def refused(folder: Path, **more: Any) -> str:
    with pytest.raises(RopescaleError) as caught:
        trained(folder, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_stopped_run_goes_on_with_its_own_data_weights_and_texts_alone(whole: Path, place: Path) -> None:
    shutil.copytree(resolve("tiny"), place / "base")
    texts = place / "eval.txt"
    texts.write_text("the window of the north engine " * 60)
    given = {"model": place / "base", "eval_texts": texts}
    folder, data, base = place / "stopped", place / "text.jsonl", place / "base" / "model.safetensors"
    stopped(folder, **given)
    was = {path: path.read_bytes() for path in (data, texts, base)}
    data.write_text(rows("zebra"))
    assert refused(folder, **given).startswith(f"data: the run in {str(folder)!r} must go on with those that it began")
    data.write_bytes(was[data])
    texts.write_text("another engine of another north " * 60)
    assert refused(folder, **given).startswith(f"texts and passkeys: the run in {str(folder)!r} must go on with those")
    texts.write_bytes(was[texts])
    values = load_file(base)
    values["model.norm.weight"][3] += 1e-3
    save_file(values, base, metadata={"format": "pt"})
    assert refused(folder, **given).startswith(f"weights: the run in {str(folder)!r} must go on with those that it")
    base.write_bytes(was[base])
    trained(folder, **given)
    assert same(folder, whole)


# Options that decide the weights, and one value of each that is another; a test below says that all are known
OTHERWISE = {"label_smoothing_factor": 0.1, "adam_beta2": 0.9, "weight_decay": 0.1, "rank": 4, "seed": 1}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_stopped_run_goes_on_with_its_own_options_alone(name: str, whole: Path) -> None:
    said = refused(whole, **{name: OTHERWISE[name]})
    assert said.startswith(f"output: the run in {str(whole)!r} must be of the same {name} (")


def test_label_smoothing_changes_the_weights(whole: Path, place: Path) -> None:
    trained(place / "smoothed", label_smoothing_factor=0.1)
    assert not same(place / "smoothed", whole)


def test_how_a_path_is_spelt_decides_nothing(
    whole: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for number, spelt in enumerate(("text.jsonl", "./text.jsonl")):
        trained(place / f"spelt-{number}", data=spelt)
        assert same(place / f"spelt-{number}", whole)
    trained(whole, data="text.jsonl")  # the finished run is the same one
    assert "finished; nothing to do" in capsys.readouterr().err


def test_a_finished_run_takes_more_steps(place: Path) -> None:
    """With a constant learning rate to the same weights as in one go."""
    given = {"lr_scheduler_type": "constant"}
    trained(place / "at-once", max_steps=STEPS + 2, **given)
    first = trained(place / "extended", **given)
    told = trained(place / "extended", max_steps=STEPS + 2, **given)
    assert told["extended"] == [STEPS]
    assert (told["steps"], told["before"]) == (STEPS + 2, first["before"])
    assert same(place / "extended", place / "at-once")
    assert refused(place / "extended", max_steps=STEPS, **given).startswith("output: the run in ")


@pytest.mark.parametrize("damage", ["empty", "missing", "changed"])
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "trainer_state.json", WEIGHTS, "digests.json"])
def test_a_damaged_checkpoint_is_not_used(
    damage: str, name: str, whole: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ropescale.recipes.trainer import last_whole

    for step in (2, 4):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    newest = tmp_path / "checkpoint-4" / name
    if damage == "missing":
        newest.unlink()
    else:
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(b"" if damage == "empty" else content)
    assert last_whole(tmp_path, Console(stderr=True, width=200)) == tmp_path / "checkpoint-2"
    assert f"checkpoint-4 is damaged ({name} is " in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_goes_on_from_the_checkpoint_before_or_begins_again_to_the_same_weights(
    damaged: int, whole: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / f"damaged-{damaged}"
    stopped(folder, 3, save_steps=1)
    assert sorted(one.name for one in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    for step in range(3, 3 - damaged, -1):
        (folder / f"checkpoint-{step}" / "optimizer.pt").unlink()
    trained(folder, save_steps=1)
    told = capsys.readouterr().err
    assert "checkpoint-3 is damaged (optimizer.pt is missing" in told
    assert ("the run begins again" in told) == (damaged == 2)
    assert same(folder, whole)


def test_a_damaged_cache_is_made_again(place: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = place / "cache-to-damage"
    trained(place / "cached-1", cache_dir=cache)
    for file in cache.rglob("*"):
        if file.name in ("train.arrow", "tokens.bin"):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    trained(place / "cached-2", cache_dir=cache)
    assert capsys.readouterr().err.count("is damaged (") == 2
    assert same(place / "cached-2", whole)


def test_weights_that_are_no_numbers_are_not_saved(place: Path) -> None:
    """The optimizer makes them of gradients that are numbers; the folder then takes the run that the message names."""
    folder = place / "infinite"
    text = refused(folder, learning_rate=1e38, save_steps=1)
    assert text.startswith("train: the weights must be numbers, got NaN or infinity in ")
    assert text.endswith("no checkpoint was written yet: begin again with a lower learning rate, more warm-up, or "
                         "dtype float32")  # fmt: skip
    assert not list(folder.glob("checkpoint-*"))
    assert not (folder / WEIGHTS).exists()
    assert trained(folder, learning_rate=1e-4)["steps"] == STEPS


def test_one_run_at_a_time_writes_into_a_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "named_tokenizer", lambda _: pytest.fail("something was loaded"))
    with sole_writer(place / "two"):
        said = refused(place / "two")
    assert said.startswith("output: only one run at a time can write to a folder, got ")


def test_lengths_beyond_the_original_alone_are_measured(place: Path) -> None:
    told = trained(place / "long", eval_lengths=256, max_steps=1)
    assert told["unpatched"]["perplexity"] == {}
    assert list(told["after"]["perplexity"]) == ["256"]
    assert (place / "long" / "training.html").exists()


def test_what_is_written_names_no_path_and_says_the_new_length(whole: Path) -> None:
    card = (whole / "README.md").read_text()
    assert "# tiny, extended to 256 tokens" in card
    assert 'ropescale.load_adapter("tiny", ' in card
    assert str(resolve("tiny")) not in card
    assert json.loads((whole / "tokenizer_config.json").read_text())["model_max_length"] == 256
    assert not (whole / "checkpoint-4" / "README.md").exists()


def test_a_rank_that_was_left_in_the_environment_is_none(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    trained(place / "ranked", max_steps=1)
    assert "after training: perplexity" in capsys.readouterr().err
    assert (place / "ranked" / "training.html").exists()
    given = ["--methods", "none", "--tasks", "position", "--lengths", "64", "--windows", "1"]
    assert main(["eval", "tiny", *given, "--output", str(place / "evaluated")]) == 0
    assert (place / "evaluated" / "report.html").exists()


# What Trainer would find out about after the model was loaded and measured
LATE: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"learning_rate": -1}, "learning_rate: must be above 0, got -1.0; "),
    "no number": ({"learning_rate": math.nan}, "learning_rate: must be above 0, got nan; "),
    "batch": ({"batch_size": 0}, "per_device_train_batch_size: must be at least 1, got 0; "),
    "accumulation": ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: must be at least 1, got 0; "),
    "seed": ({"seed": -1}, "seed: must be at least 0 and below 4.29497e+09, got -1; "),
    "smoothing": ({"label_smoothing_factor": 2}, "label_smoothing_factor: must be at least 0 and below 1, got 2.0; "),
    "betas": ({"adam_beta1": 1}, "adam_beta1: must be at least 0 and below 1, got 1.0; "),
    "attention": ({"attention": "x"}, "attention: must be one of eager, "),
    "layers": ({"target_modules": "nothing"}, "target_modules: must name layers of the model, got ['nothing']"),
    "optimizer": ({"optim_args": "x"}, "train: Trainer must accept the training arguments, got ValueError: "),
    "tracker": ({"report_to": "wandb"}, "train: Trainer must accept the training arguments, got RuntimeError: "),
    "texts": (
        {"eval_texts": "/nowhere/at/all.txt"},
        "texts: must be sample, speeches, or a path to files of texts, got ",
    ),
    "field": ({"data": "sotu-sample", "text_field": "body"}, "text_field: belongs to data with rows of fields, got "),
    "split": ({"data_split": "test"}, "data_split: belongs to data with several splits, got 'test' for "),
}


@pytest.mark.parametrize("case", LATE)
def test_what_cannot_be_carried_out_is_refused_before_anything_loads(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, text = LATE[case]
    monkeypatch.setattr(Loading, "model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert refused(place / f"refused-{case}", **given).startswith(text)


@pytest.mark.parametrize("taken", ["file", "file/below", "other"])
def test_an_output_that_cannot_be_written_is_found_first(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    monkeypatch.setattr(train, "named_tokenizer", lambda _: pytest.fail("something was loaded"))
    folder = tmp_path / taken
    assert refused(folder, data="sotu-sample", cache_dir=tmp_path / "c").startswith("output: ")


@pytest.mark.parametrize("name", sorted(said.REFUSED))
def test_what_would_be_ignored_is_refused(name: str) -> None:
    known = {item.name: item for item in dataclasses.fields(TrainingArguments)}
    if name not in known:
        assert not hasattr(TrainingOptions(output_dir="x"), name)  # of another version of Transformers
        return
    given = {"save_strategy": "best"}.get(name) or {
        "accelerator_config": "{}",
        "include_for_metrics": "loss",
        "label_names": "labels",
        "hub_strategy": "end",
        "train_sampling_strategy": "sequential",
        "group_by_length": "true",
    }.get(name)
    kind = str(known[name].type)
    value = given or ("true" if "bool" in kind else "5" if "int" in kind or "float" in kind else "x")
    with pytest.raises(InvalidArgumentError, match=rf"^{name}: must be left out, got "):
        read_recipe("lora", ["--model", "x", "--use-cpu=true", f"--{name}={value}"])


def test_what_asks_for_nothing_is_accepted() -> None:
    assert read_recipe("lora", ["--model", "x", "--push-to-hub=false", "--load-best-model-at-end=false"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--eval-strategy=no", "--eval-steps=5"], "eval_steps: acts with eval_strategy alone, got it with"),
        (["--save-strategy=no", "--save-steps=5"], "save_steps: acts with save_strategy alone, got it with"),
        (["--save-strategy=best"], "save_strategy: must be steps, epoch or no, got 'best'"),
        (["--eval-strategy=no", "--stop-perplexity=9"], "stop_perplexity: is looked at when the run is measured"),
    ],
)
def test_an_option_without_the_one_that_it_belongs_to_is_refused(given: list[str], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_recipe("lora", ["--model", "x", *given])
    assert str(caught.value).startswith(text)


def test_every_training_argument_is_in_one_list_or_decides_the_weights() -> None:
    """A run that differs in it is another run, unless a list says why not."""
    assert not said.REFUSED.keys() & said.INDIFFERENT
    recipe = read_recipe("lora", ["--model", "x"])
    settings = recipe.settings()
    for item in dataclasses.fields(TrainingArguments):
        decides = item.init and item.name not in said.REFUSED and item.name not in said.INDIFFERENT
        assert (item.name in settings) == decides, item.name
    for kind in (RecipeOptions, DataOptions):
        assert {item.name for item in dataclasses.fields(kind)} <= settings.keys()


def test_one_length_on_the_command_line_takes_the_place_of_a_recipe_s() -> None:
    assert read_recipe("pose", ["--model", "x", "--target-length", "256"]).options.factor is None
    assert read_recipe("pose", ["--model", "x", "--factor", "2"]).options.target_length is None
    assert read_recipe("demo", ["--model", "x", "--data", "sotu-sample"]).data.data_weights == []
    assert read_recipe("demo", ["--model", "x"]).data.data_weights == [3, 1]


def test_the_default_data_teaches_the_embedded_model(place: Path) -> None:
    told = trained(place / "default", data=None, eval_texts=None, max_steps=1)
    assert told["unpatched"]["perplexity"]["64"] < 40  # of Python's sources it was 449
    assert ropescale.record(ropescale.load_adapter("tiny", place / "default")) is not None
    assert named_tokenizer("tiny").model_max_length == 128


def test_an_adapter_is_trained_on_from_its_weights(whole: Path, place: Path) -> None:
    """Without a step's worth of learning rate it is what it was; with one it is not what a new adapter becomes."""
    still = trained(place / "still", adapter=whole, lora_dropout=None, learning_rate=1e-30)
    assert still["before"]["perplexity"] == still["after"]["perplexity"]
    assert same(place / "still", whole)
    trained(place / "on", adapter=whole, lora_dropout=None)
    assert not same(place / "on", whole)
    assert ropescale.record(ropescale.load_adapter("tiny", place / "on")) is not None
    assert refused(place / "other", adapter=whole, lora_dropout=None, factor=4).startswith(
        "adapter: must be trained on with the scaling that it has, "
    )
    assert refused(place / "other", adapter=whole).startswith("lora_dropout: belongs to LoRA, got it with an adapter")
    assert refused(place / "other", adapter=place, lora_dropout=None).startswith(f"{place}: must be the folder or hub")


def test_an_extended_model_is_trained_on(place: Path) -> None:
    model = ropescale.load("tiny")
    ropescale.patch(model, "yarn", factor=2).save_pretrained(place / "extended-model")
    named_tokenizer("tiny").save_pretrained(place / "extended-model")
    told = trained(place / "from-extended", model=place / "extended-model", lora_dropout=None)
    plain = trained(place / "from-plain", lora_dropout=None)
    assert told["before"]["perplexity"] == plain["before"]["perplexity"]
    assert same(place / "from-extended", place / "from-plain")
    assert told["unpatched"]["perplexity"] == {}
    assert (place / "from-extended" / "training.html").exists()
    assert refused(place / "other", model=place / "extended-model", factor=4).startswith(
        "model: must be trained on with the scaling that it has, "
    )


@pytest.mark.parametrize(("device", "on_cpu"), [("cpu", True), ("auto", not torch.accelerator.is_available())])
def test_a_demo_trains_where_it_was_told_to(
    device: str, on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def noted(recipe: Any, command: str) -> None:
        seen.append(recipe.training.use_cpu)
        raise Struck

    monkeypatch.setattr(train, "run", noted)
    with pytest.raises(Struck):
        main(["demo", "--device", device, "--output", str(tmp_path / "demo")])
    assert seen == [on_cpu]


def test_the_bar_stays_after_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(trainer, "Console", lambda **_: Console(file=shown, force_terminal=True, width=80))
    bar, state = trainer.Bar(), SimpleNamespace(max_steps=300, global_step=100)
    bar.on_train_begin(None, state, None)
    bar.on_log(None, state, None, logs={"loss": 1.2345})
    figures = {f"eval_{kind}_{length}": 0.5 for kind in ("perplexity", "passkey") for length in (128, 512)}
    bar.on_log(None, state, None, logs=figures)
    shown.truncate(0)
    bar._progress.refresh()
    bar.on_train_end(None, state, None)
    assert "100/300" in shown.getvalue()
    assert "loss 1.23" in shown.getvalue()
    assert shown.getvalue().count("━") > 10
