"""Whether the numbers of a defence can be believed: what evaluations that were wrong had in common, as checks.

Carlini et al., "On evaluating adversarial robustness", 2019; Athalye, Carlini and Wagner, "Obfuscated gradients give a
false sense of security", ICML 2018; Tramer et al., "On adaptive attacks to adversarial example defenses", NeurIPS 2020.
Each check has a number and is green, amber or red. Red means that the numbers must not be believed as they are; green
does not mean that they may.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from redlab.attacks import FGSM, PGD, GaussianNoise, Square
from redlab.attacks.guard import guard, logits_of
from redlab.attacks.margin import margin
from redlab.batch import capabilities
from redlab.crafting import Component
from redlab.crafting.defended import surface
from redlab.evaluation import answers
from redlab.metrics import Samples
from redlab.notebook import evaluate
from redlab.precision import full_precision
from redlab.report.checks import POINTS, Check, graded, points
from redlab.report.tables import percent

STEPS = 40
SAME = 1e-4
"""How far answers of a defence that does not draw may lie apart."""
ROWS = 8
"""Images whose gradient is compared with finite differences."""
Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Examination:
    """All checks of a defence, which attacks it anew.

    Attributes:
        defence: with one of the capabilities of ``redlab.batch``; in eval mode.
        victims: by name.
        test: (N, C, H, W) images in [0, 1] and (N,) labels.
        held: images that the defence was neither trained nor tested on, such as those of the validation; None for none.
        eps: linf budget of the attackers.
        attackers: of the defence as it was tested, by name; None for PGD of ``STEPS`` steps. What they leave is
            compared with what stronger ones do.
        seed: of all draws.
    """

    defence: Any
    victims: Mapping[str, nn.Module]
    test: Pairs
    held: Pairs | None = None
    eps: float = 8 / 255
    attackers: Mapping[str, Component] | None = None
    seed: int = 0

    def checks(self, show: Callable[[str], object] = lambda name: None) -> list[Check]:
        """All, in their order; ``show`` hears what begins."""
        parts: list[tuple[str, Callable[[], list[Check]]]] = [
            ("attackers who know the defence", self._strength),
            ("gradients", self._gradients),
            ("draws", self._draws),
            ("a planted example", self._planted),
            ("storage", self._storage),
            ("images that were held out", self._held_out),
        ]
        found = []
        for name, part in parts:
            show(name)
            found += part()
        return found

    # ---- attackers --------------------------------------------------------------------------------------------------

    def _pgd(self, eps: float, steps: int = STEPS, **more: Any) -> Component:
        attack = PGD(eps=eps, step_size=max(2.5 * eps / steps, eps / 40), steps=steps)
        return Component(attack=attack, knowledge="defence", **more)

    @cached_property
    def rows(self) -> Samples:
        """Rows of attackers who know the defence, each stronger than another, and of some who do not."""
        as_tested = dict(self.attackers or {"as tested": self._pgd(self.eps)})
        aware = {
            **{f"tested {name}": component for name, component in as_tested.items()},
            "half": self._pgd(self.eps / 2),
            "whole": self._pgd(self.eps),
            "double": self._pgd(2 * self.eps),
            "unbounded": self._pgd(1.0, 2 * STEPS),
            "long": self._pgd(self.eps, 5 * STEPS),
            "one step": Component(attack=FGSM(eps=self.eps), knowledge="defence"),
            "black box": Component(attack=Square(eps=self.eps, queries=300), knowledge="defence"),
        }
        if self._spread[0] > SAME:  # the dearest, and for who does not draw the same as the exact one
            aware["eot"] = self._pgd(self.eps, gradient={"eot": 8})
        if "restorer" in capabilities(self.defence):
            aware["bpda"] = self._pgd(self.eps, gradient="bpda")
        return evaluate(
            self.defence,
            self.test,
            attacks={"blind": PGD(eps=self.eps, steps=STEPS), "noise": GaussianNoise(sigma=self.eps)},
            victims=self.victims,
            adaptive=aware,
            seed=self.seed,
            progress=False,
        )

    def _right(self, attack: str) -> float:
        return self.rows.where(attack=attack).mean("right")

    def _strength(self) -> list[Check]:
        image = 1 / len(self.test[0])
        names = [name for name in self.rows.attacks if name.startswith("tested ")]
        tested = min(map(self._right, names))
        half, whole, double, unbounded = map(self._right, ("half", "whole", "double", "unbounded"))
        rise = max(whole - half, double - whole, 0.0)
        gain = tested - min(map(self._right, ("whole", "long")))
        weak = tested - self._right("one step")
        black = max(tested - self._right("black box"), tested - self._right("blind"))
        clean, noisy = self.rows.clean.mean("right"), self._right("noise")
        sizes = ", ".join(f"{factor * self.eps:.3g}" for factor in (0.5, 1, 2))
        text = f"{' > '.join(map(percent, (half, whole, double)))} (eps {sizes})"
        few = max(image, POINTS)
        checks = [
            Check("accuracy falls as eps grows", text, graded(rise, few, 0.05)),
            Check("unbounded, nothing is left", percent(unbounded), graded(unbounded, image, 0.05)),
            Check(
                "more steps change nothing",
                f"{points(-gain)} in {5 * STEPS} steps",
                graded(gain, max(image, 0.005), 0.05),
            ),
            Check("one step does not beat many", points(-weak), graded(weak, few, 0.05)),
            Check("a black box or a transfer does not beat the white box", points(-black), graded(black, few, 0.05)),
            Check(
                "noise is no attack", f"{percent(noisy)} right, {percent(clean)} clean", graded(clean - noisy, 0.1, 0.3)
            ),
        ]
        if "alarm" in self.rows:
            alarms = self.rows.where(attack="noise").mean("alarm")
            checks.append(Check("noise alone is no alarm", percent(alarms), "green" if alarms <= 0.1 else "amber"))
        return checks

    def _gradients(self) -> list[Check]:
        exact, blind = self._right("whole"), self._right("blind")
        text = f"exact {percent(exact)}, blind {percent(blind)}"
        other = blind
        if "bpda" in self.rows.attacks:
            other = min(blind, self._right("bpda"))
            text = f"exact {percent(exact)}, BPDA {percent(self._right('bpda'))}, blind {percent(blind)}"
        far = max(map(self._error, self.victims.values()))
        few = max(POINTS, 1 / len(self.test[0]))
        return [
            Check("the exact gradient is the best one", text, graded(exact - other, few, 0.05)),
            Check("gradients agree with finite differences", f"{percent(far)} off", graded(far, 0.1, 0.5)),
        ]

    def _error(self, victim: nn.Module) -> float:
        """Median relative error of the derivative along the gradient, or along a draw where there is none."""
        x, y = (part[:ROWS] for part in self.test)
        network = surface(self.defence, victim)
        rejects = getattr(network, "rejects", False)

        def value(images: Tensor) -> Tensor:
            logits = logits_of(network, images, int(y.max()))
            return logits[:, -1] - logits[:, :-1].amax(1) if rejects else margin(logits, y)

        with _ready(self.defence, victim), full_precision(), torch.enable_grad():
            images = (x * 0.9 + 0.05).requires_grad_()  # inside [0, 1], also a step away
            here = value(images)
            gradient = torch.autograd.grad(here.sum(), images, allow_unused=True)[0] if here.requires_grad else None
        gradient = torch.zeros_like(x) if gradient is None else gradient
        draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed)).to(x)
        none = gradient.flatten(1).norm(dim=1) < 1e-8
        direction = torch.where(none[:, None, None, None], draw, gradient)
        direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
        errors = []
        with _ready(self.defence, victim), full_precision(), torch.no_grad():
            for step in (0.02, 0.1):  # of length; a network with kinks agrees at one of them
                there = [value((images + sign * step * direction).clamp(0, 1)) for sign in (1, -1)]
                measured = (there[0] - there[1]) / (2 * step)
                told = (gradient * direction).flatten(1).sum(1)
                errors.append((measured - told).abs() / torch.maximum(measured.abs(), told.abs()).clamp(min=1e-6))
        return float(torch.stack(errors).amin(0).median())

    @cached_property
    def _spread(self) -> tuple[float, float]:
        """Of five answers to the same images, how far they lie apart, and the share of images whose answer turns."""
        x = self.test[0][:32]
        with _ready(self.defence, *self.victims.values()), torch.no_grad():
            runs = [self._said(x) for _ in range(5)]
        differ = max(float((run - runs[0]).abs().max()) for run in runs)
        return differ, float(torch.stack([run.argmax(1) != runs[0].argmax(1) for run in runs]).any(0).double().mean())

    def _draws(self) -> list[Check]:
        name, (differ, turned) = "five runs give the same answer", self._spread
        if differ <= SAME:
            return [Check(name, "yes", "green")]
        exact, eot = self._right("whole"), self._right("eot")
        text = f"{percent(turned)} of the answers turn; exact {percent(exact)}, EOT {percent(eot)} right"
        check = Check(name, f"no: {text}", "red" if turned > 0 or exact - eot > POINTS else "amber")
        return [check, *self._fixed(exact)]

    def _fixed(self, fresh: float) -> list[Check]:
        """The same draws at every call, which the attacker then sees: what is left does not come from the draws."""
        x, y = self.test
        victim = next(iter(self.victims.values()))
        network = surface(self.defence, victim)
        if getattr(network, "rejects", False):
            return []
        name, fixed = "a fixed seed protects as fresh ones do", _Fixed(network, self.seed)
        with _ready(self.defence, victim), guard(fixed), torch.no_grad():
            if float((fixed(x) - fixed(x)).abs().max()) > SAME:
                return [Check(name, "it does not draw from torch's generator, whose seed could be fixed", "amber")]
            attacked = PGD(eps=self.eps, step_size=self.eps / 16, steps=STEPS)(fixed, x, y)
            right = float((fixed(attacked).argmax(1) == y).double().mean())
        return [
            Check(name, f"fixed {percent(right)}, fresh {percent(fresh)} right", graded(fresh - right, POINTS, 0.05))
        ]

    def _said(self, x: Tensor) -> Tensor:
        """(B, K) what decides: the logits of the whole defence, or the verdict and what is not it."""
        can = capabilities(self.defence)
        said = answers(self.defence, x)
        if said.class_logits is not None:
            return said.class_logits
        if "restorer" in can and said.restored is not None:
            return torch.cat([logits_of(victim, said.restored, 0) for victim in self.victims.values()], dim=1)
        score = (said.scores or {})[str(said.verdict)]
        return torch.stack([score, -score], dim=1)

    def _planted(self) -> list[Check]:
        """Zimmermann et al., "Increasing confidence in adversarial robustness evaluations", NeurIPS 2022, sec. 4.

        A last layer of two classes is set behind the logits, such that all draws within eps of an image are of one
        class, but for one, which is of the other: an attack that finds nothing there would find nothing anywhere.
        """
        victim = next(iter(self.victims.values()))
        network = surface(self.defence, victim)
        if getattr(network, "rejects", False):
            return []
        found, blindly, tried = 0, 0, 0
        attack = PGD(eps=self.eps, step_size=self.eps / 10, steps=2 * STEPS)
        with _ready(self.defence, victim):
            for x in self.test[0][:20]:
                planted = _plant(network, x, self.eps, self.seed + tried)
                if planted is None:
                    continue
                tried += 1
                label = torch.zeros(1, dtype=torch.int64, device=x.device)
                with guard(planted):
                    reached = attack(planted, x[None], label)
                    found += int(planted(reached).argmax(1))
                    draws = _around(x, self.eps, 200, self.seed + 1000 + tried)
                    blindly += bool((planted(draws).argmax(1) == 1).any())
        name = "a planted example is found"
        if not tried:
            return [Check(name, "none could be planted: its answers do not change within eps", "amber")]
        text = f"{found} of {tried}, by 200 draws {blindly}"
        return [Check(name, text, graded(1 - found / tried, 0.05, 0.2))]

    def _storage(self) -> list[Check]:
        """What 8 bits, which PNG keeps, and JPEG make of attacked and clean images."""
        attacked, clean = self._adversarial, self.test[0]
        with _ready(self.defence, *self.victims.values()), torch.no_grad():
            whole, kept = self._alarmed(attacked), self._alarmed((attacked * 255).round() / 255)
            name = "8 bits change nothing"
            moved = float((whole != kept).double().mean())
            checks = [Check(name, f"{percent(moved)} of the answers on attacked images", graded(moved, 0.05, 0.15))]
            jpeg = float((self._alarmed(clean) != self._alarmed(_jpeg(clean))).double().mean())
            checks.append(
                Check("JPEG is no attack", f"{percent(jpeg)} of the answers on clean images", graded(jpeg, 0.05, 0.3))
            )
        return checks

    @cached_property
    def _adversarial(self) -> Tensor:
        x, y = self.test
        victim = next(iter(self.victims.values()))
        with _ready(self.defence, victim):
            return PGD(eps=self.eps * 0.97, steps=STEPS)(victim, x, y)  # off the grid of 8 bits

    def _alarmed(self, x: Tensor) -> Tensor:
        """(B,) what a defence says: the attack it names, or its alarm, or its class."""
        said = answers(self.defence, x)
        if said.attack_logits is not None:
            return said.attack_logits.argmax(1)
        if said.scores is not None:
            return (said.scores[str(said.verdict)] > 0).long()
        return self._said(x).argmax(1)

    def _held_out(self) -> list[Check]:
        """Whether images that it was tested on are dearer to it than others."""
        if self.held is None or not len(self.held[0]):
            return []
        other = evaluate(
            self.defence,
            self.held,
            attacks={"blind": PGD(eps=self.eps, steps=STEPS)},
            victims=self.victims,
            adaptive={"aware": self._pgd(self.eps)},
            seed=self.seed,
            progress=False,
        )
        mine, theirs = self.rows.where(attack="blind"), other.where(attack="blind")
        gap = mine.mean("right") - theirs.mean("right")
        text = f"blind attacker: {percent(mine.mean('right'))} right, {percent(theirs.mean('right'))} of others"
        checks = [Check("images held out do as well", text, graded(gap, 0.1, 0.2))]
        if "d" in mine and theirs.mean("d") > 0:
            ratio = mine.mean("d") / theirs.mean("d")
            text = f"{mine.mean('d'):.3g} from the clean image, {theirs.mean('d'):.3g} of others"
            checks.append(Check("images held out are restored as well", text, graded(1 - ratio, 0.2, 0.4)))
        return checks


def _ready(*modules: Any) -> ExitStack:
    """Eval mode and frozen weights for as long as it lasts."""
    stack = ExitStack()
    for module in dict.fromkeys(modules):
        if isinstance(module, nn.Module):
            stack.enter_context(guard(module))
    return stack


class _Fixed(nn.Module):
    """A network that draws the same at every call."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.network, self.seed = network, seed

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        with torch.random.fork_rng([] if x.device.type == "cpu" else [x.device], device_type=x.device.type):
            torch.manual_seed(self.seed)
            return logits_of(self.network, x, 0)


class _Planted(nn.Module):
    """Two logits behind a network, of which the second is the greater beyond a plane."""

    def __init__(self, network: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.network, self.weight, self.bias = network, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2)."""
        beyond = (logits_of(self.network, x, 0) @ self.weight - self.bias).float()
        return torch.stack([-beyond, beyond], dim=1)


def _around(x: Tensor, eps: float, many: int, seed: int, corners: bool = False) -> Tensor:
    """Draws within eps of an image; its corners only, as an option."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand((many, *x.shape), generator=generator) * 2 - 1
    draws = draws.sign() if corners else draws
    return (x + eps * draws.to(x)).clamp(0, 1)


@torch.no_grad()
def _plant(network: nn.Module, x: Tensor, eps: float, seed: int) -> _Planted | None:
    """The plane that parts one corner from all draws inside, if some does."""
    inside = logits_of(network, torch.cat([x[None], _around(x, 0.9 * eps, 200, seed)]), 0).double()
    corner = logits_of(network, _around(x, eps, 50, seed + 1, corners=True), 0).double()
    centre, scale = inside.mean(0), inside.std(0).clamp(min=1e-9)
    best: tuple[float, Tensor, Tensor] | None = None
    for point in corner:
        weight = (point - centre) / scale**2
        length = weight.norm()
        if not float(length) > 0:
            continue
        weight = weight / length
        top, there = float((inside @ weight).max()), float(point @ weight)
        gap = (there - top) / float((inside @ weight).std().clamp(min=1e-12))
        if there > top and (best is None or gap > best[0]):
            best = gap, weight, torch.tensor((there + top) / 2)
    if best is None:
        return None
    _, weight, bias = best
    return _Planted(network, weight.to(x), bias.to(x))


def _jpeg(x: Tensor, quality: int = 90) -> Tensor:
    """Images once through JPEG."""
    out = []
    for image in (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu():
        pixels = image.permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
        read = np.array(Image.open(file))
        out.append(torch.from_numpy(read).reshape(pixels.shape).permute(2, 0, 1))
    return torch.stack(out).to(x) / 255
