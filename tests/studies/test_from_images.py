"""Every study from attacked images to its numbers: real attacks, evaluation and probes, networks without training."""

import math

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import PGD
from redlab.crafting import AttackMix, Component
from redlab.evaluation import Evaluator, probed
from redlab.metrics import Samples
from redlab.studies import STUDIES, Evaluation, Seen, find
from redlab.victims import Victim


class Smooth:
    """A restorer that takes the mean of neighbours."""

    def restore(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1)


def victims() -> dict[str, Victim]:
    nets = {}
    for seed, name in enumerate(("lenet", "cnn")):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
        )
        net[4].weight.data *= 20
        nets[name] = Victim(net, num_classes=4, feature_layer="1", name=name)
    return nets


def look(evaluation: Evaluation) -> Seen:
    """What a lab would see, on eight images."""
    nets, method = victims(), Smooth()
    mix = AttackMix(dict(evaluation.attacks or {"pgd": Component(attack=PGD(eps=8 / 255, steps=2))}))
    settings = {place: mix.setting_names(place) for place, _ in enumerate(mix.attack_names)}
    evaluator = Evaluator(
        victims=nets,
        attack_names=mix.attack_names,
        setting_names={place: names for place, names in settings.items() if names},
        judges=evaluation.judges,
    )
    index, parts, pictures = torch.arange(8), [], []
    x = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    for cell in mix.cells(nets):
        plan = mix.plan(index, index, stage="test", epoch=0, victim_names=nets, cell=cell)
        batch = mix.craft(nets, x, index % 4, plan, valid=index != 7, defence=method)
        rows, said = evaluator(method, batch)
        if evaluation.probe is not None:
            rows, of = probed(rows, batch, evaluation.probe(method, nets, batch, said))
            pictures.append(of)
        parts.append(rows)
    shown = {name: torch.cat([of[name] for of in pictures]) for name in (pictures or [{}])[0]}
    everything = Samples.cat(parts)
    return Seen(rows=everything, pictures=shown, of=everything if shown else Samples({}))


@pytest.mark.parametrize("name", STUDIES)
def test_numbers_claims_and_figure_of_a_study(name: str) -> None:
    (study,) = find(name)
    looked: dict[str, Seen] = {}
    for evaluation in study.evaluations.values():
        alike = repr((evaluation.attacks, evaluation.probe, evaluation.judges))
        looked[alike] = looked.get(alike) or look(evaluation)
    seen = {n: looked[repr((e.attacks, e.probe, e.judges))] for n, e in study.evaluations.items()}
    table = study.table([seen, seen])
    if study.paper is not None and name != "cdd_red/tableA9":  # its rows are networks
        assert set(study.printed.cells) <= set(table.cells)
    assert all(math.isfinite(number.mean) for number in table.cells.values())
    for claim in study.judge(table).values():
        assert not isinstance(claim, str), claim
    if study.figure is not None:
        assert study.figure(seen, table).axes


def test_probed_rows_keep_what_belongs_to_each_image() -> None:
    nets, method, index = victims(), Smooth(), torch.arange(4) + 10
    mix = AttackMix({"pgd": Component(attack=PGD(steps=1))}, adaptive={}, diagnosis=True)
    (_, cell, *_) = mix.cells(nets, adaptive=False)
    plan = mix.plan(index, index, stage="test", epoch=0, victim_names=nets, cell=cell)
    batch = mix.craft(nets, torch.rand(4, 1, 12, 12), index % 4, plan, valid=index != 11)
    rows, _ = Evaluator(victims=nets, attack_names=mix.attack_names, judges=list(nets))(method, batch)
    found = {"number": index.double(), "picture": index.float().reshape(4, 1, 1, 1).expand(4, 1, 2, 2)}
    told, pictures = probed(rows, batch, found)
    assert told["image"].tolist() == told["number"].tolist() == [10, 10, 12, 12, 13, 13]
    assert pictures["picture"][:, 0, 0, 0].tolist() == [10, 10, 12, 12, 13, 13]
    with pytest.raises(ValueError, match=r"each of 4 images, got \{'number': 3\}"):
        probed(rows, batch, {"number": torch.zeros(3)})
    with pytest.raises(ValueError, match="not those of a batch with 3 valid"):
        probed(rows.take(torch.arange(4)), batch, found)
