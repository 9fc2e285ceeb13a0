"""The studies of CDD-RED on made-up rows and on the paper's own numbers."""

import math

import pytest
import torch
from made_up import VALUES, rows, seen

from redlab.crafting.component import check_component, setting_names
from redlab.crafting.describe import described
from redlab.metrics import Samples
from redlab.runs.build import make_mix
from redlab.runs.config import compose, finalise
from redlab.studies import STUDIES, Claim, Seen, Study, find, paper_table
from redlab.studies.cdd_red.appendix import MIXTURE, REVERTED, STEPS, tableA8
from redlab.studies.cdd_red.certifying import PLAIN, RADII
from redlab.studies.cdd_red.comparing import RUNS
from redlab.studies.cdd_red.looking import IOU
from redlab.studies.cdd_red.perturbing import SHARES, row_correlation
from redlab.studies.cdd_red.unseen import KNOWING

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
    "cdd_red/appG": "clean images are not hurt",
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


def test_the_causes_change_one_thing_each_and_look_at_no_test_image() -> None:
    of = one("why_table1")
    assert {name: of.runs[name] for name in RUNS} == RUNS
    for name, words in of.runs.items():
        method = name.split(",")[0]
        assert words[: len(RUNS[method])] == RUNS[method], name
        if name not in RUNS:
            more = words[len(RUNS[method]) :]
            assert len({word.split("=")[0].removesuffix("_adv").removesuffix("_benign") for word in more}) == 1, name
    assert all("data.test_on=val" in asked.overrides for asked in of.evaluations.values())
    assert len(of.claims) == 5 * 11


def test_the_causes_judge_a_weight_of_ds_beside_the_others_of_table_1() -> None:
    of, good = one("why_table1"), {name: printed("table1", name) for name in RUNS}
    poor = good["DS"] | {"d": good["DO"]["d"] / 2}  # nearer than DO, which DS must not be
    made = {name: exact(poor if name.startswith("DS") else good[name.split(",")[0]]) for name in of.runs}
    made["DS, weight=0.3"] = exact(good["DS"])
    text = "d: DO < CDD-RED < DS"
    holding = [how for how, verdict in verdicts(of, made).items() if text in how and verdict == "holds"]
    assert holding == [f"DS, weight=0.3: {text}"]


def test_the_causes_judge_each_condition_by_its_own_runs() -> None:
    of = one("why_table1")
    good = {name: printed("table1", name) for name in RUNS}
    poor = good["CDD-RED"] | {"pa_adv": good["DO"]["pa_adv"] - 0.05}
    made = {name: exact(poor if name.startswith("CDD-RED") else good[name.split(",")[0]]) for name in of.runs}
    made["CDD-RED, lambda=0.08"] = exact(good["CDD-RED"])
    said = verdicts(of, made)
    text = "PA_adv: CDD-RED > DS, DO"
    assert [how for how, verdict in said.items() if text in how and verdict == "holds"] == [
        f"CDD-RED, lambda=0.08: {text}"
    ]
    assert {verdict for how, verdict in said.items() if text not in how} == {"holds"}


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


# ---- attacks of others, and other trainings -------------------------------------------------------------------------

IN_TABLE_2 = {"table2_auto": "AutoAttack", "table2_feature": "Feature Attack"}


@pytest.mark.parametrize("name", ["table2_auto", "table2_feature", "tableA2", "tableA3", "tableA4"])
def test_tables_of_other_attacks_give_the_papers_numbers(name: str) -> None:
    of = one(name)
    means = {c: printed(name, c) for c in RUNS}
    seeds = {c: exact(of) for c, of in means.items()}
    table = of.table([seeds])
    assert set(table.cells) == set(of.printed.cells)
    for address, number in of.printed.cells.items():
        assert table[address].mean == pytest.approx(number.mean), address
    assert set(verdicts(of, seeds).values()) == {"holds"}
    if name in IN_TABLE_2:
        assert all("only=" in " ".join(e.overrides) for e in of.evaluations.values())
    for measure, value in (("d", 1000.0), ("pa_adv", 0.01)):  # no claim is blind to CDD-RED
        worse = seeds | {"CDD-RED": exact(means["CDD-RED"] | {measure: value})}
        if any(word in " ".join(of.claims) for word in ({"d": ("d:",), "pa_adv": ("PA_adv",)}[measure])):
            assert "fails" in verdicts(of, worse).values()


def adaptive_rows(column: str, worse: float) -> Seen:
    """Three ways to know the defence, each with its own numbers; an image is right unless one of them has it wrong."""
    of = printed("table2_adaptive", column)
    parts = []
    for place in range(len(KNOWING)):
        made = rows({})
        known = made.where(knowledge="defence").take(torch.tensor([0, 1]))
        shift = 0.0 if place == 0 else worse
        columns = {k: torch.full((2,), of[k] + shift, dtype=torch.float64) for k in ("d", "pa_benign", "pa_adv")}
        right = torch.tensor([1.0, 0.0 if place == 1 else 1.0]).double()
        codes = torch.full((2,), place + 1, dtype=torch.int64)
        parts.append(Samples(dict(known.columns) | columns | {"right": right, "attack": codes},
                             dict(known.names) | {"attack": ("clean", "pgd_0", "pgd_1", "pgd_2")}))  # fmt: skip
    return Seen(rows=Samples.cat(parts))


def test_the_adaptive_table_stands_beside_autoattack_and_takes_the_worst_image_by_image() -> None:
    of = one("table2_adaptive")
    seen = {c: adaptive_rows(c, 0.02) for c in RUNS}
    seen |= {f"{c}, AutoAttack": exact(printed("table2_auto", c)) for c in RUNS}
    table = of.table([seen])
    for address, number in of.printed.cells.items():
        assert table[address].mean == pytest.approx(number.mean), address
    assert table["PA_adv, Adaptive Attack, BPDA", "DO"].mean == pytest.approx(53.21)
    assert table["accuracy under the worst of the three", "DS"].mean == pytest.approx(50)
    assert set(verdicts(of, seen).values()) == {"holds"}
    words = of.evaluations["DO"].overrides[-1]
    assert all(f"gradient:{word}" in words for word in ("exact", "bpda", "{eot:4}"))


def test_tableA1_has_a_column_for_each_way_back() -> None:
    of = one("tableA1")
    paper = paper_table("cdd_red", "tableA1")
    means = printed("tableA1", "CDD-RED") | {"d_attack": 20.6}
    for column, (name, _, _) in REVERTED.items():
        back = {r["keys"]["metric"]: r["values"][column] for r in paper.rows}
        means |= {f"d_{name}": back["d(x, x_RED)"]}
        means |= {f"{key}_{name}": back[row] / 100 for key, row in (("pa_benign", "PA_benign"), ("pa_adv", "PA_adv"))}
    seen = {"CDD-RED": exact(means)}
    table = of.table([seen])
    for address, number in of.printed.cells.items():
        assert table[address].mean == pytest.approx(number.mean), address
    assert set(verdicts(of, seen).values()) == {"holds"}
    assert "fails" in verdicts(of, {"CDD-RED": exact(means | {"pa_adv_pgd10_20": 0.5})}).values()


@pytest.mark.parametrize("name", ["tableA5", "tableA6"])
def test_tables_of_other_trainings_stand_beside_table1(name: str) -> None:
    of = one(name)
    paper = paper_table("cdd_red", name)
    seen = {c: exact(printed(name, c)) for c in paper.columns} | {"default": exact(printed("table1", "CDD-RED"))}
    table = of.table([seen])
    for address, number in of.printed.cells.items():
        assert table[address].mean == pytest.approx(number.mean), address
    assert set(verdicts(of, seen).values()) == {"holds"}
    assert of.runs["default"] == RUNS["CDD-RED"]
    assert one("tableA5").runs["f=R-Res50"][-1] == "victims.robust.weights=@robust classifier"


def test_fig4_compares_each_augmentation_with_none() -> None:
    of = one("fig4")
    assert of.runs["Base"] == RUNS["DO"]
    means = {name: {"d": 2.0, "pa_benign": 0.5, "pa_adv": 0.5} for name in of.runs}
    means["crop_pad"] = means["cutmix"] = {"d": 1.8, "pa_benign": 0.6, "pa_adv": 0.5}
    means["cutmix + crop_pad"] = {"d": 1.7, "pa_benign": 0.6, "pa_adv": 0.5}
    assert set(verdicts(of, {name: exact(m) for name, m in means.items()}).values()) == {"holds"}
    means["cutmix"] = {"d": 2.1, "pa_benign": 0.5, "pa_adv": 0.5}
    found = verdicts(of, {name: exact(m) for name, m in means.items()})
    assert list(found.values()) == ["fails", "holds"]


def test_cost_takes_the_least_of_all_batches_and_the_ratio_to_do() -> None:
    of = one("cost")

    def took(step: float) -> Seen:
        made = rows({})
        spent = torch.full((len(made),), step, dtype=torch.float64)
        spent[0] *= 9
        return Seen(rows=made.with_columns(step_s=spent, restore_s=spent / 10))

    seen = {"DO": took(1.0), "DS": took(1.5), "CDD-RED": took(3.0)}
    table = of.table([seen])
    assert table["CDD-RED", "epoch time"].mean == pytest.approx(3)
    assert table["DS", "a training step, times that of DO"].mean == pytest.approx(1.5)
    assert set(verdicts(of, seen).values()) == {"holds"}
    assert set(verdicts(of, seen | {"DS": took(0.9)}).values()) == {"fails"}


def test_a_mixture_is_three_thirds_whatever_their_numbers() -> None:
    of = one("appG")
    names = {"attack": ("clean", *MIXTURE), "knowledge": ("victim", "defence")}

    def mixed(attacked: float, noisy: float, clean: float) -> Seen:
        kinds = [("clean", 5, clean, 1.0), ("noise", 3, noisy, 0.9)]
        kinds += [(attack, 2, attacked, 0.0) for attack in ("pgd", "cw")]
        found: dict[str, list[float]] = {"attack": [], "right_restored": [], "right_attacked": [], "attacked": []}
        for kind, count, restored, before in kinds:
            for _ in range(count):
                values = (names["attack"].index(kind), restored, before, float(kind in ("pgd", "cw")))
                for column, value in zip(found, values, strict=True):
                    found[column].append(value)
        found |= {"knowledge": [0] * 12, "right_clean": [1.0] * 12}
        wrong = Samples(found | {"right_clean": [0.0] * 12, "right_restored": [0.0] * 12}, names)
        return Seen(rows=Samples.cat([Samples(found, names), wrong]))

    seen = {"DO": mixed(0.3, 0.9, 1.0), "DS": mixed(0.8, 0.9, 0.96), "CDD-RED": mixed(0.85, 0.95, 0.97)}
    table = of.table([seen])
    assert table["before denoising", "accuracy"].mean == pytest.approx(100 * 1.9 / 3)
    assert table["DO", "accuracy"].mean == pytest.approx(100 * 2.2 / 3)
    assert table["CDD-RED", "clean images"].mean == pytest.approx(97)
    assert set(verdicts(of, seen).values()) == {"holds"}
    assert "fails" in verdicts(of, seen | {"CDD-RED": mixed(0.85, 0.95, 0.9)}).values()


def test_the_mixture_has_the_attacks_of_training() -> None:
    trained = make_mix(finalise(compose(["method=cdd_red", "mix=cdd_red_known"])))
    assert described({k: part for k, part in MIXTURE.items() if k != "noise"}) == described(trained.components)


# ---- where the victim looks, and what attacks have in common --------------------------------------------------------


def test_fig6_asks_for_mean_and_median() -> None:
    of = one("fig6")
    low, high = dict.fromkeys(IOU.values(), 0.2), dict.fromkeys(IOU.values(), 0.6)
    seen_of = {"DO": seen(low), "DS": seen(low), "CDD-RED": seen(high)}
    assert set(verdicts(of, seen_of).values()) == {"holds"}
    better = high | {"iou_readded_y": 0.9, "iou_restored_y": 0.9}
    assert set(verdicts(of, seen_of | {"DS": seen(better)}).values()) == {"fails"}
    assert of.figure is not None
    assert len(of.figure(seen_of, of.table([seen_of])).axes) == 4


def test_figA1_is_the_area_of_attacked_against_clean_images() -> None:
    of = one("figA1")

    def told(gap: float) -> Seen:
        made = rows({})
        step = made["image"].double() / 10
        score = made["attacked"] * gap + step
        return Seen(rows=made.with_columns(score_attribution=score, score_attribution_iou=-score))

    seen_of = {"DS": told(0.05), "CDD-RED": told(1.0)}
    table = of.table([seen_of])
    assert table["area, by cosine", "CDD-RED"].mean == 1
    assert table["area, by cosine", "DS"].mean == pytest.approx(0.75)
    assert table["area, by overlap", "CDD-RED"].mean == 0
    assert set(verdicts(of, seen_of).values()) == {"holds"}
    assert set(verdicts(of, {"DS": told(0.0), "CDD-RED": told(1.0)}).values()) == {"tie"}


def test_row_correlation_is_spearmans() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [10.0, -3.0, 0.5, 2.0]])
    b = torch.tensor([[0.1, 9.0, 99.0, 100.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    ranks = ([4, 1, 2, 3], [1, 2, 3, 4])
    by_hand = 1 - 6 * sum((p - q) ** 2 for p, q in zip(*ranks, strict=True)) / (4 * 15)
    assert row_correlation(a, b).tolist() == pytest.approx([1, -1, by_hand])


def alike(estimates_follow: bool) -> Seen:
    """Three attacks on two victims: logits of an attack have an order of its own, less so on the other victim."""
    g = torch.Generator().manual_seed(0)
    base = {attack: torch.randn(30, 10, generator=g) for attack in ("fgsm", "pgd", "cw")}
    noise = {"fgsm": 0.05, "pgd": 0.5, "cw": 1.0}
    parts = []
    names = {"attack": ("clean", "fgsm", "pgd", "cw"), "victim": ("a", "b"), "knowledge": ("victim", "defence")}
    for code, attack in enumerate(base, start=1):
        for victim in (0, 1):
            true = base[attack] + noise[attack] * torch.randn(30, 10, generator=g)
            red = true + 0.01 if estimates_follow else torch.randn(30, 10, generator=g)
            sides = (("true", true), ("red", red))
            columns = {f"{n}_logit_{k}": of[:, k].double() for n, of in sides for k in range(10)}
            codes = {"attack": [code] * 30, "victim": [victim] * 30, "knowledge": [0] * 30, "attacked": [1.0] * 30}
            parts.append(Samples({"image": list(range(30)), **codes, **columns}, names))
    return Seen(rows=Samples.cat(parts))


def test_fig8_compares_the_likenesses_of_estimates_with_those_of_attacks() -> None:
    of = one("fig8")
    found = {"CDD-RED": alike(True)}
    table = of.table([found])
    assert table["truth: fgsm a", "fgsm a"].mean == pytest.approx(1)
    assert table["truth: pgd a", "pgd b"].mean > table["truth: pgd a", "fgsm b"].mean + 0.3
    assert set(verdicts(of, found).values()) == {"holds"}
    assert next(iter(verdicts(of, {"CDD-RED": alike(False)}).values())) == "fails"
    assert of.figure is not None
    assert len(of.figure(found, table).axes) == 3  # and the scale


def test_figA2_matches_with_the_networks_that_the_denoiser_knows() -> None:
    of = one("figA2")
    made = rows({}, victims=("a", "b", "new"))
    own = torch.where(made["victim"] == 2, 1.0, -9.0).double()  # what is crafted on the others does not count
    cosines = {"FGSM": 0.1, "PGD": 0.4, "CW": 0.2}
    columns = {f"cosine_{n}_{v}": own * c for n, c in cosines.items() for v in ("a", "b")}
    columns |= {f"cosine_{n}_new": own for n in cosines}
    found = {"CDD-RED": Seen(rows=made.with_columns(**columns))}
    table = of.table([found])
    assert table["b PGD", "cosine"].mean == pytest.approx(0.4)
    assert table["images whose best match is PGD", "cosine"].mean == 1
    assert not any("new" in row for row in table.rows)
    assert set(verdicts(of, found).values()) == {"holds"}


def test_figA3_counts_what_is_certain_to_be_right() -> None:
    of = one("figA3")
    made = rows({})

    def certain(radius: float) -> Seen:
        radii = torch.where(made["image"] == 0, radius, -1.0).double()
        return Seen(rows=made.with_columns(radius=radii, radius_plain=torch.full_like(radii, -1.0)))

    found = {"DO": certain(0.1), "DS": certain(0.3), "CDD-RED": certain(0.5)}
    table = of.table([found])
    assert [table[f"certified at {r:g}", "DS"].mean for r in RADII] == [50, 50, 50, 50, 0, 0, 0]
    assert table["certified at 0", PLAIN].mean == 0
    assert set(verdicts(of, found).values()) == {"holds"}
    assert list(verdicts(of, found | {"DO": certain(0.6), "DS": certain(0.1)}).values()) == ["fails", "holds"]
