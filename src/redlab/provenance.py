"""Where a result comes from: the version of the source and of what it runs on."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from redlab import __version__

_PACKAGES = ("lightning", "torchmetrics", "torchvision")


def commit() -> str | None:
    """Short hash of the checkout that this package lies in, with "-dirty" if changed; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python, redlab, torch and the packages that training and metrics stand on."""
    found = {"python": platform.python_version(), "redlab": __version__, "torch": str(torch.__version__)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # imported from a folder
            found[package] = "unknown"
    return found


def device(accelerator: str = "auto") -> str:
    """What a trainer with this accelerator runs on: the name of the GPU, or "CPU"."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else "CPU"


@functools.cache
def source() -> str:
    """A hash of the source on which the rows of an evaluation depend: commands, studies and reports are left out."""
    root = Path(__file__).parent
    files = sorted(
        path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in ("runs", "studies", "report")
    )
    content = b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()
