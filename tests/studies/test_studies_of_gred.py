"""The studies of GRED on made-up rows and on the paper's own numbers."""

from collections.abc import Mapping

import pytest
import torch
from made_up_redrl import failing, is_only
from torch import Tensor

from redlab.metrics import Samples
from redlab.studies import Claim, Seen, Study, find
from redlab.studies.gred.detecting import (
    DETECTORS,
    FOOLING,
    GRED,
    HELD,
    IS,
    KNOWN,
    NAMES,
    ON_SOURCE,
    ORG,
    RATE,
    SEEN,
    detected,
    pairs,
)

COUNT = 1000
KEYS = {name: key for key, name in NAMES.items()}


def one(name: str) -> Study:
    (found,) = find(f"gred/{name}")
    return found


def verdict(share: float, count: int) -> Tensor:
    """Scores of which that share is above 0."""
    return torch.where(torch.arange(count) < round(share * count), 1.0, -1.0).double()


def rows(attack: str, said: Mapping[str, float], *, aware: float = 0.3) -> Samples:
    """Clean images, of which 1,000 are right, and successful attacks on a share of these.

    Args:
        attack: name in the mix.
        said: ``RATE`` and detection accuracy by detector; half of each from either kind of image.
        aware: what the attacker who knows the detector leaves right or found.
    """
    count = round(said[RATE] * COUNT)
    scores = {key: said.get(name, 0.5) for name, key in DETECTORS.items()}

    def part(place: int, many: int, **values: object) -> dict[str, Tensor]:
        found = {"attack": place, "knowledge": 0, "attacked": float(place > 0), "right": 0.0, "alarm": 0.0} | values
        cells = {name: torch.as_tensor(v).expand(many) for name, v in found.items()}
        return cells | {"image": torch.arange(many), "right_clean": torch.ones(many)}

    # originals are those of the first images, and score as they do; the others would spoil it
    clean = part(0, COUNT)
    for key, accuracy in scores.items():
        clean[f"score_{key}"] = torch.cat([verdict(1 - accuracy, count), torch.ones(COUNT - count)])
    attacked = part(1, count) | {f"score_{key}": verdict(accuracy, count) for key, accuracy in scores.items()}
    knowing = part(2, COUNT, knowledge=1, right=verdict(aware, COUNT).clamp(min=0))
    knowing |= {f"score_{key}": torch.ones(COUNT) for key in scores}
    joined = {name: torch.cat([p[name].double() for p in (clean, attacked, knowing)]) for name in clean}
    names = {"attack": ("clean", attack, "aware_pgd"), "knowledge": ("victim", "defence")}
    return Samples(joined, names)


def of_table2(name: str, changed: Mapping[tuple[str, str], float] | None = None) -> dict[str, Seen]:
    study = one(name)
    printed = {address: n.mean for address, n in study.printed.cells.items()} | dict(changed or {})
    return {
        attack: Seen(rows=rows(KEYS[attack], {c: n for (row, c), n in printed.items() if row == attack}))
        for attack in study.evaluations
    }


def test_detection_accuracy_is_half_of_either_kind() -> None:
    both = Samples({"attacked": [1, 1, 1, 1, 0]})
    assert detected(both, torch.tensor([True, False, False, False, False])) == pytest.approx((0.25 + 1) / 2)
    assert detected(both, torch.ones(5, dtype=torch.bool)) == 0.5
    assert torch.tensor(detected(Samples({"attacked": [1, 1]}), torch.tensor([True, True]))).isnan()


def test_the_originals_of_successful_attacks_are_their_partners() -> None:
    both = pairs(rows("pgd_u", {RATE: 0.25}))
    assert len(both) == 500
    assert both.attacks == ("clean", "pgd_u")
    assert both.clean["image"].tolist() == list(range(250))


@pytest.mark.parametrize("name", ["table2_mnist", "table2_fmnist"])
def test_table2_gives_the_papers_numbers_on_rows_that_have_them(name: str) -> None:
    study, seen = one(name), of_table2(name)
    ours = study.table([seen])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=3e-3), address
    assert ours["PGD-U", KNOWN].mean == pytest.approx((0.3 + 1) / 2)
    assert failing(study, seen) == set()
    assert study.figure is not None
    assert study.figure(seen, ours).axes
    judged = study.judge(study.printed)
    assert {text for text, c in judged.items() if not isinstance(c, Claim) or c.verdict != "holds"} == set()


@pytest.mark.parametrize(
    ("name", "changed", "broken"),
    [
        ("table2_mnist", {("CW-T", "DET_sal"): 0.9}, "DET_org and DET_sal"),
        ("table2_mnist", {("PGD-T", IS): 0.7}, "DET_IS near chance"),
        ("table2_fmnist", {("DDN-U", ORG): 0.8}, "DET_IS far better"),
        ("table2_fmnist", {("FGSM-U", IS): 0.9}, "DET_IS far better"),
        ("table2_fmnist", {("CW-U", GRED): 0.9}, "GRED at most 0.02"),
    ],
)
def test_a_changed_number_breaks_its_claim_alone(name: str, changed: Mapping, broken: str) -> None:
    assert is_only(failing(one(name), of_table2(name, changed)), broken)


def test_a_weak_detector_is_said_to_be_one() -> None:
    found = failing(one("table2_mnist"), of_table2("table2_mnist", {("DDN-T", GRED): 0.9}))
    assert found == {"GRED at least 0.95 on every attack", "GRED at most 0.02 below the better of DET_org and DET_IS"}


def test_fig3_and_select_and_heldout() -> None:
    seen = of_table2("table2_mnist")
    study = one("fig3")
    ours = study.table([seen])
    assert ours["DDN-T", "detection accuracy"].mean == pytest.approx(0.999, abs=1e-3)
    assert ours["DDN-T", "AUC"].mean == pytest.approx(0.998, abs=2e-3)  # of scores with two values: mean of both rates
    assert failing(study, seen) == set()
    assert study.figure(seen, ours).axes
    study, seen = one("select"), of_table2("table2_fmnist")
    ours = study.table([seen])
    assert ours["PGD-U", ORG].mean == pytest.approx(0.998, abs=1e-3)
    assert ours["PGD-U", "either alarms"].mean < ours["PGD-U", "entropy"].mean
    assert failing(study, seen) == set()
    study = one("heldout")

    def of(held: float, seen: float) -> dict[str, Seen]:
        accuracy = {HELD: held, SEEN: seen}
        return {
            run: Seen(rows=rows(KEYS[run.split(", ")[0]], {RATE: 1.0, IS: accuracy[run.split(", ")[1]]}))
            for run in study.runs
        }

    assert failing(study, of(0.9, 0.7)) == set()
    assert len(failing(study, of(0.7, 0.9))) == 1
    assert study.runs[f"CW-U, {SEEN}"][-1] == "data.use=seen"
    assert set(study.runs[f"CW-U, {SEEN}"]) - set(study.runs[f"CW-U, {HELD}"]) == {"data.use=seen"}


def black(rate: float, org: float) -> Samples:
    """Attacks on a second network, all successful there; ``rate`` of the 1,000 that the first has right fool it, too.

    Another 100 images are those that the first network gets wrong.
    """
    many = COUNT + 100
    right = (torch.arange(many) < COUNT).double()
    base = {
        "image": torch.arange(many),
        "knowledge": torch.zeros(many),
        "right_clean": right,
        "judge": torch.zeros(many),
    }
    cells = []
    for attack, victim in ((0, 0), (0, 1), (1, 1)):
        part = base | {"attack": torch.full((many,), attack), "victim": torch.full((many,), victim)}
        part |= {"attacked": torch.full((many,), float(attack))}
        part["right_attacked"] = (torch.arange(many) >= round(rate * COUNT)).double() * right if attack else right
        for key in DETECTORS.values():
            share = org if key == "org" else 0.9
            part[f"score_{key}"] = torch.cat([verdict(share if attack else 1 - share, COUNT), torch.ones(100)])
        cells.append(part)
    joined = {name: torch.cat([c[name].double() for c in cells]) for name in cells[0]}
    names = {"attack": ("clean", "fgsm_u"), "victim": ("vgg", "cw_net"), "judge": ("vgg", "cw_net")}
    return Samples(joined, names | {"knowledge": ("victim", "defence")})


def test_table3_is_of_images_that_the_protected_classifier_has_right() -> None:
    study = one("table3")
    ours = study.table([dict.fromkeys(study.evaluations, Seen(rows=black(0.2, 0.8)))])
    assert ours["PGD-T", RATE].mean == pytest.approx(0.2)
    assert ours["PGD-T", ON_SOURCE].mean == 1
    assert ours["PGD-T", ORG].mean == pytest.approx(0.8)
    assert ours["PGD-T", GRED].mean == pytest.approx(0.9)
    assert ours["PGD-T", FOOLING].mean == pytest.approx(0.75)  # all are found, and half of their originals
    assert failing(study, dict.fromkeys(study.evaluations, Seen(rows=black(0.2, 0.96)))) == {
        "GRED at least 0.92 on every attack",
        "GRED above DET_IS on average over attacks",
    }
    words = study.evaluations["CW-T"].overrides
    assert "mix.components.cw_t.victims=[${choices.victim.1}]" in words
    assert "judges=[${choices.victim.0}]" in words


def test_base_compares_the_first_victim_and_the_source() -> None:
    study = one("base")
    (run,) = study.runs

    def seen(first: float, second: float) -> dict[str, Seen]:
        columns = {"attack": torch.zeros(2 * COUNT), "victim": torch.arange(2).repeat_interleave(COUNT)}
        columns["right_clean"] = torch.cat([verdict(v / 100, COUNT).clamp(min=0) for v in (first, second)])
        return {run: Seen(rows=Samples(columns, {"attack": ("clean",), "victim": ("vgg11", "cw_net")}))}

    assert failing(study, seen(99.0, 98.5)) == set()
    assert is_only(failing(study, seen(98.0, 99.0)), "VGG11")
    assert set(study.printed.cells) == set(study.table([seen(99, 99)]).cells)


# ---- what InSen looks like ------------------------------------------------------------------------------------------


def test_fig2_compares_medians() -> None:
    study = one("fig2")
    (run,) = study.evaluations

    def seen(**ratio: float) -> dict[str, Seen]:
        sizes = {"clean": 1.0, **dict.fromkeys(NAMES, 100.0), "pgd_u": 3.0, "pgd_t": 2.0, **ratio}
        names = tuple(sizes)
        columns = {"attack": torch.arange(len(names)).repeat_interleave(3), "knowledge": torch.zeros(3 * len(names))}
        columns["insen"] = torch.cat([torch.tensor([0.0, size, 1e9]) for size in sizes.values()])
        return {run: Seen(rows=Samples(columns, {"attack": names, "knowledge": ("victim", "defence")}))}

    ours = study.table([seen()])
    assert ours["median of ||S||", "DFool-U"].mean == 100
    assert ours["over clean images", "PGD-U"].mean == 3
    assert failing(study, seen()) == set()
    assert is_only(failing(study, seen(cw_u=9.0)), "more than ten times")
    assert is_only(failing(study, seen(pgd_t=11.0)), "at most ten times")


def test_table1_gives_the_papers_numbers_on_rows_that_have_them() -> None:
    study = one("table1")
    (run,) = study.evaluations
    columns = {"Deepfool": "deepfool_u", "CW": "cw_u", "DDN": "ddn_u"}

    def seen(random: float) -> dict[str, Seen]:
        parts = []
        for place, column in enumerate(columns):
            values = {f"survives_{s:g}": study.printed[f"top {100 * s:g}%", column].mean for s in (0.0, 0.05, 0.1)}
            values |= {"random_0.05": random, "random_0.1": random}
            part = {name: verdict(value, COUNT).clamp(min=0) for name, value in values.items()}
            parts.append(part | {"attack": torch.full((COUNT,), place), "knowledge": torch.zeros(COUNT)})
        joined = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return {
            run: Seen(rows=Samples(joined, {"attack": tuple(columns.values()), "knowledge": ("victim", "defence")}))
        }

    ours = study.table([seen(0.95)])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=1e-3), address
    assert failing(study, seen(0.95)) == set()
    assert is_only(failing(study, seen(0.6)), "random pixels do less")
