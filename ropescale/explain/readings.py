"""What methods make of a model, in numbers: gathered once for the page and for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ropescale.checks import require_whole
from ropescale.explain import theory
from ropescale.geometry import LONGEST, Geometry
from ropescale.methods import Method
from ropescale.methods.late import LateMethod
from ropescale.pages.elements import number
from ropescale.temperature import Temperature, with_temperature

DISTANCES = 2**15  # looked at in a context, evenly spread where it is longer
SEARCHED = 2**18  # tokens within which a negative distance is looked for, or the context if that is longer
# what `effects` gives
EFFECTS = ("first B(m) < 0", "keys visible", "farthest seen", "slowed by up to", "rotated part times", "bias")
PRETRAINED = "as pretrained"


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What one method makes of the model, for the table and every picture."""

    name: str  # with the layers that it acts in, where these are not all, and with its temperature
    series: int
    view: theory.View
    first_negative: int | None  # tokens
    searched: int  # tokens within which it was looked for
    length: int  # tokens of the context


def readings(
    geometry: Geometry,
    methods: Sequence[Method],
    *,
    length: int,
    heads: int = 1,
    temperatures: Mapping[str, Temperature] | None = None,
) -> list[Reading]:
    """The model as pretrained, then under each method, seen from the last position of a context of `length` tokens.

    `temperatures` are what queries are multiplied by besides, by the name of the method that they go with.

    Raises:
        InvalidArgumentError: the length is no number of tokens, or a knob does not fit this geometry.
    """
    require_whole(
        "length:",
        length,
        2,
        LONGEST,
        rule=f"a whole number of tokens from 2 to {LONGEST}",
        remedy="give the context length of interest",
    )
    distances = torch.linspace(0, length - 1, min(length, DISTANCES), dtype=torch.float64).round().long()
    searched = max(SEARCHED, length)
    found = []
    for series, method in enumerate([None, *methods]):
        temperature = None if method is None else (temperatures or {}).get(method.name)
        view = theory.view(method, geometry, length=length, distances=distances, heads=heads, temperature=temperature)
        found.append(
            Reading(
                name=PRETRAINED if method is None else _named(method, geometry, temperature),
                series=series,
                view=view,
                first_negative=theory.first_negative(view.inv_freq, searched),
                searched=searched,
                length=length,
            )
        )
    return found


def _named(method: Method, geometry: Geometry, temperature: Temperature | None) -> str:
    """A method with its temperature; of one that acts in some layers how many these are, and what the others do."""
    name = method.name + with_temperature(temperature)
    left = method.left(geometry) if isinstance(method, LateMethod) else frozenset()
    if not left:
        return name
    assert isinstance(method, LateMethod)
    window = method.beside().window
    others = "" if window is None else f", a window of {window:,} in the others"
    return f"{name} in {geometry.layers - len(left)} of {geometry.layers} layers{others}"


def facts(geometry: Geometry, base: Reading) -> dict[str, tuple[str, str]]:
    """The rotary facts of the model: name -> value, and what it says."""
    wavelength = 2 * math.pi / theory.frequencies(geometry)
    slow, critical = theory.pairs_without_a_turn(geometry), theory.critical_pair(geometry)
    return {
        "theta": (number(geometry.theta), "the base of the series of frequencies"),
        "pairs": (number(geometry.pairs), f"turning {geometry.rotary_dim} of a head's {geometry.head_dim} elements"),
        "original length": (number(geometry.original_length), "tokens of pretraining"),
        "fastest wavelength": (number(float(wavelength.min())), "tokens per turn"),
        "slowest wavelength": (
            number(float(wavelength.max())),
            f"tokens per turn, {number(float(wavelength.max()) / geometry.original_length)} original lengths",
        ),
        "pairs without a full turn": (
            f"{len(slow)} of {geometry.pairs}",
            "within the original length; they meet new angles beyond it",
        ),
        "critical pair": (
            number(critical) if slow else "none",
            f"the first of them, critical dimension {2 * critical}" if slow else "every pair completes a turn",
        ),
        "first negative B(m)": (
            negative_text(base),
            "tokens; from there on a like key may score below an unlike one",
        ),
    }


def negative_text(reading: Reading) -> str:
    """The first negative distance, or how far there is none."""
    return f"none to {reading.searched:,}" if reading.first_negative is None else f"{reading.first_negative:,}"


def effects(reading: Reading, base: Reading) -> list[str]:
    """What a method does to the last query, beside the model as pretrained: the columns of `EFFECTS`."""
    view = reading.view
    return [
        negative_text(reading),
        f"{100 * float(view.visible.double().mean()):.3g} %",
        number(float(view.seen[view.visible].max())),
        number(float((base.view.inv_freq / view.inv_freq).max())),
        number(view.attention_factor**2 * view.query_scale),
        "added" if view.biased else "none",
    ]
