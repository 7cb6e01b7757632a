"""Makes ruler2.json: samples of the generators of RULER's second version, run as its authors publish them.

    git clone --branch chsieh/ruler2 https://github.com/NVIDIA-NeMo/Skills
    git -C Skills checkout 991a7432a1e3e6374b402a96cdd8614026714a1d
    python tests/reference/ruler2.py Skills

The commit is of October 2025; none of its code is here. Each generator is started with the arguments that its
prepare.py gives it, but for `--prompt_type base`, which begins the reply as our tasks do, with the embedded tokenizer
and the lengths of `LENGTHS`. Two things are not as there. Python's generator is seeded anew, by 0 and by 1, before
each sample is drawn. What is a download is replaced: questions by those of `cloze`, documents by passages of the
speeches in the package, and nltk's model of English by nothing, since no task that is kept splits sentences. Their
code needs the packages inflect, tenacity and tqdm.
"""

import importlib
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import datasets

from ropescale.evals.tasks.attribution.samples import passages
from ropescale.evals.tasks.cloze.samples import dataset as cloze

COMMIT = "991a7432a1e3e6374b402a96cdd8614026714a1d"
TINY = Path(__file__).parents[2] / "ropescale" / "checkpoints" / "tiny"
MMLU = {"dataset": "mmlu", "fewshot": 0, "prompt_type": "base", "num_order": 0, "algo_type": "single"}
NIAH = {"num_needle_k": 1, "num_needle_v": 1, "num_needle_q": 1, "type_haystack": "needle", "type_needle_k": "words",
        "type_needle_v": "numbers", "num_digits_v": 10}  # fmt: skip
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mk_niah_basic": ("prepare_niah", NIAH),
    "mk_niah_easy": ("prepare_mmlu", {**MMLU, "task_type": "retrieve"}),
    "mk_niah_medium": ("prepare_mmlu", {**MMLU, "fewshot": 5, "task_type": "solve", "algo_type": "2steps"}),
    "mk_niah_hard": ("prepare_mmlu", {**MMLU, "fewshot": 5, "task_type": "solve"}),
    "mv_niah_basic": ("prepare_niah", {**NIAH, "num_needle_v": 4}),
    "mv_niah_easy": ("prepare_mmlu", {**MMLU, "num_order": 4, "task_type": "niah"}),
    "mv_niah_medium": ("prepare_mmlu", {**MMLU, "num_order": 4, "task_type": "retrieve", "algo_type": "2steps"}),
    "mv_niah_hard": ("prepare_mmlu", {**MMLU, "num_order": 4, "task_type": "retrieve"}),
    "qa_basic": ("prepare_qa", {"dataset": "hotpotqa", "fewshot": 0, "prompt_type": "base", "task_type": "retrieve",
                                "query_type": "doc"}),
}  # fmt: skip
LENGTHS = {"mk_niah_medium": 1800, "mk_niah_hard": 1500}  # tokens of the prompt; 1,200 for the others
MODEST = 1200


def load_dataset(name: str, *_: str) -> dict[str, list[dict[str, Any]]]:
    """Questions and documents of the package in the form of the data sets that are asked for."""
    if name == "cais/mmlu":
        rows = [
            {"question": row["query"], "choices": row["choices"], "answer": row["label"]} for row in cloze()["test"]
        ]
        return {"test": rows[:10], "auxiliary_train": rows[10:]}
    texts = [one.text for one in passages()]
    # a title is a line of its own, so the passage's first line stands for it
    contexts = [{"title": [text[:1]], "sentences": [[text[1:]]]} for text in texts]
    rows = [
        {"question": "", "answer": "yes", "context": one, "supporting_facts": {"title": one["title"]}}
        for one in contexts
    ]
    return {"train": rows[10:], "validation": rows[:10]}


def stand_ins() -> None:
    """What the generators import in the place of downloads."""
    datasets.load_dataset = load_dataset
    nltk, tokenize = types.ModuleType("nltk"), types.ModuleType("nltk.tokenize")
    nltk.data = types.SimpleNamespace(find=lambda _: None)  # type: ignore[attr-defined]
    tokenize.sent_tokenize = str.splitlines  # type: ignore[attr-defined]
    sys.modules |= {"nltk": nltk, "nltk.tokenize": tokenize}


def drawn(name: str) -> list[dict[str, Any]]:
    """One sample of a task by each seed, as its generator writes it."""
    module_name, given = TASKS[name]
    length = LENGTHS.get(name, MODEST)
    full = f"nemo_skills.dataset.ruler2.{module_name}"
    options = {"tokenizer_type": "hf", "tokenizer_path": TINY, "max_seq_length": length, "num_samples": 1, **given}
    sys.argv = [full, *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
    sys.modules.pop(full, None)
    module = importlib.import_module(full)
    generate = module.generate_input_output
    seed, units = 0, 0

    def seeded(*args: Any) -> Any:
        nonlocal units
        random.seed(seed)
        units = args[-1]
        return generate(*args)

    module.generate_input_output = seeded
    samples = []
    for seed in (0, 1):
        (sample,) = (
            module.generate_samples(1, length) if module_name != "prepare_mmlu" else module.generate_samples(length)
        )
        kept = {key: sample[key] for key in ("question", "expected_answer", "length")}
        samples.append({"task": name, "seed": seed, "max_seq_length": length, "units": units, **kept})
    return samples


if __name__ == "__main__":
    stand_ins()
    sys.path.insert(0, str(Path(sys.argv[1]).resolve()))
    samples = [sample for name in TASKS for sample in drawn(name)]
    statement = {
        "repository": "https://github.com/NVIDIA-NeMo/Skills",
        "branch": "chsieh/ruler2",
        "commit": COMMIT,
        "by": "tests/reference/ruler2.py",
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"statement": statement, "samples": samples}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(samples)} samples in {path}")
