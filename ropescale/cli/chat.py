"""Talk with a model in the terminal; the reply is written as it comes. An extended model is loaded with its extension,
and any other can be extended for the conversation. Its tokenizer needs a chat template. /exit or the end of input
stops.
"""

import argparse
import sys
from typing import Any

from ropescale.cli.arguments import BYTES, add_extension, add_knobs, add_layers, add_start, add_trust
from ropescale.cli.next_line import say_next
from ropescale.cli.quiet import quieten_transformers
from ropescale.errors import InvalidArgumentError

HELP = "talk with a model, extended or not"
DOING = "talking with {model}"
EXAMPLES = """\
examples:
  ropescale chat smollm2 --method yarn --factor 2
  ropescale chat path/to/saved-patched --prompt "Summarise: ..."
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="smollm2, a path (also one that was saved patched) or a hub id")
    add_extension(parser, method=None, summary="extend it by this method first (see `ropescale methods`)")
    add_start(parser, existing="error (default), replace, compose")
    add_layers(parser)
    add_knobs(parser)
    add("--prompt", metavar="TEXT", help="say this, print the reply and stop")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="of a reply, at most (default: 512)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="X",
        help="above 0 to draw tokens (default: 0, the likeliest)",
    )
    add("--seed", type=int, metavar="N", help="of what is drawn, with a temperature (default: 0)")
    add("--dtype", default="auto", choices=["auto", *sorted(BYTES)], help="of the weights (default: the checkpoint's)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda ... (default: the accelerator if there is one)")
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    quieten_transformers()
    import torch

    from ropescale import conversation
    from ropescale.request import require_knobs

    names = ("method", "factor", "target_length", "original_length", "existing", "layers", "knobs")
    defaults: tuple[Any, ...] = (None, "error", "global", {})
    asked = {name: value for name in names if (value := getattr(arguments, name)) not in defaults}
    if asked and arguments.method is None:
        raise InvalidArgumentError(
            f"--method: is required where the model is to be extended, got {', '.join(sorted(asked))} alone; name one "
            f"or leave the others out"
        )
    if arguments.max_new_tokens < 1 or not 0 <= arguments.temperature < float("inf"):
        raise InvalidArgumentError(
            f"--max-new-tokens, --temperature: must be at least 1 and at least 0, got {arguments.max_new_tokens} and "
            f"{arguments.temperature:g}; correct them"
        )
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise InvalidArgumentError(
            f"--prompt: must say something, got {arguments.prompt!r}; leave it out to type line by line"
        )
    if arguments.seed is not None and not arguments.temperature:
        raise InvalidArgumentError(
            f"--seed: acts where tokens are drawn, got {arguments.seed} with --temperature 0; give a temperature "
            f"above 0, or leave it out"
        )
    torch.manual_seed(arguments.seed or 0)
    knobs = asked.pop("knobs", {})
    if asked:
        require_knobs(arguments.method, knobs)  # which may not name the other arguments
    talk = conversation.Conversation(arguments.model, dtype=arguments.dtype, device=arguments.device, **asked, **knobs)
    print(
        f"{arguments.model}: reads {talk.longest:,} tokens; {' or '.join(conversation.ENDINGS)} ends", file=sys.stderr
    )
    for said in [arguments.prompt] if arguments.prompt else conversation.asked():
        try:
            talk.reply(said, tokens=arguments.max_new_tokens, temperature=arguments.temperature)
        except InvalidArgumentError as error:  # what is typed can be typed again, shorter
            if arguments.prompt or not conversation.interactive():
                raise
            print(f"ropescale: {error}", file=sys.stderr)
        else:
            if talk.cut:
                print(f"(the reply ends before its end: {talk.cut})", file=sys.stderr)
    return say_next("inspect", arguments.model)
