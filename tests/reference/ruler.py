"""Makes ruler.json: samples of RULER's own generators, run as its authors publish them.

    git clone https://github.com/NVIDIA/RULER && git -C RULER checkout c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a
    python tests/reference/ruler.py RULER

The commit is of July 2026; none of its code is here. Each generator is started with the arguments that its prepare.py
gives it: `--random_seed 42` (its default), the embedded tokenizer, `--num_samples 1`, and the lengths of `LENGTHS`.
Three things are not as there. Python's and numpy's generators are seeded anew, by 0 and by 1, before each sample is
drawn, so that a sample can be drawn without those before it. What is a download is replaced: the essays by the
speeches of the package, questions and documents by those of tests/support/asked_files.py, and sentences are split at
the ends of the package's own, since nltk's model of English is one too. The longer list of words, which `cwe` takes
where wonderwords has too few, is left empty. Their code needs the packages tenacity and tqdm.
"""

import importlib
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import asked_files

from ropescale.evals.tasks.haystack import haystack
from ropescale.evals.tokens import named_tokenizer

COMMIT = "c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"
TINY = Path(__file__).parents[2] / "ropescale" / "checkpoints" / "tiny"
SENTENCES = 60  # of the speeches, as essays
# Tokens, reply included. Essays have at least 500 words there, and `cwe` its longer form from 4,096 tokens on.
LENGTHS = {"niah_single_1": (1024,), "niah_multikey_2": (1024,), "niah_multikey_3": (1024,), "vt": (1500,),
           "cwe": (1500, 5000), "fwe": (1500,), "qa_1": (1500,), "qa_2": (1500,)}  # fmt: skip
ESSAYS = (2048,)
# The question of each seed: of an article that is all given, then of one of which a part is
QUESTIONS = {"qa_1": (0, asked_files.SMALL), "qa_2": (0, 5)}
MODULES = {
    "niah": ("niah", "generate_samples"),
    "variable_tracking": ("variable_tracking", "sys_vartrack_w_noise_random"),
    "common_words_extraction": ("common_words_extraction", "sys_word_pair_random"),
    "freq_words_extraction": ("freq_words_extraction", "sys_kwext"),
    "qa": ("qa", "generate_samples"),
}


def stand_ins(root: Path) -> None:
    """The essays, what splits them, and a list of words that no length here reaches, in the place of downloads."""
    sentences = haystack(named_tokenizer("tiny")).sentences(0, SENTENCES)
    essays = root / "scripts" / "data" / "synthetic" / "json" / "PaulGrahamEssays.json"
    essays.write_text(json.dumps({"text": " ".join(sentences)}), encoding="utf-8")
    essays.with_name("english_words.json").write_text("{}", encoding="utf-8")
    essays.with_name("squad.json").write_text(json.dumps(asked_files.squad()), encoding="utf-8")
    essays.with_name("hotpotqa.json").write_text(json.dumps(asked_files.hotpotqa()), encoding="utf-8")
    tokenize = types.ModuleType("nltk.tokenize")
    tokenize.sent_tokenize = split  # type: ignore[attr-defined]
    sys.modules |= {"nltk": types.ModuleType("nltk"), "nltk.tokenize": tokenize}


def split(text: str) -> list[str]:
    """The sentences of the speeches that a text begins with, and what is left of the next."""
    found = []
    for sentence in haystack(named_tokenizer("tiny")).sentences(0, SENTENCES):
        if not text:
            break
        found.append(text[: len(sentence)])
        text = text[len(sentence) + 1 :]
    return found


def drawn(root: Path, name: str, length: int) -> list[dict[str, Any]]:
    """One sample of a task by each seed, as its generator writes it."""
    task = yaml.safe_load((root / "scripts" / "synthetic.yaml").read_text(encoding="utf-8"))[name]
    constants = importlib.import_module("constants").TASKS[task["task"]]
    module_name, entry = MODULES[task["task"]]
    given = {
        "save_dir": ".", "save_name": name, "tokenizer_path": TINY, "tokenizer_type": "hf", "num_samples": 1,
        "max_seq_length": length, "tokens_to_generate": constants["tokens_to_generate"], "random_seed": 42,
        "template": constants["template"] + constants["answer_prefix"], **task["args"],
    }  # fmt: skip
    sys.argv = [module_name, *(str(part) for key, value in given.items() for part in (f"--{key}", value))]
    sys.modules.pop(module_name, None)
    module = importlib.import_module(module_name)
    generate = module.generate_input_output
    seed, units = 0, 0

    def seeded(*args: Any, **kwargs: Any) -> Any:
        nonlocal units
        random.seed(seed)
        np.random.seed(seed)
        units = args[1] if name in QUESTIONS else kwargs.get("num_words", args[0])
        return generate(*args, **kwargs)

    module.generate_input_output = seeded
    samples = []
    for seed in (0, 1):
        asked = {"number": QUESTIONS[name][seed]} if name in QUESTIONS else {}
        module.args.pre_samples = asked.get("number", 0)
        if name == "vt":
            hops = {"num_chains": 1, "num_hops": 4}
            (example,) = module.sys_vartrack_w_noise_random(1, 500, incremental=5, **hops)
            options = {**hops, "icl_example": example, "final_output": True}
            (sample,) = module.sys_vartrack_w_noise_random(1, length, **options)
        else:
            (sample,) = getattr(module, entry)(1, length, *(() if name == "fwe" else (".",)))
        kept = {key: sample[key] for key in ("input", "answer_prefix", "outputs", "length")}
        samples.append({"task": name, "seed": seed, "max_seq_length": length, "units": units, **asked, **kept})
    return samples


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    stand_ins(root)
    sys.path[:0] = [str(root / "scripts" / "data"), str(root / "scripts" / "data" / "synthetic")]
    names = [f"niah_{kind}_{i}" for kind in ("single", "multikey") for i in (1, 2, 3)]
    names += ["niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", *QUESTIONS]
    samples = [
        sample for name in names for length in LENGTHS.get(name, ESSAYS) for sample in drawn(root, name, length)
    ]
    statement = {"repository": "https://github.com/NVIDIA/RULER", "commit": COMMIT, "by": "tests/reference/ruler.py"}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"statement": statement, "samples": samples}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(samples)} samples in {path}")
