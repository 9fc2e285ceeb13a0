"""What is printed of rows, against closed forms and plain Python."""

import itertools
import math
import time

import pytest
import torch

from redlab.metrics import (
    Samples,
    auroc,
    calibration_error,
    cell_mean,
    confusion,
    numbers,
    roc,
    tpr_at_fpr,
    worst,
)

ATTACKS, VICTIMS, KNOWLEDGE = ("clean", "fgsm", "pgd"), ("a", "b"), ("victim", "defence")
ANSWERS = ("clean", "pgd", "cw")
OLD = {
    "right_attacked": "attacked_accuracy",
    "right_restored": "restored_accuracy",
    "pa_benign": "pa_benign",
    "pa_adv": "pa_adv",
    "d": "d",
    "logit_d_benign": "logit_d_benign",
    "logit_d_adv": "logit_d_adv",
    "cosine": "cosine",
    "psnr": "psnr",
    "d_attack": "d_attack",
}


def scored(clean, attacked):
    values = torch.tensor([*clean, *attacked], dtype=torch.float64)
    return Samples({"score_s": values, "attacked": torch.arange(len(values)) >= len(clean)})


def random_scores(seed, levels):
    """Few levels, so that there are ties within and between the kinds."""
    g = torch.Generator().manual_seed(seed)
    clean, attacked = (torch.randint(0, levels, (n,), generator=g) * 7.5 - 20 + m for n, m in ((37, 0), (53, 7.5)))
    return clean.tolist(), attacked.tolist()


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_the_count_of_mann_and_whitney(levels):
    clean, attacked = random_scores(levels, levels)
    wins = sum((a > c) + 0.5 * (a == c) for c, a in itertools.product(clean, attacked))
    assert auroc(scored(clean, attacked), "s") == pytest.approx(wins / (len(clean) * len(attacked)), abs=1e-6)


@pytest.mark.parametrize("fpr", [0.0, 0.01, 1 / 37, 0.3, 1.0])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_tpr_at_fpr_tries_every_threshold(levels, fpr):
    clean, attacked = random_scores(levels, levels)
    shares = [
        sum(a > t for a in attacked) / len(attacked)
        for t in [-math.inf, *clean, *attacked]
        if sum(c > t for c in clean) <= fpr * len(clean) + 1e-9
    ]
    assert tpr_at_fpr(scored(clean, attacked), "s", fpr) == pytest.approx(max(shares), abs=1e-6)


def test_one_false_alarm_in_a_hundred_is_one_per_cent():
    rows = scored(range(100), [98.5] * 3 + [200])
    assert tpr_at_fpr(rows, "s") == 1
    assert tpr_at_fpr(scored(range(99), [97.5] * 3 + [200]), "s") == 0.25


def test_the_curve_runs_from_corner_to_corner_and_knows_ties():
    false, true = roc(scored([0.0, 1.0, 1.0], [1.0, 2.0]), "s")
    assert list(zip(false.tolist(), true.tolist(), strict=True)) == [
        (0, 0), (0, 0.5), (pytest.approx(2 / 3), 1), (1, 1),
    ]  # fmt: skip


def test_huge_scores_are_not_squashed():
    """The sigmoid of both is 1."""
    assert auroc(scored([500.0], [501.0]), "s") == 1
    assert auroc(scored([-math.inf], [math.inf]), "s") == 1


def test_detection_needs_images_of_both_kinds():
    for rows in (scored([1.0], []), scored([], [1.0]), scored([1.0], [math.nan])):
        assert math.isnan(auroc(rows, "s"))
        assert math.isnan(tpr_at_fpr(rows, "s"))
        with pytest.raises(ValueError, match="attacked rows and others"):
            roc(rows, "s")
    with pytest.raises(ValueError, match="no column 'score_t'"):
        auroc(scored([1.0], [2.0]), "t")
    assert auroc(scored([1.0, math.nan], [2.0, math.nan]), "s") == 1  # rows without the score do not count


def identified(truth, said, probabilities=None):
    names = {"attack": ATTACKS, "said": ANSWERS}
    known = [ATTACKS[t] in ANSWERS for t in truth]
    right = [float(ATTACKS[t] == ANSWERS[s]) if k else math.nan for t, s, k in zip(truth, said, known, strict=True)]
    columns = {"attack": truth, "said": said, "identified": right}
    if probabilities is not None:
        columns |= {f"p_{name}": probabilities[:, i] for i, name in enumerate(ANSWERS)}
    return Samples(columns, names)


def test_confusion_counts_by_name_and_has_rows_of_unseen_attacks():
    g = torch.Generator().manual_seed(0)
    truth, said = (torch.randint(0, 3, (80,), generator=g).tolist() for _ in range(2))
    counts, rows, columns = confusion(identified(truth, said))
    assert (rows, columns) == (ATTACKS, ANSWERS)  # fgsm has a row and no column, cw a column and no row
    for i, j in itertools.product(range(3), range(3)):
        assert counts[i, j] == sum(t == i and s == j for t, s in zip(truth, said, strict=True))
    counts, rows, _ = confusion(identified([2, 2, 1], [1, 0, 0]))
    assert (rows, counts.tolist()) == (("fgsm", "pgd"), [[1, 0, 0], [1, 1, 0]])
    with pytest.raises(ValueError, match="no column 'said'"):
        confusion(Samples({"attack": [0]}, {"attack": ATTACKS}))


def test_calibration_error_bins_what_was_said():
    g = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(200, 3, generator=g, dtype=torch.float64)).softmax(1)
    truth = torch.randint(0, 3, (200,), generator=g).tolist()
    confidence, said = probabilities.max(1)
    rows = identified(truth, said.tolist(), probabilities)
    bins = {}
    for t, s, c in zip(truth, said.tolist(), confidence.tolist(), strict=True):
        if ATTACKS[t] in ANSWERS:
            bins.setdefault(math.ceil(c * 15), []).append((c, ATTACKS[t] == ANSWERS[s]))
    known = sum(map(len, bins.values()))
    wanted = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins.values()) / known
    assert wanted > 0.05
    assert calibration_error(rows) == pytest.approx(wanted, abs=1e-5)
    assert math.isnan(calibration_error(rows.where(attack="fgsm")))
    with pytest.raises(ValueError, match="not those of an identifier"):
        calibration_error(Samples({"attack": [0], "identified": [1]}, {"attack": ATTACKS}))


def test_cells_count_once_each():
    """Three right images in one cell, one wrong one in another: 3/4 of the images, 1/2 of the cells."""
    names = {"attack": ATTACKS, "victim": VICTIMS, "setting": ("", "x")}
    rows = Samples({"attack": [1, 1, 1, 2], "victim": [0] * 4, "setting": [0] * 4, "pa": [1, 1, 1, 0]}, names)
    assert (rows.mean("pa"), cell_mean(rows, "pa")) == (0.75, 0.5)
    by_setting = rows.with_columns(setting=[0, 0, 1, 0])
    assert cell_mean(by_setting, "pa") == pytest.approx(2 / 3)
    assert cell_mean(rows.with_columns(pa=[1, 1, 1, math.nan]), "pa") == 1
    assert math.isnan(cell_mean(rows.where(attack="clean"), "pa"))


def attackers(right):
    """Image -> {(attack, knowledge): right}."""
    flat = [(i, a, k, r) for i, answers in right.items() for (a, k), r in answers.items()]
    image, attack, knowledge, values = zip(*flat, strict=True)
    names = {"attack": ATTACKS, "knowledge": KNOWLEDGE, "judge": VICTIMS, "victim": VICTIMS}
    columns = {"image": image, "knowledge": [KNOWLEDGE.index(k) for k in knowledge], "right": values}
    columns |= {"attack": [ATTACKS.index(a) for a in attack], "judge": [0] * len(flat), "victim": [0] * len(flat)}
    return Samples(columns, names)


def test_worst_is_right_under_every_attacker():
    rows = attackers(
        {
            7: {("clean", "victim"): 1, ("fgsm", "victim"): 1, ("pgd", "victim"): 1, ("pgd", "defence"): 1},
            3: {("clean", "victim"): 1, ("fgsm", "victim"): 0, ("pgd", "victim"): 1, ("pgd", "defence"): 1},
            5: {("clean", "victim"): 1, ("fgsm", "victim"): 1, ("pgd", "victim"): 1, ("pgd", "defence"): 0},
            9: {("clean", "victim"): 1, ("pgd", "victim"): 1},  # the others left it out
            2: {("clean", "victim"): 0, ("pgd", "victim"): math.nan},
        }
    )
    least = worst(rows)
    assert dict(zip(least["image"].tolist(), least["right"].tolist(), strict=True)) == {7: 1, 3: 0, 5: 0, 9: 1, 2: 0}
    assert worst(rows.where(knowledge="victim")).mean("right") == 3 / 5
    assert worst(rows.where(attack="pgd", knowledge="victim")).mean("right") == 1
    assert numbers(rows.with_columns(attacked=rows["attack"] > 0))["worst_accuracy"] == 2 / 5
    assert len(worst(rows.where(image=[]))) == 0


def test_each_judge_has_a_worst_case_of_its_own():
    names = {"judge": VICTIMS}
    rows = Samples({"image": [0, 0, 1, 1], "judge": [0, 1, 0, 1], "right": [1, 0, 1, 1]}, names)
    least = worst(rows)
    assert least.mean("right") == 0.75
    assert {judge: group.mean("right") for (judge,), group in least.groups("judge")} == {"a": 1, "b": 0.5}


def restoration_rows(n=150, seed=0, knowledge=True):
    """Rows of a restorer; victim b never meets pgd, and only fgsm comes from somebody who knows the defence."""
    g = torch.Generator().manual_seed(seed)
    attack = torch.randint(0, 3, (n,), generator=g)
    columns = {
        "image": torch.arange(n),
        "attack": attack,
        "attacked": attack > 0,
        "victim": torch.where(attack == 2, 0, torch.randint(0, 2, (n,), generator=g)),
        "setting": torch.zeros(n),
        "knowledge": torch.where(attack == 1, torch.randint(0, 2, (n,), generator=g), 0) * knowledge,
    }
    columns["judge"] = columns["victim"]
    columns["right_clean"] = torch.randint(0, 2, (n,), generator=g)
    for name in OLD:
        whole = name.startswith(("right", "pa"))
        columns[name] = torch.randint(0, 2, (n,), generator=g) if whole else torch.rand(n, generator=g)
    columns["right"] = columns["right_restored"]
    names = {"attack": ATTACKS, "victim": VICTIMS, "judge": VICTIMS, "knowledge": KNOWLEDGE, "setting": ("",)}
    return Samples(columns, names)


def transcription(rows):
    """The numbers of a restorer in plain Python: sums over cells of (attack, victim), pooled as the papers do."""
    out = {}
    for head, knowledge in (("", 0), ("adaptive_", 1)):
        cells = {}
        for i in range(len(rows)):
            if rows["knowledge"][i] == knowledge:
                cells.setdefault((int(rows["attack"][i]), int(rows["victim"][i])), []).append(i)

        def report(tail, chosen, head=head, cells=cells):
            if not chosen:
                return
            images = [i for cell in chosen for i in cells[cell]]
            out[f"{head}count{tail}"] = len(images)
            for column, name in {**OLD, "right_clean": "clean_accuracy", "right": "defended_accuracy"}.items():
                values = rows[column].tolist()
                out[head + name + tail] = sum(values[i] for i in images) / len(images)
                if column in ("pa_benign", "pa_adv"):
                    means = [sum(values[i] for i in cells[cell]) / len(cells[cell]) for cell in chosen]
                    out[head + name + tail] = sum(means) / len(means)

        report("", [c for c in cells if c[0] != 0])
        for a, attack in enumerate(ATTACKS):
            report(f"/{attack}", [c for c in cells if c[0] == a])
            for v, victim in enumerate(VICTIMS):
                report(f"/{attack}/{victim}", [c for c in cells if c == (a, v)])
    clean = [float(r) for r, a in zip(rows["right_clean"], rows["attack"], strict=True) if a == 0]
    if clean:  # over the clean rows, not over the attacked ones
        out["clean_accuracy"] = sum(clean) / len(clean)
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_the_numbers_of_a_restorer(seed):
    rows = restoration_rows(seed=seed)
    ours = {key: value for key, value in numbers(rows).items() if not key.startswith("worst_accuracy")}
    theirs = transcription(rows)
    assert ours.keys() == theirs.keys()
    assert "d/pgd/a" in ours
    assert "d/pgd/b" not in ours
    assert "adaptive_restored_accuracy/fgsm/b" in ours
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_clean_accuracy_is_over_attacked_rows_where_none_is_clean():
    rows = restoration_rows().where(attacked=1)
    assert numbers(rows)["clean_accuracy"] == rows.where(knowledge="victim").mean("right_clean")


def test_where_nothing_is_attacked_all_rows_count():
    rows = restoration_rows().where(attacked=0)
    found = numbers(rows)
    assert found["count"] == found["count/clean"] == len(rows)
    assert found["restored_accuracy"] == rows.mean("right_restored")
    assert numbers(rows.where(image=[])) == {}
    assert numbers(Samples({})) == {}


def test_the_numbers_of_a_detector_set_attacked_against_clean_rows_of_the_same_victim():
    rows = restoration_rows(400)
    g = torch.Generator().manual_seed(5)
    rows = rows.with_columns(
        score_s=torch.randn(400, generator=g) + rows["victim"] + rows["attacked"], alarm=rows["right"]
    )
    found = numbers(rows)
    clean = rows.where(attacked=0)

    def against(group, victims):
        return Samples.cat([group, clean.where(victim=victims)])

    victim = rows.where(knowledge="victim", attacked=1)
    wanted = {
        "auroc": auroc(against(victim, ["a", "b"]), "s"),
        "auroc/pgd": auroc(against(victim.where(attack="pgd"), ["a"]), "s"),  # b never meets it
        "tpr_at_fpr1/fgsm/b": tpr_at_fpr(against(victim.where(attack="fgsm", victim="b"), ["b"]), "s"),
        "adaptive_auroc/fgsm": auroc(against(rows.where(knowledge="defence"), ["a", "b"]), "s"),
        "alarm_rate/clean/a": clean.where(victim="a").mean("alarm"),
    }
    pgd, mine = victim.where(attack="pgd"), clean.where(victim="a")
    wanted["detection_accuracy/pgd"] = (pgd.mean("alarm") + 1 - mine.mean("alarm")) / 2
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-12)
    assert not [
        key for key in found if key.startswith(("auroc/clean", "tpr_at_fpr1/clean", "detection_accuracy/clean"))
    ]
    two = numbers(rows.with_columns(score_t=-rows["score_s"]))
    assert two["auroc/pgd"] == found["auroc/pgd"]  # the first score decides
    assert two["auroc_t/pgd"] == pytest.approx(1 - two["auroc/pgd"], abs=1e-6)


def test_the_numbers_of_an_identifier():
    rows = restoration_rows(300)
    g = torch.Generator().manual_seed(5)
    probabilities = torch.randn(300, 3, generator=g, dtype=torch.float64).softmax(1)
    said = probabilities.argmax(1)
    made = identified(rows["attack"].tolist(), said.tolist(), probabilities)
    columns = {name: made[name] for name in made.columns if name != "attack"}
    rows = Samples({**rows.columns, **columns}, {**rows.names, "said": ANSWERS})
    found = numbers(rows)
    pgd = rows.where(attack="pgd")
    assert found["identified/pgd"] == float((pgd["said"] == 1).double().mean())
    assert found["calibration_error/pgd"] == pytest.approx(calibration_error(pgd), abs=1e-9)
    assert not [key for key in found if key.endswith("identified/fgsm")]  # unseen: no number, and no zero
    attacked = rows.where(attacked=1, knowledge="victim")
    assert found["identified"] == attacked.mean("identified") == found["identified/pgd"]


def test_a_large_evaluation_takes_no_time():
    """12 cells of 10,000 images of a detector and identifier; masks per cell took 4 s, and more with more cells."""
    n, attacks = 10_000, ("clean", *(f"a{i}" for i in range(11)))
    g = torch.Generator().manual_seed(0)
    many = n * len(attacks)
    columns = {name: torch.rand(many, generator=g) for name in (*MEASURED, "score_s", *(f"p_{a}" for a in attacks))}
    columns |= {
        "attack": torch.arange(len(attacks)).repeat_interleave(n),
        "image": torch.arange(n).repeat(len(attacks)),
    }
    columns |= {name: torch.zeros(many) for name in ("victim", "judge", "setting", "knowledge")}
    columns |= {"attacked": columns["attack"] > 0, "said": columns["attack"]}
    names = {"attack": attacks, "said": attacks, "victim": ("a",), "judge": ("a",), "setting": ("",)}
    rows = Samples(columns, names | {"knowledge": KNOWLEDGE})
    start = time.process_time()
    found = numbers(rows)
    assert time.process_time() - start < 2
    assert found["count"] == 11 * n


MEASURED = ("right", "right_clean", "identified", "alarm", *OLD)
