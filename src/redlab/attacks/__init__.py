"""Attacks: one file per family, all with the call of ``redlab.batch.Attack``.

>>> import torch
>>> victim = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
>>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
>>> x_adv = PGD(norm="linf", eps=8 / 255, steps=10)(victim, x, y)
>>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
True
"""

from redlab.attacks.apgd import APGD
from redlab.attacks.ascend import GradientSteps, SteppedAttack, ascend
from redlab.attacks.autoattack import AutoAttack
from redlab.attacks.boundary import Boundary
from redlab.attacks.carlini_wagner import CarliniWagnerL2, CarliniWagnerLinf
from redlab.attacks.ddn import DDN
from redlab.attacks.deepfool import DeepFool
from redlab.attacks.fab import FAB
from redlab.attacks.feature import FeatureAttack, GuideBank
from redlab.attacks.fgsm import FGSM, RFGSM
from redlab.attacks.local_search import LocalSearch
from redlab.attacks.noise import GaussianNoise
from redlab.attacks.occlusion import Occlusion
from redlab.attacks.patch import Patch
from redlab.attacks.pgd import PGD
from redlab.attacks.rp2 import RP2
from redlab.attacks.spatial import SpatialTransform
from redlab.attacks.square import Square
from redlab.attacks.stored import Stored
from redlab.attacks.wasserstein import WassersteinFrankWolfe, WassersteinPGD
from redlab.attacks.wrappers import BPDA, EOT, Defended, SmoothedPGD
from redlab.rng import SampleRng

__all__ = [
    "APGD",
    "BPDA",
    "DDN",
    "EOT",
    "FAB",
    "FGSM",
    "PGD",
    "RFGSM",
    "RP2",
    "AutoAttack",
    "Boundary",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "DeepFool",
    "Defended",
    "FeatureAttack",
    "GaussianNoise",
    "GradientSteps",
    "GuideBank",
    "LocalSearch",
    "Occlusion",
    "Patch",
    "SampleRng",
    "SmoothedPGD",
    "SpatialTransform",
    "Square",
    "SteppedAttack",
    "Stored",
    "WassersteinFrankWolfe",
    "WassersteinPGD",
    "ascend",
]
