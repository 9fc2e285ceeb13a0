"""How well GRED tells attacked images: its classifier, Tables 2 and 3, Fig. 3, how it chooses, what it is trained on.

One detector for each attack. Of the test images those count that the classifier gets right, and of their attacked
versions those that it then gets wrong. All rates are fractions, as the paper prints them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from redlab.metrics import Samples, auroc, roc
from redlab.report.plots import curve, roc_figure
from redlab.studies.numbers import Claim, average, every
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

NAMES = {
    "fgsm_u": "FGSM-U",
    "pgd_u": "PGD-U",
    "pgd_t": "PGD-T",
    "deepfool_u": "DFool-U",
    "cw_u": "CW-U",
    "cw_t": "CW-T",
    "ddn_u": "DDN-U",
    "ddn_t": "DDN-T",
}
"""Attack of the mix ``gred`` -> what the paper calls it."""

FIXED, LEAST = tuple(NAMES.values())[:3], tuple(NAMES.values())[3:]
"""Attacks of a fixed budget in linf, and those of least size in L2."""

DETECTORS = {"DET_org": "org", "DET_sal": "sal", "DET_IS": "sen", "DET_GRED": "gred"}
RATE = "Attack Rate"
GRED, ORG, IS = "DET_GRED", "DET_org", "DET_IS"
KNOWN = "DET_GRED, attacker knows it"
MNIST = "MNIST, 10,000 test images"

NOTES = (
    "Detection accuracy: half of it from attacked images that fool the classifier, half from their originals. Each row "
    "has a detector of its own, trained on that attack.",
    f"'{KNOWN}' is not in the paper's table: PGD of 100 steps of eps 0.3 (MNIST) or 8/255 on classifier and detector "
    "together, in two stages, from the image itself. Half of it from such images that are right or found, half from "
    "clean ones.",
)


def detectors(data: str, *words: str, names: Mapping[str, str] = NAMES) -> dict[str, list[str]]:
    """A run for each attack, by the paper's names.

    Args:
        data: list of the scale, with ``@``: data and classifier; ``<data>_attacks`` has the mix.
        *words: more of all.
        names: attacks.
    """
    return {
        name: [data, f"{data}_attacks", "method=gred", "@detector", f"only={key}", *words]
        for key, name in names.items()
    }


def pairs(rows: Samples) -> Samples:
    """Successful attacks that know the classifier alone, and the originals of these."""
    known = rows.where(knowledge="victim")
    attacked = known.where(attacked=1)
    originals = known.clean
    return Samples.cat([attacked, originals.take(torch.isin(originals["image"], attacked["image"]))])


def detected(rows: Samples, alarm: Tensor) -> float:
    """Detection accuracy: the mean over both kinds of rows; NaN where one is missing.

    Args:
        rows: of ``pairs``.
        alarm: (N,) bool, said to be attacked.
    """
    attacked = rows["attacked"] > 0
    if not bool(attacked.any()) or bool(attacked.all()):
        return math.nan
    return float((alarm[attacked].double().mean() + (~alarm[~attacked]).double().mean()) / 2)


def rates(rows: Samples) -> dict[str, float]:
    """The columns of Tables 2 and 3 for one detector: attack rate, and the accuracy of each detector."""
    known, both = rows.where(knowledge="victim"), pairs(rows)
    found = {RATE: len(known.where(attacked=1)) / max(len(known.clean), 1)}
    return found | {name: detected(both, both[f"score_{key}"] > 0) for name, key in DETECTORS.items()}


def withstood(rows: Samples) -> float:
    """Half from images of whoever knows the defence that are right or found, half from clean ones without an alarm."""
    return (rows.where(knowledge="defence").mean("right") + 1 - rows.clean.mean("alarm")) / 2


def base() -> Study:
    """Section 4.2: the classifier, and the one that black-box attacks are made on."""
    paper = paper_table("gred", "base")
    rows = tuple(row for row in paper.rows if row["keys"]["dataset"] == "MNIST")
    first = dict(list(detectors("@mnist").items())[:1])
    (run,) = first

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        clean = seen[run].rows.clean
        names = dict(zip(("base, MNIST, VGG11", "black-box source, MNIST, CWnet"), clean.names["victim"], strict=True))
        return {(row, "accuracy"): 100 * clean.where(victim=v).mean("right_clean") for row, v in names.items()}

    return Study(
        id="gred/base",
        title="The classifier and the source of black-box attacks (Section 4.2)",
        runs=first,
        evaluations={run: Evaluation(run=run, overrides=("@mnist_black", "mix=clean", "@whole", *DIAGNOSIS))},
        numbers=numbers,
        claims={f"{row['keys']['network']} within a point of the paper's": partial(_near, row=row) for row in rows},
        paper=replace(paper, rows=rows),
        paper_data=MNIST,
        units={"base, MNIST, VGG11": "%", "black-box source, MNIST, CWnet": "%"},
        notes=("Widths are those of the scale.",),
    )


def _near(t: Table, row: Mapping[str, Mapping[str, object]]) -> Claim:
    printed = row["values"]["accuracy"]
    return t[", ".join(map(str, row["keys"].values())), "accuracy"].near(float(str(printed)), by=1)


# ---- who knows the classifier -------------------------------------------------------------------------------------


def near_the_better(t: Table) -> Claim:
    """GRED is never more than 0.02 below the better of its two parts."""
    return every(t[name, part] <= t[name, GRED] + 0.02 for name in NAMES.values() for part in (ORG, IS))


def crossing(t: Table) -> Claim:
    """InSen finds attacks of least size, the image those of a fixed budget; each by more than 0.2."""
    least = [t[name, ORG] + 0.2 < t[name, IS] for name in LEAST]
    return every([*least, *(t[name, IS] + 0.2 < t[name, ORG] for name in FIXED)])


GREY = {"GRED at most 0.02 below the better of DET_org and DET_IS": near_the_better}


def _grey(
    study: str, data: str, paper: PaperTable, paper_data: str, claims: Mapping[str, Callable[[Table], Claim]]
) -> Study:
    runs = detectors(data)

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table = {(name, c): n for name, each in seen.items() for c, n in rates(each.rows).items()}
        return table | {(name, KNOWN): withstood(each.rows) for name, each in seen.items()}

    return Study(
        id=f"gred/{study}",
        title="Detection of attacks on the classifier (Table 2)",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=(f"{data}_aware",)) for name in runs},
        numbers=numbers,
        claims=GREY | dict(claims),
        figure=lambda _, t: curve(
            {"detection accuracy": {d: {name: t[name, d] for name in NAMES.values()} for d in (*DETECTORS, KNOWN)}},
            title="Detection of attacks on the classifier",
        ),
        paper=paper,
        paper_data=paper_data,
        notes=NOTES,
    )


def table2_mnist() -> Study:
    """Table 2, MNIST."""
    return _grey(
        "table2_mnist",
        "@mnist",
        paper_table("gred", "table2.mnist"),
        MNIST,
        {
            "GRED at least 0.95 on every attack": lambda t: every(t[name, GRED] >= 0.95 for name in NAMES.values()),
            "DET_org and DET_sal at least 0.95 on every attack": lambda t: every(
                t[name, d] >= 0.95 for name in NAMES.values() for d in (ORG, "DET_sal")
            ),
            "DET_IS near chance on PGD (at most 0.6)": lambda t: every(t[n, IS] <= 0.6 for n in ("PGD-U", "PGD-T")),
        },
    )


def table2_fmnist() -> Study:
    """Table 2, a data set on which not all attacks can be seen: here Fashion-MNIST, in the paper CIFAR-10."""
    return _grey(
        "table2_fmnist",
        "@fmnist",
        paper_table("gred", "table2.cifar"),
        "CIFAR-10, 10,000 test images",
        {"DET_IS far better on L2 attacks, DET_org on linf ones (by more than 0.2 each)": crossing},
    )


def fig3() -> Study:
    """Fig. 3: ROC curves."""
    runs = detectors("@mnist")
    area, accuracy = "AUC", "detection accuracy"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            both = pairs(each.rows)
            table[name, area] = auroc(both, "gred")
            table[name, accuracy] = detected(both, both["score_gred"] > 0)
        return table

    return Study(
        id="gred/fig3",
        title="ROC of GRED (Fig. 3)",
        runs=runs,
        evaluations={name: Evaluation(run=name) for name in runs},
        numbers=numbers,
        claims={
            "AUC above 0.95 on every attack that is told with more than 0.9": lambda t: every(
                t[name, area] > 0.95 if t[name, accuracy].mean > 0.9 else t[name, accuracy] <= 0.9
                for name in NAMES.values()
            )
        },
        figure=lambda seen, _: roc_figure(
            {name: roc(pairs(each.rows), "gred") for name, each in seen.items()}, title="GRED on MNIST"
        ),
        notes=(NOTES[0], "The paper prints no area and does not say of which data set its curves are."),
    )


def select() -> Study:
    """Section 3.3: the rule by which one of the two detectors is chosen."""
    runs = detectors("@fmnist")
    rules = ("entropy", "mean of p", "either alarms")

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            both = pairs(each.rows)
            org, sen = both["score_org"], both["score_sen"]
            alarms = {
                rules[0]: both["score_gred"] > 0,
                rules[1]: org.sigmoid() + sen.sigmoid() > 1,
                rules[2]: (org > 0) | (sen > 0),
                ORG: org > 0,
                IS: sen > 0,
            }
            table |= {(name, rule): detected(both, alarm) for rule, alarm in alarms.items()}
        return table

    return Study(
        id="gred/select",
        title="Which of the two detectors decides",
        runs=runs,
        evaluations={name: Evaluation(run=name) for name in runs},
        numbers=numbers,
        claims={
            "on average over attacks the entropy rule is at least as good as either detector": lambda t: every(
                average(t.column(alone)) <= average(t.column(rules[0])) for alone in (ORG, IS)
            ),
            "and as the other rules": lambda t: every(
                average(t.column(rule)) <= average(t.column(rules[0])) for rule in rules[1:]
            ),
        },
        notes=(NOTES[0], "Not in the paper, which has the entropy rule alone."),
    )


HELD, SEEN = "held-out images", "images of the classifier's training"


def heldout() -> Study:
    """Whether the detectors may be trained on the images that the classifier was trained on."""
    few = {key: NAMES[key] for key in ("deepfool_u", "cw_u", "ddn_u")}
    runs = {
        f"{name}, {what}": words
        for what, more in ((HELD, ()), (SEEN, ("data.use=seen",)))
        for name, words in detectors("@fmnist", *more, names=few).items()
    }

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for run, each in seen.items():
            name, _, what = run.partition(", ")
            table |= {(f"{name}, {d}", what): n for d, n in rates(each.rows).items() if d in DETECTORS}
        return table

    return Study(
        id="gred/heldout",
        title="Detectors trained on images that the classifier has seen, and on others",
        runs=runs,
        evaluations={run: Evaluation(run=run) for run in runs},
        numbers=numbers,
        claims={
            "DET_IS is at least as good from held-out images, on average": lambda t: (
                average([t[f"{name}, {IS}", SEEN] for name in few.values()])
                <= average([t[f"{name}, {IS}", HELD] for name in few.values()])
            )
        },
        notes=(NOTES[0], "Not in the paper, which does not say which images its detectors were trained on."),
    )


# ---- who does not know it -----------------------------------------------------------------------------------------

ON_SOURCE, FOOLING = "Attack Rate on the source", "DET_GRED, of those that fool"


def table3() -> Study:
    """Table 3: attacks made on another network, detectors as they are."""
    runs = detectors("@mnist")
    keys = {name: key for key, name in NAMES.items()}

    def beside(some: Samples, right: Samples) -> Samples:
        return Samples.cat([some, right.take(torch.isin(right["image"], some["image"]))])

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            own, source = each.rows.names["victim"]
            clean, attacked = (each.rows.where(attacked=kind) for kind in (0, 1))
            right = clean.where(victim=own, right_clean=1)
            table[name, ON_SOURCE] = len(attacked) / max(len(clean.where(victim=source)), 1)
            attacked = attacked.take(torch.isin(attacked["image"], right["image"]))
            fooling = attacked.where(right_attacked=0)
            table[name, RATE] = len(fooling) / max(len(attacked), 1)
            both = beside(attacked, right)
            table |= {(name, d): detected(both, both[f"score_{key}"] > 0) for d, key in DETECTORS.items()}
            both = beside(fooling, right)
            table[name, FOOLING] = detected(both, both["score_gred"] > 0)
        return table

    def known(name: str) -> Sequence[str]:
        return (
            "@mnist_black",
            f"mix.components.{keys[name]}.victims=[${{choices.victim.1}}]",
            "judges=[${choices.victim.0}]",
            *DIAGNOSIS,
        )

    return Study(
        id="gred/table3",
        title="Detection of attacks on another network (Table 3)",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=known(name)) for name in runs},
        numbers=numbers,
        claims={
            "GRED at least 0.92 on every attack": lambda t: every(t[n, GRED] >= 0.92 for n in NAMES.values()),
            "GRED above DET_IS on average over attacks": lambda t: (
                average([t[n, IS] for n in NAMES.values()]) < average([t[n, GRED] for n in NAMES.values()])
            ),
            "DET_org still sees FGSM and PGD (at least 0.95)": lambda t: every(t[n, ORG] >= 0.95 for n in FIXED),
        },
        paper=paper_table("gred", "table3.mnist"),
        paper_data=MNIST,
        notes=(
            NOTES[0].replace("attacked images that fool the classifier", "attacked images"),
            f"{RATE}: share of successful attacks on the source that fool the classifier too. The paper's rates of 1 "
            "cannot be that for attacks of least size; what they are it does not say.",
        ),
    )


STUDIES = {study.__name__: study for study in (base, table2_mnist, table2_fmnist, fig3, select, heldout, table3)}
