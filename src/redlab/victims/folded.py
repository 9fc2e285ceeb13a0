"""A frozen network computed in less time: BatchNorm folded into the convolutions, weights laid out channels last."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

TRACEABLE = ("torch.nn.", "torchvision.", "timm.", "redlab.")
"""Where the classes of a network with a twin come from."""


class Folded:
    """A frozen network and its faster twin, which gives the same logits up to rounding.

    The twin is made when it is first wanted, and again after a module or a tensor of the network was replaced, moved or
    changed (by autograd's count of changes; those made in place through ``.data`` escape it, and so does a plain
    attribute such as a stride). It costs the memory of a second set of weights. Only networks of
    ``redlab.victims.architectures`` have one, as long as all their parts are library code: to find the BatchNorms the
    network is traced, and tracing somebody's own code would fix for good what it draws or decides anew in each pass.
    While a module of the network has a hook or a ``forward`` of its own there is no twin either, or it would not be
    called.

    Args:
        network: frozen and in eval mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._known = hasattr(network, "redlab_arch")
        self._modules: list[nn.Module] = []
        self._tensors: list[torch.Tensor] = []  # held, so that no address is given away again
        self._made_of: list[int] | None = None
        self._twin = network

    def __getstate__(self) -> dict[str, nn.Module]:
        """A copy makes its own twin."""
        return {"network": self.network}

    def __setstate__(self, state: dict[str, nn.Module]) -> None:
        """See ``__getstate__``."""
        self.__init__(state["network"])  # type: ignore[misc]

    def fastest(self) -> nn.Module:
        """The twin where there can be one, otherwise the network itself."""
        if not self._known:
            return self.network
        if self._made_of is None or self._made_of != self._state():
            self._modules = list(self.network.modules())
            self._tensors = [t.detach() for t in (*self.network.parameters(), *self.network.buffers())]
            self._made_of = self._state()
            library = all(type(m).__module__.startswith(TRACEABLE) for m in self._modules)
            self._twin = _fold(self.network) if library else self.network
        for m in self._modules:
            if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
                return self.network
            if "forward" in m.__dict__:
                return self.network
        return self._twin

    def _state(self) -> list[int]:
        """Which modules and tensors the network consists of, where their numbers lie, and how often those changed."""
        state = []
        for m in self._modules:
            state += [id(child) for child in m._modules.values()]
            for tensors in (m._parameters, m._buffers):
                for t in tensors.values():
                    if t is not None:
                        state += (id(t), t.data_ptr(), 0 if t.is_inference() else t._version)
        return state


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
