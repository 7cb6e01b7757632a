"""What the tests of an evaluation's grid share."""

from ropescale.evals import grid
from ropescale.evals.results import Arm

AMOUNTS = ["--factors", "2", "--depths", "0,1", "--samples", "2", "--windows", "2"]
COMMAND = ["eval", "tiny", "--methods", "yarn", *AMOUNTS]
YARN = Arm(method="yarn", factor=2.0)


def run(options, folder):
    return grid.run(options, folder, "ropescale eval")
