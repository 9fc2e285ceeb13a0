"""What the paper on REDRL does not ask: its design, how images are stored, and what it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from redlab.metrics import Samples, confusion, unknown_auroc
from redlab.report.plots import heat
from redlab.studies.numbers import Claim, every
from redlab.studies.redrl.accuracy import network
from redlab.studies.redrl.recognition import (
    ALL,
    CLASSES,
    DELTA,
    IMAGE,
    NOTES,
    ORACLE,
    OWN,
    RESIDUAL,
    RUNS,
    TOTAL,
    recognition,
    told,
)
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_column, by_eps
from redlab.studies.table import Address, Table

RESTORED = "G(I), attacked"


def _own(runs: Mapping[str, Sequence[str]]) -> dict[str, Evaluation]:
    return {name: Evaluation(run=name) for name in runs}


def _with_accuracy(rows: Samples) -> dict[str, float]:
    return recognition(rows) | {RESTORED: 100 * told(rows, attacked=1).mean("right_restored")}


def abl_skip() -> Study:
    """The reading of "no skip connection": identities inside the blocks, and none from the input to the output."""
    runs = {
        "REDRL": RUNS[RESIDUAL],
        "no identity inside": [*RUNS[RESIDUAL], "method.inner_skip=false"],
        "global skip": [*RUNS[RESIDUAL], "method.global_skip=true"],
    }
    return Study(
        id="redrl/abl_skip",
        title="Skip connections of the reconstructor",
        runs=runs,
        evaluations=_own(runs),
        numbers=by_column(_with_accuracy),
        claims={
            "without identities inside the blocks G(I) is less accurate": lambda t: (
                t[RESTORED, "no identity inside"] < t[RESTORED, "REDRL"]
            ),
            "a global skip lets the perturbation through: G(I) is less accurate": lambda t: (
                t[RESTORED, "global skip"] < t[RESTORED, "REDRL"]
            ),
            "total: REDRL is best": lambda t: every(t[TOTAL, name] < t[TOTAL, "REDRL"] for name in list(runs)[1:]),
        },
        units=dict.fromkeys((*ALL, TOTAL, RESTORED), "%"),
        notes=NOTES,
    )


STORED = {
    "so that they fool": [],
    "nearest": ["mix.rounding=nearest"],
    "floor": ["mix.rounding=floor"],
    "not rounded": ["mix.quantize=null"],
}
"""How attacked images are stored -> words; the authors' code cuts their decimals off."""
LEFT = "accuracy under DeepFool"


def abl_quant() -> Study:
    """How much of the recognition of clean images is a trace of how the others were stored, and what it does to attacks
    that go just over the boundary."""
    runs = {f"{seen}, {how}": [*RUNS[seen], *words] for seen in (IMAGE, RESIDUAL) for how, words in STORED.items()}

    def rises(t: Table, seen: str) -> Claim:
        return t["Clean", f"{seen}, so that they fool"] < t["Clean", f"{seen}, floor"]

    def numbers(rows: Samples) -> dict[str, float]:
        return recognition(rows) | {LEFT: 100 * told(rows).where(attack="deepfool").mean("right_attacked")}

    return Study(
        id="redrl/abl_quant",
        title="Attacked images stored so that they fool, by rounding, by cutting off, and as they are",
        runs=runs,
        evaluations=_own(runs),
        numbers=by_column(numbers),
        claims={
            f"{seen}: cutting off gives clean images away (their row rises)": partial(rises, seen=seen)
            for seen in (IMAGE, RESIDUAL)
        }
        | {
            "rounding to the nearest value undoes DeepFool (by more than 50 points)": lambda t: (
                t[LEFT, f"{IMAGE}, so that they fool"] + 50 < t[LEFT, f"{IMAGE}, nearest"]
            )
        },
        units=dict.fromkeys((*ALL, TOTAL, LEFT), "%"),
        notes=(*NOTES, "Cutting off darkens each attacked pixel by half a grey level on average, whatever the attack."),
    )


OPEN = ("fgsm", "square", "spatial_transform", "feature")
"""Attacks of the mix ``redrl_open``, none of which is trained on."""


def open_attack() -> Study:
    """Attacks that were left out of training: whether they are seen, and what they are taken for."""
    runs = {name: RUNS[name] for name in (IMAGE, RESIDUAL)}
    left_out = {f"{n}, left out": Evaluation(run=n, overrides=("mix=redrl_open", *DIAGNOSIS)) for n in runs}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name in runs:
            rows = seen[f"{name}, left out"].rows.where(attack=OPEN)
            counts, attacks, answers = confusion(rows)
            for attack, row in zip(attacks, counts.double(), strict=True):
                shares = (100 * row / row.sum()).tolist()
                table |= {(f"{attack}, said {CLASSES[a]}", name): s for a, s in zip(answers, shares, strict=True)}
                table[f"{attack}, alarm", name] = 100 * rows.where(attack=attack).mean("alarm")
            table["AUROC, left out or not", name] = 100 * unknown_auroc(Samples.cat([told(seen[name].rows), rows]))
        return table

    return Study(
        id="redrl/open_attack",
        title="Attacks that were left out of training",
        runs=runs,
        evaluations={**{name: OWN[name] for name in runs}, **left_out},
        numbers=numbers,
        claims={
            "more than half of each left-out attack's images are not taken for clean": lambda t: every(
                t[f"{attack}, said Clean", RESIDUAL] < 50 for attack in OPEN
            ),
            "FGSM is taken for PGD more often than for anything else": lambda t: every(
                t["fgsm, said PGD", RESIDUAL] > t[f"fgsm, said {c}", RESIDUAL] for c in ALL if c != "PGD"
            ),
            f"{RESIDUAL} knows better than {IMAGE} that it does not know an attack": lambda t: (
                t["AUROC, left out or not", IMAGE] < t["AUROC, left out or not", RESIDUAL]
            ),
            "it knows that better than by chance": lambda t: t["AUROC, left out or not", RESIDUAL] > 50,
        },
        figure=lambda _, t: heat(
            {
                f"seeing {name}": {
                    a: {c: t[f"{a}, said {c}", name] for c in ALL} for a in OPEN if (f"{a}, alarm", name) in t
                }
                for name in runs
            },
            low=0,
            high=100,
            title="What left-out attacks are taken for, in %",
        ),
        notes=(
            "Not in the paper. The AUROC is of one minus the probability of the answer: left-out attacks against clean "
            "images and the attacks of the training.",
        ),
    )


BUDGETED = ("pgd", "cw_linf")
LEFT_OUT = "8/255"


def _eps(*values: str) -> tuple[str, ...]:
    """Words that give PGD and CW-Linf these eps."""
    settings = ",".join(f"{{eps:{value}}}" for value in values)
    return tuple(f"mix.components.{name}.settings=[{settings}]" for name in BUDGETED)


def open_eps() -> Study:
    """An eps that was left out of training."""
    # Patches keep all of their settings: the sizes differ with the images of the scale.
    runs = {"all eps": RUNS[RESIDUAL], f"{LEFT_OUT} left out": [*RUNS[RESIDUAL], *_eps("4/255", "16/255")]}
    again = Evaluation(run=f"{LEFT_OUT} left out", overrides=(*_eps("4/255", LEFT_OUT, "16/255"), *DIAGNOSIS))
    rows = [f"{CLASSES[name]}, eps={LEFT_OUT}" for name in BUDGETED]

    def numbers(rows: Samples) -> dict[str, float]:
        return {
            f"{CLASSES[name]}, eps={255 * eps:g}/255": 100 * of.mean("identified")
            for name in BUDGETED
            for eps, of in by_eps(told(rows).where(attack=name)).items()
        }

    return Study(
        id="redrl/open_eps",
        title="An eps that was left out of training",
        runs=runs,
        evaluations={"all eps": Evaluation(run="all eps"), again.run: again},
        numbers=by_column(numbers),
        claims={
            "at the left-out eps no more than 10 points below the run that was trained with it": lambda t: every(
                t[row, f"{LEFT_OUT} left out"] + 10 >= t[row, "all eps"] for row in rows
            )
        },
        notes=("Not in the paper. The left-out eps lies between two that are trained on.",),
    )


def open_victim() -> Study:
    """Networks that no attack of the training was made on."""
    components = [name for name in CLASSES if name != "clean"]
    first = [f"mix.components.{name}.victims=[${{choices.victim.0}}]" for name in components]
    everyone = (*(f"mix.components.{name}.victims=null" for name in components), *DIAGNOSIS)
    runs = {"all victims": RUNS[RESIDUAL], "the first alone": [*RUNS[RESIDUAL], *first]}

    def numbers(rows: Samples) -> dict[str, float]:
        if len(rows.victims) < 2:
            raise ValueError(f"open_victim needs a second victim, and there is {', '.join(rows.victims)} alone")
        order = sorted(rows.victims, key=rows.names["victim"].index)
        return {
            f"{row}, {'trained on' if victim == order[0] else network(victim)}": number
            for victim in order
            for row, number in recognition(rows.where(victim=victim)).items()
        }

    return Study(
        id="redrl/open_victim",
        title="Networks that were left out of training",
        runs=runs,
        evaluations={
            "all victims": Evaluation(run="all victims"),
            "the first alone": Evaluation(run="the first alone", overrides=everyone),
        },
        numbers=by_column(numbers),
        claims={
            "on left-out networks no more than 10 points below the run that was trained on them": lambda t: every(
                t[row, "the first alone"] + 10 >= t[row, "all victims"]
                for row in t.rows_of(f"{TOTAL}, ")
                if row != f"{TOTAL}, trained on"
            )
        },
        notes=(*NOTES, "Not in the paper. 'trained on' is the first victim, whose images both runs have seen."),
    )


WEAK = _eps("1/255", "2/255", "4/255")


def background() -> Study:
    """Whether black backgrounds give attacks away: the same with weaker ones."""
    runs = {**RUNS, **{f"{name}, weak": [*words, *WEAK] for name, words in RUNS.items()}}

    return Study(
        id="redrl/background",
        title="Weaker attacks, and what gives them away",
        runs=runs,
        evaluations=_own(runs),
        numbers=by_column(recognition),
        claims={
            f"{IMAGE} does not tell clean images easily (below 90 %), weak attacks or not": lambda t: every(
                t["Clean", name] < 90 for name in (IMAGE, f"{IMAGE}, weak")
            ),
            f"weaker attacks cost {IMAGE} more than {DELTA}, in PGD and CW-Linf": lambda t: every(
                t[c, IMAGE] - t[c, f"{IMAGE}, weak"] > t[c, DELTA] - t[c, f"{DELTA}, weak"] for c in ("PGD", "CW-Linf")
            ),
            f"total of weak attacks: {IMAGE} << {RESIDUAL} (by more than 15 points)": lambda t: (
                t[TOTAL, f"{IMAGE}, weak"] + 15 < t[TOTAL, f"{RESIDUAL}, weak"]
            ),
        },
        units=dict.fromkeys((*ALL, TOTAL), "%"),
        notes=(
            *NOTES,
            ORACLE,
            "Not in the paper. Where the background is exactly black, as in Fashion-MNIST, any change of it is a trace "
            "that photographs do not have: then the first claim fails, and what the image alone gives away says little "
            "about photographs. Weak: eps of 1, 2 and 4/255 in PGD and CW-Linf in place of 4, 8 and 16/255.",
        ),
    )


STUDIES = {study.__name__: study for study in (abl_skip, abl_quant, open_attack, open_eps, open_victim, background)}
