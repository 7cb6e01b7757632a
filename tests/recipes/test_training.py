"""Training runs of the embedded model: what survives a kill, what is refused, what is written."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training import STEPS, options, run

import ropescale
from ropescale.errors import InvalidArgumentError, RopescaleError, UnknownMethodError
from ropescale.evals import grid, report
from ropescale.evals.bench import Bench
from ropescale.evals.plan import Options
from ropescale.recipes import train
from ropescale.recipes.reading import parser, read_recipe, read_yaml
from ropescale.recipes.schedules import Draws
from ropescale.recipes.shipped import list_recipes
from ropescale.recipes.trainer import UNFINISHED, RecipeTrainer

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"


def launched(recipe: str, folder: Path, what: str, number: int, *more: str) -> "subprocess.CompletedProcess[str]":
    """The same run in a process of its own, which meets its end as `what` and `number` say."""
    command = [
        sys.executable,
        str(ROOT / "tests" / "support" / "training.py"),
        recipe,
        str(folder),
        what,
        str(number),
        *more,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def weights(folder: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    return load_file(folder / name)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(place: Path) -> dict[str, Any]:
    """An uninterrupted run of PoSE."""
    return run("pose", place / "whole")


def test_a_run_writes_an_adapter_with_its_scaling(finished: dict[str, Any], place: Path) -> None:
    folder = place / "whole"
    assert {WEIGHTS, "adapter_config.json", "ropescale.json", "tokenizer.json", "training.json", "training.html"} <= {
        one.name for one in folder.iterdir()
    }
    assert sorted(one.name for one in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert not (folder / UNFINISHED).exists()
    record = json.loads((folder / "ropescale.json").read_text())
    assert (record["method"], record["original_length"], record["target_length"]) == ("yarn", 128, 256)
    trained = weights(folder)
    assert any(float(one.abs().max()) > 0 for name, one in trained.items() if "lora_B" in name)
    loaded = ropescale.load_adapter("tiny", folder)
    assert ropescale.record(loaded) is not None


def test_a_run_tells_what_it_changed_and_how_it_was_made(finished: dict[str, Any], place: Path) -> None:
    assert finished["steps"] == STEPS
    assert finished["tokens"] == STEPS * 2 * 128  # rows of the original length, whatever the target
    assert list(finished["unpatched"]["perplexity"]) == ["128"]
    for when in ("before", "after"):
        assert list(finished[when]["perplexity"]) == ["128", "256"]
        assert all(1 < value < 100 for value in finished[when]["perplexity"].values())
        assert list(finished[when]["passkey_by_depth"]["256"]) == ["0", "0.25", "0.5", "0.75", "1"]
    assert finished["before"]["perplexity"] != finished["after"]["perplexity"]
    assert finished["proof"]["separate"]
    assert finished["proof"]["chunks"]
    assert finished["proof"]["alone"] < 1e-4
    losses = [entry["loss"] for entry in finished["log"] if "loss" in entry]
    assert len(losses) == STEPS
    assert all(math.isfinite(loss) for loss in losses)
    assert [entry["step"] for entry in finished["log"] if "eval_perplexity_256" in entry] == [3, 6]
    page = (place / "whole" / "training.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert not re.search(r"https?:", page.replace("http://www.w3.org", ""))


def test_a_trained_adapter_is_an_arm_of_an_evaluation(finished: dict[str, Any], place: Path) -> None:
    given: dict[str, Any] = {"methods": ("yarn",), "tasks": ("position",), "lengths": (256,), "windows": 1}
    options = Options(model="tiny", adapters=(str(place / "whole"),), **given)
    found = grid.run(options, place / "evaluated", "ropescale eval tiny ...")
    assert [arm.label for arm in found.arms()] == ["none", "yarn x2", "yarn+whole x2"]
    figures = {arm.label: found.cell(arm, "position", 256).samples[0]["nll"] for arm in found.arms()}  # type: ignore[union-attr]
    assert len({tuple(nats) for nats in figures.values()}) == 3
    page = report.write(place / "evaluated").read_text(encoding="utf-8")
    assert "yarn+whole" in page


def test_an_adapter_leaves_the_model_of_an_evaluation_as_it_was(finished: dict[str, Any], place: Path) -> None:
    bench = Bench(Options(model="tiny", adapters=(str(place / "whole"),)))
    (arm,) = bench.options.trained
    assert (arm.method, arm.factor) == ("yarn+whole", 2.0)
    model: Any = bench.model
    ids, names = torch.arange(1, 60)[None], [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with bench.patched(arm):
            assert not torch.equal(model(input_ids=ids).logits, before)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert [name for name, _ in model.named_parameters()] == names
    assert ropescale.record(model) is None


def test_the_same_command_again_finds_the_run_finished(finished: dict[str, Any], place: Path) -> None:
    before = (place / "whole" / WEIGHTS).stat().st_mtime_ns
    assert run("pose", place / "whole") == json.loads(json.dumps(finished))
    assert (place / "whole" / WEIGHTS).stat().st_mtime_ns == before


def test_a_run_of_a_version_with_fewer_options_goes_on_at_their_defaults(
    finished: dict[str, Any], place: Path
) -> None:
    folder = Path(shutil.copytree(place / "whole", place / "fewer"))
    told = json.loads((folder / "training.json").read_text())
    del told["settings"]["loss"], told["settings"]["log_n"]
    (folder / "training.json").write_text(json.dumps(told))
    assert run("pose", folder) == told
    with pytest.raises(InvalidArgumentError, match=r"must be of the same log_n \(False\), got True; "):
        run("pose", folder, "--log-n", "true")


def test_a_run_of_other_settings_does_not_go_on(finished: dict[str, Any], place: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"^output: the run in '.*' must be of the same rank \(8\), got 4; "
    ):
        run("pose", place / "whole", "--rank", "4")


@pytest.fixture(scope="module")
def killed(place: Path) -> Path:
    """A run of PoSE that was killed in its fourth step."""
    folder = place / "killed in a step"
    assert launched("pose", folder, "step", 3).returncode == -9
    return folder


def test_a_killed_run_goes_on_to_the_same_weights(finished: dict[str, Any], killed: Path, place: Path) -> None:
    folder = Path(shutil.copytree(killed, place / "killed"))
    assert [one.name for one in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert launched("pose", folder, "save", 4).returncode == -9  # resumed, and killed again while it saves
    assert (folder / UNFINISHED).exists()
    assert [one.name for one in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    told = run("pose", folder)
    assert not (folder / UNFINISHED).exists()
    assert same(weights(folder), weights(place / "whole"))
    assert [entry["loss"] for entry in told["log"] if "loss" in entry] == [
        entry["loss"] for entry in finished["log"] if "loss" in entry
    ]
    assert told["after"] == finished["after"]


@pytest.mark.slow
def test_five_runs_killed_at_random_go_on_to_the_same_weights(tmp_path: Path) -> None:
    run("pose", tmp_path / "whole")
    for number in range(5):
        folder = tmp_path / f"killed-{number}"
        step = random.Random(f"kill {number}").randrange(STEPS)
        assert launched("pose", folder, random.Random(number).choice(["step", "save"]), step).returncode == -9
        run("pose", folder)
        assert same(weights(folder), weights(tmp_path / "whole"))


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_parameters_that_a_method_added_are_trained_saved_and_resumed(place: Path) -> None:
    more = ("--tuning", "lora", "--learning-rate", "1e-2")
    run("t5", place / "t5", *more)
    added = weights(place / "t5", "ropescale.safetensors")
    assert [name for name in added if name.endswith("ropescale.table")]
    assert all(float(one.abs().max()) > 0 for one in added.values())  # they began at zero
    assert launched("t5", place / "t5-killed", "step", 3, *more).returncode == -9
    run("t5", place / "t5-killed", *more)
    assert same(weights(place / "t5-killed", "ropescale.safetensors"), added)
    assert same(weights(place / "t5-killed"), weights(place / "t5"))


@pytest.mark.slow  # seconds, most of them for processes that load anew
def test_a_full_disk_leaves_the_last_good_checkpoint(finished: dict[str, Any], killed: Path, place: Path) -> None:
    folder = Path(shutil.copytree(killed, place / "disk"))
    done = launched("pose", folder, "full", 50_000)
    assert done.returncode == 1
    assert "CheckpointError: train: " in done.stderr
    assert "must have room for a checkpoint, got " in done.stderr
    assert "checkpoint-2 is kept" in done.stderr
    assert sorted(one.name for one in folder.iterdir() if one.name.startswith(("checkpoint", "."))) == [
        ".lock",
        "checkpoint-2",
    ]
    run("pose", folder)
    assert same(weights(folder), weights(place / "whole"))


def test_a_loss_that_is_no_number_ends_the_run_with_step_and_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RecipeTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = compute_loss(self, model, inputs, *args, **kwargs)
        return found * float("nan") if self.state.global_step == 3 else found

    compute_loss = RecipeTrainer.compute_loss
    monkeypatch.setattr(RecipeTrainer, "compute_loss", broken)
    rows: list[Draws] = []
    monkeypatch.setattr(RecipeTrainer, "_get_train_sampler", lambda self, _=None: rows.append(self.draws) or range(12))
    with pytest.raises(
        RopescaleError,
        match=r"^train: the loss must be a number, got nan at step 4, in the batch of rows (\d+), (\d+) of the "
        r"prepared data; the weights of .*checkpoint-2 are numbers, .*: begin in another folder with ",
    ) as caught:
        run("pose", place / "nan")
    named = str(caught.value).partition("rows ")[2].partition(" of")[0]
    assert named == f"{rows[0].row(6)}, {rows[0].row(7)}"  # two rows a step


def test_gradients_that_are_no_numbers_end_the_run_before_their_weights_are_saved(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = RecipeTrainer._clip_grad_norm

    def broken(self: RecipeTrainer, model: Any) -> Any:
        found = clip(self, model)
        return found * float("nan") if self.state.global_step == 1 else found

    monkeypatch.setattr(RecipeTrainer, "_clip_grad_norm", broken)
    with pytest.raises(RopescaleError, match=r"^train: the norm of the gradients must be a number, got nan at step 2"):
        run("pose", place / "nan-gradients")
    assert not list((place / "nan-gradients").glob("checkpoint-*"))


def test_training_stops_when_its_targets_are_reached(place: Path) -> None:
    told = run("pose", place / "stopped", "--stop-perplexity", "1000")
    assert told["steps"] == 3
    missed = run("pose", place / "missed", "--stop-perplexity", "1.5")
    assert missed["steps"] == STEPS


def watch_first_tokens(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, list[float]]]:
    """Let each row's last token alone be learnt; what is seen goes into the list that is given.

    Whether positions of the batch jump, and how much the loss of each row hangs on its first token, for each batch.
    """
    found: list[tuple[bool, list[float]]] = []
    compute_loss = RecipeTrainer.compute_loss

    def watched(self: RecipeTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs["labels"][:, :-1] = -100
        table, kept = model.get_input_embeddings(), []

        def keep(_: Any, __: Any, vectors: Tensor) -> Tensor:
            kept.append(vectors.detach().requires_grad_())
            return kept[-1]

        hook = table.register_forward_hook(keep)
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        hook.remove()
        (gradient,) = torch.autograd.grad(loss, kept[0], retain_graph=True)
        jumps = int(inputs["position_ids"].diff().max()) > 1
        found.append((jumps, gradient[:, 0].abs().amax(-1).tolist()))
        return loss

    monkeypatch.setattr(RecipeTrainer, "compute_loss", watched)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager", "ropescale"])
def test_the_second_chunk_sees_the_first_through_the_trainer(
    attention: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss must hang on the first token, which is in another chunk."""
    found = watch_first_tokens(monkeypatch)
    # min_tokens: rows of one document, the first of which is in sight of the last
    given = ["--max-steps", "2", "--chunks", "2", "--content", "contiguous"]
    given += ["--log-n", "true"] if attention == "ropescale" else ["--attention", attention]
    run("pose", place / f"sees-{attention}", *given)
    assert len(found) == 2
    assert any(jumps for jumps, _ in found)
    assert all(dependence > 0 for _, of_rows in found for dependence in of_rows)


@pytest.mark.parametrize("mask", ["true", "false"])
def test_documents_of_a_row_see_one_another_without_the_mask_alone(
    mask: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss hangs on the first token, which is of another document, or does not."""
    found = watch_first_tokens(monkeypatch)
    texts = place / "short.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n} a river of a small town " * 9}) + "\n" for n in range(40)))
    more = ["--data", str(texts), "--document-mask", mask, "--max-steps", "1", "--eval-strategy", "no"]
    told = run("lora", place / f"mask-{mask}", *more, "--eval-texts", "sample")
    assert told["account"]["pieces"]["train"] > told["account"]["rows"]["train"]
    assert told["proof"]["separate"] == (mask == "true")
    assert [dependence > 0 for _, of_rows in found for dependence in of_rows] == [mask == "false"] * 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_recipe_starts(name: str, place: Path) -> None:
    more = [
        "--max-steps",
        "1",
        "--eval-strategy",
        "no",
        "--factor",
        "2",
        "--eval-texts",
        "sample",
        "--batch-size",
        "1",
    ]
    if "data_weights" in read_yaml(name):
        more += ["--data-weights", "1"]
    if read_yaml(name).get("tuning") == "full":
        given = [one for one in options(place / f"starts-{name}", *more) if not one.startswith("--lora")]
    else:
        given = options(place / f"starts-{name}", *more)
    told = train.run(read_recipe(name, given), "ropescale train ...")
    assert told["steps"] == 1
    assert told["parameters"]["trained"] > 0


def test_every_layer_of_a_base_in_4_bits_is_trained(place: Path) -> None:
    told = run("qlora", place / "4-bit", "--max-steps", "3", "--eval-strategy", "no", "--batch-size", "1")
    assert told["before"]["perplexity"]  # it was read in evaluation mode, after which weights may be packed
    second = {name: one for name, one in weights(place / "4-bit").items() if "lora_B" in name}  # zero at the beginning
    assert len(second) == 16
    assert all(one.any() for one in second.values())


def test_mixed_window_reads_short_documents_with_the_rotation_of_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    from ropescale.recipes.rotation import MixedRotation

    plain, model = ropescale.load("tiny"), ropescale.load("tiny")
    ropescale.patch(model, "yarn", factor=4)
    ids = torch.arange(1, 61)[None].repeat(2, 1)
    with torch.no_grad():
        expected = [plain(input_ids=ids).logits[0], model(input_ids=ids).logits[1]]
        mixed = MixedRotation(model)
        with mixed.keeping(torch.tensor([[True], [False]]).expand(2, 60)):
            found = model(input_ids=ids).logits
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.equal(model(input_ids=ids).logits[0], expected[1])  # and outside as patched


def test_a_model_whose_documents_see_one_another_is_not_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain_causal(**given: Any) -> Tensor:
        length = given["inputs_embeds"].shape[1]
        return torch.ones(length, length, dtype=torch.bool).tril()[None, None]

    monkeypatch.setattr("transformers.models.llama.modeling_llama.create_causal_mask", plain_causal)
    monkeypatch.setattr(RecipeTrainer, "train", lambda self, **given: pytest.fail("a step was taken"))
    with pytest.raises(
        InvalidArgumentError, match=r"^packing: documents of a row must not see one another, got llama"
    ):
        run("full_length", place / "leaking")


def refused(*given: str) -> str:
    with pytest.raises(RopescaleError) as caught:
        read_recipe(given[0], ["--model", "nothing-is-loaded", *given[1:]])
    return str(caught.value)


def test_a_wrong_recipe_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    assert refused("pos").startswith("recipe: must be one of alibi, cope, ")
    assert "got 'pos'; did you mean 'pose'? see `ropescale train --list`" in refused("pos")
    assert refused("pose", "--rank", "many") == "rank: must be a whole number, got 'many'; correct it, or leave it out"
    assert refused("pose", "--log-n", "perhaps") == (
        "log_n: must be true or false, got 'perhaps'; correct it, or leave it out"
    )
    assert refused("pose", "--tuning", "loar") == (
        "tuning: must be one of full, lora, lora_plus, qlora, got 'loar'; correct it, or leave it out"
    )
    assert refused("pose", "--max-step", "3") == (
        "train: options must be those of a recipe, got option 'max_step'; did you mean option 'max_steps'?"
    )
    assert refused("pose", "--knobs", "{") == (
        "knobs: must be a JSON object, or a file that holds one, got '{'; write it as in {\"beta_fast\": 16}"
    )
    assert refused("pose", "--knobs", '{"beta_fats": 1}').startswith(
        "yarn: unknown knob 'beta_fats'; did you mean 'beta_fast'? "
    )
    assert refused("pose", "--max-steps", "-1") == (
        "max_steps: must be at least 1, got -1; a run is measured in steps, not in epochs"
    )
    with pytest.raises(UnknownMethodError, match="did you mean 'yarn'"):
        read_recipe("pose", ["--model", "x", "--method", "yran"])


def test_settings_that_contradict_one_another_are_refused() -> None:
    assert refused("pose", "--schedule", "recalibrate") == (
        "schedule: recalibrate trains at the original length what replaces rotation, got 'yarn' which rescales it; "
        "use pose or full_length"
    )
    assert refused("mixed_window", "--method", "self_extend").startswith(
        "schedule: mixed_window needs a method that rescales frequencies"
    )
    assert refused("alibi", "--schedule", "pose").startswith("schedule: pose needs a target, got neither factor nor")
    assert refused("full", "--rank", "4") == (
        "rank: belongs to LoRA, got it with tuning 'full'; leave it out, or use tuning lora"
    )
    assert refused("lora", "--chunks", "3").startswith("chunks, content: belong to schedule pose, got 3 and 'skip'")
    assert refused("pose", "--fit-logit-scale", "true").startswith("fit_logit_scale: needs method nope with a factor")
    assert refused("pose", "--stop-passkey", "0.9", "--eval-passkeys", "0").startswith("stop_passkey: needs passkeys")
    assert refused("pose", "--bf16", "true", "--fp16", "true").startswith("train: Transformers must accept ")


def test_a_recipe_of_ones_own_is_read_by_the_same_rules(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# mine\nmethod: ntk\nfactor: 2\nknobs: {resonance: true}\nlearning_rate: 1e-4\ndata: [stdlib]\n")
    read = read_recipe(str(file), ["--model", "tiny", "--factor", "4"])
    assert (read.options.method, read.options.factor, read.training.learning_rate) == ("ntk", 4.0, 1e-4)
    assert read.options.method_knobs == {"resonance": True}
    file.write_text("methd: ntk\n")
    with pytest.raises(InvalidArgumentError, match=r"got 'methd'; did you mean 'method'\?$"):
        read_recipe(str(file), ["--model", "tiny"])
    file.write_text("rank: eight\n")
    with pytest.raises(InvalidArgumentError, match=r"^rank: must be a whole number, got 'eight'; "):
        read_recipe(str(file), ["--model", "tiny"])
    file.write_text("- a list\n")
    with pytest.raises(InvalidArgumentError, match="must be lines of `key: value`"):
        read_recipe(str(file), ["--model", "tiny"])


def test_every_option_has_a_sentence() -> None:
    silent = [
        action.dest
        for group in parser("pose")._action_groups
        if group.title and group.title.startswith(("model", "data"))
        for action in group._group_actions
        if not action.help
    ]
    assert silent == []


def test_the_help_of_a_recipe_shows_what_it_sets() -> None:
    from ropescale.recipes.reading import help_text

    brief = help_text("t5", everything=False)
    assert "rotation replaced by T5's relative bias" in brief
    assert "--torch-compile" not in brief
    assert "--torch-compile" in help_text("t5", everything=True)
