"""What attacks and components are, as plain values: for identities, which must not change from run to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor


def described(value: Any) -> Any:
    """The value as nested dicts, lists, numbers and texts, equal for equal values in any process.

    A dataclass is told by its class and fields, a tensor by its content, a function by its name, any other object by
    its ``describe()``.

    >>> from redlab.attacks import FGSM
    >>> described({"fgsm": FGSM(eps=0.1)})
    {'fgsm': {'is': 'redlab.attacks.fgsm.FGSM', 'eps': 0.1}}

    Raises:
        ValueError: an object that cannot be told.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous()
        digest = hashlib.sha256(repr((content.dtype, tuple(content.shape))).encode() + content.numpy().tobytes())
        return {"is": "tensor", "sha256": digest.hexdigest()}
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if callable(tell := getattr(value, "describe", None)):
        return {"is": name} | described(tell())
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": name} | {f.name: described(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, partial):
        return {"is": "partial", "of": described(value.func), "with": described([value.args, value.keywords])}
    if callable(value) and "<locals>" not in (qualified := getattr(value, "__qualname__", "<locals>")):
        return f"{value.__module__}.{qualified}"
    raise ValueError(f"{value!r} cannot be told in plain values: give it a describe()")
