"""A frozen network computed in less time: BatchNorm folded into the convolutions, weights laid out channels last."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse


class Folded:
    """A frozen network and its faster twin, which gives the same logits up to rounding.

    The twin is made when it is first wanted, and again after the network has moved or its weights have changed (by
    autograd's count of changes, which those through ``.data`` escape). It costs the memory of a second set of weights.
    Only networks of ``redlab.victims.architectures`` have one: to find the BatchNorms the network is traced, and
    tracing somebody's own code would fix for good what it draws or decides anew in each pass. While a module of the
    network has a hook there is no twin either, or the hook would not be called.

    Args:
        network: frozen and in eval mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._known = hasattr(network, "redlab_arch")
        self._modules = list(network.modules())
        self._tensors: list[torch.Tensor] = []
        self._made_of: tuple[object, ...] | None = None
        self._twin = network

    def fastest(self) -> nn.Module:
        """The twin where there can be one, otherwise the network itself."""
        if not self._known or any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in self._modules
        ):
            return self.network
        if self._made_of is None or self._made_of != self._state():
            self._tensors = [*self.network.parameters(), *self.network.buffers()]
            self._made_of, self._twin = self._state(), _fold(self.network)
        return self._twin

    def _state(self) -> tuple[object, ...]:
        first = self._tensors[0]
        return first.device, first.dtype, sum(t._version for t in self._tensors if not t.is_inference())


def _fold(network: nn.Module) -> nn.Module:
    """A copy with folded BatchNorms; the network itself if it cannot be traced."""
    with torch.inference_mode(False), torch.no_grad():
        try:
            twin: nn.Module = fuse(copy.deepcopy(network))
        except Exception:  # tracing runs the network's own code, which may raise anything
            return network
        if all(p.device.type == "cpu" for p in twin.parameters()):  # measured there only, see docs/attacks.md
            twin = twin.to(memory_format=torch.channels_last)
        return twin.eval().requires_grad_(False)
