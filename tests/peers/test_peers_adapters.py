"""The adapters with the real libraries; tests/attacks/test_adapters.py has the rest."""

import random

import numpy as np
import pytest
import torch

from redlab.attacks import SampleRng
from redlab.attacks.adapters import AdvLib, Foolbox, Torchattacks

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # the libraries' own warnings

EPS = 8 / 255
INF = float("inf")
# package, adapter, whether it can be targeted, greatest linf norm, whether it draws
ATTACKS = [
    ("torchattacks", Torchattacks, {"attack": "MIFGSM", "arguments": {"eps": EPS}}, True, EPS, False),
    ("torchattacks", Torchattacks, {"attack": "PGD", "arguments": {"eps": EPS, "steps": 5}}, True, EPS, True),
    ("torchattacks", Torchattacks, {"attack": "Square", "arguments": {"eps": EPS, "n_queries": 20}}, True, EPS, True),
    ("torchattacks", Torchattacks, {"attack": "DeepFool", "arguments": {"steps": 12}}, False, 1, False),
    ("torchattacks", Torchattacks, {"attack": "Pixle", "arguments": {"max_iterations": 2}}, True, 1, True),
    ("foolbox", Foolbox, {"attack": "LinfPGD", "eps": EPS, "arguments": {"steps": 5}}, True, EPS, True),
    ("foolbox", Foolbox, {"attack": "L2DeepFoolAttack", "eps": None}, False, 1, False),
    ("foolbox", Foolbox, {"attack": "NewtonFoolAttack", "eps": None, "arguments": {"steps": 3}}, False, 1, False),
    ("foolbox", Foolbox, {"attack": "DDNAttack", "eps": None, "arguments": {"steps": 10}}, True, 1, False),
    ("foolbox", Foolbox, {"attack": "SaltAndPepperNoiseAttack", "eps": None, "arguments": {"steps": 9}}, True, 1, True),
    ("adv_lib", AdvLib, {"attack": "ddn", "arguments": {"steps": 10}}, True, 1, False),
    ("adv_lib", AdvLib, {"attack": "pgd_linf", "arguments": {"ε": EPS, "steps": 5}}, True, EPS, True),
    ("adv_lib", AdvLib, {"attack": "df", "arguments": {"steps": 12}}, False, 1, False),
    ("adv_lib", AdvLib, {"attack": "fab", "arguments": {"norm": 2.0, "n_iter": 3}}, False, 1, False),
    (
        "adv_lib",
        AdvLib,
        {"attack": "apgd_targeted", "arguments": {"eps": EPS, "norm": INF, "n_iter": 5}},
        False,
        EPS,
        1,
    ),
]


@pytest.mark.parametrize(
    ("package", "adapter", "fields", "targeted", "eps", "draws"),
    ATTACKS,
    ids=[f"{package}-{fields['attack']}" for package, _, fields, *_ in ATTACKS],
)
def test_an_attack_of_a_library(package, adapter, fields, targeted, eps, draws, standard):
    victim, x, y = standard
    x, y, attack = x[:24], y[:24], adapter(**fields)
    before = [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002
    x_adv = attack(victim, x, y)
    assert [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()] == before  # noqa: NPY002
    assert not any(p.requires_grad or p.grad is not None for p in victim.parameters())
    assert (x_adv - x).abs().max() <= eps + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert bool((victim(x_adv).argmax(1) != y).any())
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    assert torch.equal(attack(victim, x, y), x_adv)
    other = attack(victim, x, y, rng=SampleRng(1, "test", 0, torch.arange(24)))
    assert torch.equal(other, x_adv) != draws
    target = (y + 1) % 10
    if not targeted:
        with pytest.raises(ValueError, match=f"{attack.attack} is untargeted, got target"):
            attack(victim, x, y, target=target)
        return
    aimed = attack(victim, x, y, target=target)
    assert (aimed - x).abs().max() <= eps + 1e-6
    with torch.no_grad():
        gain = victim(aimed).softmax(1) - victim(x).softmax(1)
    assert float(gain.gather(1, target[:, None]).mean()) > -1e-6


def test_rows_for_which_foolbox_finds_nothing_are_not_black(standard):
    victim, x, y = standard
    fields = {"attack": "L2CarliniWagnerAttack", "arguments": {"steps": 2, "binary_search_steps": 1}}
    x_adv = Foolbox(eps=None, **fields)(victim, x[:8], y[:8])
    with torch.no_grad():
        lost = victim(x_adv).argmax(1) == y[:8]
    assert bool(lost.any())
    assert torch.equal(x_adv[lost], x[:8][lost])
    assert Foolbox(**fields).resolve()().binary_search_steps == 9
