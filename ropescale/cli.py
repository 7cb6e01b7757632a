"""The command line: one verb per job, each a few lines that call the library.

Heavy imports stand inside the verbs, so that `ropescale --help` answers at once.
"""

import argparse
import dataclasses
import difflib
import itertools
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ropescale import checkpoints, failures, listing, outside
from ropescale.errors import InvalidArgumentError
from ropescale.spelling import Names, OneSpelling, names_of, spelled
from ropescale.terminal import guarded
from ropescale.trust import trusting
from ropescale.version import __version__

if TYPE_CHECKING:
    from ropescale.evals.results import Results

OVERVIEW = """\
One call gives a pretrained rotary model a longer context, and the evidence that it worked.

examples:
  ropescale demo                      compare methods on the embedded model, one of them trained, in minutes
  ropescale eval path/to/checkpoint   the same on a checkpoint of yours; --dry-run prints the cost first
  ropescale methods                   the methods there are, with their knobs
  ropescale inspect path/to/yours     its geometry, its wavelengths, and what is scaled already
  ropescale doctor path/to/yours      what is wrong with it, and the remedy
  ropescale rescale SRC DST --factor 4    the same weights with a longer context, without loading them
  ropescale plot tiny                 wavelengths of every pair under several methods
  ropescale explain tiny              what positions do to a score, in pictures and numbers
  ropescale report out/eval-tiny      write the report again from finished results
  ropescale train pose --model tiny   a brief fine-tune that makes an extension hold; `train --list` names the recipes
  ropescale merge ADAPTER DST         add a trained adapter into its base: a full checkpoint with the right config
  ropescale export SRC DST --to vllm  write a checkpoint for an engine; verify-export runs the engine and compares
  ropescale memory tiny --length 512  what a length needs of a device's memory
  ropescale chat path/to/extended     talk with it
"""

DEMO = """\
Compare the unpatched model with methods at factors on the embedded model: perplexity by position and by length on
held-out texts, passkeys by depth and length, and short questions. One arm more is yarn x4 after a minute of LoRA: the
recipe `demo`. Prints a table; writes results and a report into the output folder. `ropescale train` and `ropescale
eval` are the same with every choice open.
"""

DEMO_EXAMPLES = """\
examples:
  ropescale demo
  ropescale demo --methods yarn,ntk --factors 4
  ropescale demo --model smollm2      a real model: 135M parameters, 12,288 tokens; hours on a CPU
"""

EVAL = """\
Evaluate a model unpatched and patched with methods at factors, over tasks and context lengths.

Every arm (the unpatched model, and each method at each factor) gets the same texts and prompts, so comparisons are
paired. An adapter of `ropescale train` is an arm with the scaling that it was trained with; a plain one of PEFT stands
on the model as it is, and on each method at each factor. Each finished cell (arm x task x length) is one line of
results.jsonl; a run that was stopped goes on where it was when the same command is given again, and a finished folder
takes more methods, factors, tasks and lengths. A report is written at the end: report.html, report.md, report.json,
model-card.md, evaluate.json.

tasks:
  position     perplexity by position: windows read once, in buckets of an eighth of the original length
  perplexity   perplexity by context length: strided, token-weighted (--stride of each window is scored)
  longppl      perplexity of key tokens, those that a long context makes likely (--evaluator)
  passkey      a number in filler, by depth and length
  needle       a number in real text, by depth and length
  ruler        the 11 tasks of RULER that need no download; each by its name too: niah_single_1 ... vt, cwe, fwe
  qa_1, qa_2   RULER's questions: need --metadata '{"squad": "dev-v2.0.json"}' or '{"hotpotqa": ...}', or a hub
  cloze        short questions that a model should not lose
  any other    a task of the evaluation harness by its name (hellaswag, arc_easy ...), where a hub is reached
"""

EVAL_EXAMPLES = """\
examples:
  ropescale eval tiny --methods none,yarn --factors 4 --tasks perplexity,passkey --lengths 128,512 --output out/a
  ropescale eval smollm2 --methods yarn,by_parts --factors 2 --tasks position,passkey --lengths 4096,12288 --dry-run
  ropescale eval tiny --methods self_extend --factors 8 --knobs '{"self_extend": {"group_size": 16, "window": 64}}'
  ropescale eval path/to/checkpoint --tasks ruler --lengths 4096,8192,16384 --samples 50
  ropescale eval tiny --methods yarn --factors 4 --adapters out/train-pose-tiny      before and after training
  ropescale eval path/to/saved-patched --methods none --tasks passkey     a checkpoint as it is
  accelerate launch --module ropescale.cli eval path/to/checkpoint        rows shared among devices

The harness alone can run the tasks too, on a checkpoint that was saved patched:
  lm_eval run --model hf --model_args pretrained=PATH --include_path "$(ropescale eval --task-folder)" \\
      --tasks ropescale_passkey --metadata '{"lengths": [4096]}'
"""

EXPLAIN = """\
Explain what positions do to a score in a model, and what methods make of it: wavelengths against the original length,
score against relative distance, the first distance at which like scores below unlike, the pairs that never complete a
turn, the distances that late methods show to the rotation, and addition against rotation. Reads the config alone, no
weights; prints the numbers, and writes one page that opens from disk.
"""

EXPLAIN_EXAMPLES = """\
examples:
  ropescale explain tiny
  ropescale explain smollm2 --methods yarn,by_parts,rerope --factor 8
  ropescale explain path/to/checkpoint --length 131072 --output out/mine.html
"""

RESCALE = """\
Write a checkpoint with a longer context beside an existing one, without loading its weights: the config that a patched
model would be saved with, all other files as they are, and the limits of tokenizer and generation raised to the new
length. SRC is only read; DST must be new, or an empty folder, and is complete or not there at all.
"""

RESCALE_EXAMPLES = """\
examples:
  ropescale rescale path/to/model path/to/model-32k --method yarn --factor 4
  ropescale rescale smollm2 smollm2-32k --target-length 32768 --link
  ropescale rescale path/to/llama-3.1 llama-512k --factor 4 --existing compose
  ropescale rescale path/to/model out --method yarn --factor 8 --knobs '{"beta_fast": 16}'
"""

INSPECT = """\
Print what a checkpoint's config says about positions: theta, pairs and lengths, wavelengths against the original
length, pairs that never complete a turn, and what is scaled already with what that implies. Reads no weights.
"""

DOCTOR = """\
Look for what is wrong with the positions of a checkpoint or an adapter: a lost theta, scaling done twice, an original
length that is missing or contradicted, entries that are ignored, frequencies of low precision among the weights,
limits of tokenizer and generation that are too short, a record that the config contradicts, an adapter that was
trained under another scaling; and for a tokenizer that is missing beside weights. Every fault comes with its remedy.
Loads no weights and changes nothing.

exit code: 0 nothing found, 1 something found, 2 not a checkpoint.
"""

PLOT = """\
Draw the wavelength of every pair as pretrained and under methods, with the original length and the context as lines.
"""

EXPORT = """\
Write a model for the engine that is to serve it: weights and tokenizer as they are, its positions in the engine's own
words. The engine's native type is written where it is exact, otherwise one divisor per pair. What an engine cannot
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

EXPORT_EXAMPLES = """\
examples:
  ropescale export path/to/patched out/served --to vllm
  ropescale export smollm2 out/smollm2-16k.gguf --to gguf --method yarn --factor 2 --outtype q8_0
  ropescale export tiny out/tiny.gguf --to gguf --method yarn --factor 4 --knobs '{"beta_fast": 16}'
  ropescale export path/to/base out/merged --to transformers --adapter path/to/adapter
  ropescale export existing.Q4_K_M.gguf longer.gguf --to gguf --patch-gguf --method yarn --factor 4
"""

VERIFY = """\
Run an export in its engine and compare it with the patched model: greedy tokens, and the log-probabilities of the
whole vocabulary at each, after prompts below the original length, beyond it and up to the target. Prints a verdict
with the largest difference and where it is; the exit code is 1 where that is more than rounding.

engines:
  transformers  the folder in Transformers alone, without ropescale's patch
  llama.cpp     the .gguf file in llama.cpp (package xllamacpp)
  vllm          the folder in vLLM, in an environment of its own, because its packages are older ones: make one
                (python -m venv vllm && vllm/bin/pip install vllm) and name its Python in ROPESCALE_VLLM_PYTHON
  mlx           the folder in MLX-LM (packages mlx-lm, and off a Mac mlx[cpu])
"""

VERIFY_EXAMPLES = """\
examples:
  ropescale verify-export out/tiny.gguf --engine llama.cpp
  ropescale verify-export out/mine.gguf --engine llama.cpp --reference path/to/patched --lengths 512,9000
  ropescale verify-export out/served --engine vllm
"""


TRAIN = """\
Patch a model and fine-tune it briefly on long documents, so that the extension holds. A recipe is a short YAML file:
what is trained (LoRA or everything) and where the tokens of a row stand (its schedule). Any method of the registry
goes with any schedule that makes sense for it; every line of a recipe can be overridden by an option.

The model is measured as it was, patched, every --eval-steps and after training: perplexity by position on texts that
training does not see, and passkeys by depth and length. The output folder gets the adapter with its scaling
(ropescale.json; load it with ropescale.load_adapter), training.json and training.html. A run that was stopped, killed
or out of disk goes on from its last checkpoint when the same command is given again.
"""

TRAIN_EXAMPLES = """\
options (all of them, with the values of a recipe: `ropescale train RECIPE --help`):
  --model MODEL        tiny (embedded), smollm2, a path or a hub id
  --method NAME        of the registry; --factor N or --target-length N; --knobs JSON
  --tuning NAME        lora, lora_plus (norms and embeddings too), qlora or full
  --schedule NAME      full_length, pose, mixed_window or recalibrate
  --data A B           sotu-sample, sotu, passkey, files, folders or hub data sets; --data-weights 3 1
  --original-length N  of pretraining, where the config does not say it
  --max-steps N        and --batch-size, --learning-rate, --eval-steps, --save-steps ... of transformers.Trainer
  --stop-passkey X     stop when so many passkeys are answered; --stop-perplexity X likewise
  --output DIR         where everything goes (default: out/train-RECIPE-MODEL)
  --dry-run            refuse what the run would refuse, print what it would read and need, and write nothing
  --trust-remote-code  run Python code that lies in the checkpoint; never said in a recipe

examples:
  ropescale train pose --model tiny --method yarn --factor 4 --max-steps 20 --output out/a
  ropescale train pose --model smollm2 --factor 2 --data sotu --dry-run
  ropescale train lora_plus --model smollm2 --factor 2 --data sotu --batch-size 1 --gradient-checkpointing true
  ropescale train path/to/mine.yaml --model path/to/checkpoint --report-to wandb
  accelerate launch --module ropescale.cli train full_length --model path/to/checkpoint
"""

MERGE = """\
Write a full checkpoint from an adapter: its base with the adapter added into the weights. One that was trained on a
patched model gets that patch: Transformers loads it with the extended context wherever it can express the method, and
ropescale.load always. The base of a plain PEFT adapter stays as it is; `ropescale export --adapter` extends it too.
The destination is complete or not there at all.
"""

MERGE_EXAMPLES = """\
examples:
  ropescale merge out/train-tiny out/merged --base tiny
  ropescale merge path/to/adapter path/to/merged --dtype bfloat16
"""


MEMORY = """\
Say what contexts of some lengths need of a device's memory when the model answers: weights, the cache of keys and
values, and what passes through the layers while the prompt is read. By formula, from the config alone:

  weights      parameters x bytes
  cache        rows x layers x kv heads x (key + value width) x tokens x bytes; of a sliding layer its window at
               most; of latent attention rank + rotated width in the place of heads and widths
  activations  rows x tokens x (2 x hidden + max(2 x query + 2 x keys, 3 x intermediate)) x bytes

Attention is taken to be fused and logits to be those of the last token. `python -m ropescale.recipes.memory` says what
training needs.
"""

MEMORY_EXAMPLES = """\
examples:
  ropescale memory tiny --length 128,512,1024
  ropescale memory smollm2 --length 32768 --dtype float32 --rows 4
"""

CHAT = """\
Talk with a model in the terminal; the reply is written as it comes. An extended model is loaded with its extension,
and any other can be extended for the conversation. Its tokenizer needs a chat template. /exit or the end of input
stops.
"""

CHAT_EXAMPLES = """\
examples:
  ropescale chat smollm2 --method yarn --factor 2
  ropescale chat path/to/saved-patched --prompt "Summarise: ..."
"""

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


DRY = "--dry-run"
TRUST = "--trust-remote-code"  # nothing else lets the code of a checkpoint run


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 found something wrong or failed in a way that nobody foresaw, 2 wrong usage, 130 stopped by Ctrl-C.
    """
    # Waiting threads that spin cost five times the time where the cores are shared; torch reads this when it starts
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # PEFT loads it where it is installed, and it warns of a kernel that only inference in 4 bits would use
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    try:
        arguments, unknown = parser.parse_known_args(given)
        if unknown:
            _refuse_options(_verbs(parser)[arguments.name], unknown)
    except SystemExit as stop:  # argparse has printed the help (0) or what is wrong (2)
        return int(stop.code or 0)
    arguments.command = shlex.join(["ropescale", *given])

    def work() -> int:
        outside.run_files(arguments.imports)
        _refuse_misspelt(arguments)
        if not _answers_alone(arguments):
            failures.require_extras(f"ropescale {arguments.name}", arguments.extras)
        with trusting(getattr(arguments, "trust_remote_code", False)):
            code: int = arguments.verb(arguments)
        return code

    return failures.ended(
        work,
        doing=arguments.doing.format(**vars(arguments)),
        command=arguments.command,
        spelled=lambda text: spelled(text, _names(parser, arguments.name)),
        extras=arguments.extras,
    )


def _answers_alone(arguments: argparse.Namespace) -> bool:
    """Whether a verb only tells something that needs none of its packages."""
    return any(getattr(arguments, name, False) for name in ("list", "task_folder"))


def _refuse_misspelt(arguments: argparse.Namespace) -> None:
    """Answer a misspelt model or method before anything heavy loads."""
    for name in ("model", "source"):
        if isinstance(model := getattr(arguments, name, None), str):
            checkpoints.refuse_misspelt(model)
    if "ropescale.methods" in sys.modules:  # the registry answers itself, and knows methods that were defined since
        return
    given = getattr(arguments, "methods", None) or getattr(arguments, "method", None) or []
    of_recipe = getattr(arguments, "options", [])
    given = [given] if isinstance(given, str) else list(given)
    given += [value for option, value in itertools.pairwise(of_recipe) if option in ("--method", "--methods")]
    for name in given:
        if name != "none" and name not in listing.shipped():
            raise listing.unknown_method(name, listing.shipped())


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    kinds = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(kinds[0].choices)


def _refuse_options(verb: argparse.ArgumentParser, unknown: Sequence[str]) -> NoReturn:
    """Print what a verb does not take, with the nearest option that it does; ends as argparse ends."""
    first = unknown[0].partition("=")[0]
    near = difflib.get_close_matches(first, verb._option_string_actions, n=1) if first.startswith("-") else []
    guess = f"; did you mean {near[0]}?" if near else ""
    verb.error(f"unrecognized arguments: {shlex.join(unknown)}{guess}")


def _names(parser: argparse.ArgumentParser, verb: str) -> Names:
    """How the options of a verb are written, and behind them those of all others, which a sentence may speak of."""
    parsers = _verbs(parser)
    names = names_of(parsers[verb])
    if (
        verb == "train" and "ropescale.recipes.options" in sys.modules
    ):  # it was read already, or nothing is wrong there
        from ropescale.recipes.options import parser as of_recipe

        names = names_of(of_recipe("RECIPE"))
    for other, parser_of_it in parsers.items():
        names = names.beside(names_of(parser_of_it), other)
    return names


class _Parser(argparse.ArgumentParser):
    """The parser of the verbs: a misspelt one is answered with the nearest."""

    def error(self, message: str) -> NoReturn:
        given = re.search(r"argument VERB: invalid choice: '([^']+)'", message)
        near = difflib.get_close_matches(given[1], _verbs(self), n=1) if given else []
        super().error(message + (f"; did you mean {near[0]!r}?" if near else ""))


def _parser() -> argparse.ArgumentParser:
    formatter = OneSpelling
    parser = _Parser(prog="ropescale", description=OVERVIEW, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"ropescale {__version__}")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help="run a Python file first, so that verbs know the methods that it defines; before the verb, repeatable",
    )
    verbs = parser.add_subparsers(
        title="verbs", metavar="VERB", dest="name", required=True, parser_class=argparse.ArgumentParser
    )

    demo = verbs.add_parser(
        "demo",
        help="compare methods on the embedded model",
        description=DEMO,
        epilog=DEMO_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    demo.set_defaults(verb=_demo, doing="comparing methods on {model}", extras=("eval", "train"))
    demo.add_argument(
        "--model", default="tiny", metavar="MODEL", help="tiny (embedded, the default), smollm2, a path or a hub id"
    )
    _grid_arguments(demo)
    demo.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: out/demo-MODEL)")

    evaluation = verbs.add_parser(
        "eval",
        help="evaluate a model over methods, factors, tasks and lengths",
        description=EVAL,
        epilog=EVAL_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    evaluation.set_defaults(verb=_eval, doing="evaluating {model}", extras=("eval",))
    evaluation.add_argument(
        "model", nargs="?", metavar="MODEL", help="tiny (embedded), smollm2, a path or a hub id; unpatched"
    )
    _grid_arguments(evaluation)
    add = evaluation.add_argument
    _start_arguments(evaluation, existing="error (default), replace, compose; --methods none takes it as it is")
    _layers_argument(evaluation, "where layer types differ")
    add("--tasks", type=_list_of(str), metavar="A,B", help="see above (default: position,perplexity,passkey,cloze)")
    add("--windows", type=int, metavar="N", help="windows of a perplexity task, at most (default: 3)")
    add("--stride", type=float, metavar="X", help="share of a window that strided perplexity scores (default: 0.5)")
    add("--texts", metavar="NAME", help="sample (tiny: default), speeches (others: default), or a path to files")
    add("--evaluator", metavar="MODEL", help="of longppl: the model that finds the key tokens (default: the model)")
    add("--include-path", metavar="DIR", help="a folder with tasks of your own for the harness")
    add("--limit", type=int, metavar="N", help="rows of cloze and of a task of the harness, at most")
    add("--backend", metavar="NAME", help="transformers (the default), or vllm for a checkpoint as it is")
    add("--chat", action="store_true", help="put prompts into the tokenizer's chat template")
    add("--knobs", type=_json, metavar="JSON", help="""of the methods, as in '{"abf": {"theta": 500000}}'""")
    add("--metadata", type=_json, metavar="JSON", help="further keys for the tasks, as an object")
    add(
        "--adapters",
        type=_list_of(str),
        metavar="DIR,DIR",
        help="adapters of `ropescale train` or of PEFT alone",
    )
    add("--report-to", metavar="NAME", help="hand the figures to a tracker too: trackio or wandb")
    add("--output", type=Path, metavar="DIR", help="where results go (default: out/eval-MODEL)")
    add(
        "--quick",
        action="store_true",
        help="one look in minutes: position and passkey, few windows, samples and depths",
    )
    add("--budget", type=_one_of(float), metavar="MINUTES", help="do less, in a fixed order, until it fits; says what")
    add("--dry-run", action="store_true", help="print every cell with its cost on this machine, and run nothing")
    add("--task-folder", action="store_true", help="print where the tasks are, for the harness's --include_path")

    methods = verbs.add_parser(
        "methods",
        help="list the methods and their knobs",
        description="List every method of the registry, with its knobs and their defaults.",
    )
    methods.set_defaults(verb=_methods, doing="listing the methods", extras=())

    inspection = verbs.add_parser(
        "inspect",
        help="a checkpoint's geometry, wavelengths, and what is scaled already",
        description=INSPECT,
        epilog="examples:\n  ropescale inspect tiny\n  ropescale inspect path/to/checkpoint",
        formatter_class=formatter,
    )
    inspection.set_defaults(verb=_inspect, doing="reading the config of {model}", extras=())
    add = inspection.add_argument
    add("model", metavar="MODEL", help="tiny (embedded), smollm2, a path or a hub id")
    add("--original-length", type=int, metavar="N", help="tokens of pretraining (default: from the config)")

    doctor = verbs.add_parser(
        "doctor",
        help="what is wrong with a checkpoint or an adapter, and the remedy",
        description=DOCTOR,
        epilog="examples:\n  ropescale doctor path/to/checkpoint\n  ropescale doctor path/to/adapter && train",
        formatter_class=formatter,
    )
    doctor.set_defaults(verb=_doctor, doing="examining {path}", extras=())
    doctor.add_argument("path", metavar="PATH", help="the folder of a checkpoint or of an adapter; tiny, smollm2")

    rescale = verbs.add_parser(
        "rescale",
        help="write a checkpoint with a longer context, weights unread",
        description=RESCALE,
        epilog=RESCALE_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    rescale.set_defaults(verb=_rescale, doing="extending {source}", extras=())
    add = rescale.add_argument
    add("source", metavar="SRC", help="tiny (embedded), smollm2, a path or a hub id")
    add("destination", type=Path, metavar="DST", help="a folder that is not there or empty")
    add("--method", "--methods", default="yarn", metavar="NAME", help="a registry name (default: yarn)")
    add("--factor", "--factors", type=_one_of(float), metavar="X", help="target / original length")
    add("--target-length", type=int, metavar="N", help="tokens wanted, instead of a factor")
    add("--original-length", type=int, metavar="N", help="tokens of pretraining (default: from the config)")
    add(
        "--existing", default="error", metavar="NAME", help="of a scaled checkpoint: error (default), replace, compose"
    )
    add(
        "--layers",
        default="global",
        metavar="NAME",
        help="where layer types differ: global (default) rescales those that read the whole "
        "context if each type has its own rotation, else all; full those alone, in attention; all every layer",
    )
    add("--knobs", type=_json, default={}, metavar="JSON", help="""of the method, as in '{"beta_fast": 16}'""")
    add("--link", action="store_true", help="hard-link the weights in the place of a copy, where that is possible")

    explain = verbs.add_parser(
        "explain",
        help="what positions do to a score, in pictures",
        description=EXPLAIN,
        epilog=EXPLAIN_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    explain.set_defaults(verb=_explain, doing="explaining {model}", extras=())
    add = explain.add_argument
    add("model", metavar="MODEL", help="tiny (embedded), smollm2, a path or a hub id")
    add(
        "--methods", "--method", type=_list_of(str), metavar="A,B", help="registry names (default: some of every kind)"
    )
    target = explain.add_mutually_exclusive_group()
    target.add_argument(
        "--factor", "--factors", type=_one_of(float), metavar="X", help="target / original length (default: 4)"
    )
    target.add_argument(
        "--length", "--lengths", type=_one_of(int), metavar="N", help="the target in tokens, instead of a factor"
    )
    _start_arguments(explain, existing="replace (default), compose")
    _pictured_layers_argument(explain, "page")
    add("--output", type=Path, metavar="FILE", help="the page (default: out/explain-MODEL.html)")

    plot = verbs.add_parser(
        "plot",
        help="wavelengths of every pair under several methods",
        description=PLOT,
        epilog="examples:\n  ropescale plot tiny --factor 8\n"
        "  ropescale plot path/to/checkpoint --methods yarn,llama3 --output waves.svg",
        formatter_class=formatter,
        allow_abbrev=False,
    )
    plot.set_defaults(verb=_plot, doing="drawing {model}", extras=())
    add = plot.add_argument
    add("model", metavar="MODEL", help="tiny (embedded), smollm2, a path or a hub id")
    add(
        "--methods",
        "--method",
        type=_list_of(str),
        metavar="A,B",
        help="registry names (default: linear,ntk,by_parts,yarn)",
    )
    target = plot.add_mutually_exclusive_group()
    target.add_argument(
        "--factor", "--factors", type=_one_of(float), metavar="X", help="target / original length (default: 4)"
    )
    target.add_argument(
        "--length", "--lengths", type=_one_of(int), metavar="N", help="the target in tokens, instead of a factor"
    )
    _start_arguments(plot, existing="replace (default), compose")
    _pictured_layers_argument(plot, "picture")
    add("--output", type=Path, metavar="FILE", help=".png, .svg or .pdf (default: out/plot-MODEL.png)")

    training = verbs.add_parser(
        "train",
        help="fine-tune briefly, so that an extension holds",
        description=TRAIN,
        epilog=TRAIN_EXAMPLES,
        formatter_class=formatter,
        usage="ropescale train [--list] RECIPE --model MODEL [options]",
        allow_abbrev=False,
    )
    training.set_defaults(verb=_train, doing="training by {recipe}", extras=("train",))
    add = training.add_argument
    add("--list", action="store_true", help="name the recipes, and stop")
    add(DRY, action="store_true", help="check everything and print the plan, and write nothing")
    add("recipe", metavar="RECIPE", nargs="?", help="a name from --list, or a .yaml file of your own")
    add("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)

    merging = verbs.add_parser(
        "merge",
        help="add a trained adapter into its base",
        description=MERGE,
        epilog=MERGE_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    merging.set_defaults(verb=_merge, doing="merging {adapter}", extras=("train",))
    add = merging.add_argument
    add("adapter", metavar="ADAPTER", help="a folder or hub id with an adapter, of ropescale or of PEFT alone")
    add("destination", type=Path, metavar="DST", help="a folder that is not there or empty")
    add("--base", metavar="MODEL", help="tiny, smollm2, a path or a hub id (default: what the adapter's config names)")
    add("--dtype", metavar="TYPE", help="of the weights: auto (as the base's, the default), float32, bfloat16 ...")

    report = verbs.add_parser(
        "report",
        help="write the report of finished results",
        description="Write the report of a folder of results, finished or not: report.html (one file that opens from "
        "disk), report.md, report.json, model-card.md and evaluate.json.",
        epilog="example:\n  ropescale report out/eval-tiny",
        formatter_class=formatter,
    )
    report.set_defaults(verb=_report, doing="reporting {folder}", extras=("eval",))
    report.add_argument("folder", type=Path, metavar="DIR", help="the output folder of an evaluation")

    export = verbs.add_parser(
        "export",
        help="write a model for vLLM, llama.cpp, SGLang, MLX or Transformers",
        description=EXPORT,
        epilog=EXPORT_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    export.set_defaults(verb=_export, doing="exporting {source}", extras=())
    add = export.add_argument
    add("source", metavar="SRC", help="a folder, tiny, smollm2 or a hub id; with --patch-gguf a .gguf file")
    add("destination", metavar="DST", help="a folder that is not there or empty; for gguf a new .gguf file")
    add("--to", required=True, metavar="ENGINE", help="transformers, vllm, sglang, mlx or gguf")
    add("--method", "--methods", metavar="NAME", help="extend SRC by this method first (see `ropescale methods`)")
    add("--factor", "--factors", type=_one_of(float), metavar="X", help="target / original length")
    add("--target-length", type=int, metavar="N", help="tokens wanted, instead of a factor")
    add("--original-length", type=int, metavar="N", help="tokens of pretraining (default: what the config says)")
    add("--knobs", type=_json, metavar="JSON", help="""of the method, as in '{"beta_fast": 16}'""")
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

    verify = verbs.add_parser(
        "verify-export",
        help="run an export in its engine and compare it with the patched model",
        description=VERIFY,
        epilog=VERIFY_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    verify.set_defaults(verb=_verify_export, doing="verifying {path}", extras=())
    add = verify.add_argument
    add("path", metavar="DST", help="what `ropescale export` wrote")
    add("--engine", required=True, metavar="NAME", help="transformers, llama.cpp, vllm or mlx")
    add("--reference", metavar="SRC", help="the model that was exported (default: the weights in DST, or its source)")
    add("--adapter", metavar="DIR", help="the PEFT adapter that was merged into it (default: what DST says)")
    add(
        "--lengths",
        "--length",
        type=_list_of(int),
        metavar="N,N",
        help="of the prompts (default: below, beyond, at the target)",
    )
    add("--steps", type=int, metavar="N", help="tokens to generate from each (default: 16)")
    add("--seed", type=int, metavar="N", help="of the prompts (default: 0)")
    add("--tolerance", type=float, metavar="X", help="difference or, of rounded weights, divergence that is rounding")
    _more_verbs(verbs)

    for name in ("demo", "eval", "explain", "plot", "train", "merge", "export", "verify-export", "memory", "chat"):
        verbs.choices[name].add_argument(
            TRUST, action="store_true", help="run Python code that lies in the checkpoint"
        )
    return parser


def _more_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What helps to choose a length, and to try a model by hand."""
    memory = verbs.add_parser(
        "memory",
        help="what a length needs of a device's memory, by formula",
        description=MEMORY,
        epilog=MEMORY_EXAMPLES,
        formatter_class=OneSpelling,
        allow_abbrev=False,
    )
    memory.set_defaults(verb=_memory, doing="working out the memory of {model}", extras=())
    add = memory.add_argument
    add("model", metavar="MODEL", help="tiny (embedded), smollm2, a path or a hub id")
    add("--length", "--lengths", type=_list_of(int), required=True, metavar="N,N", help="tokens, prompt and reply")
    add("--rows", type=int, default=1, metavar="N", help="prompts at a time (default: 1)")
    add("--dtype", default="bfloat16", choices=sorted(BYTES), help="of weights and cache (default: bfloat16)")

    chat = verbs.add_parser(
        "chat",
        help="talk with a model, extended or not",
        description=CHAT,
        epilog=CHAT_EXAMPLES,
        formatter_class=OneSpelling,
        allow_abbrev=False,
    )
    chat.set_defaults(verb=_chat, doing="talking with {model}", extras=())
    add = chat.add_argument
    add("model", metavar="MODEL", help="smollm2, a path (also one that was saved patched) or a hub id")
    add("--method", "--methods", metavar="NAME", help="extend it by this method first (see `ropescale methods`)")
    add("--factor", "--factors", type=_one_of(float), metavar="X", help="target / original length")
    add("--target-length", type=int, metavar="N", help="tokens wanted, instead of a factor")
    _start_arguments(chat, existing="error (default), replace, compose")
    _layers_argument(chat, "where layer types differ")
    add("--knobs", type=_json, default={}, metavar="JSON", help="""of the method, as in '{"beta_fast": 16}'""")
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


def _grid_arguments(parser: argparse.ArgumentParser) -> None:
    """What `demo` and `eval` share."""
    add = parser.add_argument
    add(
        "--methods",
        "--method",
        type=_list_of(str),
        metavar="A,B",
        help="registry names (default: linear,ntk,by_parts,yarn)",
    )
    add(
        "--factors",
        "--factor",
        type=_list_of(float),
        metavar="N,N",
        help="target / original length (default: 2; demo: 2,4,8)",
    )
    add(
        "--lengths",
        "--length",
        type=_list_of(int),
        metavar="N,N",
        help="context lengths in tokens (default: the original length and every factor times it)",
    )
    add("--depths", type=_list_of(float), metavar="X,X", help="of needles, 0 to 1 (default: 0,0.25,0.5,0.75,1)")
    add("--samples", type=int, metavar="N", help="prompts per length, and per depth where there are any (default: 10)")
    add("--seed", type=int, metavar="N", help="of the prompts (default: 0)")
    add("--dtype", metavar="TYPE", help="auto (float32 on a CPU, bfloat16 elsewhere), float32, bfloat16 or float16")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: the accelerator if there is one)")


def _start_arguments(parser: argparse.ArgumentParser, *, existing: str) -> None:
    """From what a method starts, where a checkpoint may be scaled already."""
    add = parser.add_argument
    add("--original-length", type=int, metavar="N", help="tokens of pretraining (default: from the config)")
    choices = ["error", "replace", "compose"] if "error" in existing else ["replace", "compose"]
    add("--existing", default=choices[0], choices=choices, metavar="HOW", help=f"of a scaled checkpoint: {existing}")


def _layers_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--layers",
        default="global",
        choices=("global", "full", "all"),
        metavar="WHICH",
        help=f"global (default): those that read the whole context; full or all: {what}",
    )


def _pictured_layers_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--layers",
        default="global",
        choices=("global", "all"),
        metavar="WHICH",
        help=f"where layer types have rotations of their own: global (default), one {what}, of those that read the "
        f"whole context; all, a {what} for each",
    )


def _list_of(kind: type) -> Callable[[str], tuple[Any, ...]]:
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


def _one_of(kind: type) -> Callable[[str], Any]:
    """A parser of one number, for an option that takes several elsewhere."""
    names = {int: "one whole number", float: "one number"}

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be {names[kind]}, got {text!r}") from error

    return parse


def _json(text: str) -> dict[str, Any]:
    """A parser of one JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def _demo(arguments: argparse.Namespace) -> int:
    return _evaluate(arguments, f"demo-{Path(arguments.model).name}")


def _trained_for_demo(model: str, device: str, folder: Path, command: str) -> tuple[str, ...]:
    """The adapter that a demo compares besides, trained in the folder; none for a real model, which takes hours."""
    if model != "tiny":
        return ()
    from ropescale.destinations import require_own_folder
    from ropescale.recipes import train
    from ropescale.recipes.options import read_recipe

    require_own_folder(folder, name="--output")
    on_cpu = device.startswith("cpu")
    if ":" in device and not on_cpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device  # the one of several that Trainer takes
    given = ["--model", model, "--use-cpu", str(on_cpu).lower(), "--output", str(folder)]
    train.run(read_recipe("demo", given), command)
    return (str(folder),)


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.task_folder:
        from ropescale.evals import tasks

        print(Path(tasks.__file__).parent)
        return 0
    if arguments.model is None:
        print("ropescale eval: MODEL must be given: tiny, smollm2, a path or a hub id; see --help", file=sys.stderr)
        return 2
    return _evaluate(arguments, f"eval-{Path(arguments.model).name}")


def _evaluate(arguments: argparse.Namespace, name: str) -> int:
    if getattr(arguments, "backend", None) == "vllm":  # which divides by the time that its bar has shown
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    else:
        _quiet_environment()
    # the report comes last, but a missing matplotlib should be known before the hours of a real model
    from ropescale.console import Console
    from ropescale.evals import budget, demo, grid, plan, report, tracking
    from ropescale.evals.report.terminal import print_summary

    fields = {field.name for field in dataclasses.fields(plan.Options)}
    asked = {key: value for key, value in vars(arguments).items() if key in fields and value is not None}
    base = demo.default_options(arguments.model) if name.startswith("demo") else plan.Options(model=arguments.model)
    quick = budget.QUICK if getattr(arguments, "quick", False) else {}
    options = dataclasses.replace(base, **{**quick, **asked})
    plan.require_read(options, asked)
    tracker = getattr(arguments, "report_to", None)
    if tracker:
        tracking.check(tracker)
    folder = arguments.output or Path("out", name)
    if (minutes := getattr(arguments, "budget", None)) is not None:
        fewer, options = grid.fitted(options, minutes, folder)
        print(f"within {minutes:g} minutes: {fewer or 'all of it'}", file=sys.stderr)
    if getattr(arguments, "dry_run", False):
        grid.print_cost(options, Console(), folder)
        return _next(*(word for word in shlex.split(arguments.command)[1:] if word != "--dry-run"))
    try:
        if name.startswith("demo"):
            adapters = _trained_for_demo(arguments.model, options.device_name, folder / "lora", arguments.command)
            options = dataclasses.replace(options, adapters=adapters)
        results = grid.run(options, folder, arguments.command)
    except KeyboardInterrupt:
        return failures.stopped(f"{folder} keeps the finished cells, the same command goes on")
    # the first of several processes reports; a rank that an earlier launch has left behind is none
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")):
        return 0
    page = report.write(folder)
    print_summary(results, Console())
    print(f"results: {folder}\nreport:  {page}")
    if tracker:
        tracking.track(results, tracker)
    if name.startswith("demo"):
        return _next("eval", "path/to/yours" if arguments.model == "tiny" else arguments.model, "--quick", "--dry-run")
    return _next(*_after_results(results, options.adapters))


def _after_results(results: "Results", adapters: Sequence[str]) -> list[str]:
    """What follows from an evaluation: to write the arm that is recommended, or to train one."""
    from ropescale.evals.report.findings import read_findings
    from ropescale.methods import FixedMethod, get_method

    best, model = read_findings(results).best, results.settings.model
    if best is None:
        factor = max((arm.factor for arm in results.arms()), default=1.0)
        if factor == 1:
            return ["eval", model, "--methods", "yarn", "--factors", "2", "--quick"]
        return ["train", "pose", "--model", model, "--method", "yarn", "--factor", f"{factor:g}"]
    method, trained = best.arm.method.partition("+")[0], best.arm.adapter
    longer = f"out/{Path(model).name}-{method if not best.arm.unextended else trained}-x{best.arm.factor:g}"
    folder = next((one for one in adapters if Path(one).resolve().name == trained), trained)
    if trained and (best.arm.unextended or f"none+{trained}" not in results.settings.adapters):
        return ["merge", folder, longer, "--base", model]
    at_best = ["--factor", f"{best.arm.factor:g}"]
    if not issubclass(get_method(method), FixedMethod):  # which is tried on a loaded model, and saved from there
        return ["explain", model, "--methods", method, *at_best]
    knobs = results.settings.knobs.get(method)
    more = ["--knobs", json.dumps(knobs)] if knobs else []
    for name, value, default in (
        ("--existing", results.settings.existing, "error"),
        ("--layers", results.settings.layers, "global"),
    ):
        more += [name, value] if value != default else []
    if trained:
        at_best = ["--to", "transformers", "--adapter", folder, *at_best]
    return ["export" if trained else "rescale", model, longer, "--method", method, *at_best, *more]


def _methods(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from ropescale.console import Console

    common = listing.common_knobs()
    table = Table("method", "knobs", "what it does", caption=f"and of every method: {', '.join(common)}")
    listed = listing.shipped()
    if outside.options():
        from ropescale.methods import get_method, list_methods

        others = {name: listing.of_class(get_method(name)) for name in list_methods() if name not in listed}
        listed = dict(sorted({**listed, **others}.items()))
    for name, method in listed.items():
        table.add_row(name, ", ".join(knob for knob in method.knobs if knob not in common), method.summary)
    Console().print(table, markup=False)
    return _next("explain", "tiny", "--methods", "yarn,ntk", "--factor", 4)


def _explain(arguments: argparse.Namespace) -> int:
    from rich.table import Column, Table

    from ropescale.console import Console
    from ropescale.explain import page, readings, subject

    names = arguments.methods or subject.METHODS
    path = arguments.output or Path("out", f"explain-{Path(arguments.model).name}.html")
    for place, what, (_, geometry, heads) in _pictured(arguments, path):
        methods, length = subject.chosen_methods(names, geometry, factor=arguments.factor, length=arguments.length)
        found = readings.readings(geometry, methods, length=length, heads=heads)
        page.write(place, page.page(what, geometry, found))
        table = Table("", "", "", title=f"rotary facts of {what}", show_header=False)
        for fact, (value, said) in readings.facts(geometry, found[0]).items():
            table.add_row(fact, value, said)
        effects = Table(Column(no_wrap=True), *readings.EFFECTS, title=f"the query at position {length - 1:,}")
        for one in found:
            effects.add_row(one.name, *readings.effects(one, found[0]))
        Console().print(table, effects, markup=False)
        print(f"page: {place}")
    return _next("plot", arguments.model, "--length", length)


def _inspect(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from ropescale.console import Console
    from ropescale.explain import inspection

    config, parts = inspection.inspected(arguments.model, original_length=arguments.original_length)
    console = Console()
    for part in parts:
        of = f"{config.model_type}, {part.label} layers" if part.label else config.model_type
        facts = Table("", "", "", title=of, show_header=False)
        for fact, (value, said) in part.facts().items():
            facts.add_row(fact, value, said)
        pairs = Table("pair", "tokens per turn", f"turns over the {part.span}", "slowed today by")
        for row in part.rows():
            pairs.add_row(*row)
        console.print(facts, *([pairs] if part.rows() else []), markup=False)
    console.print("facts of the config; what a patch does is proven on the loaded model", markup=False)
    return _next("doctor", arguments.model)


def _doctor(arguments: argparse.Namespace) -> int:
    from ropescale.doctor import BESIDE, adapter_in, diagnose, unserved

    found = [*diagnose(arguments.path), *unserved(arguments.path)]
    if (adapter := adapter_in(arguments.path)) is not None:
        print(f"{arguments.path}: {adapter}")
    for finding in found:
        print(f"{finding.check}: {finding}")
    if not found:
        print(f"{arguments.path}: nothing found in its files; ropescale.diagnose(model) looks at a loaded model")
    if adapter is None:
        _next("inspect", arguments.path)
    elif any(one.check == "adapter-base" for one in found):
        _next("merge", arguments.path, "out/merged", "--base", "path/to/its-base")
    elif adapter.kind in BESIDE:
        _next("inspect", adapter.base)
    else:
        methods = "none" if adapter.record is not None else "yarn"
        _next("eval", adapter.base, "--methods", methods, "--adapters", arguments.path, "--quick")
    return 1 if found else 0


def _rescale(arguments: argparse.Namespace) -> int:
    from ropescale.request import require_knobs
    from ropescale.rescaling import rescale_checkpoint

    require_knobs(arguments.method, arguments.knobs)  # which may not name the other arguments
    folder = rescale_checkpoint(
        arguments.source,
        arguments.destination,
        arguments.method,
        factor=arguments.factor,
        target_length=arguments.target_length,
        original_length=arguments.original_length,
        existing=arguments.existing,
        layers=arguments.layers,
        link=arguments.link,
        **arguments.knobs,
    )
    print(f"checkpoint: {folder}")
    print("written from the config, no model was read: ropescale.load proves the patch on the model")
    return _next("eval", folder, "--methods", "none", "--quick")


def _plot(arguments: argparse.Namespace) -> int:
    from ropescale.explain import plot, subject

    path = arguments.output or Path("out", f"plot-{Path(arguments.model).name}.png")
    plot.require_format(path)
    names = arguments.methods or plot.METHODS
    for place, what, (_, geometry, _) in _pictured(arguments, path):
        methods, length = subject.chosen_methods(names, geometry, factor=arguments.factor, length=arguments.length)
        found = plot.wavelengths(geometry, methods, length=length)
        print(f"picture: {plot.draw(place, what, geometry, found, length=length)}")
    factor = f"{length / geometry.original_length:g}"
    return _next("eval", arguments.model, "--methods", ",".join(names), "--factors", factor, "--quick")


def _pictured(arguments: argparse.Namespace, path: Path) -> list[tuple[Path, str, Any]]:
    """Where each rotation of a checkpoint is drawn, what it is called, and its facts.

    The first, of the layers that read the whole context, at the path; others beside it, named after their layers.
    """
    from ropescale.explain import subject

    given = {name: getattr(arguments, name) for name in ("original_length", "existing", "layers")}
    found = subject.facts_by_layers(arguments.model, **given)
    return [
        (
            path.with_stem(f"{path.stem}-{one[0]}") if i else path,
            f"{arguments.model}, {one[0]} layers" if len(found) > 1 else arguments.model,
            one,
        )
        for i, one in enumerate(found)
    ]


def _quiet_environment() -> None:
    """Libraries read this when they load: their own bars are left out, ours show the whole run."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _train(arguments: argparse.Namespace) -> int:
    _quiet_environment()
    from rich.table import Table

    from ropescale.console import Console
    from ropescale.recipes import shipped

    if arguments.list:
        table = Table("recipe", "what it does")
        for name, said in shipped.list_recipes().items():
            table.add_row(name, said)
        Console().print(table, markup=False)
        return _next("train", "pose", "--help")
    if arguments.recipe is None:
        print(
            "ropescale train: RECIPE must be given: a name from --list, or a .yaml file; see --help", file=sys.stderr
        )
        return 2
    shipped.read_text(arguments.recipe)  # a misspelt name is answered before anything heavy loads

    from ropescale.recipes import options

    wanted = {"-h", "--help", "--help-all"} & set(arguments.options)
    if wanted:
        print(options.help_text(arguments.recipe, everything="--help-all" in wanted))
        return 0
    given = [one for one in arguments.options if one not in (TRUST, DRY)]
    recipe = options.read_recipe(arguments.recipe, given)
    if arguments.dry_run or DRY in arguments.options:
        from ropescale.recipes.dry_run import dry_run

        with trusting(arguments.trust_remote_code or TRUST in arguments.options):
            first = recipe.training.process_index == 0
            dry_run(recipe, arguments.command, Console(quiet=not first))
        return _next(*(word for word in shlex.split(arguments.command)[1:] if word != DRY)) if first else 0

    from ropescale.recipes import train

    try:
        with trusting(arguments.trust_remote_code or TRUST in arguments.options):
            told = train.run(recipe, arguments.command)
    except KeyboardInterrupt:
        return failures.stopped(f"{recipe.output} keeps the checkpoints, the same command goes on")
    if recipe.training.process_index == 0:
        Console().print(train.summary(told))
        print(f"results: {recipe.output}\npage:    {recipe.output / 'training.html'}")
        if recipe.options.tuning == "full":
            return _next("eval", recipe.output, "--methods", "none", "--quick")
        record = told["record"]
        factor = f"{record['target_length'] / record['original_length']:g}"
        compared = ["--methods", record["method"], "--factors", factor, "--adapters", recipe.output]
        return _next("eval", recipe.options.model, *compared, "--quick")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from ropescale import adapters
    from ropescale.console import Console

    given = {} if arguments.dtype is None else {"dtype": arguments.dtype}
    with Console(stderr=True).status("merging"):
        print(adapters.merge(arguments.adapter, arguments.destination, arguments.base, **given))
    return _next("eval", arguments.destination, "--methods", "none", "--quick")


def _memory(arguments: argparse.Namespace) -> int:
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
        found = memory.need(
            config, parameters=parameters, length=length, rows=arguments.rows, element=BYTES[arguments.dtype]
        )
        sizes = (found.weights, found.cache, found.activations, found.total)
        table.add_row(f"{length:,}", *map(memory.said, sizes))
    Console().print(table, markup=False)
    print(f"{parameters:,} parameters; by formula, which `ropescale memory --help` states")
    reads = config.get_text_config(decoder=True).max_position_embeddings
    longest = max(arguments.length)
    if hasattr(config.get_text_config(decoder=True), "ropescale"):  # extended already
        return _next("eval", arguments.model, "--methods", "none", "--quick", "--dry-run")
    factor = f"{max(2, longest / reads):g}"
    return _next("eval", arguments.model, "--methods", "yarn", "--factors", factor, "--quick", "--dry-run")


def _chat(arguments: argparse.Namespace) -> int:
    _quieten_transformers()
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
    return _next("inspect", arguments.model)


def _next(*words: object) -> int:
    """Say what may come next, as a line to paste; returns the exit code of what went well."""
    print(f"next: {shlex.join(['ropescale', *outside.options(), *map(str, words)])}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from ropescale.evals import report, results

    print(report.write(arguments.folder))
    return _next(*_after_results(results.read(arguments.folder), ()))


def _export(arguments: argparse.Namespace) -> int:
    _quieten_transformers()
    from ropescale.export import export, patch_gguf
    from ropescale.request import require_knobs

    knobs = arguments.knobs or {}
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


def _verify_export(arguments: argparse.Namespace) -> int:
    _quieten_transformers()
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


def _quieten_transformers() -> None:
    """Its bars and its remarks on keys that it does not read, which are there for other engines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
