"""Probes: what an evaluation can look at besides its own measures. Each adds columns and pictures to a batch's rows."""

from redlab.probes.attribution import Attribution, AttributionShift, answer_map, gradcam, overlap
from redlab.probes.certification import Certification
from redlab.probes.cost import Cost, Latency
from redlab.probes.perturbation import (
    Logits,
    PartialPerturbation,
    Perturbations,
    Resemblance,
    Revert,
    Transfer,
    centred,
)
from redlab.probes.probe import Probe
from redlab.probes.representation import FirstMap, IntrinsicDimension, Latents, intrinsic_dimension
from redlab.probes.saliency import Saliency, filter_saliency, input_saliency
from redlab.probes.sensitivity import Masking, Rectification, Removal, Sensitivity

__all__ = [
    "Attribution",
    "AttributionShift",
    "Certification",
    "Cost",
    "FirstMap",
    "IntrinsicDimension",
    "Latency",
    "Latents",
    "Logits",
    "Masking",
    "PartialPerturbation",
    "Perturbations",
    "Probe",
    "Rectification",
    "Removal",
    "Resemblance",
    "Revert",
    "Saliency",
    "Sensitivity",
    "Transfer",
    "answer_map",
    "centred",
    "filter_saliency",
    "gradcam",
    "input_saliency",
    "intrinsic_dimension",
    "overlap",
]
