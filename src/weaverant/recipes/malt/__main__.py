"""`python -m weaverant.recipes.malt`: see `main.py`."""

from weaverant.recipes.malt.evaluate import command
from weaverant.recipes.malt.main import main

if __name__ == "__main__":
    command(main)
