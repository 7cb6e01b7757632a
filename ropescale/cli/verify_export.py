"""Run an export in its engine and compare it with the patched model: greedy tokens, and the log-probabilities of the
whole vocabulary at each, after prompts below the original length, beyond it and up to the target. Prints a verdict
with the largest difference and where it is; the exit code is 1 where that is more than rounding.

engines:
  transformers  the folder in Transformers alone, without ropescale's patch
  llama.cpp     the .gguf file in llama.cpp (package xllamacpp)
  vllm          the folder in vLLM, in an environment of its own, because its packages are older ones: make one
                (python -m venv vllm && vllm/bin/pip install vllm) and name its Python in ROPESCALE_VLLM_PYTHON
  mlx           the folder in MLX-LM (packages mlx-lm, and off a Mac mlx[cpu])
"""

import argparse
import shlex

from ropescale.cli.arguments import Verbs, add_trust, add_verb, list_of
from ropescale.cli.quiet import quieten_transformers

EXAMPLES = """\
examples:
  ropescale verify-export out/tiny.gguf --engine llama.cpp
  ropescale verify-export out/mine.gguf --engine llama.cpp --reference path/to/patched --lengths 512,9000
  ropescale verify-export out/served --engine vllm
"""


def add_to(verbs: Verbs) -> None:
    """Its parser, among those of the other verbs."""
    parser = add_verb(
        verbs,
        "verify-export",
        _run,
        doing="verifying {path}",
        help="run an export in its engine and compare it with the patched model",
        description=__doc__,
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("path", metavar="DST", help="what `ropescale export` wrote")
    add("--engine", required=True, metavar="NAME", help="transformers, llama.cpp, vllm or mlx")
    add("--reference", metavar="SRC", help="the model that was exported (default: the weights in DST, or its source)")
    add("--adapter", metavar="DIR", help="the PEFT adapter that was merged into it (default: what DST says)")
    add(
        "--lengths",
        "--length",
        type=list_of(int),
        metavar="N,N",
        help="of the prompts (default: below, beyond, at the target)",
    )
    add("--steps", type=int, metavar="N", help="tokens to generate from each (default: 16)")
    add("--seed", type=int, metavar="N", help="of the prompts (default: 0)")
    add("--tolerance", type=float, metavar="X", help="difference or, of rounded weights, divergence that is rounding")
    add_trust(parser)


def _run(arguments: argparse.Namespace) -> int:
    quieten_transformers()
    from ropescale.export import verify

    names = ("reference", "adapter", "lengths", "steps", "seed", "tolerance")
    asked = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    verdict = verify(arguments.path, engine=arguments.engine, **asked)
    for check in verdict.checks:
        print(
            f"{check.length:>9,} tokens: {check.agreed} of {check.steps} greedy tokens, largest difference "
            f"{check.worst:.1e}, divergence {check.divergence:.1e}, smallest lead of a first choice {check.margin:.1e}"
        )
    print(verdict)
    if not verdict.exact:
        return 1
    served = {"llama.cpp": "llama-cli -m {}", "vllm": "vllm serve {}", "mlx": "mlx_lm.chat --model {}"}
    print("next:", served.get(arguments.engine, "ropescale chat {}").format(shlex.quote(str(arguments.path))))
    return 0
