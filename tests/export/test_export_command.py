"""The command line exports and verifies."""

from pathlib import Path

import pytest
from exports import (
    IGNORED,
    config_in,
    recorded,
)

from ropescale import cli

pytestmark = IGNORED


def test_the_command_line_exports_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "model.gguf")
    asked = [
        "export",
        "tiny",
        path,
        "--to",
        "gguf",
        "--method",
        "yarn",
        "--factor",
        "4",
        "--knobs",
        '{"beta_fast": 16}',
    ]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert said == (
        f"{path}: yarn x4 as one divisor per pair (rope_freqs.weight), F32, exact; llama.cpp will serve 512 tokens\n"
        f"written from the config, not run yet\n"
        f"next: ropescale verify-export {path} --engine llama.cpp\n"
    )
    assert cli.main(["verify-export", path, "--engine", "llama.cpp"]) == 0
    assert f"{path}: exact in llama.cpp (yarn x4): 48 of 48 greedy tokens" in capsys.readouterr().out
    assert cli.main(["verify-export", path, "--engine", "llama.cpp", "--tolerance", "0"]) == 1
    assert f"{path}: OFF in llama.cpp" in capsys.readouterr().out
    assert cli.main(asked) == 2
    assert capsys.readouterr().err.startswith("ropescale: DST: must be new, or an empty folder, got ")


def test_the_command_line_takes_log_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", "tiny", str(tmp_path / "out"), "--to", "transformers", "--method", "yarn", "--factor", "4"]
    assert cli.main([*asked, "--log-n"]) == 2
    assert "got queries multiplied by a logarithm of their position (--log-n); nearest" in capsys.readouterr().err
    assert cli.main([*asked, "--log-n", "--lossy"]) == 0
    assert "yarn x4 with log_n as its native type yarn, approximation (yarn at every length" in capsys.readouterr().out
    assert config_in(tmp_path / "out")["ropescale"]["log_n"] is True
    of_a_file = ["export", "a.gguf", "b.gguf", "--to", "gguf", "--patch-gguf", "--method", "yarn", "--factor", "4"]
    assert cli.main([*of_a_file, "--log-n"]) == 2
    said = capsys.readouterr().err
    assert "--patch-gguf: goes with --to gguf and --method" in said
    assert "--log-n" in said.partition(", got ")[2]


def test_the_command_line_exports_an_adapter_that_carries_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, path = str(tmp_path / "adapter"), str(tmp_path / "out")
    recorded(tmp_path / "adapter", "tiny", method="yarn", factor=4)
    assert cli.main(["export", "tiny", path, "--to", "transformers", "--adapter", adapter]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: yarn x4 as its native type yarn, exact; ")
    verifying = ["verify-export", path, "--engine", "transformers", "--reference", "tiny", "--adapter", adapter]
    assert cli.main(verifying) == 0
    assert f"{path}: exact in transformers (yarn x4): 48 of 48 greedy tokens" in capsys.readouterr().out


def test_the_command_line_patches_an_existing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")
    assert cli.main(["export", "tiny", first, "--to", "gguf", "--method", "none"]) == 0
    assert cli.main(["export", first, second, "--to", "gguf"]) == 2
    assert "for a .gguf file --patch-gguf" in capsys.readouterr().err
    assert cli.main(["export", first, second, "--to", "gguf", "--patch-gguf", "--method", "ntk", "--factor", "4"]) == 0
    assert "ntk x4 as rope.freq_base alone, weights as they were, exact" in capsys.readouterr().out
