"""Metrics: pure functions per image, and the torchmetrics class that averages them over cells."""

from redlab.metrics.functional import cosine, logit_distance, pixel_distance, prediction_alignment, psnr
from redlab.metrics.restoration import RestorationMetrics

__all__ = ["RestorationMetrics", "cosine", "logit_distance", "pixel_distance", "prediction_alignment", "psnr"]
