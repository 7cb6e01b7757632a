"""The engines themselves, asked for greedy tokens and the log-probabilities of the whole vocabulary at each."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ropescale.checkpoint import first_line
from ropescale.errors import CheckpointError, ExportError, InvalidArgumentError
from ropescale.injection.places import cache_keyword
from ropescale.trust import trusted

Prompt = list[int]
PYTHON_VARIABLE = "ROPESCALE_VLLM_PYTHON"  # the environment variable that names the Python with vLLM


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What an engine generated from one prompt."""

    tokens: list[int]  # the greedy choice at each step
    logprobs: np.ndarray[Any, Any]  # [steps, vocabulary] float32, nan where the engine gave none


def transformers(path: Path, prompts: Sequence[Prompt], steps: int) -> list[Run]:
    """Transformers alone, in float32, token by token with its cache."""
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=trusted()).eval()
    except Exception as error:  # model classes raise whatever their own code runs into
        raise CheckpointError(
            f"{path}: must be a model that Transformers loads, got {type(error).__name__}: {first_line(error)}; write "
            f"it again"
        ) from error
    return [generated(model, prompt, steps) for prompt in prompts]


@torch.no_grad()
def generated(model: Any, prompt: Prompt, steps: int, tokens: Sequence[int] | None = None) -> Run:
    """What a model generates token by token with its cache: its own choices, or these tokens whatever it chooses."""
    ids, cache, keyword = torch.tensor([prompt]), None, cache_keyword(model)
    chosen, logprobs = [], []
    for step in range(steps):
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{keyword: cache})
        cache = out[keyword]
        logprobs.append(torch.log_softmax(out.logits[0, -1].float(), dim=-1).numpy())
        chosen.append(int(logprobs[-1].argmax()) if tokens is None else tokens[step])
        ids = torch.tensor([[chosen[-1]]])
    return Run(tokens=chosen, logprobs=np.stack(logprobs))


class LlamaCpp:
    """llama.cpp's own server in this process (package xllamacpp), with keys and values cached in float32."""

    def __init__(self, path: Path) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise ExportError(
                "engine: 'llama.cpp' needs the package xllamacpp, got none installed; pip install ropescale[export]"
            ) from error
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 0  # what the file states
        parameters.n_parallel = 1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.warmup = parameters.fit_params = parameters.ui = False
        parameters.verbosity = -1
        threads = torch.get_num_threads()
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        try:
            self.server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: must be a model that llama.cpp loads, got its refusal ({error}); write it again, or see "
                f"what it prints"
            ) from error

    def run(self, prompts: Sequence[Prompt], steps: int, vocabulary: int, letter: int) -> list[Run]:
        """Greedy generation.

        The server leaves out the probabilities of a token whose bytes are no whole character. Each step therefore
        asks for one token and has it forced to be `letter`, an ASCII letter, which changes nothing about the
        probabilities that come back: those are of the model, before any choice. The greedy token is read from them.
        """
        return [self._generated(prompt, steps, vocabulary, letter) for prompt in prompts]

    def _generated(self, prompt: Prompt, steps: int, vocabulary: int, letter: int) -> Run:
        ids = list(prompt)
        logprobs = np.full((steps, vocabulary), np.nan, dtype=np.float32)
        for step in range(steps):
            asked = {
                "prompt": ids,
                "n_predict": 1,
                "n_probs": vocabulary,
                "temperature": 0,
                "cache_prompt": True,
                "logit_bias": [[letter, 1e6]],
            }
            (given,) = self.ask("/completion", asked)["completion_probabilities"]
            for entry in given["top_logprobs"]:
                logprobs[step, entry["id"]] = entry["logprob"]
            ids.append(int(np.nanargmax(logprobs[step])))
        return Run(tokens=ids[len(prompt) :], logprobs=logprobs)

    def tokenized(self, text: str) -> list[int]:
        """The token ids of a text, without those that begin or end a sequence."""
        ids: list[int] = self.ask("/tokenize", {"content": text, "add_special": False})["tokens"]
        return ids

    def ask(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the server answers.

        Raises:
            ExportError: an error that it reports, in its own words.
        """
        asked = urllib.request.Request(
            f"{self.server.listening_address}{path}",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked) as answer:
                answered: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.load(error).get("error", {}).get("message", "")
            raise ExportError(f"llama.cpp: must serve the prompt, got {said!r}; see what the file states") from error
        return answered


def mlx(path: Path, prompts: Sequence[Prompt], steps: int) -> list[Run]:
    """MLX-LM in float32, token by token with its cache.

    Raises:
        ExportError: it is not installed.
    """
    try:
        import mlx.core
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model
    except ImportError as error:
        raise ExportError(
            f"engine: 'mlx' needs the packages mlx and mlx-lm, got none installed ({error}); pip install mlx-lm, and "
            f"off a Mac mlx[cpu]"
        ) from error
    model, _ = load_model(path)
    model.set_dtype(mlx.core.float32)
    runs = []
    for prompt in prompts:
        ids, cache = list(prompt), make_prompt_cache(model)
        tokens, logprobs = [], []
        for _ in range(steps):
            logits = np.array(model(mlx.core.array([ids]), cache=cache)[0, -1].astype(mlx.core.float32))
            logprobs.append(torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy())
            tokens.append(int(logprobs[-1].argmax()))
            ids = [tokens[-1]]
        runs.append(Run(tokens=tokens, logprobs=np.stack(logprobs)))
    return runs


def vllm(path: Path, prompts: Sequence[Prompt], steps: int, arguments: dict[str, Any]) -> list[Run]:
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
        found = np.load(result)
        return [
            Run(tokens=tokens.tolist(), logprobs=logprobs)
            for tokens, logprobs in zip(found["tokens"], found["logprobs"], strict=True)
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
    from importlib.util import find_spec

    if find_spec("vllm") is not None:
        return sys.executable
    raise ExportError(
        f"engine: 'vllm' needs a Python with vLLM, got none in .venv-vllm and no {PYTHON_VARIABLE}; make one "
        f"(python -m venv vllm && vllm/bin/pip install vllm) and name it there"
    )
