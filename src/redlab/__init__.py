"""redlab: reverse engineering and repair of adversarial images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redlab import attacks, victims
    from redlab.runs.checkpoints import load

__version__ = "0.1.0"
__all__ = ["__version__", "attacks", "load", "victims"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and `import redlab.attacks` should not wait for it.
    if name == "load":
        return importlib.import_module("redlab.runs.checkpoints").load
    if name in __all__:
        return importlib.import_module(f"redlab.{name}")
    raise AttributeError(f"module 'redlab' has no attribute {name!r}")
