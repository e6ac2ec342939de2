"""`python -m blocklora`, for machines where the package is not installed."""

import sys

from blocklora.cli import main

if __name__ == "__main__":
    sys.exit(main())
