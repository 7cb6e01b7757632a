"""The short list: which methods are worth a race on a model, with what knobs, and why every other one is left out.

A method is tried where it needs nothing that nobody knows beforehand: no training, no knob without a default. Which of
those are raced is `RACED`; what the model or the engine that is to serve it refuses leaves the list with that refusal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ropescale.errors import RopescaleError
from ropescale.export.writing import held
from ropescale.geometry import Geometry
from ropescale.methods import FixedMethod, get_method, list_methods
from ropescale.methods.late import LateMethod
from ropescale.patching import put_in, unpatch
from ropescale.request import Request, split_knobs

# One of each kind that held in docs/results: three of fixed frequencies, one by length, two that act in attention
RACED = ("yarn", "by_parts", "ntk", "dynamic_yarn", "dynamic_self_extend", "rerope")
# Which part of the original length the window of a late method is, whatever its default: with log-n a quarter finds
# more at eight times the length, and a half reads text better (docs/late-rotation.md), so one of each is raced
WINDOWS = {"rerope": 2}
WINDOW = 4  # of every other one


@dataclass(frozen=True, kw_only=True)
class Shortlist:
    """The methods of a race, and those that do not run."""

    methods: tuple[str, ...]
    knobs: Mapping[str, Mapping[str, Any]]  # method -> what it is given besides a factor, log_n among it
    left_out: Mapping[str, str]  # method -> why it does not run


def shortlist(
    model: PreTrainedModel,
    asked: Request,
    geometry: Geometry,
    *,
    named: Sequence[str] = (),
    source: str,
    engine: str | None = None,
) -> Shortlist:
    """What is raced on a loaded model, which is left as it is.

    Arguments:
        model: unpatched.
        asked: the factor and from what a method starts; its method and knobs are not read.
        geometry: of the model.
        named: methods to race in the place of `RACED`.
        source: the model as the caller named it.
        engine: which is to serve what is recommended.
    """
    methods: list[str] = []
    knobs: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    raced = tuple(dict.fromkeys(named)) or RACED
    for name in dict.fromkeys((*raced, *list_methods())):
        why = unfit(name, geometry, asked.factor or 1.0)
        if not why and name not in raced:
            why = "not on the short list; name it to have it raced"
        given = {} if why else knobs_for(name, geometry, asked.factor or 1.0)
        why = why or _refusal(model, asked, name, given, source=source, engine=engine)
        if why:
            left_out[name] = why
            continue
        methods.append(name)
        if given:
            knobs[name] = given
    return Shortlist(methods=tuple(methods), knobs=knobs, left_out=left_out)


def unfit(name: str, geometry: Geometry, factor: float) -> str:
    """Why a method cannot extend this geometry as it is; empty where it may."""
    kind = get_method(name)
    nothing = dataclasses.MISSING
    needed = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is item.default_factory is nothing and item.name != "factor"
    ]
    if needed:
        return f"needs {' and '.join(needed)}, which nobody knows beforehand"
    if issubclass(kind, LateMethod):
        return _unfit_late(kind, geometry, factor)
    assert issubclass(kind, FixedMethod)
    broken = kind(factor=factor).laws_broken()
    return broken.get("stretch", "")


def _unfit_late(kind: type[LateMethod], geometry: Geometry, factor: float) -> str:
    if kind.recalibration:
        return "of no use before a training that recalibrates the model"
    method, target = kind(), math.ceil(factor * geometry.original_length)
    if method.target_length(geometry) <= geometry.original_length:
        return "sharpens what lies within the original length, and extends nothing"
    keys = torch.arange(target)
    _, visible = method.distance(geometry, torch.tensor([target - 1]), keys)
    read = int(visible.sum())
    return f"its last token reads {read:,} of {target:,} tokens" if read < target else ""


def knobs_for(name: str, geometry: Geometry, factor: float) -> dict[str, Any]:
    """What a method is raced with besides a factor: of a late one with a window that window, with log-n beside it."""
    kind = get_method(name)
    fields = {item.name for item in dataclasses.fields(kind)}
    if not issubclass(kind, LateMethod) or "window" not in fields:
        return {}
    window = max(1, geometry.original_length // WINDOWS.get(name, WINDOW))
    found: dict[str, Any] = {"window": window}
    if "group_size" in fields:  # a power of two, which divides windows that are powers of two
        needed = (factor * geometry.original_length - window) / (geometry.original_length - window)
        found["group_size"] = 2 ** math.ceil(math.log2(max(needed, 2)))
    return {**found, "log_n": True}


def _refusal(
    model: PreTrainedModel, asked: Request, name: str, knobs: Mapping[str, Any], *, source: str, engine: str | None
) -> str:
    """Why the model or the engine does not take a method; empty where both do."""
    own, beside = split_knobs(knobs)
    request = dataclasses.replace(asked, method=name, knobs=own, **beside)
    try:
        if engine is not None:
            held(source, request, to=engine)
        put_in(model, request)
    except RopescaleError as error:
        return str(error)
    unpatch(model)
    return ""
