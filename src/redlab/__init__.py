"""redlab: reverse engineering and repair of adversarial images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redlab import attacks, data, methods, metrics, studies, victims
    from redlab.crafting import AttackMix, Component
    from redlab.notebook import evaluate
    from redlab.runs.examiners import diagnose
    from redlab.runs.loading import load
    from redlab.runs.pretrained import save_pretrained

__version__ = "0.1.0"
__all__ = [
    "AttackMix",
    "Component",
    "__version__",
    "attacks",
    "data",
    "diagnose",
    "evaluate",
    "load",
    "methods",
    "metrics",
    "save_pretrained",
    "studies",
    "victims",
]

_FROM = {"AttackMix": "redlab.crafting", "Component": "redlab.crafting"}
_FROM |= {"evaluate": "redlab.notebook", "load": "redlab.runs.loading"}
_FROM |= {"diagnose": "redlab.runs.examiners", "save_pretrained": "redlab.runs.pretrained"}


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and `import redlab.attacks` should not wait for it.
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    if name in __all__:
        return importlib.import_module(f"redlab.{name}")
    raise AttributeError(f"module 'redlab' has no attribute {name!r}")
