"""The studies of GRED's rectifier on made-up rows and on the paper's own numbers."""

from collections.abc import Mapping

import pytest
import torch
from made_up_redrl import failing, is_only

from redlab.metrics import Samples
from redlab.probes import Masking
from redlab.studies import Claim, Seen, Study, find
from redlab.studies.gred.detecting import NAMES
from redlab.studies.gred.rectifying import AWARE, STEPS, halves

COUNT = 1000
KEYS = {name: key for key, name in NAMES.items()}
ROW = "accuracy"


def one(name: str) -> Study:
    (found,) = find(f"gred/{name}")
    return found


def share(value: float, many: int = COUNT) -> torch.Tensor:
    return (torch.arange(many) < round(value * many)).double()


def rows(attack: str, *, clean: float = 1.0, aware: float = 0.25, **attacked: float) -> Samples:
    """1,000 images and their attacked versions, and others whose attack failed; a share is right in each column."""
    columns = dict.fromkeys(attacked, 0.0)
    parts = [
        {"attack": 0, "attacked": 0.0, "knowledge": 0, "right": 0.0} | columns | {"right_label": share(clean)},
        {"attack": 1, "attacked": 1.0, "knowledge": 0, "right": 0.0} | {c: share(v) for c, v in attacked.items()},
        {"attack": 2, "attacked": 1.0, "knowledge": 1, "right": share(aware), **columns},
        {"attack": 0, "attacked": 0.0, "knowledge": 0, "right": 0.0, **columns, "image": torch.arange(COUNT) + COUNT},
    ]
    joined = {
        name: torch.cat([torch.as_tensor(p.get(name, torch.arange(COUNT))).double().expand(COUNT) for p in parts])
        for name in ("image", *parts[1])
    }
    return Samples(joined, {"attack": ("clean", attack, "aware_pgd"), "knowledge": ("victim", "defence")})


def test_halves_are_of_successful_attacks_and_their_originals() -> None:
    assert halves(rows("pgd_u", clean=0.9, right_label=0.5), "right_label") == pytest.approx(0.7)


def of_table7(name: str, changed: Mapping[str, float] | None = None) -> dict[str, Seen]:
    study = one(name)
    printed = {c: n.mean for (_, c), n in study.printed.cells.items()} | dict(changed or {})
    mixed = name != "table7_top"
    return {
        attack: Seen(
            rows=rows(KEYS[attack], clean=1.0, right_label=max(2 * printed[attack] - 1, 0), both=0.3)
            if mixed
            else rows(KEYS[attack], right_label=0.5, both=printed[attack])
        )
        for attack in study.evaluations
    }


@pytest.mark.parametrize("name", ["table7_top", "table7_bottom", "table7_fmnist"])
def test_table7_gives_the_papers_numbers_on_rows_that_have_them(name: str) -> None:
    study, seen = one(name), of_table7(name)
    ours = study.table([seen])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=1e-3), address
    assert ours[AWARE, "CW-T"].mean == pytest.approx(0.25)
    assert failing(study, seen) == set()
    judged = study.judge(study.printed)
    assert all(isinstance(c, Claim) and c.verdict == "holds" for c in judged.values())


@pytest.mark.parametrize(
    ("name", "value", "broken"),
    [("table7_top", 0.2, "far above"), ("table7_fmnist", 0.75, "far above"), ("table7_bottom", 0.85, "at least 0.9")],
)
def test_a_changed_number_breaks_its_claim_alone(name: str, value: float, broken: str) -> None:
    assert is_only(failing(one(name), of_table7(name, {"DDN-T": value})), broken)


def test_a_rectifier_starts_from_the_detector_of_its_attack() -> None:
    runs = one("table7_top").runs
    for key, name in NAMES.items():
        words = runs[f"rectifier of {name}"]
        assert words[-1] == f"init=@{name}"
        assert f"only={key}" in words
        assert f"only={key}" in runs[name]
        assert "mix.components.clean.weight=0" in words


def test_rectsteps_compares_averages() -> None:
    study = one("rectsteps")

    def seen(**right: float) -> dict[str, Seen]:
        return {name: Seen(rows=rows(KEYS[name], **right)) for name in study.evaluations}

    assert study.table([seen(mask=0.5, tuned=0.6, both=0.8)])["PGD-U", "rectifier alone"].mean == pytest.approx(0.6)
    assert failing(study, seen(mask=0.5, tuned=0.6, both=0.8)) == set()
    assert is_only(failing(study, seen(mask=0.5, tuned=0.9, both=0.8)), "both at least as good as the rectifier alone")
    assert is_only(failing(study, seen(mask=0.9, tuned=0.6, both=0.8)), "both at least as good as the mask alone")
    assert set(STEPS.values()) == {"mask", "tuned", "both"}


def test_fig5_is_about_the_middle() -> None:
    study = one("fig5")
    (run,) = study.evaluations

    def seen(top: float) -> dict[str, Seen]:
        parts = []
        for attack in NAMES:
            found = {}
            for mode in Masking().modes:
                for alpha in Masking().alphas:
                    found[f"mask_{mode}_{alpha:g}"] = 0.9 - abs(alpha - (top if mode == "range" else 0.5))
                    found[f"share_{mode}_{alpha:g}"] = 0.0
            parts.append(rows(attack, **found).where(attack=attack))
        names = ("clean", *NAMES)
        joined = {c: torch.cat([p[c].double() for p in parts]) for c in parts[0].columns}
        joined["attack"] = torch.arange(1, 9).repeat_interleave(COUNT)
        return {run: Seen(rows=Samples(joined, {"attack": names, "knowledge": ("victim", "defence")}))}

    ours = study.table([seen(0.4)])
    assert ours["range, 0.3", "CW-T"].mean == pytest.approx(0.8)
    assert failing(study, seen(0.4)) == set()
    assert is_only(failing(study, seen(0.1)), "range: neither end")
    assert study.figure is not None
    assert len(study.figure(seen(0.4), ours).axes) == 4
