"""Write a model for the engine that is to serve it: weights and tokenizer as they are, its positions in the engine's
own words. The engine's native type is written where it is exact, otherwise one divisor per pair. What an engine cannot
hold exactly is refused, with the nearest method that it can. The destination is written whole or not at all.

SRC is a folder (saved patched, or as published: then give --method), tiny, smollm2 or a hub id. With an adapter that
ropescale saved, SRC is extended as it was when the adapter was trained: leave --method out.

engines:
  transformers  what save_pretrained of a patched model writes
  vllm          the same for vLLM, and the flags to use on an unmodified checkpoint
  mlx           the same for MLX-LM
  sglang        the same for SGLang, by its source: verify-export does not run it
  gguf          one file for llama.cpp and what builds on it, tokenizer included
"""

import argparse

from ropescale.cli.arguments import Verbs, add_extension, add_knobs, add_original_length, add_trust, add_verb
from ropescale.cli.quiet import quieten_transformers
from ropescale.errors import InvalidArgumentError

EXAMPLES = """\
examples:
  ropescale export path/to/patched out/served --to vllm
  ropescale export smollm2 out/smollm2-16k.gguf --to gguf --method yarn --factor 2 --outtype q8_0
  ropescale export tiny out/tiny.gguf --to gguf --method yarn --factor 4 --knobs '{"beta_fast": 16}'
  ropescale export path/to/base out/merged --to transformers --adapter path/to/adapter
  ropescale export existing.Q4_K_M.gguf longer.gguf --to gguf --patch-gguf --method yarn --factor 4
"""


def add_to(verbs: Verbs) -> None:
    """Its parser, among those of the other verbs."""
    parser = add_verb(
        verbs,
        "export",
        _run,
        doing="exporting {source}",
        help="write a model for vLLM, llama.cpp, SGLang, MLX or Transformers",
        description=__doc__,
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("source", metavar="SRC", help="a folder, tiny, smollm2 or a hub id; with --patch-gguf a .gguf file")
    add("destination", metavar="DST", help="a folder that is not there or empty; for gguf a new .gguf file")
    add("--to", required=True, metavar="ENGINE", help="transformers, vllm, sglang, mlx or gguf")
    add_extension(parser, method=None, told="extend SRC by this method first (see `ropescale methods`)")
    add_original_length(parser)
    add_knobs(parser)
    add("--existing", metavar="HOW", help="of a checkpoint that is scaled already: error (default), replace, compose")
    add(
        "--layers",
        metavar="WHICH",
        help="where layer types differ: global (default) rescales those that read the whole "
        "context if each type has its own rotation, else all; all every layer",
    )
    add("--log-n", action="store_true", help="multiply queries by log-n; no engine does, so it needs --lossy")
    add("--adapter", metavar="DIR", help="a PEFT adapter of SRC, merged into its weights")
    add("--outtype", metavar="TYPE", help="of gguf: f32, f16, bf16 or q8_0 (default: the type of the checkpoint)")
    add("--patch-gguf", action="store_true", help="SRC is a .gguf file: copy it with a scaling, every weight as it is")
    add("--lossy", action="store_true", help="write the nearest fixed frequencies where a method has none, labelled")
    add_trust(parser)


def _run(arguments: argparse.Namespace) -> int:
    quieten_transformers()
    from ropescale.export import export, patch_gguf
    from ropescale.request import require_knobs

    knobs = arguments.knobs
    if arguments.method not in (None, "none"):
        require_knobs(arguments.method, knobs)  # which may not name the other arguments
    asked = {
        name: value
        for name in (
            "method",
            "factor",
            "target_length",
            "original_length",
            "existing",
            "layers",
            "adapter",
            "outtype",
        )
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.patch_gguf:
        theirs: list[str] = [name for name in ("existing", "layers", "adapter", "outtype") if name in asked]
        theirs += [name for name in ("lossy", "log_n") if getattr(arguments, name)]
        if arguments.to != "gguf" or theirs or arguments.method is None:
            got = " ".join([f"--to {arguments.to}", *(f"--{name.replace('_', '-')}" for name in theirs)])
            raise InvalidArgumentError(
                f"--patch-gguf: goes with --to gguf and --method, and beside them --factor, --target-length, "
                f"--original-length and --knobs alone, got {got}{'' if arguments.method else ' without --method'}; "
                f"{'leave the others out' if arguments.method else 'name the method'}"
            )
        done = patch_gguf(arguments.source, arguments.destination, **asked, **knobs)
    else:
        done = export(
            arguments.source,
            arguments.destination,
            to=arguments.to,
            log_n=arguments.log_n,
            lossy=arguments.lossy,
            **asked,
            **knobs,
        )
    print(done)
    if done.lacking:
        print(f"{done.lacking}: put its tokenizer files beside its config, and export again")
    for command in done.commands:
        print(f"to serve it:\n  {command}")
    if done.unmodified:
        print(f"the unmodified checkpoint instead:\n  {done.unmodified}")
    print("written from the config, not run yet")
    print(f"next: {done.verifying or ' '.join(done.commands)}")
    return 0
