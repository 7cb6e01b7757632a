"""Models of the harness that read by rule, and tokenizers of several kinds, for the tests of the retrieval tasks."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ropescale.evals.passkey import FILLER
from ropescale.evals.texts import sample
from ropescale.evals.tokens import named_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "evals" / "tasks"
TINY = ROOT / "ropescale" / "checkpoints" / "tiny"


def byte_level() -> PreTrainedTokenizerBase:
    """Byte-level BPE as GPT-2's, of 3,000 tokens, which joins digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    numbers = " ".join(str(random.Random(0).randint(0, 10**6)) for _ in range(2000))
    tokenizer.train_from_iterator([sample()[0].text[:60_000], FILLER, numbers], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace() -> PreTrainedTokenizerBase:
    """A unigram tokenizer with sentencepiece's spaces, and a beginning-of-sequence token that it adds by itself."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = [sample()[0].text[:30_000], FILLER, " ".join(map(chr, range(32, 127))), "\n"]
    trainer = trainers.UnigramTrainer(
        vocab_size=1000, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def with_leading_token() -> PreTrainedTokenizerBase:
    """The tiny tokenizer as one that puts its beginning-of-sequence token first by itself, as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    token = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.bos_token_id)]
    )
    return tokenizer


def bytes_alone() -> PreTrainedTokenizerBase:
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "tiny": lambda: named_tokenizer("tiny"),
    "byte-level": byte_level,
    "sentencepiece-like": metaspace,
    "with a leading token": with_leading_token,
    "bytes": bytes_alone,
}


def joined(doc: dict[str, Any]) -> str:
    """Prompt and answer prefix as the harness joins them, by its rule and not by the tasks' own code."""
    return f"{doc['prompt']} {doc['gen_prefix']}"


def evaluated(model: LM, tasks: Sequence[str], **metadata: Any) -> dict[str, Any]:
    """What the harness makes of a model on tasks of ours."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    results: dict[str, Any] = simple_evaluate(model, tasks=list(tasks), task_manager=manager)
    return results


class _Reader(LM):  # type: ignore[misc] # lm_eval ships no types
    """A model that answers by a function of the text."""

    def __init__(self, answer: Callable[[str], str]):
        super().__init__()
        self._answer = answer

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One reply a request."""
        return [self._answer(request.args[0]) for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nothing here asks for it."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nothing here asks for it."""
        raise NotImplementedError


def perfect_memory() -> LM:
    """A model that remembers every word of the prompt, and reads it by the rules of the tasks."""
    return _Reader(recalled)


def chance(seed: int) -> LM:
    """A model that writes numbers and words it has not read."""
    rng = random.Random(seed)
    words = sample()[1].text.split()
    return _Reader(lambda text: " ".join([str(rng.randint(10_000, 9_999_999)), *rng.sample(words, 12)]))


def recalled(text: str) -> str:
    """The answer to a prompt of any of the retrieval tasks."""
    if text.endswith("The pass key is"):
        return " " + re.findall(r"The pass key is (\d+)\. Remember", text)[0] + "."
    if asked := re.search(r"The special magic (?:\w+) for (.+) mentioned in the provided text (?:is|are)$", text):
        context = text.split("\n", 1)[1].rsplit("\n", 1)[0]
        values: dict[str, list[str]] = {}
        for key, value in re.findall(r"magic \w+ for (\S+(?: hoc-\S+)?) is: (\S+)\.", context):
            values.setdefault(key, []).append(value)
        keys = re.split(r", and |, ", asked[1])
        return " " + ", ".join(value for key in keys for value in values[key]) + "."
    if asked := re.search(r"assigned the value (\d+), they are:$", text):
        known, found = [asked[1]], []
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
            if source in known:
                known.append(name)
                found.append(name)
        return " " + " ".join(found)
    if text.endswith("appear most often in the list are:"):
        entries = text.rsplit("\n", 2)[1]
        return " " + " ".join(
            word for word, _ in Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", entries)).most_common(10)
        )
    if text.endswith("most frequently appeared words are:"):
        coded = re.findall(r"\b[a-z]{6}\b", text.split("coded words. ", 1)[1].rsplit("\nQuestion", 1)[0])
        return " " + " ".join(word for word, _ in Counter(coded).most_common(3))
    raise AssertionError(f"no rule for a prompt that ends with {text[-80:]!r}")


def rows_elsewhere(tasks: Sequence[str], metadata: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of tasks as another process draws them, where strings hash to other numbers."""
    code = (
        "import json, sys; from lm_eval.tasks import TaskManager; names, path, metadata = json.loads(sys.argv[1]);"
        "m = TaskManager(include_path=path, include_defaults=False, metadata=metadata);"
        "tasks = m.load(names)['tasks'];"
        "print(json.dumps({name: [dict(row) for row in tasks[name].test_docs()] for name in names}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([list(tasks), str(TASKS), metadata])],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found
