"""What `ropescale explain` says: its mathematics against references, its page, and the verb."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of
from pages import Page
from torch import Tensor

from ropescale import Geometry, cli, get_method, list_methods
from ropescale.errors import InvalidArgumentError
from ropescale.explain import page, readings, theory
from ropescale.explain.subject import METHODS, chosen_methods, facts_by_layers
from ropescale.methods.late import LateMethod, Sizes
from ropescale.pages.chart import Axis, Chart, Curve, Mark, drawn
from ropescale.pages.elements import number

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "reference" / "position_families.json").read_text()
)
THEORY = REFERENCE["theory"]
HOSTILE = "</title></style><script>alert('x')</script>\"'&<img src=http://example.org onerror=alert(1)>\x00\u202e"
TINY = Geometry(rotary_dim=32, theta=1e4, original_length=128, layers=4)
# what a person can ask for by name alone
PLAIN = [
    name
    for name in list_methods()
    if all(
        field.name == "factor" or not field.default is field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(get_method(name))
    )
]


def geometry(d: int, base: float, length: int = 4096) -> Geometry:
    return Geometry(rotary_dim=d, theta=base, original_length=length)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_plain_methods_are_all_but_those_with_a_knob_to_give():
    assert set(list_methods()) - set(PLAIN) == {"abf", "learned", "longrope", "proportional"}


@pytest.mark.parametrize("case", THEORY["B"], ids=lambda case: str(case["m"]))
def test_similarity_is_the_reference(case):
    found = theory.similarity(geometry(case["d"], case["base"]), torch.tensor([case["m"]]))
    assert float(found) == pytest.approx(case["B"], abs=1e-10)


def test_similarity_is_the_same_in_parts_and_one_by_one():
    distances = torch.tensor([0, 5, 4095, 4096, 4097, 9000])
    all_of_them = theory.similarity(geometry(64, 1e4), torch.arange(9001))
    assert torch.equal(theory.similarity(geometry(64, 1e4), distances), all_of_them[distances])


@pytest.mark.parametrize("case", THEORY["context_length_bound"], ids=lambda case: f"{case['d']}-{case['base']:g}")
def test_the_first_negative_distance_comes_after_the_longest_valid_length(case):
    assert theory.first_negative(geometry(case["d"], case["base"]), 40_000) == case["L_bound"] + 1


@pytest.mark.parametrize(
    ("base", "distance"), REFERENCE["base_bound_reproduction"]["first_violation_d128"].items(), ids=str
)
def test_the_first_negative_distance_of_the_bases_that_were_reproduced(base, distance):
    """Among them larger bases that fail earlier: a lower bound on the base would miss these."""
    assert theory.first_negative(geometry(128, float(base)), distance) == distance
    assert theory.first_negative(geometry(128, float(base)), distance - 1) is None


@pytest.mark.parametrize(
    "case", THEORY["critical_dimension"], ids=lambda case: f"{case['d']}-{case['base']:g}-{case['L']}"
)
def test_the_critical_pair_is_the_reference(case):
    model = geometry(case["d"], case["base"], case["L"])
    assert theory.critical_pair(model) == case["pair"] == case["d_crit"] // 2
    assert theory.pairs_without_a_turn(model) == list(range(case["pair"], model.pairs))


def test_a_model_whose_pairs_all_turn_has_no_critical_pair():
    model = geometry(8, 10.0, 4096)
    assert theory.pairs_without_a_turn(model) == []
    assert theory.critical_pair(model) == model.pairs


def test_a_pair_that_turns_exactly_once_completes_its_turn():
    model = Geometry(rotary_dim=4, theta=1e4, original_length=128, inv_freq=(1.0, 2 * math.pi / 128))
    slower = dataclasses.replace(model, inv_freq=(1.0, 2 * math.pi / 128.001))
    assert theory.pairs_without_a_turn(model) == []
    assert theory.pairs_without_a_turn(slower) == [1]


def test_the_bound_of_the_decay_by_hand():
    inv_freq = torch.tensor([math.pi, math.pi / 2])
    # partial sums at distance 1: e^(i pi) = -1, then -1 + i
    expected = [(1 + 2) / 2, (1 + math.sqrt(2)) / 2]
    assert theory.decay_bound(inv_freq.double(), torch.tensor([0, 1])).tolist() == pytest.approx(expected, abs=1e-7)


def test_the_bound_of_the_decay_bounds_scores():
    """|score| <= pairs * bound * the largest step between the pairs' complex products (RoFormer, equation 37)."""
    model, distances = geometry(64, 1e4), torch.arange(2000)
    q, k = random(2, 64)
    products = torch.complex(q[:32], q[32:]) * torch.complex(k[:32], -k[32:])
    step = torch.cat((products, torch.zeros(1))).diff().abs().max()
    score = theory.modulation(model, q, k, distances, torch.zeros_like(distances)).score
    assert bool((score.abs() <= step * theory.decay_bound(model, distances) * model.pairs).all())
    assert not bool((score.abs() <= 0.02 * step * theory.decay_bound(model, distances) * model.pairs).all())


def test_a_rotary_score_is_its_two_parts():
    model, n = geometry(128, 5e5), 3000
    q, k = random(2, 128)
    here = torch.full((n,), 8000)
    found = theory.modulation(model, q, k, here, here - torch.arange(n))
    assert found.error < 1e-10  # of terms of about 1, at positions where float64 is exact to 1e-12
    assert float(found.sine.abs().max()) > 1  # neither part is idle
    assert float((found.cosine - (q * k).sum()).abs().max()) > 1


def test_a_rotary_score_depends_on_the_distance_alone():
    q, k = random(2, 32)
    near = theory.modulation(TINY, q, k, torch.tensor([7]), torch.tensor([3]))
    far = theory.modulation(TINY, q, k, torch.tensor([1007]), torch.tensor([1003]))
    assert float(near.score) == pytest.approx(float(far.score), abs=1e-11)


def test_a_turn_is_that_of_the_reference():
    case = REFERENCE["layout_check"]
    model = geometry(case["d"], case["base"])
    half = torch.tensor(case["x_interleaved"], dtype=torch.float64)[case["perm"]]
    expected = torch.tensor(case["y_interleaved"], dtype=torch.float64)[case["perm"]]
    found = theory.at_positions(model, half, torch.tensor([case["position"]]))[0]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-15)


def test_a_turn_keeps_norms():
    vectors, positions = random(500, 128), torch.arange(500) * 250
    assert theory.norm_error(geometry(128, 1e4), vectors, positions) < 1e-15
    assert 1e-9 < theory.norm_error(geometry(128, 1e4), vectors.float(), positions) < 1e-6


def test_sinusoidal_vectors_are_the_reference():
    expected = REFERENCE["others"]["sinusoidal_d8"]
    found = theory.sinusoidal(torch.tensor([int(position) for position in expected]), 8)
    assert found.flatten().tolist() == pytest.approx([x for row in expected.values() for x in row], abs=1e-14)


def test_an_additive_score_is_its_four_terms():
    x, y = random(2, 64)
    here = torch.full((300,), 400)
    found = theory.addition(x, y, here, here - torch.arange(300))
    elsewhere = theory.addition(x, y, here + 100, here + 100 - torch.arange(300))
    assert found.error < 1e-12
    # the term of the positions alone knows the distance only, the mixed ones know where they stand
    assert float((found.position - elsewhere.position).abs().max()) < 1e-11
    assert float((found.content_position - elsewhere.content_position).abs().max()) > 1
    assert float(found.position[0]) == pytest.approx(32, abs=1e-12)


def test_the_score_of_ones_is_the_expected_score_of_random_vectors():
    distances = torch.tensor([0, 3, 40, 300])
    model = dataclasses.replace(TINY, head_dim=48)  # a third of the head does not rotate
    ours = theory.view(None, model, length=512, distances=distances).score
    vectors = random(20_000, 48)
    scores = torch.stack(
        [
            (vectors[:, :32] * theory.at_positions(model, vectors[:, :32], torch.full((20_000,), int(m)))).sum(-1)
            + (vectors[:, 32:] ** 2).sum(-1)
            for m in distances
        ]
    ) / math.sqrt(48)
    error = 5 * scores.std(dim=1) / math.sqrt(20_000)
    assert bool(((scores.mean(dim=1) - ours).abs() < error).all())


@pytest.mark.parametrize("name", PLAIN)
def test_the_view_of_a_method_is_what_its_parts_say(name):
    """The score of ones through the definition that attention computes with, pair by pair."""
    method = get_method(name)(factor=4.0)
    distances = torch.arange(512)
    found = theory.view(method, TINY, length=512, distances=distances, heads=4)
    if isinstance(method, LateMethod):
        query, keys = torch.tensor([[511]]), 511 - distances[None]
        seen, visible = method.distance(TINY, query[..., None], keys[:, None])
        inv_freq, factor = method.spectra(TINY, query)
        scale = method.query_scale(TINY, query)
        learned = method.added(TINY, Sizes(heads=4, head_dim=32, value_dim=32, hidden=128))
        bias = method.bias(TINY, distances[None], 4, learned)
    else:
        spectrum = method.spectrum(TINY)
        seen, visible = distances[None, None], torch.ones(1, 1, 512, dtype=torch.bool)
        inv_freq, factor = spectrum.inv_freq[None, None], torch.tensor([[spectrum.attention_factor]])
        scale = bias = None
    angles = seen[0, 0].double()[:, None] * inv_freq[0, 0].double()
    score = 2 * float(factor) ** 2 * angles.cos().sum(-1) / math.sqrt(32)
    score = score * (1.0 if scale is None else float(scale))
    score = score if bias is None else score + bias.amax(dim=0)[0]
    assert torch.equal(found.visible, visible[0, 0])
    assert torch.equal(found.seen, seen[0, 0].double())
    assert float((found.score - score).abs().max()) < 1e-5
    assert found.biased == (name == "alibi")  # what t5 adds begins at zero


def test_the_view_without_a_method_is_the_model_s_own():
    found = theory.view(None, TINY, length=300, distances=torch.arange(300))
    assert torch.equal(found.seen, torch.arange(300).double())
    assert bool(found.visible.all())
    # the frequencies are those of a model, which are float32
    assert found.inv_freq.tolist() == pytest.approx(theory.frequencies(TINY).tolist(), rel=1e-6)
    expected = 2 * theory.similarity(found.inv_freq, torch.arange(300)) / math.sqrt(32)
    assert float((found.score - expected).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: theory.frequencies(torch.ones(2, 2)),
            "inv_freq: must be a Geometry or a floating tensor with one entry per pair, got torch.float32 of shape "
            "(2, 2); take the inv_freq of a Spectrum",
        ),
        (
            lambda: theory.similarity([1.0], torch.arange(3)),
            "inv_freq: must be a Geometry or a floating tensor with one entry per pair, got list; take the inv_freq "
            "of a Spectrum",
        ),
        (
            lambda: theory.first_negative(TINY, -1),
            "limit: must be a whole number of tokens from 0 to 16777216, got -1; give the longest distance of "
            "interest",
        ),
        (
            lambda: theory.view(None, TINY, length=8, distances=torch.arange(9)),
            "distances: must be from 0 to below the length (8), got 0 to 8; give a longer context",
        ),
        (
            lambda: theory.at_positions(TINY, torch.ones(30), torch.arange(3)),
            "vectors: must have two elements for each of 16 pairs, got 30; give the rotated elements of one head",
        ),
        (
            lambda: theory.sinusoidal(torch.arange(3), 7),
            "width: must be even and above 0, since a sine and a cosine go together, got 7; give the elements of a "
            "token's vector",
        ),
        (
            lambda: readings.readings(TINY, [], length=1),
            "length: must be a whole number of tokens from 2 to 16777216, got 1; give the context length of interest",
        ),
    ],
)
def test_a_wrong_argument_is_one_sentence(wrong, message):
    with pytest.raises(InvalidArgumentError) as caught:
        wrong()
    assert str(caught.value) == message


def page_of(model: str, names: list[str], length: int = 512) -> str:
    methods = [get_method(name)(factor=length / 128) for name in names]
    return page.page(model, TINY, readings.readings(TINY, methods, length=length, heads=4))


def test_every_method_has_its_place_in_a_page_that_loads_and_runs_nothing():
    text = page_of("tiny", PLAIN)
    parsed = Page(text)
    labels = [attrs["aria-label"] for tag, attrs in parsed.elements if tag == "svg" and attrs.get("role") == "img"]
    for name in PLAIN:
        assert f"Score against distance, {name}" in labels
    assert len(labels) == len(set(labels))
    drawings = [attrs for tag, attrs in parsed.elements if tag == "svg"]
    assert all(attrs.get("role") == "img" or attrs.get("aria-hidden") == "true" for attrs in drawings)
    figures = sum(tag == "figure" for tag, _ in parsed.elements)
    assert figures == len(labels) == sum(tag == "details" for tag, _ in parsed.elements)
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in parsed.elements}
    loading = {"src", "href", "srcset", "action", "data", "xlink:href"}
    for _, attrs in parsed.elements:
        assert all(attrs[name].startswith("#") for name in loading & set(attrs))  # within the page
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in " ".join(parsed.texts)
    assert not re.search(r'd="[^"]*(nan|inf)', text)
    assert len(text) < 500_000


def test_a_hostile_name_is_text():
    parsed = Page(page_of(HOSTILE, ["yarn"]))
    visible = HOSTILE.replace("\x00", "\ufffd").replace("\u202e", "\ufffd")
    assert f"What positions do to a score in {visible}" in parsed.texts
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in Page(page_of("tiny", ["yarn"])).elements]


def test_the_page_says_what_the_theory_says():
    rows = {"theta": "10,000", "pairs": "16", "pairs without a full turn": "10 of 16", "critical pair": "6"}
    found = readings.readings(TINY, [get_method("linear")(factor=4.0)], length=512)
    facts = {name: value for name, (value, _) in readings.facts(TINY, found[0]).items()}
    assert rows.items() <= facts.items()
    first = theory.first_negative(TINY, 10_000)
    assert facts["first negative B(m)"] == str(first)
    # linear stretches distances by the factor: its first whole negative distance lies just below four times as far
    assert 4 * (first - 1) < found[1].first_negative <= 4 * first
    assert readings.effects(found[1], found[0])[1:4] == ["100 %", "511", "4"]


def test_a_method_that_never_turns_negative_says_how_far_that_was_looked_for():
    found = readings.readings(TINY, [get_method("nope")()], length=256)
    assert readings.negative_text(found[1]) == "none to 262,144"


def test_a_page_of_a_context_longer_than_what_is_drawn_stays_small():
    text = page_of("tiny", list(METHODS), length=100_000)
    Page(text)
    assert len(text) < 500_000
    assert "a context of 100,000 tokens" in text


def test_first_tokens_that_stay_visible_are_drawn_however_few_they_are():
    """Ten of the 51 keys in the last stretch of distances: a dot at the end of the picture."""
    text = page_of("tiny", ["lm_infinite"], length=8192)
    dots = re.findall(r'class="line dot"[^>]* d="M([\d.]+) ', text)
    assert len(dots) == 2  # of the score, and of the distance seen
    assert all(float(x) > 345 for x in dots)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.5e-16, "1.5e-16"),
        (0.25, "0.25"),
        (1234.4, "1,234"),
        (math.inf, "∞"),
        (math.nan, "none"),
        (-3, "-3"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_gap_breaks_a_line_and_every_point_lies_in_the_frame():
    curve = Curve(series=1, x=[0, 1, 2, 3], y=[1.0, math.nan, 1000.0, 10.0])
    marks = [Mark(at=1e4, word="<above>", level=True)]
    text = drawn(Chart(label="a", curves=[curve], x=Axis(label="x"), y=Axis(label="y", logarithmic=True), marks=marks))
    lines = re.findall(r'class="line(?: dot)?"[^>]* d="([^"]+)"', text)
    assert [line.count("L") for line in lines] == [0, 1]
    points = [tuple(map(float, pair)) for line in lines for pair in re.findall(r"([\d.]+) ([\d.]+)", line)]
    assert len(points) == 3
    assert all(58 <= x <= 350 and 14 <= y <= 186 for x, y in points)
    assert "&lt;above&gt;" in text


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_words_of_level_lines_that_are_near_do_not_cover_each_other():
    chart = Chart(
        label="near",
        curves=[Curve(series=0, x=[0, 15], y=[6, 140_000])],
        x=Axis(label="x"),
        y=Axis(label="y", logarithmic=True),
        marks=[Mark(at=128, word="original length", level=True), Mark(at=512, word="context", level=True)],
    )
    words = [float(y) for y in re.findall(r'class="word" x="348.0" y="([\d.]+)"', drawn(chart))]
    assert abs(words[0] - words[1]) >= 10  # letters are about 9 high


def test_the_word_of_a_level_line_stands_where_no_other_line_runs():
    """A tick just above a line sends its word below."""
    y = [1 + 60.0 * i for i in range(50)]
    chart = Chart(
        label="x",
        curves=[Curve(series=0, x=range(50), y=y)],
        x=Axis(label="x"),
        y=Axis(label="y", logarithmic=True),
        marks=[Mark(at=700, word="below", level=True), Mark(at=200, word="above", level=True)],
    )
    svg = drawn(chart)
    ticks = [float(y) for y in re.findall(r'<path d="M58 ([\d.]+)H350"/>', svg)]
    marks = [float(y) for y in re.findall(r'<path class="mark" d="M58 ([\d.]+)H350"/>', svg)]
    words = [float(y) for y in re.findall(r'class="word" x="348.0" y="([\d.]+)"', svg)]
    assert words[0] > marks[0]
    assert words[1] < marks[1]
    for word, own in zip(words, marks, strict=True):
        assert not [line for line in {*ticks, *marks} - {own} if word - 9 < line < word + 2]


def test_layers_with_rotations_of_their_own_have_a_page_and_a_picture_each(in_a_folder, capsys):
    config = config_of("gemma3_text")
    config.save_pretrained("model")
    for verb, end in (("explain", "html"), ("plot", "png")):
        assert cli.main([verb, "model", "--layers", "all", "--output", f"{verb}.{end}"]) == 0
        assert Path(f"{verb}.{end}").stat().st_size > 1000
        assert Path(f"{verb}-sliding_attention.{end}").stat().st_size > 1000
        assert cli.main([verb, "model", "--output", f"alone-{verb}.{end}"]) == 0
        assert [path.name for path in Path().glob(f"alone-{verb}*")] == [f"alone-{verb}.{end}"]
    assert "model, sliding_attention layers" in Path("explain-sliding_attention.html").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(("verb", "end"), [("explain", "html"), ("plot", "svg")])
def test_layers_of_a_model_with_one_rotation_are_refused(verb, end, in_a_folder, capsys):
    assert cli.main([verb, "tiny", "--layers", "all", "--output", f"a.{end}"]) == 2
    assert capsys.readouterr().err == (
        "ropescale: --layers: must be left out for a llama whose layers have one rotation, which is the picture of "
        "them all, got 'all'; leave it out\n"
    )
    assert cli.main([verb, "tiny", "--layers", "global", "--output", f"a.{end}"]) == 0


@pytest.mark.parametrize("end", ["svg", "png", "pdf"])
def test_a_picture_has_the_same_bytes_each_time(end, in_a_folder, capsys, monkeypatch):
    for name, moment in (("a", "1"), ("b", "100000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)  # what matplotlib takes for the time, where it asks for it
        assert cli.main(["plot", "tiny", "--output", f"{name}.{end}"]) == 0
    assert Path(f"a.{end}").read_bytes() == Path(f"b.{end}").read_bytes()


def test_a_line_that_lies_on_another_is_dashed_and_said_to():
    _, facts, heads = facts_by_layers("tiny")[0]
    methods, length = chosen_methods(("ntk", "dynamic_ntk"), facts)
    text = page.page("tiny", facts, readings.readings(facts, methods, length=length, heads=heads))
    waves = text.partition('id="wavelengths"')[2] or text
    assert "dynamic_ntk has the wavelengths of ntk here, and is dashed over it." in text
    assert waves.count('stroke-dasharray="6 6"') >= 2  # the line, and its place in the legend


def test_the_verb_writes_the_page_and_prints_the_numbers(in_a_folder, capsys):
    assert cli.main(["explain", "tiny", "--methods", "yarn,rerope", "--factor", "2"]) == 0
    answer = capsys.readouterr()
    assert answer.out.splitlines()[-2] == f"page: {Path('out', 'explain-tiny.html')}"
    for word in ("critical pair", "10 of 16", "rerope", "position 255"):
        assert word in answer.out
    written = (in_a_folder / "out" / "explain-tiny.html").read_text(encoding="utf-8")
    _, models, heads = facts_by_layers("tiny")[0]
    methods, length = chosen_methods(["yarn", "rerope"], models, factor=2.0)
    assert written == page.page("tiny", models, readings.readings(models, methods, length=length, heads=heads))
    assert [path.name for path in (in_a_folder / "out").iterdir()] == ["explain-tiny.html"]


def test_a_page_that_cannot_be_finished_leaves_the_old_one(in_a_folder, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    (in_a_folder / "a.html").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    assert cli.main(["explain", "tiny", "--methods", "linear", "--output", "a.html"]) == 2
    assert capsys.readouterr().err == (
        "ropescale: --output: must be a place with room that can be written, got 'a.html' ([Errno 28] No space "
        "left on device); give another path\n"
    )
    assert (in_a_folder / "a.html").read_text() == "old"
    assert [path.name for path in in_a_folder.iterdir()] == ["a.html"]


def test_the_verb_takes_a_length_for_a_factor(in_a_folder, capsys):
    assert cli.main(["explain", "tiny", "--length", "384", "--methods", "linear", "--output", "a.html"]) == 0
    assert "position 383" in capsys.readouterr().out
    assert chosen_methods(["linear"], TINY, length=384)[0] == [get_method("linear")(factor=3.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "0.5"], "linear: --factor must be a number of at least 1 and at most 16777216 "),
        (
            ["--methods", "abf"],
            "--methods: must be methods that need no knob of their own, got 'abf', which needs theta; give an "
            "instance to ropescale.explain.readings.readings\n",
        ),
        (["--methods", "yran"], "unknown method 'yran'; did you mean 'yarn'? "),
        (
            ["--length", "64"],
            "--length: must be a number of tokens from the original length (128) to 16777216, got 64; give the "
            "context length you want\n",
        ),
        (["--output", "."], "--output: must be new, or an ordinary file to write again, got '.', which is a folder"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_code_2_and_leaves_nothing(in_a_folder, capsys, arguments, message):
    assert cli.main(["explain", "tiny", *arguments]) == 2
    answer = capsys.readouterr()
    assert answer.err.startswith(f"ropescale: {message}")
    assert answer.err.count("\n") == 1
    assert list(in_a_folder.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_code_2(in_a_folder, capsys):
    (in_a_folder / "empty").mkdir()
    assert cli.main(["explain", "./empty"]) == 2
    assert "./empty: must be a folder with a Transformers checkpoint" in capsys.readouterr().err


def test_a_factor_and_a_length_are_one_too_many(capsys):
    assert cli.main(["explain", "tiny", "--factor", "2", "--length", "256"]) == 2
    assert "argument --length/--lengths: not allowed with argument --factor/--factors" in capsys.readouterr().err
