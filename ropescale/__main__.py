"""`python -m ropescale`: the command line, for the Python that it is asked of."""

import sys

from ropescale.cli import main

if __name__ == "__main__":
    sys.exit(main())
