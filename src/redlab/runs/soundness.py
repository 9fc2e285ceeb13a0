"""``trust=full``: attacks the defence of an evaluation anew, to see whether its numbers can be believed."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.report.checks import Check
from redlab.runs.console import console
from redlab.soundness import Examination

IMAGES = 64
"""Of the test, and as many of the validation."""


def examined(cfg: DictConfig, method: Method, data: AttackDataModule) -> list[Check]:
    """All checks, on the first images of the test; minutes on a CPU.

    Args:
        cfg: of the evaluation.
        method: which was tested, and can be attacked.
        data: which it was tested on.
    """
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if on_gpu else torch.device("cpu")
    places = {module: next(module.parameters()).device for module in (method, *data.victims.values())}
    try:
        for module in places:
            module.to(device)
        other = len(data.indices["val"]) and data.test_on == "test"
        held = data.clean_images(IMAGES) if other else None
        return Examination(
            defence=method.eval(),
            victims=data.victims,
            test=data.clean_images(IMAGES, "test"),
            held=held,
            eps=data.mix.adaptive_eps,
            attackers=data.mix.adaptive or None,
        ).checks(lambda name: console.print(f"Checking {name}", highlight=False))
    finally:
        for module, place in places.items():
            module.to(place)
