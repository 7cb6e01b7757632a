"""Does the engine compute what the patched model computes? Runs the engine, and compares.

The engine generates greedily from prompts below the original length, beyond it and up to the target length. The
patched model then scores, in one pass, what the engine wrote, and every log-probability of the vocabulary is compared
at every step.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from ropescale.checkpoint import VOCABULARIES, read_config, read_tokenizer
from ropescale.console import Console
from ropescale.errors import CheckpointError, InvalidArgumentError
from ropescale.export import source
from ropescale.export.origin import adapter_in, source_in
from ropescale.export.origin import read as read_origin
from ropescale.export.rotation import read_original
from ropescale.export.running import LlamaCpp, Prompt, Run, generated, mlx, transformers, vllm
from ropescale.files import parsed
from ropescale.heads import require_language_model
from ropescale.injection.patch import patch_of
from ropescale.patching import repatch
from ropescale.records import EXPORT_FIELD, Record, saved_record
from ropescale.trust import takes_trust
from ropescale.wrappers import bare

ENGINES = ("llama.cpp", "mlx", "transformers", "vllm")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template")
STEPS = 16  # tokens that the engine generates from each prompt
# The largest difference of any log-probability that is rounding of float32, which grows with length: vLLM differs by
# 9e-5 after 512 tokens of SmolLM2 and by up to 2.8e-4 after 9,000. A wrong rotation differs by 0.01 and more on the
# same prompts (docs/exports.md).
TOLERANCES = {"transformers": 1e-5, "vllm": 1e-3, "mlx": 1e-3, "f32": 2e-3}
# The same of weights that an adapter was added into: the sum rounds once more
MERGED = {**TOLERANCES, "transformers": 1e-4}
# Weights in fewer bits: llama.cpp rounds activations as well, by which the log-probabilities of tokens that nobody
# would choose move by whole units. So two other measures count: the Kullback-Leibler divergence from the model, in
# nats, at the worst step, and the share of greedy tokens, which a forgotten attention factor brings down to a half.
DIVERGENCES = {"f16": 1e-3, "bf16": 5e-3, "q8_0": 1e-1}
AGREEMENT = 0.8


# What tokenizers split differently: digits, white space before digits, contractions, capitals, accents, other scripts
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1984, 12345 of them\n\n1. weren't    here; we'LL see.",
    "    def f(x):\n\treturn x**2  # naïve café, 你好, 🙂\r\n",
)


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
    if engine not in ENGINES:
        raise InvalidArgumentError(
            f"engine: must be one of {', '.join(ENGINES)}, got {engine!r}; the others are not run here"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidArgumentError(
            f"steps: must be a whole number of at least 1, got {steps!r}; leave it out for {STEPS}"
        )
    path = Path(path).expanduser()
    subject = _gguf_subject(path) if engine == "llama.cpp" else _folder_subject(path, engine)
    adapter = adapter or adapter_in(subject.origin, path)
    if adapter is not None and subject.dtype in DIVERGENCES:
        subject = dataclasses.replace(subject, precision=subject.dtype)  # merged in that type, and rounded to it
    folder = reference_folder(subject, reference, adapter)
    if tolerance is None:
        known = {**(TOLERANCES if adapter is None else MERGED), **DIVERGENCES}
        if subject.precision not in known:
            raise InvalidArgumentError(
                f"tolerance: must be given for weights stored as {subject.precision}, got None; it is a divergence in "
                f"nats, for q8_0 {DIVERGENCES['q8_0']:g}"
            )
        tolerance = known[subject.precision]
    original, target = subject.original_length, subject.target_length
    chosen = list(lengths) if lengths else default_lengths(original, target, steps)
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
            whole = engine != "transformers"
            expected = (
                scored(model, prompt, run.tokens) if whole else generated(model, prompt, steps, run.tokens).logprobs
            )
            checks.append(compared(prompt, run, expected))
    return Verdict(
        path=path,
        engine=engine,
        method=subject.method,
        tolerance=tolerance,
        checks=tuple(checks),
        rounded=subject.precision not in TOLERANCES,
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
    found: np.ndarray[Any, Any] = torch.log_softmax(logits, dim=-1).numpy()
    return found


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


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An export, with what it says about itself."""

    path: Path
    method: str
    record: Record | None
    source: str  # a name to take the reference from; empty where the weights are in `path`
    original_length: int
    target_length: int
    precision: str  # a key of TOLERANCES or DIVERGENCES, or another type of weights
    approximation: str
    tokens: list[int]  # that prompts are made of
    run: Callable[[Sequence[Prompt], int], list[Run]]
    origin: dict[str, Any] = field(default_factory=dict)  # what it says that it was made from
    dtype: str = ""  # a key of DIVERGENCES, of weights in a folder that are in such a type
    stored: Callable[[nn.Module], None] = lambda model: None  # rounds weights to what the export holds
    tokenization: Callable[[Path], str] = lambda folder: ""  # what the engine's tokenizer does otherwise than theirs


def _method(record: Record | None, original: int, target: int) -> str:
    return "as published" if record is None else f"{record.method} x{target / original:g}"


def _folder_subject(path: Path, engine: str) -> Subject:
    """An export to a folder."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: must be a folder that was exported for {engine}, got {'a file' if path.exists() else 'nothing'}"
            f"; write it with `ropescale export --to {engine}`"
        )
    config = read_config(str(path))
    source.require_text_model(config)
    require_language_model(config, str(path))
    record, label = saved_record(config), getattr(config, EXPORT_FIELD, None) or {}
    written = label.get("engine", "transformers")
    if written != engine:
        raise InvalidArgumentError(
            f"engine: must be the one that {path} was written for ({written!r}), got {engine!r}; give "
            f"engine={written!r}, or export it again with to={engine!r}"
        )
    original = read_original(config, record)
    target = int(config.max_position_embeddings) if record is None else record.target_length
    arguments: dict[str, Any] = {}
    for flag in label.get("flags", []):
        name, value = flag.removeprefix("--").split()
        arguments[name.replace("-", "_")] = int(value)

    def run(prompts: Sequence[Prompt], steps: int) -> list[Run]:
        if engine == "vllm":
            return vllm(path, prompts, steps, arguments)
        if engine == "mlx":
            return mlx(path, prompts, steps)
        return transformers(path, prompts, steps)

    return Subject(
        path=path,
        method=_method(record, original, target),
        record=record,
        source="",
        original_length=original,
        target_length=target,
        precision=engine,
        approximation=label.get("approximation", ""),
        tokens=_plain_tokens(path, config),
        run=run,
        origin=label,
        dtype={"torch.float16": "f16", "torch.bfloat16": "bf16"}.get(str(config.dtype), ""),
        tokenization=lambda folder: _tokenization(folder, path),
    )


def _tokenization(theirs: Path, path: Path) -> str:
    """What the tokenizer of an exported folder does otherwise than that of its source; empty for nothing."""
    if not any(any(theirs.glob(name)) for name in VOCABULARIES):
        return ""
    expected = read_tokenizer(theirs)
    try:
        found = read_tokenizer(path)
        special = [getattr(found, name) == getattr(expected, name) for name in SPECIAL]
    except Exception as error:  # whatever the tokenizer's libraries raise on files that are damaged
        return f"its tokenizer cannot be read ({type(error).__name__})"
    for text in TEXTS:
        ours, given = expected(text).input_ids, found(text).input_ids
        if ours != given:
            return f"its tokenizer makes {given} of {text!r}, where the model's makes {ours}"
    if found.get_vocab() != expected.get_vocab():
        return "its tokenizer has another vocabulary than the model's"
    if _serialised(found) != _serialised(expected):
        return "its tokenizer splits or merges otherwise than the model's"
    if not all(special):
        return f"its tokenizer has another {SPECIAL[special.index(False)]} than the model's"
    return ""


def _serialised(tokenizer: Any) -> str:
    """All that a tokenizer does, in JSON; nothing of one that is not made of JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None else str(backend.to_str())


def _plain_tokens(path: Path, config: PreTrainedConfig) -> list[int]:
    """Token ids that are no special ones, as far as there is a tokenizer to say so."""
    special: set[int] = set()
    size = int(config.vocab_size)
    if (path / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(path)
        special, size = set(tokenizer.all_special_ids), min(size, len(tokenizer))
    return [token for token in range(size) if token not in special]


def _gguf_subject(path: Path) -> Subject:
    """An export to a .gguf file."""
    from ropescale.export import gguf

    facts = gguf.read_facts(path)
    record = None if facts.record is None else Record.from_dict(parsed(facts.record, path))
    engine: list[LlamaCpp] = []

    def started() -> LlamaCpp:
        if not engine:
            engine.append(LlamaCpp(path))
        return engine[0]

    def run(prompts: Sequence[Prompt], steps: int) -> list[Run]:
        return started().run(prompts, steps, facts.vocabulary, facts.letter)

    def stored(model: nn.Module) -> None:
        if facts.precision in gguf.OUTTYPES:
            gguf.stored_as(model, facts.precision)

    def tokenization(folder: Path) -> str:
        if not (folder / "tokenizer.json").is_file():
            return ""
        tokenizer = read_tokenizer(folder)
        for text in TEXTS:
            ours, theirs = tokenizer(text, add_special_tokens=False).input_ids, started().tokenized(text)
            if ours != theirs:
                return f"its tokenizer makes {theirs} of {text!r}, where the model's makes {ours}"
        words = tokenizer.get_vocab()
        wrong = [word for word, place in words.items() if place < len(facts.texts) and facts.texts[place] != word]
        return f"its tokenizer has another text for {wrong[0]!r} ({len(wrong)} such)" if wrong else ""

    original = facts.length if record is None else record.original_length
    return Subject(
        path=path,
        method=_method(record, original, facts.length),
        record=record,
        source=facts.source,
        original_length=original,
        target_length=facts.length,
        precision=facts.precision,
        approximation=facts.approximation,
        tokens=facts.tokens,
        run=run,
        origin=read_origin(facts.origin),
        stored=stored,
        tokenization=tokenization,
    )


def tokenizer_folder(folder: Path, adapter: str | Path | None) -> Path:
    """Where the tokenizer of the patched model is: with the adapter, where it has one."""
    return folder if adapter is None or not Path(adapter, "tokenizer_config.json").is_file() else Path(adapter)


def reference_folder(subject: Subject, reference: str | Path | None, adapter: str | Path | None) -> Path:
    """Where the weights of the patched model are: in what was exported; else, without an adapter, in the export.

    Raises:
        CheckpointError: nowhere.
    """
    if reference is None:
        reference = source_in(subject.origin, subject.path) or subject.source or None
    if reference is not None:
        return source.local_folder(str(reference))
    if subject.path.is_dir() and adapter is None:
        return subject.path.resolve()
    raise CheckpointError(
        f"reference: must be the model that {subject.path} was made from, got none, and nothing in it says which; "
        f"pass reference=SRC"
    )


def reference_model(subject: Subject, folder: Path, adapter: str | Path | None) -> nn.Module:
    """The patched model in float32: the weights of a folder, with what the record says done to them.

    That is the record of the adapter where it carries one, else that of the export, else that of the folder. An
    adapter is on the model as PEFT runs it, never merged: what merging does is what is verified.
    """
    config = read_config(str(folder))
    require_language_model(config, str(folder))
    model: nn.Module = source.loaded(folder) if adapter is None else source.adapted(folder, adapter)
    model = model.float().eval()
    if adapter is None:
        subject.stored(model)
    record = subject.record or saved_record(config)
    if record is not None and patch_of(model) is None:
        with warnings.catch_warnings(action="ignore"):  # of one rotary for layers of several kinds: said at patch time
            repatch(bare(model), record)
    return model
