"""A victim that is trained on: what it starts from, what it sees, and what randomised smoothing is sure of."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from conftest import make_pairs, make_victim
from redlab.batch import capabilities
from redlab.methods import ADDDefense, Hardened, RestoredClassifier
from redlab.methods.hardened import trainable
from redlab.metrics import lower_bound
from redlab.victims import Victim

ADAM = partial(torch.optim.Adam, lr=1e-3)


def hardened(first=None, **options):
    torch.manual_seed(0)
    victims = {"a": make_victim(0) if first is None else first, "b": make_victim(1)}
    return Hardened(victims=victims, optimizer=ADAM, **options)


class Halves(nn.Module):
    """Class 1 where the first pixel is above a half; certain."""

    def forward(self, x):
        lead = 100 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-lead, lead], 1)


def test_it_starts_as_a_copy_that_can_be_trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    victim = Victim(net, num_classes=4, mean=[0.3], std=[0.5])
    method, x = hardened(victim).eval(), torch.rand(3, 1, 8, 8)
    assert torch.allclose(method(x), victim(x), atol=1e-5)
    mine, theirs = dict(method.net.named_parameters()), dict(victim.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(p.requires_grad and p.data_ptr() != theirs[name].data_ptr() for name, p in mine.items())
    assert not any(p.requires_grad for p in victim.parameters())
    assert trainable(victim).training
    fresh = hardened(victim, fresh=True).eval()
    assert not torch.allclose(fresh(x), victim(x), atol=1e-2)


def test_another_victim_can_be_copied():
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(hardened().eval()(x), make_victim(0)(x), atol=1e-5)
    assert torch.allclose(hardened(victim="b").eval()(x), make_victim(1)(x), atol=1e-5)


def seen(method):
    """The images that a training step shows to the network."""
    shown = []
    method.log = lambda *_, **__: None
    method.net.register_forward_pre_hook(lambda _, args: shown.append(args[0].detach()))
    method.training_step(make_pairs(), 0)
    return shown[0]


def test_training_sees_attacked_images_or_clean_ones_with_noise():
    batch = make_pairs()
    assert torch.equal(seen(hardened()), batch.adv)
    noisy = [seen(hardened(noise=0.25, seed=s)) for s in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    assert float((noisy[0] - batch.clean).std()) == pytest.approx(0.25, rel=0.2)


def test_answers_with_noise_are_mean_probabilities_and_can_be_repeated():
    method, x = hardened(noise=0.1, draws=7).eval(), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        noises = list(method._noises(x, 7, "answer"))
        by_hand = torch.stack([method(x + noise).softmax(1) for noise in noises]).mean(0)
        assert torch.allclose(method.class_logits(x).exp(), by_hand, atol=1e-6)
        assert torch.equal(method.class_logits(x), method.class_logits(x))
        alone = torch.cat([method.class_logits(x[i : i + 1]) for i in range(3)])
        assert torch.allclose(alone, method.class_logits(x), atol=1e-5)


@pytest.mark.parametrize(("hits", "draws", "alpha"), [(990, 1000, 0.001), (60, 100, 0.05), (1, 10, 0.01)])
def test_the_bound_is_where_so_many_hits_have_probability_alpha(hits, draws, alpha):
    """By its definition, from the binomial distribution itself."""
    p = float(lower_bound(torch.tensor([hits]), draws, alpha))

    def log_term(i):
        ways = math.lgamma(draws + 1) - math.lgamma(i + 1) - math.lgamma(draws - i + 1)
        return ways + i * math.log(p) + (draws - i) * math.log1p(-p)

    assert sum(math.exp(log_term(i)) for i in range(hits, draws + 1)) == pytest.approx(alpha, rel=1e-6)


def test_no_hit_bounds_nothing():
    assert lower_bound(torch.tensor([0, 10]), 10, 0.05).tolist() == pytest.approx([0.0, 0.05**0.1])


def test_the_certificate_of_a_half_space_is_its_distance():
    """Of a linear classifier the smoothed one is right within exactly the distance to the boundary (Cohen et al.)."""
    method = hardened(Victim(Halves(), num_classes=2), noise=0.5).eval()
    x = torch.full((3, 1, 4, 4), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.5 + 0.4, 0.5 - 0.7, 0.5])
    found = method.certify(x, draws=20000, select=200)
    assert found.label.tolist() == [1, 0, -1]
    assert found.radius.tolist() == pytest.approx([0.4, 0.7, 0.0], abs=0.04)
    assert (found.radius[:2] < torch.tensor([0.4, 0.7])).all()  # it promises no more than is true


def test_what_certify_refuses():
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="only a classifier with noise"):
        hardened().certify(x)
    for wrong in ({"draws": 0}, {"select": 0}, {"alpha": 0}, {"alpha": 1}):
        with pytest.raises(ValueError, match="draws, select and alpha"):
            hardened(noise=0.1).certify(x, **wrong)


def test_a_restored_classifier_answers_for_what_add_defense_restores():
    torch.manual_seed(3)
    players = dict.fromkeys(("perturbation", "image", "restorer"), ADAM)
    sizes = {"channels": 1, "image_size": 8, "width_divisor": 32}
    defence = ADDDefense(attack_names=["clean"], num_classes=4, optimizer=players, **sizes).eval()
    method = RestoredClassifier(victims={"a": make_victim(0)}, optimizer=ADAM, **sizes).eval()
    theirs = {k: v for k, v in defence.state_dict().items() if k.startswith(("encoder", "decoder"))}
    assert not method.load_state_dict(theirs, strict=False).unexpected_keys
    x = torch.rand(3, 1, 8, 8)
    assert torch.allclose(method.class_logits(x), make_victim(0)(defence.restore(x)), atol=1e-5)
    trained = {n.split(".")[0] for n, p in method.named_parameters() if p.requires_grad}
    assert trained == {"net"}
    assert capabilities(method) == {"labeler"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, "noise must be finite and not negative, got -0.1"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"victim": "c"}, r"victim must be one of \['a', 'b'\], got 'c'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hardened(**options)
