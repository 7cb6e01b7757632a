"""Entries of published configs that Transformers does not read: what each means, and what means the same to it.

Whether an entry is read is told by what comes of the config: an entry whose value is in force is left in peace, by
whatever way it got there.
"""

import math
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from ropescale.checks import as_float
from ropescale.doctor.built import rotated_pairs
from ropescale.doctor.finding import Finding
from ropescale.errors import shortened
from ropescale.families.parts import parts_of
from ropescale.families.today import head_dim_of, rope_type_of
from ropescale.records import Record

# What states theta, in the words of GPT-NeoX, Gemma 3, ModernBERT, DBRX, llama.cpp and others
THETAS = (
    "attn_config.rope_theta",
    "global_rope_theta",
    "local_rope_theta",
    "rope_base",
    "rope_freq_base",
    "rope_local_base_freq",
    "rotary_base",
    "rotary_emb_base",
)
# What states the longest text
LENGTHS = (
    "max_context_length",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "max_target_positions",
    "model_max_length",
    "n_ctx",
    "n_positions",
    "seq_len",
    "seq_length",
)
# What states which share of a head rotates
SHARES = ("partial_rotary_factor", "rope_pct", "rope_percent", "rotary_pct", "rotary_percentage")
# What states a factor by which every pair is slowed, and whether as its inverse
FACTORS = {"rope_condense_ratio": False, "rope_freq_scale": True}


def unread(
    text: dict[str, Any], config: PreTrainedConfig, pretrained: PreTrainedConfig, record: Record | None
) -> Iterator[Finding]:
    """The entries of a raw text config that are not in force.

    `config` is what Transformers makes of it, `pretrained` the same before the patch that `record` tells of.
    """
    yield from _thetas(text, pretrained)
    yield from _lengths(text, config)
    yield from _factors(text, config, record)
    yield from _acting(text, config, record)


def entry(text: dict[str, Any], path: str) -> Any:
    """What stands at a dotted path."""
    value: Any = text
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _ignored(where: str, means: str, value: Any, today: str, remedy: str) -> Finding:
    return Finding(
        check="ignored-key",
        where=where,
        rule=f"must be an entry that Transformers reads, got {shortened(value)}, which means {means} and which it "
        f"ignores: {today}",
        remedy=remedy,
    )


def _thetas(text: dict[str, Any], pretrained: PreTrainedConfig) -> Iterator[Finding]:
    thetas = [as_float(part.config.rope_parameters.get("rope_theta")) for part in parts_of(pretrained)]
    shown = " and ".join(f"{theta:g}" for theta in dict.fromkeys(thetas))
    for name in THETAS:
        value = as_float(entry(text, name))
        if value > 1 and value not in thetas:
            yield _ignored(
                name,
                "the theta of the rotation",
                entry(text, name),
                f"it rotates with {shown}",
                f"write rope_theta {value:g} beside the rope_type, or at the top level where no rope_type is stated"
                # which DBRX cannot be built without
                + ("" if "." in name else f", and remove {name}"),
            )
    ratio = as_float(text.get("rope_ratio"))
    # ChatGLM's own code multiplies its theta of 10,000
    if 0 < ratio < math.inf and ratio != 1 and not any(math.isclose(theta, 1e4 * ratio) for theta in thetas):
        yield _ignored(
            "rope_ratio",
            "a multiple of theta 10,000 (ChatGLM)",
            text["rope_ratio"],
            f"it rotates with {shown}",
            f"write rope_theta {1e4 * ratio:g} and remove it",
        )


def _lengths(text: dict[str, Any], config: PreTrainedConfig) -> Iterator[Finding]:
    maximum = getattr(config, "max_position_embeddings", None)
    for name in LENGTHS:
        value = as_float(text.get(name))
        if isinstance(maximum, int) and maximum < value < math.inf:
            yield _ignored(
                name,
                f"texts of {value:,.0f} tokens",
                text[name],
                f"max_position_embeddings ({maximum}) counts",
                f"write max_position_embeddings {value:.0f} if the model was made for that length, else remove {name}",
            )


def _factors(text: dict[str, Any], config: PreTrainedConfig, record: Record | None) -> Iterator[Finding]:
    ropes = [part.config.rope_parameters for part in parts_of(config)]
    factors = [as_float(rope.get("factor")) for rope in ropes if rope.get("rope_type") == "linear"]
    if record is not None and record.method == "linear":
        factors.append(as_float(record.knobs.get("factor")))
    for name, inverse in FACTORS.items():
        value = as_float(text.get(name))
        factor = 1 / value if inverse and value > 0 else value
        if not 1 < factor < math.inf or any(math.isclose(factor, other) for other in factors):
            continue
        yield _ignored(
            name,
            f"every position divided by {factor:g} (linear scaling)",
            text[name],
            "nothing is divided" if not factors else f"it divides by {factors[0]:g}",
            f"write rope_type 'linear' with factor {factor:g} beside the rope_theta, and remove it",
        )


def unread_shares(text: dict[str, Any], config: PreTrainedConfig) -> Iterator[Finding]:
    """The entries that state another share of a head than the layers of a family turn.

    Raises:
        UnsupportedModelError: Transformers builds no rotation from this config.
    """
    parts = [part for part in parts_of(config) if rope_type_of(part.config) != "proportional"]
    if not parts:
        return
    stated: dict[str, float] = {name: as_float(text.get(name)) for name in SHARES}
    for block in ("rope_parameters", "rope_scaling"):
        stated[f"{block}.partial_rotary_factor"] = as_float(entry(text, f"{block}.partial_rotary_factor"))
    heads = {part.label: (head_dim_of(part.config), rotated_pairs(part)) for part in parts}
    if any(pairs is None for _, pairs in heads.values()):
        return
    stated["rotary_dim"] = as_float(text.get("rotary_dim")) / heads[parts[0].label][0]
    for name, share in stated.items():
        if not 0 < share <= 1 or any(math.ceil(int(size * share) / 2) == pairs for size, pairs in heads.values()):
            continue
        size, pairs = heads[parts[0].label]
        reads = not name.endswith("partial_rotary_factor")
        yield _ignored(
            name,
            f"that {int(size * share)} of a head's {size} elements rotate",
            entry(text, name),
            f"{2 * (pairs or 0)} rotate",
            f"write partial_rotary_factor {share:g} if {config.model_type} reads it, else remove it"
            if reads
            else f"remove it: layers of {config.model_type} turn as many elements whatever it says, so weights that "
            f"were trained otherwise need another family",
        )


def _acting(text: dict[str, Any], config: PreTrainedConfig, record: Record | None) -> Iterator[Finding]:
    """What changes attention itself, beside its rotation."""
    chunks = text.get("dual_chunk_attention_config")
    original = as_float(entry(text, "dual_chunk_attention_config.original_max_position_embeddings"))
    maximum = as_float(getattr(config, "max_position_embeddings", None))
    done = "" if record is None else record.method
    if isinstance(chunks, dict) and chunks and done != "dual_chunk" and not maximum <= original:
        reach = f"{original:.0f}" if original > 0 else "the length before it"
        yield _ignored(
            "dual_chunk_attention_config",
            f"attention by chunks beyond {reach} tokens",
            chunks,
            f"it rotates every one of the {maximum:.0f} positions plainly",
            f"write max_position_embeddings {reach}, and patch with method 'dual_chunk' for longer texts",
        )
    types = {rope_type_of(part.config) for part in parts_of(config)}
    if text.get("use_dynamic_ntk") is True and done != "dynamic_ntk" and "dynamic" not in types:
        yield _ignored(
            "use_dynamic_ntk",
            "a theta that grows with the text (Qwen)",
            True,
            "theta stays as it is",
            "write false, and patch with method 'dynamic_ntk'",
        )
    temperature = record.temperature if record else None
    if text.get("use_logn_attn") is True and (temperature is None or temperature.rule != "log_n"):
        yield _ignored(
            "use_logn_attn",
            "queries that grow with the logarithm of their position (Qwen)",
            True,
            "queries stay as they are",
            "write false, and patch with log_n=True",
        )
