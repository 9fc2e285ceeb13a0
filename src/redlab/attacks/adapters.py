"""Attacks of torchattacks, foolbox and adv-lib behind the call of ``redlab.batch.Attack``, to be put into a mix.

They come with the extra ``peers``. Theirs is the algorithm; ours is everything around it: checked input, the guard,
a victim that the library cannot alter, seeded random numbers, a checked result. What cannot be added from outside is
row independence: these libraries draw for a whole batch at a time, some stop or average over it, and their numbers
are the same for all rows.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack, untargeted
from redlab.attacks.guard import checked
from redlab.attacks.project import per_pixel
from redlab.extras import require
from redlab.rng import SampleRng
from redlab.spelling import nearest

Run = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""(shielded victim, images, labels to leave or to reach, seed) -> images."""


@dataclass(frozen=True, kw_only=True)
class Torchattacks(GuardedAttack):
    """An attack of torchattacks. Not row-independent, but equal for equal batches and equal ``rng``.

    An argument ``seed`` that the attack has, and that is not given, is the seed of the call.

    Args:
        attack: name of the class, such as "PGD".
        arguments: of its constructor, besides the model.

    Raises:
        ImportError: the library is missing.
        ValueError: it has no such attack, or the attack no such argument.
    """

    attack: str = "PGD"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_arguments(f"torchattacks.{self.attack}", self.resolve(), self.arguments, {"model"})

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``.

        Raises:
            ValueError: bad result, or a target for an attack that has none.
        """
        name, make = f"torchattacks.{self.attack}", self.resolve()
        own_seed = "seed" in inspect.signature(make).parameters

        def run(victim: nn.Module, images: Tensor, label: Tensor, seed: int) -> Tensor:
            attack = make(victim, **({"seed": seed} if own_seed else {}) | dict(self.arguments))
            attack.set_device(images.device)
            if target is not None:
                if "targeted" not in attack.supported_mode:
                    raise untargeted(name, target)
                attack.set_mode_targeted_by_label(quiet=True)
            result: Tensor = attack(images, label)
            return result

        return _carry_out(name, run, model, x, y, target, rng)

    def resolve(self) -> Any:
        """The class in the library."""
        library = require("torchattacks", "peers", alone="torchattacks")
        return _find("torchattacks", library, self.attack)


@dataclass(frozen=True, kw_only=True)
class Foolbox(GuardedAttack):
    """An attack of foolbox. Not row-independent, but equal for equal batches and equal ``rng``.

    A row for which a minimum-norm attack finds nothing comes back clean: some answer with a black image there, and call
    it a success where the victim takes it for something else.

    Args:
        attack: name of the class in ``foolbox.attacks``, such as "LinfPGD".
        eps: budget, in the norm of the attack; None, for minimum-norm attacks only, for the smallest perturbation.
        arguments: of its constructor.

    Raises:
        ImportError: the library is missing.
        ValueError: it has no such attack, the attack no such argument, or an attack that needs a budget has none.
    """

    attack: str = "LinfPGD"
    eps: float | None = 8 / 255
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, make = f"foolbox.attacks.{self.attack}", self.resolve()
        _check_arguments(name, make, self.arguments, set())
        if self.eps is None and issubclass(make, require("foolbox", "peers").attacks.base.FixedEpsilonAttack):
            raise ValueError(f"{name} needs a budget, got eps=None")
        if self.eps is not None and (
            isinstance(self.eps, bool) or not isinstance(self.eps, Real) or not 0 <= self.eps < np.inf
        ):
            raise ValueError(f"eps must be one number for all rows, not negative, or None, got {self.eps!r}")
        linf = getattr(getattr(make, "distance", None), "p", None) == np.inf
        if self.eps is not None and linf and self.eps > 1:
            hint = f"images are in [0, 1]: did you mean {self.eps:g}/255?"
            raise ValueError(f"eps must be at most 1, got {self.eps:g}; {hint}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``.

        Raises:
            ValueError: bad result, or a target for an attack that has none.
        """
        name, make, foolbox = f"foolbox.attacks.{self.attack}", self.resolve(), require("foolbox", "peers")

        def run(victim: nn.Module, images: Tensor, label: Tensor, seed: int) -> Tensor:
            if target is not None and "DeepFool" in self.attack:  # it takes a target, and does not aim at it
                raise untargeted(name, target)
            bounded = foolbox.PyTorchModel(victim, bounds=(0, 1), device=images.device)
            criteria = foolbox.criteria
            goal = criteria.Misclassification if target is None else criteria.TargetedMisclassification
            fixed = issubclass(make, foolbox.attacks.base.FixedEpsilonAttack)
            budgets = [self.eps] if fixed or self.eps is None else [None, self.eps]  # whether it found anything at all
            try:
                _, found, success = make(**self.arguments)(bounded, images, goal(label), epsilons=budgets)
            except ValueError as error:
                if target is None or "criterion" not in str(error):
                    raise
                raise untargeted(name, target) from error
            last: Tensor = found[-1]
            if fixed:
                return last
            # The library asks whether what it returns fools the victim, and a black image often does.
            none = ~success[0] | (found[0] == 0).flatten(1).all(1)
            return torch.where(per_pixel(none), images, last)

        return _carry_out(name, run, model, x, y, target, rng)

    def resolve(self) -> Any:
        """The class in the library."""
        return _find("foolbox.attacks", require("foolbox", "peers").attacks, self.attack)


@dataclass(frozen=True, kw_only=True)
class AdvLib(GuardedAttack):
    """An attack of adv-lib. Not row-independent, but equal for equal batches and equal ``rng``.

    Args:
        attack: name of the function in ``adv_lib.attacks``, such as "ddn".
        arguments: of the function, besides model, images, labels and ``targeted``; some have Greek names there.

    Raises:
        ImportError: the library is missing.
        ValueError: it has no such attack, or the attack no such argument.
    """

    attack: str = "ddn"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reserved = {"model", "inputs", "labels", "targeted"}
        _check_arguments(f"adv_lib.attacks.{self.attack}", self.resolve(), self.arguments, reserved)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``.

        Raises:
            ValueError: bad result, or a target for an attack that has none.
        """
        name, function = f"adv_lib.attacks.{self.attack}", self.resolve()

        def run(victim: nn.Module, images: Tensor, label: Tensor, seed: int) -> Tensor:
            if target is None:
                found: Tensor = function(victim, images, label, **self.arguments)
                return found
            if "targeted" not in inspect.signature(function).parameters:
                raise untargeted(name, target)
            try:  # attacks without a target take one too, and answer with a warning and the clean images, or an assert
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message=".*untargeted only")
                    found = function(victim, images, label, targeted=True, **self.arguments)
            except (UserWarning, AssertionError) as error:
                raise untargeted(name, target) from error
            return found

        return _carry_out(name, run, model, x, y, target, rng)

    def resolve(self) -> Any:
        """The function in the library."""
        with _visdom():
            library = require("adv_lib.attacks", "peers", alone="adv-lib")
        return _find("adv_lib.attacks", library, self.attack)


@contextmanager
def _visdom() -> Iterator[None]:
    """An empty stand-in for visdom, which adv-lib imports for callbacks that are not used here: it no longer builds."""
    stand_in = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if stand_in:
        sys.modules["visdom"] = ModuleType("visdom")
    try:
        yield
    finally:
        if stand_in:
            del sys.modules["visdom"]


def _find(place: str, module: ModuleType, name: str) -> Any:
    """What is called ``name``, which may be dotted, in a library's module."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    library = place.split(".")[0]
    # Not what the library itself imports.
    if not (callable(found) and getattr(found, "__module__", "").split(".")[0] == library):
        names = [n for n, value in vars(module).items() if callable(value)]
        near = nearest(name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{place} has no attack {name!r}{hint}")
    return found


def _check_arguments(name: str, found: Any, arguments: Mapping[str, Any], reserved: set[str]) -> None:
    """Finds a misspelt argument now and not at the first batch."""
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments must be a mapping, got {arguments!r}")
    parameters = inspect.signature(found).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [key for key in parameters if key not in reserved]
    for key in arguments:
        if key not in known:
            near = nearest(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
            raise ValueError(f"{name} has no argument {key!r}; {hint}")


class _Shield(nn.Module):
    """The victim as a library sees it: logits, and nothing that it could put into train mode, clear or move."""

    def __init__(self, classify: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.classify = classify
        # Libraries ask the first parameter where the model is.
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, K) float32 logits."""
        return self.classify(images)


def _carry_out(
    name: str, run: Run, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
) -> Tensor:
    """Lets a library attack, and sees to the rest."""
    seed = _seed(rng)
    with _seeded(seed):
        images, label = x.clone(), (y if target is None else target).clone()
        found = run(_Shield(checked(model, y, target), x.device), images, label, seed)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name} returned {got} for images {tuple(x.shape)}")
        found = found.detach().to(x.device, torch.float32)
        broken = ~found.isfinite().flatten(1).all(1)
        if bool(broken.any()):
            raise ValueError(f"{name} returned images that are not finite in {int(broken.sum())} of {len(x)} rows")
        return found.clamp(0.0, 1.0)


def _seed(rng: SampleRng) -> int:
    """One number for a batch, from a draw of each of its rows."""
    draws = rng.integers("library seed", 1 << 31).tolist()
    return int.from_bytes(hashlib.blake2b(repr(draws).encode(), digest_size=4).digest(), "little")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds every global generator that a library might use, and puts them back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - libraries draw from it
    with torch.random.fork_rng(devices=devices):
        try:
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
