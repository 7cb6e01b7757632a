"""Draw the wavelength of every pair as pretrained and under methods, with the original length and the context as
lines.
"""

import argparse
from pathlib import Path

from ropescale.cli.next_line import say_eval
from ropescale.cli.pictures import add_picture, pictured

HELP = "wavelengths of every pair under several methods"
DOING = "drawing {model}"
EXAMPLES = """\
examples:
  ropescale plot tiny --factor 8
  ropescale plot path/to/checkpoint --methods yarn,llama3 --output waves.svg
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    add_picture(
        parser,
        "picture",
        methods="linear,ntk,by_parts,yarn",
        output=".png, .svg or .pdf (default: out/plot-MODEL.png)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from ropescale.explain import plot, subject

    path = arguments.output or Path("out", f"plot-{Path(arguments.model).name}.png")
    plot.require_format(path)
    names = arguments.methods or plot.METHODS
    for place, what, (_, geometry, _) in pictured(arguments, path):
        methods, length = subject.chosen_methods(names, geometry, factor=arguments.factor, length=arguments.length)
        curves = plot.wavelengths(geometry, methods, length=length)
        print(f"picture: {plot.draw(place, what, geometry, curves, length=length)}")
    factor = f"{length / geometry.original_length:g}"
    return say_eval(arguments.model, "--methods", ",".join(names), "--factors", factor, "--quick")
