import copy
import math
from dataclasses import replace

import pytest
import torch

from redlab.batch import AttackBatch
from redlab.metrics import RestorationMetrics

ATTACKS, VICTIMS = ("clean", "fgsm", "pgd"), ("a", "b")


def random_arguments(n=40, seed=0, classes=3):
    g = torch.Generator().manual_seed(seed)

    def integers(high):
        return torch.randint(0, high, (n,), generator=g)

    clean = torch.rand(n, 3, 4, 5, generator=g)
    attack = integers(3)
    adv = torch.where(attack.view(-1, 1, 1, 1) == 0, clean, torch.rand(clean.shape, generator=g))
    # victim b never meets pgd: an empty cell
    victim = torch.where(attack == 2, 0, integers(2))
    valid = torch.rand(n, generator=g) < 0.7
    zero, index = torch.zeros(n, dtype=torch.int64), torch.arange(n)
    batch = AttackBatch(clean, adv, integers(classes), attack, zero, victim, zero, zero - 1, index, valid, attack > 0)
    restored = torch.rand(clean.shape, generator=g)
    return batch, restored, *(torch.randn(n, classes, generator=g) for _ in range(4))


def rows_of(arguments, rows):
    return [argument[rows] for argument in arguments]


def computed(*calls):
    metric = RestorationMetrics(ATTACKS, VICTIMS)
    for call in calls:
        metric.update(*call)
    return metric.compute()


def row_values(arguments, i):
    """All quantities of one image, in plain Python."""
    batch, restored, *logits = arguments
    f_x, f_adv, f_red, f_adv_red = ([round(v, 9) for v in part[i].tolist()] for part in logits)
    x, x_adv, x_red = (t[i].flatten().double().tolist() for t in (batch.clean, batch.adv, restored))

    def distance(u, v):
        return math.sqrt(sum((p - q) ** 2 for p, q in zip(u, v, strict=True)))

    def top(values):
        return values.index(max(values))

    delta = [p - q for p, q in zip(x_adv, x, strict=True)]
    delta_red = [p - q for p, q in zip(x_adv, x_red, strict=True)]
    norms = math.sqrt(sum(p * p for p in delta)) * math.sqrt(sum(p * p for p in delta_red))
    label = int(batch.label[i])
    return {
        "clean_accuracy": top(f_x) == label,
        "attacked_accuracy": top(f_adv) == label,
        "restored_accuracy": top(f_red) == label,
        "pa_benign": top(f_red) == top(f_x),
        "pa_adv": top(f_adv_red) == top(f_adv),
        "d": distance(x_red, x),
        "logit_d_benign": distance(f_red, f_x),
        "logit_d_adv": distance(f_adv_red, f_adv),
        "cosine": sum(p * q for p, q in zip(delta, delta_red, strict=True)) / norms if norms else 0.0,
        "psnr": 10 * math.log10(len(x) / distance(x_red, x) ** 2),
        "d_attack": distance(x_adv, x),
    }


def brute_force(arguments):
    batch = arguments[0]
    cells = {}
    for i in range(len(batch)):
        if batch.valid[i]:
            cells.setdefault((int(batch.attack[i]), int(batch.victim[i])), []).append(row_values(arguments, i))
    out = {}

    def report(suffix, chosen):
        if not chosen:
            return
        images = [row for cell in chosen for row in cells[cell]]
        out["count" + suffix] = len(images)
        for name in images[0]:
            out[name + suffix] = sum(row[name] for row in images) / len(images)
            if name.startswith("pa_"):
                means = [sum(row[name] for row in cells[cell]) / len(cells[cell]) for cell in chosen]
                out[name + suffix] = sum(means) / len(means)

    report("", [c for c in cells if c[0] != 0])
    for a, attack in enumerate(ATTACKS):
        report(f"/{attack}", [c for c in cells if c[0] == a])
        for v, victim in enumerate(VICTIMS):
            report(f"/{attack}/{victim}", [c for c in cells if c == (a, v)])
    return out


def test_against_brute_force():
    arguments = random_arguments()
    ours, theirs = computed(arguments), brute_force(arguments)
    assert ours.keys() == theirs.keys()
    assert "d/pgd/a" in ours
    assert "d/pgd/b" not in ours
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


def test_pooling_is_by_cell_for_alignment_and_by_image_for_the_rest():
    """Three aligned images in one cell, one unaligned in another: 3/4 of the images, 1/2 of the cells."""
    batch, restored, *_ = rows_of(random_arguments(), torch.arange(4))
    attack, victim = torch.tensor([1, 1, 1, 2]), torch.tensor([0, 0, 0, 0])
    label, valid = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    batch = replace(batch, label=label, attack=attack, victim=victim, valid=valid)
    right = torch.tensor([[1.0, 0.0]] * 4)
    mixed = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    values = computed((batch, restored, right, right, mixed, mixed))
    assert values["restored_accuracy"] == 0.75
    assert values["pa_benign"] == values["pa_adv"] == 0.5
    assert values["pa_adv/fgsm"] == 1.0


def test_clean_rows_are_apart():
    batch, *rest = random_arguments()
    clean = (batch.attack == 0).nonzero()[:, 0]
    values = computed(rows_of([batch, *rest], clean))
    assert {key.split("/")[1] for key in values} == {"clean"}  # so no overall number either
    assert values["d_attack/clean"] == 0
    both = computed((batch, *rest))
    attacked = computed(rows_of([batch, *rest], (batch.attack != 0).nonzero()[:, 0]))
    assert {k: v for k, v in both.items() if "clean/" not in k and not k.endswith("/clean")} == pytest.approx(attacked)


def test_two_updates_equal_one():
    arguments = random_arguments()
    parts = [rows_of(arguments, rows) for rows in torch.arange(40).split([1, 22, 17])]
    assert computed(*parts) == pytest.approx(computed(arguments), rel=1e-12)


def test_invalid_rows_do_not_count():
    arguments = random_arguments()
    only_valid = rows_of(arguments, arguments[0].valid.nonzero()[:, 0])
    assert computed(arguments) == pytest.approx(computed(only_valid), rel=1e-12)
    assert computed(rows_of(arguments, (~arguments[0].valid).nonzero()[:, 0])) == {}


def test_ranks_add_up():
    """What torchmetrics does between ranks, without ranks: reduce every state by its own reduction."""
    arguments = random_arguments()
    ranks = [RestorationMetrics(ATTACKS, VICTIMS) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(*rows_of(arguments, torch.arange(rank, 40, 2)))
    merged = copy.deepcopy(ranks[0])
    for name, reduction in merged._reductions.items():
        setattr(merged, name, reduction(torch.stack([getattr(metric, name) for metric in ranks])))
    assert merged.compute() == pytest.approx(computed(arguments), rel=1e-12)


def test_reset_and_inference_mode():
    metric, arguments = RestorationMetrics(ATTACKS, VICTIMS), random_arguments()
    with torch.inference_mode():
        metric.update(*arguments)
        metric.compute()
    metric.reset()
    metric.update(*arguments)
    assert metric.compute() == computed(arguments)


def test_not_part_of_a_checkpoint():
    assert RestorationMetrics(ATTACKS, VICTIMS).state_dict() == {}


def test_unknown_ids():
    arguments = random_arguments()
    with pytest.raises(ValueError, match=r"0\.\.1.*got \[0, 1, 2\]"):
        RestorationMetrics(ATTACKS[:2], VICTIMS).update(*arguments)
    with pytest.raises(ValueError, match="without duplicates"):
        RestorationMetrics(ATTACKS, ("a", "a"))
