"""What an evaluation will run: options that are refused before a model is loaded, and the cells of the grid."""

import pytest
import torch

import ropescale
from ropescale.cli import main
from ropescale.errors import InvalidArgumentError, UnknownMethodError
from ropescale.evals import budget, grid, plan
from ropescale.evals.plan import Options, Plan
from ropescale.evals.results import UNPATCHED, Arm
from ropescale.evals.tasks import base
from ropescale.evals.tasks.ruler.task import QUESTIONS

CUDA = "".join(f" or cuda:{number}" for number in range(torch.cuda.device_count()))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"windows": 0}, "eval: windows must be a whole number of at least 1, got 0; leave it out for the default"),
        ({"samples": 0}, "eval: samples must be a whole number of at least 1, got 0; leave it out for the default"),
        ({"seed": -1}, "eval: seed must be a whole number of at least 0, got -1; leave it out for the default"),
        ({"limit": 0}, "eval: limit must be a whole number of at least 1, got 0; leave it out for the default"),
        ({"factors": ()}, "eval: factors must hold at least one factor, got none; leave it out"),
        ({"depths": ()}, "eval: depths must hold at least one depth, got none; leave it out"),
        ({"tasks": ()}, "eval: tasks must hold at least one task, got none; leave it out"),
        (
            {"depths": (50.0,)},
            "eval: depths must be shares from 0 (first) to 1 (last), got 50.0; divide a percentage by 100",
        ),
        (
            {"factors": (0.5,)},
            "eval: factors must be finite and at least 1, got 0.5; a factor is target length / original length",
        ),
        (
            {"factors": (float("inf"),)},
            "eval: factors must be finite and at least 1, got inf; a factor is target length / original length",
        ),
        (
            {"methods": ("yarn",), "knobs": {"abf": {"theta": 5e5}}},
            "eval: knobs must hold an object for a method that is asked for (yarn), got "
            "{'theta': 500000.0} for 'abf'; "
            'write it as in {"yarn": {"beta_fast": 16}}',
        ),
        (
            {"methods": ("yarn",), "knobs": {"yarn": 4}},
            "eval: knobs must hold an object for a method that is asked for (yarn), got 4 for 'yarn'; "
            'write it as in {"yarn": {"beta_fast": 16}}',
        ),
        ({"lengths": (15,)}, "eval: lengths must be at least 16 tokens, got 15; a window needs tokens to predict"),
        (
            {"stride": 0.0},
            "eval: stride must be a share of the window, above 0 and at most 1, got 0.0; "
            "0.5 scores the second half of every window",
        ),
        (
            {"dtype": "float8"},
            "eval: dtype must be one of auto, bfloat16, float16, float32, got 'float8'; leave it out for auto",
        ),
        (
            {"backend": "sglang"},
            "eval: backend must be one of transformers, vllm, got 'sglang'; leave it out for transformers",
        ),
        (
            {"backend": "vllm", "until": "decided"},
            "eval: until must be 'finished' with backend vllm, which would load every arm in every round, got "
            "'decided'; leave it out",
        ),
        (
            {"engine_args": {"tensor_parallel_size": 2}},
            "eval: engine_args are of the backend vllm, got tensor_parallel_size with transformers; give "
            "backend='vllm', or leave them out",
        ),
        (
            {"backend": "vllm", "engine_args": {"data_parallel_size": 2}},
            "eval: engine_args must leave out data_parallel_size, got it; give the same command to several processes, "
            "each with its own CUDA_VISIBLE_DEVICES: they divide the cells",
        ),
        (
            {"backend": "vllm", "engine_args": {"max_model_len": 4096}},
            "eval: engine_args must leave out max_model_len, got it; it follows from lengths",
        ),
        (
            {"device": "abacus"},
            f"device: must be one that torch knows, got 'abacus'; leave it out, or give cpu{CUDA}",
        ),
    ],
)
def test_wrong_options_are_refused(wrong, text):
    with pytest.raises(InvalidArgumentError) as caught:
        Options(model="tiny", **wrong)
    assert str(caught.value) == text


def test_an_unknown_method_is_refused_before_the_model_is_loaded():
    with pytest.raises(UnknownMethodError, match="unknown method 'yran'; did you mean 'yarn'"):
        Options(model="no such model", methods=("yran",))


def test_lengths_beyond_the_largest_factor_are_refused():
    with pytest.raises(InvalidArgumentError) as caught:
        Plan.of(Options(model="m", lengths=(512,)), 128)
    assert str(caught.value) == (
        "eval: lengths must be at most the largest factor x the original length (256), got 512; "
        "ask for a larger factor or for shorter lengths"
    )


def test_the_unpatched_model_alone_may_be_read_at_any_length():
    assert Plan.of(Options(model="m", methods=("none",), lengths=(512,)), 128).lengths == (512,)


def test_lengths_are_the_original_one_and_its_products_if_none_are_given():
    assert Plan.of(Options(model="m", factors=(4.0, 2.0)), 128).lengths == (128, 256, 512)


def test_a_checkpoint_that_was_extended_already_is_tested_to_factors_of_that():
    made = Plan.of(Options(model="m", methods=("none",)), 128, 512)
    assert made.lengths == (128, 512, 1024)
    assert [cell.length for cell in made.cells if cell.task.name == "passkey"] == [128, 512, 1024]


def test_arms_are_unpatched_first_and_nothing_twice():
    options = Options(model="m", methods=("yarn", "none", "ntk", "yarn"), factors=(4.0, 2.0, 2.0))
    assert [arm.label for arm in options.arms] == ["none", "yarn x2", "ntk x2", "yarn x4", "ntk x4"]


def test_groups_of_tasks_are_spelled_out_once():
    options = Options(model="m", tasks=("vt", "ruler", "passkey", "vt"))
    assert options.task_names[0] == "vt"
    assert len(options.task_names) == 12
    assert set(QUESTIONS) < set(Options(model="m", tasks=("ruler_full",)).task_names)


def test_every_arm_runs_up_to_its_own_reach_and_the_unpatched_one_everywhere():
    options = Options(model="m", methods=("yarn",), factors=(2.0, 4.0), tasks=("passkey", "cloze"))
    cells = [(cell.arm.label, cell.task.name, cell.length) for cell in Plan.of(options, 128).cells]
    assert cells == [
        *(("none", "passkey", n) for n in (128, 256, 512)),
        ("none", "cloze", None),
        *(("yarn x2", "passkey", n) for n in (128, 256)),
        ("yarn x2", "cloze", None),
        *(("yarn x4", "passkey", n) for n in (128, 256, 512)),
        ("yarn x4", "cloze", None),
    ]


def test_perplexity_by_position_is_read_once_per_arm_and_paired_with_the_unpatched_model():
    options = Options(model="m", methods=("yarn",), factors=(2.0, 4.0), tasks=("position",), lengths=(64, 256, 512))
    cells = [(cell.arm, cell.length) for cell in Plan.of(options, 128).cells]
    yarn = [Arm(method="yarn", factor=factor) for factor in (2.0, 4.0)]
    assert cells == [(UNPATCHED, 256), (UNPATCHED, 512), (yarn[0], 256), (yarn[1], 512)]


def test_the_cost_of_strided_perplexity_counts_every_window():
    options = Options(model="m", methods=("none",), tasks=("perplexity",), windows=2, lengths=(128, 512))
    assert {cell.length: cell.tokens for cell in Plan.of(options, 128).cells} == {
        128: 2 * 7 * 128,  # ends at 128, 192, 256 ... 512
        512: 2 * 512,
    }


def test_an_unknown_task_is_named_with_the_nearest_one():
    assert str(base.unknown("paskey", ["hellaswag"])) == (
        "eval: tasks must be ours or the harness's, got 'paskey'; did you mean 'passkey'?"
    )
    assert str(base.unknown("hellaswg", ["hellaswag"])).endswith("did you mean 'hellaswag'?")
    ours = {*(task.name for task in base.every()), *(name for group in base.groups() for name in group.members)}
    assert str(base.unknown("xxxxxxxx", [])).endswith(f"; ours are {', '.join(sorted(ours))}")


# ---- options that no task reads


@pytest.mark.parametrize(
    ("tasks", "given"),
    [
        ("cloze", "--depths 0.5"),
        ("niah_single_1", "--depths 0.5"),
        ("position,perplexity,cloze", "--samples 2"),
        ("position,longppl", "--seed 3"),
        ("passkey,cloze", "--windows 2"),
        ("position,longppl", "--stride 0.25"),
        ("ruler", "--texts sample"),
        ("perplexity", "--evaluator tiny"),
        ("passkey", "--include-path tasks"),
    ],
)
def test_an_option_that_no_task_reads_is_refused(
    tasks: str, given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "run", lambda *_: pytest.fail("something was run"))
    option, value = given.split()
    command = ["eval", "tiny", "--methods", "none", "--tasks", tasks]
    assert main([*command, option, value]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ropescale: eval: {option} must be left out where no task reads it, got ")
    assert "; it is about " in said
    name = option.removeprefix("--").replace("-", "_")
    kind = {"depths": (0.5,), "samples": 2, "seed": 3, "windows": 2, "stride": 0.25}.get(name, value)
    with pytest.raises(InvalidArgumentError, match=f"eval: {name} must be left out where no task reads it"):
        ropescale.evaluate("tiny", methods=["none"], tasks=tasks.split(","), **{name: kind})


def test_layers_without_a_method_that_rescales_them_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "--methods", "none", "--layers", "full", "--dry-run"]) == 2
    assert "eval: --layers must be left out where no method rescales any, got 'full'" in capsys.readouterr().err


def test_what_a_budget_leaves_out_is_what_the_tasks_left_read() -> None:
    """The last steps keep one task, and say nothing of what it does not read, because eval would refuse that."""
    for said, fewer in budget.smaller(Plan.of(Options(model="tiny", tasks=("position", "passkey")), 128)):
        asked = {one.removeprefix("--") for one in said.split() if one.startswith("--")}
        assert plan.unread(fewer.options, asked) == []
