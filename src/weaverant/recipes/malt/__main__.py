"""`python -m weaverant.recipes.malt`: see `main.py`."""

import sys

from weaverant.errors import UserError
from weaverant.recipes.malt.main import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
