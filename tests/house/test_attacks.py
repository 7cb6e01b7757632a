"""Files that somebody else made: links, escapes, code and bombs in them do nothing but end in a sentence."""

import io
import json
import os
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluations import write_evaluation
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import ropescale
from ropescale import cli, templates
from ropescale.adapters import save_adapter
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import CheckpointError, InvalidArgumentError, RopescaleError
from ropescale.evals import results
from ropescale.export.gguf.header import require_sound
from ropescale.files import read_json, read_text
from ropescale.recipes.reading import read_yaml
from ropescale.recipes.trainer import UNFINISHED, whole
from ropescale.shards import read_index
from ropescale.terminal import Clean

TINY = Path(resolve("tiny"))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A checkpoint that came from somebody else."""
    return Path(shutil.copytree(TINY, tmp_path / "theirs"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of mine, which nobody else has to do with."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    return folder


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}

    before = content()
    yield
    assert content() == before


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


VERBS = {
    "explain": "explain {} --output {}/a.html",
    "plot": "plot {} --output {}/a.svg",
    "export": "export {} {}/a --to vllm --method none",
    "eval": "eval {} --methods none --tasks passkey --lengths 128 --output {}/a",
    "demo": "demo --model {} --output {}/a",
    "train": "train lora --model {} --factor 2 --data passkey --max-documents 4 --output {}/a",
    "verify-export": "verify-export {} --engine transformers",
    "merge": "merge {1}/adapter {1}/a --base {0}",
    "memory": "memory {} --length 64",
    "chat": "chat {} --prompt hello",
    "inspect": "inspect {}",
    "doctor": "doctor {}",
    "rescale": "rescale {} {}/a --factor 2",
}
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


# Indices of weights

OUTSIDE = [
    "../mine/diary.txt",
    "/etc/passwd",
    "a/../../mine/diary.txt",
    "..",
    "C:\\x",
    "\\x",
    "a\\..\\..\\x",
    "",
    ".",
    "a\0b",
]


@pytest.mark.parametrize("place", [*OUTSIDE, 5, None, ["a"], {"a": "b"}])
def test_an_index_names_files_of_its_folder_alone(place: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.bin", "b": place}}))
    with pytest.raises(CheckpointError, match=r"weights must be in files of its own folder, got .* for 'b'; fetch"):
        read_index(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 5}'])
def test_a_damaged_index_is_worded(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"a\.index\.json: must "):
        read_index(tmp_path / "a.index.json")


@pytest.mark.parametrize("place", ["a.safetensors", "sub/a.safetensors", "./a..b.safetensors"])
def test_an_index_may_name_what_is_below_its_folder(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    assert read_index(tmp_path / "a.index.json") == {"a": place}


READING: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda folder, out: ropescale.load(folder),
    "doctor": lambda folder, out: ropescale.diagnose(folder),
    "rescale": lambda folder, out: ropescale.rescale_checkpoint(folder, out, factor=2),
    "export": lambda folder, out: ropescale.export.export(folder, out, to="vllm", method="none"),
}


@pytest.mark.parametrize("verb", READING)
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_what_lies_outside_is_not_read_and_not_copied(verb: str, absolute: bool, theirs: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    save_file({"secret": torch.ones(3)}, private / "secret.safetensors")
    weights = load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    save_file(weights, theirs / "a.safetensors", metadata={"format": "pt"})
    place = str(private / "secret.safetensors") if absolute else "../private/secret.safetensors"
    places = {**dict.fromkeys(weights, "a.safetensors"), "secret": place}
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with untouched(private), pytest.raises(CheckpointError, match="weights must be in files of its own folder"):
        READING[verb](theirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What a terminal obeys

ESCAPES = "\x1b[2J\x1b[H\x1b]0;owned\x07nothing found\x1b[8m\x9b2J\r\u202e\u2028"


def hostile(values: Any) -> Any:
    """Every text of a JSON value with escapes behind it, and entries with escapes in their names."""
    if isinstance(values, dict):
        return {**{name: hostile(value) for name, value in values.items()}, f"more{ESCAPES}": 1}
    if isinstance(values, list):
        return [hostile(value) for value in values]
    return f"{values}{ESCAPES}" if isinstance(values, str) else values


def is_obeyed(text: str) -> bool:
    return any(not (one.isprintable() or one == "\n") for one in text)


CONFIGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "every text": lambda config: config.update(hostile(config)),
    "the model type": lambda config: config.update(model_type=f"x{ESCAPES}"),
    "an entry of the rotation": lambda config: config["rope_parameters"].update({f"x{ESCAPES}": 1}),
    "the rope type": lambda config: config["rope_parameters"].update(rope_type=f"x{ESCAPES}"),
    "the class": lambda config: config.update(architectures=[f"x{ESCAPES}"]),
    "the activation": lambda config: config.update(hidden_act=f"x{ESCAPES}"),
    "the record": lambda config: config.update(ropescale={f"x{ESCAPES}": 1}),
    "another length": lambda config: config.update({"n_ctx": 10**6, "rope_theta_": ESCAPES}),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("verb", ["doctor", "inspect", "explain", "plot", "rescale", "export", "eval", "train"])
def test_no_escape_of_a_config_reaches_the_terminal(
    case: str, verb: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(theirs / "config.json", CONFIGS[case])
    (theirs / "model.safetensors").write_bytes(b"")  # so that nothing is loaded for long
    code = cli.main(VERBS[verb].format(theirs, tmp_path).split())
    said = capsys.readouterr()
    assert not is_obeyed(said.out + said.err)
    assert code in (0, 1, 2)
    assert code != 2 or said.err.splitlines()[-1].startswith("ropescale: ")


def test_an_error_is_one_line_of_bounded_length_for_python_too() -> None:
    error = InvalidArgumentError(f"a{ESCAPES}\n{'b' * 10**6}")
    assert not is_obeyed(str(error))
    assert "\n" not in str(error)
    assert len(str(error)) < 5000


def test_what_libraries_print_is_cleaned_and_a_bar_is_left() -> None:
    behind = io.StringIO()
    stream = Clean(behind)
    print(f"a{ESCAPES}", "b\tc", file=stream)
    stream.write("\r 50%|\x1b[2J")
    stream.write("\x1b[A")
    stream.writelines([f"\x1b[A{ESCAPES}"])
    shown = behind.getvalue()
    assert not is_obeyed(shown.replace("\tc", "").replace("\r 50%|\\x1b[2J\x1b[A", ""))
    assert "\r 50%|\\x1b[2J\x1b[A" in shown


def test_a_table_on_a_terminal_keeps_its_colours_and_no_others() -> None:
    from rich.table import Table

    from ropescale.console import Console

    behind = io.StringIO()
    table = Table("a", title=f"[bold]{ESCAPES}")
    table.add_row(f"[red]{ESCAPES}")
    console = Console(file=Clean(behind), force_terminal=True, color_system="standard", width=200)
    console.print(table, f"a{ESCAPES}")
    shown = behind.getvalue()
    assert "\x1b[31m" in shown
    assert not any(sign in shown for sign in ("\x1b[2J", "\x1b]", "\x1b[8m", "\x07", "\x9b", "\r", "\u202e"))


# Bombs


def test_a_recipe_has_no_anchors(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(InvalidArgumentError, match="aliases are not read here"):
        read_yaml(str(tmp_path / "r.yaml"))


RECIPES = {
    "brackets": b"a: " + b"[" * 20000,
    "no calendar": b"a: 2001-99-99",
    "no text": b"method: \xe9\n",
    "digits": b"a: " + b"9" * 9999,
    "a long one": b"# " + b"x" * 2**21,
    "code": b"a: !!python/object/apply:os.system ['true']",
    "no key": b"? [a, b]\n: c",
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_damaged_recipe_is_worded(case: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(RECIPES[case])
    with pytest.raises(RopescaleError, match=r"r\.yaml"):
        read_yaml(str(tmp_path / "r.yaml"))


def gguf_file(*parts: Any) -> bytes:
    """Magic, version 3, and what follows: a number of 8 bytes, or bytes."""
    return (
        b"GGUF"
        + struct.pack("<I", 3)
        + b"".join(one if isinstance(one, bytes) else struct.pack("<Q", one) for one in parts)
    )


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


GGUFS = {
    "nothing": b"",
    "another format": b"GGML" + bytes(100),
    "the beginning alone": b"GGUF",
    "entries without end": gguf_file(0, 2**60),
    "tensors without end": gguf_file(2**63, 0),
    "an array without end": gguf_file(0, 1, 1, b"a", u32(9), u32(4), 2**60),
    "an array of texts without end": gguf_file(0, 1, 1, b"a", u32(9), u32(8), 2**40),
    "an array of many bytes": gguf_file(0, 1, 1, b"a", u32(9), u32(0), 2**22, bytes(2**22)),
    "arrays within arrays": gguf_file(0, 1, 1, b"a", u32(9), u32(9), 1, u32(9), 1, bytes(99)),
    "a text without end": gguf_file(0, 1, 1, b"a", u32(8), 2**62),
    "a name without end": gguf_file(0, 1, 2**63, b"a"),
    "a type that nobody knows": gguf_file(0, 1, 1, b"a", u32(77), bytes(99)),
    "dimensions without end": gguf_file(1, 0, 1, b"a", u32(2**31), bytes(99)),
}


@pytest.mark.parametrize("case", GGUFS)
def test_a_header_that_counts_more_than_there_is_is_refused(case: str, tmp_path: Path) -> None:
    from ropescale.export.gguf import reading

    (tmp_path / "a.gguf").write_bytes(GGUFS[case])
    with pytest.raises(CheckpointError, match=r"a\.gguf: [a-z ]*must "):
        reading.opened(tmp_path / "a.gguf")


def test_a_sound_header_is_passed(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(
        gguf_file(1, 2, 1, b"a", u32(9), u32(8), 2, 1, b"x", 0, 1, b"b", u32(7), b"\1", 1, b"t", u32(1), 4, u32(0), 0)
    )
    require_sound(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="must hold all that its header counts"):
        require_sound(tmp_path / "a.gguf")


PIPES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "zeros without end": lambda file: file.symlink_to("/dev/zero"),
    "brackets within brackets": lambda file: file.write_text('{"a":' * 500 + "1" + "}" * 500),
    "brackets without end": lambda file: file.write_text("[" * 10**5),
    "a large one": lambda file: (file.touch(), os.truncate(file, 2**40)),
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("case", PIPES)
def test_what_is_no_ordinary_file_is_not_waited_for(case: str, name: str, theirs: Path, tmp_path: Path) -> None:
    (theirs / name).unlink()
    PIPES[case](theirs / name)
    with pytest.raises(CheckpointError, match=rf"{name}: must "):
        read_json(theirs / name)
    assert cli.main(VERBS["eval"].format(theirs, tmp_path).split()) == 2


def test_a_text_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é\r\n")
    assert read_text(tmp_path / "a") == "é\n"
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "b")


# Damage


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:9999])


def pickled(folder: Path) -> None:
    class Mark:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {folder}/ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Mark()}, folder / "pytorch_model.bin")


def entry(**values: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights that were cut": cut,
    "weights that are gone": lambda folder: (folder / "model.safetensors").unlink(),
    "weights of nothing": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights that are text": lambda folder: (folder / "model.safetensors").write_text("hello"),
    "another shape": entry(intermediate_size=100),
    "code in a pickle": pickled,
    "a class that is a number": lambda folder: edit(
        folder / "config.json", lambda config: config.update(architectures=5)
    ),
    "an unknown activation": lambda folder: edit(folder / "config.json", lambda config: config.update(hidden_act="x")),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_is_worded_at_the_reader(case: str, theirs: Path) -> None:
    DAMAGE[case](theirs)
    with pytest.raises(RopescaleError) as refusal:
        ropescale.load(theirs)
    assert str(theirs) in str(refusal.value) or "architectures" in str(refusal.value)
    assert "; " in str(refusal.value)
    assert not (theirs / "ran").exists()
    for verb in ("doctor", "rescale", "export"):  # which need not look at all of it
        with suppress(RopescaleError):
            READING[verb](theirs, theirs.with_name(f"out-{verb}"))


# Links planted where a verb writes

WRITES = {
    "explain": ("explain tiny --methods linear --output {}/a.html", "a.html"),
    "plot": ("plot tiny --methods linear --output {}/a.svg", "a.svg"),
    "rescale": ("rescale tiny {}/a --factor 2", "a"),
    "export": ("export tiny {}/a --to vllm --method yarn --factor 2", "a"),
    "export to gguf": ("export tiny {}/a.gguf --to gguf --method yarn --factor 2", "a.gguf"),
}


def on_the_way(name: str) -> list[str]:
    """Names that a program could write at before it moves a file to its place."""
    return [
        f"{name}.part",
        f"{name}.tmp",
        f".{name}.part",
        f".{name}.partial",
        f".{name}",
        f"{name}~",
        f"{name}.partial",
    ]


@pytest.mark.parametrize("kind", ["a file", "a folder", "nothing"])
@pytest.mark.parametrize("verb", WRITES)
def test_no_verb_writes_through_a_link_on_its_way(verb: str, kind: str, mine: Path, tmp_path: Path) -> None:
    command, name = WRITES[verb]
    out = tmp_path / "out"
    out.mkdir()
    for planted in on_the_way(name):
        (out / planted).symlink_to({"a file": mine / "diary.txt", "a folder": mine, "nothing": mine / "new"}[kind])
    with untouched(mine):
        assert cli.main(command.format(out).split()) == 0
    assert not (out / name).is_symlink()
    assert (out / name).exists()


@pytest.mark.parametrize("kind", ["a file", "a folder", "nothing", "a device"])
@pytest.mark.parametrize("verb", WRITES)
def test_no_verb_replaces_or_follows_a_link_at_its_end(verb: str, kind: str, mine: Path, tmp_path: Path) -> None:
    command, name = WRITES[verb]
    (tmp_path / "out").mkdir()
    places = {"a file": mine / "diary.txt", "a folder": mine, "nothing": mine / "new", "a device": Path("/dev/null")}
    (tmp_path / "out" / name).symlink_to(places[kind])
    with untouched(mine):
        assert cli.main(command.format(tmp_path / "out").split()) == 2
    assert (tmp_path / "out" / name).readlink() == places[kind]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("results") / "r", tasks=("passkey",), lengths=(128, 256))


REPORTS = ("evaluate.json", "model-card.md", "report.html", "report.json", "report.md")


@pytest.mark.parametrize("planted", ["on the way", *REPORTS])
def test_a_report_is_not_written_through_links_in_a_folder_of_results(
    planted: str, evaluated: Path, mine: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(evaluated, tmp_path / "r"))
    names = [one for name in REPORTS for one in on_the_way(name)] if planted == "on the way" else [planted]
    for name in names:
        (folder / name).symlink_to(mine / "diary.txt")
    with untouched(mine):
        assert cli.main(["report", str(folder)]) == (0 if planted == "on the way" else 2)


@pytest.mark.parametrize("name", ["run.json", "results.jsonl", "timings.jsonl"])
def test_results_go_on_in_files_of_their_folder_alone(name: str, evaluated: Path, mine: Path, tmp_path: Path) -> None:
    """The link leads to results that are whole, with a torn line behind them."""
    folder = Path(shutil.copytree(evaluated, tmp_path / "r"))
    (folder / name).rename(mine / name)
    if name != "run.json":
        with (mine / name).open("a") as file:
            file.write('{"torn')
    (folder / name).symlink_to(mine / name)
    with (
        untouched(mine),
        warnings.catch_warnings(action="ignore"),
        pytest.raises(InvalidArgumentError, match="a link"),
    ):
        going_on(folder)


def going_on(folder: Path) -> None:
    found = results.read(folder)
    found = results.start(folder, found.settings, {"command": "again"})
    found.append({"task": "passkey", "method": "none", "factor": 1.0, "length": 512}, seconds=1, tokens=1)


# Chat templates

ENDLESS = {
    "loops within loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "a text of a billion letters": "{{ ('x' * 99999999999)|length }}",
    "a width of a billion": "{{ '%99999999999d' % 1 }}",
    "marked as a reply": "{% generation %}{{ ('x' * 99999999999)|length }}{% endgeneration %}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_that_does_not_end_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    tokenizer = read_tokenizer(TINY)
    tokenizer.chat_template = ENDLESS[case]
    with pytest.raises(CheckpointError, match=r"^theirs: the chat template must write two turns within 1 seconds and"):
        templates.require_ending(tokenizer, "theirs")


SOUND = [
    "{% for one in messages %}{{ bos_token }}{{ one.role }}: {{ one['content']|trim }}{% endfor %}",
    "{{ raise_exception('no system message') }}",
    "{% generation %}{{ messages|tojson(indent=2) }}{% endgeneration %}{{ strftime_now('%d') }}",
    "{% for one in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}",
    "{% no template",
    None,
]


@pytest.mark.parametrize("text", SOUND)
def test_a_template_that_ends_is_left_to_those_who_use_it(text: str | None) -> None:
    tokenizer = read_tokenizer(TINY)
    tokenizer.chat_template = text
    templates.require_ending(tokenizer, "theirs")


@pytest.mark.parametrize(
    "verb", ["chat {} --prompt hello", "eval {} --chat --methods none --tasks passkey --output {}/a"]
)
def test_no_verb_uses_one(
    verb: str,
    theirs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1)
    (theirs / "chat_template.jinja").write_text(ENDLESS["loops within loops"])
    assert cli.main(verb.format(theirs, tmp_path).split()) == 2
    assert "the chat template must write two turns within" in capsys.readouterr().err


def test_no_room_asks_transformers_for_a_config_or_tokenizer_by_itself() -> None:
    """One place passes on whether code of a checkpoint may run."""
    known = {"checkpoint.py", "gguf_llama.py"}  # the second reads the embedded model's source
    rooms = [Path(ropescale.__file__).parent / room for room in (".", "../evals", "../recipes")]
    for file in {file for room in rooms for file in room.resolve().rglob("*.py")}:
        text = file.read_text()
        for call in ("AutoConfig.from_pretrained(", "AutoTokenizer.from_pretrained("):
            lines = [line for line in text.splitlines() if call in line and '"' not in line]
            assert not lines or file.name in known, f"{file}: {lines}"
