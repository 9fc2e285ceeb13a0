"""The one place through which optional packages are imported."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(package: str, extra: str, alone: str | None = None) -> ModuleType:
    """Imports an optional package.

    Args:
        package: dotted name of the module.
        extra: the extra of redlab that brings it, or what it needs.
        alone: name of a distribution that the extra cannot bring, since its own dependencies cannot be met.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        command = f"pip install 'redlab[{extra}]'" + (f" && pip install --no-deps {alone}" if alone else "")
        raise ImportError(f"this needs the package {package}: {command}") from error
