"""CDD-RED and its baselines on the attacks that they were trained on: Tables 1 and A5 to A7, Fig. 4, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from redlab.metrics import Samples
from redlab.probes import Cost
from redlab.report.plots import curve, scatter
from redlab.studies.cdd_red.comparing import (
    ADAPTIVE,
    ATTACKED,
    IMAGENET,
    NEAR,
    NOTES,
    OWN,
    PA_ADV,
    PA_BENIGN,
    RESTORED,
    RMS,
    RMS_ATTACK,
    RUNS,
    UNITS,
    D,
    alignment,
    among,
    conclusions,
    diagnosed,
    distances,
    over,
)
from redlab.studies.numbers import Claim, every, increasing
from redlab.studies.paper_numbers import paper_table
from redlab.studies.study import Evaluation, Seen, Study, by_column
from redlab.studies.table import Address, Table


def _table1_rows(rows: Samples) -> dict[str, float]:
    known = rows.where(knowledge="victim")
    rms = float((10 ** (-known["psnr"] / 20)).mean())  # psnr is that of the rms for a range of 1
    return distances(known) | {
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
        claims=conclusions(),
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


def sec3_do() -> Study:
    """Section 3: denoising alone comes near to the image, and not to its class."""
    names = ("DO", "CDD-RED")
    return Study(
        id="cdd_red/sec3_do",
        title="Denoising alone (Section 3)",
        runs={name: RUNS[name] for name in names},
        evaluations={name: OWN[name] for name in names},
        numbers=by_column(_table1_rows, attacked=1),
        claims={
            "DO is nearer to x than CDD-RED": lambda t: t[D, "DO"] < t[D, "CDD-RED"],
            "and its PA_benign is more than 15 points below": lambda t: (
                t[PA_BENIGN, "DO"] + 15 < t[PA_BENIGN, "CDD-RED"]
            ),
        },
        paper=among(paper_table("cdd_red", "table1"), *names),
        paper_data=IMAGENET,
        units=UNITS,
        notes=NOTES,
    )


def _variants(
    study: str,
    title: str,
    variants: Mapping[str, Sequence[str]],
    claims: Mapping[str, Any],
    *,
    paper: bool = True,
    notes: Sequence[str] = (),
) -> Study:
    """CDD-RED beside itself with other words; in the paper's tables its own column is that of Table 1."""
    runs = {name: [*RUNS["CDD-RED"], *words] for name, words in variants.items()}
    printed = (
        paper_table("cdd_red", study).beside(paper_table("cdd_red", "table1"), {"CDD-RED": DEFAULT}) if paper else None
    )
    return Study(
        id=f"cdd_red/{study}",
        title=title,
        runs=runs,
        evaluations={name: Evaluation(run=name) for name in runs},
        numbers=by_column(alignment, attacked=1, knowledge="victim"),
        claims=claims,
        figure=lambda _, t: curve(over(t, {name: name for name in variants}), title=title),
        paper=printed,
        paper_data=IMAGENET if paper else "",
        units=UNITS,
        notes=(*NOTES, *notes),
    )


DEFAULT = "default"
OTHER_GUIDE, ROBUST_GUIDE = "f=Res50", "f=R-Res50"


def tableA5() -> Study:
    """Table A5: another classifier in the alignment loss, ordinary or robust."""
    robust = "robust classifier"
    study = _variants(
        "tableA5",
        "Another classifier to align with (Table A5)",
        {
            DEFAULT: [],
            OTHER_GUIDE: ["@other_guide"],
            ROBUST_GUIDE: ["@robust_guide", f"victims.robust.weights=@{robust}"],
        },
        {
            "another ordinary one: within 5 points of the default": lambda t: every(
                t[row, OTHER_GUIDE].near(t[row, DEFAULT], by=NEAR) for row in (PA_BENIGN, PA_ADV)
            ),
            "a robust one: lower d": lambda t: t[D, ROBUST_GUIDE] < t[D, DEFAULT],
            "and PA_benign lower by more than 15 points": lambda t: (
                t[PA_BENIGN, ROBUST_GUIDE] + 15 < t[PA_BENIGN, DEFAULT]
            ),
        },
        notes=("The columns have the paper's names; which networks ours are is in the words of the runs.",),
    )
    return replace(study, runs={robust: ["method=classifier", "mix=adversarial_training", "@robust"], **study.runs})


EVERY_PAIR, UNCHANGED_ALONE = "T-check=T", "w/o T-check"


def tableA6() -> Study:
    """Table A6: which augmented pairs enter prediction alignment."""

    def near_or_better(t: Table, row: str, sign: int) -> Claim:
        others = (EVERY_PAIR, UNCHANGED_ALONE)
        return every(sign * t[row, DEFAULT] >= sign * t[row, name] for name in others)

    return _variants(
        "tableA6",
        "Which augmented pairs are aligned (Table A6)",
        {DEFAULT: [], EVERY_PAIR: ["method.keep=all"], UNCHANGED_ALONE: ["method.keep=original"]},
        {
            "the default is best or tied in d, PA_benign and PA_adv": lambda t: (
                near_or_better(t, D, -1) & near_or_better(t, PA_BENIGN, 1) & near_or_better(t, PA_ADV, 1)
            ),
            "every pair is worst in d and PA_adv": lambda t: (
                (t[D, EVERY_PAIR] > t[D, UNCHANGED_ALONE]) & (t[PA_ADV, EVERY_PAIR] < t[PA_ADV, UNCHANGED_ALONE])
            ),
        },
        notes=("The default aligns pairs whose class the augmentation left alone.",),
    )


CONCAT, SAMPLE = "all views", "one view"


def ablation_aug_mode() -> Study:
    """Where the paper and its code leave the augmentation open (not in the paper)."""
    variants = {
        CONCAT: ["method.aug_mode=concat"],
        SAMPLE: ["method.aug_mode=sample"],
        f"{SAMPLE}, terms apart": ["method.aug_mode=sample", "method.keep=separate"],
        f"{SAMPLE}, every pair": ["method.aug_mode=sample", "method.keep=all"],
    }
    first, *others = variants
    return _variants(
        "ablation_aug_mode",
        "How pairs are augmented",
        variants,
        {
            "PA_benign and PA_adv within 5 points of each other": lambda t: every(
                t[row, first].near(t[row, name], by=NEAR) for row in (PA_BENIGN, PA_ADV) for name in others
            )
        },
        paper=False,
        notes=(
            "All views: the pair, its crop and its CutMix in one batch, as in the authors' code; one view: one of the "
            "three by chance, as the ratio of the paper's epoch times has it. Terms apart: each term of eq. 3 looks at "
            "its own image only. Every pair: what the filter of the authors' code comes to.",
        ),
    )


AUGMENTATIONS = ("rotation", "translation", "crop_pad", "cutout", "cutmix")


def fig4() -> Study:
    """Fig. 4: what each augmentation does to denoising alone."""
    plain, both = "Base", "cutmix + crop_pad"
    alone = ["method=do", "@denoiser", "method.aug_mode=sample"]
    runs = {plain: RUNS["DO"]} | {name: [*alone, f"method.augment=[{name}]"] for name in AUGMENTATIONS}
    runs[both] = [*alone, "method.augment=[crop_pad,cutmix]"]
    return Study(
        id="cdd_red/fig4",
        title="Augmentations of denoising alone (Fig. 4)",
        runs=runs,
        evaluations={name: Evaluation(run=name) for name in runs},
        numbers=by_column(alignment, attacked=1, knowledge="victim"),
        claims={
            "CutMix and crop-and-pad lower d and raise PA_benign": lambda t: every(
                (t[D, name] < t[D, plain]) & (t[PA_BENIGN, name] > t[PA_BENIGN, plain])
                for name in ("crop_pad", "cutmix")
            ),
            "both together no worse than either": lambda t: every(
                (t[D, both] <= t[D, name]) & (t[PA_BENIGN, both] >= t[PA_BENIGN, name])
                for name in ("crop_pad", "cutmix")
            ),
        },
        figure=lambda _, t: scatter(
            {name: (t[D, name], t[PA_BENIGN, name]) for name in runs},
            x_title=D,
            y_title=PA_BENIGN,
            title="Augmentations of denoising alone",
        ),
        units=UNITS,
        notes=(*NOTES, "The paper does not say what the figure's y axis is; it prints no numbers."),
    )


EPOCH, STEP, RESTORE = "epoch time", "a training step, times that of DO", "an estimate, times that of DO"


def cost() -> Study:
    """Appendix D: what training and an estimate cost."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        # the least is what other jobs on the machine disturbed least
        times = {name: {c: float(each.rows[c].min()) for c in ("step_s", "restore_s")} for name, each in seen.items()}
        found: dict[Address, float] = {}
        for name, mine in times.items():
            found[name, EPOCH] = mine["step_s"]
            for column, of in ((STEP, "step_s"), (RESTORE, "restore_s")):
                found[name, column] = mine[of] / times["DO"][of]
        return found

    return Study(
        id="cdd_red/cost",
        title="What training costs (Appendix D)",
        runs=RUNS,
        evaluations=diagnosed(probe=Cost()),
        numbers=numbers,
        claims={
            "training: DO < DS < CDD-RED": lambda t: increasing(t[name, EPOCH] for name in RUNS),
        },
        paper=paper_table("cdd_red", "cost"),
        paper_data="ImageNet, seconds of an epoch on one RTX Titan",
        notes=(
            "Ours are not epochs: processor seconds for an image of a batch, loss and gradient, without attacks and "
            "without the optimizer, least of all batches. The paper's ratios are 1, 1.39 and 2.47.",
        ),
    )


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
            over(t, {v: f"lambda={v}" for v in LAMBDAS}),
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


STUDIES = {
    study.__name__: study for study in (table1, sec3_do, tableA5, tableA6, tableA7, fig4, ablation_aug_mode, cost)
}
