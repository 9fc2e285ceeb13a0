"""The studies of REDRL on made-up rows and on the paper's own numbers."""

from collections.abc import Mapping

import pytest
import torch
from made_up_redrl import EPS, answered, failing, is_only, one, rows, verdicts, with_eps
from omegaconf import OmegaConf

from redlab.metrics import Samples
from redlab.runs.config import compose, conf_dir
from redlab.studies import Seen, paper_table
from redlab.studies.redrl.recognition import (
    ALL,
    CLASSES,
    DELTA,
    IMAGE,
    RESIDUAL,
    WEIGHTS,
    recognition,
)
from redlab.studies.study import by_eps, eps_of

NAMES = {text: name for name, text in CLASSES.items()}


def column(table: str, name: str, **changed: float) -> dict[str, float]:
    """The paper's numbers of the six classes in a column, some of them changed."""
    found = {row["keys"]["class"]: row["values"][name] for row in paper_table("redrl", table).rows}
    return {c: changed.get(NAMES[c], found[c]) for c in ALL}


def recognising(shares: Mapping[str, float]) -> Seen:
    return answered({NAMES[c]: {NAMES[c]: share} for c, share in shares.items()})


# ---- which attack it was --------------------------------------------------------------------------------------------

PRINTED = [(t, name) for t in ("table3_cifar", "table3_tiny") for name in (IMAGE, DELTA, RESIDUAL)]
PRINTED += [(t, name) for t in ("table5_cifar", "table5_tiny") for name in ("A", "B", "C", "REDRL")]


@pytest.mark.parametrize(("table", "name"), PRINTED)
def test_the_weights_give_the_papers_totals(table: str, name: str) -> None:
    """Its class values are cut off after one decimal: so each is up to 0.1 larger, and so is the total."""
    shares = column(table, name)
    total = paper_table("redrl", table).row(**{"class": "Total"})[name]
    ours = recognition(recognising(shares).rows)
    assert {c: ours[c] for c in ALL} == pytest.approx(shares)
    assert sum(WEIGHTS.values()) == 61
    assert ours["Total"] - 0.1 < total < ours["Total"] + 0.12


def test_the_total_of_the_paper_is_no_mean_over_classes() -> None:
    shares = column("table3_cifar", IMAGE)
    assert abs(sum(shares.values()) / 6 - 57.5) > 5


def test_the_total_counts_classes_not_rows() -> None:
    shares = column("table3_cifar", IMAGE)
    found = recognising(shares).rows
    pgd = (found["attack"] == 1).nonzero()[:, 0]
    twice = found.take(torch.cat([torch.arange(len(found)), pgd, pgd]))
    assert recognition(twice) == pytest.approx(recognition(found))


def test_attackers_who_know_the_defence_do_not_count() -> None:
    found = recognising(column("table3_cifar", RESIDUAL)).rows
    knowing = found.where(attack="pgd").with_columns(knowledge=torch.ones(1000), identified=torch.zeros(1000))
    assert recognition(Samples.cat([found, knowing])) == pytest.approx(recognition(found))


def of_table(table: str, **changed: float) -> dict[str, Seen]:
    """The evaluations behind a table; ``changed`` is ``<class>__<number of the column>``."""
    of = {}
    for place, name in enumerate(one(table).runs):
        mine = {key.split("__")[0]: value for key, value in changed.items() if key.endswith(f"__{place}")}
        of[name] = recognising(column(table, name, **mine))
    return of


@pytest.mark.parametrize("table", ["table3_cifar", "table3_tiny", "table5_cifar", "table5_tiny"])
def test_a_table_of_recognition_gives_the_papers_numbers_on_rows_that_have_them(table: str) -> None:
    of = one(table)
    ours = of.table([of_table(table)])
    assert set(ours.cells) == set(of.printed.cells)
    for address, number in of.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=0.12 if address[0] == "Total" else 1e-6)
    assert failing(of, of_table(table)) == set()


@pytest.mark.parametrize(
    ("table", "changed", "broken"),
    [
        ("table3_cifar", {"patch__0": 100.0, "pgd__0": 100.0, "deepfool__0": 100.0}, "total: I_adv <<"),
        ("table3_cifar", {"patch__2": 80.0}, "total: I_r,I_adv ~"),
        ("table3_cifar", {"clean__0": 34.0}, "Clean is the least"),
        ("table3_cifar", {"clean__2": 94.0}, "Clean about 100"),
        ("table3_tiny", {"patch__1": 60.0}, "total: I_adv < I_r"),
        ("table3_tiny", {"deepfool__2": 30.0}, "I_r,I_adv loses"),
        ("table5_cifar", {"patch__2": 80.0}, "total: A < B"),
        ("table5_cifar", {"cw_l2__3": 86.0, "patch__2": 90.0, "patch__1": 88.0, "patch__0": 86.0}, "the gain"),
        ("table5_tiny", {"deepfool__3": 94.0}, "DeepFool drops"),
        ("table5_tiny", {"patch__0": 99.9, "cw_linf__0": 60.0}, "total: A < B"),
    ],
)
def test_a_changed_number_breaks_its_claim_alone(table: str, changed: dict[str, float], broken: str) -> None:
    assert is_only(failing(one(table), of_table(table, **changed)), broken)


def test_the_halves_of_a_table_have_the_same_runs() -> None:
    for table in ("table3", "table4", "table5"):
        assert one(f"{table}_cifar").runs == one(f"{table}_tiny").runs
        assert one(f"{table}_cifar").evaluations == one(f"{table}_tiny").evaluations
    assert one("table3_cifar").runs[RESIDUAL] == one("table5_cifar").runs["REDRL"] == ["method=redrl"]
    words = one("table5_cifar").runs
    assert words["A"][1:] == ["method.lambda_feature=0", "method.lambda_class=0"]
    assert (words["B"][1:], words["C"][1:]) == (["method.lambda_class=0"], ["method.lambda_feature=0"])


def of_fig1(**changed: float) -> dict[str, Seen]:
    image = column("table3_cifar", IMAGE, **changed)
    delta = column("table3_cifar", DELTA, **{k.removeprefix("d_"): v for k, v in changed.items() if k[:2] == "d_"})
    return {IMAGE: recognising(image), DELTA: recognising(delta)}


def test_fig1_has_the_truth_in_rows_and_answers_in_columns() -> None:
    of = one("fig1a")
    said = {NAMES[c]: {NAMES[c]: share} for c, share in column("table3_cifar", IMAGE).items()}
    said["cw_l2"] = {"cw_l2": 73.4, "deepfool": 20.0, "pgd": 6.6}
    seen = {IMAGE: answered(said), DELTA: of_fig1()[DELTA]}
    table = of.table([seen])
    assert table["CW-L2", "DeepFool"].mean == pytest.approx(20)
    assert table["DeepFool", "CW-L2"].mean == 0
    for c in ALL:
        assert sum(number.mean for number in table.row(c).values()) == pytest.approx(100)
        assert of.printed[c, c].mean == table[c, c].mean
    assert of.printed[IMAGE, "accuracy"].mean == 57.55
    assert table[DELTA, "accuracy"].mean == pytest.approx(94.23, abs=0.12)
    assert of.figure is not None
    figure = of.figure(seen, table)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(ALL)
    assert "20" in {text.get_text() for text in figure.axes[0].texts}


@pytest.mark.parametrize(
    ("panel", "changed", "broken"),
    [
        ("fig1a", {"patch": 100.0, "pgd": 100.0, "deepfool": 100.0}, "total far below"),
        ("fig1a", {"clean": 57.0}, "Clean and CW-Linf"),
        ("fig1b", {"d_pgd": 94.0}, "Clean, PGD and Patch"),
        ("fig1b", {"d_cw_linf": 90.0}, "CW-Linf clearly worst"),
    ],
)
def test_fig1_breaks_where_a_number_changes(panel: str, changed: dict[str, float], broken: str) -> None:
    assert failing(one(panel), of_fig1()) == set()
    assert is_only(failing(one(panel), of_fig1(**changed)), broken)


def test_the_gain_is_relative_to_what_the_image_alone_gives() -> None:
    of = one("gain_text")
    seen = {IMAGE: recognising(dict.fromkeys(ALL, 50.0)), RESIDUAL: recognising(dict.fromkeys(ALL, 80.0))}
    assert of.table([seen])["data set of the card", "improvement"].mean == pytest.approx(60)
    found = verdicts(of, seen)
    assert found["by more than 20 %"] == "holds"
    assert "not in the table" in found["more on the easier data set"]
    seen[RESIDUAL] = recognising(dict.fromkeys(ALL, 59.0))
    assert verdicts(of, seen)["by more than 20 %"] == "fails"


# ---- accuracy -------------------------------------------------------------------------------------------------------

VICTIMS = ("torchvision_resnet50", "torchvision_resnext50", "torchvision_densenet121", "torchvision_vgg19")
IN_PRINT = dict(zip(VICTIMS, ("ResNet50", "ResNeXt50", "DenseNet121", "VGG19"), strict=True))


def of_table4(table: str, changed: Mapping[tuple[str, str, str], float] | None = None) -> Seen:
    """Rows with the paper's numbers; some are changed, by (network, class, side)."""
    paper = paper_table("redrl", table)

    def measures(attack: str, _: str, victim: str) -> dict[str, float]:
        network, c = IN_PRINT[victim], CLASSES[attack]
        found = paper.row(network=network, **{"class": c})
        sides = {side: (changed or {}).get((network, c, side), value) / 100 for side, value in found.items()}
        return {"right_attacked": sides["I"], "right_restored": sides["G(I)"], "right_clean": 0.9}

    return Seen(rows=rows(measures, victims=VICTIMS))


@pytest.mark.parametrize("table", ["table4_cifar", "table4_tiny"])
def test_table4_gives_the_papers_numbers_on_rows_that_have_them(table: str) -> None:
    of = one(table)
    seen = {RESIDUAL: of_table4(table)}
    ours = of.table([seen])
    for address, number in of.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean), address
    assert ours["VGG19, attacker knows the defence", "G(I)"].mean == pytest.approx(25)
    assert failing(of, seen) == set()
    assert of.figure is not None
    figure = of.figure(seen, ours)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["I", "G(I)"]


@pytest.mark.parametrize(
    ("table", "cell", "value", "broken"),
    [
        ("table4_cifar", ("VGG19", "Clean", "G(I)"), 94.0, "clean images unchanged"),
        ("table4_cifar", ("ResNet50", "CW-Linf", "G(I)"), 63.0, "every attack but Patch"),
        ("table4_cifar", ("DenseNet121", "Patch", "G(I)"), 91.0, "Patch back"),
        ("table4_tiny", ("ResNet50", "PGD", "G(I)"), 10.0, "PGD, CW-L2 and CW-Linf"),
        ("table4_tiny", ("VGG19", "Clean", "G(I)"), 60.0, "clean images unchanged"),
        ("table4_tiny", ("ResNeXt50", "DeepFool", "G(I)"), 43.0, "DeepFool recovered best"),
    ],
)
def test_one_changed_cell_breaks_its_claim_of_table4(table: str, cell, value: float, broken: str) -> None:
    assert is_only(failing(one(table), {RESIDUAL: of_table4(table, {cell: value})}), broken)


def test_table1_and_table2_look_at_the_victims_alone() -> None:
    of = one("table2_attacks")
    seen = {"victims": of_table4("table4_cifar")}
    ours = of.table([seen])
    assert set(ours.cells) == set(of.printed.cells)
    assert all(ours[address].mean == pytest.approx(number.mean) for address, number in of.printed.cells.items())
    assert failing(of, seen) == set()
    for cell, value in {
        ("VGG19", "PGD", "I"): 5.5,  # above CW-Linf
        ("ResNet50", "CW-L2", "I"): 3.5,  # above PGD
        ("ResNet50", "Patch", "I"): 33.0,
        ("DenseNet121", "Patch", "I"): 94.5,  # above clean
    }.items():
        assert len(failing(of, {"victims": of_table4("table4_cifar", {cell: value})})) == 1, cell


def test_table1_needs_good_and_similar_victims() -> None:
    of = one("table1")

    def clean(**accuracy: float) -> dict[str, Seen]:
        measures = {name: {"right_clean": value / 100} for name, value in accuracy.items()}
        made = rows(lambda attack, _, victim: measures[victim], victims=tuple(accuracy))
        shuffled = torch.where(made["attack"] == 0, made["right_clean"], 1e6)  # of clean rows alone
        return {"victims": Seen(rows=made.with_columns(right_clean=shuffled))}

    good = clean(torchvision_resnet50=94.0, lenet=90.0)
    table = of.table([good])
    assert table["clean accuracy", "ResNet50"].mean == pytest.approx(94)
    assert table["clean accuracy", "lenet"].mean == pytest.approx(90)
    assert failing(of, good) == set()
    assert is_only(failing(of, clean(a=84.0, b=86.0)), "good")
    assert is_only(failing(of, clean(a=86.0, b=92.0)), "similar")


def test_table2_by_eps_pools_the_sizes_of_a_patch() -> None:
    of = one("table2_eps")

    def left(attack: str, setting: str, victim: str) -> dict[str, float]:
        place = [eps in setting.split() for eps in EPS].index(True) if "eps" in setting else 0
        size = 0.1 * ("size=4" in setting)
        return {"right_attacked": (0.6, 0.3, 0.1)[place] + size}

    made = rows(left, settings=with_eps)
    table = of.table([{"victims": Seen(rows=made)}])
    assert table["Patch, eps=16/255", "a"].mean == pytest.approx(15)
    assert table["PGD, eps=8/255", "b"].mean == pytest.approx(30)
    assert list(table.column("a")) == [f"{c}, {eps}" for c in ("PGD", "CW-Linf", "Patch") for eps in EPS]
    assert failing(of, {"victims": Seen(rows=made)}) == set()
    higher = torch.isin(made["setting"], made.names["setting"].index("eps=16/255")) & (made["victim"] == 1)
    higher &= made["attack"] == made.names["attack"].index("pgd")
    rising = made.with_columns(right_attacked=torch.where(higher, 0.5, made["right_attacked"]))
    assert is_only(failing(of, {"victims": Seen(rows=rising)}), "PGD")
    flat = rows(lambda *cell: {"right_attacked": 0.0}, settings=with_eps)
    assert set(verdicts(of, {"victims": Seen(rows=flat)}).values()) == {"tie"}


def test_eps_is_read_out_of_the_name_of_a_setting() -> None:
    assert eps_of("eps=4/255") == eps_of("size=8 eps=4/255") == 4 / 255
    assert eps_of("eps=0.01") == 0.01
    assert eps_of("c=100") is eps_of("") is eps_of("steps=3") is None
    made = rows(lambda *_: {"d": 1.0}, settings=with_eps)
    assert [255 * eps for eps in by_eps(made.where(attack="patch"))] == pytest.approx([4, 8, 16])
    assert by_eps(made.where(attack="deepfool")) == {}


def test_table5_cls_pools_attacked_images() -> None:
    of = one("table5_cls")

    def scenario(attacked: float) -> Seen:
        return Seen(rows=rows(lambda attack, *_: {"right_restored": 0.9 if attack == "clean" else attacked}))

    seen = {name: scenario(0.8 if name in ("C", "REDRL") else 0.7) for name in of.runs}
    assert of.table([seen])["attacked", "C"].mean == pytest.approx(80)
    assert of.table([seen])["Clean", "A"].mean == pytest.approx(90)
    assert failing(of, seen) == set()
    assert len(failing(of, seen | {"B": scenario(0.76)})) == 1


def test_a_folder_of_images_goes_by_a_name_of_its_own_on_a_card() -> None:
    """A number measured on a part or a copy of a data set must not be printed as one of the data set itself."""
    found = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / "redrl.yaml").scales)
    names = {scale: compose([w for w in words if w.startswith("data")]).data.name for scale, words in found.items()}
    smaller = {"smoke": "digits", "small": "fashion_mnist", "small_cifar": "cifar10_first4000"}
    smaller |= dict.fromkeys(("long_cifar", "wide_cifar"), "cifar10_first4000")
    assert names == smaller | {"paper": "cifar10_64"}
