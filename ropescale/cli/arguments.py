"""Options that several verbs take, and the parsers of values."""

import argparse
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ropescale.files import object_of

DRY = "--dry-run"
TRUST = "--trust-remote-code"  # nothing else lets the code of a checkpoint run
MODEL = "tiny (embedded), smollm2, a path or a hub id"
EXTENDING = ("method", "factor", "target_length", "original_length", "existing", "layers")  # what `patch` takes too
LOADING = ("dtype", "device", "device_map", "quantization", "revision", "attention")  # what `Loading` takes too
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def either(words: Iterable[str]) -> str:
    """Several words as one of which one is chosen."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def lines(rows: Mapping[str, str]) -> str:
    """Names, each with what is said of it, for a description."""
    wide = max(map(len, rows)) + 4
    return "".join(
        textwrap.fill(f"  {name:<{wide - 4}}  {said}", width=119, subsequent_indent=" " * wide) + "\n"
        for name, said in rows.items()
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Whether the code of a checkpoint may run."""
    parser.add_argument(TRUST, action="store_true", help="run Python code that lies in the checkpoint")


def add_original_length(parser: argparse.ArgumentParser) -> None:
    """What pretraining saw."""
    parser.add_argument(
        "--original-length", type=int, metavar="N", help="tokens of pretraining (default: from the config)"
    )


def add_extension(parser: argparse.ArgumentParser, *, method: str | None, summary: str) -> None:
    """One method, and how far it extends."""
    add = parser.add_argument
    add("--method", "--methods", default=method, metavar="NAME", help=summary)
    add("--factor", "--factors", type=one_of(float), metavar="X", help="target / original length")
    add("--target-length", type=int, metavar="N", help="tokens wanted, instead of a factor")


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """Those of one method."""
    parser.add_argument(
        "--knobs",
        type=json_object,
        default={},
        metavar="JSON",
        help="""of the method, as in '{"beta_fast": 16}', or a file that holds them""",
    )


def add_methods(parser: argparse.ArgumentParser, default: str) -> None:
    """Several methods."""
    parser.add_argument(
        "--methods", "--method", type=list_of(str), metavar="A,B", help=f"registry names (default: {default})"
    )


def add_start(parser: argparse.ArgumentParser, *, existing: str) -> None:
    """From what a method starts, where a checkpoint may be scaled already."""
    add_original_length(parser)
    choices = ["error", "replace", "compose"] if "error" in existing else ["replace", "compose"]
    parser.add_argument(
        "--existing", default=choices[0], choices=choices, metavar="HOW", help=f"of a scaled checkpoint: {existing}"
    )


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Which layers a patch rescales."""
    parser.add_argument(
        "--layers",
        default="global",
        choices=("global", "full", "all"),
        metavar="WHICH",
        help="global (default): those that read the whole context; full or all: where layer types differ",
    )


def add_temperature(parser: argparse.ArgumentParser, *, log_n: str) -> None:
    """What queries are multiplied by."""
    add = parser.add_argument
    add("--log-n", action="store_true", help=f"multiply queries by log-n; {log_n}")
    add(
        "--temperature",
        metavar="RULE",
        help="multiply queries by log_n, llama4, yarn, scalable or drope, or with a coefficient, as in log_n:0.8",
    )


def add_grid(parser: argparse.ArgumentParser) -> None:
    """What is compared, at which lengths and with how many prompts."""
    add_methods(parser, "linear,ntk,by_parts,yarn")
    add = parser.add_argument
    add(
        "--factors",
        "--factor",
        type=list_of(float),
        metavar="N,N",
        help="target / original length (default: 2; demo: 2,4,8)",
    )
    add(
        "--lengths",
        "--length",
        type=list_of(int),
        metavar="N,N",
        help="context lengths in tokens (default: the original length and every factor times it)",
    )
    add("--depths", type=list_of(float), metavar="X,X", help="of needles, 0 to 1 (default: 0,0.25,0.5,0.75,1)")
    add("--samples", type=int, metavar="N", help="prompts per length, and per depth where there are any (default: 10)")
    add("--seed", type=int, metavar="N", help="of the prompts (default: 0)")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """In which type a model is loaded, and on which one device."""
    add = parser.add_argument
    add("--dtype", metavar="TYPE", help="auto (float32 on a CPU, bfloat16 elsewhere), float32, bfloat16 or float16")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: the accelerator if there is one)")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded that is larger than a device, of which revision, and whose attention."""
    add = parser.add_argument
    add(
        "--device-map",
        metavar="MAP",
        help="""over several devices: auto, balanced ..., or an object as in '{"model": 0, "lm_head": "cpu"}'""",
    )
    add("--quantization", metavar="NAME", help="of the weights: bnb-4bit, bnb-8bit or torchao-int8")
    add("--revision", metavar="NAME", help="of a hub id: a branch, a tag or a commit")
    add("--attention", "--attn", metavar="NAME", help="Transformers' attn_implementation (default: the model's own)")


def said_loading(arguments: argparse.Namespace) -> list[str]:
    """The options of loading that were given, for another verb that has them."""
    given = {name: getattr(arguments, name) for name in LOADING if getattr(arguments, name) is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]


def list_of(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """A parser of comma-separated values."""
    names = {str: "names", int: "whole numbers", float: "numbers"}

    def parse(text: str) -> tuple[Any, ...]:
        try:
            values = tuple(kind(part.strip()) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or "" in values or any(value != value for value in values):
            raise argparse.ArgumentTypeError(f"must be {names[kind]} separated by commas, got {text!r}")
        return values

    return parse


def one_of(kind: type) -> Callable[[str], Any]:
    """A parser of one number, for an option that takes several elsewhere."""
    names = {int: "one whole number", float: "one number"}

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be {names[kind]}, got {text!r}") from error

    return parse


def minutes(text: str) -> float:
    """A parser of a time, in minutes: `90s`, `30m`, `2h`, or a number of minutes.

    Raises:
        ArgumentTypeError: no time, or none above 0.
    """
    units = {"s": 1 / 60, "m": 1.0, "h": 60.0}
    number, unit = (text[:-1], text[-1:]) if text[-1:] in units else (text, "m")
    try:
        value = float(number) * units[unit]
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a time above 0, as in 90s, 30m or 2h, got {text!r}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A parser of one JSON object, or of a file that holds one."""
    value = object_of(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"must be a JSON object, or a file that holds one, got {text!r}")
    return value
