"""Evaluate: ``python evaluate.py run=outputs/...`` or ``python evaluate.py study=cdd_red/table1``."""

import sys

from redlab.runs.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
