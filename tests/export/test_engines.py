"""What an engine is: the registry, and one of a user's own."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropescale import cli, listing, outside
from ropescale.errors import InvalidArgumentError
from ropescale.export import ENGINES, Engine, export, verify
from ropescale.failures import EXTRAS

MINE = '''
import torch
from transformers import AutoModelForCausalLM

from ropescale.export import Engine, Run, Stated
from ropescale.export.stated import fields_of


class Mine(Engine, name="my_engine"):
    """A server of a user's own, which reads what Transformers reads."""

    title = "My Engine"
    summary = "what my engine takes"
    program = "my-engine {}"
    trial = "my-engine {} --chat"
    verified = "1.2"
    tolerance = 1e-4

    def state(self, config, canonical):
        fields = fields_of(config, canonical, [one.parameters for one in canonical.rotations])
        return Stated(fields=fields, form="my own words", serves=canonical.main.target_length)

    def run(self, path, flags, prompts, steps):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        runs = []
        for prompt in prompts:
            made = model.generate(
                torch.tensor([prompt]), max_new_tokens=steps, do_sample=False, output_logits=True,
                return_dict_in_generate=True, eos_token_id=None,
            )
            logprobs = torch.log_softmax(torch.cat(made.logits), dim=-1).numpy()
            runs.append(Run(tokens=made.sequences[0, len(prompt):].tolist(), logprobs=logprobs))
        return runs
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file that defines an engine, and leaves no trace in this process."""
    path, before = tmp_path / "engine_of_a_user.py", dict(ENGINES)
    path.write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield str(path)
    outside.run_files([])
    sys.modules.pop("engine_of_a_user", None)
    ENGINES.clear()
    ENGINES.update(before)


def test_an_engine_of_a_file_is_known_to_every_verb(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is in the help, written, verified by its own `run`, and said of by title, with no other edit."""
    known = ["--import", mine]
    assert cli.main([*known, "export", "--help"]) == 0
    said = capsys.readouterr().out
    assert "my_engine" in said
    assert "what my engine takes" in said
    assert cli.main([*known, "verify-export", "--help"]) == 0
    assert "the export in My Engine" in capsys.readouterr().out
    asked = ["export", "tiny", "out", "--to", "my_engine", "--method", "yarn", "--factor", "4"]
    assert cli.main([*known, *asked]) == 0
    said = capsys.readouterr().out
    assert "yarn x4 as my own words, exact; My Engine will serve 512 tokens" in said
    assert "to serve it:\n  my-engine out\n" in said
    assert f"next: ropescale --import {mine} verify-export out --engine my_engine" in said
    assert json.loads(Path("out", "config.json").read_text())["ropescale_export"]["engine"] == "my_engine"
    assert cli.main([*known, "verify-export", "out", "--engine", "my_engine"]) == 0
    said = capsys.readouterr().out
    assert "out: exact in my_engine (yarn x4): 48 of 48 greedy tokens" in said
    assert said.endswith("next: my-engine out --chat\n")


def test_a_wrong_export_to_an_engine_of_a_file_is_seen(mine: str) -> None:
    outside.run_files([mine])
    export("tiny", "out", to="my_engine", method="yarn", factor=4)
    config = json.loads(Path("out", "config.json").read_text())
    config["rope_parameters"]["factor"] = 8.0
    Path("out", "config.json").write_text(json.dumps(config))
    assert not verify("out", engine="my_engine").exact


def test_an_engine_of_a_file_is_in_the_table(mine: str) -> None:
    outside.run_files([mine])
    made = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export_table.py"))
    table = made["table"]({"yarn": {"vLLM": "exact, 4e-05"}})
    head, _, row = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert dict(zip(head, row, strict=True))["My Engine (1.2)"] == "not measured yet"
    assert dict(zip(head, row, strict=True))["vLLM (0.32.0)"] == "exact, 4e-05"
    assert made["cell"]("yarn", ENGINES["my_engine"], {"tiny": "tiny"}).startswith("exact, ")


@pytest.mark.parametrize("name", ["My Engine", "1st", None, 7])
def test_an_engine_without_a_registry_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^engine class Mine: name must be a registry name in lower_snake"):
        type("Mine", (Engine,), {}, name=name)
    assert "Mine" not in {type(engine).__name__ for engine in ENGINES.values()}


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"^engine class Mine: name must be new, got 'vllm', which is taken"
    ):
        type("Mine", (Engine,), {}, name="vllm")


def test_what_engines_say_without_torch_is_what_they_say() -> None:
    shipped = listing._shipped_engines()
    assert list(shipped) == sorted(ENGINES)
    assert shipped == {name: listing._of_engine(engine) for name, engine in ENGINES.items()}


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_engine_says_what_it_is(name: str) -> None:
    engine = ENGINES[name]
    assert engine.title
    assert engine.verified
    assert engine.extra in ("", *EXTRAS)
    assert 0 < engine.tolerance <= engine.merged < 1e-2
