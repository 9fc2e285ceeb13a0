"""Methods: one LightningModule per paper, each in one file."""

from redlab.methods.base import Method, NotFiniteError
from redlab.methods.cdd_red import CDDRED

__all__ = ["CDDRED", "Method", "NotFiniteError"]
