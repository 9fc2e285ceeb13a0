"""What methods say of images without labels, by hand and by closed form."""

import pytest
import torch
from torch import nn

from redlab.diagnosis import ITSELF, UNKNOWN, Examiner, examine
from redlab.victims import Victim


class Says(nn.Module):
    """A victim of three classes whose logits are the first three pixels of an image."""

    def forward(self, x):
        return x.flatten(1)[:, :3] * 10


class Doubles(nn.Module):
    """A restorer: pixels once more."""

    def restore(self, x):
        return 2 * x

    estimate = restore


class Alarm(nn.Module):
    """A detector: the mean of an image less 0.5; the larger, the more likely attacked."""

    verdict = "mean"

    def adversarial_scores(self, x):
        return {"other": x.flatten(1)[:, 0], "mean": x.mean((1, 2, 3)) - 0.5}


class Names(nn.Module):
    """An identifier: logits are the first three pixels, times 20."""

    attack_names = ("clean", "fgsm", "pgd")

    def attack_logits(self, x):
        return x.flatten(1)[:, :3] * 20


class Labels(nn.Module):
    def class_logits(self, x):
        return torch.zeros(len(x), 3)


def of(method, **victims):
    return Examiner(name="run", method=method, victims=victims or {"net": Says()})


def images(*pixels):
    x = torch.zeros(len(pixels), 1, 2, 2)
    for row, values in enumerate(pixels):
        x[row].view(-1)[: len(values)] = torch.tensor(values)
    return x


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("many", [1, 40, 100, 250])
def test_a_threshold_lets_through_what_it_may_and_is_the_least_that_does(many, share):
    x = torch.rand(many, 1, 3, 3, generator=torch.Generator().manual_seed(many))
    examiner = of(Alarm()).calibrated(x, share, batch_size=7)
    scores = x.mean((1, 2, 3)).double() - 0.5
    above = float((scores > examiner.threshold).double().mean())
    assert above == examiner.false_alarms <= share
    lower = scores[scores < examiner.threshold]
    assert not len(lower) or float((scores > lower.max()).double().mean()) > share
    assert examiner.clean == many
    assert bool((examiner(x).attacked == (scores > examiner.threshold)).all())


def test_ties_are_no_alarms():
    examiner = of(Alarm()).calibrated(torch.full((50, 1, 2, 2), 0.25), 0.1)
    assert examiner.false_alarms == 0
    assert not examiner(torch.full((3, 1, 2, 2), 0.25)).attacked.any()


@pytest.mark.parametrize(("many", "share"), [(0, 0.01), (3, 1.0), (3, -0.1)])
def test_nothing_to_calibrate_by(many, share):
    with pytest.raises(ValueError, match="calibration wants"):
        of(Alarm()).calibrated(torch.rand(many, 1, 2, 2), share)


def test_a_restorer_scores_by_what_the_victims_change_their_minds():
    """Half the L1 distance of probabilities, by hand; of two victims the larger."""

    class Still(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3)

    x = images([0.1, 0.2, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.3])
    found = of(Doubles(), still=Still(), net=Says())(x)
    p, q = (10 * x.flatten(1)[:, :3]).double().softmax(1), (20 * x.flatten(1)[:, :3]).double().softmax(1)
    torch.testing.assert_close(found.score, (p - q).abs().sum(1) / 2, rtol=1e-6, atol=1e-9)
    assert found.scored_by == "change of prediction"
    torch.testing.assert_close(found.restored, (2 * x).clamp(0, 1))
    torch.testing.assert_close(found.after["net"], q, rtol=1e-6, atol=1e-9)
    assert found.probabilities is None
    assert found.attacks == ()


def test_a_method_that_classifies_by_itself_is_compared_with_the_victims():
    x = images([0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    found = of(Labels())(x)
    assert list(found.after) == [ITSELF]
    p = float(torch.tensor([10.0, 0, 0]).double().softmax(0)[0])
    assert found.score.tolist() == pytest.approx([0, p - 1 / 3], abs=1e-12)


def test_the_verdict_decides_and_not_the_first_score():
    found = of(Alarm())(images([1.0, 0, 0, 0], [0.9, 0.9, 0.9, 0.9]))
    assert found.scored_by == "mean"
    assert found.attacked.tolist() == [False, True]


def test_an_identifier_names_the_attack_that_has_more_than_half_of_all_attacks():
    """Logits 20 a pixel: 0.04 apart are a ratio of e^0.8; how likely "clean" is does not matter."""
    found = of(Names())(images([1.0, 0.5, 0.1], [0.0, 0.5, 0.5], [0.0, 0.54, 0.5]))
    share = 1 / (1 + 2.718281828459045**-0.8)
    assert [found.attack(row)[0] for row in range(3)] == ["fgsm", UNKNOWN, "fgsm"]
    assert found.attack(2)[1] == pytest.approx(share, rel=1e-5)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="no identifier"):
        of(Alarm())(images([0.0])).attack(0)


def test_of_several_the_first_that_can_answer_is_heard():
    x = images([0.9, 0.9, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0])
    runs = {"restorer": Doubles(), "detector": Alarm(), "identifier": Names()}
    several = [Examiner(name=name, method=method, victims={"net": Says()}) for name, method in runs.items()]
    said = examine(several, x)
    assert list(said.findings) == list(runs)
    assert said.detecting is said.findings["detector"]  # the restorer's score is not its own
    assert said.identifying is said.findings["identifier"]
    assert said.repairing is said.findings["restorer"]
    assert said.attacked.tolist() == [True, False]
    assert said.attacks == [UNKNOWN, "clean"]
    torch.testing.assert_close(said.perturbation, x - (2 * x).clamp(0, 1))
    alone = examine(several[:1], x)
    assert alone.detecting is alone.findings["restorer"]
    assert set(alone.attacks) <= {"attacked", "clean"}
    detector = examine(several[1:2], x)
    assert detector.restored is None
    assert detector.perturbation is None


def test_where_the_victim_looks():
    """Over the maximum of the map, before and after; nothing of a network without a layer to look at."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    victim = Victim(net, name="net", num_classes=3, feature_layer="0").eval()
    x = torch.rand(3, 1, 4, 4)
    found = of(Doubles(), net=victim)(x, looks=True)
    for maps in (found.looks_before, found.looks_after):
        assert maps.shape == (3, 1, 4, 4)
        assert all(peak == pytest.approx(1) or peak == 0 for peak in maps.amax((1, 2, 3)).tolist())
    assert of(Doubles())(images([0.1]), looks=True).looks_before is None
    assert of(Doubles(), net=victim)(x).looks_before is None


@pytest.mark.parametrize("x", [torch.zeros(1, 2, 2), torch.full((1, 1, 2, 2), 2.0), torch.zeros(1, 1, 2, 2).byte()])
def test_what_is_no_batch_of_images_is_refused(x):
    with pytest.raises(ValueError, match="images must be"):
        of(Alarm())(x)


def test_who_can_do_nothing_is_not_asked():
    with pytest.raises(ValueError, match="none of the capabilities"):
        of(nn.Identity())
