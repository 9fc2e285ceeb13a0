"""The batched loop: against a plain loop over single images, and in victim calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import FGSM, PGD, RFGSM, GradientSteps, SampleRng, SteppedAttack, ascend
from redlab.attacks.project import project


class Wiggly(nn.Module):
    """A loss with many humps, so that a later iterate is often a worse one. Counts its calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.register_buffer("w", torch.randn(2 * 3 * 4, 5, generator=g))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), torch.is_grad_enabled()))
        return 3 * torch.sin(4 * x.flatten(1) @ self.w)


def batch(rows: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(rows, 2, 3, 4, generator=g), torch.randint(5, (rows,), generator=g)


def one_image(model: nn.Module, x: Tensor, y: int, target: int, plan: GradientSteps) -> list[tuple[float, Tensor]]:
    """Transcription of Madry et al. for a single image: loss and image of every iterate after the start."""
    eps, size = plan.eps.item(), plan.step_size.item()
    now, iterates = plan.start.clone(), []
    for _ in range(int(plan.steps)):
        now.requires_grad_()
        logits = model(now)
        log_p = logits[0] - logits[0].exp().sum().log()
        loss = -log_p[y] if target < 0 else log_p[target]
        (g,) = torch.autograd.grad(loss, now)
        with torch.no_grad():
            now = now + size * (g.sign() if plan.norm == "linf" else g / (g**2).sum().sqrt())
            delta = now - x
            if plan.norm == "linf":
                delta = torch.where(delta > eps, eps, torch.where(delta < -eps, -eps, delta))
            elif (length := (delta**2).sum().sqrt()) > eps:
                delta = delta * eps / length
            now = torch.minimum(torch.maximum(x + delta, torch.zeros(())), torch.ones(()))
            log_p = torch.log_softmax(model(now)[0], 0)
            iterates.append(((-log_p[y] if target < 0 else log_p[target]).item(), now))
    return iterates


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_a_plain_loop_that_keeps_the_best_iterate(norm: str, targeted: bool) -> None:
    model, (x, y) = Wiggly(), batch(12)
    steps = torch.tensor([2, 9, 1, 1, 4, 9, 5, 3, 1, 2, 6, 7])
    eps = torch.linspace(0.05, 0.3, 12) * (1 if norm == "linf" else 2)
    plan = PGD(norm=norm, eps=eps, step_size=eps * 0.8, steps=steps).schedule(x)
    target = torch.where(torch.arange(12) % 3 == 0, (y + 1) % 5, -1) if targeted else torch.full((12,), -1)
    x_adv = ascend(model, x, y, plan, target if targeted else None)
    last_is_best = []
    for i in range(12):
        row = torch.tensor([i])
        iterates = one_image(model, x[row], int(y[i]), int(target[i]), plan[row])
        best = max(iterates, key=lambda pair: pair[0])
        last_is_best.append(best is iterates[-1])
        # The humps amplify rounding from step to step; a wrong iterate would be off by a step, 0.04 at least.
        torch.testing.assert_close(x_adv[row], best[1], rtol=0, atol=1e-5 if norm == "linf" else 1e-4)
    assert not all(last_is_best), "the model is not wiggly enough to tell best from last"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_returned_loss_is_at_least_that_of_the_last_iterate(norm: str) -> None:
    """With one step more or less the best of a longer run can only be better."""
    model, (x, y) = Wiggly(), batch(32)
    last = torch.full((32,), -torch.inf)
    for steps in range(1, 8):
        x_adv = PGD(norm=norm, eps=0.3, step_size=0.2, steps=steps)(model, x, y)
        loss = F.cross_entropy(model(x_adv), y, reduction="none")
        assert bool((loss >= last - 1e-5).all())
        last = loss


def calls(attack: SteppedAttack, rows: int = 6) -> list[tuple[int, bool]]:
    model, (x, y) = Wiggly(), batch(rows)
    attack(model, x, y)
    return model.calls


def test_victim_calls() -> None:
    assert calls(FGSM()) == [(6, True)]
    assert calls(RFGSM()) == [(6, True)]
    assert calls(PGD(steps=1)) == [(6, True)]
    assert calls(PGD(steps=4)) == [(6, True)] * 4 + [(6, False)]


def test_finished_rows_are_dropped() -> None:
    steps = torch.tensor([1, 4, 2, 1, 4, 1])
    assert calls(PGD(steps=steps)) == [(6, True), (3, True), (2, True), (2, True), (3, False)]


def test_attacks_share_a_loop() -> None:
    model, (x, y) = Wiggly(), batch(12)
    rng = SampleRng(7, "train", 1, torch.arange(12) + 100)
    attacks: list[SteppedAttack] = [FGSM(eps=0.1), PGD(eps=0.2, steps=3), RFGSM(eps=0.3), PGD(eps=0.1, steps=5)]
    parts = [torch.arange(3) + 3 * i for i in range(4)]
    plan = GradientSteps.cat([a.schedule(x[p], rng[p]) for a, p in zip(attacks, parts, strict=True)])
    together = ascend(model, x, y, plan)
    assert [rows for rows, _ in model.calls] == [12, 6, 6, 3, 3, 6]
    for attack, part in zip(attacks, parts, strict=True):
        assert isinstance(attack, SteppedAttack)
        torch.testing.assert_close(together[part], attack(model, x[part], y[part], rng=rng[part]), rtol=0, atol=1e-5)


def test_schedules_of_two_norms_do_not_mix() -> None:
    x, _ = batch(2)
    with pytest.raises(ValueError, match=r"l2.*linf"):
        GradientSteps.cat([PGD().schedule(x), PGD(norm="l2").schedule(x)])


def test_schedule_for_other_images() -> None:
    x, y = batch(4)
    with pytest.raises(ValueError, match=r"\(3, 2, 3, 4\)"):
        ascend(Wiggly(), x, y, FGSM().schedule(x[:3]))


class Broken(nn.Module):
    """The gradient of the first image is NaN: that of a root at 0. Logits that are NaN are refused."""

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones(len(x), 1)
        scale[0] = 0.0
        logits = x.flatten(1)[:, :5]
        return logits + (logits * 0.0 + scale).sqrt()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nan_in_the_gradient_stays_in_its_row_and_out_of_the_image(norm: str) -> None:
    x, y = batch(3)
    x_adv = PGD(norm=norm)(Broken(), x, y)
    assert bool(torch.isfinite(x_adv).all())
    torch.testing.assert_close(project(x_adv, x, torch.full((3,), 8 / 255), norm), x_adv, rtol=0, atol=1e-6)
    assert not torch.equal(x_adv[1:], x[1:])


def test_project_is_the_nearest_point() -> None:
    x = torch.full((2, 1, 1, 2), 0.5)
    far = torch.tensor([[[[0.5, 0.9]]], [[[0.6, 0.5]]]])
    eps = torch.tensor([0.2, 0.2])
    for norm in ("linf", "l2"):
        out = project(far, x, eps, norm)
        torch.testing.assert_close(out, torch.tensor([[[[0.5, 0.7]]], [[[0.6, 0.5]]]]))
    torch.testing.assert_close(far[0], torch.tensor([[[0.5, 0.9]]]))
    with pytest.raises(ValueError, match="l1"):
        project(far, x, eps, "l1")
