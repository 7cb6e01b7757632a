"""Code that lies in the files of somebody else does not run, and links there are not followed."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import VERBS, edit, untouched
from peft import LoraConfig, get_peft_model

import ropescale
from ropescale import cli
from ropescale.adapters import save_adapter
from ropescale.errors import CheckpointError
from ropescale.recipes.trainer import UNFINISHED, whole


def test_a_link_in_the_place_of_what_training_has_not_finished_is_not_followed(mine: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / UNFINISHED).symlink_to(mine)
    with untouched(mine), whole(run) as beside:
        assert list(beside.iterdir()) == []
        (beside / "weights").write_text("new")
    assert list(run.iterdir()) == []


# Code that lies in a checkpoint


@pytest.fixture
def with_code(theirs: Path, mine: Path) -> Path:
    """A checkpoint whose config, tokenizer and model are classes of its own; its code leaves a mark."""
    (theirs / "evil.py").write_text(
        f"open({str(mine / 'ran')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'evilx'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
    )
    own = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit(theirs / "config.json", lambda config: config.update(model_type="evilx", auto_map=own))
    edit(theirs / "tokenizer_config.json", lambda config: config.update(chat_template="{{ messages[0].content }}"))
    return theirs


NEVER = ("inspect", "doctor", "rescale")


def test_every_verb_that_could_run_code_is_here() -> None:
    parsers = next(action for action in cli._parser()._actions if action.dest == "name").choices
    asking = {verb for verb, one in parsers.items() if "--trust-remote-code" in one._option_string_actions}
    assert asking == VERBS.keys() - set(NEVER)


@pytest.fixture(autouse=True)
def adapter(request: pytest.FixtureRequest) -> None:
    """An adapter for `merge`, where a test has a folder of its own."""
    if "with_code" in request.fixturenames and "tmp_path" in request.fixturenames:
        model = ropescale.patch(ropescale.load("tiny"), "yarn", factor=4)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_adapter(adapted, request.getfixturevalue("tmp_path") / "adapter")


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_the_code_of_a_checkpoint_or_asks_whether_to(
    verb: str,
    with_code: Path,
    mine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = io.StringIO("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", answers)
    with untouched(mine):
        assert cli.main(VERBS[verb].format(with_code, tmp_path).split()) == 2
    assert answers.tell() == 0, "a question was asked"
    said = capsys.readouterr()
    assert said.err.startswith(
        f"ropescale: {with_code}: must load without Python code of its own, got one that brings"
    )
    assert ("--trust-remote-code" in said.err) == (verb not in NEVER)
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("call", [ropescale.load, lambda path: ropescale.load(path, trust_remote_code=False)])
def test_load_does_not_run_the_code_of_a_checkpoint(
    call: Callable[[Path], object], with_code: Path, mine: Path
) -> None:
    with untouched(mine), pytest.raises(CheckpointError, match="must load without Python code of its own"):
        call(with_code)


@pytest.mark.parametrize("name", ["a tokenizer", "a model"])
def test_nor_that_of_a_part_of_it(name: str, with_code: Path, mine: Path, tmp_path: Path) -> None:
    """The config is one that Transformers knows, and names code for the rest."""
    edit(with_code / "config.json", lambda config: config.update(model_type="llama"))
    if name == "a tokenizer":
        edit(with_code / "config.json", lambda config: config.pop("auto_map"))
        own = {"auto_map": {"AutoTokenizer": [None, "evil.C"]}, "tokenizer_class": "Evil"}
        edit(with_code / "tokenizer_config.json", lambda config: config.update(own))
    with untouched(mine):
        ropescale.load(with_code)
        cli.main(VERBS["eval"].format(with_code, tmp_path).split())


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("verb", sorted(VERBS.keys() - set(NEVER)))
def test_it_runs_where_the_command_line_says_so(
    verb: str, place: str, with_code: Path, mine: Path, tmp_path: Path
) -> None:
    given = VERBS[verb].format(with_code, tmp_path).split()
    given.insert(1 if place == "before" else len(given), "--trust-remote-code")
    assert cli.main(given) == (0 if verb in ("memory", "chat") else 2)  # a family that is not patched
    assert (mine / "ran").exists()
    (mine / "ran").unlink()
    sys.modules.pop("transformers_modules", None)
    assert cli.main(VERBS["explain"].format(with_code, tmp_path).split()) == 2
    assert not (mine / "ran").exists(), "what was allowed once is allowed for ever"


def test_a_recipe_does_not_say_so(with_code: Path, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("trust_remote_code: true\nmethod: yarn\n")
    with untouched(mine):
        given = ["train", str(tmp_path / "r.yaml"), "--model", str(with_code), "--factor", "2"]
        assert cli.main([*given, "--output", str(tmp_path / "a")]) == 2
