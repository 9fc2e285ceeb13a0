"""Metrics: measures per image, the rows that hold them, and reductions of rows."""

from redlab.metrics.certificates import Certificate, certificate, lower_bound, votes
from redlab.metrics.functional import cosine, logit_distance, pixel_distance, prediction_alignment, psnr
from redlab.metrics.identification import (
    calibration_error,
    confusion,
    identified_per_attack,
    identified_total,
    unknown_auroc,
)
from redlab.metrics.reductions import BESIDE_CLEAN, auroc, cell_mean, numbers, roc, score_names, tpr_at_fpr, worst
from redlab.metrics.samples import Samples

__all__ = [
    "BESIDE_CLEAN",
    "Certificate",
    "Samples",
    "auroc",
    "calibration_error",
    "cell_mean",
    "certificate",
    "confusion",
    "cosine",
    "identified_per_attack",
    "identified_total",
    "logit_distance",
    "lower_bound",
    "numbers",
    "pixel_distance",
    "prediction_alignment",
    "psnr",
    "roc",
    "score_names",
    "tpr_at_fpr",
    "unknown_auroc",
    "votes",
    "worst",
]
