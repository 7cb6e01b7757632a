"""Ask a running OpenAI-compatible server (vLLM, llama-server, SGLang ...) what it computes: the method as meant, or
the unpatched model, the scaling twice, a theta that was lost, an attention factor that was ignored, an original
length that was taken from the extended maximum, a prompt that was cut.

The server says which token comes next after prompts below the original length L, just beyond it and of twice that
length, by /v1/completions with log-probabilities. The reference is run here, on the CPU, as it is meant and as each of
these misreadings; what the server computes is the nearest, if every other is clearly farther off and what is left is
rounding. A prompt of the target length is sent besides, and has to be taken. The exit code is 0 for as meant, 1 for
anything else that the server computes or that cannot be told, and 2 where it could not be asked.

SRC is what the server is meant to serve: a folder that was saved patched or exported, or the unmodified checkpoint
with --method, as for `ropescale export`. Some ten models read every prompt in turn, so with a large one give short
--lengths: just beyond L is enough.
"""

import argparse
import json

from ropescale.cli.arguments import EXTENDING, add_extension, add_knobs, add_original_length, add_trust, list_of
from ropescale.cli.next_line import say_next
from ropescale.cli.quiet import quieten_transformers

HELP = "ask a running server what it computes, and compare it with models"
DOING = "asking {url}"
EXAMPLES = """\
examples:
  ropescale verify-server http://127.0.0.1:8000 --reference out/served
  ropescale verify-server http://127.0.0.1:8080 --reference tiny --method yarn --factor 4
  ropescale verify-server https://models.example.org/v1 --reference path/to/patched --model name --api-key MY_KEY
  ropescale verify-server http://127.0.0.1:8000 --reference out/served --lengths 2048,9000 --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("url", metavar="URL", help="the address of the server, with or without /v1")
    add(
        "--reference",
        required=True,
        metavar="SRC",
        help="what it is meant to serve: a folder, tiny, smollm2, a hub id",
    )
    add_extension(parser, method=None, summary="extends SRC where it is the unmodified checkpoint")
    add_original_length(parser)
    add_knobs(parser)
    add("--existing", metavar="HOW", help="of a checkpoint that is scaled already: error (default), replace, compose")
    add("--layers", metavar="WHICH", help="where layer types differ: global (default) or all")
    add("--model", dest="served", metavar="NAME", help="as the server calls it (default: the one that it has)")
    add("--api-key", metavar="VARIABLE", help="the environment variable that holds the key, which is never printed")
    add("--timeout", type=float, metavar="SECONDS", help="for one answer (default: 60)")
    add(
        "--lengths",
        "--length",
        type=list_of(int),
        metavar="N,N",
        help="of the prompts (default: 16, L/2, beyond L, 2 L)",
    )
    add("--tolerance", type=float, metavar="X", help="divergence in nats that is rounding (default: 0.1)")
    add("--json", action="store_true", help="print the verdict, with the distance of every reading, as JSON")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_transformers()
    from ropescale.request import require_knobs
    from ropescale.serving import verify_server

    if arguments.method not in (None, "none"):
        require_knobs(arguments.method, arguments.knobs)  # which may not name the other arguments
    names = [*EXTENDING, "served", "api_key", "timeout", "lengths", "tolerance"]
    asked = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    verdict = verify_server(arguments.url, reference=arguments.reference, **asked, **arguments.knobs)
    if arguments.json:
        print(json.dumps(verdict.to_dict(), indent=2))
        return 0 if verdict.as_meant else 1
    for distance in verdict.distances:
        lengths = ", ".join(f"{value:.1e} at {length:,}" for length, value in distance.by_length.items())
        print(f"{distance.mean:9.1e} nats  {distance.name}: {distance.says} ({lengths} tokens)")
    print(verdict)
    return say_next("memory", arguments.reference, "--length", verdict.lengths[-1]) if verdict.as_meant else 1
