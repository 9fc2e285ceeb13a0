"""What every attack does around its work: leave no trace, and refuse bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def guard(model: nn.Module) -> Iterator[None]:
    """Makes ``model`` fit to be attacked, and puts everything back afterwards, also after an exception.

    Inside: gradients on, inference mode and autocast off, every submodule in eval mode, parameters frozen, the global
    random states seeded, so that a model which draws gives the same attack again. Put back: the mode of each submodule,
    ``requires_grad`` of each parameter, the global CPU and CUDA random states. Modes are set one by one, not by
    ``eval()``, which a module may override.

    Args:
        model: the network under attack.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    cuda = {t.device.index for t in [*model.parameters(), *model.buffers()] if t.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in cuda)):
            generator.manual_seed(0)
        try:
            for module, training in modes:
                if training:
                    module.training = False
            for p in wanted:
                p.requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                if module.training != training:
                    module.training = training
            for p in wanted:
                p.requires_grad_(True)


def outside_inference(t: Tensor) -> Tensor:
    """``t`` detached; a copy if autograd could not save it because it was made under inference mode.

    Args:
        t: any tensor. Call this inside ``guard``.
    """
    return t.detach().clone() if t.is_inference() else t.detach()


def logits_of(model: nn.Module, images: Tensor, top: int) -> Tensor:
    """The model's answer, in float32 and checked.

    Args:
        model: the network under attack.
        images: (B, C, H, W).
        top: the greatest label in use, so that checking it waits for no device.

    Returns:
        (B, K) float32.

    Raises:
        ValueError: the model does not return (B, K); ``top`` is not below K.
    """
    logits: Tensor = model(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must return ({len(images)}, K) logits, got {tuple(logits.shape)}")
    if top >= logits.shape[1]:
        raise ValueError(f"label {top} is out of range for a model of {logits.shape[1]} classes")
    return logits.float()


def checked(model: nn.Module, *labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``model`` with the checks of ``logits_of``, for one wait for the device in all.

    Args:
        model: (n, C, H, W) -> (n, K) logits.
        *labels: (B,) int64 labels in use; None counts for nothing.

    Returns:
        A function (n, C, H, W) -> (n, K) float32.
    """
    top = int(torch.cat([t for t in labels if t is not None]).amax())
    return lambda images: logits_of(model, images, top)


def check_inputs(x: Tensor, y: Tensor, target: Tensor | None = None) -> None:
    """Checks what a caller hands to an attack, with one wait for the device.

    Args:
        x: (B, C, H, W) float32 in [0, 1], B >= 1.
        y: (B,) int64, not negative.
        target: (B,) int64, not negative and nowhere equal to ``y``; or None.

    Raises:
        ValueError: any of that does not hold; the message names the value.
    """
    if x.ndim != 4 or x.dtype != torch.float32 or x.numel() == 0:
        raise ValueError(f"x must be (B, C, H, W) float32 and not empty, got {tuple(x.shape)} {x.dtype}")
    labels = {"y": y} if target is None else {"y": y, "target": target}
    for name, t in labels.items():
        if t.shape != x.shape[:1] or t.dtype != torch.int64 or t.device != x.device:
            raise ValueError(
                f"{name} must be ({len(x)},) int64 on {x.device}, got {tuple(t.shape)} {t.dtype} on {t.device}"
            )
    facts = [*x.detach().aminmax(), *(t.amin() for t in labels.values())]
    if target is not None:
        facts.append((target == y).any())
    low, high, *rest = torch.stack([fact.double() for fact in facts]).tolist()
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN, which both extremes keep, fails as well
        raise ValueError(f"x must be in [0, 1], got values from {low:g} to {high:g}")
    for name, least in zip(labels, rest, strict=False):
        if least < 0:
            raise ValueError(f"{name} must not be negative, got {int(least)}")
    if target is not None and rest[-1]:
        raise ValueError(f"target must differ from the true label, got {int(target[target == y][0])} for both")


def per_row(
    name: str, value: float | Tensor, x: Tensor, *, low: float = 0.0, high: float = math.inf, whole: bool = False
) -> Tensor:
    """One checked number per image, from a number or from a tensor of them.

    Args:
        name: name of the parameter, for the message.
        value: a number, or a tensor of shape (B,) or ().
        x: (B, ...) the images, for B and the device.
        low: least value allowed.
        high: greatest value allowed.
        whole: whether to ask for whole numbers and return int64.

    Returns:
        (B,) float32, or int64 if ``whole``, on the device of ``x``.

    Raises:
        ValueError: wrong type, shape or range, or not finite; the message names the value.
    """
    if isinstance(value, Tensor):
        if value.shape not in ((), (len(x),)):
            raise ValueError(f"{name} must be a number or a tensor of shape ({len(x)},), got {tuple(value.shape)}")
        real = value.dtype != torch.bool and not value.is_complex() and not (whole and value.is_floating_point())
        extremes = torch.stack(value.detach().aminmax()).tolist() if real else []
    else:
        real = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        extremes = [float(value)] if real else []
    if not real:
        shown = value.dtype if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} must be {'whole numbers' if whole else 'real numbers'}, got {shown}")
    for extreme in extremes:
        if not (low <= extreme <= high and math.isfinite(extreme)):
            raise ValueError(f"{name} must be finite and in [{low:g}, {high:g}], got {extreme:g}")
    dtype = torch.int64 if whole else torch.float32
    if isinstance(value, Tensor):
        return value.detach().to(x.device, dtype).expand(len(x))
    return torch.full((len(x),), value, dtype=dtype, device=x.device)
