"""What each rank has to craft, by the costs of REDRL's attacks: over an epoch the same, whatever the world size."""

import pytest
import torch

from redlab.runs.build import make_mix
from redlab.runs.config import compose, finalise

# CPU seconds for an image on a ResNet-20, measured when the scales of REDRL's studies were chosen; clean costs a pass
SECONDS = {"clean": 0.02, "pgd": 0.35, "deepfool": 0.16, "cw_l2": 1.6, "cw_linf": 0.42, "patch": 0.30}
SLOWER = 1.6  # a ResNet-32 by its layers


def costs(world, images, steps, seed=0):
    """(steps, world) seconds that each rank crafts in each step, ``images`` on each rank."""
    words = ["data=cifar10", "method=redrl", "mix=redrl_32", "victim=[resnet20,resnet32]", f"seed={seed}"]
    mix = make_mix(finalise(compose(words)))
    position = torch.arange(world * images * steps)
    index = torch.randperm(len(position), generator=torch.Generator().manual_seed(seed))
    plan = mix.plan(index, position, stage="train", epoch=0, victim_names=["resnet20", "resnet32"])
    seconds = torch.tensor([SECONDS[name] for name in mix.names])[plan.attack] * torch.tensor([1, SLOWER])[plan.victim]
    return seconds.view(steps, world, images).sum(2)


@pytest.mark.parametrize(("world", "steps"), [(2, 96), (8, 24), (64, 12), (1024, 3)])
@pytest.mark.parametrize("images", [16, 64])
def test_ranks_craft_equally_long_over_an_epoch(world, steps, images):
    total = costs(world, images, steps).sum(0)
    assert total.max() / total.mean() <= 1.05


@pytest.mark.parametrize("world", [2, 8, 64])
def test_in_each_step_they_do_where_the_images_of_a_rank_are_whole_tables(world):
    table = 12  # six attacks on two victims
    each = costs(world, 5 * table, steps=4)
    torch.testing.assert_close(each, each.mean().expand_as(each))


def test_in_a_step_of_a_usual_batch_nobody_waits_long():
    each = costs(8, 128, steps=12)
    assert (each.max(1).values / each.mean(1)).max() <= 1.05
