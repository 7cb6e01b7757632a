"""What the tests of an evaluation's grid share."""

from ropescale.evals import grid
from ropescale.evals.results import Arm

YARN = Arm(method="yarn", factor=2.0)


def run(options, folder):
    return grid.run(options, folder, "ropescale eval")
