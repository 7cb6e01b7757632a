"""How commands end that do not end well: one sentence, a code, and the whole traceback where it can be found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import ropescale
from ropescale import cli, failures
from ropescale.errors import RopescaleError

ROOT = Path(__file__).parents[2]
# Every verb with what it needs to be let in
VERBS = {
    "demo": [],
    "eval": ["tiny"],
    "recommend": ["tiny", "--target-length", "512"],
    "methods": [],
    "inspect": ["tiny"],
    "doctor": ["tiny"],
    "rescale": ["tiny", "DST", "--factor", "2"],
    "explain": ["tiny"],
    "plot": ["tiny"],
    "search": ["tiny", "--factor", "2"],
    "fit": ["tiny", "--factor", "2"],
    "train": ["lora", "--model", "tiny"],
    "merge": ["adapter", "DST"],
    "report": ["folder"],
    "export": ["tiny", "DST", "--to", "gguf", "--method", "none"],
    "verify-export": ["DST", "--engine", "vllm"],
    "verify-server": ["http://127.0.0.1:9", "--reference", "tiny"],
    "flags": ["tiny", "--for", "verl", "--method", "yarn", "--factor", "4"],
    "memory": ["tiny", "--length", "64"],
    "chat": ["tiny"],
}


def failing(error: BaseException) -> Callable[..., int]:
    def verb(*arguments: object) -> int:
        raise error

    return verb


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_every_verb_is_tried_here() -> None:
    assert list(VERBS) == list(cli.VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_what_nobody_foresaw_is_one_sentence_and_a_file(
    verb: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"ropescale.cli.{verb.replace('-', '_')}.run", failing(ZeroDivisionError("one\n\x1b[2Jtwo")))
    assert cli.main([verb, *VERBS[verb]]) == 1
    said = capsys.readouterr().err
    found = re.fullmatch(
        r"ropescale: (.+): must end in a result or in a reason, got ZeroDivisionError: one; the whole traceback is in "
        r"(\S+)\n",
        said,
    )
    assert found
    assert found[1] != verb
    assert list(temporary.iterdir()) == [Path(found[2])]
    told = Path(found[2]).read_text(encoding="utf-8")
    assert told.startswith(f"ropescale {verb}")
    assert "Traceback (most recent call last)" in told
    assert "in verb" in told
    assert Path(found[2]).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_is_a_line_and_130(
    verb: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"ropescale.cli.{verb.replace('-', '_')}.run", failing(KeyboardInterrupt()))
    assert cli.main([verb, *VERBS[verb]]) == 130
    assert capsys.readouterr().err == "ropescale: stopped\n"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "drawing tiny: the memory must suffice, got MemoryError; ask for shorter lengths"),
        (RecursionError("too deep"), "got RecursionError: too deep; the whole traceback is in "),
        (OSError(5, "Input/output error"), "got OSError: [Errno 5] Input/output error; the whole"),
        (AssertionError(), "got AssertionError; the whole traceback is in "),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "got UnicodeDecodeError: "),
        (ModuleNotFoundError("No module named 'peft'", name="peft.tuners"), "pip install 'ropescale[train]'\n"),
        (
            ModuleNotFoundError("No module named 'zzz'", name="zzz"),
            "got ModuleNotFoundError: No module named 'zzz'; the",
        ),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), "the memory must suffice, got OutOfM"),
        (RuntimeError("x" * 1000), f"got RuntimeError: {'x' * 300}...; the whole"),
        (
            ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
            "got ExceptionGroup: several (2 sub-exceptions)",
        ),
        (RopescaleError("what: rule, got 1; do this"), "ropescale: what: rule, got 1; do this\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exceptions_of_every_kind(
    error: Exception,
    said: str,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ropescale.cli.plot.run", failing(error))
    foreseen = isinstance(error, RopescaleError) or (isinstance(error, ImportError) and error.name != "zzz")
    assert cli.main(["plot", "tiny"]) == (2 if foreseen else 1)
    answer = capsys.readouterr().err
    assert said in answer
    assert answer.count("\n") == 1
    assert "Traceback" not in answer


def test_without_a_place_for_the_file_the_sentence_says_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr("ropescale.cli.plot.run", failing(KeyError("x")))
    assert cli.main(["plot", "tiny"]) == 1
    answer = capsys.readouterr().err
    assert re.search(r"it was in \S+test_failures\.py, line \d+, and no file could be written \(", answer)
    assert answer.count("\n") == 1


def test_a_link_planted_for_the_file_is_not_followed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = temporary.parent / "kept"
    kept.write_text("kept")
    names = iter(["planted", "free"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    (temporary / "ropescale-planted.txt").symlink_to(kept)
    monkeypatch.setattr("ropescale.cli.plot.run", failing(KeyError("x")))
    assert cli.main(["plot", "tiny"]) == 1
    assert kept.read_text() == "kept"
    assert (temporary / "ropescale-free.txt").exists()


# Extras


def test_the_extras_are_those_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {"lm_eval": "lm-eval", "ringmaster": "axolotl-ringmaster"}  # imported by another name than it is installed
    for extra, packages in failures.EXTRAS.items():
        stated = {re.match(r"[\w-]+", one)[0] for one in project["optional-dependencies"][extra]}  # type: ignore[index]
        assert {named.get(one, one) for one in packages} == stated


@pytest.mark.parametrize(
    ("given", "gone", "command"),
    [
        (["demo"], "peft", "pip install 'ropescale[eval,train]'"),
        (["demo"], "lm_eval", "pip install 'ropescale[eval,train]'"),
        (["eval", "tiny"], "lm_eval", "pip install 'ropescale[eval]'"),
        (["train", "lora", "--model", "tiny"], "datasets", "pip install 'ropescale[train]'"),
        (["train", "lora", "--help"], "peft", "pip install 'ropescale[train]'"),
        (["merge", "adapter", "DST"], "peft", "pip install 'ropescale[train]'"),
        (["report", "folder"], "matplotlib", "pip install 'ropescale[eval]'"),
    ],
)
def test_a_verb_without_its_extra_names_the_command_that_installs_it(
    given: list[str], gone: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, gone, None)
    assert cli.main(given) == 2
    assert capsys.readouterr().err == (
        f"ropescale: ropescale {given[0]}: needs packages of its own, got no {gone}; {command}\n"
    )


def test_what_needs_no_extra_answers_without_any() -> None:
    gone = sorted({package for packages in failures.EXTRAS.values() for package in packages})
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({gone})); from ropescale.cli import main; "
        "sys.exit(main(['methods']) or main(['train', '--list']) or main(['inspect', 'tiny']) or "
        "main(['doctor', 'tiny']) or main(['rescale', 'tiny', sys.argv[1], '--factor', '2']))"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{folder}/new"], capture_output=True, text=True, check=False, cwd=folder
        )
    assert done.returncode == 0, done.stderr[-2000:]


# Signals and pipes, which need a process


def test_ctrl_c_in_a_process_leaves_one_line(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from ropescale import cli; from ropescale.cli import methods; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "methods.run = lambda arguments: os.kill(os.getpid(), signal.SIGINT) or 0; sys.exit(cli.main(['methods']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ropescale: stopped\n")


def test_a_reader_that_goes_away_gets_no_traceback(tmp_path: Path) -> None:
    code = (
        "import sys; from ropescale import cli; from ropescale.cli import methods; "
        "methods.run = lambda arguments: [print('x' * 99) for _ in range(999)] and 0; sys.exit(cli.main(['methods']))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_python_m_ropescale_is_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ropescale", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("ropescale ")


# What can be foreseen has a sentence of its own


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta", "mps", "xpu"])
def test_a_device_that_is_not_there_is_named_before_anything_loads(
    device: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if device.partition(":")[0] in str(torch.accelerator.current_accelerator(check_available=True)):
        pytest.skip("this machine has it")
    assert cli.main(["eval", "tiny", "--device", device, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ropescale: --device: must be one that torch {torch.__version__} can use here, got")
    assert f"got {device!r} where there is cpu" in said
    assert not (tmp_path / "out").exists()


def test_a_task_of_the_harness_without_its_data_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: /no/such/file.jsonl}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n"
    )
    given = ["eval", "tiny", "--methods", "none", "--tasks", "mine", "--include-path", str(tmp_path)]
    assert cli.main([*given, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "ropescale: eval: --tasks must have their data here or on a hub that is reached, got 'mine' (" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, whose tokenizer has two tokens more than the model, and a text with one of them."""
    folder = tmp_path_factory.mktemp("grown") / "model"
    shutil.copytree(ROOT / "ropescale" / "checkpoints" / "tiny", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    row = json.dumps({"text": "<|im_start|>" + "the river and the town " * 99})
    (folder.parent / "chat.jsonl").write_text((row + "\n") * 12)
    (folder.parent / "plain.jsonl").write_text(json.dumps({"text": "the river and the town " * 99}) + "\n")
    return folder


def test_a_token_without_an_embedding_is_named_in_an_evaluation(
    grown: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["eval", str(grown), "--methods", "none", "--lengths", "64", "--tasks", "position", "--windows", "1"]
    texts = grown.parent / "chat.jsonl"
    assert cli.main([*given, "--texts", str(texts), "--output", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "ropescale: tokenizer: its tokens must have rows in the model's embedding, got id 1024 where there" in said
    # a text without these tokens is read as ever
    assert cli.main([*given, "--texts", str(grown.parent / "plain.jsonl"), "--output", str(tmp_path / "b")]) == 0


def test_a_token_without_an_embedding_is_named_before_training(
    grown: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["train", "lora", "--model", str(grown), "--data", str(grown.parent / "chat.jsonl"), "--max-steps", "1"]
    more = ["--eval-texts", "sample", "--eval-windows", "1", "--eval-passkeys", "0", "--length", "64"]
    folder = ["--cache-dir", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    assert cli.main([*given, *more, "--eval-lengths", "64", *folder]) == 2
    said = capsys.readouterr().err
    assert "ropescale: tokenizer: its tokens must have rows in the model's embedding, got id 1024 " in said
    assert "as it was" not in said, "nothing was measured"


@pytest.mark.parametrize(("name", "extra"), [("evaluate", "eval"), ("train", "train")])
def test_the_verbs_from_python_name_the_extra_that_they_need(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(getattr(ropescale, name))
    monkeypatch.setitem(failures.EXTRAS, extra, ("nowhere_to_be_found",))
    with pytest.raises(ImportError, match=rf"^ropescale.{name}: .*pip install 'ropescale\[{extra}\]'$"):
        getattr(ropescale, name)
