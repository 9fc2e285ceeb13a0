"""Studies of the attention-U-Net GAN: "Robust Recovery of Adversarial Examples" (ICML 2021 workshop).

Rows are ``<eps in 1/255>, <classifier>``, and eps 0 is the clean image. Classifiers go by their part in the training:
the guide, whose classes and features count (Inception-v3 in the paper), and the last victim (VGG-13 there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure

from redlab.methods.attunet_gan import Generator
from redlab.metrics import Samples
from redlab.report.plots import curve
from redlab.studies.numbers import Claim, Number, average, every, falling, inverted_u, largest, span
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_eps
from redlab.studies.table import Address, Table
from redlab.victims.architectures import vgg13

NOISE, IMAGE, IMAGE2 = "Noise Reconstruction", "Image Reconstruction", "Image Reconstruction-2"
GUIDE, OTHER = "guide", "other victim"
SOURCES = {"DenseNet-121": "first unseen network", "VGG-11": "second unseen network"}
PARTS = {"Inception-v3": GUIDE, "VGG-13": OTHER} | SOURCES
"""What the paper calls a classifier -> its part here."""

EXPOSED, RECOVERED = "exposed", "recovered"
SIDES = {EXPOSED: "right_attacked", RECOVERED: "right_restored"}
AWARE = "attacker knows the defence"
CIFAR = "CIFAR-10, 10,000 test images"

WITHIN, BEYOND = (4, 8, 16), 32
"""Budgets of Table 1: those of the training, and one that is not."""
NARROW, WIDE = "@range_16", "@range_128"
SHOWN = (5, 10, 20, 25, 35, 50, 65)
"""Budgets of Tables 2 and 3."""

ROLES = (
    "guide: the first victim, whose classes and features G is trained with (Inception-v3 in the paper); other victim: "
    "the last one that the attacks of the training are made on (VGG-13). Networks of the scale are among the words of "
    "the runs."
)
BLIND = (
    "exposed: accuracy on the attacked image; recovered: on what G makes of it. FGSM goes through the classifier alone "
    "and uses the true label, which is what the paper calls white box."
)
KNOWING = (
    f"'{AWARE}' is not in the paper: PGD of 40 steps, with the largest eps of the table, through G and the classifier."
)


def both_stages(name: str, known: str, *words: str, post: Sequence[str] = ()) -> dict[str, list[str]]:
    """The runs of both stages: ``stage 1 of <name>``, and ``<name>``, which starts from it.

    Args:
        name: of the run of stage 2.
        known: list of the scale with the attacks of the training.
        *words: of both.
        post: of stage 2 alone.
    """
    return {
        f"stage 1 of {name}": [known, "method=attunet_gan", "@stage_1", *words],
        name: [known, "method=attunet_gan_post", "@stage_2", *words, *post, f"init=@stage 1 of {name}"],
    }


OF_NOISE = ("method.output=noise", f"method.noise_scale={16 / 255:.6f}")
THREE = both_stages(NOISE, NARROW, *OF_NOISE) | both_stages(IMAGE, NARROW)
THREE[IMAGE2] = [*THREE[IMAGE][:-1], "method.lambda_adv=1e-2", THREE[IMAGE][-1]]
"""Table 1: the training has eps up to 16/255. Both image methods share their stage 1."""

WIDEST = "Image Reconstruction up to 128"
WIDELY = both_stages(WIDEST, WIDE)
"""Tables 2 and 3: up to 128/255."""


def tested(*budgets: int) -> tuple[str, ...]:
    """Words of a test under FGSM of these budgets, in 1/255."""
    return ("@test", f"mix.components.fgsm.settings=[{','.join(f'{{eps:{eps}/255}}' for eps in budgets)}]")


AT_TABLE1, AT_TABLE2 = tested(*WITHIN, BEYOND), tested(*SHOWN)
WHOLE = ("@whole", *DIAGNOSIS)
GUIDE_JUDGES = "judges=[${choices.victim.0}]"


def parts(rows: Samples) -> dict[str, str]:
    """The part of a network -> its name.

    Raises:
        ValueError: there is one network only.
    """
    names = rows.names["victim"]
    if len(names) < 2:
        raise ValueError(f"studies of attunet_gan need two victims or more, got {', '.join(names)} alone")
    return {GUIDE: names[0], OTHER: names[-1]}


def accuracies(rows: Samples, side: str, networks: Mapping[str, str]) -> dict[str, float]:
    """``<eps>, <part>`` -> accuracy in per cent.

    Args:
        rows: of a test.
        side: column of what counts, such as "right_restored".
        networks: part -> name of the network that is attacked.
    """
    found: dict[tuple[float, int], tuple[str, float]] = {}
    for place, (part, name) in enumerate(networks.items()):
        mine = rows.where(knowledge="victim", victim=name)
        for eps, of in {0.0: mine.clean, **by_eps(mine.where(attack="fgsm"))}.items():
            found[eps, place] = (f"{255 * eps:g}, {part}", 100 * of.mean(side))
    return dict(found[at] for at in sorted(found))


def recovered(seen: Mapping[str, Seen]) -> dict[Address, float]:
    """A column for the attacked images, one for each method, and the attacker who knows it."""
    first = next(iter(seen.values())).rows
    table = {(row, EXPOSED): n for row, n in accuracies(first, SIDES[EXPOSED], parts(first)).items()}
    for name, each in seen.items():
        table |= {(row, name): n for row, n in accuracies(each.rows, SIDES[RECOVERED], parts(each.rows)).items()}
    return table | {(row, name): n for name, each in seen.items() for row, n in _known(each.rows).items()}


def _known(rows: Samples) -> dict[str, float]:
    knowing = rows.where(knowledge="defence")
    return {
        f"{AWARE}, {part}": 100 * knowing.where(victim=name).mean("right")
        for part, name in parts(rows).items()
        if len(knowing)
    }


def _printed(table: str) -> PaperTable:
    """A table of the paper, with the parts of the classifiers in place of their names."""
    paper = paper_table("attunet_gan", table)
    rows = tuple({**row, "keys": {key: PARTS.get(v, v) for key, v in row["keys"].items()}} for row in paper.rows)
    return replace(paper, rows=rows)


def drawn(columns: Sequence[str], who: Sequence[str], title: str) -> Callable[[Mapping[str, Seen], Table], Figure]:
    """A figure with a panel for each part, and a line over eps for each column."""

    def lines(t: Table, part: str) -> dict[str, dict[float, Number]]:
        eps = {row: float(row.partition(",")[0]) for row in t.rows if row.endswith(part) and row[0].isdigit()}
        return {c: {at: t[row, c] for row, at in eps.items() if (row, c) in t} for c in columns}

    def figure(_: Mapping[str, Seen], t: Table) -> Figure:
        return curve({part: lines(t, part) for part in who}, x_title="eps in 1/255", truth=(EXPOSED,), title=title)

    return figure


# ---- nothing attacked ---------------------------------------------------------------------------------------------

OURS, VGG13 = "generator", "VGG-13"


def params() -> Study:
    """Section 5: G has fewer parameters than VGG-13. Nothing is trained for it."""
    row = "parameters, in millions"
    channels, classes = 3, 10

    def numbers(_: Mapping[str, Seen]) -> dict[Address, float]:
        made = {OURS: Generator(channels), VGG13: vgg13(classes, channels, 32, batch_norm=True)}
        return {(row, name): sum(p.numel() for p in net.parameters()) / 1e6 for name, net in made.items()}

    return Study(
        id="attunet_gan/params",
        title="Parameters of the generator and of VGG-13",
        runs={},
        evaluations={},
        numbers=numbers,
        claims={f"the generator has fewer than {VGG13}": lambda t: t[row, OURS] < t[row, VGG13]},
        notes=(
            "Of the default widths, for images of three channels; VGG-13 with one linear layer, the smallest reading. "
            "The paper gives no widths, only the bound.",
        ),
    )


def victims() -> Study:
    """Section 7: the networks on clean images, those that G never meets among them."""
    row = "clean accuracy"
    run = f"stage 1 of {WIDEST}"  # nothing of it enters

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        found = {name: of.clean for each in seen.values() for (name,), of in each.rows.groups("victim")}
        return {(row, name): 100 * of.mean("right_clean") for name, of in found.items()}

    return Study(
        id="attunet_gan/victims",
        title="The networks on clean images",
        runs={run: WIDELY[run]},
        evaluations={
            "of the training": Evaluation(run=run, overrides=WHOLE),
            "unseen": Evaluation(run=run, overrides=("@unseen", *WHOLE)),
        },
        numbers=numbers,
        claims={
            "within 3 points of each other": lambda t: span(t.row(row)) < 3,
            "far above chance (at least 85 %)": lambda t: every(n >= 85 for n in t.row(row).values()),
        },
        units={row: "%"},
        notes=("The paper prints 93.1 % (Section 7) and 93 % (Section 1) of Inception-v3, and nothing of the others.",),
    )


def clean() -> Study:
    """What G costs on images that were not attacked: the rows of eps 0 in Table 1."""
    runs = THREE | WIDELY
    names = (NOISE, IMAGE, IMAGE2, WIDEST)
    without = "without G"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        def of(rows: Samples, side: str) -> dict[str, float]:
            return {f"0, {p}": 100 * rows.clean.where(victim=v).mean(side) for p, v in parts(rows).items()}

        table = {(row, without): n for row, n in of(seen[WIDEST].rows, "right_clean").items()}
        return table | {(row, m): n for m, each in seen.items() for row, n in of(each.rows, "right_restored").items()}

    paper = _printed("table1")
    return Study(
        id="attunet_gan/clean",
        title="Clean images through the generator",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=WHOLE) for name in names},
        numbers=numbers,
        claims={
            f"{name}: at most 2 points are lost": partial(_kept, name=name, without=without, parts=(GUIDE, OTHER))
            for name in names
        },
        paper=replace(paper, rows=tuple(row for row in paper.rows if row["keys"]["epsilon"] == 0)),
        paper_data=CIFAR,
        units={f"0, {part}": "%" for part in (GUIDE, OTHER)},
        notes=(ROLES, "Without G the paper prints 93.1 % of Inception-v3, and nothing of VGG-13."),
    )


def _kept(t: Table, name: str, without: str, parts: Sequence[str]) -> Claim:
    return every(t[f"0, {part}", without] - 2 <= t[f"0, {part}", name] for part in parts)


# ---- within and beyond the range of the training ------------------------------------------------------------------


def collapse(t: Table) -> Claim:
    """Beyond the range of the training noise is at least 20 points below both image methods."""
    return every(
        t[f"{BEYOND}, {part}", NOISE] + 20 <= t[f"{BEYOND}, {part}", name]
        for part in (GUIDE, OTHER)
        for name in (IMAGE, IMAGE2)
    )


def _table1(study: str, title: str, claims: Mapping[str, Callable[[Table], Claim]]) -> Study:
    return Study(
        id=f"attunet_gan/{study}",
        title=title,
        runs=THREE,
        evaluations={name: Evaluation(run=name, overrides=AT_TABLE1) for name in (NOISE, IMAGE, IMAGE2)},
        numbers=recovered,
        claims=claims,
        figure=drawn((EXPOSED, NOISE, IMAGE, IMAGE2), (GUIDE, OTHER), "Recovered accuracy, in %"),
        paper=_printed("table1"),
        paper_data=CIFAR,
        notes=(ROLES, BLIND, f"The training has eps up to 16; {BEYOND} is beyond it.", KNOWING),
    )


def table1() -> Study:
    """Table 1: noise against images, within the range of the training and beyond it."""
    return _table1(
        "table1",
        "Noise or image, trained up to eps 16 (Table 1)",
        {
            f"{name}: recovered above exposed for eps 4 to 16": partial(_better, name=name)
            for name in (NOISE, IMAGE, IMAGE2)
        }
        | {
            f"{NOISE} collapses at {BEYOND}: at least 20 points below both image methods": collapse,
            f"{IMAGE} within 3 points of {NOISE} up to 16": lambda t: every(
                t[f"{eps}, {part}", IMAGE].near(t[f"{eps}, {part}", NOISE], by=3)
                for eps in (0, *WITHIN)
                for part in (GUIDE, OTHER)
            ),
            f"{IMAGE2} within 3 points of {IMAGE} everywhere": lambda t: every(
                t[f"{eps}, {part}", IMAGE2].near(t[f"{eps}, {part}", IMAGE], by=3)
                for eps in (0, *WITHIN, BEYOND)
                for part in (GUIDE, OTHER)
            ),
        },
    )


def _better(t: Table, name: str) -> Claim:
    return every(t[f"{eps}, {part}", EXPOSED] < t[f"{eps}, {part}", name] for eps in WITHIN for part in (GUIDE, OTHER))


def fig2() -> Study:
    """Fig. 2: the lines of Table 1 cross."""
    return _table1(
        "fig2",
        "Noise is best within the range, and worst beyond it (Fig. 2)",
        {
            f"{NOISE} is best on the guide up to 16 (within a point)": lambda t: every(
                t[f"{eps}, {GUIDE}", NOISE] + 1 >= t[f"{eps}, {GUIDE}", name]
                for eps in (0, *WITHIN)
                for name in (IMAGE, IMAGE2)
            ),
            f"{NOISE} is worst at {BEYOND}": lambda t: every(
                t[f"{BEYOND}, {part}", NOISE] < t[f"{BEYOND}, {part}", name]
                for part in (GUIDE, OTHER)
                for name in (IMAGE, IMAGE2)
            ),
        },
    )


FIRST, BOTH, AT_ONCE = "stage 1", "both stages", "features in stage 1"


def stages() -> Study:
    """Section 6: two stages, or the features in stage 1."""
    first, second = f"stage 1 of {IMAGE}", IMAGE
    runs = {
        first: THREE[first],
        second: THREE[second],
        AT_ONCE: [*THREE[first], "method.lambda_feature=1", "@at_once"],
    }
    columns = {FIRST: first, BOTH: second, AT_ONCE: AT_ONCE}
    mean = "mean of eps 4 to 16"

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for column, each in seen.items():
            found = accuracies(each.rows, SIDES[RECOVERED], parts(each.rows))
            table |= {(row, column): n for row, n in found.items()}
            for part in (GUIDE, OTHER):
                table[f"{mean}, {part}", column] = sum(found[f"{eps}, {part}"] for eps in WITHIN) / len(WITHIN)
        return table

    def varies(t: Table, column: str) -> Number:
        n = t[f"{mean}, {GUIDE}", column]
        return Number((n.spread,), f"range over seeds of {n.name}")

    return Study(
        id="attunet_gan/stages",
        title="Two stages, or one",
        runs=runs,
        evaluations={c: Evaluation(run=name, overrides=(*AT_TABLE1, *DIAGNOSIS)) for c, name in columns.items()},
        numbers=numbers,
        claims={
            "both stages at least as good as stage 1": lambda t: every(
                t[f"{mean}, {part}", FIRST] <= t[f"{mean}, {part}", BOTH] for part in (GUIDE, OTHER)
            ),
            "both stages better than features in stage 1": lambda t: every(
                t[f"{mean}, {part}", AT_ONCE] < t[f"{mean}, {part}", BOTH] for part in (GUIDE, OTHER)
            ),
            "features in stage 1 vary more over seeds": lambda t: varies(t, BOTH) < varies(t, AT_ONCE),
        },
        figure=drawn(tuple(columns), (GUIDE, OTHER), "Recovered accuracy, in %"),
        notes=(
            ROLES,
            "The paper says that features in stage 1 were unstable, and prints no number. That run is as long as both "
            "stages together.",
        ),
    )


# ---- far larger budgets -------------------------------------------------------------------------------------------


def table2() -> Study:
    """Table 2: eps of 5 to 65, after a training of up to 128."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[WIDEST].rows
        table = {(row, c): n for c, side in SIDES.items() for row, n in accuracies(rows, side, parts(rows)).items()}
        return table | {(row, RECOVERED): n for row, n in _known(rows).items()}

    def line(t: Table, part: str) -> list[Number]:
        return [t[f"{eps}, {part}", RECOVERED] for eps in SHOWN]

    paper = _printed("table2")
    without = {"keys": {"epsilon": 0, "classifier": GUIDE}, "values": {EXPOSED: 93.1}}
    return Study(
        id="attunet_gan/table2",
        title="FGSM of eps 5 to 65 (Table 2)",
        runs=WIDELY,
        evaluations={WIDEST: Evaluation(run=WIDEST, overrides=AT_TABLE2)},
        numbers=numbers,
        claims={
            "recovered far above exposed at every eps (by more than 20 points)": lambda t: every(
                t[f"{eps}, {part}", EXPOSED] + 20 < t[f"{eps}, {part}", RECOVERED]
                for eps in SHOWN
                for part in (GUIDE, OTHER)
            ),
            "at eps 25 at least 40 points are given back": lambda t: every(
                t[f"25, {part}", EXPOSED] + 40 <= t[f"25, {part}", RECOVERED] for part in (GUIDE, OTHER)
            ),
            "recovered accuracy rises and then falls": lambda t: every(
                inverted_u(line(t, part), slack=1) for part in (GUIDE, OTHER)
            ),
            "the guide is recovered at least as well as the other": lambda t: every(
                t[f"{eps}, {OTHER}", RECOVERED] <= t[f"{eps}, {GUIDE}", RECOVERED] for eps in SHOWN
            ),
            "the guide's best is at least its accuracy on clean images": lambda t: (
                t[f"0, {GUIDE}", EXPOSED] <= largest(line(t, GUIDE))
            ),
        },
        figure=drawn((EXPOSED, RECOVERED), (GUIDE, OTHER), "Accuracy, in %"),
        paper=replace(paper, rows=(without, *paper.rows)),
        paper_data=CIFAR,
        notes=(ROLES, BLIND, "The paper's 93.1 at eps 0 is from its Section 7; Section 1 has 93.", KNOWING),
    )


def table3() -> Study:
    """Table 3: FGSM on networks that G never met; the guide judges."""
    paper, white = _printed("table3"), _printed("table2")
    first, second = SOURCES.values()

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[WIDEST].rows
        sources = dict(zip((GUIDE, first, second), rows.names["victim"], strict=True))
        judged = rows.where(judge=sources[GUIDE])
        return {(row, c): n for c, side in SIDES.items() for row, n in accuracies(judged, side, sources).items()}

    def of(t: Table, source: str, side: str = RECOVERED) -> list[Number]:
        return [t[f"{eps}, {source}", side] for eps in SHOWN]

    def below(t: Table) -> Claim:
        most = t[f"0, {GUIDE}", EXPOSED]
        pairs = [pair for source in (first, second) for pair in zip(of(t, source), of(t, GUIDE), strict=True)]
        return every(claim for black, own in pairs for claim in (black < own, black < most))

    own = tuple(row for row in white.rows if row["keys"]["classifier"] == GUIDE)
    without = {"keys": {"epsilon": 0, "attacker": GUIDE}, "values": {EXPOSED: 93.1}}
    return Study(
        id="attunet_gan/table3",
        title="FGSM on networks that the generator never met (Table 3)",
        runs=WIDELY,
        evaluations={WIDEST: Evaluation(run=WIDEST, overrides=(*AT_TABLE2, "@unseen", GUIDE_JUDGES, *DIAGNOSIS))},
        numbers=numbers,
        claims={
            "recovered above exposed at every eps": lambda t: every(
                before < after
                for source in (first, second)
                for before, after in zip(of(t, source, EXPOSED), of(t, source), strict=True)
            ),
            "recovered accuracy falls with eps (no step up by more than 2 points)": lambda t: every(
                falling(of(t, source), slack=2) for source in (first, second)
            ),
            "below what is recovered of attacks on the guide itself, and below its clean accuracy": below,
        },
        figure=drawn((EXPOSED, RECOVERED), (GUIDE, first, second), "Accuracy of the guide, in %"),
        paper=replace(paper, rows=(without, *own, *paper.rows), source=f"{paper.source}, {white.source}"),
        paper_data=CIFAR,
        notes=(
            "Rows go by the network that FGSM sees; the guide says what is right. Those of the guide itself are of "
            "Table 2. The paper's unseen networks are DenseNet-121 and VGG-11.",
        ),
    )


HGD_FEATURES, HGD_PIXELS = "HGD, features", "HGD, pixels"


def hgd() -> Study:
    """The denoiser that the paper compares itself with in words, on the same batches."""
    runs = WIDELY | {
        HGD_FEATURES: [WIDE, "method=hgd", "@hgd"],
        HGD_PIXELS: [WIDE, "method=hgd", "@hgd", "method.guidance=pixel"],
    }
    names = (WIDEST, HGD_FEATURES, HGD_PIXELS)
    large = [eps for eps in SHOWN if eps >= 32]
    return Study(
        id="attunet_gan/hgd",
        title="The attention-U-Net GAN beside HGD",
        runs=runs,
        evaluations={name: Evaluation(run=name, overrides=AT_TABLE2) for name in names},
        numbers=recovered,
        claims={
            f"at least as good as {name} on average of eps 35 to 65": partial(
                lambda t, name: every(
                    average([t[f"{eps}, {part}", name] for eps in large])
                    <= average([t[f"{eps}, {part}", WIDEST] for eps in large])
                    for part in (GUIDE, OTHER)
                ),
                name=name,
            )
            for name in (HGD_FEATURES, HGD_PIXELS)
        },
        figure=drawn((EXPOSED, *names), (GUIDE, OTHER), "Recovered accuracy, in %"),
        notes=(ROLES, BLIND, "The paper claims to be better than HGD and prints no number of it.", KNOWING),
    )


TRUE, PREDICTED = "true labels", "predicted labels"
WRONG = "wrong without an attack"


def leak() -> Study:
    """Whether recovered accuracy above the clean one comes from the true label, which FGSM writes into the image."""
    labels = {TRUE: (), PREDICTED: ("mix.components.fgsm.label=predicted",)}

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        table: dict[Address, float] = {}
        for name, each in seen.items():
            network = parts(each.rows)
            found = accuracies(each.rows, SIDES[RECOVERED], network)
            for part, victim in network.items():
                mine = each.rows.where(victim=victim)
                table[f"without G, {part}", name] = 100 * mine.clean.mean("right_clean")
                missed = mine.take((mine["right_clean"] == 0).nonzero()[:, 0]).where(attack="fgsm")
                table |= {
                    (f"{255 * eps:g}, {part}, {WRONG}", name): 100 * of.mean("right_restored")
                    for eps, of in by_eps(missed).items()
                }
            table |= {(row, name): n for row, n in found.items()}
        return table

    def excess(t: Table, name: str) -> Number:
        return largest([t[f"{eps}, {GUIDE}", name] for eps in SHOWN]) - t[f"without G, {GUIDE}", name]

    return Study(
        id="attunet_gan/leak",
        title="True labels, and predicted ones",
        runs=WIDELY,
        evaluations={
            name: Evaluation(run=WIDEST, overrides=(*AT_TABLE2, *words, *DIAGNOSIS)) for name, words in labels.items()
        },
        numbers=numbers,
        claims={
            "with true labels recovered accuracy of the guide exceeds its clean one": lambda t: excess(t, TRUE) > 0,
            "with predicted labels the excess is smaller": lambda t: excess(t, PREDICTED) < excess(t, TRUE),
        },
        figure=drawn((TRUE, PREDICTED), (GUIDE, OTHER), "Recovered accuracy, in %"),
        notes=(
            ROLES,
            "Not in the paper. The training has true labels throughout; what differs is the label that FGSM of the "
            f"test starts from. Rows '{WRONG}' are of images that the network gets wrong on its own: what is right of "
            "those was told by the attack.",
        ),
    )


STUDIES = {study.__name__: study for study in (params, victims, table1, fig2, table2, table3, stages, clean, hgd, leak)}
"""Name under ``attunet_gan/`` -> the study."""
