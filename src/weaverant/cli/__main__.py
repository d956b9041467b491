"""`python -m weaverant.cli`."""

import sys

from weaverant.cli import main

sys.exit(main())
