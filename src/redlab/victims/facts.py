"""What is known of an architecture and stands with it: how it is built, where its features are, its images."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

from torch import nn

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What holds for a network wherever a victim does not say otherwise.

    Attributes:
        feature_layer: dotted name of the module whose output are its features; declared as None, it is where the last
            convolution ends, see `architecture`.
        smallest: side in pixels of the smallest images that it takes; smaller ones are padded.
        mean: what it is used to having subtracted, per channel or one number; None is 0.
        std: what it is used to being divided by, likewise; None is 1.
    """

    feature_layer: str | None = None
    smallest: int = 1
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None


IMAGENET = Facts(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of networks that are used to photographs in colour, normalised as torchvision does it."""


def architecture(
    facts: Facts | Callable[..., Facts] = Facts(),
) -> Callable[[Callable[P, nn.Module]], Callable[P, nn.Module]]:
    """Declares a function that builds a network, and what is known of all that it builds.

    The network notes how it was built (``redlab_arch``), so that a checkpoint can say how to build it again, and the
    facts (``redlab_facts``), which ``ImageClassifier`` goes by.

    Args:
        facts: or a function of the arguments by name that gives them. Without a ``feature_layer`` it is the outermost
            module, of those inside ``features`` if there is such a part, that the last convolution stands in.
    """

    def declare(build: Callable[P, nn.Module]) -> Callable[P, nn.Module]:
        signature = inspect.signature(build)

        @functools.wraps(build)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
            module = build(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = dict(bound.arguments)
            given.update(given.pop("more", {}))
            # Lists of a configuration library become plain ones, which weights_only loading accepts.
            plain = {k: v if isinstance(v, str) or not isinstance(v, Sequence) else list(v) for k, v in given.items()}
            known = declared(wrapper, plain)
            if known.feature_layer is None:
                known = replace(known, feature_layer=_last_stage(module))
            vars(module).update(redlab_arch={"name": build.__name__, "kwargs": plain}, redlab_facts=known)
            return module

        vars(wrapper)["redlab_facts"] = facts
        return wrapper

    return declare


def declared(build: Callable[..., Any], arguments: Mapping[str, Any]) -> Facts:
    """What is known of the networks that a function builds from these arguments, before one is built."""
    facts: Facts | Callable[..., Facts] = getattr(build, "redlab_facts", Facts())
    return facts if isinstance(facts, Facts) else facts(**arguments)


def facts_of(network: nn.Module) -> Facts:
    """What is known of a network; of anybody's own module, nothing."""
    facts: Facts = getattr(network, "redlab_facts", Facts())
    return facts


def _last_stage(network: nn.Module) -> str | None:
    modules = dict(network.named_modules())
    auxiliary = ("aux", "Aux")
    convolutions = [n for n, m in modules.items() if isinstance(m, nn.Conv2d) and not n.startswith(auxiliary)]
    linear = sum(isinstance(m, nn.Linear) for m in modules.values())
    if not convolutions or (len(convolutions) == 1 and linear > 1):  # of a transformer, which only cuts the image up
        return None
    first, *inner = convolutions[-1].split(".")
    return ".".join([first, *inner[: first == "features"]])
