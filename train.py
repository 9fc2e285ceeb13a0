"""Train a method: ``python train.py method=cdd_red data=fashion_mnist`` (``--help`` lists the options)."""

import sys

from redlab.runs.cli import train

if __name__ == "__main__":
    sys.exit(train())
