"""Methods: one LightningModule per paper, each in one file."""

from redlab.methods.add_defense import ADDDefense
from redlab.methods.ape_gan import APEGAN
from redlab.methods.base import Method, NotFiniteError
from redlab.methods.cdd_red import CDDRED
from redlab.methods.classifier import Classifier
from redlab.methods.hardened import Hardened, RestoredClassifier
from redlab.methods.redrl import REDRL
from redlab.methods.schedules import warm_up

__all__ = [
    "APEGAN",
    "CDDRED",
    "REDRL",
    "ADDDefense",
    "Classifier",
    "Hardened",
    "Method",
    "NotFiniteError",
    "RestoredClassifier",
    "warm_up",
]
