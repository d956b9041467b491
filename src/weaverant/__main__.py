"""`python -m weaverant`: the command `weaverant`."""

import sys

from weaverant.cli import main

if __name__ == "__main__":
    sys.exit(main())
