"""Training over several processes: the same gradients, and refusals of what would silently be wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import training_processes
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import TrainingArguments

import ropescale
from ropescale import Geometry, get_method
from ropescale.destinations import LOCK
from ropescale.errors import InvalidArgumentError
from ropescale.recipes.parallel import ARRANGEMENTS, Machines, machine_file, refuse_combinations
from ropescale.recipes.reading import read_recipe
from ropescale.recipes.schedules import Schedule
from ropescale.recipes.train import run
from ropescale.recipes.ulysses import Ulysses
from ropescale.temperature import LOG_N

GEOMETRY = Geometry(rotary_dim=32, theta=1e4, original_length=128)


def in_two_processes(kinds: str, folder: Path) -> dict[str, Any]:
    """What steps of these kinds found, one after another in the same two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = training_processes.__file__
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, script, kinds, str(folder)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(folder / "found.pt")
    return found


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    kinds = "trainer,ulysses" if find_spec("ringmaster") else "trainer"
    return in_two_processes(kinds, tmp_path_factory.mktemp("two processes"))


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_two_processes_of_ddp_with_lora_give_the_gradients_of_one(tmp_path: Path, together: dict[str, Any]) -> None:
    alone = training_processes.with_trainer(tmp_path, 4)
    assert len(alone) == 2 * 7 * 4, "both halves of LoRA on every linear layer"
    assert min(one.abs().max().item() for one in alone.values()) > 1e-4
    apart = furthest(together["trainer"], alone)
    print(f"gradients of two processes of DDP: {apart:.1e} apart")
    assert apart < 1e-6


def test_ulysses_gives_the_gradients_of_one_process(together: dict[str, Any]) -> None:
    pytest.importorskip("ringmaster")
    alone = training_processes.with_ulysses(1)
    assert together["ulysses"].keys() == alone.keys() == {"packed", "whole", "pose", "uneven"}
    for name, gradients in alone.items():
        scale = max(one.abs().max().item() for one in gradients.values())
        apart = furthest(together["ulysses"][name], gradients) / scale
        print(f"gradients of Ulysses, {name}: {apart:.1e} of the largest apart")
        assert apart < 1e-5, name
    # the control: what a batch that is read in another way gives
    assert furthest(alone["whole"], alone["pose"]) > 1e-3


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_configuration_is_one_that_accelerate_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = machine_file(name)
    load_config_from_file(str(path))  # refuses keys that it does not know
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^# accelerate launch .*$", text, re.MULTILINE), "the command stands in the header"
    assert "not yet run on GPUs" in text
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    if name == "zero3_sp":
        arguments.deepspeed_fields_from_accelerate_config = ""  # which its launcher sets
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WORLD_SIZE", "8")
    machines = Machines.launched(environment=os.environ)
    expected = {
        "ddp": Machines(processes=8, accelerator=False),
        "fsdp2": Machines(processes=8, accelerator=False, fsdp=True),
        "fsdp2_cp": Machines(processes=8, accelerator=False, fsdp=True, context=8),
        "zero3_sp": Machines(processes=8, accelerator=False, zero_stage=3, sequence=8),
    }
    assert machines == replace(expected[name], accelerator=torch.accelerator.is_available())
    if machines.fsdp:
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.activation_checkpointing
        assert not plugin.cpu_ram_efficient_loading
    if machines.shards_of_a_row > 1:
        parallelism = ParallelismConfig()
        assert parallelism.total_size == 8
        assert (parallelism.cp_size, parallelism.sp_size) == (machines.context, machines.sequence)


def test_a_configuration_names_no_field_twice() -> None:
    for name in ARRANGEMENTS:
        assert yaml.safe_load(machine_file(name).read_text(encoding="utf-8"))["num_processes"] == 8
    with pytest.raises(InvalidArgumentError, match=r"^machines: must be one of ddp, fsdp2, .* got 'fsdp'; see docs"):
        machine_file("fsdp")


def test_what_was_launched_is_read_from_the_training_arguments_too(tmp_path: Path) -> None:
    training = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    assert Machines.launched(training, environment={}) == Machines(accelerator=False)
    training.fsdp = True
    training.parallelism_config = ParallelismConfig(cp_size=2, dp_shard_size=2)
    found = Machines.launched(training, environment={"WORLD_SIZE": "4"})
    assert found == Machines(processes=4, accelerator=False, fsdp=True, context=2)


ONE = Machines()
DDP = Machines(processes=2)
FSDP = Machines(processes=8, fsdp=True)
CP = Machines(processes=8, fsdp=True, context=8)
SP = Machines(processes=8, zero_stage=3, sequence=8)
ULYSSES = Machines(processes=2, ulysses=2)
YARN = get_method("yarn")(factor=4)
LONGROPE = {"factor": 4, "long_factor": [4.0] * 16}

REFUSED: dict[str, tuple[Machines, dict[str, Any], str]] = {
    "FSDP falls back to DDP on a CPU": (
        Machines(processes=2, fsdp=True, accelerator=False),
        {},
        "fsdp: must have a GPU or its like, got none: Transformers would silently train with DDP instead; leave it "
        "out, or train where there is one",
    ),
    "a length-dependent method under context parallelism": (
        CP,
        {"method": get_method("dynamic_yarn")(), "packing": False},
        "method: what acts when attention reads needs whole rows, got 'dynamic_yarn' and rows cut among 8 processes, "
        "which would each take their part for the whole; use a method with fixed frequencies, or do not cut rows",
    ),
    "longrope with two lists under sequence parallelism": (
        SP,
        {"method": get_method("longrope")(**LONGROPE, short_factor=[1.0] * 16), "packing": False},
        "method: what acts when attention reads needs whole rows, got 'longrope' and rows cut among 8 processes",
    ),
    "log_n under ulysses": (
        ULYSSES,
        {"temperature": LOG_N},
        "method: what acts when attention reads needs whole rows, got 'yarn' with log_n and rows cut among 2",
    ),
    "packing with context parallelism": (
        CP,
        {},
        "packing: rows cut among processes are read without a mask by context parallelism, so documents in one row "
        "would see one another, got packing true; give packing=False",
    ),
    "packing with sequence parallelism": (
        SP,
        {},
        "packing: rows cut among processes are read without a mask by sequence parallelism, so documents in one row",
    ),
    "pose with padding-free packing": (
        ONE,
        {"schedule": "pose", "attention": "flash_attention_2"},
        "attention: flash attention is told of documents in a row by positions alone, and only of one row at a time, "
        "got 'flash_attention_2' with packing and schedule pose: documents would see one another; give "
        "attention='sdpa', packing=False, or batch_size=1 with a schedule that keeps positions",
    ),
    "packing with flash attention and several rows": (
        DDP,
        {"attention": "kernels-community/flash-attn2", "batch_size": 4},
        "attention: flash attention is told of documents in a row by positions alone, and only of one row at a time, "
        "got 'kernels-community/flash-attn2' with packing and 4 rows at a time",
    ),
    "added parameters under FSDP": (
        FSDP,
        {"method": get_method("t5")()},
        "method: what adds parameters to the model needs whole parameters when it is saved, got 't5' with FSDP, which "
        "would save a part of them; train it with DDP",
    ),
    "added parameters under ZeRO-3": (
        Machines(processes=8, zero_stage=3),
        {"method": get_method("cope")()},
        "method: what adds parameters to the model needs whole parameters when it is saved, got 'cope' with ZeRO-3",
    ),
    "mixed_window with rows cut": (
        CP,
        {"schedule": "mixed_window", "packing": False},
        "schedule: mixed_window chooses the rotation token by token over whole rows, got rows cut among 8 processes; "
        "use full_length",
    ),
    "a length that does not divide": (
        CP,
        {"length": 520, "packing": False},
        "length: must be a multiple of 16 where rows are cut among 8 processes, got 520; give 512",
    ),
    "two ways to cut a row": (
        Machines(processes=4, context=2, sequence=2),
        {},
        "rows: must be cut among processes in one way, got context parallelism and DeepSpeed's sequence parallelism; "
        "choose one",
    ),
    "ulysses with FSDP": (
        Machines(processes=2, ulysses=2, fsdp=True),
        {},
        "ulysses: is for DDP, whose mean over processes its loss is made for, got FSDP; use context or sequence",
    ),
    "ulysses with another number of processes": (
        Machines(processes=4, ulysses=2),
        {},
        "ulysses: must be the number of processes (4), which all share each row, got 2; start so many",
    ),
}


def refuse(machines: Machines, schedule: str = "full_length", length: int = 512, **facts: Any) -> None:
    rows = Schedule(name=schedule, original_length=128, target_length=512, length=length)
    refuse_combinations(machines, rows, **{"method": YARN, "geometry": GEOMETRY, **facts})


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_silently_be_wrong_is_refused(name: str) -> None:
    machines, facts, message = REFUSED[name]
    with pytest.raises(InvalidArgumentError) as refused:
        refuse(machines, **facts)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("environment", "overrides", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, ["--use_cpu=true"], "fsdp: must have a GPU or its like"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "8"}, [], "packing: rows cut among processes are read without a mask"),
        ({"WORLD_SIZE": "4"}, ["--ulysses=2"], "ulysses: must be the number of processes (4)"),
        ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, ["--log_n=true"], "method: what acts when attention reads"),
        (
            {"PARALLELISM_CONFIG_CP_SIZE": "2"},
            ["--packing=false", "--loss=longce"],
            "loss: what goes by the context of tokens needs whole rows, got 'longce' and rows cut among 2 processes",
        ),
        ({"WORLD_SIZE": "2"}, ["--ulysses=2", "--loss=exact"], "loss: what goes by the context of tokens needs"),
        ({}, ["--attention=flash_attention_2"], "attention: flash attention is told of documents in a row"),
    ],
)
def test_the_program_refuses_before_the_model_is_loaded(
    environment: dict[str, str], overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = read_recipe("lora", ["--model=tiny", f"--output_dir={tmp_path}", *overrides])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ropescale.load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        run(recipe, "a test")
    assert [one.name for one in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize(
    ("machines", "facts"),
    [
        (ONE, {}),
        (DDP, {"method": get_method("dynamic_yarn")(), "temperature": LOG_N}),
        (DDP, {"method": get_method("t5")()}),
        (ONE, {"schedule": "pose"}),
        (ONE, {"schedule": "pose", "attention": "flash_attention_2", "packing": False}),
        (ONE, {"attention": "flash_attention_2"}),
        (FSDP, {"method": get_method("dynamic_ntk")()}),
        (CP, {"packing": False}),
        (CP, {"packing": False, "method": get_method("longrope")(**LONGROPE)}),
        (CP, {"packing": False, "schedule": "pose"}),
        (SP, {"packing": False}),
        (ULYSSES, {}),
        (ULYSSES, {"schedule": "pose"}),
    ],
)
def test_what_is_right_passes(machines: Machines, facts: dict[str, Any]) -> None:
    refuse(machines, **facts)


def test_heads_that_cannot_be_shared_are_refused() -> None:
    pytest.importorskip("ringmaster")
    model = ropescale.load("tiny")
    with pytest.raises(
        InvalidArgumentError, match=r"^ulysses: must divide the number of key-value heads \(2\), got 3"
    ):
        Ulysses(model, 3)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow  # three whole runs
@pytest.mark.parametrize(
    "kind", ["recipe lora", "recipe exact", "recipe longce", "recipe longred", "recipe lora with ulysses"]
)
def test_a_recipe_ends_alike_in_one_process_and_two(kind: str, tmp_path: Path) -> None:
    if "ulysses" in kind:
        pytest.importorskip("ringmaster")
    alone = training_processes.with_recipe(kind.split()[1], tmp_path / "alone", 4)
    (tmp_path / "together").mkdir()
    apart = furthest(in_two_processes(kind, tmp_path / "together")[kind], alone)
    print(f"weights of a {kind} in two processes: {apart:.1e} apart")
    assert apart < 1e-5
    moved = [one.abs().max().item() for name, one in alone.items() if "lora_B" in name]  # from 0
    assert min(moved) > 1e-4
