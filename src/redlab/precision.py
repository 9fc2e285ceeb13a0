"""Full float32, where an answer must not depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast off, and TF32 off in cuDNN, where torch has it on by default; both are put back afterwards.

    TF32 keeps 10 bits of a float32's 23, and the last of them differ by batch. Of 400 images that DeepFool had made so
    that a ResNet-20 is just wrong, 12 to 16 were right again in batches of 1, 7 or 50 (H200, torch 2.11), and none
    without TF32. What the user asked of matrix products (``torch.set_float32_matmul_precision``) stays.
    """
    conv = torch.backends.cudnn.allow_tf32
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = conv
