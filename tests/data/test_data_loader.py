import copy

import pytest
import torch

from redlab.data.loader import EpochLoader, EpochSampler
from redlab.data.sources import TensorSource
from redlab.rng import generator

ROWS = torch.arange(100, 123)  # 23 samples, whose identities are not their places


def visit(world_size, batch_size, seed=None, epoch=0):
    """The global batches: for each step, the keys of all ranks one after another."""
    ranks = []
    for rank in range(world_size):
        sampler = EpochSampler(ROWS, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        sampler.epoch = epoch
        batches = list(sampler)
        assert len(batches) == len(sampler)
        ranks.append(batches)
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        assert len({len(part) for part in step}) == 1  # equal cost on every rank
    return [[key for part in step for key in part] for step in zip(*ranks, strict=True)]


LAYOUTS = [(1, 1), (1, 7), (1, 64), (2, 1), (2, 3), (3, 4), (4, 2), (5, 5), (7, 2)]


@pytest.mark.parametrize(("world_size", "batch_size"), LAYOUTS)
def test_evaluation_visits_every_sample_once_in_order(world_size, batch_size):
    keys = [key for step in visit(world_size, batch_size) for key in step]
    assert [key.index for key in keys if key.valid] == ROWS.tolist()
    assert [key.position for key in keys] == list(range(len(keys)))
    pads = [key for key in keys if not key.valid]
    assert len(pads) == -23 % world_size  # no more than needed
    assert all(key.index in ROWS for key in pads)


@pytest.mark.parametrize(("world_size", "batch_size"), [layout for layout in LAYOUTS if layout[0] * layout[1] <= 23])
def test_training_order_depends_on_seed_and_epoch_alone(world_size, batch_size):
    whole = [key.index for step in visit(1, 1, seed=3, epoch=2) for key in step]
    assert sorted(whole) == ROWS.tolist()
    steps = visit(world_size, batch_size, seed=3, epoch=2)
    assert {len(step) for step in steps} == {world_size * batch_size}
    keys = [key for step in steps for key in step]
    assert [key.index for key in keys] == whole[: len(keys)]
    assert [key.position for key in keys] == list(range(len(keys)))
    assert len(keys) == 23 // (world_size * batch_size) * world_size * batch_size  # the incomplete batch is left out
    assert all(key.valid for key in keys)


def test_orders_differ_between_seeds_and_epochs():
    orders = {tuple(visit(1, 23, seed=s, epoch=e)[0]) for s in (0, 1) for e in (0, 1, 2)}
    assert len(orders) == 6
    torch.manual_seed(9)
    assert tuple(visit(1, 23, seed=0, epoch=0)[0]) in orders  # nothing global comes into it


def test_streams_have_their_own_numbers():
    names = [("order", 0, 1), ("order", 1, 0), ("order", 0), ("split", 0), ("order", 0, "1")]
    assert len({int(torch.randint(2**62, (), generator=generator(*name))) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 24, "seed": 0}, "23 samples are not enough for one batch of 24"),
        ({"batch_size": 12, "seed": 0, "world_size": 2}, "23 samples are not enough for one batch of 24"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, r"rank must be in 0\.\.1, got 2"),
    ],
)
def test_sampler_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(ROWS, **arguments)


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 samples are not enough"):
        EpochSampler(ROWS[:0], batch_size=1)


# resuming ------------------------------------------------------------------------------------------------------------


def loader(num_workers=0, rank=0, world_size=1):
    images = torch.arange(130, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    source = TensorSource(images, torch.arange(130) % 10, "0123456789")
    sampler = EpochSampler(ROWS, batch_size=4, seed=5, rank=rank, world_size=world_size)
    return EpochLoader(source, sampler, num_workers=num_workers)


def epoch(loader, number):
    loader.set_epoch(number)
    return [tuple(batch.index.tolist()) for batch in loader]


@pytest.mark.parametrize(("num_workers", "rank"), [(0, 0), (2, 0), (0, 1)])
def test_resumes_with_the_next_batch(num_workers, rank):
    world_size = 1 + rank
    plain = [epoch(loader(rank=rank, world_size=world_size), e) for e in range(3)]
    for stop in range(1, len(plain[1])):
        first = loader(num_workers if stop == 2 else 0, rank, world_size)
        assert epoch(first, 0) == plain[0]
        first.set_epoch(1)
        batches = iter(first)
        seen = [tuple(next(batches).index.tolist()) for _ in range(stop)]
        state = copy.deepcopy(first.state_dict())
        batches.close()

        second = loader(num_workers if stop == 2 else 0, rank, world_size)
        second.load_state_dict(state)
        assert second.state_dict() == state  # a run that is stopped again before its first batch loses nothing
        assert len(second) == len(plain[1])  # progress is counted in whole epochs
        assert seen + epoch(second, 1) == plain[1]
        assert epoch(second, 2) == plain[2]  # the offset was for one epoch only


def test_state_of_another_epoch_is_not_used():
    first, second = loader(), loader()
    whole = epoch(first, 1)
    second.load_state_dict({"epoch": 0, "batches": 5})  # saved at the end of epoch 0
    assert epoch(second, 1) == whole


def test_a_broken_off_epoch_can_be_repeated():
    one = loader()
    whole = epoch(one, 0)
    batches = iter(one)
    next(batches)
    batches.close()
    assert epoch(one, 0) == whole


def test_batches_carry_images_and_places():
    one = loader(num_workers=2)
    batches = list(one)
    assert torch.cat([b.position for b in batches]).tolist() == list(range(20))
    for batch in batches:
        assert (batch.image[:, 0, 0, 0].long() == batch.index).all()
        assert (batch.label == batch.index % 10).all()
        assert batch.valid.all()
