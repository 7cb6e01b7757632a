"""Damaged configs, impossible values and places that cannot be written: a worded error, and nothing changed."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import config_of, family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ropescale
from ropescale import cli
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import RopescaleError
from ropescale.explain import inspection

NAN, INFINITE = float("nan"), float("inf")
Damage = Callable[[Path], Any]


def tree(folder: Path) -> dict[str, str]:
    """Every entry of a folder, with a hash of what is in it."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    family("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def source(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "source"))


def content(data: bytes) -> Damage:
    return lambda folder: (folder / "config.json").write_bytes(data)


def fields(**entries: Any) -> Damage:
    """Entries written into config.json; None takes one out."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        values = {name: value for name, value in {**values, **entries}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(values))

    return edit


def rope(**entries: Any) -> Damage:
    return fields(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **entries})


def folder_in_its_place(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def loop_of_links(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")


# What no verb can read past
CONFIGS: dict[str, Damage] = {
    "an empty file": content(b""),
    "half a file": lambda folder: content((folder / "config.json").read_bytes()[:100])(folder),
    "a list": content(b"[]"),
    "null": content(b"null"),
    "a number": content(b"7"),
    "a word": content(b'"llama"'),
    "bytes that are no text": content(b"\xff\xfe\x00\x01"),
    "brackets without end": content(b"[" * 100_000),
    "an object of nothing": content(b"{}"),
    "a folder": folder_in_its_place,
    "a link to itself": loop_of_links,
    "no file": lambda folder: (folder / "config.json").unlink(),
    "a model type that nobody knows": fields(model_type="lama"),
    "a model type that is a number": fields(model_type=7),
    "no model type": fields(model_type=None),
    "code of its own": fields(model_type="mine", auto_map={"AutoConfig": "configuration_mine.MineConfig"}),
    "no heads": fields(num_attention_heads=0, head_dim=None),
    "heads in words": fields(num_attention_heads="four"),
    "a head of a negative size": fields(head_dim=-16),
    "a head of an odd size": fields(head_dim=15),
    "a head of a fraction": fields(head_dim=15.5),
    "a head beyond counting": fields(head_dim=2**60),
    "a hidden size in words": fields(hidden_size="64"),
    "layers below nothing": fields(num_hidden_layers=-1),
    "layers without end": fields(num_hidden_layers=4 * 10**12),
    "experts without end": fields(text_config={"num_local_experts": 10**9}),
    "a maximum of 0": fields(max_position_embeddings=0),
    "a maximum below 0": fields(max_position_embeddings=-64),
    "a maximum in words": fields(max_position_embeddings="64"),
    "a maximum that is no number": fields(max_position_embeddings=NAN),
    "a maximum that is a fraction": fields(max_position_embeddings=64.5),
    "a maximum beyond float32": fields(max_position_embeddings=2**40),
    "a maximum without end": fields(max_position_embeddings=INFINITE),
    "rope parameters in a list": fields(rope_parameters=[1, 2]),
    "rope parameters in a word": fields(rope_parameters="yarn"),
    "rope parameters that are a number": fields(rope_parameters=4.0),
    "a theta that is no number": rope(rope_theta=NAN),
    "a theta without end": rope(rope_theta=INFINITE),
    "a theta below 0": rope(rope_theta=-1e4),
    "a theta of 1": rope(rope_theta=1.0),
    "a theta of 0": rope(rope_theta=0),
    "a theta in words": rope(rope_theta="1e4"),
    "a theta of null": rope(rope_theta=None),
    "a theta that is true": rope(rope_theta=True),
    "a theta in a list": rope(rope_theta=[1e4]),
    "a rope type that nobody knows": rope(rope_type="yran"),
    "a rope type that is a number": rope(rope_type=5),
    "a rope type in a list": rope(rope_type=["yarn"]),
    "a share of the head of 0": rope(partial_rotary_factor=0.0),
    "a share of the head below 0": rope(partial_rotary_factor=-0.5),
    "a share of the head above 1": rope(partial_rotary_factor=2.0),
    "a share of the head in words": rope(partial_rotary_factor="half"),
    "a share of the head that is no number": rope(partial_rotary_factor=NAN),
    "yarn without a factor": rope(rope_type="yarn"),
    "yarn with a factor in words": rope(rope_type="yarn", factor="4", original_max_position_embeddings=64),
    "yarn with a factor that is no number": rope(rope_type="yarn", factor=NAN, original_max_position_embeddings=64),
    "yarn with a factor below 0": rope(rope_type="yarn", factor=-4.0, original_max_position_embeddings=64),
    "yarn with a factor of 0": rope(rope_type="yarn", factor=0.0, original_max_position_embeddings=64),
    "yarn from a length of 0": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=0),
    "yarn from a length below 0": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=-64),
    "yarn from a length in words": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings="64"),
    "llama3 without its bounds": rope(rope_type="llama3", factor=4.0, original_max_position_embeddings=64),
    "longrope without lists": rope(rope_type="longrope", factor=4.0, original_max_position_embeddings=64),
    "longrope with a word for a list": rope(
        rope_type="longrope", factor=4.0, short_factor="x", long_factor="x", original_max_position_embeddings=64
    ),
    "a record that is a word": fields(ropescale="yarn"),
    "a record of nothing": fields(ropescale={}),
}


def rescaled(folder: Path) -> None:
    ropescale.rescale_checkpoint(folder, folder.with_name("rescaled"), factor=4, existing="compose")


VERBS: dict[str, Callable[[Path], Any]] = {
    "rescale": rescaled,
    "inspect": lambda folder: inspection.inspected(str(folder)),
    "doctor": ropescale.diagnose,
}


def worded(error: RopescaleError) -> str:
    """The form of every text: what, rule, value; what to do."""
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert "; " in text
    return text


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_config_is_told_in_words(name: str, verb: str, source: Path) -> None:
    """The doctor may find the fault in the place of refusing it."""
    CONFIGS[name](source)
    before = tree(source.parent)
    try:
        found = VERBS[verb](source)
    except RopescaleError as error:
        worded(error)
    else:
        assert verb == "doctor", "the damage went unnoticed"
        assert found
    assert tree(source.parent) == before


# Places


def rescale(source: Any, destination: Any, **arguments: Any) -> None:
    ropescale.rescale_checkpoint(source, destination, **{"factor": 4, **arguments})


def full(path: Path) -> Path:
    path.mkdir()
    (path / "kept.txt").write_text("kept")
    return path


def linked(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


PLACES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "the source itself": (lambda source, tmp: rescale(source, source), "destination: must lie outside the source"),
    "the source by another name": (
        lambda source, tmp: rescale(source, source.parent / "x" / ".." / "source"),
        "destination: must lie outside the source",
    ),
    "the source by a link": (
        lambda source, tmp: rescale(source, linked(tmp / "link", source)),
        "destination: must lie outside the source",
    ),
    "within the source": (
        lambda source, tmp: rescale(source, source / "more"),
        "destination: must lie outside the source",
    ),
    "a folder with something in it": (
        lambda source, tmp: rescale(source, full(tmp / "full")),
        "destination: must be new, or an empty folder, got",
    ),
    "a file": (
        lambda source, tmp: rescale(source, Path(__file__)),
        "destination: must be new, or an empty folder, got",
    ),
    "a link to nothing": (
        lambda source, tmp: rescale(source, linked(tmp / "broken", tmp / "nothing")),
        "destination: must be new, or an empty folder, got",
    ),
    "a link to itself": (
        lambda source, tmp: rescale(source, linked(tmp / "loop", tmp / "loop")),
        "destination: must",
    ),
    "under a file": (
        lambda source, tmp: rescale(source, source.parent / "source" / ".." / "note" / "x"),
        "destination: must be a place with room that can be written",
    ),
    "a file system that takes nothing": (
        lambda source, tmp: rescale(source, "/proc/ropescale"),
        "destination: must be a place with room that can be written",
    ),
    "a name that is too long": (
        lambda source, tmp: rescale(source, tmp / ("x" * 300)),
        "destination: must be a p",
    ),
    "a name of nothing": (lambda source, tmp: rescale(source, ""), "destination: must be the path of a folder"),
    "a name with a zero": (lambda source, tmp: rescale(source, "a\0b"), "destination: must be the path of a folder"),
    "a number": (lambda source, tmp: rescale(source, 7), "destination: must be the path of a folder"),
    "none": (lambda source, tmp: rescale(source, None), "destination: must be the path of a folder"),
    "a source that is a number": (lambda source, tmp: rescale(7, tmp / "x"), "source: must be the path of a folder"),
    "a source that is not there": (
        lambda source, tmp: rescale(tmp / "nowhere", tmp / "x"),
        "must be a folder with a Transformers checkpoint",
    ),
    "a source that is a file": (
        lambda source, tmp: rescale(source / "config.json", tmp / "x"),
        "must be a folder with a Transformers checkpoint",
    ),
    "a link that is no truth value": (
        lambda source, tmp: rescale(source, tmp / "x", link="yes"),
        "link: must be True or False, got 'yes'",
    ),
    "no factor": (lambda source, tmp: rescale(source, tmp / "x", factor=None), "factor or target_length is required"),
    "a factor of nan": (lambda source, tmp: rescale(source, tmp / "x", factor=NAN), "yarn: factor must be a number"),
    "a factor below 1": (lambda source, tmp: rescale(source, tmp / "x", factor=0.5), "yarn: factor must be a number"),
    "a factor beyond float32": (
        lambda source, tmp: rescale(source, tmp / "x", factor=2.0**22),
        "factor: must give a target length of at most",
    ),
    "a target below the original length": (
        lambda source, tmp: rescale(source, tmp / "x", factor=None, target_length=32),
        "target_length: must be a whole number of tokens",
    ),
    "a method that nobody knows": (
        lambda source, tmp: rescale(source, tmp / "x", method="yran"),
        "unknown method 'yran'; did you mean 'yarn'?",
    ),
    "a knob that the method has not": (
        lambda source, tmp: rescale(source, tmp / "x", beta=3),
        "yarn: unknown knob 'beta'",
    ),
    "a method that acts in attention": (
        lambda source, tmp: rescale(source, tmp / "x", method="rerope"),
        "method: must be one of fixed frequencies, which a config states, got 'rerope'",
    ),
    "queries scaled by position": (
        lambda source, tmp: rescale(source, tmp / "x", log_n=True),
        "yarn: knobs must be the method's own, got 'log_n', an argument of ropescale.patch; give it there",
    ),
    "layers that nobody knows": (
        lambda source, tmp: rescale(source, tmp / "x", layers="some"),
        "layers: must be one of all, full, global, got 'some'",
    ),
    "an answer to scaling that nobody knows": (
        lambda source, tmp: rescale(source, tmp / "x", existing="ignore"),
        "existing: must be one of compose, error, replace, got 'ignore'",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_or_argument_that_cannot_be_is_told_in_words(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("a file")
    call, said = PLACES[name]
    before = tree(source)
    own = tmp_path / "own"
    own.mkdir()
    with warnings.catch_warnings(action="ignore"), pytest.raises(RopescaleError) as refusal:
        call(source, own)
    assert said in worded(refusal.value)
    assert tree(source) == before
    # what the case itself made, and nothing besides
    assert {path.name for path in own.iterdir()} <= {"full", "link", "broken", "loop"}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".lock"))]


# What lies beside the config

BESIDE: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "source: must hold the weights"),
    "a link to nothing": (
        lambda folder: (folder / "merges.txt").symlink_to(folder / "nothing"),
        "source: every entry must be a file or a folder of files",
    ),
    "a link to itself": (
        lambda folder: (folder / "merges.txt").symlink_to(folder / "merges.txt"),
        "source: every entry must be a file or a folder of files",
    ),
    "a link to the folder itself": (
        lambda folder: (folder / "again").symlink_to(folder),
        "source: every entry must be a file or a folder of files",
    ),
    "a pipe": (
        lambda folder: os.mkfifo(folder / "pipe"),
        "source: every entry must be a file or a folder of files",
    ),
    "a tokenizer config cut off": (
        lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max'),
        "tokenizer_config.json: must be a JSON file",
    ),
    "a generation config in a list": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "generation_config.json: must hold a JSON object",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_config_is_told_in_words(name: str, source: Path, tmp_path: Path) -> None:
    damage, said = BESIDE[name]
    damage(source)
    before = {path.name for path in source.iterdir()}
    with pytest.raises(RopescaleError) as refusal:
        rescale(source, tmp_path / "rescaled")
    assert said in worded(refusal.value)
    assert {path.name for path in source.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("length", ["128", [128], {}])
def test_a_limit_of_a_tokenizer_that_is_no_number_is_told_in_words(length: Any, source: Path) -> None:
    """The tokenizer's own library finds it out with the first text."""
    tokenizer = Path(shutil.copytree(resolve("tiny"), source.with_name("tokenizer")))
    told = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": length}))
    with pytest.raises(RopescaleError, match="must hold a tokenizer, got TypeError"):
        read_tokenizer(tokenizer)


@pytest.mark.parametrize("verb", ["inspect", "doctor", "plot", "rescale"])
def test_the_command_line_says_it_in_one_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{")
    more = [str(tmp_path / "out"), "--factor", "2"] if verb == "rescale" else []
    assert cli.main([verb, str(tmp_path), *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ropescale: ")
    assert len(said.err.splitlines()) == 1


# Values of every kind in every entry that is about positions

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**20),
    st.floats(),
    st.sampled_from(["", "4", "yarn", "su", "mrope", "longrope", "llama3", "linear", "default", "ropescale"]),
    st.lists(st.floats(0.5, 4.0), max_size=8),
    st.dictionaries(st.sampled_from(["factor", "rope_type", "rope_theta", "full_attention"]), st.floats(), max_size=2),
)
BLOCKS = st.dictionaries(
    st.sampled_from(
        [
            "rope_type",
            "type",
            "rope_theta",
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "attn_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "short_factor",
            "long_factor",
            "low_freq_factor",
            "high_freq_factor",
            "truncate",
            "partial_rotary_factor",
            "mrope_section",
            "full_attention",
            "sliding_attention",
        ]
    ),
    VALUES,
    max_size=6,
)
ENTRIES = st.dictionaries(
    st.sampled_from(
        [
            "max_position_embeddings",
            "original_max_position_embeddings",
            "rope_theta",
            "partial_rotary_factor",
            "rotary_pct",
            "head_dim",
            "hidden_size",
            "num_attention_heads",
            "layer_types",
            "sliding_window",
            "model_type",
            "text_config",
            "ropescale",
            "rope_ratio",
            "rope_condense_ratio",
            "dual_chunk_attention_config",
            "attn_config",
            "alibi",
            "model_max_length",
            "use_mem_rope",
        ]
    ),
    VALUES,
    max_size=3,
)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gemma4_text", "deepseek_v3", "phi3", "dbrx", "falcon"])
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entries=ENTRIES, block=BLOCKS, key=st.sampled_from(["rope_parameters", "rope_scaling", None]))
@pytest.mark.filterwarnings("ignore")
def test_whatever_a_config_says_the_answer_is_in_words(
    name: str, entries: dict[str, Any], block: dict[str, Any], key: str | None, tmp_path: Path
) -> None:
    values = {**config_of(name).to_dict(), **entries, **({key: block} if key else {})}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for verb in ("doctor", "inspect"):
        try:
            found = VERBS[verb](tmp_path)
        except RopescaleError as error:
            worded(error)
            continue
        said = [str(one) for one in found] if verb == "doctor" else [part.facts() for part in found[1]]
        assert not any("\n" in str(one) for one in said)
