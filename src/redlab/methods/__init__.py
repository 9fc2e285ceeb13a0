"""Methods: one LightningModule per paper, each in one file."""

from redlab.methods.base import Method, NotFiniteError
from redlab.methods.cdd_red import CDDRED
from redlab.methods.classifier import Classifier

__all__ = ["CDDRED", "Classifier", "Method", "NotFiniteError"]
