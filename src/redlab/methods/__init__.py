"""Methods: one LightningModule per paper, each in one file."""

from redlab.methods.add_defense import ADDDefense
from redlab.methods.ape_gan import APEGAN
from redlab.methods.attunet_gan import AttentionUNetGAN
from redlab.methods.base import Method, NotFiniteError
from redlab.methods.cdd_red import CDDRED
from redlab.methods.classifier import Classifier
from redlab.methods.gred import GRED, Rectifier
from redlab.methods.hardened import Hardened, RestoredClassifier
from redlab.methods.hgd import HGD
from redlab.methods.redrl import REDRL
from redlab.methods.schedules import hold_then_decay, warm_up

__all__ = [
    "APEGAN",
    "CDDRED",
    "GRED",
    "HGD",
    "REDRL",
    "ADDDefense",
    "AttentionUNetGAN",
    "Classifier",
    "Hardened",
    "Method",
    "NotFiniteError",
    "Rectifier",
    "RestoredClassifier",
    "hold_then_decay",
    "warm_up",
]
