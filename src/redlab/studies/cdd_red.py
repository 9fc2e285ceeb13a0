"""Studies of CDD-RED: "Reverse Engineering of Imperceptible Adversarial Image Perturbations" (ICLR 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from redlab.attacks import PGD
from redlab.crafting import Component
from redlab.crafting.component import setting_names
from redlab.metrics import Samples, cell_mean
from redlab.probes import Attribution, PartialPerturbation, Transfer
from redlab.report.plots import curve, image_grid
from redlab.studies.numbers import Claim, Number, average, every, increasing, most, span
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_column
from redlab.studies.table import Address, Table

# The baselines are not augmented, whatever a scale chooses for CDD-RED.
RUNS = {
    "DO": ["method=do", "method.aug_mode=none"],
    "DS": ["method=ds", "method.aug_mode=none"],
    "CDD-RED": ["method=cdd_red"],
}
OWN = {name: Evaluation(run=name) for name in RUNS}


def diagnosed(**asked: Any) -> dict[str, Evaluation]:
    """Each run looked at in the same way."""
    return {name: Evaluation(run=name, overrides=DIAGNOSIS, **asked) for name in RUNS}


D = "d(x, x_RED)"
LOGIT_BENIGN = "d(f(x), f(x_RED))"
LOGIT_ADV = "d(f(x'), f(x'_RED))"
PA_BENIGN, PA_ADV = "PA_benign", "PA_adv"
RMS, RMS_ATTACK = "rms(x_RED - x)", "rms(x' - x)"
ATTACKED, RESTORED = "accuracy, attacked", "accuracy, restored"
ADAPTIVE = "accuracy, restored, attacker knows the defence"
UNITS = {D: "L2", LOGIT_BENIGN: "L2", LOGIT_ADV: "L2", PA_BENIGN: "%", PA_ADV: "%", RMS: "1/255", RMS_ATTACK: "1/255"}
UNITS |= {ATTACKED: "%", RESTORED: "%", ADAPTIVE: "%"}

NEAR = 5.0
"""How many points of prediction alignment we read as "about equal"; the paper's own differ by 0.93."""

NOTES = (
    "d is a Euclidean norm over the image and grows with its size, so it can be compared across methods only, not with "
    "the paper's; rms(x_RED - x) = d / sqrt(C*H*W), in grey levels of 1/255, is free of the size. The paper's d over "
    "3*224*224 values (a size that the paper implies, not states) would be 6.1 (DO), 12.6 (DS) and 8.6 (CDD-RED) grey "
    "levels, on other data and attacks.",
    f"≈ is read as within {NEAR:g} points; the paper gives no number for it.",
)
IMAGENET = "ImageNet, 28K attacked images, FGSM, PGD and CW on five classifiers"


def alignment(rows: Samples) -> dict[str, float]:
    """The three measures of most tables; PA is the mean over cells, as the authors' code has it."""
    return {
        D: rows.mean("d"),
        PA_BENIGN: 100 * cell_mean(rows, "pa_benign"),
        PA_ADV: 100 * cell_mean(rows, "pa_adv"),
    }


def _table1_rows(rows: Samples) -> dict[str, float]:
    known = rows.where(knowledge="victim")
    rms = float((10 ** (-known["psnr"] / 20)).mean())  # psnr is that of the rms for a range of 1
    return alignment(known) | {
        LOGIT_BENIGN: known.mean("logit_d_benign"),
        LOGIT_ADV: known.mean("logit_d_adv"),
        RMS: 255 * rms,
        RMS_ATTACK: 255 * rms * known.mean("d_attack") / known.mean("d"),
        ATTACKED: 100 * known.mean("right_attacked"),
        RESTORED: 100 * known.mean("right_restored"),
        ADAPTIVE: 100 * rows.where(knowledge="defence").mean("right"),
    }


def table1() -> Study:
    """Table 1: DO, DS and CDD-RED on held-out images of the attacks that they were trained on."""
    return Study(
        id="cdd_red/table1",
        title="DO, DS and CDD-RED on known attacks (Table 1)",
        runs=RUNS,
        evaluations=OWN,
        numbers=by_column(_table1_rows, attacked=1),
        claims={
            "d: DO < CDD-RED < DS": lambda t: _between(t, D),
            "PA_benign: CDD-RED ≈ DS (within 5 points) ≫ DO (by more than 15 points)": lambda t: (
                t[PA_BENIGN, "CDD-RED"].near(t[PA_BENIGN, "DS"], by=NEAR)
                & (t[PA_BENIGN, "DO"] + 15 < t[PA_BENIGN, "DS"])
                & (t[PA_BENIGN, "DO"] + 15 < t[PA_BENIGN, "CDD-RED"])
            ),
            "PA_adv: CDD-RED > DS, DO": lambda t: _best(t, PA_ADV),
            "benign logit d: CDD-RED ≤ DS < DO": lambda t: (
                (t[LOGIT_BENIGN, "CDD-RED"] <= t[LOGIT_BENIGN, "DS"]) & (t[LOGIT_BENIGN, "DS"] < t[LOGIT_BENIGN, "DO"])
            ),
            "adversarial logit d: CDD-RED < DO < DS": lambda t: increasing(
                t[LOGIT_ADV, name] for name in ("CDD-RED", "DO", "DS")
            ),
        },
        paper=paper_table("cdd_red", "table1"),
        paper_data=IMAGENET,
        units=UNITS,
        notes=(
            *NOTES,
            "Logit distances depend on the classifiers and their number of classes: compare across methods only.",
            "The last row is not in the paper: the attacker takes gradients through restorer and classifier together. "
            "It is the accuracy to expect of the defence once it is known.",
        ),
    )


def _between(t: Table, row: str) -> Claim:
    return increasing(t[row, name] for name in ("DO", "CDD-RED", "DS"))


def _best(t: Table, row: str) -> Claim:
    return every(t[row, "CDD-RED"] > t[row, name] for name in ("DS", "DO"))


LAMBDAS = ("0", "0.0125", "0.025", "0.05")


def tableA7() -> Study:
    """Table A7: the weight of prediction alignment."""
    weights = {f"lambda={v}": [f"method.lambda_benign={v}", f"method.lambda_adv={v}"] for v in LAMBDAS}
    zero, small, default, large = weights
    weights[default] = []  # so that its runs are those of Table 1
    runs = {"DO": RUNS["DO"], **{name: [*RUNS["CDD-RED"], *words] for name, words in weights.items()}}
    return Study(
        id="cdd_red/tableA7",
        title="The weight of prediction alignment (Table A7)",
        runs=runs,
        evaluations={name: Evaluation(run=name) for name in runs},
        numbers=by_column(alignment, attacked=1, knowledge="victim"),
        claims={
            "d grows with lambda": lambda t: increasing(t[D, name] for name in weights),
            "PA_benign rises by more than 15 from lambda=0": lambda t: t[PA_BENIGN, zero] + 15 < t[PA_BENIGN, small],
            "PA_benign saturates by lambda=0.025 (within 5 points)": lambda t: (
                (t[PA_BENIGN, small] < t[PA_BENIGN, default]) & t[PA_BENIGN, default].near(t[PA_BENIGN, large], by=NEAR)
            ),
            "augmentation alone (lambda=0) is no worse than DO": lambda t: (
                (t[D, zero] <= t[D, "DO"])
                & (t[PA_BENIGN, zero] >= t[PA_BENIGN, "DO"])
                & (t[PA_ADV, zero] >= t[PA_ADV, "DO"])
            ),
        },
        figure=lambda _, t: curve(
            {row: {"CDD-RED": {v: t[row, f"lambda={v}"] for v in LAMBDAS}} for row in (D, PA_BENIGN, PA_ADV)},
            x_title="lambda",
            title="The weight of prediction alignment",
        ),
        # Table A7 leaves out the default, which is in Table 1
        paper=paper_table("cdd_red", "tableA7").beside(
            paper_table("cdd_red", "table1"), {"CDD-RED": default, "DO": "DO"}
        ),
        paper_data=IMAGENET,
        units=UNITS,
        notes=NOTES,
    )


STEPS = {
    f"{step}/255, random_init={start}": {"step_size": step / 255, "random_start": start}
    for step in (4, 6)
    for start in (False, True)
}
"""A row's tail in Table A8 -> the setting."""


def tableA8() -> Study:
    """Table A8: PGD with other steps, with and without a random start."""
    # The paper fixes eps, but does not say to what: 20/255 is the middle of what training draws from. It attacks
    # ResNet-50 alone, we all victims of the scale.
    pgd = Component(attack=PGD(eps=20 / 255, steps=10), settings=list(STEPS.values()))

    def numbers(rows: Samples) -> dict[str, float]:
        known = rows.where(knowledge="victim", attack="pgd")
        names = zip(STEPS, setting_names(pgd), strict=True)
        found = {case: alignment(known.where(setting=name)) for case, name in names}
        return {f"{metric}, {case}": found[case][metric] for metric in (D, PA_BENIGN, PA_ADV) for case in STEPS}

    def over(t: Table, metric: str, name: str) -> dict[str, Number]:
        return {case.replace(", random_init", "\nstart"): t[f"{metric}, {case}", name] for case in STEPS}

    return Study(
        id="cdd_red/tableA8",
        title="PGD with other steps and starts (Table A8)",
        runs=RUNS,
        evaluations=diagnosed(attacks={"pgd": pgd}),
        numbers=by_column(numbers, attacked=1),
        claims={
            "d: DO < CDD-RED < DS, in all four": lambda t: every(_between(t, f"{D}, {case}") for case in STEPS),
            "PA_adv: CDD-RED best, in all four": lambda t: every(_best(t, f"{PA_ADV}, {case}") for case in STEPS),
            "d moves by less than a tenth over the four": lambda t: every(
                span(over(t, D, name)) < 0.1 * average(over(t, D, name)) for name in RUNS
            ),
            "PA moves by less than 5 points, but for PA_benign of DO": lambda t: every(
                span(over(t, metric, name)) < NEAR
                for metric, names in ((PA_BENIGN, ("DS", "CDD-RED")), (PA_ADV, RUNS))
                for name in names
            ),
            "PA_benign of DO moves most": lambda t: every(
                span(over(t, PA_BENIGN, "DO")) > span(over(t, PA_BENIGN, name)) for name in ("DS", "CDD-RED")
            ),
        },
        figure=lambda _, t: curve(
            {metric: {name: over(t, metric, name) for name in RUNS} for metric in (D, PA_BENIGN, PA_ADV)},
            x_title="step size, random start",
            title="PGD with other steps and starts",
        ),
        paper=paper_table("cdd_red", "tableA8"),
        paper_data="ImageNet, 200 images, PGD on ResNet-50",
        notes=NOTES,
    )


IN_THE_PAPER = {
    "torchvision_resnet18": "ResNet-18",
    "torchvision_vgg16": "VGG16",
    "torchvision_vgg19": "VGG19",
    "torchvision_inception_v3": "Inception-V3",
}


def tableA9() -> Study:
    """Table A9: what the estimated perturbation does to networks that it was not crafted on."""
    # The paper crafts on ResNet-50 alone; here every victim of the scale is attacked, and judged by the others. It does
    # not say whether images that a network gets wrong anyway count; here success is any change of its answer.
    pgd = Component(attack=PGD(eps=20 / 255, steps=10))

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for column, each in seen.items():
            rows = each.rows.where(attack="pgd", knowledge="victim")
            victims = rows.values("victim")
            for judge in victims:
                others = rows.where(victim=[name for name in victims if name != judge])
                row = IN_THE_PAPER.get(judge, judge)
                table[row, column] = 100 * others.mean(f"changed_red_{judge}")
                table[row, "x' itself"] = 100 * others.mean(f"changed_{judge}")
        return table

    return Study(
        id="cdd_red/tableA9",
        title="Success of the estimated perturbation on other networks (Table A9)",
        runs=RUNS,
        evaluations=diagnosed(attacks={"pgd": pgd}, probe=Transfer()),
        numbers=numbers,
        claims={"CDD-RED above DO and DS on every network": lambda t: every(_best(t, row) for row in t.rows)},
        paper=paper_table("cdd_red", "tableA9"),
        paper_data="ImageNet, 200 images, PGD on ResNet-50",
        notes=("The column x' itself, the attack before any estimate, is not in the paper.",),
    )


IOU = {
    "IoU(x_RED, x, y)": "iou_restored_y",
    "IoU(x_RED, x, y')": "iou_restored_y'",
    "IoU(x'_RED, x', y)": "iou_readded_y",
    "IoU(x'_RED, x', y')": "iou_readded_y'",
}


def fig5() -> Study:
    """Fig. 5: where the victim looks on estimates and on the truth; the scores are those of Fig. 6."""
    # Neither the layer nor the threshold of IoU is given: the last convolutional block, half of a map's maximum.

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        shown = (next(iter(seen.values())).of["attacked"] > 0).nonzero()[:3, 0]

        def pair(each: Seen, first: str, second: str) -> Tensor:
            return torch.stack([each.pictures[name][shown] for name in (first, second)], dim=1).flatten(0, 1)

        truth = next(iter(seen.values()))
        maps = {name: (each, "restored", "readded") for name, each in seen.items()} | {"truth": (truth, "clean", "adv")}
        columns = {"image": pair(truth, "clean", "adv")}
        for name, (each, first, second) in maps.items():
            for c in ("y", "y'"):
                columns[f"{name}: {c} (map)"] = pair(each, f"cam_{first}_{c}", f"cam_{second}_{c}")
        return image_grid(columns, rows=["x", "x'"] * len(shown), title="Where the victim looks")

    return Study(
        id="cdd_red/fig5",
        title="Where the victim looks (Fig. 5)",
        runs=RUNS,
        evaluations=diagnosed(probe=Attribution(), keep_images=1),
        numbers=by_column(lambda rows: {t: 100 * rows.mean(c) for t, c in IOU.items()}, attacked=1, knowledge="victim"),
        claims={
            "CDD-RED closest in three of four scores": lambda t: most((_best(t, score) for score in IOU), at_least=3)
        },
        figure=figure,
        units=dict.fromkeys(IOU, "%"),
        notes=("A map of less than 4 x 4 positions, as VGG has on images of 32 x 32, makes IoU meaningless.",),
    )


SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SWEPT = {"accuracy": 100, "success": 100, "logit_d": 1, "pixel_d": 1}


def fig7() -> Study:
    """Fig. 7: accuracy, success rate and distances of a share p of the perturbation, and of its estimate."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            rows = each.rows.where(attacked=1, knowledge="victim")
            for (what, scale), p in itertools.product(SWEPT.items(), SHARES):
                table[f"{what}, p={p:g}", name] = scale * rows.mean(f"{what}_{p:g}")
                table[f"{what}, p={p:g}", "truth"] = scale * rows.mean(f"true_{what}_{p:g}")
        return table

    def gap(t: Table, what: str, name: str) -> Number:
        return average(abs(t[f"{what}, p={p:g}", name] - t[f"{what}, p={p:g}", "truth"]) for p in SHARES)

    return Study(
        id="cdd_red/fig7",
        title="A share of the perturbation (Fig. 7)",
        runs=RUNS,
        evaluations=diagnosed(probe=PartialPerturbation(shares=SHARES)),
        numbers=numbers,
        claims={
            "CDD-RED closest to the truth in accuracy, success and logit distance": lambda t: every(
                gap(t, what, "CDD-RED") < gap(t, what, name)
                for what in ("accuracy", "success", "logit_d")
                for name in ("DO", "DS")
            ),
            "DS farthest above the truth in pixel distance": lambda t: every(
                gap(t, "pixel_d", "DS") > gap(t, "pixel_d", name) for name in ("DO", "CDD-RED")
            ),
            "clean images keep their class under CDD-RED (above 95 %)": lambda t: t["accuracy, p=0", "CDD-RED"] > 95,
            "success at p=0.2: DO below CDD-RED and the truth": lambda t: every(
                t["success, p=0.2", "DO"] < t["success, p=0.2", name] for name in ("CDD-RED", "truth")
            ),
        },
        figure=lambda _, t: curve(
            {
                what: {name: {p: t[f"{what}, p={p:g}", name] for p in SHARES} for name in (*RUNS, "truth")}
                for what in SWEPT
            },
            x_title="share p of the perturbation",
            truth=["truth"],
            title="A share of the perturbation",
        ),
        units={f"{what}, p={p:g}": "%" for what in ("accuracy", "success") for p in SHARES},
    )


STUDIES = {study.__name__: study for study in (table1, tableA7, tableA8, tableA9, fig5, fig7)}
"""Name under ``cdd_red/`` -> the study."""
