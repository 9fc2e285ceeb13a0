"""Methods: one LightningModule per paper, each in one file."""

from redlab.methods.base import Method, NotFiniteError
from redlab.methods.cdd_red import CDDRED
from redlab.methods.classifier import Classifier
from redlab.methods.redrl import REDRL
from redlab.methods.schedules import warm_up

__all__ = ["CDDRED", "REDRL", "Classifier", "Method", "NotFiniteError", "warm_up"]
