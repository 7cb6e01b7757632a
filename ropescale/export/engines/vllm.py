"""vLLM. The rules were read in vLLM 0.32.0 and run with it: those of `server.py`, and these.

- What its classes do not read of rope_parameters is in `READS`.
- A tokenizer's model_max_length caps what it serves.
- Where pairs go by an image's coordinates, some classes work out yarn's ramp for four times the original length, which
  their table has positions for (`POSITIONS`): betas that are as many times larger give the ramp that was meant.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedConfig

from ropescale.contents import read_config
from ropescale.errors import ExportError, InvalidArgumentError
from ropescale.export.canonical import Canonical, Rotation
from ropescale.export.engines.server import Server
from ropescale.export.reads import LATENT, NEIGHBOURS, NOTHING, WITHOUT_DIVISORS, YARN, YARN_ALONE
from ropescale.export.running import Prompt, Run
from ropescale.export.stated import Stated
from ropescale.families.parts import place_of_text
from ropescale.methods import YaRN
from ropescale.trust import trusted

# Positions in the table of classes with mrope_section, in original lengths, where that is more than one
POSITIONS = {"qwen2_5_vl_text": 4, "qwen2_vl_text": 4}
PYTHON_VARIABLE = "ROPESCALE_VLLM_PYTHON"  # the environment variable that names the Python with vLLM


class VLLM(Server, name="vllm"):
    """vLLM, in an environment of its own."""

    title = "vLLM"
    summary = "a folder for vLLM, and the flags to use on an unmodified checkpoint"
    running = (
        "the folder in vLLM, in an environment of its own, because its packages are older ones: make one (python -m "
        "venv vllm && vllm/bin/pip install vllm) and name its Python in ROPESCALE_VLLM_PYTHON"
    )
    examples = ("path/to/patched out/served --to vllm",)
    checks = ("out/served --engine vllm",)
    verified = "0.32.0"
    program = "vllm serve {}"
    trial = "vllm serve {}"
    near = 1e-4  # 9e-5 after 512 tokens of SmolLM2, and up to 2.8e-4 after 9,000 (docs/exports.md)
    length_flag = "--max-model-len"
    overrides_flag = "--hf-overrides"
    reads: ClassVar = {
        **dict.fromkeys(("dbrx", "deepseek_v4", "dots3_note_text", "mimo_v2_flash"), NOTHING),
        **dict.fromkeys(LATENT, YARN),
        **dict.fromkeys(NEIGHBOURS, WITHOUT_DIVISORS),
        "gpt_oss": YARN_ALONE,
    }

    def state(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        stated = super().state(config, canonical)
        rope, times = stated.fields["rope_parameters"], POSITIONS.get(config.model_type)
        if times is None or rope["rope_type"] != "yarn" or "mrope_section" not in rope:
            return stated
        own = YaRN(factor=rope["factor"])
        betas = {name: times * rope.get(name, getattr(own, name)) for name in ("beta_fast", "beta_slow")}
        told = {"rope_parameters": {**rope, **betas}}
        return dataclasses.replace(
            stated,
            fields=stated.fields | told,
            overrides=stated.overrides | told,
            form=f"{stated.form}, with betas for a table of {times} times the original length",
        )

    def leaves_out(self, family: str, rotation: Rotation, rope: Mapping[str, Any]) -> bool:
        if rope["rope_type"] != "yarn" or family != "gpt_oss":
            return super().leaves_out(family, rotation, rope)
        own = YaRN(factor=rope["factor"]).attention_factor_for(rotation.geometry)
        return abs(rotation.spectrum.attention_factor - own) > 1e-9

    def overrides(self, stated: Stated, target: int, limit: float) -> tuple[str, str]:
        """With the variable without which no flag exceeds the tokenizer's limit."""
        return "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1" if limit < target else "", super().overrides(stated, target, limit)[1]

    def run(self, path: Path, flags: Sequence[str], prompts: Sequence[Prompt], steps: int) -> list[Run]:
        """In the Python that has it; an error ends with what it said."""
        given = [flag.removeprefix("--").split() for flag in flags]
        arguments: dict[str, Any] = {name.replace("-", "_"): int(value) for name, value in given}
        if place_of_text(read_config(str(path))):  # prompts are text, and what reads images may not be there
            arguments["language_model_only"] = True
        return generated(path, prompts, steps, arguments)


def generated(path: Path, prompts: Sequence[Prompt], steps: int, arguments: dict[str, Any]) -> list[Run]:
    """What vLLM generates in float32, in the Python that has it.

    Raises:
        ExportError: no Python with vLLM, or one that fails; the message ends with what it said.
    """
    program = Path(__file__).with_name("run_vllm.py")
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.npz")
        asked = {
            "model": str(path.absolute()),
            "steps": steps,
            "prompts": [list(prompt) for prompt in prompts],
            "arguments": {**arguments, "trust_remote_code": trusted()},
        }
        request.write_text(json.dumps(asked), encoding="utf-8")
        # -P: the folder of this program holds a vllm.py of its own
        command = [python_with_vllm(), "-P", str(program), str(request), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode or not result.is_file():
            said = [line for line in (done.stderr + done.stdout).splitlines() if "Error" in line]
            raise ExportError(
                f"vLLM: must load and run the model, got exit code {done.returncode} "
                f"({said[-1].strip() if said else 'no error message'}); run {' '.join(command[:1])} -c 'import vllm' "
                f"to see whether it works at all"
            )
        arrays = np.load(result)
        return [
            Run(tokens=tokens.tolist(), logprobs=logprobs)
            for tokens, logprobs in zip(arrays["tokens"], arrays["logprobs"], strict=True)
        ]


def _environment() -> dict[str, str]:
    """The environment of this process without what points Python at other packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def python_with_vllm() -> str:
    """The Python that has vLLM: the one that ROPESCALE_VLLM_PYTHON names, `make vllm`'s, or this one.

    Raises:
        ExportError: none.
        InvalidArgumentError: the variable names no program.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise InvalidArgumentError(
                f"{PYTHON_VARIABLE}: must name a Python program, got {named!r}; correct it or unset it"
            )
        return named
    made = Path(".venv-vllm", "bin", "python")
    if made.is_file():
        return str(made.absolute())
    if find_spec("vllm") is not None:
        return sys.executable
    raise ExportError(
        f"engine: 'vllm' needs a Python with vLLM, got none in .venv-vllm and no {PYTHON_VARIABLE}; make one "
        f"(python -m venv vllm && vllm/bin/pip install vllm) and name it there"
    )
