"""`redlab.evaluate`: the rows of any module with a capability, without Hydra and Trainer."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import redlab
from redlab.attacks import FGSM, PGD


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))


class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def restore(self, x):
        return nn.functional.avg_pool2d(self.dropout(x), 3, 1, 1)


class Robust(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(1)

    def forward(self, x):
        return self.net(x)

    class_logits = forward


@pytest.fixture
def images():
    return torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


ATTACKS = {"fgsm": FGSM(eps=0.1), "pgd": redlab.Component(attack=PGD(), settings=[{"eps": 0.05}, {"eps": 0.1}])}


def test_rows_of_a_restorer_are_those_made_by_hand(images):
    victims, blur, (x, y) = {"a": net(2), "b": net(3)}, Blur(), images
    rows = redlab.evaluate(blur, images, attacks=ATTACKS, victims=victims, progress=False)
    assert len(rows) == 10 * 2 * (1 + 1 + 2 + 1)
    assert rows.attacks == ("clean", "fgsm", "pgd", "aware_pgd")
    assert blur.training  # as it was, though it was evaluated without dropout
    for name, victim in victims.items():
        victim.eval()
        adv = FGSM(eps=0.1)(victim, x, y)
        right = victim(blur.eval().restore(adv)).argmax(1) == y
        assert torch.equal(rows.where(attack="fgsm", victim=name)["right"], right.double())
    assert rows.where(attack="pgd", setting="eps=0.05").mean("d_attack") < rows.where(attack="fgsm").mean("d_attack")
    assert rows.where(knowledge="defence").attacks == ("aware_pgd",)
    assert redlab.metrics.worst(rows).mean("right") <= rows.where(attack="pgd").mean("right")


def test_neither_the_batch_nor_the_loader_matters(images):
    given = {"attacks": ATTACKS, "victims": {"a": net(2)}, "progress": False}
    whole = redlab.evaluate(Blur(), images, **given)
    for other in (
        redlab.evaluate(Blur(), images, batch_size=3, **given),
        redlab.evaluate(Blur(), DataLoader(TensorDataset(*images), batch_size=4), **given),
    ):
        assert whole.columns.keys() == other.columns.keys()
        for column in whole.columns:
            torch.testing.assert_close(whole[column], other[column], atol=1e-5, rtol=0, equal_nan=True)


def test_a_classifier_is_its_own_victim(images):
    rows = redlab.evaluate(Robust(), images, attacks={"fgsm": FGSM(eps=0.1)}, progress=False)
    assert rows.victims == ("itself",)
    assert torch.equal(rows["right_label"], rows["right_attacked"])


def test_others_judge_what_was_crafted_elsewhere(images):
    only = redlab.Component(attack=FGSM(eps=0.1), victims=["a"])
    victims = {"a": net(2), "b": net(3)}
    rows = redlab.evaluate(Blur(), images, attacks={"fgsm": only}, victims=victims, judges=["b"], progress=False)
    assert rows.judges == ("b",)
    assert rows.where(attack="fgsm").victims == ("a",)


@pytest.mark.parametrize(
    ("defence", "given", "message"),
    [
        (nn.Identity(), {"victims": {"a": net()}}, "none of the capabilities"),
        (Blur(), {}, "victims must be given"),
        (Blur(), {"victims": {"a": net()}, "adaptive": {}}, "diagnosis"),
        (Blur(), {"victims": {"a": net()}, "batch_size": 0}, "batch_size must be at least 1"),
        (Blur(), {"victims": {"a": net()}, "judges": ["c"]}, "judges must be some of"),
    ],
)
def test_what_makes_no_sense_is_refused(images, defence, given, message):
    with pytest.raises(ValueError, match=message):
        redlab.evaluate(defence, images, attacks={"fgsm": FGSM(eps=0.1)}, progress=False, **given)
