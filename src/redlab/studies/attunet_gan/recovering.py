"""Accuracy on recovered images: Tables 1 to 3 and Fig. 2 of the attention-U-Net GAN.

Rows are ``<eps in 1/255>, <classifier>``, and eps 0 is the clean image. Classifiers go by their part in the training:
the guide, whose classes and features count (Inception-v3 in the paper), and the last victim (VGG-13 there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure

from redlab.metrics import Samples
from redlab.report.plots import curve
from redlab.studies.numbers import Claim, Number, every, falling, inverted_u, largest
from redlab.studies.paper_numbers import PaperTable, paper_table
from redlab.studies.study import DIAGNOSIS, Evaluation, Seen, Study, by_eps
from redlab.studies.table import Address, Table

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
    return table | {(row, name): n for name, each in seen.items() for row, n in knowing(each.rows).items()}


def knowing(rows: Samples) -> dict[str, float]:
    """``<AWARE>, <part>`` -> accuracy in per cent under the attacker who knows the defence; nothing without one."""
    of = rows.where(knowledge="defence")
    return {
        f"{AWARE}, {part}": 100 * of.where(victim=name).mean("right") for part, name in parts(rows).items() if len(of)
    }


def printed_table(table: str) -> PaperTable:
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
        paper=printed_table("table1"),
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


# ---- far larger budgets -------------------------------------------------------------------------------------------


def table2() -> Study:
    """Table 2: eps of 5 to 65, after a training of up to 128."""

    def numbers(seen: Mapping[str, Seen]) -> dict[Address, float]:
        rows = seen[WIDEST].rows
        table = {(row, c): n for c, side in SIDES.items() for row, n in accuracies(rows, side, parts(rows)).items()}
        return table | {(row, RECOVERED): n for row, n in knowing(rows).items()}

    def line(t: Table, part: str) -> list[Number]:
        return [t[f"{eps}, {part}", RECOVERED] for eps in SHOWN]

    paper = printed_table("table2")
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
    paper, white = printed_table("table3"), printed_table("table2")
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


STUDIES = {study.__name__: study for study in (table1, fig2, table2, table3)}
