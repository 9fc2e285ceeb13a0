"""Every method under one protocol, which no paper has: one data set, one victim, one set of attacks, one judge.

All are trained on the same attacked images (mix ``leaderboard``), but for adversarial training, which makes its own;
and tested on the same test images, by the attacks of the training, by attacks that none has seen, and by attackers who
know the defence, with the budgets of those who do not, exactly and past what hides a gradient. A row is a method; a
detector is right on an attacked image where it raises its alarm, and on a clean one where it does not. Of each, an
attacker without bounds has to leave nothing: where something is left, the gradient is hidden, and the others failed.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from redlab.attacks import PGD
from redlab.crafting import Component
from redlab.metrics import Samples, auroc, calibration_error, score_names, tpr_at_fpr, worst
from redlab.probes import Latency
from redlab.report.plots import heat
from redlab.studies.numbers import Claim, Number, every
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study
from redlab.studies.table import Address, Table

HARDENED = "adversarial training"
METHODS = {
    "CDD-RED": ("@attacked", "method=cdd_red", "@denoiser"),
    "DO": ("@attacked", "method=do", "@denoiser"),
    "DS": ("@attacked", "method=ds", "@denoiser"),
    "REDRL": ("@attacked", "method=redrl", "@redrl"),
    "attention U-Net GAN": ("@attacked", "method=attunet_gan", "@attunet"),
    "HGD": ("@attacked", "method=hgd", "@hgd"),
    "ADD-Defense": ("@attacked", "method=add_defense", "@add_defense"),
    "APE-GAN": ("@attacked", "method=ape_gan", "@ape_gan"),
    "GRED": ("@attacked", "method=gred", "@gred"),
    HARDENED: ("method=hardened", "@hardened"),
}
NO_DEFENCE = "no defence"

UNBOUNDED = "left by an attacker without bounds"
KNOWING, EVERY, SEEN, UNSEEN, CLEAN = (
    "attackers who know it",
    "every attacker",
    "seen attacks",
    "unseen attacks",
    "clean",
)
IDENTIFIED, AUROC, TPR, ECE = "identified", "AUROC", "TPR at 1 % FPR", "calibration error"
MS, PARAMETERS = "ms per image", "parameters"
UNITS = dict.fromkeys((EVERY, UNBOUNDED, KNOWING, SEEN, UNSEEN, CLEAN, IDENTIFIED, TPR), "%")
TRAINED = ("fgsm", "pgd", "deepfool")
NO_BOUNDS = {
    "unbounded": Component(attack=PGD(eps=1.0, step_size=0.02, steps=100, random_start=False), knowledge="defence")
}
HIDDEN = 5
"""Per cent that may be left by an attacker without bounds."""


def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
    """A row for each method, and one for the victim alone; what a method cannot do is not there."""
    tested = {name: each for name, each in seen.items() if name in METHODS}
    columns = {name: of_method(each.rows, seen[_without_bounds(name)].rows) for name, each in tested.items()}
    found: dict[Address, float] = {(name, c): value for name, of in columns.items() for c, value in of.items()}
    first = next(iter(tested.values())).rows
    alone = {
        SEEN: first.where(attack=list(TRAINED), knowledge="victim").mean("right_attacked"),
        UNSEEN: _unseen(first).mean("right_attacked"),
        CLEAN: first.clean.mean("right_clean"),
    }
    return found | {(NO_DEFENCE, column): 100 * value for column, value in alone.items()}


def of_method(rows: Samples, unbounded: Samples) -> dict[str, float]:
    """The columns of one method, of the rows of its test and those of an attacker without bounds."""
    attacked, clean = rows.where(attacked=1), rows.clean
    # with the clean image: who always raises the alarm is right on no image
    knowing = Samples.cat([attacked.where(knowledge="defence"), clean])
    found = {
        EVERY: 100 * worst(Samples.cat([attacked, clean])).mean("right"),
        UNBOUNDED: 100 * unbounded.where(attacked=1).mean("right"),
        KNOWING: 100 * worst(knowing).mean("right"),
        SEEN: 100 * attacked.where(attack=list(TRAINED), knowledge="victim").mean("right"),
        UNSEEN: 100 * _unseen(rows).mean("right"),
        CLEAN: 100 * clean.mean("right"),
    }
    told = Samples.cat([attacked.where(attack=list(TRAINED), knowledge="victim"), clean])
    if "said" in rows:
        found |= {IDENTIFIED: 100 * told.mean("identified"), ECE: calibration_error(told)}
    if scores := score_names(rows):
        found |= {AUROC: auroc(told, scores[0]), TPR: 100 * tpr_at_fpr(told, scores[0])}
    return found | {MS: 1000 * rows.mean("answer_s"), PARAMETERS: float(rows["parameters"].max())}


def _without_bounds(name: str) -> str:
    return f"{name}, {UNBOUNDED}"


def _unseen(rows: Samples) -> Samples:
    names = [name for name in ("cw_l2", "square", "pgd_l2") if name in rows.attacks]
    return rows.where(attack=names, knowledge="victim")


def by_attack(seen: Mapping[str, Seen], t: Table) -> Figure:
    """Of each method, in the order of the table, what is right under each attack alone and under all together."""
    panel = {name: _right(seen[name].rows, "right") for name in t.column(EVERY)}
    first = next(iter(seen.values())).rows.where(knowledge="victim")
    return heat(
        {"": panel | {NO_DEFENCE: _right(first, "right_attacked")}},
        low=0,
        high=100,
        title="Images that are right under each attack, in %, first seed",
    )


def _right(rows: Samples, measure: str) -> dict[str, Number]:
    """Attack -> share; under all of them where the defence was attacked, too."""
    found = {attack: rows.where(attack=attack).mean(measure) for attack in rows.attacks}
    if len(rows.where(knowledge="defence")):
        found[EVERY] = worst(rows).mean(measure)
    return {attack: Number((100 * share,)) for attack, share in found.items()}


def defences() -> Study:
    """The leaderboard."""
    return Study(
        id="leaderboard/defences",
        title="Every method under one protocol",
        runs={name: list(words) for name, words in METHODS.items()},
        evaluations={name: Evaluation(run=name, overrides=("@tested",), probe=Latency()) for name in METHODS}
        | {
            _without_bounds(name): Evaluation(run=name, attacks=NO_BOUNDS, overrides=("@unbounded", *DIAGNOSIS))
            for name in METHODS
        },
        numbers=numbers,
        claims={
            f"an attacker without bounds leaves {HIDDEN} % at most, or all numbers of the row are too good": _visible,
            "not trained adversarially, none keeps a tenth of the images under attackers who know it": _none,
            "adversarial training keeps most under every attacker": _hardened_first,
            "every method puts right more than half of what the seen attacks fooled": _all_help,
        },
        figure=by_attack,
        units=UNITS,
        sort_by=EVERY,
        notes=(
            "Sorted by the share of images that are right as they are and under every attacker: a bound from above.",
            "seen: FGSM, PGD, DeepFool, on which all but adversarial training were trained; unseen: C&W L2, Square, "
            "PGD in L2. Detection and identification are of the seen ones and clean images. Milliseconds are of a "
            "processor, per image.",
            "Sizes are those of the scale, not of the papers.",
        ),
    )


def _visible(t: Table) -> Claim:
    return every(t[name, UNBOUNDED] <= HIDDEN for name in METHODS)


def _none(t: Table) -> Claim:
    return every(t[name, KNOWING] < 10 for name in METHODS if name != HARDENED)


def _hardened_first(t: Table) -> Claim:
    return every(t[HARDENED, EVERY] > t[name, EVERY] for name in METHODS if name != HARDENED)


def _all_help(t: Table) -> Claim:
    return every(t[name, SEEN] > (t[NO_DEFENCE, CLEAN] + t[NO_DEFENCE, SEEN]) / 2 for name in METHODS)


STUDIES = {"defences": defences}
"""Name under ``leaderboard/`` -> the study."""
