"""What every attack does around its work: leave no trace, refuse bad input, ask the model in one way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from redlab.attacks.speed import networks_in
from redlab.precision import full_precision

_NOT_FINITE: ContextVar[dict[torch.device, Tensor] | None] = ContextVar("not finite", default=None)
"""How many answers inside the innermost guard were not finite, counted where a look at each would be a wait."""

_CUT = (
    "the model's logits do not depend on the images by autograd (no_grad, detach or argmax inside it?); "
    "use a black box such as Square, or BPDA for a defence"
)
_REMEDIES = {
    "to not have been used in the graph": _CUT,
    "use_reentrant=True": "the model uses checkpoint(..., use_reentrant=True), which allows no gradient of the images; "
    "set use_reentrant=False",
    "Inference tensors cannot be saved for backward": "the model was made inside torch.inference_mode, so it can have "
    "no gradients; make it outside, or use a black box such as Square",
    "Input type (": "the model's weights are of another type than the float32 images; convert them in it, as in "
    "lambda x: model(x.to(torch.bfloat16))",
}
"""What torch says when it cannot do what an attack needs -> what we say."""


@contextmanager
def guard(model: Callable[[Tensor], Any]) -> Iterator[None]:
    """Makes ``model`` fit to be attacked, and puts everything back afterwards, also after an exception.

    Inside: gradients on, inference mode off, full precision, every submodule in eval mode, parameters frozen, the
    global random states seeded, so that a model which draws gives the same attack again. Put back: the mode of each
    submodule, ``requires_grad`` of each parameter, the global CPU and CUDA random states. Modes are set one by one, not
    by ``eval()``, which a module may override. Of a function, the networks that it can be seen to use are meant
    (``networks_in``).

    Args:
        model: the network under attack.

    Raises:
        ValueError: ``model`` cannot be called, or what an attack needs of it cannot be had: a gradient, or, found at
            the end, finite logits on a device that is slow to wait for.
    """
    if not callable(model):
        raise ValueError(f"a model must be a module or a function, images -> logits, got {type(model).__name__}")
    networks = networks_in(model)
    # A frozen script has no mode.
    modes = [(m, m.training) for network in networks for m in network.modules() if hasattr(m, "training")]
    weights = [p for network in networks for p in network.parameters()]
    wanted = [(p, p.requires_grad) for p in weights if not p.is_inference()]
    places = [*weights, *(b for network in networks for b in network.buffers())]
    cuda = {t.device.index for t in places if t.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(full_precision())
        stack.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in cuda)):
            generator.manual_seed(0)
        counts: dict[torch.device, Tensor] = {}
        token = _NOT_FINITE.set(counts)
        try:
            for module, training in modes:
                if training:
                    module.training = False
            for p, needed in wanted:
                if needed:
                    p.requires_grad_(False)
            yield
            _refuse(sum(int(count) for count in counts.values()))
        except RuntimeError as error:
            remedy = next((said for text, said in _REMEDIES.items() if text in str(error)), None)
            if remedy is None:
                raise
            raise ValueError(remedy) from error
        finally:
            _NOT_FINITE.reset(token)
            for module, training in modes:
                if module.training != training:
                    module.training = training
            for p, needed in wanted:
                if p.requires_grad != needed:
                    p.requires_grad_(needed)


def outside_inference(t: Tensor) -> Tensor:
    """``t`` detached; a copy if autograd could not save it because it was made under inference mode.

    Args:
        t: any tensor. Call this inside ``guard``.
    """
    return t.detach().clone() if t.is_inference() else t.detach()


def logits_of(model: Callable[[Tensor], Any], images: Tensor, top: int) -> Tensor:
    """The model's answer, in float32 and checked. Here and in `decided` models are asked, and nowhere else.

    The model gets a copy of the images, so that it may write into it, in the floating-point type of its first
    parameter. It answers with the logits or with something that has them as its ``logits``.

    Args:
        model: the network under attack.
        images: (B, C, H, W).
        top: the greatest label in use, so that checking it waits for no device.

    Returns:
        (B, K) float32, on the device of the images.

    Raises:
        ValueError: the model does not return (B, K), K >= 2; ``top`` is not below K; the logits are not finite (said
            at the end of ``guard`` where they are not on the CPU); the images want a gradient and the logits have none.
    """
    return _logits_in(_ask(model, images), images, top)


def _ask(model: Callable[[Tensor], Any], images: Tensor) -> Any:
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    dtype = first.dtype if first is not None and first.dtype in _IMAGE_TYPES else images.dtype
    return model(images.to(dtype, copy=True))


def _logits_in(answer: Any, images: Tensor, top: int) -> Tensor:
    logits = answer if isinstance(answer, Tensor) else _logits_named_in(answer)
    if logits is None:
        keys = f" with {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else ""
        raise ValueError(
            f"the model must return ({len(images)}, K) logits, as a tensor or named `logits`, got "
            f"{type(answer).__name__}{keys}; hand over a function that picks them, such as lambda x: model(x)[0]"
        )
    if logits.shape in (images.shape[:1], (len(images), 1)):
        raise ValueError(
            f"the model returns one logit per image, {tuple(logits.shape)}, and attacks need one per class; "
            "hand over a function that adds the other, such as lambda x: torch.cat([-model(x), model(x)], 1)"
        )
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must return ({len(images)}, K) logits, got {tuple(logits.shape)}")
    if top >= logits.shape[1]:
        raise ValueError(f"label {top} is out of range for a model of {logits.shape[1]} classes")
    if images.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
        raise ValueError(_CUT)
    bad, counts = (~logits.detach().isfinite()).any(1).sum(), _NOT_FINITE.get()
    if bad.device.type in _SLOW_TO_ASK and counts is not None:
        counts[bad.device] = counts[bad.device] + bad if bad.device in counts else bad
    else:
        _refuse(int(bad))
    return logits.to(images.device, torch.float32)


_SLOW_TO_ASK = {"cuda", "mps", "xpu"}
_IMAGE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _logits_named_in(answer: object) -> Tensor | None:
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    return named if isinstance(named, Tensor) else None


def _refuse(rows: int) -> None:
    if rows:
        raise ValueError(
            f"the model's logits are not finite (NaN or infinite) in {rows} rows; "
            "find where it divides by 0 or overflows, or hide a class with -1e9 instead of -inf"
        )


def checked(model: Callable[[Tensor], Any], *labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``model`` with the checks of ``logits_of``, for one wait for the device in all.

    Args:
        model: (n, C, H, W) -> (n, K) logits.
        *labels: (B,) int64 labels in use; None counts for nothing.

    Returns:
        A function (n, C, H, W) -> (n, K) float32.
    """
    top = int(torch.cat([t for t in labels if t is not None]).amax())
    return lambda images: logits_of(model, images, top)


def decided(model: Callable[[Tensor], Any], y: Tensor) -> Callable[[Tensor], Tensor]:
    """What ``model`` says, for attacks that need no more: it may answer with labels, (n,) whole numbers, or logits.

    Args:
        model: (n, C, H, W) -> (n,) labels or (n, K) logits, of which the greatest counts.
        y: (B,) int64 labels in use.

    Returns:
        A function (n, C, H, W) -> (n,) int64.
    """
    top = int(y.amax())

    def said(images: Tensor) -> Tensor:
        answer = _ask(model, images)
        if isinstance(answer, Tensor) and answer.shape == images.shape[:1] and not answer.is_floating_point():
            return answer.to(images.device, torch.int64)
        return _logits_in(answer, images, top).argmax(1)

    return said


def check_images(name: str, images: Tensor) -> None:
    """Checks images, with one wait for the device.

    Args:
        name: what they are, for the message.
        images: (B, C, H, W) float32 in [0, 1], B >= 1.

    Raises:
        ValueError: any of that does not hold; the message names the value.
    """
    if images.ndim != 4 or images.dtype != torch.float32 or images.numel() == 0:
        raise ValueError(f"{name} must be (B, C, H, W) float32 and not empty, got {tuple(images.shape)} {images.dtype}")
    low, high = torch.stack(images.detach().aminmax()).tolist()
    _check_range(name, images, low, high)


def _check_range(name: str, images: Tensor, low: float, high: float) -> None:
    """Refuses images whose extremes, which keep a NaN, are not in [0, 1]."""
    if low >= 0.0 and high <= 1.0:
        return
    count = images.numel() - int(((images >= 0.0) & (images <= 1.0)).sum())
    if low >= -_ROUNDING and high <= 1.0 + _ROUNDING:
        remedy = "it looks like rounding, which clamp(0, 1) takes off"
    elif math.isfinite(low) and math.isfinite(high):
        remedy = "divide grey values by 255, and normalise inside the model"
    else:
        remedy = "find where they come from"
    raise ValueError(
        f"{name} must be in [0, 1], got values from {low:.9g} to {high:.9g}, "
        f"{count} of {images.numel()} outside; {remedy}"
    )


_ROUNDING = 1e-3


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
    _check_range("x", x, low, high)
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
        value: a number, also one of numpy, or a tensor of shape (B,) or ().
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
        real = is_whole(value) if whole else isinstance(value, Real) and not isinstance(value, bool)
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
    return torch.full((len(x),), int(value) if whole else float(value), dtype=dtype, device=x.device)


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number of Python or numpy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)
