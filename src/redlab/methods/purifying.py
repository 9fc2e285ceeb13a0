"""What methods that rebuild an image share: which image each attacked one is to become."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redlab.batch import AttackBatch


def target_id(target: str, attack_names: Sequence[str]) -> int:
    """The id of the images that all others are to become: the clean ones, or those of an attack.

    Raises:
        ValueError: there is no such attack.
    """
    if target not in attack_names:
        raise ValueError(f"target must be one of {list(attack_names)}, got {target!r}")
    return list(attack_names).index(target)


def with_targets(batch: AttackBatch, target: int) -> tuple[AttackBatch, Tensor]:
    """The valid images of a batch, and the image (N, C, H, W) that each is to become.

    With an attack as the target these are the ones that it made of the same images, as a mix with ``deal=all`` has them
    side by side; images without one are left out, unless nobody has one.

    Args:
        batch: N pairs.
        target: id of the attack; 0 means the clean images.

    Raises:
        ValueError: the attack is on none of the images.
    """
    batch = batch.valid_rows()
    if target == 0:
        return batch, batch.clean
    made = batch[batch.attack == target]
    if not len(made):
        raise ValueError("no image of the batch is under the attack that is the target: use a mix with deal=all")
    index, order = made.index.sort()
    place = torch.searchsorted(index, batch.index).clamp(max=len(index) - 1)
    found = index[place] == batch.index
    return batch[found], made.adv[order[place[found]]]
