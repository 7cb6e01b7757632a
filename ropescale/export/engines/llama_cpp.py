"""llama.cpp. Its rules were read and run as `ropescale.export.gguf` has them, the format that it takes.

- It has the server of its own in a Python package, xllamacpp; keys and values are cached in float32 there.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from ropescale.contents import read_tokenizer
from ropescale.destinations import require_new, written_whole
from ropescale.errors import CheckpointError, ExportError
from ropescale.export.canonical import Canonical, canonical
from ropescale.export.engines.base import ENGINES, Engine
from ropescale.export.exported import Exported, exported
from ropescale.export.origin import moved, origin_of
from ropescale.export.origin import read as read_origin
from ropescale.export.running import Prompt, Run
from ropescale.export.source import Source
from ropescale.export.stated import Stated
from ropescale.export.subject import TEXTS, Subject
from ropescale.extension import extended
from ropescale.files import parsed
from ropescale.methods import Method
from ropescale.records import Record
from ropescale.request import Request


class LlamaCpp(Engine, name="gguf"):
    """llama.cpp, and what builds on it."""

    title = "llama.cpp"
    summary = "one file for llama.cpp and what builds on it, tokenizer included"
    called = "llama.cpp"
    running = "the .gguf file in llama.cpp (package xllamacpp)"
    examples = (
        "smollm2 out/smollm2-16k.gguf --to gguf --method yarn --factor 2 --outtype q8_0",
        """tiny out/tiny.gguf --to gguf --method yarn --factor 4 --knobs '{"beta_fast": 16}'""",
        "existing.Q4_K_M.gguf longer.gguf --to gguf --patch-gguf --method yarn --factor 4",
    )
    checks = (
        "out/tiny.gguf --engine llama.cpp",
        "out/mine.gguf --engine llama.cpp --reference path/to/patched --lengths 512,9000",
    )
    verified = "xllamacpp 2026.10.11549"
    suffix = ".gguf"
    outtypes = ("f32", "f16", "bf16", "q8_0")
    extra = "export"
    trial = "llama-cli -m {}"
    every_head = False
    every_part = False
    wholes = frozenset()
    instead = "write two files with llama.cpp's own converter, and then patch_gguf that of the text"
    tolerance = 2e-3
    merged = 2e-3

    def write(self, destination: Path, source: Source, canonical: Canonical, outtype: str | None) -> Stated:
        """One file, loaded and written."""
        self.held(source.text, canonical)  # before weights load
        from ropescale.export.gguf import weights, writing

        tokenizer, model = source.tokens(), source.model()
        chosen = weights.outtype_for(model, outtype)
        size = sum(parameter.numel() for parameter in model.parameters()) * {"f32": 4, "q8_0": 1}.get(chosen, 2)
        origin = json.dumps(origin_of(source.name, source.adapter, destination))
        with written_whole(destination, size) as work:
            scaling = writing.write(work, source, model, tokenizer, canonical, chosen, origin)
        return Stated(fields={}, form=f"{scaling.form}, {chosen.upper()}", serves=canonical.main.target_length)

    def held(self, config: PreTrainedConfig, canonical: Canonical) -> Stated:
        """In the words of its file."""
        _require_package()
        from ropescale.export.gguf.architectures import architecture_of
        from ropescale.export.gguf.scaling import scaling_of

        scaling = scaling_of(canonical.main, divisors=architecture_of(config).divisors, name=config.model_type)
        return Stated(fields={}, form=scaling.form, serves=canonical.main.target_length)

    def subject(self, path: Path) -> Subject:
        """The file, in a server that is started once."""
        from ropescale.export.gguf import reading, weights

        facts = reading.read_facts(path)
        record = None if facts.record is None else Record.from_dict(parsed(facts.record, path))
        started = cache(lambda: InProcess(path))

        def run(prompts: Sequence[Prompt], steps: int) -> list[Run]:
            return started().run(prompts, steps, facts.vocabulary, facts.letter)

        def rounded(model: nn.Module) -> None:
            if facts.precision in self.outtypes:
                weights.stored_as(model, facts.precision)

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

        return Subject(
            path=path,
            record=record,
            source=facts.source,
            original_length=facts.length if record is None else record.original_length,
            target_length=facts.length,
            precision=facts.precision,
            dtype=facts.precision,
            approximation=facts.approximation,
            tokens=facts.tokens,
            run=run,
            origin=read_origin(facts.origin),
            rounded=rounded,
            tokenization=tokenization,
        )


class InProcess:
    """llama.cpp's own server in this process (package xllamacpp), with keys and values cached in float32."""

    def __init__(self, path: Path) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise ExportError(
                f"engine: 'llama.cpp' needs the package xllamacpp, got none installed; pip install "
                f"ropescale[{LlamaCpp.extra}]"
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


def _require_package() -> None:
    """Refuse to write where the package gguf is not installed.

    Raises:
        ExportError: it is not.
    """
    try:
        import gguf  # noqa: F401 # the room of the format imports it
    except ImportError as error:
        raise ExportError(
            f"to: 'gguf' needs the package gguf, got none installed ({error}); pip install ropescale[{LlamaCpp.extra}]"
        ) from error


def patch_gguf(
    path: str | Path,
    destination: str | Path,
    *,
    method: str | Method,
    factor: float | None = None,
    target_length: int | None = None,
    original_length: int | None = None,
    **knobs: Any,
) -> Exported:
    """Add a scaling to an existing GGUF file: a copy with other metadata, every weight byte for byte as it was.

    Args:
        path: a .gguf file whose positions are as pretrained, of any quantisation.
        destination: a new file.
        method: a method of fixed frequencies, with `factor` or `target_length` and its knobs as in `ropescale.patch`.
        factor: see `method`.
        target_length: see `method`.
        original_length: tokens the model was pretrained for; left out, what the file states.
        **knobs: of the method.

    Raises:
        ExportError: an architecture that is not known here, a file that is scaled already, or a method that
            llama.cpp cannot hold.
        CheckpointError: not a GGUF file, or a destination that cannot be written.
        InvalidArgumentError: arguments that break their rules.
    """
    request = Request.of(locals())
    _require_package()
    from ropescale.export.gguf import reading
    from ropescale.export.gguf.architectures import reads_divisors
    from ropescale.export.gguf.scaling import scaling_of
    from ropescale.export.gguf.writing import rewrite

    engine = ENGINES[LlamaCpp.name]
    existing, new = Path(path).expanduser(), Path(destination).expanduser()
    engine.require(new, None)
    require_new(new)
    reader = reading.reader_of(existing)
    config = reading.file_config(reader, existing)
    extended(config, request).write(config)
    rotation = canonical(config)
    name = reading.required(reader, existing, "general.architecture", reading.TEXT)
    scaling = scaling_of(rotation.main, divisors=reads_divisors(name), name=name)
    told_origin = reading.contents(reader, existing, reading.ORIGIN_KEY, reading.TEXT, "{}")
    origin = moved(read_origin(told_origin), existing, new)
    with written_whole(new, existing.stat().st_size) as work:
        rewrite(work, reader, existing, scaling, rotation, json.dumps(origin))
    stated = Stated(fields={}, form=f"{scaling.form}, weights as they were", serves=rotation.main.target_length)
    return exported(engine, new, rotation, stated)
