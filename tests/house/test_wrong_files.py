"""Damaged configs and impossible values: a worded error, and nothing changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import config_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wrong_files import CONFIGS, tree, worded

import ropescale
from ropescale.errors import RopescaleError
from ropescale.explain import inspection


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
