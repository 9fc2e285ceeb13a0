"""Where a result comes from: the version of the source and of what it runs on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from redlab import __version__


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
    """Versions of redlab and torch."""
    return {"redlab": __version__, "torch": str(torch.__version__)}
