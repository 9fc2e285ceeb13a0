"""The studies of attackers who know GRED, on made-up rows and on the paper's own numbers."""

import math
from collections.abc import Mapping

import pytest
import torch
from made_up_redrl import failing, is_only

from redlab.metrics import Samples
from redlab.studies import Claim, Seen, Study, find
from redlab.studies.gred.detecting import GRED, IS, NAMES
from redlab.studies.gred.knowing import NONE, SCHEMES, TARGETED, UNTARGETED, smallest, success

COUNT = 1000


def one(name: str) -> Study:
    (found,) = find(f"gred/{name}")
    return found


def rows(attack: str, rate: float, knowledge: str = "defence", size: float = 1.0, first: int = 0) -> Samples:
    """1,000 clean images, and successful attacks on a share of them from the image ``first`` on."""
    many = round(rate * COUNT)
    columns = {
        "image": torch.cat([torch.arange(COUNT), torch.arange(first, first + many)]),
        "attack": torch.arange(2).repeat_interleave(torch.tensor([COUNT, many])),
        "attacked": torch.arange(2).repeat_interleave(torch.tensor([COUNT, many])).double(),
        "knowledge": torch.cat([torch.zeros(COUNT), torch.full((many,), int(knowledge == "defence"))]),
        "d_attack": torch.cat([torch.zeros(COUNT), torch.full((many,), size)]),
    }
    return Samples(columns, {"attack": ("clean", attack), "knowledge": ("victim", "defence")})


def test_success_is_a_share_of_the_images_that_are_right() -> None:
    assert success([rows("pgd_u", 0.25)], "defence") == 0.25
    assert success([rows("pgd_u", 0.25)], "victim") == 0


def test_who_may_try_in_two_ways_succeeds_where_one_does_and_the_smaller_one_counts() -> None:
    one_stage, two_stages = rows("pgd_u", 0.3, size=2.0), rows("pgd_u", 0.2, size=1.0, first=200)
    assert success([one_stage], "defence") == 0.3
    assert success([one_stage, two_stages], "defence") == 0.4
    both = Samples.cat([of.where(knowledge="defence") for of in (one_stage, two_stages)])
    assert smallest(both) == pytest.approx((200 * 2.0 + 200 * 1.0) / 400)
    assert math.isnan(smallest(both.where(attacked=0)))


def seen_of(table: str, changed: Mapping[tuple[str, str], float] | None = None) -> dict[str, Seen]:
    study, attacks = one(table), UNTARGETED if table == "table4" else TARGETED
    printed = {address: n.mean for address, n in study.printed.cells.items()} | dict(changed or {})
    found = {}
    for key, name in attacks.items():
        run = NAMES[key]
        found[f"{run}, {NONE}"] = rows(key, printed[name, NONE], "victim")
        for scheme in SCHEMES if table == "table4" else ("one stage",):
            found[f"{run}, {scheme}"] = rows(key, printed[name, GRED])
            found[f"{run}, {IS}, {scheme}"] = rows(key, printed[name, IS])
    assert set(found) == set(study.evaluations)
    return {name: Seen(rows=of) for name, of in found.items()}


@pytest.mark.parametrize("table", ["table4", "table5"])
def test_tables_give_the_papers_numbers_on_rows_that_have_them(table: str) -> None:
    study, seen = one(table), seen_of(table)
    ours = study.table([seen])
    ways = {(name, f"{d}, {way}") for name, _ in ours.cells for d in (IS, GRED) for way in SCHEMES}
    assert set(ours.cells) - set(study.printed.cells) == (ways if table == "table4" else set())
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=1e-3), address
    assert failing(study, seen) == set()
    assert all(isinstance(c, Claim) and c.verdict == "holds" for c in study.judge(study.printed).values())


@pytest.mark.parametrize(
    ("table", "changed", "broken"),
    [
        ("table4", {("FGSM", GRED): 0.2}, "FGSM and CW hardly ever"),
        ("table4", {("PGD", GRED): 0.6, ("DFool", GRED): 0.7}, "with GRED most attacks"),
        ("table4", {(n, NONE): 0.0 for n in ("FGSM", "DFool", "PGD")}, "fewer attacks succeed"),
        ("table5", {("DDN", GRED): 0.6}, "with GRED every attack"),
        ("table5", {("CW", NONE): 0.2}, "fewer PGD and CW"),
    ],
)
def test_a_changed_number_breaks_its_claim_alone(table: str, changed: Mapping, broken: str) -> None:
    assert is_only(failing(one(table), seen_of(table, changed)), broken)


def test_table6_compares_sizes_of_successful_attacks() -> None:
    study = one("table6")
    keys = {"DDN-U": "ddn_u", "DFool-U": "deepfool_u", "DDN-T": "ddn_t"}

    def seen(rate: float = 0.5, **sizes: float) -> dict[str, Seen]:
        found = {}
        for name, key in keys.items():
            printed = study.printed.column(name)
            found[f"{name}, {NONE}"] = rows(key, 1.0, "victim", printed["Without detector"].mean)
            size = sizes.get(key, printed["With DET_GRED"].mean)
            found[f"{name}, one stage"] = rows(key, rate, "defence", size)
            if not key.endswith("_t"):
                found[f"{name}, two stages"] = rows(key, rate, "defence", size + 1)
        assert set(found) == set(study.evaluations)
        return {name: Seen(rows=of) for name, of in found.items()}

    ours = study.table([seen()])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean), address
    assert failing(study, seen()) == set()
    assert failing(study, seen(ddn_t=0.4)) == set(study.claims)
    none = study.judge(study.table([seen(rate=0.0)]))
    assert all(isinstance(claim, str) for claim in none.values())


def test_who_knows_the_detector_attacks_the_one_of_that_attack() -> None:
    study = one("table4")
    for scheme, gradient in (("one stage", "joint"), ("two stages", "exact")):
        words = {"mix.components.cw_u.knowledge=defence", f"mix.components.cw_u.gradient={gradient}"}
        assert words <= set(study.evaluations[f"CW-U, {scheme}"].overrides)
    assert "CW-T, two stages" not in one("table5").evaluations
    alone, whole = study.runs["CW-U, DET_IS"], study.runs["CW-U"]
    assert set(alone) - set(whole) == {"method.decides=sen"}
