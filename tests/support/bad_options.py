"""Bad values for every option and argument of the command line, and options that contradict one another.

A value stands for one kind of mistake: no number, none that is allowed, none at all, a name that nobody knows, a place
that is not there. In braces stand things of the folder that `world.py` makes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from world import Fault

from ropescale import cli

HUGE = "9" * 30
WHOLE = ("x", "", "1.5", "nan", "-1", "0")
COUNT = (*WHOLE, HUGE)
FRACTION = ("x", "", "nan", "inf", "-1")
FACTOR = ("x", "", "nan", "inf", "-4", "0", "0.5", "1e9")
NAME = ("nowhere", "", "NOWHERE", "a b", "🦊")
LISTED = ("4,,8", ",", "x;y")
OBJECT = ("{", "[]", "7", "null", "nowhere.json", "{kept}", "{binary}", "[" * 3000)
KNOBS = (
    *OBJECT,
    '{"beta": 3}',
    '{"beta_fast": "x"}',
    '{"beta_fast": NaN}',
    '{"beta_fast": null}',
    '{"beta_fast": 1e999}',
    '{"factor": 2}',
    '{"beta_fast": {"a": 1}}',
)
CHECKPOINT = ("{empty}/nowhere", "tinny", "", "{kept}", "{binary}", "{empty}", "{pipe}", "{loop}", "a" * 300)
TEXTS = ("{empty}/nowhere", "{empty}", "{binary}", "{loop}", "{pipe}")
PLACES = ("{kept}/below", "{loop}", "{long}", "/proc/nowhere/a")
# By the name of an argument, as Python has it
VALUES: dict[str, tuple[str, ...]] = {
    "adapter": ("{empty}/nowhere", "{model}", "{kept}", ""),
    "adapters": ("{empty}/nowhere", "{kept}", "yarn={empty}/nowhere"),
    "api_key": ("NOWHERE_TO_BE_FOUND", ""),
    "arms": (*NAME, "yarn=", "=", "a=b=c"),
    "attention": NAME,
    "backend": NAME,
    "base": CHECKPOINT,
    "batches": COUNT[:-1],
    "budget": ("x", "", "0", "-5m", "nan", "inf", "5d", "5m5s"),
    "candidates": WHOLE,
    "data": TEXTS,
    "depths": ("x", "", "-0.1", "1.5", "nan", "inf", *LISTED),
    "destination": (*PLACES, "{kept}", "{full}", "{pipe}", "{model}"),
    "device": ("nowhere", "cuda:99", "meta", "cpu:x", ""),
    "device_map": ("nowhere", "{", "[]", '{"": 7.5}', '{"": "nowhere"}'),
    "dtype": ("nowhere", "", "int8", "float64"),
    "engine": NAME,
    "engine_args": (*OBJECT, '{"nowhere": 1}'),
    "evaluator": CHECKPOINT,
    "existing": NAME,
    "factor": FACTOR,
    "factors": (*FACTOR, *LISTED),
    "folder": ("{empty}/nowhere", "{kept}", "{empty}", "{loop}", "{model}"),
    "framework": NAME,
    "held_out": WHOLE,
    "imports": ("{empty}/nowhere.py", "{kept}", "{empty}", "{binary}", "{loop}"),
    "include_path": ("{empty}/nowhere", "{kept}", "{loop}"),
    "knobs": KNOBS,
    "layers": NAME,
    "length": ("x", "", "nan", "-1", "0", "1.5"),
    "lengths": ("x", "", "nan", "-1", "0", "1.5", *LISTED),
    "limit": WHOLE,
    "max_new_tokens": WHOLE,
    "metadata": OBJECT,
    "method": NAME,
    "methods": (*NAME, *LISTED, "yarn,yran"),
    "model": CHECKPOINT,
    "needles": WHOLE[:-1],
    "objective": NAME,
    "original_length": COUNT,
    "other": ("{empty}/nowhere", "{kept}", "{empty}", "{loop}", "{model}", "{results}"),
    "output": PLACES,
    "outtype": NAME,
    "path": CHECKPOINT,
    "prefixes": ("x", "", "-1", "1.5", *LISTED),
    "quantization": NAME,
    "ranges": (*OBJECT, '{"beta_fast": 3}', '{"beta": [1, 2]}', '{"beta_fast": []}', '{"beta_fast": ["x", 2]}'),
    "recipe": ("nowhere", "", "{empty}/nowhere.yaml", "{binary}", "{kept}", "{empty}", "{loop}", "{pipe}"),
    "reference": CHECKPOINT,
    "report_to": NAME,
    "rows": WHOLE,
    "rule": ("nowhere", "", ":", "log_n:0.5"),
    "samples": WHOLE,
    "seed": ("x", "", "1.5", "nan"),
    "serve_with": NAME,
    "served": NAME,
    "source": CHECKPOINT,
    "space": NAME,
    "steps": WHOLE,
    "stride": (*FRACTION, "0"),
    "target_length": (*COUNT, "64"),
    "tasks": ("nowhere", "", "4,,8", ",", "passkey,nowhere"),
    "temperature": ("nowhere", "", ":", "log_n:x", "log_n:-1", "log_n:nan", "log_n:1e9", "log_n:1:2"),
    "texts": TEXTS,
    "timeout": (*FRACTION, "0"),
    "to": NAME,
    "tolerance": ("x", "", "nan", "-1"),
    "until": NAME,
    "url": ("", "x", "ftp://127.0.0.1:9", "http://", "http://127.0.0.1:9", "http://[::1", "http://h:99999"),
    "weights": (
        *OBJECT,
        '{"nowhere": 1}',
        '{"needle": -1}',
        '{"needle": NaN}',
        '{"needle": "x"}',
        '{"needle": 0, "text": 0}',
    ),
    "windows": WHOLE,
}
OWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("chat", "temperature"): FRACTION,
    ("merge", "dtype"): ("nowhere", "", "int8"),
    ("eval", "knobs"): (
        *OBJECT,
        '{"yarn": 3}',
        '{"yarn": {"beta": 3}}',
        '{"yran": {}}',
        '{"yarn": {"beta_fast": NaN}}',
    ),
    ("recommend", "budget"): ("x", "", "0", "-5m", "nan", "inf", "5d"),
    ("report", "target_length"): ("x", "", "1.5", "nan", "-1", "0"),
}
# What says nothing wrong, or what only a run can tell: of a revision the hub, of a prompt nobody
FREE = {"help", "version", "revision", "prompt", "options"}
# Commands that are whole but for one option, which is added behind them
BASE = {
    "demo": "--model {model} --output {new}",
    "eval": "{model} --methods yarn --tasks passkey --lengths 128 --output {new}",
    "recommend": "{model} --target-length 512 --output {new}",
    "inspect": "{model}",
    "doctor": "{model}",
    "rescale": "{model} {new} --factor 2",
    "explain": "{model} --output {page}",
    "plot": "{model} --output {picture}",
    "search": "{model} --factor 2 --output {new}",
    "fit": "{model} --factor 2 --windows 1",
    "train": "lora --model {model} --factor 2 --data passkey --max-documents 4 --eval-texts sample --output {new}",
    "merge": "{adapter} {new}",
    "report": "{results}",
    "export": "{model} {new} --to vllm --method yarn --factor 2",
    "verify-export": "{model} --engine transformers",
    "verify-server": "http://127.0.0.1:9 --reference {model} --method yarn --factor 2",
    "flags": "{model} --for axolotl --method yarn --factor 2",
    "memory": "{model} --length 64",
    "chat": "{model} --prompt hello",
}
ELSE = {
    ("eval", "evaluator"): "{model} --methods none --tasks longppl --lengths 128 --output {new}",
    ("export", "outtype"): "{model} {gguf} --to gguf --method none",
    ("report", "arms"): "{results} {others}",
    ("report", "other"): "{results} another",
    ("search", "method"): "{model} --factor 2 --space knobs --output {new}",
    ("search", "ranges"): "{model} --factor 2 --space knobs --method yarn --output {new}",
    ("chat", "factor"): "{model} --prompt hello --method yarn",
    ("chat", "target_length"): "{model} --prompt hello --method yarn",
    ("chat", "original_length"): "{model} --prompt hello --method yarn --factor 2",
    ("chat", "knobs"): "{model} --prompt hello --method yarn --factor 2",
}
CONTRADICTIONS = {
    "rescale": (
        "--target-length 300",
        "--method none",
        "--method rerope",
        "--layers full --existing nowhere",
        "--method yran --factor x",
        "--nowhere",
        "--factr 2",
        "more",
    ),
    "export": (
        "--to vllm --method rerope",
        "--to vllm --method dynamic_ntk",
        "--outtype q8_0",
        "--patch-gguf",
        "--log-n --temperature log_n",
        "--temperature yarn",
        "--method none --factor 4",
        "--adapter {adapter}",
        "--target-length 999",
    ),
    "eval": (
        "--target-length 400",
        "--quick --samples 3 --limit x",
        "--knobs '{\"ntk\": {}}'",
        "--depths 0.5 --tasks perplexity",
        "--device cpu --device-map auto",
        "--backend vllm --quantization bnb-8bit",
        "--stride 0.5",
        "--evaluator {model}",
        "--chat",
        "--lengths 999999",
    ),
    "search": (
        "--target-length 300",
        "--space pairs --method yarn",
        "--ranges '{\"beta_fast\": [8, 64]}'",
        "--log-n --temperature yarn",
        "--budget 1s --candidates 0",
        "--space knobs",
        "--prefixes 4,16 --space knobs --method yarn",
        "--objective needle --needles 0",
    ),
    "fit": (
        "--target-length 300",
        "--method none",
        "--method nope --factor 1",
        "--temperature log_n:0.5",
        "--knobs '{\"beta\": 1}'",
    ),
    "recommend": ("--target-length 64", "--methods none", "--serve-with vllm --methods rerope"),
    "explain": ("--length 512 --factor 4", "--layers all", "--existing error", "--methods none"),
    "plot": (
        "--length 512 --factor 4",
        "--layers all",
        "--output {new}/a.bmp",
        "--output {new}/a",
        "--methods rerope",
    ),
    "flags": ("--target-length 999", "--method rerope", "--existing error --method yran", "--knobs '{\"layers\": 1}'"),
    "memory": ("--dtype int8", "--length 0,64", "--rows 0"),
    "chat": ("--factor 2", "--method yarn --factor 2 --target-length 999", "--temperature -1", "--existing replace"),
    "merge": ("--dtype int4", "--base {adapter}", "--base {empty}"),
    "verify-export": ("--lengths 9999999", "--engine vllm", "--engine llama.cpp", "--adapter {adapter}", "--steps 0"),
    "verify-server": ("--target-length 999", "--method rerope --lengths 0", "--api-key {empty}"),
    "train": (
        "--target-length 999",
        "--method yran",
        "--knobs '{\"beta\": 1}'",
        "--max-steps 0",
        "--max-steps x",
        "--learning-rate nan",
        "--learning-rate -1",
        "--learning-rate x",
        "--lora-r 0",
        "--lora-dropout 2",
        "--target-modules nowhere",
        "--data {empty}/nowhere",
        "--data {empty}",
        "--data {binary}",
        "--data passkey --max-documents 0",
        "--data-weights 1,2,3",
        "--held-out 1",
        "--held-out nan",
        "--min-tokens 9 --max-tokens 3",
        "--length 0",
        "--length x",
        "--batch-size 0",
        "--loss nowhere",
        "--loss-alpha 2",
        "--schedule nowhere",
        "--tuning nowhere",
        "--eval-lengths x",
        "--eval-windows -1",
        "--eval-passkeys -1",
        "--eval-texts {empty}/nowhere",
        "--stop-passkey 2",
        "--optim nowhere",
        "--warmup-steps -1",
        "--seed x",
        "--dtype nowhere",
        "--device-map nowhere",
        "--quantization nowhere",
        "--attention nowhere",
        "--ulysses 0",
        "--packing perhaps",
        "--report-to nowhere",
        "--save-steps 0",
        "--nowhere 3",
        "--max-stepz 3",
        "--bf16 --fp16",
    ),
    "report": ("more", "--target-length x", "--nowhere"),
    "inspect": ("more", "--nowhere", "--original-length 0"),
    "doctor": ("more", "--nowhere"),
    "methods": ("more", "--nowhere"),
    "demo": ("more", "--factors 2 --methods yran", "--lengths 999999"),
}


def parsers() -> dict[str, Any]:
    """The parser of every verb."""
    return next(action for action in cli._parser()._actions if action.dest == "name").choices


def asked(verb: str) -> dict[str, Any]:
    """The actions of a verb that take a value, by their names."""
    return {
        action.dest: action for action in parsers()[verb]._actions if action.nargs != 0 and action.dest not in FREE
    }


def bad_values(verb: str, name: str) -> tuple[str, ...]:
    return OWN.get((verb, name), VALUES[name])


def one_option(verb: str, name: str) -> Iterator[Fault]:
    """The faults of one option or argument."""
    action = asked(verb)[name]
    words = shlex.split(ELSE.get((verb, name), BASE[verb]))
    for value in bad_values(verb, name):
        if action.option_strings:
            if verb == "train":
                given = [f"{action.option_strings[0]}={value}", *words]
            else:
                given = [*words, f"{action.option_strings[0]}={value}"]
        else:
            positional = [one.dest for one in asked(verb).values() if not one.option_strings]
            given = [*words]
            given[positional.index(name)] = value
        yield Fault(verb=verb, kind="options", what=f"{name}={value[:40]}", given=(verb, *given))


def options() -> list[Fault]:
    """Every bad value of every option and argument, and of what stands before the verb."""
    found = [fault for verb in BASE for name in asked(verb) for fault in one_option(verb, name)]
    for value in VALUES["imports"]:
        given = ("--import", value, "inspect", "{model}")
        found.append(Fault(verb="inspect", kind="options", what=f"import={value}", given=given))
    return found


def contradictions() -> list[Fault]:
    """Options that contradict one another, or the model, and words that nobody knows."""
    return [
        Fault(
            verb=verb,
            kind="contradictions",
            what=more,
            given=(verb, *shlex.split(f"{BASE.get(verb, '')} {more}")),
        )
        for verb, many in CONTRADICTIONS.items()
        for more in many
    ]
