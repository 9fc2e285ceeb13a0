"""Anybody's network computed in less time while it is attacked, and put back exactly as it was.

A victim of redlab's own architectures has a twin for that (``redlab.victims.folded``). Another network is not copied
and not traced: on a CPU its convolutions get their weights laid out channels last, and each BatchNorm, which in eval
mode is one factor and one summand per channel, is computed as that. Where it is known from the code of torch or
torchvision that a convolution's answer goes to a BatchNorm and nowhere else, both are one convolution.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FunctionType, MethodType
from typing import TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d
from torchvision.models.resnet import BasicBlock, Bottleneck

Result = TypeVar("Result")

_AS_THEY_ARE: WeakSet[nn.Module] = WeakSet()
"""Modules of networks that failed otherwise: mostly, that call ``view`` on what a convolution gives."""


_MEMBERS = 100
"""Of an ensemble, at most; a longer list holds data, and to look through it would take time."""

_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)
"""Where torch keeps the hooks of all modules, in every version from 2.6 on."""

_AT_WORK: ContextVar[bool] = ContextVar("at work", default=False)


def quickly(model: object, work: Callable[[], Result]) -> Result:
    """What ``work()`` returns, while ``model`` computes faster; where it raises a RuntimeError so, it is done again.

    The second time only BatchNorm is computed otherwise, the third time nothing is; a network that needs this is
    remembered. Weights are put back as the very tensors that they were. Left alone are networks on other devices, in
    other types than float32, compiled or scripted, and the victims that have a twin. Inside ``work`` a further call of
    this does nothing.

    Args:
        model: a module or a function, of which ``networks_in`` are meant.
        work: may run up to three times.
    """
    if _AT_WORK.get():
        return work()
    modules = [m for network in networks_in(model) for m in _open_to_change(network)]
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and _can_turn(m)]
    norms = [m for m in modules if type(m) is nn.BatchNorm2d and _is_affine(m)]
    watched = any(getattr(torch.nn.modules.module, hooks) for hooks in _GLOBAL_HOOKS)
    blocks = [m for m in modules if type(m) in _FOLDED and "forward" not in vars(m) and not watched] if norms else []
    token = _AT_WORK.set(True)
    try:
        for turned, eased in [(convolutions, norms)] * bool(convolutions) + [([], norms)] * bool(norms):
            try:
                with _channels_last(turned), _in_one_step(eased), _folded(blocks if eased else []):
                    result = work()
            except RuntimeError:
                continue
            _AS_THEY_ARE.update(set(convolutions) - set(turned))
            return result
        result = work()
        _AS_THEY_ARE.update({*convolutions, *norms})
        return result
    finally:
        _AT_WORK.reset(token)


def networks_in(model: object, depth: int = 2) -> list[nn.Module]:
    """``model`` itself if it is a module, and the modules that functions can be seen to use.

    Looks at the object of a method, at what a partial holds, at the variables that a function closes over or reads
    globally, and at the attributes of an object that can be called; into short lists, tuples and dicts of them too.

    Args:
        model: a module, or anything else that can be called.
        depth: how far from it to look.
    """
    inside: list[object] = []
    if isinstance(model, nn.Module):
        # Attributes that are modules are submodules; functions are not. Torch's own classes hold none of a user's.
        functions = (FunctionType, MethodType, partial)
        users = [m for m in model.modules() if not type(m).__module__.startswith("torch.")]
        inside = [v for m in users for v in vars(m).values() if isinstance(v, functions)]
        return [model, *(network for f in inside for network in networks_in(f, depth - 1))]
    if depth < 0:
        return []
    if isinstance(model, list | tuple | Mapping):
        inside = list(model.values() if isinstance(model, Mapping) else model) if len(model) <= _MEMBERS else []
    elif isinstance(model, partial):
        inside = [model.func, *model.args, *model.keywords.values()]
    elif isinstance(model, MethodType):
        inside = [model.__self__, model.__func__]
    elif isinstance(model, FunctionType):
        used = inspect.getclosurevars(model)
        inside = [*used.nonlocals.values(), *used.globals.values(), *(model.__defaults__ or ())]
    elif callable(model) and not isinstance(model, type):
        inside = list(getattr(model, "__dict__", {}).values())
    return [network for part in inside for network in networks_in(part, depth - 1)]


def _open_to_change(network: nn.Module) -> list[nn.Module]:
    """The modules of a network that may be altered for a while."""
    modules = list(network.modules())
    compiled = (isinstance(m, torch.jit.ScriptModule) or m._compiled_call_impl is not None for m in modules)
    if any(compiled) or any("_orig_mod" in m._modules for m in modules):
        return []  # it would be compiled once more
    unused: list[nn.Module | None] = [getattr(m, "redlab_unused", lambda: None)() for m in modules]
    idle = {part for network in unused if network is not None for part in network.modules()}
    return [m for m in modules if m not in idle and m not in _AS_THEY_ARE]


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether this is float32 on the CPU, and a tensor of no special kind."""
    return (
        tensor is not None
        and type(tensor) in (Tensor, nn.Parameter)
        and (tensor.dtype, tensor.device.type, tensor.layout) == (torch.float32, "cpu", torch.strided)
        and not tensor.is_inference()
    )


def _can_turn(convolution: nn.Module) -> bool:
    weight = convolution._parameters.get("weight")  # computed from others by weight_norm, and not there then
    return weight is not None and _is_plain(weight) and weight.stride(1) != 1


@contextmanager
def _channels_last(convolutions: Sequence[nn.Module]) -> Iterator[None]:
    weights = list({id(w): w for m in convolutions if (w := m._parameters["weight"]) is not None}.values())
    before = [w.data for w in weights]
    try:
        with torch.inference_mode(False):  # or the data could take part in no gradient
            for w in weights:
                # Not contiguous(), which leaves weights of one channel as they are, and the images go there first.
                w.data = torch.empty_like(w.data, memory_format=torch.channels_last).copy_(w.data)
        yield
    finally:
        for w, data in zip(weights, before, strict=True):
            w.data = data


def _is_affine(norm: nn.BatchNorm2d) -> bool:
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return "forward" not in vars(norm) and all(_is_plain(t) for t in tensors)


@contextmanager
def _in_one_step(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    try:
        for norm in norms:
            norm.forward = partial(_multiply_and_add, norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _multiply_and_add(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm in eval mode; its own backward pass would sum over all pixels for gradients that nobody wants."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training or x.ndim != 4 or x.dtype != torch.float32 or mean is None or var is None:
        return nn.BatchNorm2d.forward(norm, x)
    factor = (var + norm.eps).rsqrt() * norm.weight
    return torch.addcmul((norm.bias - mean * factor)[:, None, None], x, factor[:, None, None])


@contextmanager
def _folded(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks whose own ``forward`` is replaced: who calls their layers one by one meets these as they are."""
    try:
        for block in blocks:
            block.forward = partial(_FOLDED[type(block)], block)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _sequence(block: nn.Sequential, x: Tensor) -> Tensor:
    layers = list(block)
    while layers:
        layer = layers.pop(0)
        x = _both(layer, layers.pop(0), x) if layers and type(layers[0]) is nn.BatchNorm2d else layer(x)
    return x


def _basic_block(block: BasicBlock, x: Tensor) -> Tensor:
    out = block.relu(_both(block.conv1, block.bn1, x))
    out = _both(block.conv2, block.bn2, out)
    out += x if block.downsample is None else block.downsample(x)
    return block.relu(out)  # type: ignore[no-any-return]


def _bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    out = block.relu(_both(block.conv1, block.bn1, x))
    out = block.relu(_both(block.conv2, block.bn2, out))
    out = _both(block.conv3, block.bn3, out)
    out += x if block.downsample is None else block.downsample(x)
    return block.relu(out)  # type: ignore[no-any-return]


def _basic_conv(block: BasicConv2d, x: Tensor) -> Tensor:
    return nn.functional.relu(_both(block.conv, block.bn, x), inplace=True)


_FOLDED: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Sequential: _sequence,
    BasicBlock: _basic_block,
    Bottleneck: _bottleneck,
    BasicConv2d: _basic_conv,
}
"""What their ``forward`` does, with each convolution and the BatchNorm after it in one."""


def _both(convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(convolution(x))``: in one convolution, unless somebody looks at what is in between, or either is other."""
    if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _foldable(convolution, norm, x):
        mean, var, bias = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var), convolution.bias
        factor = (var + norm.eps).rsqrt() * norm.weight
        summand = norm.bias - (mean if bias is None else mean - bias) * factor
        weight = convolution.weight * factor[:, None, None, None]
        return cast(Tensor, convolution._conv_forward(x, weight, summand))
    return cast(Tensor, norm(convolution(x)))


def _foldable(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> bool:
    usual = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and not norm.training
    weights = [convolution._parameters.get("weight"), norm.running_mean, norm.running_var, norm.weight, norm.bias]
    weights += [] if convolution.bias is None else [convolution.bias]
    plain = x.ndim == 4 and x.dtype == torch.float32 and all(map(_is_plain, weights))
    return usual and plain and _unwatched(convolution) and _unwatched(norm)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _unwatched(layer: nn.Module) -> bool:
    """Whether nobody sees what goes into a layer or comes out of it."""
    own = vars(layer).get("forward")  # that of `_in_one_step` is ours
    ours = own is None or (isinstance(own, partial) and own.func is _multiply_and_add)
    return ours and not any(vars(layer)[hooks] for hooks in _HOOKS)
