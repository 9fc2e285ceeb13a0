"""Every study from attacked images to its numbers: real attacks, evaluation and probes, networks without training."""

import math

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import (
    FGSM,
    PGD,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    DeepFool,
    FeatureAttack,
    Patch,
    SpatialTransform,
    Square,
)
from redlab.crafting import AttackMix, Component
from redlab.evaluation import Evaluator, probed
from redlab.metrics import Samples
from redlab.studies import STUDIES, Evaluation, Seen, find
from redlab.studies.redrl.accuracy import NETWORKS
from redlab.studies.redrl.recognition import CLASSES
from redlab.victims import Victim


class Smooth:
    """A restorer that takes the mean of neighbours."""

    def restore(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1)


class Named(Smooth):
    """That, and an identifier by chance."""

    attack_names = tuple(CLASSES)

    def attack_logits(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.randn(144, len(CLASSES), generator=torch.Generator().manual_seed(0))


def net(seed: int, name: str, layers: int = 1) -> Victim:
    torch.manual_seed(seed)
    more = [part for _ in range(layers - 1) for part in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    made = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), *more, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    )
    made[-1].weight.data *= 20**layers
    if layers > 1:  # or one class takes all
        made[-1].bias.data -= made(torch.rand(64, 1, 12, 12)).mean(0)
    return Victim(made, num_classes=4, feature_layer="1", name=name)


def victims() -> dict[str, Victim]:
    return {name: net(seed, name) for seed, name in enumerate(("lenet", "cnn"))}


EPS = [{"eps": eps / 255} for eps in (4, 8, 16)]
REDRL = {
    "clean": Component(attack=None),
    "pgd": Component(attack=PGD(steps=2), settings=EPS),
    "deepfool": Component(attack=DeepFool(steps=5, overshoot=1000.0)),
    "cw_l2": Component(attack=CarliniWagnerL2(c=100.0, steps=10, binary_search_steps=1)),
    "cw_linf": Component(attack=CarliniWagnerLinf(steps=10), settings=EPS),
    "patch": Component(attack=Patch(size=8, step_size=0.1, steps=2), settings=[{"eps": 8 / 255}, {"eps": 0.5}]),
}
OPEN = {
    "fgsm": Component(attack=FGSM()),
    "square": Component(attack=Square(queries=3)),
    "spatial_transform": Component(attack=SpatialTransform(steps=2)),
    "feature": Component(attack=FeatureAttack(guides=lambda x, y, target, rng: 1 - x, steps=2)),
}
CDD_RED = {
    "fgsm": Component(attack=FGSM(eps=8 / 255)),
    "pgd": Component(attack=PGD(eps=8 / 255, steps=2)),
    "cw": Component(attack=CarliniWagnerL2(c=100.0, steps=10, binary_search_steps=1)),
}
CRAFTED = {"cdd_red": CDD_RED, "mix=cdd_red_unseen": CDD_RED, "redrl": REDRL, "mix=redrl_open": OPEN}
"""What the mix of a paper, or one that an evaluation asks for, stands for."""

ALONE = {"cdd_red/tableA9": "its rows are networks", "redrl/gain_text": "a card is of one data set, the paper has two"}
"""Why not all of the paper's numbers are among ours."""


def look(paper: str, mix: str, evaluation: Evaluation) -> Seen:
    """What a lab would see, on eight images."""
    redrl = paper == "redrl"
    # of REDRL four networks that are alike, so that one image is right and nearly wrong for all
    nets, method = ({name: net(0, name, 4) for name in NETWORKS}, Named()) if redrl else (victims(), Smooth())
    aware = {"aware_pgd": Component(attack=PGD(steps=1), knowledge="defence")} if redrl else None
    crafted = AttackMix(dict(evaluation.attacks or CRAFTED[mix]), adaptive=aware)
    settings = {place: crafted.setting_names(place) for place, _ in enumerate(crafted.attack_names)}
    evaluator = Evaluator(
        victims=nets,
        attack_names=crafted.attack_names,
        setting_names={place: names for place, names in settings.items() if names},
    )
    index, parts, pictures = torch.arange(8), [], []
    x = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    label = index % 4
    if redrl:  # images that the networks have right and nearly wrong
        x = torch.rand(20_000, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        first, second = next(iter(nets.values()))(x).topk(2).values.T
        x = x[(first - second).argsort()[:8]]
        label = next(iter(nets.values()))(x).argmax(1)
    ready = getattr(evaluation.probe, "ready", None)
    probe = ready(nets, lambda many: (x[:many], label[:many])) if ready else evaluation.probe
    for cell in crafted.cells(nets):
        plan = crafted.plan(index, index, stage="test", epoch=0, victim_names=nets, cell=cell)
        batch = crafted.craft(nets, x, label, plan, valid=index != 7, defence=method)
        rows, said = evaluator(method, batch)
        if probe is not None:
            rows, of = probed(rows, batch, probe(method, nets, batch, said))
            pictures.append(of)
        parts.append(rows)
    shown = {name: torch.cat([of[name] for of in pictures]) for name in (pictures or [{}])[0]}
    everything = Samples.cat(parts)
    return Seen(rows=everything, pictures=shown, of=everything if shown else Samples({}))


LOOKED: dict[str, Seen] = {}
"""What was looked at before, as many studies look at the same."""


def looked(paper: str, evaluation: Evaluation) -> Seen:
    mix = next((word for word in evaluation.overrides if word.startswith("mix=")), paper)
    alike = repr((paper, mix, evaluation.attacks, evaluation.probe))
    if alike not in LOOKED:
        LOOKED[alike] = look(paper, mix, evaluation)
    return LOOKED[alike]


WITHOUT_A_NUMBER = {
    "redrl/gain_text": "it needs a table that is not there",
    "cdd_red/fig8": "eight images on two networks at random: all attacks are alike, and have no rank",
}
"""Studies with one claim that cannot be judged here, and why."""

LAB_ALONE = ("cdd_red/table2_adaptive", "cdd_red/cost")
"""What needs attackers that words name, and a method that can be trained."""


# of the others an evaluation names a list of the scale, which a lab alone resolves: test_smoke.py makes these
@pytest.mark.parametrize(
    "name", [name for name in STUDIES if name.startswith(("cdd_red/", "redrl/")) and name not in LAB_ALONE]
)
def test_numbers_claims_and_figure_of_a_study(name: str) -> None:
    (study,) = find(name)
    seen = {n: looked(name.split("/")[0], evaluation) for n, evaluation in study.evaluations.items()}
    table = study.table([seen, seen])
    if study.paper is not None and name not in ALONE:
        assert set(study.printed.cells) <= set(table.cells)
    assert all(math.isfinite(number.mean) for number in table.cells.values())
    unknown = [claim for claim in study.judge(table).values() if isinstance(claim, str)]
    assert len(unknown) == (name in WITHOUT_A_NUMBER)
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
