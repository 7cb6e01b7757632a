"""Damaged configs and impossible values: a worded error, and nothing changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import config_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wrong_files import INFINITE, NAN, Damage, tree, worded

import ropescale
from ropescale.errors import RopescaleError
from ropescale.explain import inspection


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
