"""The studies of the attention-U-Net GAN on made-up rows and on the paper's own numbers."""

from collections.abc import Mapping

import pytest
import torch
from made_up_redrl import failing, is_only
from omegaconf import OmegaConf
from torch import Tensor

from redlab.metrics import Samples
from redlab.runs.config import compose, conf_dir
from redlab.studies import Claim, Scale, Seen, Study, find
from redlab.studies.attunet_gan.questions import AT_ONCE, BOTH, CAUSES, FIRST, PREDICTED, TRUE, WRONG
from redlab.studies.attunet_gan.recovering import (
    AWARE,
    EXPOSED,
    GUIDE,
    IMAGE,
    IMAGE2,
    NOISE,
    OTHER,
    RECOVERED,
    SHOWN,
    SOURCES,
    WIDEST,
)

COUNT = 2000
NETWORKS = ("first", "middle", "last")
PART = {GUIDE: "first", OTHER: "last"}
SOURCE = dict(zip((GUIDE, *SOURCES.values()), NETWORKS, strict=True))


def one(name: str) -> Study:
    (found,) = find(f"attunet_gan/{name}")
    return found


def share(value: float) -> Tensor:
    """COUNT answers, that share of them right."""
    return (torch.arange(COUNT) < round(value * COUNT)).double()


def rows(
    measured: Mapping[tuple[int, str], Mapping[str, float]], *, judge: str | None = None, aware: float | None = 3.0
) -> Samples:
    """Rows with shares of right answers in per cent, by (eps, network); in the network between them nothing is right,
    nor under R-FGSM, which no table counts.

    Args:
        measured: (eps, network) -> column -> per cent.
        judge: that judges all; None: the network that was attacked.
        aware: what the attacker who knows the defence leaves; None: there is none.
    """
    attacks, columns = ("clean", "fgsm", "rfgsm", "aware_pgd"), ("right_clean", "right_attacked", "right_restored")
    settings = ["", *dict.fromkeys(f"eps={eps}/255" for eps, _ in measured if eps)]
    cells = [("fgsm" if eps else "clean", eps, network, found) for (eps, network), found in measured.items()]
    between = judge is None and not any(network == "middle" for _, network in measured)
    cells += [(attack, eps, "middle", {}) for attack, eps, network, _ in cells if between and network == "first"]
    cells += [("rfgsm", eps, network, {}) for attack, eps, network, _ in cells if attack == "fgsm"]
    parts = []
    for attack, eps, network, found in cells:
        part = {column: share(found.get(column, 0) / 100) for column in columns} | {"right": share(0)}
        part |= {"attack": attacks.index(attack), "setting": settings.index(f"eps={eps}/255" if eps else "")}
        parts.append(part | {"victim": NETWORKS.index(network), "knowledge": 0})
    for network in NETWORKS if aware is not None else ():
        part = {column: share(0) for column in columns} | {"right": share(aware / 100)}
        parts.append(part | {"attack": 3, "setting": 0, "victim": NETWORKS.index(network), "knowledge": 1})
    joined = {c: torch.cat([torch.as_tensor(p[c]).expand(COUNT) for p in parts]) for c in parts[0]}
    joined["judge"] = joined["victim"] if judge is None else torch.full_like(joined["victim"], NETWORKS.index(judge))
    names = {"attack": attacks, "setting": tuple(settings), "victim": NETWORKS, "judge": NETWORKS}
    return Samples(joined, names | {"knowledge": ("victim", "defence")})


def at(row: str) -> tuple[int, str]:
    eps, part = row.split(", ")
    return int(eps), part


Numbers = Mapping[tuple[str, str], float]


def of_table1(name: str, changed: Numbers | None = None) -> dict[str, Seen]:
    """The paper's Table 1, with 0 % on attacked images."""
    printed = {a: n.mean for a, n in one("table1").printed.cells.items()} | dict(changed or {})
    found: dict[str, dict] = {method: {} for method in one(name).evaluations}
    for (row, method), value in printed.items():
        eps, part = at(row)
        if method in found:
            found[method][eps, PART[part]] = {"right_restored": value, "right_clean": 93.1, "right_attacked": 0}
    return {method: Seen(rows=rows(measured)) for method, measured in found.items()}


def of_table2(changed: Numbers | None = None) -> dict[str, Seen]:
    """The paper's Table 2; clean images through G as in Table 1."""
    printed = {a: n.mean for a, n in one("table2").printed.cells.items()} | dict(changed or {})
    printed.setdefault((f"0, {OTHER}", EXPOSED), 93.0)
    found: dict[tuple[int, str], dict[str, float]] = {}
    for (row, side), value in printed.items():
        eps, part = at(row)
        column = {EXPOSED: "right_attacked", RECOVERED: "right_restored"}[side]
        found.setdefault((eps, PART[part]), {"right_clean": 93.0, "right_restored": 92.0})[column] = value
    return {WIDEST: Seen(rows=rows(found))}


def of_table3(changed: Numbers | None = None) -> dict[str, Seen]:
    """The paper's Table 3, judged by the guide."""
    printed = {a: n.mean for a, n in one("table3").printed.cells.items()} | dict(changed or {})
    found: dict[tuple[int, str], dict[str, float]] = {}
    for (row, side), value in printed.items():
        eps, source = at(row)
        column = {EXPOSED: "right_attacked", RECOVERED: "right_restored"}[side]
        found.setdefault((eps, SOURCE[source]), {})[column] = value
    for source in SOURCE.values():
        found.setdefault((0, source), {"right_attacked": 93.1})["right_restored"] = 92.0
    return {WIDEST: Seen(rows=rows(found, judge="first", aware=None))}


def gives_the_papers(study: Study, seen: Mapping[str, Seen]) -> None:
    ours = study.table([seen])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=0.03), address
    assert failing(study, seen) == set()
    assert study.figure is not None
    assert study.figure(seen, ours).axes


def papers_own(study: Study) -> set[str]:
    """Claims that the paper's own numbers do not bear out, or say nothing of."""
    judged = study.judge(study.printed)
    return {text for text, c in judged.items() if not isinstance(c, Claim) or c.verdict != "holds"}


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table1", "fig2"])
def test_table1_gives_the_papers_numbers_on_rows_that_have_them(name: str) -> None:
    study, seen = one(name), of_table1(name)
    gives_the_papers(study, seen)
    ours = study.table([seen])
    assert ours[f"{AWARE}, {GUIDE}", NOISE].mean == pytest.approx(3)
    assert ours[f"16, {GUIDE}", EXPOSED].mean == 0
    assert papers_own(study) == {text for text in study.claims if "above exposed" in text}


def test_table2_and_table3_give_the_papers_numbers() -> None:
    gives_the_papers(one("table2"), of_table2())
    gives_the_papers(one("table3"), of_table3())
    assert papers_own(one("table2")) == papers_own(one("table3")) == set()
    assert one("table2").table([of_table2()])[f"{AWARE}, {OTHER}", RECOVERED].mean == pytest.approx(3)


@pytest.mark.parametrize(
    ("name", "changed", "broken"),
    [
        ("table1", {(f"8, {OTHER}", IMAGE): 84.0, (f"8, {OTHER}", IMAGE2): 84.0}, f"{IMAGE} within 3 points of"),
        ("table1", {(f"32, {GUIDE}", IMAGE2): 61.0}, f"{IMAGE2} within 3 points"),
        ("table1", {(f"32, {GUIDE}", NOISE): 40.0}, f"{NOISE} collapses at 32"),
        ("fig2", {(f"4, {GUIDE}", IMAGE2): 92.5}, f"{NOISE} is best"),
        ("fig2", {(f"32, {OTHER}", NOISE): 73.0}, f"{NOISE} is worst"),
        ("table2", {(f"65, {OTHER}", EXPOSED): 50.0}, "recovered far above exposed"),
        ("table2", {(f"10, {OTHER}", RECOVERED): 84.0}, "recovered accuracy rises and then falls"),
        ("table2", {(f"5, {OTHER}", RECOVERED): 90.5}, "the guide is recovered at least"),
        ("table2", {(f"0, {GUIDE}", EXPOSED): 99.0}, "the guide's best is at least"),
        ("table3", {(f"5, {SOURCES['VGG-11']}", EXPOSED): 80.0}, "recovered above exposed"),
        ("table3", {(f"20, {SOURCES['VGG-11']}", RECOVERED): 79.0}, "recovered accuracy falls with eps"),
        ("table3", {(f"65, {GUIDE}", RECOVERED): 55.0}, "below what is recovered"),
        ("table3", {(f"0, {GUIDE}", EXPOSED): 79.0}, "below what is recovered"),
    ],
)
def test_a_changed_number_breaks_its_claim_alone(name: str, changed: Numbers, broken: str) -> None:
    made = {"table2": of_table2, "table3": of_table3}.get(name, lambda new: of_table1(name, new))
    assert is_only(failing(one(name), made(changed)), broken)


def test_forty_points_at_25() -> None:
    found = failing(one("table2"), of_table2({(f"25, {OTHER}", EXPOSED): 60.0}))
    assert "at eps 25 at least 40 points are given back" in found


def test_in_table3_the_guide_judges() -> None:
    assert "judges=[${choices.victim.0}]" in one("table3").evaluations[WIDEST].overrides
    seen = of_table3()[WIDEST].rows
    others = Samples({**seen.columns, "judge": 1 - (seen["judge"] == 1).long()}, seen.names)  # of another network
    said = one("table3").table([{WIDEST: Seen(rows=Samples.cat([seen, others]))}])
    assert said[f"5, {SOURCES['VGG-11']}", RECOVERED].mean == pytest.approx(77.78, abs=0.03)


def test_one_victim_is_not_enough() -> None:
    alone = Samples({"victim": [0]}, {"victim": ("lenet",)})
    with pytest.raises(ValueError, match="two victims or more, got lenet alone"):
        one("table2").numbers({WIDEST: Seen(rows=alone)})


# ---- what the paper has no table of ---------------------------------------------------------------------------------


def test_params_counts_the_networks_of_the_paper() -> None:
    study = one("params")
    ours = study.table([{}])
    assert ours["parameters, in millions", "generator"].mean == pytest.approx(4.523547)
    assert ours["parameters, in millions", "VGG-13"].mean == pytest.approx(9.41601)
    assert failing(study, {}) == set()


def test_clean_images_may_lose_two_points() -> None:
    study, methods = one("clean"), (NOISE, IMAGE, IMAGE2, WIDEST)

    def seen(restored: float) -> dict[str, Seen]:
        found = {(0, network): {"right_clean": 93.0, "right_restored": restored} for network in NETWORKS}
        last = {(0, network): {"right_clean": 93.0, "right_restored": 92.0} for network in NETWORKS}
        return {m: Seen(rows=rows(last if m == WIDEST else found)) for m in methods}

    assert failing(study, seen(91.5)) == set()
    assert failing(study, seen(90.5)) == {f"{m}: at most 2 points are lost" for m in (NOISE, IMAGE, IMAGE2)}
    assert set(study.printed.cells) <= set(study.table([seen(92)]).cells)


def test_the_causes_of_stage_2_start_from_the_same_stage_1_and_look_at_no_test_image() -> None:
    study = one("why_stages")
    assert study.runs[IMAGE] == one("stages").runs[IMAGE]
    for cause, words in CAUSES.items():
        *changed, init = study.runs[f"stage 2, {cause}"]
        assert [*changed[:-1], init] == study.runs[IMAGE]
        assert (changed[-1], init) == (words, f"init=@stage 1 of {IMAGE}")
    assert all("data.test_on=val" in asked.overrides for asked in study.evaluations.values())
    assert list(study.claims) == [f"{column}: at least as good as stage 1" for column in (BOTH, *CAUSES)]


def test_the_causes_of_stage_2_are_judged_on_both_networks() -> None:
    study, means = one("why_stages"), {FIRST: 80, BOTH: 70, **dict.fromkeys(CAUSES, 70), "both": 81}
    judged = study.judge(study.table([of_stages(means)]))
    said = {text.split(":")[0]: claim.verdict for text, claim in judged.items()}
    assert said == {BOTH: "fails", **dict.fromkeys(CAUSES, "fails"), "both": "holds"}


def of_stages(mean: Mapping[str, float]) -> dict[str, Seen]:
    return {
        column: Seen(rows=rows({(e, n): {"right_restored": v} for e in (0, 4, 8, 16, 32) for n in PART.values()}))
        for column, v in mean.items()
    }


def test_stages_are_compared_on_average_and_in_their_spread() -> None:
    study = one("stages")
    seeds = [of_stages({FIRST: 80, BOTH: 85, AT_ONCE: last}) for last in (70, 79)]
    table = study.table(seeds)
    assert table[f"mean of eps 4 to 16, {GUIDE}", AT_ONCE].values == pytest.approx((70, 79))
    verdicts = {text: claim.verdict for text, claim in study.judge(table).items()}
    assert set(verdicts.values()) == {"holds"}
    steady = study.judge(study.table([of_stages({FIRST: 86, BOTH: 85, AT_ONCE: 88})] * 2))
    assert [claim.verdict for claim in steady.values()] == ["fails", "fails", "tie"]
    assert study.runs[AT_ONCE][-2:] == ["method.lambda_feature=1", "@at_once"]


def test_hgd_is_compared_at_the_largest_eps() -> None:
    study = one("hgd")

    def seen(worse: float) -> dict[str, Seen]:
        found = {WIDEST: 80.0} | dict.fromkeys(list(study.evaluations)[1:], worse)
        return {
            name: Seen(
                rows=rows(
                    {(e, n): {"right_restored": v if e >= 32 else 100 - v} for e in (0, *SHOWN) for n in PART.values()}
                )
            )
            for name, v in found.items()
        }

    assert failing(study, seen(70)) == set()
    assert len(failing(study, seen(81))) == 2


def test_leak_counts_what_the_network_gets_wrong_on_its_own() -> None:
    study = one("leak")

    def seen(**best: float) -> dict[str, Seen]:
        """90 % are right without an attack, the first rows; of the others what is above 90 % is recovered."""
        found = {}
        for name, value in best.items():
            cells = {(e, n): {"right_clean": 90.0, "right_restored": value} for e in SHOWN for n in PART.values()}
            cells |= {(0, n): {"right_clean": 90.0, "right_restored": 89.0} for n in PART.values()}
            found[{"true": TRUE, "predicted": PREDICTED}[name]] = Seen(rows=rows(cells, aware=None))
        return found

    table = study.table([seen(true=97, predicted=88)])
    assert table[f"25, {GUIDE}, {WRONG}", TRUE].mean == pytest.approx(70)
    assert table[f"25, {GUIDE}, {WRONG}", PREDICTED].mean == 0
    assert table[f"without G, {OTHER}", TRUE].mean == pytest.approx(90)
    assert failing(study, seen(true=97, predicted=88)) == set()
    assert failing(study, seen(true=97, predicted=98)) == {"with predicted labels the excess is smaller"}
    assert len(failing(study, seen(true=89, predicted=85))) == 1


def test_victims_are_those_of_the_training_and_the_unseen_ones() -> None:
    study = one("victims")

    def seen(last: float) -> dict[str, Seen]:
        found = {(0, n): {"right_clean": v} for n, v in zip(NETWORKS, (93, 92, last), strict=True)}
        return dict.fromkeys(study.evaluations, Seen(rows=rows(found)))

    assert failing(study, seen(91)) == set()
    assert is_only(failing(study, seen(89)), "within 3 points")
    assert len(failing(study, seen(80))) == 2


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_stage_2_starts_from_stage_1_and_both_image_methods_from_the_same() -> None:
    runs = one("table1").runs
    for name in (NOISE, IMAGE):
        assert runs[name][-1] == f"init=@stage 1 of {name}"
    assert runs[IMAGE2][-1] == f"init=@stage 1 of {IMAGE}"
    assert set(runs[IMAGE2]) - set(runs[IMAGE]) == {"method.lambda_adv=1e-2"}


@pytest.mark.parametrize("scale", ["smoke", "small", "small_cifar", "paper"])
def test_a_training_has_the_range_that_its_name_says(scale: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / "attunet_gan.yaml").scales)[scale]
    words = Scale.of(node)
    for largest in (16, 128):
        mix = compose([*words.common, *words.words([f"@range_{largest}"])]).mix.components
        for component in mix.values():
            assert component.params.eps.shuffled == [1, largest]
            assert component.params.eps.over == 255
