"""ropescale inspect and ropescale plot: what a config says about positions, as numbers and as a picture."""

import json
import math
from pathlib import Path

import pytest
from families import config_of, family

import ropescale
from ropescale import cli
from ropescale.errors import InvalidArgumentError
from ropescale.explain import inspection, plot
from ropescale.pages.elements import number

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}


def written(folder: Path, name: str, **changes: object) -> str:
    config_of(name, **changes).save_pretrained(folder)
    return str(folder)


def test_the_facts_of_an_unscaled_checkpoint() -> None:
    _, (found,) = inspection.inspected("tiny")
    facts = found.facts()
    assert facts["theta"][0] == "10,000"
    assert facts["pairs"] == ("16", "turning 32 of a head's 32 elements")
    assert facts["original length"] == ("128", "tokens, from max_position_embeddings")
    assert facts["maximum today"] == ("128", "tokens, 1 times the original length")
    assert facts["fastest wavelength"][0] == "6.28"
    # 2 pi theta^(15/16) tokens
    assert facts["slowest wavelength"][0] == f"{2 * math.pi * 1e4 ** (15 / 16):,.0f}"
    assert facts["pairs without a full turn"][0] == "10 of 16"
    assert facts["pairs without a full turn"][1].startswith("from pair 6 on")
    assert facts["scaled already"] == ("no", "nothing is scaled; ropescale.patch starts from here")
    rows = found.rows()
    assert rows[0] == ["0", "6.28", "20.4", "1"]
    assert [int(row[0]) for row in rows] == [0, 2, 4, 6, 8, 9, 11, 13, 15]


def test_a_patched_checkpoint_shows_both_lengths_and_what_was_slowed(tmp_path: Path) -> None:
    ropescale.patch(family("llama"), "linear", factor=4).save_pretrained(tmp_path)
    _, (found,) = inspection.inspected(str(tmp_path))
    facts = found.facts()
    assert facts["original length"] == ("64", "tokens, from record")
    assert facts["maximum today"] == ("256", "tokens, 4 times the original length")
    assert facts["scaled already"] == (
        "a ropescale record of 'linear'",
        "x 4: ropescale.load(path) brings it back, and unpatch leads to 64 tokens",
    )
    assert {row[3] for row in found.rows()} == {"4"}


def test_a_method_that_acts_in_attention_slows_by_position(tmp_path: Path) -> None:
    ropescale.patch(family("llama"), "dynamic_ntk", factor=4).save_pretrained(tmp_path)
    _, (found,) = inspection.inspected(str(tmp_path))
    assert {row[3] for row in found.rows()} == {"by position"}


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        (
            {**LONGROPE, "rope_type": "yarn", "factor": 4.0, "short_factor": None, "long_factor": None},
            "attention is sharper",
        ),
        (LONGROPE, "two lists of stretches: Transformers takes the long one for a whole batch"),
        ({**LONGROPE, "short_factor": [2.0] * 8}, "every pair has a stretch of its own"),
        (
            {**LONGROPE, "rope_type": "dynamic", "factor": 4.0, "short_factor": None, "long_factor": None},
            "frequencies follow the longest text so far",
        ),
    ],
    ids=["yarn", "two lists", "one list", "dynamic"],
)
def test_what_a_scaling_implies(rope: dict, said: str, tmp_path: Path) -> None:
    rope = {key: value for key, value in rope.items() if value is not None}
    model = written(tmp_path, "llama", rope_parameters=rope, max_position_embeddings=256)
    _, (found,) = inspection.inspected(model)
    assert said in found.implied
    assert 'existing="replace" starts again from 64 tokens' in found.implied
    assert ('existing="compose" goes on from 256' in found.implied) == (rope["rope_type"] != "dynamic")


def test_a_scaling_from_an_unknown_length_is_told_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    model = written(tmp_path, "llama", rope_parameters=rope, max_position_embeddings=256)
    _, (found,) = inspection.inspected(model)
    facts = found.facts()
    assert facts["original length"] == (
        "not stated",
        "--original-length states it; 64 if the maximum is the one that factor 4 made",
    )
    assert facts["maximum today"] == ("256", "tokens")
    assert facts["slowest wavelength"][1].endswith("times the maximum today")
    assert "starts again from original_length, which it asks for" in found.implied
    assert found.rows()[0][2] == number(256 / (2 * math.pi))
    assert cli.main(["inspect", model]) == 0
    assert "turns over the maximum today" in capsys.readouterr().out
    _, (found,) = inspection.inspected(model, original_length=64)
    assert found.facts()["original length"] == ("64", "tokens, from argument")


def test_each_layer_type_is_a_part_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tmp_path, "gemma3_text")
    _, parts = inspection.inspected(model)
    assert [part.label for part in parts] == ["full_attention", "sliding_attention"]
    assert [part.geometry.theta for part in parts] == [1e4, 1e3]
    assert cli.main(["inspect", model]) == 0
    printed = capsys.readouterr().out
    assert "gemma3_text, full_attention layers" in printed
    assert "gemma3_text, sliding_attention layers" in printed


@pytest.mark.parametrize(
    ("name", "changes", "theta"),
    [
        # Gemma 3 4B: linear in the layers that read everything
        (
            "gemma3_text",
            {
                "num_hidden_layers": 6,
                "max_position_embeddings": 131072,
                "sliding_window": 1024,
                "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
            (1e6, 1e4),
        ),
        # OLMo 3: yarn from 8,192 tokens there, and the same theta in both
        (
            "olmo3",
            {
                "num_hidden_layers": 4,
                "max_position_embeddings": 65536,
                "sliding_window": 4096,
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "yarn",
                        "rope_theta": 5e5,
                        "factor": 8.0,
                        "original_max_position_embeddings": 8192,
                    },
                    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                },
            },
            (5e5, 5e5),
        ),
    ],
    ids=["Gemma 3 4B", "OLMo 3"],
)
def test_each_layer_type_has_figures_of_its_own(
    name: str, changes: dict, theta: tuple[float, float], tmp_path: Path
) -> None:
    _, (full, local) = inspection.inspected(written(tmp_path, name, **changes))
    types = changes["layer_types"]
    assert [int(part.facts()["layers"][0]) for part in (full, local)] == [1, len(types) - 1]
    assert (full.geometry.theta, local.geometry.theta) == theta
    assert full.scaled_by
    assert not local.scaled_by
    assert "original length" in full.facts()
    assert local.facts()["window"][0] == f"{changes['sliding_window']:,}"
    assert "original length" not in local.facts()
    assert local.rows()[0][2] == number(changes["sliding_window"] / (2 * math.pi))
    slowed = {part.label: part.rows()[-1][3] for part in (full, local)}
    assert slowed == {"full_attention": "8", "sliding_attention": "1"}


def test_layers_that_share_a_rotation_and_look_back_less_are_counted(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"]
    _, (found,) = inspection.inspected(written(tmp_path, "gpt_oss", layer_types=types, sliding_window=48))
    assert found.facts()["layers"] == ("2", "one rotation for all; 1 of them look back 48 tokens")


def test_layers_that_do_not_rotate_have_no_wavelengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tmp_path, "granitemoehybrid", position_embedding_type="nope")
    _, (found,) = inspection.inspected(model)
    facts = found.facts()
    assert facts["rotation"][0] == "none"
    assert facts["rotation"][1].startswith("position_embedding_type 'nope': no layer rotates")
    assert "theta" not in facts
    assert found.rows() == []
    assert cli.main(["inspect", model]) == 0
    printed = capsys.readouterr().out
    assert "tokens per turn" not in printed
    assert "facts of the config; what a patch does is proven on the loaded model" in printed


def test_the_command_line_prints_facts_and_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "slowest wavelength" in printed
    assert "turns over the original length" in printed


def test_wavelengths_are_those_of_the_spectra() -> None:
    geometry = ropescale.Geometry(rotary_dim=32, theta=1e4, original_length=128)
    methods = [ropescale.get_method(name)(factor=4) for name in ("linear", "ntk")]
    found = plot.wavelengths(geometry, methods, length=512)
    assert list(found) == ["as pretrained", "linear", "ntk"]
    assert found["linear"] == pytest.approx([4 * value for value in found["as pretrained"]], rel=1e-6)
    assert found["ntk"][0] == pytest.approx(found["as pretrained"][0])
    assert found["ntk"][-1] == pytest.approx(4 * found["as pretrained"][-1], rel=1e-5)


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_picture_is_written_in_the_format_of_its_name(
    suffix: str, begins: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / f"waves.{suffix}"
    methods = "linear,ntk,truncated,yarn"
    assert cli.main(["plot", "tiny", "--methods", methods, "--length", "1024", "--output", str(path)]) == 0
    said, after = capsys.readouterr().out.splitlines()
    assert said == f"picture: {path}"
    assert after == f"next: ropescale eval tiny --methods {methods} --factors 8 --quick"
    assert path.read_bytes().startswith(begins)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_pairs_without_position_are_counted_in_the_picture(tmp_path: Path) -> None:
    geometry = ropescale.Geometry(rotary_dim=32, theta=1e4, original_length=128)
    found = plot.wavelengths(geometry, [ropescale.get_method("truncated")(factor=4)], length=512)
    still = sum(math.isinf(value) for value in found["truncated"])
    assert still > 0
    path = plot.draw(tmp_path / "waves.svg", "tiny", geometry, found, length=512)
    assert f"truncated ({still} pairs without position)" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "waves.jpeg2"], "--output: must be a file that ends in one of pdf, png, svg, got 'waves.jpeg2'"),
        (["--methods", "rerope"], "--methods: must be methods that change frequencies, got 'rerope'"),
        (["--length", "64"], "--length: must be a number of tokens from the original length (128)"),
        (
            ["--output", "/proc/waves.png"],
            "--output: must be a place with room that can be written, got '/proc/waves.png'",
        ),
    ],
)
def test_a_wrong_picture_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "tiny", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"ropescale: {said}")


def test_a_method_of_distances_has_no_wavelengths() -> None:
    geometry = ropescale.Geometry(rotary_dim=32, theta=1e4, original_length=128)
    with pytest.raises(InvalidArgumentError, match="see it with ropescale explain"):
        plot.wavelengths(geometry, [ropescale.get_method("self_extend")()], length=512)


def test_inspect_reads_no_weights(tmp_path: Path) -> None:
    model = written(tmp_path, "llama")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    assert not list(tmp_path.glob("*.safetensors"))
    assert inspection.inspected(model)[1][0].geometry.original_length == 64


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_old_name_of_longrope_is_told_with_the_one_to_write(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(config_of("phi3", rope_parameters=LONGROPE).to_json_string())
    config |= {"rope_parameters": None, "original_max_position_embeddings": 64}
    rope = {entry: value for entry, value in LONGROPE.items() if entry != "original_max_position_embeddings"}
    for name in ("su", "longrope"):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: {**rope, "rope_type": name}}))
        code = cli.main(["inspect", str(tmp_path)])
        if name == "longrope":
            assert code == 0
        else:
            said = f"got rope_type 'su', another name for 'longrope'; write 'longrope' there in {key}\n"
            assert code == 2
            assert capsys.readouterr().err.endswith(said)
