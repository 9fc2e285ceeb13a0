"""Networks that two methods or more use."""

from redlab.nn.dncnn import DnCNN

__all__ = ["DnCNN"]
