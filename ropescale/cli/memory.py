"""Say what contexts of some lengths need of a device's memory when the model answers: weights, the cache of keys and
values, and what passes through the layers while the prompt is read. By formula, from the config alone:

  weights      parameters x bytes
  cache        rows x layers x kv heads x (key + value width) x tokens x bytes; of a sliding layer its window at
               most; of latent attention rank + rotated width in the place of heads and widths
  activations  rows x tokens x (2 x hidden + max(2 x query + 2 x keys, 3 x intermediate)) x bytes

Attention is taken to be fused and logits to be those of the last token. `python -m ropescale.recipes.memory` says what
training needs.
"""

import argparse

from ropescale.cli.arguments import BYTES, MODEL, add_trust, list_of
from ropescale.cli.next_line import say_eval
from ropescale.errors import InvalidArgumentError

HELP = "what a length needs of a device's memory, by formula"
DOING = "working out the memory of {model}"
EXAMPLES = """\
examples:
  ropescale memory tiny --length 128,512,1024
  ropescale memory smollm2 --length 32768 --dtype float32 --rows 4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("--length", "--lengths", type=list_of(int), required=True, metavar="N,N", help="tokens, prompt and reply")
    add("--rows", type=int, default=1, metavar="N", help="prompts at a time (default: 1)")
    add("--dtype", default="bfloat16", choices=sorted(BYTES), help="of weights and cache (default: bfloat16)")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from rich.table import Table

    from ropescale import memory
    from ropescale.checkpoint import counted
    from ropescale.console import Console

    for name in ("rows", "length"):
        value = getattr(arguments, name)
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise InvalidArgumentError(f"--{name}: must be at least 1, got {value!r}; correct it")
    config, parameters = counted(arguments.model)
    table = Table(
        "tokens", "weights", "cache", "activations", "together", title=f"{arguments.model}, {arguments.dtype}"
    )
    for column in table.columns:
        column.justify = "right"
    for length in arguments.length:
        need = memory.need(
            config, parameters=parameters, length=length, rows=arguments.rows, element=BYTES[arguments.dtype]
        )
        sizes = (need.weights, need.cache, need.activations, need.total)
        table.add_row(f"{length:,}", *map(memory.said, sizes))
    Console().print(table, markup=False)
    print(f"{parameters:,} parameters; by formula, which `ropescale memory --help` states")
    reads = config.get_text_config(decoder=True).max_position_embeddings
    longest = max(arguments.length)
    if hasattr(config.get_text_config(decoder=True), "ropescale"):  # extended already
        return say_eval(arguments.model, "--methods", "none", "--quick", "--dry-run")
    factor = f"{max(2, longest / reads) if reads > 0 else 2:g}"
    return say_eval(arguments.model, "--methods", "yarn", "--factors", factor, "--quick", "--dry-run")
