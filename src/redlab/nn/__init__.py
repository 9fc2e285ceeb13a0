"""Networks and losses that two methods or more use."""

from redlab.nn.dncnn import DnCNN
from redlab.nn.gan import (
    deception_loss,
    least_squares_deception_loss,
    least_squares_real_or_fake_loss,
    real_or_fake_loss,
)
from redlab.nn.strided import Decoder, Encoder, Frame, ImageDiscriminator

__all__ = [
    "Decoder",
    "DnCNN",
    "Encoder",
    "Frame",
    "ImageDiscriminator",
    "deception_loss",
    "least_squares_deception_loss",
    "least_squares_real_or_fake_loss",
    "real_or_fake_loss",
]
