"""The first hour: spellings, next steps, a quick look, memory, a conversation, and the same verbs from Python."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of, family
from transformers import AutoTokenizer

import ropescale
from ropescale import cli, memory
from ropescale.errors import InvalidArgumentError
from ropescale.evals import budget, grid
from ropescale.evals.bench import Bench
from ropescale.evals.plan import Options, Plan

ROOT = Path(__file__).parents[2]
TINY = ROOT / "ropescale" / "checkpoints" / "tiny"


# Both spellings


BOTH = {"method": "yarn", "factor": "2", "length": "256"}


def verbs() -> dict[str, Any]:
    return next(action for action in cli._parser()._actions if action.dest == "name").choices


@pytest.mark.parametrize("name", BOTH)
def test_one_and_many_are_the_same_option_in_every_verb(name: str) -> None:
    found = []
    for verb, parser in verbs().items():
        for action in parser._actions:
            spellings = set(action.option_strings) & {f"--{name}", f"--{name}s"}
            if spellings:
                assert len(spellings) == 2, f"{verb} {spellings}"
                found.append(verb)
    assert len(found) >= 5


def test_training_takes_both_spellings_too() -> None:
    from ropescale.recipes.reading import read_recipe

    one = read_recipe("lora", ["--model", "tiny", "--methods", "ntk", "--factors", "8"])
    assert (one.options.method, one.options.factor) == ("ntk", 8.0)


def test_help_shows_one_spelling_of_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in verbs():
        cli.main([verb, "--help"])
        said = capsys.readouterr().out.partition("\noptions:")[2].partition("\n\n")[0]
        assert said
        assert not re.search(r"^ +--\w.*, --", said, flags=re.MULTILINE), verb


def test_the_help_of_a_recipe_says_each_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "pose", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--target-length" in said
    assert not re.search(r"--\w+_\w+", said), "one spelling, with hyphens"
    for entry in re.split(r"\n  (?=-)", said):
        assert entry.count("(default:") <= 1, entry
    assert "(default: None)" not in said


# What comes next


def next_line(said: str) -> list[str]:
    lines = [line for line in said.splitlines() if line.startswith("next: ")]
    assert len(lines) == 1, said
    return shlex.split(lines[0].removeprefix("next: "))


@pytest.mark.parametrize(
    "given",
    [
        ["methods"],
        ["inspect", "tiny"],
        ["doctor", "tiny"],
        ["rescale", "tiny", "out/new model", "--factor", "2"],
        ["explain", "tiny", "--methods", "yarn"],
        ["plot", "tiny", "--methods", "yarn"],
        ["train", "--list"],
        ["memory", "tiny", "--length", "512"],
        ["eval", "tiny", "--methods", "yarn", "--tasks", "cloze", "--dry-run"],
        ["eval", "tiny", "--methods", "yarn", "--tasks", "position", "--windows", "1"],
        ["eval", "tiny", "--methods", "none", "--tasks", "position", "--windows", "1", "--output", "alone"],
        ["export", "tiny", "served", "--to", "vllm", "--method", "yarn", "--factor", "2"],
    ],
    ids=lambda given: " ".join(given[:2]),
)
def test_a_verb_ends_with_a_command_that_is_understood(
    given: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(given) == 0
    command = next_line(capsys.readouterr().out)
    assert command[0] == "ropescale"
    seen = []
    for verb in ("eval", "train", "rescale", "doctor", "inspect", "explain", "plot", "verify_export"):
        monkeypatch.setattr(f"ropescale.cli.{verb}.run", lambda arguments: seen.append(arguments.name) or 0)
    assert cli.main(command[1:]) == 0
    assert seen == [command[1]]


# Less of it


def test_quick_is_one_look_and_what_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(options: Options, *rest: Any) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run", stop)
    cli.main(["eval", "tiny", "--quick"])
    cli.main(["eval", "tiny", "--quick", "--samples", "7", "--tasks", "needle"])
    quick, asked = seen
    assert (quick.tasks, quick.windows, quick.samples) == (("position", "passkey"), 1, 2)
    assert (asked.tasks, asked.windows, asked.samples) == (("needle",), 1, 7)


def test_smaller_evaluations_cost_ever_less_and_end_at_one_cell_an_arm() -> None:
    options = Options(model="tiny", factors=(2.0, 4.0), tasks=("position", "perplexity", "passkey", "cloze"))
    steps = list(budget.smaller(Plan.of(options, 128)))
    said, last = steps[-1][0], steps[-1][1].options
    assert (last.windows, last.samples, last.tasks, last.methods) == (1, 1, ("position",), ("linear",))
    assert last.lengths == (128,)
    # what is said is what was done: the same options, read from the command line
    parsed = verbs()["eval"].parse_args(["tiny", *shlex.split(said)])
    assert "--samples" not in said
    assert "--depths" not in said, "position reads neither"
    for name in ("windows", "tasks", "methods", "lengths"):
        assert getattr(parsed, name) == getattr(last, name)
    fewest = Options(model="tiny", methods=("yarn",), windows=1, samples=1, depths=(0.5,))
    kept = list(budget.smaller(Plan.of(fewest, 128)))
    assert not any("--windows" in one or "--samples" in one or "--methods" in one for one, _ in kept)


def test_a_budget_chooses_what_fits_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = [1e9]  # operations per second
    monkeypatch.setattr(Bench, "operations_per_second", lambda bench: speed[0])
    given = ["eval", "tiny", "--methods", "yarn", "--tasks", "position,passkey", "--budget", "0.1"]
    assert cli.main([*given, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^within 0\.1 minutes: --windows 1 --samples \d", said, flags=re.MULTILINE)
    speed[0] = 1e6  # a busier machine would choose less, and then refuse the folder
    assert cli.main([*given, "--output", str(tmp_path / "out")]) == 0
    assert "all 6 cells are finished already" in capsys.readouterr().err.replace("\n", " ")
    assert cli.main([*given, "--output", str(tmp_path / "other")]) == 2
    assert "--budget: must be at least" in capsys.readouterr().err


def test_a_dry_run_of_many_hours_says_what_to_leave_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bench, "operations_per_second", lambda bench: 1e7)
    given = ["eval", "tiny", "--methods", "yarn", "--tasks", "position,passkey", "--dry-run"]
    assert cli.main(given) == 0
    found = re.search(r"about ([\d.]+) h in all.*\nfor less than 60 min: (.*)", capsys.readouterr().out)
    assert found
    assert float(found[1]) > 1
    assert cli.main([*given, *shlex.split(found[2])]) == 0
    assert "for less than" not in capsys.readouterr().out


# Memory


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma3_text", "mistral", "deepseek_v3", "minicpm3", "gpt_neox", "phi3"]
)
@pytest.mark.parametrize("length", [24, 48])
def test_the_formula_is_the_cache_that_a_model_keeps(name: str, length: int) -> None:
    model = family(name).eval()
    ids = torch.arange(2 * length).reshape(2, length) % 60 + 2
    with torch.no_grad():
        found = model(ids, use_cache=True)
    layers = next(value for value in found.values() if hasattr(value, "get_seq_length")).layers
    # sliding layers keep one token fewer than their window between calls, and the formula counts the window
    kept = sum(one.nbytes for layer in layers for one in (layer.keys, layer.values))
    sizes = [layer.keys.shape[-2] for layer in layers]
    window = getattr(model.config, "sliding_window", None) or length
    said = memory.need(model.config, parameters=model.num_parameters(), length=length, rows=2, element=4)
    expected = kept + sum(
        2 * (layer.keys.shape[1] * (layer.keys.shape[3] + layer.values.shape[3])) * 4
        for layer, size in zip(layers, sizes, strict=True)
        if size == window - 1 < length
    )
    assert said.cache == expected
    assert said.weights == 4 * model.num_parameters()


def test_memory_grows_as_it_should() -> None:
    config = config_of("llama")
    one, two = (memory.need(config, parameters=1000, length=length) for length in (512, 1024))
    assert (two.cache, two.weights) == (2 * one.cache, one.weights)
    assert memory.need(config, parameters=1000, length=512, rows=2).cache == 2 * one.cache
    assert memory.need(config, parameters=1000, length=512, element=4).total > 1.9 * one.total
    assert one.total == one.weights + one.cache + one.activations


def test_the_verb_counts_the_parameters_of_the_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["memory", "tiny", "--length", "512", "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert f"{ropescale.load('tiny').num_parameters():,} parameters" in said
    assert cli.main(["memory", "tiny", "--length", "0"]) == 2
    assert "--length: must be at least 1, got (0,)" in capsys.readouterr().err
    assert cli.main(["memory", str(tmp_path), "--length", "9"]) == 2


# A conversation


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, extended, with a chat template."""
    folder = tmp_path_factory.mktemp("talking") / "model"
    ropescale.rescale_checkpoint(TINY, folder, "yarn", factor=4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_conversation_streams_replies_and_remembers(
    talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ropescale import conversation

    kept = []
    reply = conversation.Conversation.reply

    def noted(self: Any, said: str, **more: Any) -> str:
        kept.append(reply(self, said, **more))
        return kept[-1]

    monkeypatch.setattr(conversation.Conversation, "reply", noted)
    monkeypatch.setattr("sys.stdin", io.StringIO("the river\n\nthe town\n/exit\nnever said\n"))
    assert cli.main(["chat", str(talking), "--max-new-tokens", "6"]) == 0
    answer = capsys.readouterr()
    assert len(kept) == 2
    assert kept[0].strip() in answer.out
    assert "reads 512 tokens" in answer.err
    talk = conversation.Conversation(str(talking))
    assert ropescale.record(talk.model).method == "yarn"
    first = reply(talk, "the river", tokens=6)
    assert first == kept[0]
    assert reply(talk, "the town", tokens=6) == kept[1], "the second reply sees the first turn"
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2


def test_a_conversation_that_does_not_fit_is_refused(talking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", str(talking), "--prompt", "the river " * 300]) == 2
    assert "chat: the conversation and its reply must fit into the 512 tokens that the model reads" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["tiny"], "tiny: its tokenizer must have a chat template to talk with, got none; "),
        (["TALKING", "--factor", "2"], "--method: is required where the model is to be extended, got factor alone; "),
        (
            ["TALKING", "--method", "yarn", "--factor", "2"],
            "--method: must be left out for a model that was saved patched",
        ),
        (["TALKING", "--max-new-tokens", "0"], "--max-new-tokens, --temperature: must be at least 1"),
        (["TALKING", "--temperature", "nan"], "--max-new-tokens, --temperature: must be at least 1"),
        (["TALKING", "--temperature", "inf"], "--max-new-tokens, --temperature: must be at least 1"),
        (["TALKING", "--seed", "0"], "--seed: acts where tokens are drawn, got 0 with --temperature 0; "),
        (["TALKING", "--prompt", " "], "--prompt: must say something, got ' '; leave it out to type line by line"),
        (["TALKING", "--device", "meta"], "--device: must be one that torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_conversation_that_cannot_be_is_refused_in_words(
    given: list[str], said: str, talking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", *(str(talking) if one == "TALKING" else one for one in given)]) == 2
    assert said in capsys.readouterr().err


# What is typed, as somebody at a terminal or behind a pipe has it


class Typed(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("at_terminal", [True, False])
def test_what_is_piped_in_is_not_asked_for(
    at_terminal: bool, talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", (Typed if at_terminal else io.StringIO)("the river\n"))
    assert cli.main(["chat", str(talking), "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("> ") == (2 if at_terminal else 0)
    assert out.splitlines()[-1].startswith("next: "), "after the end of the input comes a line of its own"


@pytest.mark.parametrize("at_terminal", [True, False])
def test_a_turn_that_does_not_fit_can_be_typed_again_shorter(
    at_terminal: bool, talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = f"{'the river ' * 300}\nthe town\n"
    monkeypatch.setattr("sys.stdin", (Typed if at_terminal else io.StringIO)(typed))
    assert cli.main(["chat", str(talking), "--max-new-tokens", "2"]) == (0 if at_terminal else 2)
    assert "chat: the conversation and its reply must fit into the 512 tokens" in capsys.readouterr().err


def test_a_context_that_fills_up_shortens_the_last_reply(talking: Path) -> None:
    from ropescale import conversation

    talk = conversation.Conversation(str(talking))

    def used() -> int:
        return len(talk.tokenizer.apply_chat_template(talk.turns, return_dict=True)["input_ids"])

    talk.reply("the river " * 100, tokens=10)
    assert used() < 460
    assert talk.cut == "no more than 10 were asked for"
    talk.reply("and then", tokens=400)
    assert talk.cut == "nothing more fits"
    assert 505 < used() <= 512 + 10, "the reply took the room that was left, and no more"  # 10: the template's own
    with pytest.raises(InvalidArgumentError) as full:
        talk.reply("and then", tokens=1)
    assert "say less, begin again, or extend the model further" in str(full.value)


def test_a_reply_that_ends_by_itself_is_not_called_cut_off(talking: Path) -> None:
    from ropescale import conversation

    talk = conversation.Conversation(str(talking))
    first = talk.tokenizer.encode(talk.reply("the river", tokens=1), add_special_tokens=False)
    assert talk.cut == "no more than 1 were asked for"
    talk.model.generation_config.eos_token_id = [0, *first]
    talk.turns.clear()
    talk.reply("the river", tokens=1)
    assert talk.cut == ""


def test_input_that_is_no_text_is_read_as_far_as_it_is(talking: Path) -> None:
    from ropescale import conversation

    talk = conversation.Conversation(str(talking))
    talk.reply("the \udcff river", tokens=2)
    assert talk.turns[0]["content"] == "the \ufffd river"


def test_without_any_input_a_prompt_must_be_given(talking: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as Python has it where it was closed
    assert cli.main(["chat", str(talking)]) == 2
    assert "--prompt: must be given where there is no input to read" in capsys.readouterr().err


# Python's door


def test_evaluate_is_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"methods": ["yarn"], "factors": [2], "tasks": ["position"], "windows": 1}
    found = ropescale.evaluate("tiny", **asked, output=tmp_path / "python")  # type: ignore[arg-type]
    given = ["eval", "tiny", "--methods", "yarn", "--factors", "2", "--tasks", "position", "--windows", "1"]
    assert cli.main([*given, "--output", str(tmp_path / "verb")]) == 0
    verb = grid.results.read(tmp_path / "verb")
    assert found.cells == verb.cells
    assert found.settings == verb.settings
    names = {path.name for path in (tmp_path / "verb").iterdir()}
    assert {path.name for path in (tmp_path / "python").iterdir()} == names
    with pytest.raises(InvalidArgumentError, match=r"^eval: windows must be a whole number of at least 1"):
        ropescale.evaluate("tiny", windows=0)
    with pytest.raises(TypeError, match="window_count"):
        ropescale.evaluate("tiny", window_count=1)


def test_train_is_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the river and the town {n} " * 60}) + "\n" for n in range(12)))
    few = {"data": [str(texts)], "eval_texts": "sample", "eval_windows": 1, "eval_passkeys": 0, "max_steps": 1}
    rows = {"batch_size": 1, "length": 64, "eval_lengths": [64], "factor": 2, "cache_dir": str(tmp_path / "cache")}
    told = ropescale.train("lora", model="tiny", output=tmp_path / "python", **few, **rows)
    given = [
        part
        for name, value in {**few, **rows}.items()
        for part in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))
    ]
    assert cli.main(["train", "lora", "--model", "tiny", *given, "--output", str(tmp_path / "verb")]) == 0
    weights = "adapter_model.safetensors"
    assert (tmp_path / "python" / weights).read_bytes() == (tmp_path / "verb" / weights).read_bytes()
    verb = json.loads((tmp_path / "verb" / "training.json").read_text())
    assert told["after"] == verb["after"]
    command = next_line(capsys.readouterr().out)
    assert command[:3] == ["ropescale", "eval", "tiny"]
    assert "--adapters" in command
    with pytest.raises(InvalidArgumentError, match="did you mean option 'max_steps'"):
        ropescale.train("lora", model="tiny", max_stepz=1)
