"""Data sets, the order in which they are visited, and the data module that attacks their batches.

>>> from redlab.data import digits
>>> train, test = digits()
>>> len(train), len(test), train.image_size, train.channels
(1438, 359, 32, 1)
"""

from redlab.data.folder import FolderSource
from redlab.data.guides import Guides
from redlab.data.loader import EpochLoader, EpochSampler
from redlab.data.module import AttackDataModule
from redlab.data.sources import (
    Splits,
    TensorSource,
    cifar10,
    digits,
    fashion_mnist,
    image_folder,
    mnist,
    svhn,
)

__all__ = [
    "AttackDataModule",
    "EpochLoader",
    "EpochSampler",
    "FolderSource",
    "Guides",
    "Splits",
    "TensorSource",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
    "mnist",
    "svhn",
]
