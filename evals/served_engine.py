"""A language-model class for the harness over vLLM: the requests of `exact.py`, answered by prompt log-probabilities.

The harness's own class for vLLM asks for the metadata of a package named vllm, which the builds for CPUs do not have;
it cuts prompts that are as long as the model, and asks again for every span of a window. This one imports vllm.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig, PreTrainedConfig

from ropescale.checks import did_you_mean
from ropescale.contents import read_config
from ropescale.errors import CheckpointError, InvalidArgumentError, first_line
from ropescale.evals.batching import Span, sheaves_of
from ropescale.evals.exact import Asked, ExactLM, asked_of
from ropescale.evals.generation import before_end, ends_given
from ropescale.evals.tokens import named_tokenizer
from ropescale.families.parts import place_of_text, text_of
from ropescale.trust import trusted

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# The length of a request is ours to check: with the one token that vLLM always writes, a prompt of all that a
# checkpoint is made for is one token longer than its config says
os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
# Its processes talk over sockets in the folder for temporary files. The path of one may have 107 bytes (unix(7)), of
# which its name takes 37: where that folder's is longer, as on a disk that was chosen for its room, they lie elsewhere
if len(os.fsencode(tempfile.gettempdir())) > 107 - 37:
    os.environ.setdefault("VLLM_RPC_BASE_PATH", "/tmp")

from vllm import LLM, EngineArgs, SamplingParams, TokensPrompt  # which reads the variables

BEHIND = -1  # no token: what stands behind the last one of a sequence that is read whole
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")  # of what the harness may ask


class ServedLM(ExactLM, TemplateLM):  # type: ignore[misc] # lm_eval ships no types
    """A checkpoint in vLLM, as the harness sees it.

    Arguments:
        path: the folder of the checkpoint.
        tokenizer: the name of one; that of the checkpoint if not given.
        length: tokens that it may read, the reply included; those that its config says if not given.
        dtype: of the weights, by the name that torch has for it.
        enable_thinking, think_end_token: as `RopescaleLM` takes them.
        engine: further arguments of vLLM (`vllm.EngineArgs`), such as `tensor_parallel_size`.

    Raises:
        InvalidArgumentError: an argument that vLLM does not have.
        CheckpointError: vLLM does not load the checkpoint.
    """

    backend = "causal"
    add_bos_token = None
    reads_last = True  # a prompt's log-probabilities are of tokens that are in it

    def __init__(
        self,
        path: str,
        *,
        tokenizer: str | None = None,
        length: int | None = None,
        dtype: str = "auto",
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        **engine: Any,
    ):
        super().__init__()
        config = read_config(path)
        self._config = text_of(config)
        self._max_length = length or int(self._config.max_position_embeddings)
        self.tokenizer = copy.deepcopy(named_tokenizer(tokenizer or path))
        self.think_end_token = think_end_token
        self._template = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._ends = _ends(path, config)
        self.llm = _loaded(path, config, {"dtype": dtype, "max_model_len": self._max_length + 1, **engine})

    # What the harness asks besides

    @property
    def max_length(self) -> int:  # type: ignore[override] # a property here as in the harness
        """Tokens that the model reads."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:  # type: ignore[override]
        """Tokens of a reply where a task does not say."""
        return 256

    @property
    def eot_token_id(self) -> int | None:  # type: ignore[override]
        """That of the end of a text."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    @property
    def prefix_token_id(self) -> int | None:  # type: ignore[override]
        """What stands before a text without context."""
        begin: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """By what the harness knows its prompts again."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text; without the system's turn where the template has none."""
        for turns in (chat_history, [turn for turn in chat_history if turn["role"] != "system"]):
            try:
                text: str = self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **self._template,
                )
            except TemplateError:
                if turns is not chat_history:
                    raise
            else:
                return text
        raise AssertionError("the second turn of the loop returns or raises")

    def close(self) -> None:
        """Give back what vLLM holds: its processes, and the memory of devices."""
        core = self.llm.llm_engine.engine_core
        del self.llm
        core.shutdown()
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()

    # What runs the model says

    @property
    def _weights(self) -> torch.dtype:
        dtype: torch.dtype = self.llm.llm_engine.model_config.dtype
        return dtype

    def _require_embedded(self, ids: Sequence[int]) -> None:
        largest, rows = max(ids, default=0), self._config.vocab_size
        if largest >= rows:
            raise InvalidArgumentError(
                f"tokenizer: its tokens must have rows in the model's embedding, got id {largest} where there are "
                f"{rows} rows; give the tokenizer of the model's training, or resize the embedding, train it and save "
                f"the model"
            )

    def _scored(self, spans: Sequence[Span]) -> Iterator[tuple[int, float, bool, int]]:
        # The token that is scored last is in the prompt too: sheaves are of whole sequences, not of inputs
        sheaves = sheaves_of([dataclasses.replace(span, ids=(*span.ids, BEHIND)) for span in spans], shared=True)
        asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        for sheaf, output in zip(sheaves, self._run([sheaf.ids for sheaf in sheaves], asked), strict=True):
            for number in sheaf.members:
                span = spans[number]
                entries = output.prompt_logprobs[len(span.ids) - span.scored : len(span.ids)]
                told = [
                    (entry[token].logprob, entry)
                    for token, entry in zip(span.ids[-span.scored :], entries, strict=True)
                ]
                greedy = all(own >= max(one.logprob for one in entry.values()) for own, entry in told)
                yield number, sum(own for own, _ in told), greedy, sheaf.cost(number)

    def _written(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, str]]:
        for prompt, ids in zip(asked, self._replies(asked, {"temperature": 0.0}), strict=True):
            yield prompt, self._cleaned(before_end(ids, self._ends), prompt.stops)

    def _sampled(self, requests: Sequence[Instance]) -> list[str]:
        replies = []
        for number, request in enumerate(requests):
            prompt = asked_of(self, number, request)
            given = dict(normalize_gen_kwargs(request.args[1], self.max_gen_toks))
            known = {name: given[name] for name in SAMPLING if given.get(name) is not None}
            other = sorted({*given} - {*known, *SAMPLING, "until", "max_gen_toks", "do_sample"})
            if other:
                raise InvalidArgumentError(
                    f"generation_kwargs: those of a task must be among {', '.join(SAMPLING)} with vLLM, got "
                    f"{other[0]!r}; use the backend transformers"
                )
            (ids,) = self._replies([prompt], known)
            replies.append(self._cleaned(before_end(ids, self._ends), prompt.stops))
        return replies

    def _replies(self, asked: Sequence[Asked], sampling: Mapping[str, Any]) -> list[list[int]]:
        """The ids that are written after prompts, up to a stop string or an end."""
        how = [
            SamplingParams(
                max_tokens=prompt.room,
                stop=list(prompt.stops),
                stop_token_ids=sorted(self._ends),
                skip_special_tokens=False,
                spaces_between_special_tokens=False,
                **sampling,
            )
            for prompt in asked
        ]
        return [list(output.outputs[0].token_ids) for output in self._run([prompt.ids for prompt in asked], how)]

    def _run(self, sequences: Sequence[Sequence[int]], how: Any) -> list[Any]:
        prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids in sequences]
        outputs: list[Any] = self.llm.generate(prompts, how, use_tqdm=False)
        return outputs


def require_arguments(engine: Mapping[str, Any]) -> None:
    """Refuse arguments that vLLM does not have.

    Raises:
        InvalidArgumentError: names the first of them.
    """
    known = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in engine:
        if name not in known:
            raise InvalidArgumentError(
                f"engine_args: must be arguments of vllm.EngineArgs, got {name!r}; "
                f"{did_you_mean(name, known, otherwise='see what vLLM says of them')}"
            )


def _loaded(path: str, config: PreTrainedConfig, arguments: Mapping[str, Any]) -> LLM:
    """The checkpoint in vLLM, its text decoder alone where it sees images too.

    Raises:
        InvalidArgumentError: an argument that vLLM does not have.
        CheckpointError: vLLM does not load it.
    """
    require_arguments(arguments)
    given = {"enforce_eager": not torch.accelerator.is_available(), "seed": 0, "use_tqdm_on_load": False}
    if place_of_text(config):
        given["language_model_only"] = True
    try:
        return LLM(model=path, trust_remote_code=trusted(), **{**given, **arguments})
    except Exception as error:  # nothing of ours runs in it, and each library below has classes of errors of its own
        raise CheckpointError(
            f"vLLM: must load the model, got {type(error).__name__}: {first_line(error)}; set VLLM_LOGGING_LEVEL=INFO "
            f"to see what it says, and engine_args for what it needs, such as "
            f'{{"gpu_memory_utilization": 0.8}}'
        ) from error


def _ends(path: str, config: PreTrainedConfig) -> set[int]:
    """Ids at which Transformers would end a sequence."""
    try:
        settings = GenerationConfig.from_pretrained(path)
    except OSError:  # no such file, where Transformers goes by the config
        settings = GenerationConfig.from_model_config(config)
    return ends_given(settings)
