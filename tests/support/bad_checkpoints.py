"""Damage to what commands read: checkpoints, adapters, results, searches, data and recipes, each met by every verb."""

from __future__ import annotations

import gzip
import os
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks import TINY, edit
from bad_options import BASE
from bad_places import LONG
from world import Fault
from wrong_files import CONFIGS, Damage, content

# Verbs that read the checkpoint `model`; an adapter has its base there
READERS = (
    "inspect",
    "doctor",
    "memory",
    "flags",
    "explain",
    "plot",
    "rescale",
    "export",
    "verify-export",
    "verify-server",
    "eval",
    "recommend",
    "search",
    "train",
    "demo",
    "chat",
)


def replaced(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def instead(name: str, put: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        put(folder / name)

    return damage


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return damage


def entry(name: str, **values: Any) -> Damage:
    return lambda folder: edit(folder / name, lambda stated: stated.update(values))


def huge(path: Path) -> None:
    """A file of a terabyte, of holes."""
    path.touch()
    os.truncate(path, 2**40)


def looped(path: Path) -> None:
    path.symlink_to(path)


def everywhere(name: str) -> dict[str, Damage]:
    """What any file of JSON can be in the place of itself."""
    return {
        "nothing": replaced(name, b""),
        "half": cut(name, 0.5),
        "zeros": replaced(name, bytes(999)),
        "binary": replaced(name, bytes(range(256)) * 9),
        "UTF-16": replaced(name, "{}".encode("utf-16")),
        "a list": replaced(name, b"[]"),
        "null": replaced(name, b"null"),
        "brackets without end": replaced(name, b"[" * 100_000),
        "brackets within brackets": replaced(name, b'{"a":' * 500 + b"1" + b"}" * 500),
        "a folder": instead(name, os.mkdir),
        "a pipe": instead(name, os.mkfifo),
        "a device": instead(name, lambda path: path.symlink_to("/dev/zero")),
        "a loop": instead(name, looped),
        "a terabyte": instead(name, huge),
    }


def named(of: str, many: dict[str, Damage]) -> dict[str, Damage]:
    return {f"{of}: {what}": damage for what, damage in many.items()}


WEIGHTS: dict[str, Damage] = {
    "nothing": replaced("model.safetensors", b""),
    "half": cut("model.safetensors", 0.5),
    "a text": replaced("model.safetensors", b"hello"),
    "zeros": replaced("model.safetensors", bytes(9999)),
    "a header beyond the file": replaced("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "a header that is no JSON": replaced("model.safetensors", struct.pack("<Q", 8) + b"[[[[[[[["),
    "tensors beyond the file": replaced(
        "model.safetensors",
        struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999999]}}'.ljust(62),
    ),
    "gone": gone("model.safetensors"),
    "a folder": instead("model.safetensors", os.mkdir),
    "a pipe": instead("model.safetensors", os.mkfifo),
    "a loop": instead("model.safetensors", looped),
    "another shape": entry("config.json", intermediate_size=100),
}
# Of a config, what a verb does not ask: memory of positions, the others of a scaling that they replace or of one that
# both sides of a comparison have alike
UNREAD = {
    "memory": ("a maximum", "a theta", "a share", "yarn with a factor"),
    "explain": ("yarn with a factor", "longrope with a word"),
    "plot": ("yarn with a factor", "longrope with a word"),
    "verify-export": ("a theta", "a share", "yarn with a factor"),
}
LOADERS = ("export", "verify-export", "eval", "search", "train", "chat", "recommend", "demo")
TOKENIZED = ("eval", "search", "train", "chat", "recommend")
ADAPTERS: dict[str, Damage] = {
    **named("adapter_config.json", everywhere("adapter_config.json")),
    **named("ropescale.json", everywhere("ropescale.json")),
    "adapter_config.json: gone": gone("adapter_config.json"),
    "adapter_config.json: no base": entry("adapter_config.json", base_model_name_or_path=None),
    "adapter_config.json: a base that is a number": entry("adapter_config.json", base_model_name_or_path=7),
    "adapter_config.json: a rank below 0": entry("adapter_config.json", r=-1),
    "adapter_config.json: a rank in words": entry("adapter_config.json", r="four"),
    "adapter_config.json: a kind that nobody knows": entry("adapter_config.json", peft_type="nowhere"),
    "adapter_config.json: modules that are not there": entry("adapter_config.json", target_modules=["nowhere"]),
    "ropescale.json: of nothing": replaced("ropescale.json", b"{}"),
    "ropescale.json: a method that nobody knows": entry("ropescale.json", method="nowhere"),
    "ropescale.json: a length in words": entry("ropescale.json", target_length="x"),
    "weights: nothing": replaced("adapter_model.safetensors", b""),
    "weights: half": cut("adapter_model.safetensors", 0.5),
    "weights: a text": replaced("adapter_model.safetensors", b"hello"),
    "weights: gone": gone("adapter_model.safetensors"),
    "weights: a pipe": instead("adapter_model.safetensors", os.mkfifo),
    "weights: a folder": instead("adapter_model.safetensors", os.mkdir),
}


def lines_of(name: str) -> dict[str, Damage]:
    """What a file of lines of JSON can hold in the place of its first line."""

    def first(line: bytes) -> Damage:
        def damage(folder: Path) -> None:
            _, _, rest = (folder / name).read_bytes().partition(b"\n")
            (folder / name).write_bytes(line + b"\n" + rest)

        return damage

    return {
        "a line of nothing": first(b""),
        "a line of half": first(b'{"task": "pass'),
        "a line of a list": first(b"[]"),
        "a line of an object of nothing": first(b"{}"),
        "a line of zeros": first(bytes(9)),
        "a line that is no number": first(b'{"task": "passkey", "method": "yarn", "factor": NaN, "length": 128}'),
        "a line of a negative length": first(b'{"task": "passkey", "method": "yarn", "factor": 2.0, "length": -1}'),
        "a line of brackets": first(b"[" * 50_000),
        "no UTF-8": first(b"\xff\xfe"),
    }


RESULTS: dict[str, Damage] = {
    **named("run.json", everywhere("run.json")),
    "run.json: gone": gone("run.json"),
    "run.json: of nothing": replaced("run.json", b"{}"),
    "run.json: settings in a list": entry("run.json", settings=[]),
    "run.json: sessions of numbers": entry("run.json", sessions=[1]),
    **named("results.jsonl", lines_of("results.jsonl")),
    **named("timings.jsonl", lines_of("timings.jsonl")),
    "results.jsonl: a folder": instead("results.jsonl", os.mkdir),
    "results.jsonl: a pipe": instead("results.jsonl", os.mkfifo),
    "results.jsonl: a device": instead("results.jsonl", lambda path: path.symlink_to("/dev/zero")),
    "results.jsonl: a loop": instead("results.jsonl", looped),
    "report.html: a folder": instead("report.html", os.mkdir),
    "report.html: a pipe": instead("report.html", os.mkfifo),
    "report.html: a link": instead("report.html", lambda path: path.symlink_to("run.json")),
}
SEARCHES: dict[str, Damage] = {
    "a search of other settings": replaced("search.jsonl", b'{"factor": 9.0}\n'),
    "a search of half a line": replaced("search.jsonl", b'{"factor": 9.0}\n{"name"\n'),
    "a search of zeros": replaced("search.jsonl", bytes(99) + b"\n"),
    "a search that is a folder": instead("search.jsonl", os.mkdir),
    "a search that is a pipe": instead("search.jsonl", os.mkfifo),
    "a search that is a link": instead("search.jsonl", lambda path: path.symlink_to("../kept.txt")),
    "knobs that are a folder": instead("knobs.json", os.mkdir),
    "a page that is a link": instead("search.html", lambda path: path.symlink_to("../kept.txt")),
}
DATA: dict[str, tuple[str, bytes]] = {
    "lines that are no JSON": ("a.jsonl", b"hello\n"),
    "lines of lists": ("a.jsonl", b"[1]\n"),
    "lines without a text": ("a.jsonl", b'{"nothing": 1}\n'),
    "a text that is a number": ("a.jsonl", b'{"text": 7}\n'),
    "half a line": ("a.jsonl", b'{"text": "a'),
    "a list without its end": ("a.json", b'[{"text": "a"}, '),
    "more behind a list": ("a.json", b'[{"text": "a"}] x'),
    "no UTF-8": ("a.txt", b"\xff\xfe\x00"),
    "a text of nothing": ("a.txt", b""),
    "half of what is compressed": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:40]),
    "compressed and none": ("a.jsonl.gz", b"hello"),
    "zstd and none": ("a.jsonl.zst", b"hello"),
    "a table that is none": ("a.parquet", b"PAR1hello"),
    "an Arrow file that is none": ("a.arrow", b"hello"),
    "an ending that nobody knows": ("a.docx", b"hello"),
    "brackets without end": ("a.jsonl", b"[" * 100_000 + b"\n"),
}
RECIPES: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"- a\n- b\n",
    "a word": b"hello\n",
    "no UTF-8": b"\xff\xfe\x00",
    "a key that nobody knows": b"model: tiny\nfactr: 2\n",
    "a key that is a number": b"7: 2\n",
    "anchors": b"a: &a [x]\nb: *a\n",
    "a tag of Python": b"model: !!python/object/apply:os.system ['true']\n",
    "a factor in words": b"model: tiny\nfactor: four\n",
    "a factor in a list": b"model: tiny\nfactor: [2, 4]\n",
    "a factor that is no number": b"model: tiny\nfactor: .nan\n",
    "a factor without end": b"model: tiny\nfactor: .inf\n",
    "a factor of an object": b"model: tiny\nfactor: {a: 1}\n",
    "a method that nobody knows": b"model: tiny\nmethod: yran\nfactor: 2\n",
    "a method that is a number": b"model: tiny\nmethod: 7\nfactor: 2\n",
    "a tab": b"model:\ttiny\n\tfactor: 2\n",
    "brackets without end": b"[" * 5000,
    "a date of no calendar": b"model: tiny\nfactor: 2026-13-77\n",
    "a rate that is true": b"model: tiny\nfactor: 2\nlearning_rate: true\n",
    "steps below 0": b"model: tiny\nfactor: 2\nmax_steps: -3\n",
    "code that may run": b"model: tiny\nfactor: 2\ntrust_remote_code: true\n",
}


# Of each kind of fault, the place of the world that is damaged
PLACES = {
    "config": "model",
    "weights": "model",
    "tokenizer": "model",
    "adapter": "adapter",
    "results": "results",
    "search": "new",
    "data": "data",
    "recipe": "data",
}


def met(verb: str) -> tuple[str, ...]:
    return (verb, *shlex.split(BASE[verb]))


def configs() -> list[tuple[Fault, Damage]]:
    """Damaged configs, for every verb that reads a checkpoint."""
    many = {**CONFIGS, "a pipe": instead("config.json", os.mkfifo), "a terabyte": instead("config.json", huge)}
    many["zeros without end"] = instead("config.json", lambda path: path.symlink_to("/dev/zero"))
    many["UTF-16"] = content((TINY / "config.json").read_text().encode("utf-16"))
    return [
        (fault_of(verb, "config", what), damage)
        for what, damage in many.items()
        for verb in READERS
        if not what.startswith(UNREAD.get(verb, ()))
    ]


def fault_of(verb: str, kind: str, what: str) -> Fault:
    codes = (
        (1, 2) if verb in ("doctor", "verify-export") else (2,)
    )  # the doctor may find the fault in the place of refusing it
    return Fault(verb=verb, kind=kind, what=what, given=met(verb), codes=codes)


def beside() -> list[tuple[Fault, Damage]]:
    """Damaged weights and tokenizers, for every verb that reads them."""
    weights = [(fault_of(verb, "weights", what), damage) for what, damage in WEIGHTS.items() for verb in LOADERS]
    tokenizers = named("tokenizer.json", everywhere("tokenizer.json")) | named(
        "tokenizer_config.json", everywhere("tokenizer_config.json")
    )
    return weights + [
        (fault_of(verb, "tokenizer", what), damage) for what, damage in tokenizers.items() for verb in TOKENIZED
    ]


def adapters() -> list[tuple[Fault, Damage]]:
    """Damaged adapters, as `merge` and `export --adapter` meet them."""
    found = []
    for what, damage in ADAPTERS.items():
        found.append((fault_of("merge", "adapter", what), damage))
        given = ("export", "{model}", "{new}", "--to", "transformers", "--adapter", "{adapter}")
        found.append((Fault(verb="export", kind="adapter", what=what, given=given), damage))
    return found


def results() -> list[tuple[Fault, Damage]]:
    """Damaged results, as `report` meets them and an evaluation that would go on in them."""
    return [(fault_of("report", "results", what), damage) for what, damage in RESULTS.items()]


def searches() -> list[tuple[Fault, Damage]]:
    """A folder of a search in which another one is to go on."""
    given = tuple(LONG["search"].split())
    return [(Fault(verb="search", kind="search", what=what, given=given), damage) for what, damage in SEARCHES.items()]


def data() -> list[tuple[Fault, Damage]]:
    """Texts that are none, as training, evaluation and search read them."""
    base = {
        "train": "lora --model {model} --factor 2 --data {data} --output {new}",
        "eval": "{model} --methods none --tasks perplexity --lengths 128 --texts {data} --output {new}",
        "search": "{model} --factor 2 --data {data} --output {new}",
    }
    return [
        (Fault(verb=verb, kind="data", what=what, given=(verb, *given.split())), replaced(*file))
        for what, file in DATA.items()
        for verb, given in base.items()
    ]


def every() -> list[tuple[Fault, Damage]]:
    """All of these."""
    return [*configs(), *beside(), *adapters(), *results(), *searches(), *data(), *recipes()]


def recipes() -> list[tuple[Fault, Damage]]:
    """Recipes of somebody's own."""
    given = ("train", "{data}/r.yaml", "--output", "{new}")
    return [
        (Fault(verb="train", kind="recipe", what=what, given=given), replaced("r.yaml", text))
        for what, text in RECIPES.items()
    ]
