"""Fit the coefficient of a temperature on the model itself: what queries are multiplied by under a method, so that
texts of the target length, the answers of needles far away and short texts together cost least. Nothing is trained; a
dozen coefficients read the same samples. What is found goes into --temperature or --knobs of other verbs.
"""

import argparse
import json

from ropescale.cli.arguments import (
    EXTENDING,
    MODEL,
    add_device,
    add_extension,
    add_knobs,
    add_layers,
    add_loading,
    add_start,
    add_trust,
    said_loading,
)
from ropescale.cli.next_line import say_next
from ropescale.cli.quiet import quieten_libraries

HELP = "the coefficient of a temperature, fitted on the model itself"
DOING = "fitting a temperature on {model}"
EXTRAS = ("search",)
EXAMPLES = """\
examples:
  ropescale fit tiny --method self_extend --factor 4
  ropescale fit path/to/model --method yarn --target-length 32768 --temperature llama4 --data path/to/texts --windows 4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"{MODEL}; unpatched")
    add_extension(parser, method="yarn", summary="what the model is patched with beside it (default: yarn)")
    add_start(parser, existing="error (default), replace, compose")
    add_layers(parser)
    add_knobs(parser)
    add(
        "--temperature",
        dest="rule",
        default="log_n",
        metavar="RULE",
        help="whose coefficient: log_n (default), llama4, yarn, scalable or drope",
    )
    add("--objective", default="sum", metavar="NAME", help="as of `ropescale search` (default: sum)")
    add("--data", "--texts", metavar="NAME", help="sample (tiny: default), speeches (others: default), or a path")
    add("--windows", type=int, default=8, metavar="N", help="texts of the target length, at most (default: 8)")
    add_device(parser)
    add_loading(parser)
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_libraries()
    from ropescale.contents import read_tokenizer
    from ropescale.loading import Loading
    from ropescale.patching import patched, record
    from ropescale.request import require_knobs
    from ropescale.search import fit_temperature
    from ropescale.temperature import RULES

    require_knobs(arguments.method, arguments.knobs)  # which may not name the other arguments
    given = {name: getattr(arguments, name) for name in EXTENDING if getattr(arguments, name) is not None}
    asked = given | arguments.knobs
    loading = Loading.of(arguments)
    model = loading.model(arguments.model)
    found = fit_temperature(
        model,
        read_tokenizer(loading.path(arguments.model)),
        arguments.rule,
        data=arguments.data or ("sample" if arguments.model == "tiny" else "speeches"),
        objective=arguments.objective,
        windows=arguments.windows,
        **asked,
    )
    rule = RULES[found.rule]
    print(
        f"{found}: of the coefficients from 0, which is no temperature, to {rule.highest:g} this one costs least; as "
        f"published the rule has {rule.coefficient:g}"
    )
    with patched(model, **asked):
        done = record(model)
    assert done is not None
    knobs = {arguments.method: {**arguments.knobs, "temperature": str(found)}}
    more = ["--existing", arguments.existing] if arguments.existing != "error" else []
    at = [
        "--methods",
        arguments.method,
        "--factors",
        f"{done.target_length / done.original_length:g}",
        "--knobs",
        json.dumps(knobs),
    ]
    return say_next("eval", arguments.model, *at, *more, *said_loading(arguments))
