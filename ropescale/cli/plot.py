"""Draw the wavelength of every pair as pretrained and under methods, with the original length and the context as
lines.
"""

import argparse
from pathlib import Path

from ropescale.cli.arguments import Verbs, add_verb
from ropescale.cli.next_line import say_next
from ropescale.cli.pictures import add_picture, pictured

EXAMPLES = """\
examples:
  ropescale plot tiny --factor 8
  ropescale plot path/to/checkpoint --methods yarn,llama3 --output waves.svg
"""


def add_to(verbs: Verbs) -> None:
    """Its parser, among those of the other verbs."""
    parser = add_verb(
        verbs,
        "plot",
        _run,
        doing="drawing {model}",
        help="wavelengths of every pair under several methods",
        description=__doc__,
        epilog=EXAMPLES,
    )
    add_picture(
        parser,
        "picture",
        methods="linear,ntk,by_parts,yarn",
        output=".png, .svg or .pdf (default: out/plot-MODEL.png)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from ropescale.explain import plot, subject

    path = arguments.output or Path("out", f"plot-{Path(arguments.model).name}.png")
    plot.require_format(path)
    names = arguments.methods or plot.METHODS
    for place, what, (_, geometry, _) in pictured(arguments, path):
        methods, length = subject.chosen_methods(names, geometry, factor=arguments.factor, length=arguments.length)
        found = plot.wavelengths(geometry, methods, length=length)
        print(f"picture: {plot.draw(place, what, geometry, found, length=length)}")
    factor = f"{length / geometry.original_length:g}"
    return say_next("eval", arguments.model, "--methods", ",".join(names), "--factors", factor, "--quick")
