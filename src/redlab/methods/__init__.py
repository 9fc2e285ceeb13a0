"""Methods: one LightningModule per paper, each in one file."""

from redlab.methods.base import Method
from redlab.methods.cdd_red import CDDRED
from redlab.victims.classifier import NotFiniteError

__all__ = ["CDDRED", "Method", "NotFiniteError"]
