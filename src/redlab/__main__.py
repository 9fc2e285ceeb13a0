"""``python -m redlab train`` and ``python -m redlab evaluate``."""

import sys

from redlab.runs.cli import main

if __name__ == "__main__":
    sys.exit(main())
