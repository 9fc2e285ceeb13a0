"""The studies of ADD-Defense on made-up rows and on the paper's own numbers."""

from collections.abc import Mapping

import pytest
import torch
from made_up_redrl import is_only
from torch import Tensor

from redlab.metrics import Samples
from redlab.runs.config import conf_dir
from redlab.studies import Claim, Scale, Seen, Study, find, paper_table
from redlab.studies.add_defense.representation import agreement, detected, discrepancy, embedded, separable
from redlab.studies.add_defense.restoring import (
    ADD,
    APE,
    APE_D,
    AWARE,
    CLEAN,
    EIGHT,
    NAMES,
    NO_DEFENCE,
    accuracy,
    by_attack,
    without_class,
)

KEYS = {text: name for name, text in NAMES.items()} | {CLEAN: "clean"}
COUNT = 10000
AWARE_ATTACK = "aware_pgd"


def one(name: str) -> Study:
    (found,) = find(f"add_defense/{name}")
    return found


def share(value: float) -> Tensor:
    """COUNT answers, that share of them right."""
    return (torch.arange(COUNT) < round(value * COUNT)).double()


def rows(
    measured: Mapping[str, Mapping[str, float]],
    *,
    aware: float = 0.1,
    settings: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Samples:
    """Rows of attacks with shares of right answers, and one attacker who knows the defence; no image is of class 3."""
    cells = [(attack, "", found) for attack, found in measured.items()]
    cells += [(attack, name, found) for attack, of in (settings or {}).items() for name, found in of.items()]
    attacks = [*dict.fromkeys(attack for attack, *_ in cells), AWARE_ATTACK]
    names = list(dict.fromkeys(["", *(name for _, name, _ in cells)]))
    columns = list(dict.fromkeys(column for *_, found in cells for column in found))
    parts = []
    for attack, setting, found in [*cells, (AWARE_ATTACK, "", {"right": aware})]:
        values = {c: share(found[c]) if c[:5] == "right" else torch.full((COUNT,), found[c]) for c in found}
        part = {c: values.get(c, torch.full((COUNT,), torch.nan)).double() for c in (*columns, "right")}
        part |= {
            "attack": torch.full((COUNT,), attacks.index(attack)),
            "setting": torch.full((COUNT,), names.index(setting)),
            "knowledge": torch.full((COUNT,), int(attack == AWARE_ATTACK or "knows" in found)),
            "label": torch.zeros(COUNT),
            "image": torch.arange(COUNT),
        }
        parts.append(part)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Samples(
        joined,
        {"attack": tuple(attacks), "setting": tuple(names), "knowledge": ("victim", "defence")},
    )


def verdicts(of: Study, *seeds: Mapping[str, Seen]) -> dict[str, str]:
    judged = of.judge(of.table(seeds))
    return {text: claim.verdict if isinstance(claim, Claim) else claim for text, claim in judged.items()}


def failing(of: Study, seen: Mapping[str, Seen]) -> set[str]:
    return {text for text, verdict in verdicts(of, seen).items() if verdict != "holds"}


# ---- accuracy -------------------------------------------------------------------------------------------------------


def test_accuracy_leaves_out_right_images_of_the_target_class_where_there_is_one() -> None:
    """Acc_t = (num - num_r) / (NUM - num_r), by hand: 10 images, 3 of class 3 of which 2 are right, 4 others right."""
    label = torch.tensor([3, 3, 3, 0, 1, 2, 4, 5, 6, 7])
    right = torch.tensor([1.0, 1, 0, 1, 1, 1, 1, 0, 0, 0])
    found = Samples({"label": label, "right_restored": right}, {})
    assert accuracy(found, "pgd_t", "right_restored") == pytest.approx((6 - 2) / (10 - 2))
    assert accuracy(found, "pgd_u", "right_restored") == pytest.approx(0.6)
    assert without_class(found, "right_restored") == pytest.approx(4 / 7)


def test_only_attackers_who_know_the_target_alone_count() -> None:
    found = rows({"clean": {"right_restored": 0.9}, "pgd_u": {"right_restored": 0.7}}, aware=0.2)
    assert by_attack(found, "right_restored") == pytest.approx({"PGD_u": 0.7, CLEAN: 0.9})


# ---- tables with printed numbers ------------------------------------------------------------------------------------

MODELS = {"table2": {"Ori": NO_DEFENCE}}


def of_table(table: str, changed: Mapping[tuple[str, str], float] | None = None) -> dict[str, Seen]:
    """Evaluations with the paper's numbers, some of them changed by (model, column)."""
    study = one(table)
    printed = {address: number.mean for address, number in study.printed.cells.items()} | dict(changed or {})
    found = {}
    for name in study.evaluations:
        measured: dict[str, dict[str, float]] = {}
        for column in dict.fromkeys(column for _, column in printed):
            measured[KEYS[column]] = {
                "right_attacked": printed[NO_DEFENCE, column],
                "right_restored": printed[name, column],
                "right_clean": printed[NO_DEFENCE, CLEAN],
            }
        found[name] = Seen(rows=rows(measured))
    return found


@pytest.mark.parametrize("table", ["table1_fmnist", "table1_cifar", "table1_svhn", "table2"])
def test_a_table_gives_the_papers_numbers_on_rows_that_have_them(table: str) -> None:
    study = one(table)
    seen = of_table(table)
    ours = study.table([seen])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=1e-4), address
    assert ours[ADD, AWARE].mean == pytest.approx(0.1)
    assert failing(study, seen) == set()
    assert study.figure is not None
    assert [axes.get_title(loc="left") for axes in study.figure(seen, ours).axes] == ["ours", "the paper"]
    judged = study.judge(study.printed)
    assert {text for text, c in judged.items() if not isinstance(c, Claim) or c.verdict != "holds"} == set()


@pytest.mark.parametrize(
    ("table", "changed", "broken"),
    [
        ("table1_fmnist", {(ADD, "C&W_u"): 0.75}, "ADD-Defense: within 0.05"),
        ("table1_fmnist", {(APE, "LS_u"): 0.95}, "APE-GAN: within 0.05"),
        ("table1_cifar", {(ADD, "PGD_u"): 0.5}, "ADD-Defense > APE-GAN"),
        ("table1_cifar", {(ADD, "LS_u"): 0.76}, "the others within"),
        ("table1_cifar", {(APE, CLEAN): 0.9}, "restored clean images far below"),
        ("table1_svhn", {(APE, "PGD_u"): 0.75}, "ADD-Defense above APE-GAN by 0.1"),
        ("table1_svhn", {(NO_DEFENCE, "LS_u"): 0.6}, "both far better"),
        ("table2", {(APE, "ST_u"): 0.9}, "APE-GAN < ADD-Defense <"),
        ("table2", {("ADD-Defense-S", CLEAN): 0.95}, "ADD-Defense-S costs a little"),
    ],
)
def test_a_changed_number_breaks_its_claim_alone(table: str, changed: dict, broken: str) -> None:
    assert is_only(failing(one(table), of_table(table, changed)), broken)


def test_most_and_widest() -> None:
    worse = {(APE, c): 0.9 for c in EIGHT[2:]}
    found = failing(one("table1_fmnist"), of_table("table1_fmnist", worse))
    assert "ADD-Defense >= APE-GAN under most of the eight attacks" in found
    found = failing(one("table1_fmnist"), of_table("table1_fmnist", {(APE, "LS_u"): 0.3}))
    assert "the gap is widest under PGD_u" in found


def test_table7_is_of_the_untargeted_attack_that_was_the_target() -> None:
    study, printed = one("table7"), paper_table("add_defense", "table7")
    seen = {}
    for name in study.evaluations:
        method, attack = name.split(", ")
        values, short = printed.row(attack=attack), "APE" if method == APE else "ADD"
        key = {"C&W": "cw", "DDN": "ddn"}[attack]
        of = {"clean": "rec", f"{key}_u": "def"}
        measured = {a: {"right_restored": values[f"{short}-{c}"], "d": 2.0} for a, c in of.items()}
        seen[name] = Seen(rows=rows({**measured, f"{key}_t": {"right_restored": 0.0, "d": 9.0}}))
    ours = study.table([seen])
    for address, number in study.printed.cells.items():
        assert ours[address].mean == pytest.approx(number.mean, abs=1e-4), address
    assert ours["C&W, distance to the original", "ADD-def"].mean == 2
    assert ours["C&W", f"ADD, {AWARE}"].mean == pytest.approx(0.1)
    assert all("aware_pgd:" in e.overrides[0] and "eps:0.15" in e.overrides[0] for e in study.evaluations.values())
    assert study.figure is not None
    lines = study.figure(seen, ours).axes[0].lines
    assert f"APE, {AWARE}" in [line.get_label() for line in lines]
    assert failing(study, seen) == set()
    assert study.runs["ADD-Defense, DDN"][-1] == "method.target=ddn_u"


def test_table5_tells_the_two_protocols_apart() -> None:
    study = one("table5")

    def seen(only: float, whole: float) -> Seen:
        of = {"right_restored": only, "right_attacked": 0.0, "right": whole}
        return Seen(rows=rows({"target_only": of, "end_to_end": of}))

    both = {"Our (eps=0.3)": seen(0.97, 0.02), "Our (eps=0.1)": seen(0.90, 0.01)}
    ours = study.table([both])
    assert ours["MNIST-Linf, Our (eps=0.3)", "accuracy"].mean == pytest.approx(0.97)
    assert ours["MNIST-Linf, Our (eps=0.3)", "end to end"].mean == pytest.approx(0.02)
    assert verdicts(study, both)["trained with eps 0.3 at least as good as with 0.15"] == "holds"
    swapped = {"Our (eps=0.3)": both["Our (eps=0.1)"], "Our (eps=0.1)": both["Our (eps=0.3)"]}
    assert len(failing(study, swapped)) == 1
    assert study.printed["MNIST-Linf, CROWN", "accuracy"].mean == 0.9396


# ---- figures --------------------------------------------------------------------------------------------------------


def restored(name_to_value: Mapping[str, float], clean: float = 0.98) -> Seen:
    attacks = {KEYS[c]: {"right_restored": v, "right_attacked": 0.0, "right": v} for c, v in name_to_value.items()}
    ours = {"right_restored": clean, "right_attacked": 0.99, "right": clean}
    return Seen(rows=rows({"clean": ours, **attacks}))


def test_fig3_looks_for_the_most_stable_defence() -> None:
    study = one("fig3a")
    even = dict.fromkeys(EIGHT, 0.96)
    seen = {ADD: restored(even), APE: restored({**even, "PGD_u": 0.5}), APE_D: restored({**even, "LS_u": 0.6})}
    assert failing(study, seen) == set()
    assert is_only(failing(study, seen | {APE_D: restored(dict.fromkeys(EIGHT, 0.955))}), "ADD-Defense is the most")
    assert study.figure is not None
    assert study.figure(seen, study.table([seen])).axes
    assert one("fig3a").runs[APE] != one("fig3b").runs[APE]


def test_fig1a_is_of_the_answer_that_the_user_gets() -> None:
    study = one("fig1a")
    columns = ("PGD_u", "C&W_u", "BA_u", "LS_u", "DDN_u")
    even = dict.fromkeys(columns, 0.95)
    seen = {ADD: restored(even), "Def-adv": restored({**even, "BA_u": 0.6})}
    assert failing(study, seen) == set()
    assert study.table([seen])["Def-adv", AWARE].mean == pytest.approx(0.1)
    assert len(failing(study, {ADD: seen["Def-adv"], "Def-adv": seen[ADD]})) == 2


def test_fig12_compares_what_each_removal_costs() -> None:
    study = one("fig12")
    even = dict.fromkeys(EIGHT, 0.9)
    seen = {
        ADD: restored(even),
        "No prior": restored({**dict.fromkeys(EIGHT, 0.8), "PGD_u": 0.89, "PGD_t": 0.89}),
        "No D_P": restored(dict.fromkeys(EIGHT, 0.85)),
    }
    assert failing(study, seen) == set()
    assert is_only(failing(study, seen | {"No D_P": restored(even)}), "each removal")
    known = restored({**even, "PGD_u": 0.5})
    assert is_only(failing(study, seen | {"No prior": known}), "the prior matters more")


def test_fig18_wants_no_inversion() -> None:
    study = one("fig18")
    even = dict.fromkeys(EIGHT, 0.95)
    seen = {"known PGD": restored(even), "known DDN": restored(even)}
    assert failing(study, seen) == set()
    assert is_only(failing(study, seen | {"known DDN": restored({**even, "DDN_t": 0.9})}), "targeted at least")
    assert is_only(failing(study, seen | {"known PGD": restored({**even, "LS_u": 0.9})}), "black boxes")


def test_fig15_reads_sizes_off_the_settings() -> None:
    study = one("fig15")

    def sweep(sfw: float, pgd: float = 0.9) -> Seen:
        def of(value: float) -> dict[str, float]:
            return {"right_restored": value, "right_attacked": 0.0}

        sizes = ("0.05", "0.1", "0.15", "0.2", "0.3")
        settings = {
            "pgd_u": {f"eps={s} step_size=0.01": of(pgd if s == "0.2" else 0.95) for s in sizes},
            "pgd_t": {f"eps={s} step_size=0.01": of(0.95) for s in sizes},
            "local_search_u": {f"pixels={p}": of(0.95) for p in (30, 100, 300)},
            "sfw_u": {f"eps={s}": of(0.95 - sfw * i) for i, s in enumerate(sizes)},
        }
        return Seen(rows=rows({}, settings=settings))

    seen = {ADD: sweep(0.1)}
    table = study.table([seen])
    assert table["SFW_u, 0.15", ADD].mean == pytest.approx(0.75, abs=1e-4)
    assert table["LS_u, 100", ADD].mean == pytest.approx(0.95)
    assert failing(study, seen) == set()
    assert is_only(failing(study, {ADD: sweep(0.1, pgd=0.84)}), "flat under PGD")
    assert is_only(failing(study, {ADD: sweep(0.0)}), "SFW falls faster")
    assert study.figure is not None
    assert len(study.figure(seen, table).axes) == 4


def test_fig5a_sets_the_exact_gradient_beside_bpda() -> None:
    study = one("fig5a")

    def attacked(bpda: float, exact: float) -> Seen:
        def of(value: float) -> dict[str, Mapping[str, float]]:
            last = {"right_restored": value, "right_attacked": 0.3, "knows": 1.0}
            return {f"steps={n}": last for n in (1, 20)}

        return Seen(rows=rows({}, settings={"bpda": of(bpda), "exact": of(exact)}))

    seen = {ADD: attacked(0.9, 0.85), APE: attacked(0.8, 0.0)}
    assert failing(study, seen) == set()
    assert is_only(failing(study, seen | {ADD: attacked(0.9, 0.1)}), "the defence holds under the exact")
    assert study.figure is not None
    panels = study.figure(seen, study.table([seen])).axes
    assert [axes.get_title(loc="left") for axes in panels[:2]] == ["BPDA", "exact gradient"]


def test_fig4a_adds_up_the_five_masks() -> None:
    study = one("fig4a")
    high, low = 0.9, 0.5

    def of(value: float) -> Seen:
        return Seen(rows=rows({"clean": {"right": 0.99}, **{f"mask{i}": {"right": value} for i in range(1, 6)}}))

    seen = {name: of(high if name in (ADD, "ADD-re") else low) for name in study.runs}
    assert failing(study, seen) == set()
    assert is_only(failing(study, seen | {"ADD-re": of(0.8)}), "sum over masks")
    assert is_only(failing(study, seen | {"RS 2": of(0.95)}), "ADD-Defense above")
    assert "init=@ADD-Defense" in study.runs["ADD-re"]


# ---- representation -------------------------------------------------------------------------------------------------


def test_agreement_of_classes() -> None:
    near = torch.tensor([[0.0, 0], [0.1, 0], [0, 0.1], [5, 5], [5.1, 5], [5, 5.1]])
    assert agreement(near, torch.tensor([0, 0, 0, 1, 1, 1])) == 0  # of the five others three are of the other class
    many = torch.cat([torch.randn(20, 2), 50 + torch.randn(20, 2)])
    label = torch.arange(2).repeat_interleave(20)
    assert agreement(many, label) == 1
    assert agreement(many, label[torch.randperm(40, generator=torch.Generator().manual_seed(0))]) < 0.9
    assert embedded(torch.rand(12, 1, 4, 4)).aminmax() == (0, 1)


def lid_rows(shift: float, repaired: float, count: int = 200) -> Samples:
    source = torch.Generator().manual_seed(0)

    def around(mean: float) -> Tensor:
        return mean + torch.randn(count, generator=source).double()

    columns = {"right_clean": torch.ones(count)}
    for layer in range(3):
        columns |= {f"clean_{layer}": around(0), f"noisy_{layer}": around(0)}
        columns |= {f"adv_{layer}": around(shift), f"restored_{layer}": around(repaired)}
    return Samples({**columns, "attack": torch.zeros(count)}, {"attack": ("cw_u",)})


def test_the_detector_by_lid() -> None:
    found = detected(lid_rows(3.0, 0.0))
    assert found["adv", "ROC-AUC"] > 0.95
    assert found["def", "ROC-AUC"] == pytest.approx(0.5, abs=0.2)
    assert found["adv", "Recall"] > 0.8 > 0.3 > found["def", "Recall"]
    useless = detected(lid_rows(0.0, 0.0))
    assert useless["adv", "ROC-AUC"] == pytest.approx(0.5, abs=0.2)


def test_the_detector_is_tested_on_images_that_the_target_gets_right() -> None:
    found = lid_rows(3.0, 0.0)
    wrong = found.with_columns(right_clean=torch.zeros(len(found)), **{f"adv_{i}": torch.zeros(200) for i in range(3)})
    assert detected(Samples.cat([found, wrong])) == detected(found)


def latents(apart: float, unknown: float = 0.0) -> Samples:
    source, names = torch.Generator().manual_seed(0), ("clean", *NAMES, AWARE_ATTACK)
    parts = []
    for place, name in enumerate(names):
        z = torch.randn(100, 4, generator=source).double()
        z[:, 0] += apart * place if name in ("pgd_u", "pgd_t") else unknown if name != "clean" else 0
        part = {f"z{i}": z[:, i] for i in range(4)} | {"attack": torch.full((100,), place)}
        parts.append(part | {"image": torch.arange(100), "knowledge": torch.full((100,), int(name == AWARE_ATTACK))})
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return Samples(joined, {"attack": names, "knowledge": ("victim", "defence")})


def test_what_a_fresh_probe_finds_in_z() -> None:
    known = ["clean", "pgd_u", "pgd_t"]
    assert separable(latents(5.0), known) > 0.95
    assert separable(latents(0.0), known) == pytest.approx(1 / 3, abs=0.1)
    assert discrepancy(latents(5.0), "pgd_u") > 3 * discrepancy(latents(0.0), "pgd_u")
    study = one("latent")
    seen = {ADD: Seen(rows=latents(0.2)), "No D_P": Seen(rows=latents(5.0))}
    assert failing(study, seen) == set()
    assert is_only(failing(study, seen | {ADD: Seen(rows=latents(0.2, unknown=4.0))}), "unknown attacks")
    assert is_only(failing(study, {ADD: seen["No D_P"], "No D_P": seen[ADD]}), "with the game")


def pictured(of: Mapping[str, Mapping[str, Tensor]], label: Tensor, **columns: float) -> Seen:
    """Pictures of attacks, and rows with the same numbers for each."""
    attacks = tuple(of)
    count = len(label)
    place = torch.arange(len(attacks)).repeat_interleave(count)
    base = {"attack": place, "label": label.repeat(len(attacks)), "image": torch.arange(count).repeat(len(attacks))}
    base |= {"knowledge": torch.zeros(len(place)), "setting": torch.zeros(len(place))}
    base |= {name: torch.full((len(place),), value).double() for name, value in columns.items()}
    found = Samples(base, {"attack": attacks, "knowledge": ("victim", "defence"), "setting": ("",)})
    pictures = {name: torch.cat([each[name] for each in of.values()]) for name in next(iter(of.values()))}
    return Seen(rows=found, pictures=pictures, of=found)


def test_fig6_sees_classes_come_apart() -> None:
    study, label = one("fig6"), torch.arange(2).repeat(20)
    noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    apart = 0.1 * noise + 0.9 * label.view(-1, 1, 1, 1)
    of = {"clean": {"adv": apart, "restored": apart}}
    of |= {name: {"adv": noise, "restored": apart} for name in ("pgd_u", "pgd_t")}
    seen = {ADD: pictured(of, label)}
    assert failing(study, seen) == set()
    assert study.figure is not None
    assert len(study.figure(seen, study.table([seen])).axes) == 4
    swapped = {name: {"adv": each["restored"], "restored": each["adv"]} for name, each in of.items()}
    assert len(failing(study, {ADD: pictured(swapped | {"clean": of["clean"]}, label)})) == 1


def test_fig7c_compares_maps_of_an_image_with_those_of_another() -> None:
    study, label = one("fig7c"), torch.zeros(4)
    maps = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    of = {name: {"map": (maps + 0.01 * i).clamp(0, 1), "adv": maps} for i, name in enumerate(("clean", *NAMES))}
    seen = {ADD: pictured(of, label)}
    assert failing(study, seen) == set()
    mixed = {**of, "pgd_u": {"map": maps.roll(1, 0), "adv": maps}}
    assert len(failing(study, {ADD: pictured(mixed, label)})) == 1
    assert study.figure is not None
    assert study.figure(seen, study.table([seen])).axes


def test_images_show_the_same_images_of_every_attack() -> None:
    study, label = one("images"), torch.arange(5)
    pictures = torch.rand(5, 1, 8, 8)
    of = {name: {"adv": pictures, "restored": pictures} for name in ("clean", "pgd_u")}
    seen = {
        ADD: pictured(of, label, psnr=25.0, right_restored=0.9),
        APE: pictured(of, label, psnr=20.0, right_restored=0.8),
    }
    assert failing(study, seen) == set()
    assert study.table([seen])["APE-GAN, PSNR", "PGD_u"].mean == 20
    assert study.figure is not None
    assert len(study.figure(seen, study.table([seen])).axes) == 2 * 12  # attacks, and four images in three ways
    assert len(failing(study, {ADD: seen[APE], APE: seen[ADD]})) == 1


def test_targets_are_compared_with_the_papers() -> None:
    study = one("targets")

    def of(value: float) -> Seen:
        return Seen(rows=rows({"clean": {"right_clean": value}}))

    assert failing(study, {"MNIST": of(0.99), "Fashion-MNIST": of(0.92)}) == set()
    assert is_only(failing(study, {"MNIST": of(0.97), "Fashion-MNIST": of(0.92)}), "MNIST: within 0.01")
    assert is_only(failing(study, {"MNIST": of(0.99), "Fashion-MNIST": of(0.88)}), "Fashion-MNIST: within 0.02")


# ---- lists of words -------------------------------------------------------------------------------------------------


def test_a_name_stands_for_the_words_of_the_scale() -> None:
    scale = Scale.of({"all": ["a=1", "b=2"], "mnist": ["data=mnist", "b=3"]})
    assert scale.words(["@mnist", "c=4"]) == ["data=mnist", "b=3", "c=4"]
    with pytest.raises(ValueError, match="the scale has no list 'svhn'; it has mnist"):
        scale.words(["@svhn"])
    assert Scale.of(["a=1"]) == Scale(["a=1"])


def test_every_scale_has_the_same_lists() -> None:
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / "add_defense.yaml").scales)
    assert len({frozenset(node) for node in found.values()}) == 1
    asked = {
        word[1:]
        for study in find("add_defense/*")
        for words in (*study.runs.values(), *(e.overrides for e in study.evaluations.values()))
        for word in words
        if word.startswith("@")
    }
    assert asked == set(found["small"]) - {"all"}
