"""Every format that is read, as a target of fuzzing: how files are made and damaged, and what reads them.

`attack` reads damaged files of one target. Each must end in an answer or in an error of ropescale, within ten seconds
and two gigabytes; whatever else it ends in is a fault. Damage follows from the target's name and a number alone, so
that a fault comes again. It starts from a whole file or from the corpus, which holds what was once a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from evaluations import write_evaluation
from mutations import damaged_command, damaged_json, damaged_lines, damaged_value, damaged_yaml, torn
from safetensors.torch import save_file

import ropescale
from ropescale import cli
from ropescale.adapter_files import labels_of, named_base
from ropescale.adapters import load_adapter, save_adapter
from ropescale.checkpoints import resolve
from ropescale.cli import arguments
from ropescale.contents import read_tokenizer
from ropescale.destinations import removed
from ropescale.errors import RopescaleError
from ropescale.evals import report, results
from ropescale.evals.tasks.ruler import qa
from ropescale.evals.texts import documents
from ropescale.explain import inspection, subject
from ropescale.export.gguf import reading
from ropescale.export.source import Source
from ropescale.export.weights import local_folder
from ropescale.files import object_of
from ropescale.loading import Loading
from ropescale.recipes import seals, train
from ropescale.recipes.reading import read_recipe
from ropescale.request import Request
from ropescale.search.ledger import Ledger
from ropescale.shards import bring
from ropescale.temperature import Temperature

CORPUS = Path(__file__).parents[1] / "faults" / "corpus"  # TARGET/WHAT/FILE
TINY = Path(resolve("tiny"))
SECONDS, GIGABYTES = 10, 2
SHORTEST, LONGEST = 12, 5000  # characters of an error

Damage = Callable[[bytes, random.Random], bytes]
Read = Callable[[Path], object]


class Hang(BaseException):
    """What ends a reading that takes too long; no `except Exception` on its way stops it."""


class Unforeseen(Exception):
    """A command that ended in words for what nobody foresaw."""


@dataclass(frozen=True)
class Target:
    """A kind of file: those that are damaged, one at a time, and what reads them."""

    make: Callable[[Path], object]  # a whole folder
    files: dict[str, Damage]
    reads: tuple[Read, ...]
    share: int  # inputs in a hundred of a run over all targets
    dear: tuple[Read, ...] = ()  # those that take long, for one input in twenty
    own: dict[str, tuple[Read, ...]] = field(default_factory=dict)  # of files that have readers of their own

    def readers(self, file: str) -> tuple[Read, ...]:
        """What reads a file."""
        return self.own.get(file, self.reads)


@dataclass
class Outcome:
    """What came of a number of inputs."""

    inputs: int = 0
    seconds: float = 0.0  # of the processor
    longest: float = 0.0  # seconds that one input took
    ended: Counter[str] = field(default_factory=Counter)  # "read", or the error's name
    faults: dict[str, str] = field(default_factory=dict)  # kind and place -> the first input that showed it


# Whole files


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
        "target_modules: [q_proj, v_proj]\nschedule: pose\ndata: [passkey]\nmax_documents: 9\nmax_steps: 3\n"
        "learning_rate: 1.0e-4\nbatch_size: 2\neval_lengths: [128, 256]\nstop_passkey: 0.9\n"
    )


def written_texts(root: Path) -> None:
    import datasets
    import pyarrow
    from pyarrow import ipc, parquet

    folder = root / "texts"
    folder.mkdir(parents=True)
    rows = [{"text": f"The {number} quick foxes. " * 9, "name": f"n{number}"} for number in range(9)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.txt").write_text("The quick fox. " * 99)
    (folder / "c.json").write_text(json.dumps(rows))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, folder / "e.parquet")
    with pyarrow.OSFile(str(folder / "f.arrow"), "wb") as sink, ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pyarrow.CompressedOutputStream(str(folder / "g.jsonl.zst"), "zstd") as stream:
        stream.write(lines.encode())
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(root / "saved")
    (root / "squad").mkdir()
    asked = {"question": "Which fox?", "answers": [{"text": "the quick one"}]}
    article = {"paragraphs": [{"context": "The quick fox. " * 5, "qas": [asked]}] * 2}
    (root / "squad" / "dev.json").write_text(json.dumps({"data": [article] * 2}))
    hotpot = {"question": "Which?", "answer": "this", "context": [["a", ["One. ", "Two. "]], ["b", ["Three."]]]}
    (root / "squad" / "hotpot.json").write_text(json.dumps([hotpot] * 2))


SETTINGS = {"model": "tiny", "factor": 2.0, "seed": 0}


def searched(folder: Path) -> None:
    folder.mkdir()
    ledger = Ledger(SETTINGS, folder / "search.jsonl")
    ledger.all({f"judge {number}": lambda number=number: [number / 7, [0.25] * 9] for number in range(5)})
    (folder / "knobs.json").write_text(json.dumps({"long_factor": [1.0 + pair / 8 for pair in range(16)]}))
    (folder / "knobs-of-yarn.json").write_text(
        json.dumps({"beta_fast": 16, "beta_slow": 2.0, "attention_factor": 1.1})
    )


def trained(folder: Path) -> None:
    folder.mkdir()
    settings = read_recipe("lora", ["--model", "tiny", "--factor", "2"]).settings()
    ledger = {"settings": settings, "sessions": [], "after": {"perplexity": {"128": 9.0}}}
    (folder / train.RUN).write_text(json.dumps(ledger))
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "a.txt").write_text("whole")
    seals.seal(folder / "checkpoint-2")


# In a folder with a checkpoint `model`; nothing that they write has a name that leads out of it
COMMANDS = (
    ("flags", "model", "--for", "axolotl", "--method", "yarn", "--factor", "4", "--knobs", '{"beta_fast": 16}'),
    ("flags", "model", "--for", "verl", "--method", "ntk", "--target-length", "512", "--original-length", "128"),
    ("flags", "model", "--for", "unsloth", "--method", "linear", "--factor", "2", "--existing", "replace", "--json"),
    ("memory", "model", "--length", "128,512", "--rows", "2", "--dtype", "float32"),
    ("inspect", "model", "--original-length", "64"),
    ("doctor", "model"),
    ("rescale", "model", "new", "--method", "yarn", "--factor", "4", "--layers", "all", "--knobs", '{"beta_slow": 2}'),
    ("rescale", "model", "new", "--target-length", "512", "--original-length", "64", "--existing", "compose"),
    ("explain", "model", "--methods", "yarn,rerope", "--factor", "4", "--original-length", "64"),
    ("--import", "mine.py", "inspect", "model"),
)
SPELLED = (
    ("temperature", "log_n:0.8"),
    ("temperature", "llama4"),
    ("minutes", "30m"),
    ("numbers", "2,4,8"),
    ("whole", "128,512"),
    ("object", '{"yarn": {"beta_fast": 16}}'),
    ("device_map", '{"model.layers.0": "disk", "": 0}'),
    ("device", "cpu:0"),
    ("dtype", "bfloat16"),
    ("knobs", '{"beta_fast": 16, "beta_slow": 2}'),
)


def spelled(folder: Path) -> None:
    shutil.copytree(TINY, folder / "model")
    save_file({"small": torch.zeros(1)}, folder / "model" / "model.safetensors")  # which no command here loads
    (folder / "mine.py").write_text("x = 1\n")
    (folder / "argv.json").write_text(json.dumps(COMMANDS))
    (folder / "spelled.json").write_text(json.dumps(SPELLED))


# Readers


def facts(folder: Path) -> None:
    subject.facts_by_layers(str(folder))


def inspected(folder: Path) -> None:
    inspection.inspected(str(folder))


def tokenized(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    tokenizer.encode("The quick brown fox ")


def adapter_loaded(folder: Path) -> None:
    load_adapter(ropescale.load(TINY), folder)


def adapter_looked_at(folder: Path) -> None:
    named_base(folder)
    labels_of(folder, {})


def header_read(folder: Path) -> None:
    reading.read_facts(folder / "a.gguf")


def plain_header_read(folder: Path) -> None:
    reading.file_config(reading.reader_of(folder / "plain.gguf"), folder / "plain.gguf")


def weights_brought(folder: Path) -> None:
    bring(folder / "model.safetensors", folder.with_name("brought"))


def exported_files(folder: Path) -> None:
    Source(name="a", config=None, folder=local_folder(str(folder)), live=None).weight_files()  # type: ignore[arg-type]


def recipe_read(folder: Path) -> None:
    read_recipe(str(folder / "a.yaml")).settings()


def texts_read(folder: Path) -> None:
    documents(str(folder / "texts"))


def saved_read(folder: Path) -> None:
    documents(str(folder / "saved"))


def questions_read(folder: Path) -> None:
    for made, name in ((qa._squad, "dev.json"), (qa._hotpotqa, "hotpot.json")):
        made.cache_clear()
        made(str(folder / "squad" / name))


def ledger_read(folder: Path) -> None:
    kept = (folder / "search.jsonl").read_bytes()
    try:
        Ledger(SETTINGS, folder / "search.jsonl").all({"judge 0": lambda: 1, "judge 9": lambda: 2})
    except RopescaleError:
        assert (folder / "search.jsonl").read_bytes() == kept[: kept.rfind(b"\n") + 1], "a refused file was written"
        raise


def knobs_read(folder: Path) -> None:
    for name, method in (("knobs.json", "longrope"), ("knobs-of-yarn.json", "yarn")):
        knobs = object_of(str(folder / name))
        if knobs is not None:
            request = Request(method=method, factor=2, knobs=knobs)
            request.resolved(ropescale.Geometry(rotary_dim=32, theta=10000.0, original_length=128))


def run_read(folder: Path) -> None:
    recipe = read_recipe("lora", ["--model", "tiny", "--factor", "2"])
    train._ledger_of(folder, recipe, "ropescale train")


def seal_read(folder: Path) -> None:
    seals.fault(folder / "checkpoint-2")


def commanded(folder: Path) -> None:
    """One of the commands, as somebody would type it."""
    there = set(os.listdir(folder))
    for words in json.loads((folder / "argv.json").read_bytes().decode("utf-8", "surrogatepass")):
        said = io.StringIO()
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            code = cli.main(words)
        for name in set(os.listdir(folder)) - there:
            removed(folder / name)
        sys.modules.pop("mine", None)  # which is imported once in a process
        last = (said.getvalue().splitlines() or [""])[-1]
        if code not in (0, 2) or "the whole traceback" in last or (code == 2 and not last.startswith("ropescale")):
            raise Unforeseen(f"{code} {last}")
        if code == 2:
            raise RopescaleError(last)


def parsed(folder: Path) -> None:
    """Texts of options, each by what parses it."""
    parsers: dict[str, Callable[[str], object]] = {
        "temperature": Temperature.of,
        "minutes": arguments.minutes,
        "numbers": arguments.list_of(float),
        "whole": arguments.list_of(int),
        "object": arguments.json_object,
        "device_map": lambda text: Loading(device_map=text),
        "device": lambda text: Loading(device=text),
        "dtype": lambda text: Loading(dtype=text),
        "knobs": lambda text: Request(method="yarn", factor=2, knobs=object_of(text) or {}),
    }
    for kind, text in json.loads((folder / "spelled.json").read_bytes().decode("utf-8", "surrogatepass")):
        try:
            parsers[kind](text)
        except argparse.ArgumentTypeError as error:
            raise RopescaleError(str(error)) from error


# Damage


def record_alone(content: bytes, draw: random.Random) -> bytes:
    """A config of which the record is damaged."""
    config = json.loads(content)
    damaged = damaged_json(json.dumps(config["ropescale"]).encode(), draw)
    return json.dumps({**config, "ropescale": json.loads(damaged)}).encode("utf-8", "surrogatepass")


def header_of_weights(content: bytes, draw: random.Random) -> bytes:
    return torn(content[:4000], draw) + content[4000:]


def header_of_gguf(content: bytes, draw: random.Random) -> bytes:
    return torn(content[: draw.choice((400, 2000, 40_000))], draw) + content[40_000:]


CHECKPOINT: tuple[Read, ...] = (ropescale.load, ropescale.diagnose, inspected)
TARGETS = {
    "config": Target(
        copied, {"config.json": damaged_json, "generation_config.json": damaged_json}, (*CHECKPOINT, facts), 12
    ),
    "record": Target(rescaled, {"config.json": record_alone}, (ropescale.diagnose, inspected, ropescale.load), 8),
    "adapter": Target(
        with_adapter,
        {"adapter_config.json": damaged_json, "ropescale.json": damaged_json, "adapter_model.safetensors": torn},
        (ropescale.diagnose, adapter_looked_at),
        8,
        (adapter_loaded,),
    ),
    "index": Target(
        sharded,
        {"model.safetensors.index.json": damaged_json},
        (ropescale.load, ropescale.diagnose, exported_files),
        8,
    ),
    "weights": Target(
        copied,
        {"model.safetensors": header_of_weights},
        (ropescale.load, ropescale.diagnose, exported_files, weights_brought),
        4,
    ),
    "gguf": Target(
        exported,
        {"a.gguf": header_of_gguf, "plain.gguf": header_of_gguf},
        (),
        2,
        own={"a.gguf": (header_read,), "plain.gguf": (plain_header_read,)},
    ),
    "results": Target(
        evaluated,
        {"run.json": damaged_json, "results.jsonl": damaged_lines, "timings.jsonl": damaged_lines},
        (results.read,),
        10,
        (report.write,),
    ),
    "recipe": Target(written_recipe, {"a.yaml": damaged_yaml}, (recipe_read,), 6),
    "texts": Target(
        written_texts,
        {
            "texts/a.jsonl": damaged_lines,
            "texts/b.txt": torn,
            "texts/c.json": damaged_json,
            "texts/d.jsonl.gz": torn,
            "texts/e.parquet": torn,
            "texts/f.arrow": torn,
            "texts/g.jsonl.zst": torn,
            "saved/dataset_dict.json": damaged_json,
            "saved/train/state.json": damaged_json,
            "squad/dev.json": damaged_json,
            "squad/hotpot.json": damaged_json,
        },
        (texts_read,),
        10,
        own={
            "saved/dataset_dict.json": (saved_read,),
            "saved/train/state.json": (saved_read,),
            "squad/dev.json": (questions_read,),
            "squad/hotpot.json": (questions_read,),
        },
    ),
    "tokenizer": Target(
        copied, {"tokenizer.json": damaged_json, "tokenizer_config.json": damaged_json}, (tokenized,), 6
    ),
    "search": Target(
        searched,
        {"search.jsonl": damaged_lines, "knobs.json": damaged_json, "knobs-of-yarn.json": damaged_json},
        (knobs_read,),
        14,
        own={"search.jsonl": (ledger_read,)},
    ),
    "run": Target(
        trained,
        {train.RUN: damaged_json, f"checkpoint-2/{seals.SEAL}": damaged_json},
        (),
        6,
        own={train.RUN: (run_read,), f"checkpoint-2/{seals.SEAL}": (seal_read,)},
    ),
    "options": Target(
        spelled,
        {"argv.json": damaged_command, "spelled.json": damaged_value},
        (),
        6,
        own={"argv.json": (commanded,), "spelled.json": (parsed,)},
    ),
}


# The attack


def kept(name: str) -> dict[str, list[bytes]]:
    """The corpus of a target: contents by the file that they stand in the place of."""
    found: dict[str, list[bytes]] = {}
    for path in sorted((CORPUS / name).rglob("*")):
        if path.is_file():
            found.setdefault("/".join(path.relative_to(CORPUS / name).parts[1:]), []).append(path.read_bytes())
    return found


def used() -> float:
    """Gigabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """A block that is ended after so many seconds of the processor, or six times as many of waiting.

    Cores may be shared, so that the clock alone says little. Code that no signal reaches is ended with the process.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} seconds")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    for _, timer, after in timers:
        signal.setitimer(timer, after)
    faulthandler.dump_traceback_later(12 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        faulthandler.cancel_dump_traceback_later()


def damaged(name: str, whole: dict[str, bytes], corpus: dict[str, list[bytes]], number: int) -> tuple[str, bytes]:
    """Which file of a target is damaged under a number, and what then is in it."""
    draw = random.Random(f"{name} {number}")
    file = draw.choice(sorted(whole))
    content = whole[file]
    if file in corpus and draw.random() < 0.2:
        content = draw.choice(corpus[file])
    try:
        return file, TARGETS[name].files[file](content, draw)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError, yaml.YAMLError):
        # no structure left to damage, or too deep
        return file, torn(content, draw)


def read(name: str, readers: Sequence[Read], folder: Path, outcome: Outcome, told: str) -> None:
    """Let readers read a folder, and note how each ended."""
    for reader in readers:
        began = time.monotonic()
        try:
            with warnings.catch_warnings(action="ignore"), within(SECONDS):
                reader(folder)
            how = "read"
        except RopescaleError as error:
            how = type(error).__name__
            if "\n" in str(error) or not SHORTEST <= len(str(error)) <= LONGEST:
                outcome.faults.setdefault(f"{name}: no sentence", f"{told}: {str(error)[:300]!r}")
        except (Exception, Hang) as error:
            how = type(error).__name__
            frames = []
            step = error.__traceback__
            while step is not None:
                frames.append(f"{Path(step.tb_frame.f_code.co_filename).name}:{step.tb_lineno}")
                step = step.tb_next
            said = " < ".join(reversed(frames))[:400]
            place = str(error)[:80] if isinstance(error, Unforeseen) else " ".join(frames[-1:])
            outcome.faults.setdefault(f"{name}: {how} at {place}", f"{told}: {str(error)[:300]!r} {said}")
        outcome.ended[how] += 1
        outcome.longest = max(outcome.longest, time.monotonic() - began)


def attack(name: str, numbers: Iterable[int], folder: Path, *, all_readers: bool = False) -> Outcome:
    """Read what is damaged under these numbers, in a new folder.

    Each input is read by one of its target's readers in turn, one input in twenty by the dear ones too; or by all.
    """
    target = TARGETS[name]
    target.make(folder)
    every = {*target.reads, *target.dear, *(one for some in target.own.values() for one in some)}
    for reader in every:  # one that refuses what is whole says nothing about damage
        reader(folder)
    target_files = {file: (folder / file).read_bytes() for file in target.files}
    corpus = kept(name)
    outcome = Outcome()
    before, began = used(), time.process_time()
    for number in numbers:
        file, content = damaged(name, target_files, corpus, number)
        (folder / file).write_bytes(content)
        readers = target.readers(file)
        some = readers if all_readers else (readers[number % len(readers)],)
        more = target.dear if all_readers or number % 20 == 0 else ()
        read(name, (*some, *more), folder, outcome, f"{number} {file}")
        for other, whole in target_files.items():  # a reader may write on
            (folder / other).write_bytes(whole)
        outcome.inputs += 1
        if used() > before + GIGABYTES:
            outcome.faults.setdefault(f"{name}: memory", f"{number} {file}: {used() - before:.1f} GB more")
            before = used()
    outcome.seconds = time.process_time() - began
    return outcome


def replay(name: str, folder: Path) -> Outcome:
    """Read the corpus of a target, each of it by every reader."""
    target = TARGETS[name]
    target.make(folder)
    outcome = Outcome()
    for file, contents in kept(name).items():
        whole = (folder / file).read_bytes()
        for number, content in enumerate(contents):
            (folder / file).write_bytes(content)
            read(name, (*target.readers(file), *target.dear), folder, outcome, f"corpus {number} {file}")
            (folder / file).write_bytes(whole)
            outcome.inputs += 1
    return outcome


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Several runs of one target as one."""
    whole = Outcome()
    for one in outcomes:
        whole = dataclasses.replace(
            whole,
            inputs=whole.inputs + one.inputs,
            seconds=whole.seconds + one.seconds,
            longest=max(whole.longest, one.longest),
            ended=whole.ended + one.ended,
            faults={**one.faults, **whole.faults},
        )
    return whole


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """As JSON can hold it."""
    return {
        "inputs": outcome.inputs,
        "refused": sum(count for how, count in outcome.ended.items() if how != "read"),
        "seconds": round(outcome.seconds, 1),
        "longest": round(outcome.longest, 2),
        "faults": len(outcome.faults),
    }
