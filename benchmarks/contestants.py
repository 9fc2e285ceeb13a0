"""Everybody's version of each attack, with one budget for all: what benchmarks/attacks.py and tests/peers compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab import attacks as ours
from redlab.attacks.adapters import AdvLib, Foolbox, Torchattacks
from redlab.extras import require

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(victim, images, labels) -> adversarial images."""

FAR = 1e3  # a budget that never binds, where a library asks for one and the attack looks for the smallest perturbation


@dataclass(frozen=True)
class Entry:
    """One attack and everybody's version of it.

    Attributes:
        norm: "linf" or "l2", in which perturbations are measured.
        bare: passes of the bare loop.
        runs: who -> how.
        backward: whether the bare loop's passes go back to the input.
    """

    norm: str
    bare: int
    runs: dict[str, Run]
    backward: bool = True


def torchattacks(name: str, **arguments: Any) -> Run:
    """An attack of torchattacks, called as its documentation says."""
    return lambda model, x, y: Torchattacks(attack=name, arguments=arguments).resolve()(model, **arguments)(x, y)


def foolbox(name: str, eps: float | None, **arguments: Any) -> Run:
    """An attack of foolbox; without a budget, the clean image where it says that it found nothing, not a black one."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        library, make = require("foolbox", "peers"), Foolbox(attack=name, eps=eps, arguments=arguments).resolve()
        bounded = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
        _, found, won = make(**arguments)(bounded, x, library.criteria.Misclassification(y), epsilons=eps)
        if eps is None:
            found = torch.where((won & (found != 0).flatten(1).any(1))[:, None, None, None], found, x)
        return found

    return run


def adv_lib(name: str, **arguments: Any) -> Run:
    """An attack of adv-lib."""
    return lambda model, x, y: AdvLib(attack=name, arguments=arguments).resolve()(model, x, y, **arguments)


def art(name: str, **arguments: Any) -> Run:
    """An attack of ART, which takes and gives numpy arrays."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        evasion = require("art.attacks.evasion", "peers")
        make = require("art.estimators.classification", "peers").PyTorchClassifier
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        device = "gpu" if x.is_cuda else "cpu"
        shape = tuple(x.shape[1:])
        net = make(model, nn.CrossEntropyLoss(), shape, classes, clip_values=(0.0, 1.0), device_type=device)
        found = getattr(evasion, name)(net, **arguments).generate(x.cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(found).to(x)

    return run


def reference(module: str, name: str, **arguments: Any) -> Run:
    """A part of the authors' AutoAttack."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        make = getattr(require(f"pyautoattack.{module}", "peers"), name)
        found: Tensor = make(model, seed=0, verbose=False, n_restarts=1, device=str(x.device), **arguments).perturb(
            x, y
        )
        return found

    return run


def carlini_wagner(c: float, steps: int, searches: int) -> dict[str, Run]:
    """Everybody's l2 attack of Carlini and Wagner but ART's, whose line search is another budget.

    Args:
        c: first weight of the margin.
        steps: of Adam, at least 10.
        searches: values of c to try.
    """
    theirs = {"initial_const": c, "binary_search_steps": searches}
    runs = {
        "redlab": ours.CarliniWagnerL2(c=c, steps=steps, binary_search_steps=searches),
        "torchattacks": torchattacks("CW", c=c, steps=steps),
        "foolbox": foolbox("L2CarliniWagnerAttack", None, steps=steps, **theirs),
        "adv-lib": adv_lib("carlini_wagner_l2", max_iterations=steps, **theirs),
    }
    if searches > 1:
        del runs["torchattacks"]  # it has no search
    return runs


def entries(share: float = 1.0, queries: int = 1000, batch: int = 256) -> dict[str, Entry]:
    """Every attack with one budget for all.

    Args:
        share: of the steps of the iterative attacks, for slow victims.
        queries: of Square.
        batch: ART's batch size; give at least the number of images.
    """

    def steps(full: int) -> int:
        return max(1, round(share * full))

    eps, eps2, inf, n40, n50, n100, n200 = 8 / 255, 0.5, float("inf"), steps(40), steps(50), steps(100), steps(200)
    quiet = {"batch_size": batch, "verbose": False}
    table = {
        "fgsm": Entry(
            *("linf", 1),
            {
                "redlab": ours.FGSM(eps=eps),
                "torchattacks": torchattacks("FGSM", eps=eps),
                "foolbox": foolbox("LinfFastGradientAttack", eps),
                "art": art("FastGradientMethod", eps=eps, batch_size=batch),
            },
        ),
        "pgd_linf": Entry(
            *("linf", n40),
            {
                "redlab": ours.PGD(eps=eps, step_size=eps / 10, steps=n40),
                "torchattacks": torchattacks("PGD", eps=eps, alpha=eps / 10, steps=n40),
                "foolbox": foolbox("LinfPGD", eps, rel_stepsize=0.1, steps=n40),
                "adv-lib": adv_lib("pgd_linf", ε=eps, relative_step_size=0.1, steps=n40),
                "art": art(
                    *("ProjectedGradientDescent",), eps=eps, eps_step=eps / 10, max_iter=n40, num_random_init=1, **quiet
                ),
            },
        ),
        "pgd_l2": Entry(
            *("l2", n40),
            {
                "redlab": ours.PGD(norm="l2", eps=eps2, step_size=eps2 / 10, steps=n40),
                "torchattacks": torchattacks("PGDL2", eps=eps2, alpha=eps2 / 10, steps=n40),
                "foolbox": foolbox("L2PGD", eps2, rel_stepsize=0.1, steps=n40),
                "art": art(
                    *("ProjectedGradientDescent",),
                    **{"norm": 2, "eps": eps2, "eps_step": eps2 / 10, "max_iter": n40, "num_random_init": 1} | quiet,
                ),
            },
        ),
        "apgd": Entry(
            *("linf", n100 + 1),
            {
                "redlab": ours.APGD(eps=eps, steps=n100),
                "torchattacks": torchattacks("APGD", eps=eps, steps=n100),
                "adv-lib": adv_lib("apgd", eps=eps, norm=inf, n_iter=n100, loss_function="ce"),
                "art": art(
                    *("AutoProjectedGradientDescent",),
                    **{"eps": eps, "eps_step": 2 * eps, "max_iter": n100, "nb_random_init": 1} | quiet,
                    loss_type="cross_entropy",
                ),
                "pyautoattack": reference("autopgd_base", "APGDAttack", norm="Linf", eps=eps, n_iter=n100, loss="ce"),
            },
        ),
    }
    for name, c, searches in (("cw_l2", 1.0, 1), ("cw_l2_search", 1e-3, 9)):
        arts = art("CarliniL2Method", initial_const=c, max_iter=n200, binary_search_steps=searches, **quiet)
        table[name] = Entry("l2", n200 * searches, {**carlini_wagner(c, n200, searches), "art": arts})
    table |= {
        "ddn": Entry(
            *("l2", n100),
            {
                "redlab": ours.DDN(steps=n100),
                "foolbox": foolbox("DDNAttack", None, steps=n100),
                "adv-lib": adv_lib("ddn", steps=n100),
            },
        ),
        "deepfool": Entry(
            *("l2", n50),
            {
                "redlab": ours.DeepFool(steps=n50),
                "torchattacks": torchattacks("DeepFool", steps=n50),
                "foolbox": foolbox("L2DeepFoolAttack", None, steps=n50),
                "adv-lib": adv_lib("df", steps=n50),
                "art": art("DeepFool", max_iter=n50, epsilon=0.02, nb_grads=10, **quiet),
            },
        ),
        "square": Entry(
            *("linf", queries),
            {
                "redlab": ours.Square(eps=eps, queries=queries),
                "torchattacks": torchattacks("Square", eps=eps, n_queries=queries, resc_schedule=True),
                "art": art("SquareAttack", eps=eps, max_iter=queries, p_init=0.8, **quiet),
                "pyautoattack": reference(
                    "square", "SquareAttack", norm="Linf", eps=eps, n_queries=queries, p_init=0.8, resc_schedule=True
                ),
            },
            backward=False,
        ),
    }
    for norm, order in (("linf", inf), ("l2", 2.0)):
        table[f"fab_{norm}"] = Entry(
            *(norm, n100),
            {
                "redlab": ours.FAB(norm=norm, steps=n100),
                "torchattacks": torchattacks("FAB", norm=norm.capitalize(), eps=FAR, steps=n100),
                "adv-lib": adv_lib("fab", norm=order, n_iter=n100),
                "pyautoattack": reference("fab_pt", "FABAttack_PT", norm=norm.capitalize(), eps=FAR, n_iter=n100),
            },
        )
    return table


def quality(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: str) -> dict[str, float]:
    """Success rate in percent, and the mean norm of the perturbations that succeeded."""
    with torch.no_grad():
        won = model(x_adv).argmax(1) != y
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    return {
        "success": 100 * float(won.float().mean()),
        "norm": float(size[won].mean()) if bool(won.any()) else math.nan,
    }
