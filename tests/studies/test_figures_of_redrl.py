"""The figures of REDRL, and what the paper does not ask, on made-up rows and pictures."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from made_up_redrl import EPS, answered, failing, is_only, one, rows, with_eps
from torch import Tensor

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.metrics import Samples
from redlab.probes import Perturbations
from redlab.studies import Seen
from redlab.studies.redrl import figures
from redlab.studies.redrl.beyond import OPEN
from redlab.studies.redrl.figures import fooling
from redlab.studies.redrl.recognition import ALL, CLASSES, DELTA, IMAGE, RESIDUAL

GLOBAL = ("pgd", "deepfool", "cw_l2", "cw_linf")


def seen_with(made: Samples, **pictures: Callable[[Samples], Tensor]) -> Seen:
    """An evaluation that kept all of its rows."""
    return Seen(rows=made, pictures={name: of(made) for name, of in pictures.items()}, of=made)


def random(*shape: int) -> Callable[[Samples], Tensor]:
    return lambda of: torch.rand(len(of), *shape, generator=torch.Generator().manual_seed(0))


# ---- images ---------------------------------------------------------------------------------------------------------


def probed(clean: Tensor, adv: Tensor, restored: Tensor | None = None) -> Mapping[str, Tensor]:
    ids = torch.zeros(len(clean), dtype=torch.int64)
    batch = AttackBatch(clean, adv, ids, ids, ids, ids, ids, ids - 1, ids, ids == 0, ids > 0)
    return Perturbations()(None, {}, batch, Answers(restored=restored))


def test_what_changed_and_how_far_it_reaches() -> None:
    clean = torch.full((4, 3, 8, 8), 0.5)
    adv = clean.clone()
    adv[1, 2, 3, 4] += 1 / 255  # one value of one pixel
    adv[2, :, 2:4, 1:6] -= 0.1  # a box of 2 x 5
    adv[3, 0, 1, 2] += 0.1  # two corners of a box of 6 x 3
    adv[3, 1, 6, 4] += 0.1
    adv[3, 0, 0, 0] += 0.4 / 255  # less than any image of 8 bits can differ
    found = probed(clean, adv)
    assert (64 * found["changed"]).tolist() == pytest.approx([0, 1, 10, 2])
    assert (64 * found["extent"]).tolist() == pytest.approx([math.nan, 1, 10, 18], nan_ok=True)
    assert set(found) == {"changed", "extent", "clean", "adv"}


def test_a_residual_is_as_like_the_image_as_it_is_made_of_it() -> None:
    clean = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    flat = clean - clean.mean((1, 2, 3), keepdim=True)
    noise = noise - noise.mean((1, 2, 3), keepdim=True)
    noise = noise - flat * (noise * flat).sum((1, 2, 3), keepdim=True) / flat.square().sum((1, 2, 3), keepdim=True)
    left = torch.stack([-0.3 * clean[0] + 0.2, noise[1], 0 * noise[2]])  # image in negative, none of it, nothing
    found = probed(clean, clean, clean - left)
    assert found["content"].tolist() == pytest.approx([1, 0, 0], abs=1e-5)
    assert float(found["restored"].min()) >= 0
    assert float(found["restored"].max()) <= 1


LOOKS = {
    "pgd": {"changed": 0.9, "extent": 1.0, "d_attack": 3.0},
    "deepfool": {"changed": 0.2, "extent": 0.8, "d_attack": 0.3},
    "cw_l2": {"changed": 0.2, "extent": 0.8, "d_attack": 0.4},
    "cw_linf": {"changed": 0.9, "extent": 1.0, "d_attack": 2.0},
    "patch": {"changed": 0.05, "extent": 0.06, "d_attack": 1.0},
    "clean": {"changed": 0.0, "extent": 0.0, "d_attack": 0.0},
}


def test_fig2_measures_and_shows_every_attack() -> None:
    of = one("fig2")
    pictures = {"clean": random(1, 8, 8), "adv": random(1, 8, 8)}
    seen = {"victims": seen_with(rows(lambda attack, *_: LOOKS[attack], settings=with_eps), **pictures)}
    table = of.table([seen])
    assert table["changed", "PGD"].mean == pytest.approx(90)
    assert table["L2", "CW-L2"].mean == pytest.approx(0.4)
    assert failing(of, seen) == set()
    for attack, column, value, broken in (
        ("pgd", "changed", 0.1, "PGD is dense"),
        ("deepfool", "d_attack", 1.6, "DeepFool and CW-L2 are low"),
        ("patch", "extent", 0.5, "Patch is local"),
    ):
        other = LOOKS | {attack: LOOKS[attack] | {column: value}}
        assert is_only(failing(of, {"victims": Seen(rows=rows(lambda a, *_, o=other: o[a]))}), broken)
    assert of.figure is not None
    figure = of.figure(seen, table)
    assert len(figure.axes) == 5 * 2
    assert {"PGD", "DeepFool", "CW-L2", "CW-Linf", "Patch", "adversarial"} <= {t.get_text() for t in figure.texts}


def test_figures_show_the_first_victim_and_the_strongest_setting() -> None:
    of = one("fig4")
    made = rows(lambda *_: {"d": 1.0, "d_attack": 2.0, "cosine": 0.8, "content": 0.1}, settings=with_eps)
    wanted = (made["victim"] == 0) & (made["setting"] == made.names["setting"].index("eps=16/255"))
    marked = wanted[:, None, None, None].float().expand(-1, 1, 4, 4)
    seen = {RESIDUAL: seen_with(made, adv=lambda _: marked, restored=lambda _: marked / 2)}
    assert failing(of, seen) == set()
    assert of.figure is not None
    figure = of.figure(seen, of.table([seen]))
    assert len(figure.axes) == 2 * 3  # PGD and CW-L2
    adversarial, reconstructed, left = (figure.axes[place].images[0].get_array() for place in range(3))
    assert int(adversarial.min()) == 255  # only of the strongest setting on the first victim
    assert int(reconstructed.max()) == 128
    assert int(left.min()) == 255  # 0.5 + 8 * 0.5, clipped


@pytest.mark.parametrize(
    ("column", "value", "broken"),
    [
        ("d", 2.5, "the reconstruction is nearer"),
        ("cosine", 0.45, "the residual is like"),
        ("content", 0.9, "the residual is less"),
    ],
)
def test_fig4_breaks_where_a_number_changes(column: str, value: float, broken: str) -> None:
    good = {"d": 1.0, "d_attack": 2.0, "cosine": 0.8, "content": 0.1}
    bad = Seen(rows=rows(lambda attack, *_: good | ({column: value} if attack == "cw_l2" else {})))
    assert is_only(failing(one("fig4"), {RESIDUAL: bad}), broken)
    elsewhere = Seen(rows=rows(lambda attack, *_: good | ({column: value} if attack == "patch" else {})))
    assert failing(one("fig4"), {RESIDUAL: elsewhere}) == set()


# ---- saliency -------------------------------------------------------------------------------------------------------

PROFILES = {
    "clean": (1.0, (1, 1, 1, 1)),
    "pgd": (6.0, (1, 1, 2, 8)),
    "deepfool": (2.0, (4, 3, 2, 1)),
    "cw_l2": (4.0, (1, 2, 3, 9)),
    "cw_linf": (5.0, (3, 2, 3, 3)),
    "patch": (3.0, (1, 1, 3, 7)),
}


def salient(attack: str, *_: str) -> dict[str, float]:
    magnitude, quarters = PROFILES[attack]
    found = {f"saliency_q{place}": float(value) for place, value in enumerate(quarters, 1)}
    return found | {"saliency": magnitude, "right_clean": 1, "right_attacked": float(attack == "clean")}


def saliency(
    of: Callable[..., dict[str, float]] = salient, *, victims: tuple[str, ...] = ("a", "b")
) -> dict[str, Seen]:
    return {
        "saliency": seen_with(
            rows(of, victims=victims, settings=with_eps), profile=random(1, 1, 12), input_saliency=random(1, 5, 5)
        )
    }


def test_a_profile_is_of_images_that_the_attack_turned() -> None:
    made = rows(salient, settings=with_eps)
    spoiled = made.with_columns(
        right_clean=torch.where(made["image"] == 0, made["right_clean"], 0.0),  # the second images are wrong before
    )
    found = fooling(spoiled)
    assert set(found) == set(ALL)
    assert all(of.values("image") == (0,) for of in found.values())
    assert found["PGD"].settings == found["CW-Linf"].settings == ("eps=16/255",)
    assert len(found["Patch"].settings) == 6
    still_right = made.with_columns(right_attacked=torch.ones(len(made)))
    assert [c for c, of in fooling(still_right).items() if len(of)] == ["Clean"]


def test_fig5_is_about_the_first_victim() -> None:
    of = one("fig5")
    seen = saliency(lambda attack, setting, victim: salient(attack if victim == "a" else "deepfool"))
    seen_a = saliency()
    table = of.table([seen_a])
    assert table.columns == ("a",)
    assert table["PGD, magnitude", "a"].mean == pytest.approx(6)
    assert table["PGD, quarter 4", "a"].mean == pytest.approx(100 * 8 / 12)
    assert failing(of, seen_a) == failing(of, seen) == set()
    assert of.figure is not None
    assert len(of.figure(seen_a, table).axes) == 6


@pytest.mark.parametrize(
    ("attack", "changed", "broken"),
    [
        ("patch", (3.0, (1, 3, 7, 1)), "PGD, CW-L2 and Patch load"),
        ("deepfool", (2.0, (0.2, 4, 4, 1)), "DeepFool loads"),
        ("cw_linf", (5.0, (1, 1, 1, 9)), "CW-Linf is spread"),
    ],
)
def test_fig5_breaks_where_a_profile_changes(attack: str, changed, broken: str) -> None:
    def other(of: str, *_: str) -> dict[str, float]:
        found = {f"saliency_q{place}": float(value) for place, value in enumerate(changed[1], 1)}
        return salient(of) | (found if of == attack else {})

    assert is_only(failing(one("fig5"), saliency(other)), broken)
    same = saliency(lambda of, *_: salient(of) | {"saliency": 5.0})
    assert is_only(failing(one("fig5"), same), "the magnitudes")


def test_fig9_compares_the_second_victim_with_the_first() -> None:
    of = one("fig9")
    seen = saliency()
    table = of.table([seen])
    assert table.columns == ("b", "a")
    assert failing(of, seen) == set()
    turned = saliency(
        lambda attack, _, victim: (
            salient(attack) | (salient("deepfool" if attack != "deepfool" else "pgd") if victim == "b" else {})
        )
    )
    assert len(failing(of, turned)) == 1


def test_a_profile_of_a_victim_that_is_not_there_says_so() -> None:
    with pytest.raises(ValueError, match="fig11 is about the victim number 4, and there are 2: a, b"):
        one("fig11").table([saliency()])


def test_a_profile_is_the_mean_of_those_images_and_ends_with_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Victims of one evaluation share the width of the pictures; what a network has not is NaN."""
    drawn: dict[str, Tensor] = {}
    titles: list[str] = []
    monkeypatch.setattr(figures, "profiles", lambda panels, title: (drawn.update(panels), titles.append(title)))
    of = one("fig9")
    seen = saliency()["saliency"]
    made = seen.rows.with_columns(
        right_clean=torch.where(seen.rows["image"] == 0, seen.rows["right_clean"], 0.0),
    )
    profile = torch.ones_like(seen.pictures["profile"]) * torch.arange(1.0, 13.0)
    profile[made["image"] == 1] = 1e6
    profile[made["victim"] == 1, ..., 7:] = torch.nan
    pictures = dict(seen.pictures) | {"profile": profile}
    changed = {"saliency": Seen(rows=made, of=made, pictures=pictures)}
    assert of.figure is not None
    of.figure(changed, of.table([changed]))
    assert list(drawn) == list(ALL)
    assert drawn["Patch"].tolist() == list(range(1, 8))
    one("fig5").figure(changed, of.table([changed]))  # type: ignore[misc]
    assert drawn["CW-Linf"].tolist() == list(range(1, 13))
    assert titles == [f"Saliency of the filters of {name}" for name in ("b", "a")]


def test_fig6_correlates_the_maps_of_one_image() -> None:
    of = one("fig6")
    made = rows(salient, settings=with_eps)
    torch.manual_seed(0)
    base = torch.rand(2, 1, 6, 6)

    def maps(noise: float) -> dict[str, Seen]:
        own = torch.rand(len(made), 1, 6, 6)
        return {"saliency": seen_with(made, input_saliency=lambda m: base[m["image"]] + noise * own)}

    same = maps(0.0)
    table = of.table([same])
    assert table["Clean and PGD", "correlation"].mean == pytest.approx(1)
    assert len(table.cells) == 15 + 1
    assert len(failing(of, same)) == 1
    different = maps(5.0)
    assert failing(of, different) == set()
    assert of.figure is not None
    assert len(of.figure(different, of.table([different])).axes) == 2 * 6


def test_sal_abs_compares_shares() -> None:
    of = one("sal_abs")
    signed = {"clean": 0.0, "pgd": 5.9, "deepfool": 1.0, "cw_l2": 3.9, "cw_linf": 4.9, "patch": 2.9}

    def ways(**changed: float) -> dict[str, Seen]:
        other = signed | changed
        return {
            "absolute": Seen(rows=rows(salient)),
            "signed": Seen(rows=rows(lambda attack, *_: salient(attack) | {"saliency": other[attack]})),
        }

    assert of.table([ways()])["CW-L2", "signed"].mean == pytest.approx(3.9)
    assert failing(of, ways()) == set()
    assert len(failing(of, ways(clean=0.9, pgd=3.0))) == 1
    assert [e.probe.absolute for e in of.evaluations.values()] == [True, False]


# ---- beyond the paper -----------------------------------------------------------------------------------------------


def recognising(**shares: float) -> Seen:
    return answered({name: {name: shares.get(name, 90.0)} for name in CLASSES})


def test_abl_quant_looks_at_the_row_of_clean_images() -> None:
    of = one("abl_quant")
    assert of.runs["I_r,I_adv, so that they fool"] == ["method=redrl"]
    assert of.runs["I_adv, not rounded"] == ["method=redrl_image", "mix.quantize=null"]

    def stored(clean: float, right: float) -> Seen:
        rows = recognising(clean=clean).rows
        return Seen(rows=rows.with_columns(right_attacked=torch.full((len(rows),), right).double()))

    seen = {
        name: stored(95.0 if name.endswith("floor") else 60.0, 0.9 if name.endswith("nearest") else 0.1)
        for name in of.runs
    }
    assert failing(of, seen) == set()
    assert is_only(failing(of, seen | {"I_adv, floor": stored(50.0, 0.1)}), "I_adv: cutting off")
    assert is_only(failing(of, seen | {"I_adv, nearest": stored(60.0, 0.5)}), "rounding to the nearest")


def test_abl_skip_has_accuracy_beside_recognition() -> None:
    of = one("abl_skip")

    def run(share: float, accuracy: float) -> Seen:
        made = recognising(**dict.fromkeys(CLASSES, share)).rows
        clean_too = torch.where(made["attack"] == 0, 1e6, accuracy)
        return Seen(rows=made.with_columns(right_restored=clean_too))

    seen = {"REDRL": run(90, 0.8), "no identity inside": run(80, 0.7), "global skip": run(85, 0.6)}
    assert of.table([seen])["G(I), attacked", "global skip"].mean == pytest.approx(60)
    assert failing(of, seen) == set()
    assert is_only(failing(of, seen | {"global skip": run(85, 0.9)}), "a global skip")
    assert is_only(failing(of, seen | {"no identity inside": run(80, 0.9)}), "without identities")
    assert is_only(failing(of, seen | {"global skip": run(95, 0.6)}), "total")


def left_out(**changed: Mapping[str, float]) -> Seen:
    said = {name: {"pgd": 60.0, "clean": 10.0, "patch": 5.0} for name in OPEN}
    return answered(said | changed)


def test_open_attack_says_what_left_out_attacks_are_taken_for() -> None:
    of = one("open_attack")
    seen = {name: recognising() for name in (IMAGE, RESIDUAL)}
    seen |= {f"{RESIDUAL}, left out": left_out(), f"{IMAGE}, left out": left_out()}
    unsure = seen[f"{IMAGE}, left out"].rows
    sure = {c: unsure[c] for c in unsure.columns if c.startswith("p_")}
    table = of.table([seen])
    assert table["fgsm, said PGD", RESIDUAL].mean == pytest.approx(60)
    assert table["feature, alarm", IMAGE].mean == pytest.approx(90)
    assert table["AUROC, left out or not", RESIDUAL].mean == pytest.approx(100)
    # as sure of what it does not know as of what it does
    blind = unsure.with_columns(**{c: torch.where(v == v.amax(), 0.9, 0.02) for c, v in sure.items()})
    seen[f"{IMAGE}, left out"] = Seen(rows=blind)
    assert of.table([seen])["AUROC, left out or not", IMAGE].mean == pytest.approx(50, abs=1)
    assert failing(of, seen) == set()
    for changed, broken in (
        ({"square": {"clean": 55.0}}, "more than half"),
        ({"fgsm": {"cw_linf": 60.0, "pgd": 30.0}}, "FGSM is taken"),
    ):
        assert is_only(failing(of, seen | {f"{RESIDUAL}, left out": left_out(**changed)}), broken)
    assert of.figure is not None
    assert len(of.figure(seen, of.table([seen])).axes) == 2 + 1  # and the bar of colours


def test_open_attack_needs_no_attacker_who_knows_the_defence() -> None:
    of = one("open_attack")
    assert of.evaluations[f"{RESIDUAL}, left out"].overrides[0] == "mix=redrl_open"
    assert of.runs == one("gain_text").runs


def test_open_eps_compares_at_the_eps_that_was_left_out() -> None:
    of = one("open_eps")
    assert "mix.components.pgd.settings=[{eps:4/255},{eps:16/255}]" in of.runs["8/255 left out"]
    assert len(of.evaluations["8/255 left out"].overrides) == 4

    def run(at_8: float, elsewhere: float = 0.9) -> Seen:
        return Seen(
            rows=rows(
                lambda _, setting, __: {"identified": at_8 if setting == EPS[1] else elsewhere}, settings=with_eps
            )
        )

    seen = {"all eps": run(0.8), "8/255 left out": run(0.75)}
    table = of.table([seen])
    assert table.rows == tuple(f"{c}, {eps}" for c in ("PGD", "CW-Linf") for eps in EPS)
    assert table["CW-Linf, eps=8/255", "8/255 left out"].mean == pytest.approx(75)
    assert failing(of, seen) == set()
    assert len(failing(of, seen | {"8/255 left out": run(0.65)})) == 1
    assert failing(of, seen | {"8/255 left out": run(0.75, 0.2)}) == set()


def test_open_victim_judges_the_networks_that_were_left_out() -> None:
    of = one("open_victim")
    assert "mix.components.patch.victims=[${choices.victim.0}]" in of.runs["the first alone"]
    assert not any("clean" in word for word in of.runs["the first alone"])

    def run(first: float, second: float) -> Seen:
        made = answered({name: {name: 90.0} for name in CLASSES}, victims=("z", "a")).rows
        share = torch.where(made["victim"] == 0, first, second)
        return Seen(rows=made.with_columns(identified=share))

    seen = {"all victims": run(0.9, 0.9), "the first alone": run(0.2, 0.85)}
    table = of.table([seen])
    assert table["Total, trained on", "the first alone"].mean == pytest.approx(20)
    assert table["Total, a", "the first alone"].mean == pytest.approx(85)
    assert failing(of, seen) == set()
    assert len(failing(of, seen | {"the first alone": run(0.9, 0.75)})) == 1
    with pytest.raises(ValueError, match="open_victim needs a second victim, and there is a alone"):
        of.table([dict.fromkeys(of.runs, recognising())])


def test_background_asks_whether_the_image_alone_gives_attacks_away() -> None:
    of = one("background")
    assert of.runs[f"{IMAGE}, weak"][0] == "method=redrl_image"
    assert "mix.components.pgd.settings=[{eps:1/255},{eps:2/255},{eps:4/255}]" in of.runs[f"{IMAGE}, weak"]
    seen = {
        IMAGE: recognising(clean=60.0, pgd=80.0, cw_linf=80.0),
        DELTA: recognising(clean=100.0),
        RESIDUAL: recognising(clean=99.0),
        f"{IMAGE}, weak": recognising(**dict.fromkeys(CLASSES, 40.0)),
        f"{DELTA}, weak": recognising(clean=99.0),
        f"{RESIDUAL}, weak": recognising(**dict.fromkeys(CLASSES, 85.0)),
    }
    assert failing(of, seen) == set()
    assert is_only(failing(of, seen | {IMAGE: recognising(clean=97.0)}), f"{IMAGE} does not tell")
    strong = {f"{IMAGE}, weak": recognising(**{name: 80.0 if name in GLOBAL else 40.0 for name in CLASSES})}
    assert is_only(failing(of, seen | strong), "weaker attacks cost")
    near = {f"{RESIDUAL}, weak": recognising(**dict.fromkeys(CLASSES, 50.0))}
    assert is_only(failing(of, seen | near), "total of weak attacks")


def test_studies_of_one_kind_share_their_runs() -> None:
    """So that they are trained once, whatever study asks."""
    shared = {
        name: one(name).runs for name in ("table1", "table2_attacks", "table2_eps", "fig2", "fig5", "fig7", "fig15")
    }
    assert all(runs == shared["table1"] for runs in shared.values())
    assert one("fig5").evaluations == one("fig6").evaluations == one("fig15").evaluations
    assert one("table3_cifar").runs[IMAGE] == shared["table1"]["victims"]
