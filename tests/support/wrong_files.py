"""Configs that no verb can read past, what a wrong file or place leaves behind, and how it is told."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropescale.errors import RopescaleError

MOST = 2**26  # bytes that are read of a file, to know it again
NAN, INFINITE = float("nan"), float("inf")
Damage = Callable[[Path], Any]


def tree(folder: Path) -> dict[str, str]:
    """Every entry of a folder, with a hash of what is in it."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else str(path.stat().st_size)
        if path.is_file() and path.stat().st_size > MOST
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def worded(error: RopescaleError) -> str:
    """The form of every text: what, rule, value; what to do."""
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert "; " in text
    return text


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
