"""`python -m ropescale.cli`: the command line, as `accelerate launch --module` starts it."""

import sys

from ropescale.cli import main

if __name__ == "__main__":
    sys.exit(main())
