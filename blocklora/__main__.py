"""Runs the command line as `python -m blocklora`, which needs no installation of the package."""

import sys

from blocklora.cli import main

if __name__ == "__main__":
    sys.exit(main())
