"""Every file format that is read, damaged by seed: an answer or a sentence, in bounded time and memory.

`test_a_few` runs with all tests; `test_many` (slow) is the bar: 2,000 mutations of each format, no exception but those
of ropescale, none of ten seconds, and no more than 2 GB.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from evaluations import write_evaluation
from mutations import damaged_json, damaged_lines, torn

import ropescale
from ropescale.adapters import load_adapter, save_adapter
from ropescale.checkpoints import resolve
from ropescale.contents import read_tokenizer
from ropescale.errors import RopescaleError
from ropescale.evals import report
from ropescale.evals.texts import documents
from ropescale.explain import inspection, subject
from ropescale.export.gguf import reading
from ropescale.export.source import Source
from ropescale.export.weights import local_folder
from ropescale.recipes.reading import read_recipe
from ropescale.shards import bring

TINY = Path(resolve("tiny"))
SECONDS, GIGABYTES = 10, 2
MANY, FEW = 2000, 25

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Format:
    """A kind of file: those that are damaged, one at a time, and what reads them."""

    make: Callable[[Path], object]  # a whole folder
    files: dict[str, Damage]
    reads: tuple[Callable[[Path], object], ...]


def copied(folder: Path) -> None:
    shutil.copytree(TINY, folder)


def rescaled(folder: Path) -> None:
    ropescale.rescale_checkpoint(TINY, folder, factor=4)


def sharded(folder: Path) -> None:
    copied(folder)
    ropescale.load(TINY).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()


def with_adapter(folder: Path) -> None:
    import peft

    model = ropescale.patch(ropescale.load(TINY), "yarn", factor=2)
    save_adapter(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])), folder)


def exported(folder: Path) -> None:
    folder.mkdir()
    ropescale.export.export(TINY, folder / "a.gguf", to="gguf", method="yarn", factor=2)
    ropescale.export.export(TINY, folder / "plain.gguf", to="gguf", method="none")


def evaluated(folder: Path) -> None:
    write_evaluation(folder, tasks=("passkey", "perplexity", "position", "longppl", "cloze"), lengths=(128, 256))


def written_recipe(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.yaml").write_text(
        "# a recipe\nmodel: tiny\nmethod: yarn\nfactor: 2\nknobs: '{\"beta_fast\": 16}'\ntuning: lora\n"
        "target_modules: [q_proj, v_proj]\nschedule: pose\ndata: [passkey]\nmax_steps: 3\nlearning_rate: 1.0e-4\n"
        "batch_size: 2\neval_lengths: [128, 256]\nstop_passkey: 0.9\n"
    )


def written_texts(folder: Path) -> None:
    folder.mkdir()
    rows = [json.dumps({"text": f"The {number} quick foxes. " * 9, "name": f"n{number}"}) for number in range(9)]
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "b.txt").write_text("The quick fox. " * 99)


def tokenized(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    tokenizer.encode("The quick brown fox ")


def adapter_loaded(folder: Path) -> None:
    load_adapter(ropescale.load(TINY), folder)


def header_read(folder: Path) -> None:
    reading.read_facts(folder / "a.gguf")


def plain_header_read(folder: Path) -> None:
    reading.file_config(reading.reader_of(folder / "plain.gguf"), folder / "plain.gguf")


def reported(folder: Path) -> None:
    report.write(folder)


def weights_brought(folder: Path) -> None:
    bring(folder / "model.safetensors", folder.with_name("brought"))


def exported_files(folder: Path) -> None:
    Source(name="a", config=None, folder=local_folder(str(folder)), live=None).weight_files()  # type: ignore[arg-type]


CHECKPOINT = (ropescale.load, ropescale.diagnose, lambda folder: inspection.inspected(str(folder)))
FORMATS = {
    "config": Format(
        copied,
        {"config.json": damaged_json, "generation_config.json": damaged_json},
        (*CHECKPOINT, lambda folder: subject.facts_by_layers(str(folder))),
    ),
    "record": Format(
        rescaled,
        {
            "config.json": lambda content, draw: json.dumps(
                {
                    **json.loads(content),
                    "ropescale": json.loads(damaged_json(json.dumps(json.loads(content)["ropescale"]).encode(), draw)),
                }
            ).encode()
        },
        CHECKPOINT,
    ),
    "adapter": Format(
        with_adapter,
        {"adapter_config.json": damaged_json, "ropescale.json": damaged_json, "adapter_model.safetensors": torn},
        (ropescale.diagnose, adapter_loaded),
    ),
    "index": Format(
        sharded,
        {"model.safetensors.index.json": damaged_json},
        (ropescale.load, ropescale.diagnose, exported_files),
    ),
    "weights": Format(
        copied,
        {"model.safetensors": lambda content, draw: torn(content[:4000], draw) + content[4000:]},
        (ropescale.load, ropescale.diagnose, exported_files, weights_brought),
    ),
    "gguf": Format(
        exported,
        {
            name: lambda content, draw: torn(content[: draw.choice((400, 2000, 40_000))], draw) + content[40_000:]
            for name in ("a.gguf", "plain.gguf")
        },
        (header_read, plain_header_read),
    ),
    "results": Format(
        evaluated,
        {"run.json": damaged_json, "results.jsonl": damaged_lines, "timings.jsonl": damaged_lines},
        (reported,),
    ),
    "recipe": Format(written_recipe, {"a.yaml": torn}, (lambda folder: read_recipe(str(folder / "a.yaml")),)),
    "data": Format(written_texts, {"a.jsonl": damaged_lines, "b.txt": torn}, (lambda folder: documents(str(folder)),)),
    "tokenizer": Format(copied, {"tokenizer.json": damaged_json, "tokenizer_config.json": damaged_json}, (tokenized,)),
}


def used() -> float:
    """Gigabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)


def attack(name: str, count: int, folder: Path) -> dict[str, int]:
    """Read so many damaged copies; how each reading ended, by the name of what it raised."""
    form = FORMATS[name]
    form.make(folder)
    whole = {file: (folder / file).read_bytes() for file in form.files}
    ended: dict[str, int] = {}
    wrong: dict[str, str] = {}
    before = used()
    for number in range(count):
        draw = random.Random(f"{name} {number}")
        file = draw.choice(sorted(form.files))
        try:
            (folder / file).write_bytes(form.files[file](whole[file], draw))
        except (ValueError, KeyError, RecursionError):  # damage that is no JSON any more, or too deep to be written
            continue
        for reader in form.reads:
            began = time.monotonic()
            faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # a hang ends the run, with where it was
            try:
                with warnings.catch_warnings(action="ignore"):
                    reader(folder)
                result = "read"
            except RopescaleError as error:
                result = type(error).__name__
                if "\n" in str(error) or len(str(error)) > 5000:
                    wrong.setdefault("a sentence", f"{number} {file}: {str(error)[:300]!r}")
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                result = type(error).__name__
                frames = []
                step = error.__traceback__
                while step is not None:
                    frames.append(f"{Path(step.tb_frame.f_code.co_filename).name}:{step.tb_lineno}")
                    step = step.tb_next
                said = " < ".join(reversed(frames))[:400]
                wrong.setdefault(
                    f"{result} at {' '.join(frames[-1:])}", f"{number} {file}: {str(error)[:200]!r} {said}"
                )
            finally:
                faulthandler.cancel_dump_traceback_later()
            if (took := time.monotonic() - began) > SECONDS:
                wrong.setdefault("time", f"{number} {file}: {took:.0f} s")
            ended[result] = ended.get(result, 0) + 1
        (folder / file).write_bytes(whole[file])
        if used() > before + GIGABYTES:
            wrong.setdefault("memory", f"{number} {file}: {used() - before:.1f} GB")
            before = used()
    assert not wrong, "\n".join(f"{kind}: {said}" for kind, said in wrong.items())
    return ended


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_few(name: str, tmp_path: Path) -> None:
    ended = attack(name, FEW, tmp_path / "folder")
    assert sum(ended.values()) >= FEW // 2
    assert any(how.endswith("Error") for how in ended), "nothing that was damaged was refused"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_many(name: str, tmp_path: Path) -> None:
    print(name, attack(name, MANY, tmp_path / "folder"))
