"""The doors of Python with one argument that is wrong: of another kind, beyond its bounds, a name nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from attacks import TINY
from transformers import PreTrainedModel

import ropescale
from ropescale.contents import read_tokenizer
from ropescale.export import export, verify
from ropescale.frameworks import flags
from ropescale.search import search

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400
PATHS = (7, None, "", b"x", "a\0b", "nowhere/at/all", ["x"], "a" * 300, 2.5, {})
PLACES = (7, None, "", b"x", "a\0b", ["x"], {})
NUMBERS = ("4", "x", NAN, INFINITE, -INFINITE, -1, True, [4], HUGE, {}, 1j)
WHOLE = ("4", "x", NAN, INFINITE, -1, 0, True, [4], 1.5, {}, 1j)
CHOICES = ("nowhere", 7, "", ["x"], {}, NAN)
FLAGS = ("yes", 1, [], {}, NAN)
NAMES = ("nowhere", 7, "", ["x"], {}, NAN)
PATCHED = {
    "method": NAMES,
    "factor": NUMBERS,
    "target_length": WHOLE,
    "original_length": WHOLE,
    "existing": CHOICES,
    "layers": CHOICES,
    "beta_fast": ("x", NAN, INFINITE, -1, True, [], {}, HUGE),
    "nowhere": (3,),
}
OUT = object()  # in the place of it stands a path at which nothing is


@dataclass(frozen=True)
class Door:
    """A function, arguments that it takes, and bad values of each of them."""

    call: Callable[..., object]
    right: dict[str, Any]
    wrong: dict[str, tuple[Any, ...]]


@cache
def model() -> PreTrainedModel:
    """One for every call: what is refused leaves it as it was."""
    return ropescale.load(TINY)


def on_model(door: Callable[..., object]) -> Callable[..., object]:
    return lambda **given: door(model(), **given)


DOORS = {
    "load": Door(lambda path: ropescale.load(path), {}, {"path": PATHS}),
    "diagnose": Door(lambda path: ropescale.diagnose(path), {}, {"path": PATHS}),
    "get_method": Door(ropescale.get_method, {}, {"name": (*NAMES, None)}),
    "Geometry": Door(
        ropescale.Geometry,
        {"rotary_dim": 32, "theta": 10000.0, "original_length": 128},
        {"rotary_dim": WHOLE, "theta": NUMBERS, "original_length": WHOLE},
    ),
    "read_geometry": Door(
        lambda **given: ropescale.read_geometry(model().config, **given),
        {},
        {"original_length": WHOLE, "existing": CHOICES},
    ),
    "patch": Door(
        on_model(ropescale.patch),
        {"method": "yarn", "factor": 2},
        {**PATCHED, "log_n": FLAGS, "temperature": ("nowhere", 7, "", ["x"], {}, NAN, "log_n:x", "log_n:-1")},
    ),
    "rescale_checkpoint": Door(
        ropescale.rescale_checkpoint,
        {"source": TINY, "destination": OUT, "method": "yarn", "factor": 2},
        {"source": PATHS, "destination": PLACES, **PATCHED, "link": FLAGS},
    ),
    "load_adapter": Door(lambda path: ropescale.load_adapter(model(), path), {}, {"path": PATHS}),
    "export": Door(
        export,
        {"model": TINY, "destination": OUT, "to": "vllm", "method": "yarn", "factor": 2},
        {"model": PATHS, "destination": PLACES, "to": (*NAMES, None), **PATCHED},
    ),
    "verify": Door(
        verify,
        {"path": TINY, "engine": "transformers"},
        {
            "path": PATHS,
            "engine": (*NAMES, None),
            "steps": WHOLE,
            "tolerance": NUMBERS,
            "lengths": ((0,), (-1,), ("x",), (NAN,), (1.5,), (True,), 7, "128"),
        },
    ),
    "evaluate": Door(
        ropescale.evaluate,
        {"model": str(TINY), "methods": ["yarn"], "tasks": ["passkey"], "lengths": [128], "output": OUT},
        {
            "model": PATHS,
            "methods": (["nowhere"], [7], [""], [None], 7, "yarn"),
            "lengths": ([0], [-1], ["x"], [NAN], [1.5], [HUGE], 7, "128"),
            "factors": ([0], [-1], ["x"], [NAN], [INFINITE], [HUGE], 7, "2"),
            "samples": WHOLE,
            "windows": WHOLE,
            "depths": ([-1], [2], ["x"], [NAN], 7, "0.5"),
            "tasks": ([""], [7], [None], 7, "passkey"),
            "existing": CHOICES,
            "layers": CHOICES,
            "knobs": (7, "x", {"yarn": 3}, {"yarn": {"nowhere": 3}}, {"nowhere": {}}),
            "adapters": (["nowhere/at/all"], [7], 7),
        },
    ),
    "train": Door(
        ropescale.train,
        {"recipe": "lora", "model": str(TINY), "factor": 2, "data": "passkey", "max_documents": 4, "output": OUT},
        {
            "recipe": ("nowhere", 7, None, "", b"x", ["x"], {}),
            "model": [one for one in PATHS if one is not None],  # which leaves the model of the recipe
            "factor": ("x", NAN, INFINITE, -1, [4], {}),
            "max_steps": ("x", NAN, -1, 0, [4, 5], 1.5),
            "learning_rate": ("x", NAN, -1, [4, 5], {}),
            "method": ("nowhere", 7, ["x", "y"], {}),
            "data": ("nowhere/at/all", 7, {}),
            "nowhere": (3,),
        },
    ),
    "search": Door(
        lambda **given: search(model(), read_tokenizer(TINY), **given),
        {"factor": 2},
        {
            "factor": NUMBERS,
            "candidates": ("x", NAN, -1, 0, True, [4], 1.5),
            "windows": WHOLE,
            "space": CHOICES,
            "objective": CHOICES,
            "budget": ("x", NAN, -1, 0, [4], INFINITE),
            "seed": ("x", NAN, 1.5, [4]),
            "existing": CHOICES,
            "layers": CHOICES,
            "weights": ({"nowhere": 1}, {"needle": -1}, {"needle": "x"}, {"needle": NAN}, 7, "x"),
        },
    ),
    "flags": Door(
        flags,
        {"model": TINY, "framework": "axolotl", "method": "yarn", "factor": 2},
        {"model": PATHS, "framework": (*NAMES, None), **PATCHED},
    ),
}


def calls(door: str) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What is wrong with each bad call of a door, and the call, given a path at which nothing is."""
    known = DOORS[door]

    def called(given: dict[str, Any], place: Path) -> object:
        return known.call(**{name: place if value is OUT else value for name, value in given.items()})

    for name, values in known.wrong.items():
        for value in values:
            given = {**known.right, name: value}
            yield f"{door}({name}={repr(value)[:40]})", lambda place, given=given: called(given, place)
