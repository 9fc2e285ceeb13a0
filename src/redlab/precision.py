"""Full float32, where an answer must not depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.backends import cudnn


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast off, and TF32 off in cuDNN, where torch has it on by default; both are put back afterwards.

    TF32 keeps 10 bits of a float32's 23, and the last of them differ by batch. Of 400 images that DeepFool had made so
    that a ResNet-20 is just wrong, 12 to 16 were right again in batches of 1, 7 or 50 (H200, torch 2.11), and none
    without TF32. What the user asked of matrix products (``torch.set_float32_matmul_precision``) stays.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_without_tf32())
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    # From torch 2.9 on each kind of layer has its own switch. The old one is set as well, for torch refuses to read it
    # where they disagree, and it is not read here, since the user's may disagree.
    kinds: list[Any] = [getattr(cudnn, name) for name in ("conv", "rnn") if hasattr(cudnn, name)]
    before = [kind.fp32_precision for kind in kinds]
    allowed = set(before) == {"tf32"} if kinds else cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        cudnn.allow_tf32 = allowed
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision
