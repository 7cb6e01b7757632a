"""What is raced, and why the rest is not: held against definitions of distances, and against exports as written."""

from __future__ import annotations

import pytest
import torch

import ropescale
from ropescale.errors import ExportError
from ropescale.export import ENGINES, export
from ropescale.families.reading import read_geometry
from ropescale.methods import FixedMethod, get_method, list_methods
from ropescale.recommend.shortlist import RACED, Shortlist, knobs_for, shortlist
from ropescale.request import Request


@pytest.fixture(scope="module")
def model():
    return ropescale.load("tiny").eval()


def listed(model, *, factor: float = 4.0, named=(), engine=None) -> Shortlist:
    geometry = read_geometry(model.config)
    return shortlist(model, Request(factor=factor), geometry, named=named, source="tiny", engine=engine)


def test_every_method_is_raced_or_left_out_with_a_reason(model):
    found = listed(model)
    assert found.methods == RACED
    assert {*found.methods, *found.left_out} == {*list_methods()}
    assert all(found.left_out.values())
    assert not {*found.methods} & {*found.left_out}
    assert ropescale.record(model) is None


def test_what_is_named_is_raced_in_its_place(model):
    found = listed(model, named=("linear", "leaky_rerope"))
    assert found.methods == ("linear", "leaky_rerope")
    assert found.knobs == {"leaky_rerope": {"window": 32, "log_n": True}}
    assert found.left_out["yarn"] == "not on the short list; name it to have it raced"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("abf", "needs theta, which nobody knows beforehand"),
        ("t5", "of no use before a training that recalibrates the model"),
        ("string", "sharpens what lies within the original length, and extends nothing"),
        ("lm_infinite", "its last token reads 138 of 512 tokens"),  # the nearest 128, and 10 sinks
        ("streaming", "its last token reads 128 of 512 tokens"),  # 124 and 4
        ("truncated", "pairs below the cut-off lose their position altogether"),
    ],
)
def test_what_cannot_extend_is_left_out_although_it_is_named(model, name, why):
    assert listed(model, named=(name,)).left_out[name] == why


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engine_leaves_what_an_export_to_it_writes(model, engine, tmp_path):
    raced = ("yarn", "by_parts", "ntk", "linear", "dynamic_yarn", "rerope")
    found = listed(model, named=raced, engine=engine)
    refused = {}
    for name in raced:
        try:
            export("tiny", tmp_path / f"{name}{ENGINES[engine].suffix}", to=engine, method=name, factor=4)
        except ExportError as error:
            refused[name] = str(error)
    assert {name: why for name, why in found.left_out.items() if name in raced} == refused
    assert found.methods == tuple(name for name in raced if name not in refused)
    assert 0 < len(refused) < len(raced)


@pytest.mark.parametrize("factor", [1.5, 2, 4, 8, 32])
def test_groups_keep_every_distance_within_what_was_pretrained(model, factor):
    geometry = read_geometry(model.config)
    target = int(factor * geometry.original_length)
    given = knobs_for("self_extend", geometry, factor)
    method = get_method("self_extend")(window=given["window"], group_size=given["group_size"])
    query, key = torch.tensor([[target - 1]]), torch.arange(target)[None]
    largest = method.distance(geometry, query, key)[0].max()
    assert geometry.original_length / 3 < largest < geometry.original_length + given["group_size"]


def test_fixed_frequencies_take_no_window(model):
    geometry = read_geometry(model.config)
    fixed = [name for name in list_methods() if issubclass(get_method(name), FixedMethod)]
    assert [knobs_for(name, geometry, 4.0) for name in fixed] == [{}] * len(fixed)


def test_a_model_that_refuses_a_method_leaves_it_out(model, monkeypatch):
    from ropescale.errors import UnsupportedModelError

    def refusing(model, request):
        if request.name == "rerope":
            raise UnsupportedModelError("llama: its attention does not rotate late")
        return ropescale.patching.put_in(model, request)

    monkeypatch.setattr("ropescale.recommend.shortlist.put_in", refusing)
    found = listed(model)
    assert found.left_out["rerope"] == "llama: its attention does not rotate late"
    assert found.methods == tuple(name for name in RACED if name != "rerope")
    assert ropescale.record(model) is None
