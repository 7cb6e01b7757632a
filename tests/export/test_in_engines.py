"""Every static method, in the engines themselves, against the patched model."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from exports import (
    IGNORED,
    NOPE,
    STATIC,
    TINY,
    TOKENIZER,
    VARIANTS,
    in_mlx,
    in_vllm,
    require_exact,
    source_of,
)
from families import (
    NAMES,
    config_of,
    knobs_for,
    model_of,
)

import ropescale
from ropescale import cli
from ropescale.errors import (
    ExportError,
)
from ropescale.export import ENGINES, export, verify
from ropescale.export.engines import vllm
from ropescale.export.verification import compared, scored

pytestmark = IGNORED


# What has to be there for an engine to run, and what is rarely run because others take the same way
THERE = {"mlx": in_mlx, "vllm": in_vllm}
OFTEN = ("yarn", "by_parts", "nope")  # natively, one divisor per pair, no rotation
CASES = [
    pytest.param(
        *(engine.name, name, method),
        marks=[*THERE.get(engine.name, ()), *[pytest.mark.slow] * (name == "llama" and method not in OFTEN)],
    )
    for engine in ENGINES.values()
    for name in ("tiny", "llama")
    for method in STATIC
    if engine.running
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("to", "name", "method"), CASES)
def test_an_engine_computes_what_the_patched_model_computes(
    to: str, name: str, method: str, llama: Path, tmp_path: Path
) -> None:
    source, pairs = source_of(name, llama)
    engine = ENGINES[to]
    path = tmp_path / f"model{engine.suffix}"
    export(source, path, to=to, method=method, factor=4, **knobs_for(method, pairs))
    tolerance = max(min(engine.tolerance, engine.near), NOPE if method == "nope" else 0)
    require_exact(path, engine.called, source, tolerance=tolerance)


KNOBS = [
    *(pytest.param("gguf", name, {}) for name in ("attention factor", "betas", "clipped", "mscale")),
    *(pytest.param("gguf", name, {}, marks=pytest.mark.slow) for name in ("resonance", "truncate", "turns")),
    *(pytest.param("mlx", name, {}, marks=in_mlx) for name in ("attention factor", "mscale")),
    pytest.param("mlx", "turns", {"attention_factor": 1.0}, marks=in_mlx),  # its divisors come without one
    *(pytest.param("vllm", name, {}, marks=in_vllm) for name in VARIANTS),
]


@pytest.mark.parametrize(("to", "variant", "given"), KNOBS)
def test_an_engine_gets_the_knobs_of_yarn(
    to: str, variant: str, given: dict[str, float], llama: Path, tmp_path: Path
) -> None:
    engine = ENGINES[to]
    path = tmp_path / f"model{engine.suffix}"
    export(llama, path, to=to, method="yarn", factor=4, **VARIANTS[variant], **given)
    require_exact(path, engine.called, str(llama), tolerance=min(engine.tolerance, engine.near))


# Of each way in which a class of MLX-LM reads a rotation, one whose tiny config it builds
READERS = ("cohere", "deepseek_v2", "deepseek_v3", "ernie4_5", "glm4_moe_lite", "internlm3", "lfm2_moe", "ministral3")


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_mlx) for name in (*READERS, "mixtral") if name in NAMES])
def test_whatever_a_class_of_mlx_is_told_it_computes(name: str, tmp_path: Path) -> None:
    """What it would leave out is refused, and something is left that it reads."""
    sizes = {"vocab_size": 1024, "max_position_embeddings": 128}
    model_of(config_of(name, **sizes)).save_pretrained(tmp_path / "source")
    for file in TOKENIZER:
        shutil.copy(TINY / file, tmp_path / "source" / file)
    told = []
    for method in ("ntk", "linear", "by_parts", "yarn", "ntk_fixed"):
        try:
            export(tmp_path / "source", tmp_path / method, to="mlx", method=method, factor=4)
        except ExportError:
            continue
        verdict = verify(tmp_path / method, engine="mlx", reference=str(tmp_path / "source"))
        assert verdict.exact, str(verdict)
        told.append(method)
    assert told


@pytest.mark.parametrize("method", [pytest.param(name, marks=in_vllm) for name in ("yarn", "power", "linear")])
def test_vllm_takes_the_printed_flags_for_an_unmodified_checkpoint(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export("tiny", tmp_path / "out", to="vllm", method=method, factor=4)
    variable, first, overrides, second, length = shlex.split(done.overrides)
    assert (variable, first, second) == ("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", "--hf-overrides", "--max-model-len")
    monkeypatch.setenv(*variable.split("="))
    arguments = {"hf_overrides": json.loads(overrides), "max_model_len": int(length)}
    prompt = [5 + place % 900 for place in range(400)]
    (run,) = vllm.generated(TINY, [prompt], 16, arguments)
    model = ropescale.patch(ropescale.load("tiny"), method, factor=4)
    check = compared(prompt, run, scored(model, prompt, run.tokens))
    assert check.worst < 1e-4
    assert check.agreed == 16


FAKE = """#!{python}
import json, pathlib, runpy, sys, types

class LLM:
    def __init__(self, **given):
        pathlib.Path({told!r}).write_text(json.dumps(given))
        raise ValueError("ValueError: that is enough")

sys.modules["vllm"] = types.SimpleNamespace(LLM=LLM, SamplingParams=None)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("given", [[], ["--trust-remote-code"]])
def test_vllm_is_told_whether_code_may_run(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a Python whose vLLM only notes with what it is made."""
    export("tiny", tmp_path / "out", to="vllm", method="yarn", factor=4)
    fake, told = tmp_path / "python", tmp_path / "told.json"
    fake.write_text(FAKE.format(python=sys.executable, told=str(told)))
    fake.chmod(0o755)
    monkeypatch.setenv("ROPESCALE_VLLM_PYTHON", str(fake))
    assert cli.main(["verify-export", str(tmp_path / "out"), "--engine", "vllm", *given]) == 2
    assert "that is enough" in capsys.readouterr().err
    assert json.loads(told.read_text())["trust_remote_code"] is bool(given)


# ---- the real checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("method", ["yarn", "by_parts"])
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_smollm2_in_llama_cpp(method: str, outtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    export("smollm2", path, to="gguf", method=method, factor=2, outtype=outtype)
    verdict = verify(path, engine="llama.cpp", lengths=[512, 9000])
    assert verdict.exact, str(verdict)
    if outtype == "f32":
        assert [check.agreed for check in verdict.checks] == [16, 16]


@pytest.mark.parametrize("method", [pytest.param(name, marks=in_vllm) for name in ("yarn", "by_parts")])
def test_smollm2_in_vllm(method: str, tmp_path: Path) -> None:
    export("smollm2", tmp_path / "out", to="vllm", method=method, factor=2)
    verdict = verify(tmp_path / "out", engine="vllm", lengths=[512, 9000])
    assert verdict.exact, str(verdict)
    assert verdict.checks[0].worst < 1e-4
    assert [check.agreed for check in verdict.checks] == [16, 16]
