"""What every attack does around its own mathematics: check, guard, take out of inference mode, check again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from redlab.attacks.guard import check_images, check_inputs, guard, outside_inference, per_row
from redlab.attacks.project import NORMS, check_in_ball
from redlab.attacks.speed import quickly
from redlab.attacks.watched import stage
from redlab.rng import SampleRng


class GuardedAttack(ABC):
    """An attack (see ``redlab.batch.Attack``) of which a subclass writes only the crafting.

    A subclass is a frozen keyword-only dataclass. If it has ``eps`` and a ``norm`` of linf or l2, that is its budget.
    An attack may also be written without this class: a mix takes whatever has the call.

    Attributes:
        targeted: whether it can be aimed at a class; if not, a target is refused before ``craft``.
    """

    targeted: ClassVar[bool] = True

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: SampleRng | None = None
    ) -> Tensor:
        """Attacks every row; see ``redlab.batch.Attack``."""
        return self.run(model, x, y, target=target, rng=rng)[0]

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: SampleRng | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Like a call, and says what it cost.

        Args:
            model: as in ``redlab.batch.Attack``, like the other arguments.
            x: (B, C, H, W).
            y: (B,).
            target: (B,) or None.
            rng: None for the default.

        Returns:
            (B, C, H, W) images; (B,) int64 queries or gradients that each row used, None if ``craft`` does not count.

        Raises:
            ValueError: bad input; a target for an attack that has none; a result that is of another shape, not finite,
                outside [0, 1] or outside the ball.
        """
        if target is not None and not self.targeted:
            raise untargeted(type(self).__name__, target)
        check_inputs(x, y, target)

        def work() -> Tensor | tuple[Tensor, Tensor]:
            with guard(model):
                aim = None if target is None else outside_inference(target)
                drawn = SampleRng.for_batch(x, rng)
                return self.craft(model, outside_inference(x), outside_inference(y), aim, drawn)

        with stage():
            crafted = quickly(model, work)  # outside the guard, which seeds anew each time that the work is done
        found, cost = crafted if isinstance(crafted, tuple) else (crafted, None)
        return self._checked(found.detach(), x.detach()), cost

    @abstractmethod
    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The attack itself, inside ``guard``: gradients are on, and no tensor is one of inference mode.

        It asks the model through ``guard.checked``, checks the numbers of the attack before that, and leaves its
        arguments as they are.

        Args:
            model: the network under attack, frozen and in eval mode.
            x: (B, C, H, W) float32 in [0, 1], checked and detached.
            y: (B,) int64.
            target: (B,) int64, nowhere equal to ``y``; None where untargeted.
            rng: one index per row, on the device of ``x``.

        Returns:
            (B, C, H, W) images; or these and (B,) int64 what each row cost.
        """

    def _checked(self, found: Tensor, x: Tensor) -> Tensor:
        name = f"the result of {type(self).__name__}"
        check_images(name, found)
        if found.shape != x.shape or found.device != x.device:
            wanted, got = f"{tuple(x.shape)} on {x.device}", f"{tuple(found.shape)} on {found.device}"
            raise ValueError(f"{name} must be {wanted} like the images, got {got}")
        eps, norm = getattr(self, "eps", None), getattr(self, "norm", None)
        if eps is not None and norm in NORMS:
            check_in_ball(name, found, x, per_row("eps", eps, x), norm)
        return found


def untargeted(name: str, target: Tensor) -> ValueError:
    """What to raise where an attack gets a target that it cannot aim at.

    Args:
        name: of the attack.
        target: (B,).
    """
    return ValueError(f"{name} is untargeted, got target {target.tolist()[:3]}...; leave it out")
