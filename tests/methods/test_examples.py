"""The pairs that a test keeps for the eye: successes and failures, the same whoever looks."""

from collections import Counter

import torch

from redlab.methods.examples import PER_KIND, Examples


def look(batch, right, cell=0, size=None, parts=1):
    """What is kept of a batch that arrives in pieces of some size, dealt to some processes."""
    order = torch.arange(len(batch))
    processes = []
    for mine in order.chunk(parts):
        examples = Examples(cell)
        for rows in mine.split(size or len(batch)):
            columns = dict(zip(("right_clean", "right_attacked", "right"), right[:, rows].double(), strict=True))
            examples.add(batch[rows], columns | {"restored": batch.adv[rows] / 2})
        processes.append(examples)
    whole = Examples(cell)
    whole.join(processes)
    return whole.pairs()


def answers(n, failures):
    """Every attack succeeds; restoring fails for some rows."""
    right = torch.ones(3, n, dtype=torch.bool)
    right[1] = False
    right[2, failures] = False
    return right


def test_successes_and_failures_are_kept_wherever_they_are(pairs):
    batch = pairs(n=200)  # every other one is clean
    right = answers(200, [151, 189, 199])
    right[1, [11, 13, 15]] = True  # attacks that did not succeed
    ((kept, said),) = look(batch, right, size=16)
    rows = kept.index.new_tensor([(batch.adv == image).flatten(1).all(1).nonzero().item() for image in kept.adv])
    assert torch.equal(said["restored"], kept.adv / 2)
    assert all(row % 2 for row in rows.tolist())
    kinds = [2 if right[1, row] else 0 if right[2, row] else 1 for row in rows.tolist()]
    assert kinds == [0, 1, 2] * PER_KIND  # in turn, so that a few of them show all kinds


def test_the_same_for_any_batch_size_and_number_of_processes(pairs):
    batch = pairs(n=101)
    batch.index.copy_(torch.randperm(101, generator=torch.Generator().manual_seed(3)))
    right = torch.rand(3, 101, generator=torch.Generator().manual_seed(4)) > 0.4
    ((wanted, _),) = look(batch, right)
    for size, parts in ((1, 1), (7, 1), (16, 2), (5, 3)):
        ((kept, _),) = look(batch, right, size=size, parts=parts)
        assert torch.equal(kept.index, wanted.index), (size, parts)
        assert torch.equal(kept.adv, wanted.adv)


def test_cells_differ_in_their_images(pairs):
    batch = pairs(n=400)
    batch.index.copy_(torch.arange(400))
    found = Counter()
    for cell in range(24):
        ((kept, _),) = look(batch, answers(400, range(0, 400, 5)), cell=cell)
        found.update(kept.index.tolist())
    assert len(found) > 60  # of 24 * 4; the first rows of each cell would be the same 4


def test_clean_rows_and_attackers_who_know_are_not_examples(pairs):
    batch = pairs(n=8)
    batch.knowledge.copy_(batch.attack)
    assert look(batch, answers(8, [1])) == []
