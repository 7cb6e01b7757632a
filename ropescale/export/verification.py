"""Does the engine compute what the patched model computes? Runs the engine, and compares.

The engine generates greedily from prompts below the original length, beyond it and up to the target length. The
patched model then scores, in one pass, what the engine wrote, and every log-probability of the vocabulary is compared
at every step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ropescale.checks import as_float, require_path, require_whole, several
from ropescale.console import Console
from ropescale.errors import InvalidArgumentError, shortened
from ropescale.export.engines.base import run_as
from ropescale.export.origin import adapter_in
from ropescale.export.reference import reference_folder, reference_model, tokenizer_folder
from ropescale.export.running import Prompt, Run, generated
from ropescale.trust import takes_trust

STEPS = 16  # tokens that the engine generates from each prompt
# Weights in fewer bits: engines round activations as well, by which the log-probabilities of tokens that nobody
# would choose move by whole units. So two other measures count: the Kullback-Leibler divergence from the model, in
# nats, at the worst step, and the share of greedy tokens, which a forgotten attention factor brings down to a half.
DIVERGENCES = {"f16": 1e-3, "bf16": 5e-3, "q8_0": 1e-1}
AGREEMENT = 0.8


@dataclass(frozen=True, kw_only=True)
class Check:
    """One prompt, in the engine and in the patched model."""

    length: int  # tokens of the prompt
    agreed: int  # steps at which the patched model would choose the engine's token
    steps: int
    worst: float  # the largest difference of a log-probability
    step: int  # where that is
    token: int  # of which token
    margin: float  # the smallest lead of the patched model's first choice over its second
    divergence: float  # Kullback-Leibler, from the patched model's choices to the engine's, nats, at the worst step


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the engine computes what the patched model computes."""

    path: Path
    engine: str
    method: str
    tolerance: float
    checks: tuple[Check, ...]
    rounded: bool = False  # weights in fewer bits than float32: what counts is the divergence
    approximation: str = ""  # the label of the export, where it has one
    tokenization: str = ""  # what is wrong with the tokenizer; empty where nothing is
    held: str = ""  # what this cannot show, in words

    @property
    def worst(self) -> Check:
        """The check that is farthest off."""
        return max(self.checks, key=lambda check: check.divergence if self.rounded else check.worst)

    @property
    def exact(self) -> bool:
        """Whether nothing is beyond rounding."""
        if self.tokenization:
            return False
        if not self.rounded:
            return self.worst.worst <= self.tolerance
        agreed = sum(check.agreed for check in self.checks) / sum(check.steps for check in self.checks)
        return self.worst.divergence <= self.tolerance and agreed >= AGREEMENT

    def __str__(self) -> str:
        worst = self.worst
        agreed = sum(check.agreed for check in self.checks)
        steps = sum(check.steps for check in self.checks)
        verdict = ("exact to its rounding" if self.rounded else "exact") if self.exact else "OFF"
        said = f"{self.path}: {verdict} in {self.engine} ({self.method}): {agreed} of {steps} greedy tokens, "
        if self.rounded:
            said += f"largest divergence {worst.divergence:.1e} nats (tolerance {self.tolerance:.0e}), "
        said += f"largest difference of a log-probability {worst.worst:.1e}"
        if not self.rounded:
            said += f" (tolerance {self.tolerance:.0e})"
        said += f", of token {worst.token} at step {worst.step + 1} after {worst.length:,} tokens"
        if self.approximation:
            said += f"; labelled an approximation: {self.approximation}"
        if self.tokenization:
            said += f"; {self.tokenization}"
        if self.held:
            said += f"; {self.held}, since nothing says which model it was made from"
        return said


@takes_trust
def verify(
    path: str | Path,
    *,
    engine: str,
    reference: str | Path | None = None,
    adapter: str | Path | None = None,
    lengths: Sequence[int] | None = None,
    steps: int = STEPS,
    seed: int = 0,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
) -> Verdict:
    """Run an export in its engine and compare it with the patched model.

    Args:
        path: what `export` wrote: a folder, or a .gguf file.
        engine: "transformers", "vllm" (in an environment of its own: `make vllm`), "llama.cpp", or "mlx".
        reference: the model that was exported; left out, what the export says that it was made from: a short name, a
            hub id, or a folder beside it. A folder of which that is not found is held against its own weights, and
            a .gguf file has to be given one. It may be patched or not: the record in the export says what was done.
        adapter: that was merged into the reference; left out, what the export says. It is loaded by PEFT and not
            merged. Where it carries a record, that says how the reference is patched.
        lengths: of the prompts in tokens; half the original length, half-way to the target and the target, less
            the steps, by default.
        steps: tokens to generate.
        seed: of the prompts.
        tolerance: the largest difference of a log-probability that counts as rounding, or for weights in fewer bits
            the largest divergence in nats; by default that of the engine and of what the weights are stored in.
        trust_remote_code: run Python code that lies in the reference.

    Raises:
        CheckpointError: no export there, or one that cannot be read.
        ExportError: the engine is not there, or refuses the model.
        InvalidArgumentError: arguments that break their rules.
        UnsupportedModelError: no text model, or one of a family that is not patched.
    """
    runner = run_as(engine)
    require_path("path:", path)
    require_whole("steps:", steps, 1, rule="a whole number of at least 1", remedy=f"leave it out for {STEPS}")
    if tolerance is not None and not 0 <= as_float(tolerance) < math.inf:
        raise InvalidArgumentError(
            f"tolerance: must be a number of at least 0, got {shortened(tolerance)}; leave it out for the engine's own"
        )
    lengths = None if lengths is None else several("lengths:", lengths, int, "whole numbers of tokens")
    path = Path(path).expanduser()
    subject = runner.subject(path)
    adapter = adapter_in(subject.origin, path) if adapter is None else adapter
    folder = reference_folder(subject, reference, adapter)
    precision = subject.precision if adapter is None else subject.dtype
    if tolerance is None:
        known = {"f32": runner.tolerance if adapter is None else runner.merged, **DIVERGENCES}
        if precision not in known:
            raise InvalidArgumentError(
                f"tolerance: must be given for weights stored as {precision}, got None; it is a divergence in nats, "
                f"for q8_0 {DIVERGENCES['q8_0']:g}"
            )
        tolerance = known[precision]
    original, target = subject.original_length, subject.target_length
    chosen = lengths or default_lengths(original, target, steps)
    for length in chosen:
        if not 1 <= length <= target - steps:
            raise InvalidArgumentError(
                f"lengths: must leave room for {steps} tokens within the target length ({target}), got {length}; give "
                f"shorter prompts"
            )
    prompts = [prompt_of(subject.tokens, length, seed + place) for place, length in enumerate(chosen)]
    with Console(stderr=True).status(f"{engine}: {len(prompts)} prompts of {', '.join(map(str, chosen))} tokens"):
        runs = subject.run(prompts, steps)
        model = reference_model(subject, folder, adapter)
        checks = []
        for prompt, run in zip(prompts, runs, strict=True):
            # against itself token by token too: one pass rounds otherwise, which is the model's own noise
            expected = (
                generated(model, prompt, steps, run.tokens).logprobs
                if runner.by_token
                else scored(model, prompt, run.tokens)
            )
            checks.append(compared(prompt, run, expected))
    return Verdict(
        path=path,
        engine=engine,
        method=subject.method,
        tolerance=tolerance,
        checks=tuple(checks),
        rounded=precision != "f32",
        approximation=subject.approximation,
        tokenization=subject.tokenization(tokenizer_folder(folder, adapter)),
        held="against its own weights" if folder == path.resolve() else "",
    )


def default_lengths(original: int, target: int, steps: int) -> list[int]:
    """Prompts below the original length, beyond it, and up to the target length."""
    longest = max(target - steps, 1)
    return sorted({min(length, longest) for length in (max(original // 2, 1), (original + target) // 2, longest)})


def prompt_of(tokens: Sequence[int], length: int, seed: int) -> Prompt:
    """Random tokens, the last of which repeat some of the first eighth: what comes next lies far back."""
    chosen = torch.randint(len(tokens), (length,), generator=torch.Generator().manual_seed(seed))
    prompt = [int(tokens[place]) for place in chosen]
    start, repeated = length // 8, min(32, length // 4)
    prompt[length - repeated :] = prompt[start : start + repeated]
    return prompt


@torch.no_grad()
def scored(model: nn.Module, prompt: Prompt, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """[steps, vocabulary] float32: the model's log-probabilities for each of these tokens, in one pass."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens)).logits[0].float()
    logprobs: np.ndarray[Any, Any] = torch.log_softmax(logits, dim=-1).numpy()
    return logprobs


def compared(prompt: Prompt, run: Run, expected: np.ndarray[Any, Any]) -> Check:
    """One prompt's differences."""
    vocabulary = min(expected.shape[1], run.logprobs.shape[1])
    expected, found = expected[:, :vocabulary], run.logprobs[:, :vocabulary]
    differences = np.abs(expected - found)
    differences = np.where(np.isnan(differences), np.inf, differences)  # what the engine did not give
    step, token = (int(place) for place in np.unravel_index(differences.argmax(), differences.shape))
    divergence = float(divergences(expected, found).max())
    first_two = np.sort(expected, axis=1)[:, -2:]
    return Check(
        length=len(prompt),
        agreed=int((expected.argmax(axis=1) == np.array(run.tokens)).sum()),
        steps=len(run.tokens),
        worst=float(differences[step, token]),
        step=step,
        token=token,
        margin=float((first_two[:, 1] - first_two[:, 0]).min()),
        divergence=math.inf if math.isnan(divergence) else divergence,
    )


def divergences(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[steps]: Kullback-Leibler divergence of `found` from `expected`, [steps, vocabulary] log-probabilities, nats."""
    wide = [values.astype(np.float64) for values in (expected, found)]  # 50,000 terms of float32 sum to 1 plus 1e-5
    whole = [values - np.log(np.exp(values).sum(axis=1, keepdims=True)) for values in wide]
    divergence: np.ndarray[Any, Any] = (np.exp(whole[0]) * (whole[0] - whole[1])).sum(axis=1)
    return divergence
