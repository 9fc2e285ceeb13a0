"""An evaluation without Hydra and Trainer: any defence, images, attacks and victims, and the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from redlab.attacks.guard import guard
from redlab.batch import Attack, capabilities
from redlab.crafting import AttackMix, Component
from redlab.evaluation import Evaluator
from redlab.metrics import Samples


def evaluate(
    defence: Any,
    images: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    attacks: Mapping[str, Attack | Component],
    victims: Mapping[str, nn.Module] | None = None,
    adaptive: Mapping[str, Component] | None = None,
    judges: Sequence[str] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Samples:
    """What a defence does against attacks: one row for each cell, judge and image.

    Besides the attacks named, one who knows the defence attacks it: what is told of a defence without that is no
    measure of it.

    Args:
        defence: any module with one of the capabilities of ``redlab.batch``, such as ``restore`` or ``class_logits``;
            it is evaluated in eval mode, and left as it was.
        images: (N, C, H, W) float32 in [0, 1] and (N,) int64 labels; or batches of these, as a DataLoader yields them.
        attacks: by name; a component says more than the attack alone.
        victims: by name, images -> logits. None for a defence that classifies by itself: it is then its own victim.
        adaptive: the attackers who know the defence; None for a PGD of 40 steps with the largest budget of ``attacks``.
        judges: names of the victims that judge every image; None: the one that was attacked.
        batch_size: images that are attacked together; nothing but speed and memory depends on it.
        seed: of all draws.
        progress: show a bar.

    Returns:
        The rows, in the order of cells and images.

    Raises:
        ValueError: the defence has no capability; an image, a label, an attack or a name that makes no sense.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> class Blur(nn.Module):
        ...     def restore(self, x):
        ...         return x.mean((2, 3), keepdim=True).expand_as(x)
        >>> from redlab.attacks import FGSM
        >>> images = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
        >>> rows = evaluate(Blur(), images, attacks={"fgsm": FGSM(eps=0.1)}, victims={"net": net}, progress=False)
        >>> rows.attacks, len(rows)
        (('clean', 'fgsm', 'aware_pgd'), 24)
    """
    if not capabilities(defence):
        raise ValueError(f"{type(defence).__name__} has none of the capabilities: nothing of it can be evaluated")
    if victims is None:
        if not isinstance(defence, nn.Module) or "labeler" not in capabilities(defence):
            raise ValueError("victims must be given for a defence that does not classify by itself, got None")
        victims = {"itself": defence}
    parts = {str(name): a if isinstance(a, Component) else Component(attack=a) for name, a in attacks.items()}
    mix = AttackMix(parts, adaptive=adaptive, seed=seed)
    settings = {attack: names for attack in range(len(mix.attack_names)) if (names := mix.setting_names(attack))}
    measure = Evaluator(victims=victims, attack_names=mix.attack_names, setting_names=settings, judges=judges)
    device = next((t.device for net in victims.values() for t in net.parameters()), torch.device("cpu"))
    cells = mix.cells(victims)
    found = []
    with ExitStack() as stack:
        for module in dict.fromkeys([*victims.values(), defence]):
            if isinstance(module, nn.Module):
                stack.enter_context(guard(module))
        batches = list(_batches(images, batch_size))
        work = [(cell, batch) for cell in cells for batch in batches]
        for cell, (index, x, y) in track(work, "Attacking", transient=True) if progress else work:
            place = index.to(device)
            plan = mix.plan(place, place, stage="test", epoch=0, victim_names=list(victims), cell=cell)
            crafted = mix.craft(victims, x.to(device), y.to(device), plan, defence=defence, want_fooled=True)
            found.append(measure(defence, crafted)[0])
    return Samples.cat(found).sorted()


def _batches(images: Any, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Places, images and labels."""
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    whole = isinstance(images, tuple) and len(images) == 2 and isinstance(images[0], Tensor) and images[0].ndim == 4
    first = 0
    for x, y in [images] if whole else images:
        for some, labels in zip(x.split(size), y.split(size), strict=True):
            yield torch.arange(first, first + len(some)), some, labels
            first += len(some)
