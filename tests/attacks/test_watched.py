"""Whoever listens hears how far long work has come; nobody's images change for it."""

import pytest
import torch
from torch import nn

from redlab import attacks
from redlab.attacks.watched import listening, share, where
from redlab.crafting import AttackMix, Component


@pytest.fixture
def net():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)).eval().requires_grad_(False)
    network[-1].weight.mul_(20)  # so that images differ in their class
    return network


def heard(work):
    """What a listener is told, as text and as the share that is done, and what the work gives."""
    told = []
    with listening(lambda levels: told.append((where(levels), share(levels) if levels else None)), every=0):
        found = work()
    return told, found


LONG = {
    "pgd": (attacks.PGD(eps=0.1, steps=5), "step 3/5"),
    "apgd": (attacks.APGD(eps=0.1, steps=5), "step 3/5"),
    "cw_l2": (attacks.CarliniWagnerL2(steps=4, binary_search_steps=2), "search for c 2/2 · step 1/5"),
    "cw_linf": (attacks.CarliniWagnerLinf(steps=4), "step 3/5"),
    "ddn": (attacks.DDN(steps=4), "step 3/5"),
    "deepfool": (attacks.DeepFool(steps=4), "step 1/5"),
    "fab": (attacks.FAB(steps=3), "step 2/3"),
    "square": (attacks.Square(eps=1e-4, queries=6), "query 3/6"),
    "boundary": (attacks.Boundary(steps=6), "step 3/6"),
    "local_search": (attacks.LocalSearch(steps=3), "round 1/3"),
    "spatial": (attacks.SpatialTransform(steps=4), "step 1/4"),
    "wasserstein": (attacks.WassersteinPGD(eps=1e-3, steps=3), "step 2/3"),
    "autoattack": (attacks.AutoAttack(eps=1e-4, steps=3, queries=4), "apgd-ce 1/8 · step 2/3"),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_attack_says_where_it_is(net, name):
    attack, says = LONG[name]
    x, y = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    y = net(x).argmax(1)
    plain = attack(net, x, y)
    told, found = heard(lambda: attack(net, x, y))
    assert torch.equal(found, plain)
    texts = [text for text, _ in told]
    assert says in texts, texts[:20]
    shares = [value for _, value in told if value is not None]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.5
    assert shares[-1] <= 1


def test_a_batch_says_which_attack_of_which_model(net):
    mix = AttackMix(
        {name: Component(attack=attacks.DDN(steps=3), victims=None) for name in ("first", "second")}, deal="all"
    )
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    plan = mix.plan(torch.arange(4), torch.arange(4), stage="train", epoch=0, victim_names=["a", "b"])
    told, _ = heard(lambda: mix.craft({"a": net, "b": net}, x, y, plan))
    texts = [text for text, _ in told]
    assert "on a 1/2 · first 1/2 · step 2/4" in texts
    assert "on b 2/2 · second 2/2 · step 4/4" in texts
    assert texts[-1] == ""  # it is over


def test_what_ends_early_leaves_nothing_behind(net):
    def fails(images):
        raise RuntimeError("no memory")

    def work():
        with pytest.raises(RuntimeError, match="no memory"):
            attacks.PGD(eps=0.1, steps=5)(Broken(fails), *_some())

    told, _ = heard(work)
    assert told[-1] == ("", None)
    told, _ = heard(lambda: attacks.PGD(eps=0.1, steps=2)(net, *_some()))
    assert told[0] == ("step 1/2", 0.0)


class Broken(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def _some():
    return torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
