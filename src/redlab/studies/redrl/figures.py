"""The figures of REDRL: images, profiles of the victims' filters, and where the input matters to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from redlab.metrics import Samples, cosine
from redlab.probes import Perturbations, Saliency, centred
from redlab.report.pictures import residual, residual_limit
from redlab.report.plots import image_grid, profiles
from redlab.studies.numbers import Claim, Number, average, every, most, rank_correlation, span
from redlab.studies.redrl.accuracy import RUN_OF_VICTIMS, network
from redlab.studies.redrl.recognition import ALL, CLASSES, GLOBAL, RESIDUAL, RUNS, told
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_eps
from redlab.studies.table import Address, Table

QUARTERS = (1, 2, 3, 4)
LATE = ("PGD", "CW-L2", "Patch")
"""The attacks that the paper sees on the last layers."""


def fig2() -> Study:
    """Fig. 2: what each attack changes."""
    # The paper shows one image attacked on ResNeXt50; the figure shows one attacked on the first victim.

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = {CLASSES[attack]: of for (attack,), of in told(seen["victims"].rows, attacked=1).groups("attack")}
        measures = {"changed": ("changed", 100), "extent": ("extent", 100), "L2": ("d_attack", 1)}
        return {(row, c): by * of.mean(col) for row, (col, by) in measures.items() for c, of in rows.items()}

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        adv, clean = ({c: of[name] for c, of in _examples(seen["victims"]).items()} for name in ("adv", "clean"))
        limit = residual_limit(torch.stack([*adv.values()]), torch.stack([*clean.values()]))
        columns = {
            c: torch.stack([adv[c], residual(adv[c], clean[c], limit)]) for c in ALL if c in adv and c != "Clean"
        }
        rows = ["adversarial", f"x {1 / (2 * limit):.3g}"]
        return image_grid(columns, rows=rows, title="Perturbations")

    return Study(
        id="redrl/fig2",
        title="What each attack changes (Fig. 2)",
        runs=RUN_OF_VICTIMS,
        evaluations={"victims": Evaluation(run="victims", overrides=DIAGNOSIS, probe=Perturbations(), keep_images=1)},
        numbers=numbers,
        claims={
            "PGD is dense: it changes more pixels than DeepFool, CW-L2 and Patch": lambda t: every(
                t["changed", "PGD"] > t["changed", c] for c in ("DeepFool", "CW-L2", "Patch")
            ),
            "DeepFool and CW-L2 are low: less than half of PGD in L2": lambda t: every(
                2 * t["L2", c] < t["L2", "PGD"] for c in ("DeepFool", "CW-L2")
            ),
            "Patch is local: less than half of the extent of every other": lambda t: every(
                2 * t["extent", "Patch"] < t["extent", c] for c in GLOBAL
            ),
        },
        figure=figure,
        units={"changed": "% of the pixels", "extent": "% of the image", "L2": "L2"},
        notes=("The measures are ours; the paper shows images alone.",),
    )


def _examples(seen: Seen) -> dict[str, dict[str, Tensor]]:
    """Class -> the pictures of its first kept row, in the strongest of its settings, on the first victim."""
    found: dict[str, dict[str, Tensor]] = {}
    for attack, place in _kept(seen):
        found.setdefault(CLASSES[attack], {name: values[place] for name, values in seen.pictures.items()})
    return found


def _kept(seen: Seen, *, victim: int = 0) -> Iterator[tuple[str, int]]:
    """Attack and place of each kept row of a victim in the attack's strongest setting."""
    attacks, settings, victims = (seen.of.names[name] for name in ("attack", "setting", "victim"))
    names = [name for name in victims if name in seen.rows.victims]
    last: dict[str, str] = {}
    for (attack,), rows in told(seen.of).groups("attack"):
        last[attack] = (list(by_eps(rows).values()) or [rows])[-1].settings[-1]
    for place in range(len(seen.of)):
        attack, setting, on = (int(seen.of[name][place]) for name in ("attack", "setting", "victim"))
        if victims[on] == names[victim] and last.get(attacks[attack]) == settings[setting]:
            yield attacks[attack], place


def fig4() -> Study:
    """Fig. 4: attacked image, reconstruction and residual, of PGD and of CW-L2."""
    shown = ("PGD", "CW-L2")

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for (attack,), of in told(seen[RESIDUAL].rows, attacked=1).groups("attack"):
            for row, column in {"d": "d", "d_attack": "d_attack", "like the attack": "cosine"}.items():
                table[row, CLASSES[attack]] = of.mean(column)
            table["like the image", CLASSES[attack]] = of.mean("content")
        return table

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        examples = _examples(seen[RESIDUAL])
        adv, restored = (torch.stack([examples[c][name] for c in shown]) for name in ("adv", "restored"))
        columns = {"adversarial": adv, "reconstructed": restored, "residual x 8": residual(adv, restored, 1 / 16)}
        return image_grid(columns, rows=shown, title="What the reconstructor takes away")

    return Study(
        id="redrl/fig4",
        title="Reconstruction and residual (Fig. 4)",
        runs={RESIDUAL: RUNS[RESIDUAL]},
        evaluations={RESIDUAL: Evaluation(run=RESIDUAL, overrides=DIAGNOSIS, probe=Perturbations(), keep_images=1)},
        numbers=numbers,
        claims={
            "the reconstruction is nearer to the clean image than the attacked one": lambda t: every(
                t["d", c] < t["d_attack", c] for c in shown
            ),
            "the residual is like the attack (cosine above 0.5)": lambda t: every(
                t["like the attack", c] > 0.5 for c in shown
            ),
            "the residual is less like the image than like the attack": lambda t: every(
                t["like the image", c] < t["like the attack", c] for c in shown
            ),
        },
        figure=figure,
        units={"d": "L2", "d_attack": "L2", "like the attack": "cosine", "like the image": "|cosine|"},
        notes=("The measures are ours; the paper shows one image of each.",),
    )


# ---- which filters an attack disturbs -------------------------------------------------------------------------------

SHOWN = 32
"""Images of each cell whose profile is drawn; the numbers are of all."""

SALIENCY = {
    "saliency": Evaluation(run="victims", overrides=DIAGNOSIS, probe=Saliency(maps=True), keep_images=SHOWN),
}


def fooling(rows: Samples) -> dict[str, Samples]:
    """Rows by class: clean images that are right, and attacked ones that the network then gets wrong (B.2).

    Of PGD and CW-Linf the largest eps alone, as in Fig. 5.
    """
    found: dict[str, Samples] = {}
    for (attack,), of in told(rows, right_clean=1).groups("attack"):
        strongest = [*by_eps(of).values()][-1:] if attack in ("pgd", "cw_linf") else []
        of = strongest[0] if strongest else of
        found[CLASSES[attack]] = of if attack == "clean" else of.where(right_attacked=0)
    return found


def _quarter(c: str, number: int) -> str:
    return f"{c}, quarter {number}"


def _of_network(rows: Samples) -> dict[str, float]:
    table: dict[str, float] = {}
    for c, of in fooling(rows).items():
        table[f"{c}, magnitude"] = of.mean("saliency")
        means = {number: of.mean(f"saliency_q{number}") for number in QUARTERS}
        table |= {_quarter(c, number): 100 * mean / sum(means.values()) for number, mean in means.items()}
    return table


def _victim(seen: Seen, place: int, study: str) -> str:
    names = seen.rows.victims
    if place >= len(names):
        raise ValueError(
            f"{study} is about the victim number {place + 1}, and there are {len(names)}: {', '.join(names)}"
        )
    return str(names[place])


def _profiles(name: str, place: int, of: str) -> Study:
    """Figs. 5 and 8 to 15: how salient the filters of one network are, sorted within each layer, for each attack."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        shown = [_victim(seen["saliency"], at, name) for at in dict.fromkeys((place, 0))]
        rows = {victim: seen["saliency"].rows.where(victim=victim) for victim in shown}
        return {(row, network(v)): n for v in shown for row, n in _of_network(rows[v]).items()}

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        pictures, kept = seen["saliency"].pictures["profile"], seen["saliency"].of
        numbered = kept.with_columns(place=torch.arange(len(kept)))
        mine = numbered.where(victim=_victim(seen["saliency"], place, name))
        panels = {c: pictures[rows["place"].long(), 0, 0] for c, rows in fooling(mine).items() if len(rows)}
        shown = {c: curves[:, ~curves.isnan().any(0)].mean(0) for c, curves in panels.items()}
        return profiles(shown, title=f"Saliency of the filters of {network(_victim(seen['saliency'], place, name))}")

    return Study(
        id=f"redrl/{name}",
        title=f"Saliency of the filters of {of}",
        runs=RUN_OF_VICTIMS,
        evaluations=SALIENCY,
        numbers=numbers,
        claims=_OF_THE_FIRST if place == 0 else _OF_ANOTHER,
        figure=figure,
        notes=(
            f"Of the victim number {place + 1} of the scale. The paper prints no number: it shows profiles, and says "
            "what to see in them. A quarter is that of the layers, in % of the four.",
            "Of attacked images, those that the network got right before the attack and wrong after it; of clean ones, "
            "those that it gets right.",
        ),
    )


def _quarters(t: Table, c: str) -> list[Number]:
    """Of the network that the table is about, which is its first column."""
    return [next(iter(t.row(_quarter(c, number)).values())) for number in QUARTERS]


def _last(t: Table, c: str) -> Number:
    return _quarters(t, c)[-1]


def _first(t: Table, c: str) -> Number:
    return _quarters(t, c)[0]


def _magnitudes_differ(t: Table) -> Claim:
    found = [next(iter(t.row(f"{c}, magnitude").values())) for c in LATE]
    return span(found) > 0.2 * average(found)


_OF_THE_FIRST = {
    "PGD, CW-L2 and Patch load more on the last layers than DeepFool": lambda t: every(
        _last(t, c) > _last(t, "DeepFool") for c in LATE
    ),
    "DeepFool loads more on the first layers than PGD, CW-L2 and Patch": lambda t: every(
        _first(t, "DeepFool") > _first(t, c) for c in LATE
    ),
    "CW-Linf is spread over the layers more evenly than PGD, CW-L2 and Patch": lambda t: every(
        span(_quarters(t, "CW-Linf")) < span(_quarters(t, c)) for c in LATE
    ),
    "the magnitudes of PGD, CW-L2 and Patch differ (by more than a fifth)": _magnitudes_differ,
}


def _same_order(t: Table, c: str) -> Claim:
    numbers = [list(t.row(_quarter(c, number)).values()) for number in QUARTERS]
    return rank_correlation(*zip(*numbers, strict=True)) > 0.5


_OF_ANOTHER = {
    "the quarters stand in the order of the first network (rank correlation above 0.5) for most attacks": lambda t: (
        most(_same_order(t, c) for c in ALL if c != "Clean")
    )
}


PAIRS = "mean of all pairs"


def _inputs(name: str, of: str) -> Study:
    """Figs. 6 and 7: where the input matters to the filters that an attack disturbs most."""

    def maps(seen: Seen) -> dict[str, dict[int, Tensor]]:
        """Class -> image -> its map, on the first victim."""
        found: dict[str, dict[int, Tensor]] = {}
        for attack, place in _kept(seen):
            of_class = found.setdefault(CLASSES[attack], {})
            of_class[int(seen.of["image"][place])] = seen.pictures["input_saliency"][place]
        return found

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for (a, one), (b, two) in itertools.combinations(maps(seen["saliency"]).items(), 2):
            both = [centred(torch.stack([of[image] for image in one if image in two])) for of in (one, two)]
            table[f"{a} and {b}", "correlation"] = float(cosine(*both).mean())
        return table | {(PAIRS, "correlation"): sum(table.values()) / len(table)}

    def figure(seen: Mapping[str, Seen], _: Table) -> Figure:
        found = maps(seen["saliency"])
        images = [image for image in next(iter(found.values())) if all(image in of for of in found.values())][:4]
        columns = {f"{c} (map)": torch.stack([of[image] for image in images]) for c, of in found.items()}
        return image_grid(columns, rows=[f"image {image}" for image in images], title="Input saliency")

    return Study(
        id=f"redrl/{name}",
        title=f"Input saliency {of}",
        runs=RUN_OF_VICTIMS,
        evaluations=SALIENCY,
        numbers=numbers,
        claims={
            "the maps of one image differ between attacks (mean correlation below 0.9)": lambda t: (
                t[PAIRS, "correlation"] < 0.9
            )
        },
        figure=figure,
        notes=(
            "The number is the mean correlation of the maps of the same image in two classes, on the first victim; the "
            "paper shows one image. How many filters are boosted, and by how much, is that of the authors' code of the "
            "saliency method (10, by 100); the paper does not say.",
        ),
    )


def sal_abs() -> Study:
    """Beyond the paper: the saliency with and without the absolute value of its equation 6."""
    ways = {"absolute": Saliency(), "signed": Saliency(absolute=False)}

    def difference(t: Table, c: str) -> Number:
        return abs(t[c, "absolute"] - t[c, "signed"]) / t[c, "absolute"]

    return Study(
        id="redrl/sal_abs",
        title="Saliency with and without the absolute value of equation 6",
        runs=RUN_OF_VICTIMS,
        evaluations={n: Evaluation(run="victims", overrides=DIAGNOSIS, probe=probe) for n, probe in ways.items()},
        numbers=lambda seen: {
            (c, name): rows.mean("saliency") for name, each in seen.items() for c, rows in fooling(each.rows).items()
        },
        claims={
            "what it changes is a larger share for clean images than for PGD, CW-L2 and Patch": lambda t: every(
                difference(t, "Clean") > difference(t, c) for c in LATE
            )
        },
        notes=("Saliency is centred on clean images, where without the absolute value it is 0 on average.",),
    )


STUDIES = {
    "fig2": fig2,
    "fig4": fig4,
    "fig5": partial(_profiles, "fig5", 0, "ResNet50 on CIFAR-10 (Figs. 5 and 8)"),
    "fig6": partial(_inputs, "fig6", "on the harder data set (Fig. 6)"),
    "fig7": partial(_inputs, "fig7", "on the easier data set (Fig. 7)"),
    "fig9": partial(_profiles, "fig9", 1, "ResNeXt50 on CIFAR-10 (Fig. 9)"),
    "fig10": partial(_profiles, "fig10", 2, "DenseNet121 on CIFAR-10 (Fig. 10)"),
    "fig11": partial(_profiles, "fig11", 3, "VGG19 on CIFAR-10 (Fig. 11)"),
    "fig12": partial(_profiles, "fig12", 0, "ResNet50 on Tiny ImageNet (Fig. 12)"),
    "fig13": partial(_profiles, "fig13", 1, "ResNeXt50 on Tiny ImageNet (Fig. 13)"),
    "fig14": partial(_profiles, "fig14", 2, "DenseNet121 on Tiny ImageNet (Fig. 14)"),
    "fig15": partial(_profiles, "fig15", 3, "VGG19 on Tiny ImageNet (Fig. 15)"),
    "sal_abs": sal_abs,
}
