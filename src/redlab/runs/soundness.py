"""``trust=full``: attacks the defence of an evaluation anew, to see whether its numbers can be believed."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from redlab.batch import attackable
from redlab.crafting.adaptive import DEFAULT_EPS
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.report.checks import Check
from redlab.runs.check import ConfigError
from redlab.runs.console import console
from redlab.soundness import Examination

IMAGES = 64
"""Of the test, and as many of the validation."""


def examined(cfg: DictConfig, method: Method, data: AttackDataModule) -> list[Check]:
    """All checks, on the first images of the test; minutes on a CPU.

    Args:
        cfg: of the evaluation.
        method: which was tested.
        data: which it was tested on.

    Raises:
        ConfigError: nobody can attack the method.
    """
    if not attackable(method):
        raise ConfigError("trust=full attacks the defence, and this one sees the clean image: leave it out.")
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if on_gpu else torch.device("cpu")
    places = {module: next(module.parameters()).device for module in (method, *data.victims.values())}
    attackers = dict(data.mix.adaptive)
    budgets = [_budget(component.attack) for component in attackers.values()]
    try:
        for module in places:
            module.to(device)
        held = data.clean_images(IMAGES) if len(data.indices["val"]) else None
        return Examination(
            defence=method.eval(),
            victims=data.victims,
            test=data.clean_images(IMAGES, "test"),
            held=held,
            eps=max((eps for eps in budgets if eps), default=DEFAULT_EPS),
            attackers=attackers or None,
        ).checks(lambda name: console.print(f"Checking {name}", highlight=False))
    finally:
        for module, place in places.items():
            module.to(place)


def _budget(attack: Any) -> float:
    eps = getattr(attack, "eps", None) if getattr(attack, "norm", None) == "linf" else None
    return float(eps) if isinstance(eps, (int, float)) else 0.0
