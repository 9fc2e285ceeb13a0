"""The feature attack: an image that looks like one picture, and like another one inside the network.

Sabour, Cao, Faghri and Fleet, "Adversarial manipulation of deep representations", ICLR 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, outside_inference, per_row
from redlab.attacks.project import Ball, checked_length, per_pixel, steepest
from redlab.attacks.watched import watched
from redlab.rng import SampleRng
from redlab.spelling import nearest

GuideRule = Callable[[Tensor, Tensor, Tensor | None, SampleRng], Tensor]
"""(images x, labels y, targets or None, rng) -> guides of the shape of x. Row i must depend on row i alone."""


@dataclass(frozen=True, kw_only=True)
class FeatureAttack(GuardedAttack):
    """Minimises |phi(x') - phi(guide)|_2^2 over the linf box, phi being the output of a layer (equations 1 and 2).

    x' <- project(x' - step_size * (1 - k / steps) * sign grad) for k = 0 ... steps - 1, from the clean image; the
    paper has L-BFGS-B in its place. What the network says is not part of the goal: the image is adversarial as far as
    the features of the guide are followed. Returns the iterate whose features are nearest to those of the guide.
    Costs ``steps`` victim calls with gradient and two without.

    Args:
        guides: the guide of each row, as (B, C, H, W); or a rule that knows one, as `GuideBank` does.
        layer: dotted name of a module of the model, or the end of one ("layer4" for "backbone.layer4"); of several,
            the one that is called last. None means what enters the last linear layer, and the logits where there is
            none.
        eps: linf budget in units of [0, 1], a number or one per row.
        step_size: length of the first step; None means eps / 4.
        steps: number of steps, at least 1.
    """

    norm: ClassVar[str] = "linf"
    guides: Tensor | GuideRule
    layer: str | None = None
    eps: float | Tensor = 10 / 255
    step_size: float | Tensor | None = None
    steps: int | Tensor = 100

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``.

        ``rng`` and ``target`` are for the rule; guides given as a tensor are followed whatever the target.
        """
        if not isinstance(model, nn.Module):
            raise ValueError(f"FeatureAttack looks into a torch.nn.Module, got {type(model).__name__}")
        eps = checked_length("eps", self.eps, x, self.norm)
        length = eps / 4 if self.step_size is None else checked_length("step_size", self.step_size, x, self.norm)
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        guides = self.guides if isinstance(self.guides, Tensor) else self.guides(x, y, target, rng)
        if guides.shape != x.shape or guides.dtype != x.dtype:
            wanted, got = f"{tuple(x.shape)} {x.dtype}", f"{tuple(guides.shape)} {guides.dtype}"
            raise ValueError(f"guides must be {wanted} like the images, got {got}")
        guides = outside_inference(guides).to(x.device)
        low, high = torch.stack(guides.aminmax()).tolist()
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails as well
            raise ValueError(f"guides must be in [0, 1], got values from {low:g} to {high:g}")

        # Rows with more steps come first, so that those still at work are a head of the batch.
        order = torch.argsort(steps, descending=True, stable=True)
        x, eps, length, steps, guides = (t[order] for t in (x, eps, length, steps, guides))
        counts, n, ball = steps.tolist(), len(x), Ball(x, eps, "linf")
        with features_of(checked(model, y, target), model, self.layer) as phi:
            with torch.no_grad():
                goal = phi(guides)
            now, best, least = x, x.clone(), torch.full_like(eps, torch.inf)
            for step in watched(range(counts[0] + 1), "step"):
                while counts[n - 1] < step:
                    n -= 1
                now = now[:n].detach().requires_grad_()
                distance = (phi(now) - goal[:n]).square().sum(1)
                better = distance.detach() < least[:n]
                least[:n] = torch.where(better, distance.detach(), least[:n])
                best[:n] = torch.where(per_pixel(better), now.detach(), best[:n])
                if step == counts[0]:
                    break
                (grad,) = torch.autograd.grad(distance.sum(), now)
                rate = per_pixel(length[:n] * (1.0 - step / steps[:n]))
                now = ball.project_head(now.detach() - rate * steepest(grad, "linf"))
        result = torch.empty_like(best)
        result[order] = best
        return result


class GuideBank:
    """Draws for each row one of some images that is not of the row's class, or is of its target class.

    All images that qualify are equally likely. Use the victim's training images, so that it knows what they show.

    Args:
        images: (G, C, H, W), float32 in [0, 1] or uint8.
        labels: (G,) int64.

    Raises:
        ValueError: shapes or types do not fit, or values are out of range.

    >>> bank = GuideBank(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]))
    >>> rng = SampleRng(0, "test", 0, torch.arange(5))
    >>> bank(torch.rand(5, 1, 4, 4), torch.tensor([1, 1, 1, 0, 0]), None, rng).shape
    torch.Size([5, 1, 4, 4])
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be (G, C, H, W) and not empty, got {tuple(images.shape)}")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64 or int(labels.min()) < 0:
            shown = labels.tolist() if labels.numel() <= 8 else f"{tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"labels must be ({len(images)},) int64 and not negative, got {shown}")
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        order = torch.argsort(labels, stable=True)
        self._images, self._sizes = images[order], torch.bincount(labels)

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """One guide for each row; see `GuideRule`. The draw is called "guide".

        Raises:
            ValueError: no image qualifies for a row.
        """
        wanted = (y if target is None else target).cpu()
        sizes = torch.cat([self._sizes, self._sizes.new_zeros(1)])  # the last is that of every class that is not here
        own = wanted.clamp(max=len(sizes) - 1)
        size, first = sizes[own], (sizes.cumsum(0) - sizes)[own]
        choice = len(self._images) - size if target is None else size
        if bool((choice == 0).any()):
            which = "of another class than" if target is None else "of class"
            raise ValueError(f"there is no guide {which} {int(wanted[choice == 0][0])}")
        place = rng.integers("guide", choice).cpu()
        # The images are sorted by class: those of a class are one piece, which is stepped over, or is all there is.
        place = place + size * (place >= first) if target is None else place + first
        return self._images[place].to(x.device)


@contextmanager
def features_of(
    classify: Callable[[Tensor], Tensor], model: nn.Module, layer: str | None
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yields a function from images to (n, D) features; it works inside the ``with`` only.

    Args:
        classify: images -> logits, through ``model``.
        model: where to look for the layer; its hooks are gone afterwards.
        layer: as in `FeatureAttack`.

    Raises:
        ValueError: there is no such layer, it is not used, or it gives anything but a tensor with a row per image.
    """
    seen: list[Any] = []

    def keep_input(_module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0])

    def keep_output(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> None:
        # The clone keeps the values if the next module (a ReLU, mostly) works in place.
        seen.append(output.clone() if isinstance(output, Tensor) else output)

    def phi(images: Tensor) -> Tensor:
        seen.clear()
        logits = classify(images)
        if layer is not None and not seen:
            raise ValueError(f"layer {layer!r} is not used in the model's forward pass")
        out = seen[-1] if seen else logits
        seen.clear()
        if not isinstance(out, Tensor) or len(out) != len(images):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"layer {layer!r} must give a tensor with {len(images)} rows, got {got}")
        return out.flatten(1).float()

    with ExitStack() as hooks:
        if layer is None:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    hooks.enter_context(module.register_forward_pre_hook(keep_input))
        else:
            for module in _layers(model, layer):
                hooks.enter_context(module.register_forward_hook(keep_output))
        yield phi


def _layers(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules whose dotted name is ``name``; where there is none, those whose dotted name ends in it."""
    modules = dict(model.named_modules())
    if name in modules:
        return [modules[name]]
    found = [module for key, module in modules.items() if key.endswith(f".{name}")]
    if not found:
        near = nearest(name, modules, n=5, cutoff=0.4) or list(modules)[-5:]
        raise ValueError(f"the model has no layer {name!r}; near names: {', '.join(near)}")
    return found
