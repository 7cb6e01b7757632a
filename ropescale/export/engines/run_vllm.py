"""Greedy generation in vLLM, in the Python that has it: a program of its own, which imports nothing of ropescale.

    python -P run_vllm.py REQUEST.json RESULT.npz

REQUEST: model, steps, prompts (token ids), arguments (of vllm.LLM). RESULT: tokens [prompts, steps] and logprobs
[prompts, steps, vocabulary], nan where vLLM gave none.
"""

import json
import os
import sys
from typing import Any

import numpy as np


def main(request_file: str, result_file: str) -> None:
    """Generates from every prompt and saves what came."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams

    with open(request_file, encoding="utf-8") as file:
        request: dict[str, Any] = json.load(file)
    engine = LLM(
        model=request["model"],
        dtype="float32",
        enforce_eager=True,
        max_logprobs=-1,
        max_num_seqs=1,
        seed=0,
        **request["arguments"],
    )
    vocabulary = engine.llm_engine.model_config.get_vocab_size()
    steps, prompts = request["steps"], request["prompts"]
    sampling = SamplingParams(temperature=0.0, max_tokens=steps, logprobs=-1, ignore_eos=True, detokenize=False)
    tokens = np.zeros((len(prompts), steps), dtype=np.int64)
    logprobs = np.full((len(prompts), steps, vocabulary), np.nan, dtype=np.float32)
    for place, prompt in enumerate(prompts):
        done = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)[0].outputs[0]
        tokens[place] = done.token_ids
        for step, entries in enumerate(done.logprobs):
            for token, entry in entries.items():
                logprobs[place, step, token] = entry.logprob
    np.savez(result_file, tokens=tokens, logprobs=logprobs, length=engine.llm_engine.model_config.max_model_len)


if __name__ == "__main__":
    main(*sys.argv[1:])
