"""The studies of CDD-RED on made-up rows and on the paper's own numbers."""

import math

import pytest
import torch
from made_up import VALUES, rows, seen

from redlab.crafting.component import check_component, setting_names
from redlab.metrics import Samples
from redlab.studies import STUDIES, Claim, Seen, Study, find, paper_table
from redlab.studies.cdd_red import IOU, RUNS, SHARES, STEPS, tableA8

OF = {
    "d(x, x_RED)": "d",
    "d(f(x), f(x_RED))": "logit_d_benign",
    "d(f(x'), f(x'_RED))": "logit_d_adv",
    "PA_benign": "pa_benign",
    "PA_adv": "pa_adv",
}


def one(name: str) -> Study:
    (found,) = find(f"cdd_red/{name}")
    return found


def printed(table: str, column: str, **keys: object) -> dict[str, float]:
    """Means of columns that give exactly the paper's numbers."""
    paper = paper_table("cdd_red", table)
    found = {r["keys"]["metric"]: r["values"][column] for r in paper.rows if keys.items() <= r["keys"].items()}
    of = {OF[metric]: value / (100 if metric.startswith("PA") else 1) for metric, value in found.items()}
    rms = of["d"] / math.sqrt(VALUES)
    return of | {"psnr": -20 * math.log10(rms), "d_attack": 2.0, "right_attacked": 0.05, "right_restored": 0.8}


def exact(of: dict[str, float], **more: object) -> Seen:
    """Rows in which every image has the mean, as the mean of psnr is not the psnr of the mean."""
    made = rows(of, **more)  # type: ignore[arg-type]
    told = (made["attacked"] == 1) & (made["knowledge"] == 0)
    return Seen(rows=made.with_columns(**{k: torch.where(told, v, 1e6).double() for k, v in of.items()}))


def verdicts(of: Study, *seeds: dict[str, Seen]) -> dict[str, str]:
    judged = of.judge(of.table(seeds))
    return {text: claim.verdict if isinstance(claim, Claim) else claim for text, claim in judged.items()}


UNPRINTED = {
    "attunet_gan/table1": "recovered above exposed",
    "attunet_gan/clean": "at most 2 points are lost",
    "gred/table1": "random pixels",
}
"""Words of claims of ours, for which a paper's table lacks a column or a row."""


@pytest.mark.parametrize("name", STUDIES)
def test_the_papers_own_numbers_bear_its_conclusions_out(name: str) -> None:
    (of,) = find(name)
    for text, claim in of.judge(of.printed).items():
        if of.paper is None or UNPRINTED.get(name, text + "?") in text:
            assert claim.endswith("not in the paper"), text  # type: ignore[union-attr]
        else:
            assert isinstance(claim, Claim), (text, claim)
            assert claim.verdict == "holds", claim.text


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_sound(name: str) -> None:
    (of,) = find(name)
    assert of.id == name
    assert of.claims
    for evaluation in of.evaluations.values():
        for attack, component in (evaluation.attacks or {}).items():
            check_component(attack, component)
        hash(evaluation.probe)
    if of.paper is not None:
        assert set(of.units) <= set(of.printed.rows) | set(of.units)


def test_table1_gives_the_papers_numbers_on_rows_that_have_them() -> None:
    of = one("table1")
    table = of.table([{c: exact(printed("table1", c)) for c in RUNS}])
    for address, number in of.printed.cells.items():
        assert table[address].mean == pytest.approx(number.mean), address
    assert table["rms(x_RED - x)", "DO"].mean == pytest.approx(9.32 / 28 * 255)
    assert table["rms(x' - x)", "DS"].mean == pytest.approx(2 / 28 * 255)
    assert table["accuracy, restored, attacker knows the defence", "DS"].mean == pytest.approx(10)
    assert table["accuracy, attacked", "DS"].mean == pytest.approx(5)
    assert table["accuracy, restored", "DS"].mean == pytest.approx(80)


@pytest.mark.parametrize(
    ("column", "measure", "value", "broken"),
    [
        ("CDD-RED", "d", 9.0, "d:"),  # below DO
        ("CDD-RED", "d", 20.0, "d:"),  # above DS
        ("DO", "pa_benign", 0.75, "PA_benign"),  # gap of less than 15 points
        ("CDD-RED", "pa_benign", 0.80, "PA_benign"),  # not about equal to DS
        ("CDD-RED", "pa_benign", 0.95, "PA_benign"),  # nor when better by that much
        ("DS", "pa_adv", 0.81, "PA_adv"),
        ("DO", "pa_adv", 0.81, "PA_adv"),
        ("DS", "logit_d_benign", 36.0, "benign logit d"),
        ("DO", "logit_d_benign", 37.0, "benign logit d"),
        ("CDD-RED", "logit_d_adv", 116.0, "adversarial logit d"),
        ("DS", "logit_d_adv", 100.0, "adversarial logit d"),
    ],
)
def test_one_changed_number_breaks_its_claim_alone(column: str, measure: str, value: float, broken: str) -> None:
    of = {c: printed("table1", c) | ({measure: value} if c == column else {}) for c in RUNS}
    found = verdicts(one("table1"), {c: exact(means) for c, means in of.items()})
    assert {text for text, verdict in found.items() if verdict == "fails"} == {
        text for text in found if text.startswith(broken)
    }
    assert sorted(found.values()) == ["fails", *["holds"] * 4]


def test_pa_is_the_mean_over_cells_and_distances_over_images() -> None:
    uneven = rows(printed("table1", "DO"), victims=("a", "b"))
    keep = (uneven["victim"] == 0) | (uneven["image"] == 0)  # half of what is attacked on b
    uneven = uneven.take(keep)
    told = (uneven["attacked"] == 1) & (uneven["knowledge"] == 0)
    by_victim = torch.where(uneven["victim"] == 0, 1.0, 0.0).double()
    uneven = uneven.with_columns(pa_adv=torch.where(told, by_victim, 1e6), d=torch.where(told, by_victim, 1e6))
    table = one("table1").table([{c: Seen(rows=uneven) for c in RUNS}])
    assert table["PA_adv", "DO"].mean == pytest.approx(50)
    assert table["d(x, x_RED)", "DO"].mean == pytest.approx(2 / 3)


def test_tableA7_shares_its_runs_with_table1() -> None:
    assert one("tableA7").runs["lambda=0.025"] == RUNS["CDD-RED"]
    assert one("tableA7").runs["DO"] == RUNS["DO"]
    assert "method.lambda_adv=0.05" in one("tableA7").runs["lambda=0.05"]
    of = one("tableA7")
    means = {name: printed("tableA7", name) for name in ("lambda=0", "lambda=0.0125", "lambda=0.05")}
    means |= {"lambda=0.025": printed("table1", "CDD-RED"), "DO": printed("table1", "DO")}
    assert set(verdicts(of, {name: exact(of) for name, of in means.items()}).values()) == {"holds"}
    means["lambda=0.05"]["d"] = 13.0
    found = verdicts(of, {name: exact(of) for name, of in means.items()})
    assert {text for text, verdict in found.items() if verdict != "holds"} == {"d grows with lambda"}


def by_setting(column: str) -> Seen:
    attack = tableA8().evaluations["DO"].attacks
    assert attack is not None
    names = setting_names(attack["pgd"])
    parts = []
    for number, (step, start) in enumerate((s, r) for s in ("4/255", "6/255") for r in (False, True)):
        of = printed("tableA8", column, stepsize=step, random_init=start)
        mine = exact(of, settings=names).rows
        parts.append(mine.take(mine["setting"] == number))
    return Seen(rows=Samples.cat(parts))


def test_tableA8_takes_each_setting_to_its_row() -> None:
    of = one("tableA8")
    columns = {c: by_setting(c) for c in RUNS}
    table = of.table([columns])
    assert len(STEPS) == 4
    assert set(table.cells) == set(of.printed.cells)
    for address, number in of.printed.cells.items():
        assert table[address].mean == pytest.approx(number.mean), address
    assert set(verdicts(of, columns).values()) == {"holds"}
    assert of.figure is not None
    figure = of.figure(columns, table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["d(x, x_RED)", "PA_benign", "PA_adv"]


def test_tableA9_counts_what_was_crafted_on_the_others() -> None:
    of = one("tableA9")
    victims = ("torchvision_vgg16", "lenet", "cnn")
    made = rows({}, victims=victims)
    moved = torch.tensor([9.0, 0.2, 0.4])[made["victim"]]  # on vgg16 itself: nonsense, to be left out
    columns = {f"changed_red_{v}": moved for v in victims} | {f"changed_{v}": moved / 2 for v in victims}
    table = of.table([{c: Seen(rows=made.with_columns(**columns)) for c in RUNS}])
    assert table["VGG16", "DO"].mean == pytest.approx(30)  # of lenet and cnn
    assert table["VGG16", "x' itself"].mean == pytest.approx(15)
    assert set(table.rows) == {"VGG16", "lenet", "cnn"}
    assert set(verdicts(of, {c: Seen(rows=made.with_columns(**columns)) for c in RUNS}).values()) == {"tie"}


def test_fig5_needs_three_of_four_scores() -> None:
    of = one("fig5")
    low, high = dict.fromkeys(IOU.values(), 0.2), dict.fromkeys(IOU.values(), 0.6)
    assert set(verdicts(of, {"DO": seen(low), "DS": seen(low), "CDD-RED": seen(high)}).values()) == {"holds"}
    three = high | {"iou_readded_y": 0.1}
    assert set(verdicts(of, {"DO": seen(low), "DS": seen(low), "CDD-RED": seen(three)}).values()) == {"holds"}
    two = three | {"iou_restored_y": 0.1}
    assert set(verdicts(of, {"DO": seen(low), "DS": seen(low), "CDD-RED": seen(two)}).values()) == {"fails"}


def pictures(of: Samples) -> dict[str, torch.Tensor]:
    names = [f"cam_{i}_{c}" for i in ("clean", "adv", "restored", "readded") for c in ("y", "y'")]
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand(len(of), 1, 8, 8, generator=g) for name in (*names, "clean", "adv")}


def test_fig5_shows_attacked_images_of_every_method_and_the_truth() -> None:
    of = one("fig5")
    made = rows(dict.fromkeys(IOU.values(), 0.5), victims=("a", "b"))
    each = {c: Seen(rows=made, pictures=pictures(made), of=made) for c in RUNS}
    assert of.figure is not None
    figure = of.figure(each, of.table([each]))
    assert len(figure.axes) == 6 * 9  # 3 images with an estimate of each of x and x', 4 pairs of maps and the image
    assert {"DO", "DS", "CDD-RED", "truth", "y", "y'"} <= {text.get_text() for text in figure.texts}


def test_fig7_measures_the_gap_to_the_truth() -> None:
    of = one("fig7")

    def sweep(gap: float, pixels: float) -> Seen:
        means = {}
        for p in SHARES:
            truth = {"accuracy": 1 - p / 2, "success": p / 2, "logit_d": 10 * p, "pixel_d": p}
            off = {"accuracy": -gap, "success": -gap, "logit_d": 10 * gap, "pixel_d": pixels}
            means |= {f"true_{what}_{p:g}": value for what, value in truth.items()}
            means |= {f"{what}_{p:g}": value + off[what] for what, value in truth.items()}
        return exact(means)

    seeds = {"DO": sweep(0.08, 0.1), "DS": sweep(0.05, 0.6), "CDD-RED": sweep(0.01, 0.2)}
    assert set(verdicts(of, seeds).values()) == {"holds"}
    assert of.figure is not None
    figure = of.figure(seeds, of.table([seeds]))
    assert [line.get_label() for line in figure.axes[0].lines] == [*RUNS, "truth"]
    worse = seeds | {"DS": sweep(0.005, 0.05)}
    assert list(verdicts(of, worse).values())[:2] == ["fails", "fails"]
