"""Every column of the rows of an evaluation, image by image, against plain Python."""

import math
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from torch import nn

from redlab.batch import AttackBatch
from redlab.evaluation import Evaluator, answers, gathered
from redlab.metrics import Samples, score_names

ATTACKS, VICTIMS, CLASSES = ("clean", "fgsm", "pgd"), ("a", "b"), 3
SETTINGS = {2: ("eps 4", "eps 8")}
KNOWN = ("clean", "pgd", "cw")  # what the identifier tells apart: another order, one more, and not fgsm
ALWAYS = {"image", "label", "attack", "setting", "victim", "judge", "knowledge", "target", "attacked"}
ALWAYS |= {"right_clean", "right_attacked", "d_attack", "right"}
COLUMNS = {
    "restorer": {"right_restored", "pa_benign", "pa_adv", "d", "logit_d_benign", "logit_d_adv", "cosine", "psnr"},
    "detector": {"score_odds", "score_size", "alarm"},
    "identifier": {"score_attacked", "alarm", "said", "identified", "p_clean", "p_pgd", "p_cw"},
    "labeler": {"right_label"},
}


def linear(seed, out):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, out))
    return net.double().requires_grad_(False)


class Double(nn.Module):
    """Calculates in float64, so that the plain transcription meets no tie that rounding decides."""

    def __init__(self, seed, out):
        super().__init__()
        self.net = linear(seed, out)

    def forward(self, x):
        return self.net(x.double())


class Everything:
    """All capabilities; an instance says which of them it shows."""

    verdict = "odds"
    attack_names = KNOWN

    mix, heads = (
        linear(5, 3 * 4 * 5),
        MappingProxyType(
            {
                "odds": Double(10, 1),
                "size": Double(11, 1),
                "attack": Double(12, len(KNOWN)),
                "label": Double(13, CLASSES),
            }
        ),
    )

    def __init__(self, *can):
        self.capabilities = frozenset(can)

    def restore(self, x):
        return self.estimate(x).clamp(0, 1)

    def estimate(self, x):  # leaves [0, 1], and measures look at this
        return (0.9 * x + 0.4 * self.mix(x.double()).view_as(x)).float()

    def adversarial_scores(self, x):
        return {name: self.heads[name](x)[:, 0] for name in ("size", "odds")}

    def attack_logits(self, x):
        return 3 * self.heads["attack"](x)

    def class_logits(self, x):
        return self.heads["label"](x)


def make_batch(n=40, seed=0, fooled=True):
    g = torch.Generator().manual_seed(seed)

    def integers(high):
        return torch.randint(0, high, (n,), generator=g)

    clean, attack = torch.rand(n, 3, 4, 5, generator=g), integers(3)
    attacked = attack != 0
    adv = torch.where(attacked.view(-1, 1, 1, 1), torch.rand(clean.shape, generator=g), clean)
    return AttackBatch(
        clean=clean,
        adv=adv,
        label=integers(CLASSES),
        attack=attack,
        setting=torch.where(attack == 2, integers(2), 0),
        victim=integers(2),
        knowledge=torch.where(attacked, integers(2), 0),
        target=integers(CLASSES) - 1,
        index=torch.randperm(n, generator=g),
        valid=torch.rand(n, generator=g) < 0.7,
        attacked=attacked & (torch.rand(n, generator=g) < 0.8),  # the others are controls
        fooled=attacked & (integers(2) > 0) if fooled else None,
    )


@pytest.fixture(scope="module")
def victims():
    return {name: Double(seed, CLASSES) for seed, name in enumerate(VICTIMS)}


def evaluate(victims, *can, batch=None, judges=None):
    evaluator = Evaluator(victims=victims, attack_names=ATTACKS, setting_names=SETTINGS, judges=judges)
    return evaluator(Everything(*can), make_batch() if batch is None else batch)[0]


def top(values):
    return values.index(max(values))


def distance(u, v):
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(u, v, strict=True)))


def ask(network, image):
    """What a network says of one image."""
    return network(image[None])[0].double().tolist()


def expected(batch, i, judge, victims, can):
    """The row of image i before a judge, in plain Python."""
    defence = Everything(*can)
    clean, adv = batch.clean[i], batch.adv[i]
    label, attack, attacked = int(batch.label[i]), ATTACKS[batch.attack[i]], bool(batch.attacked[i])
    x, x_adv = clean.flatten().double().tolist(), adv.flatten().double().tolist()
    f_x, f_adv = ask(victims[judge], clean), ask(victims[judge], adv)
    row = {
        "image": int(batch.index[i]),
        "label": label,
        "attack": attack,
        "setting": SETTINGS[2][batch.setting[i]] if attack == "pgd" else "",
        "victim": VICTIMS[batch.victim[i]],
        "judge": judge,
        "knowledge": ("victim", "defence")[batch.knowledge[i]],
        "target": int(batch.target[i]),
        "attacked": attacked,
        "right_clean": top(f_x) == label,
        "right_attacked": top(f_adv) == label,
        "fooled": bool(batch.fooled[i]),
        "d_attack": distance(x, x_adv),
    }
    alarm = None
    if "restorer" in can:
        restored = defence.estimate(adv[None])[0]
        x_red = restored.flatten().double().tolist()
        f_red, f_adv_red = ask(victims[judge], restored), ask(victims[judge], adv - restored + clean)
        delta = [p - q for p, q in zip((adv - clean).flatten().double().tolist(), [0.0] * len(x), strict=True)]
        delta_red = (adv - restored).flatten().double().tolist()
        norms = distance(delta, [0] * len(x)) * distance(delta_red, [0] * len(x))
        row |= {
            "right_restored": top(f_red) == label,
            "pa_benign": top(f_red) == top(f_x),
            "pa_adv": top(f_adv_red) == top(f_adv),
            "d": distance(x_red, x),
            "logit_d_benign": distance(f_red, f_x),
            "logit_d_adv": distance(f_adv_red, f_adv),
            "cosine": sum(p * q for p, q in zip(delta, delta_red, strict=True)) / norms if norms else 0.0,
            "psnr": 10 * math.log10(len(x) / distance(x_red, x) ** 2),
        }
    if "identifier" in can:
        logits = ask(defence.attack_logits, adv)
        powers = [math.exp(v) for v in logits]
        row |= {f"p_{name}": p / sum(powers) for name, p in zip(KNOWN, powers, strict=True)}
        kind = attack if attacked else "clean"  # nobody attacked a control
        row |= {"said": KNOWN[top(logits)], "identified": KNOWN[top(logits)] == kind if kind in KNOWN else None}
        if "detector" not in can:
            row["score_attacked"] = math.log((powers[1] + powers[2]) / powers[0])
            alarm = row["score_attacked"] > 0
    if "detector" in can:
        scores = {name: ask(defence.heads[name], adv)[0] for name in ("odds", "size")}
        row |= {f"score_{name}": score for name, score in scores.items()}
        alarm = scores["odds"] > 0
    if alarm is not None:
        row["alarm"] = alarm
    if "labeler" in can:
        row["right_label"] = row["right"] = top(ask(defence.heads["label"], adv)) == label
    elif "restorer" in can:
        row["right"] = row["right_restored"]
    elif attacked:
        row["right"] = alarm or row["right_attacked"]
    else:
        row["right"] = row["right_clean"] and not alarm
    return row


def rows_of(samples):
    """Each row as a dict, with names for codes and None for NaN."""
    columns = {
        name: [samples.names[name][v] for v in values.tolist()] if name in samples.names else values.tolist()
        for name, values in samples.columns.items()
    }
    return [
        {k: None if v != v else v for k, v in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]


ABLE = [
    ("restorer",),
    ("detector",),
    ("identifier",),
    ("labeler",),
    ("detector", "identifier"),
    ("restorer", "detector"),
    ("restorer", "labeler"),
    ("restorer", "detector", "identifier", "labeler"),
]


@pytest.mark.parametrize("judges", [None, ("b",), ("a", "b")], ids=["own", "one", "all"])
@pytest.mark.parametrize("can", ABLE, ids="+".join)
def test_every_column_of_every_row(victims, can, judges):
    batch = make_batch()
    rows = evaluate(victims, *can, judges=judges)
    wanted = [
        expected(batch, i, judge, victims, can)
        for i in range(len(batch))
        if batch.valid[i]
        for judge in (judges or [VICTIMS[batch.victim[i]]])
    ]
    columns = ALWAYS | {"fooled"} | set().union(*(COLUMNS[name] for name in can))
    columns -= {"score_attacked"} if "detector" in can else set()  # its own verdict decides
    assert set(rows.columns) == columns
    found = rows_of(rows)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):  # in the order of the batch
        for name, value in theirs.items():
            number = isinstance(value, float)
            assert ours[name] == (pytest.approx(value, rel=1e-5, abs=1e-6) if number else value), name
        assert ours.keys() == theirs.keys()


def test_the_cases_above_hold_every_kind_of_row(victims):
    """Else a column that is always 1 would pass."""
    found = rows_of(evaluate(victims, *CAPABLE)) + rows_of(evaluate(victims, "identifier"))
    for column in ("right", "right_clean", "right_attacked", "alarm", "pa_adv", "right_label", "fooled"):
        assert {0.0, 1.0} <= {row[column] for row in found if column in row}, column
    assert {(row["attack"] != "clean", row["attacked"]) for row in found} == {(False, 0), (True, 0), (True, 1)}
    assert {row["identified"] for row in found} == {0.0, 1.0, None}
    assert {(row["attack"], row["setting"]) for row in found} >= {("pgd", "eps 4"), ("pgd", "eps 8"), ("fgsm", "")}
    restored = Everything("restorer").estimate(make_batch().adv)
    assert restored.min() < 0
    assert restored.max() > 1


CAPABLE = ("restorer", "detector", "identifier", "labeler")


def test_an_attack_unknown_to_the_identifier_is_neither_right_nor_wrong(victims):
    rows = evaluate(victims, "identifier")
    assert rows.where(attack="fgsm", attacked=1)["identified"].isnan().all()
    assert not rows.where(attack=["clean", "pgd"])["identified"].isnan().any()
    assert rows.names["said"] == KNOWN


def test_the_score_that_decides_comes_first(victims):
    """Numbers and tables call it the score."""
    assert list(Everything("detector").adversarial_scores(make_batch().adv)) == ["size", "odds"]
    assert score_names(evaluate(victims, "detector")) == ("odds", "size")


def test_nobody_asked_whether_it_was_fooled(victims):
    assert "fooled" not in evaluate(victims, "restorer", batch=make_batch(fooled=False))


def test_invalid_rows_are_not_there(victims):
    batch = make_batch()
    alone = evaluate(victims, *CAPABLE, batch=batch[batch.valid])
    assert same(evaluate(victims, *CAPABLE, batch=batch), alone, tolerance=1e-9)
    none = evaluate(victims, *CAPABLE, batch=batch[~batch.valid])
    assert len(none) == 0
    assert none.columns == {}


def same(left, right, tolerance=0.0):
    """Equal rows in one order; equal names, too."""
    return (
        left.names == right.names
        and left.columns.keys() == right.columns.keys()
        and all(
            torch.allclose(left[name].double(), right[name].double(), rtol=0, atol=tolerance, equal_nan=True)
            for name in left.columns
        )
    )


def test_gathered_rows_stand_in_one_order_whatever_the_batches(victims):
    batch = make_batch()
    whole = gathered([evaluate(victims, *CAPABLE, batch=batch)])
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    parts = [evaluate(victims, *CAPABLE, batch=batch[rows]) for rows in order.split([1, 22, 17])]
    assert same(gathered(parts), whole, tolerance=1e-9)
    order = ("knowledge", "attack", "setting", "victim", "judge", "image")
    keys = torch.stack([whole[name] for name in order], dim=1).tolist()
    assert keys == sorted(keys)
    assert gathered([]).columns == {}


def test_a_restorer_says_what_it_says_before_it_clamps():
    x = make_batch().adv
    said = answers(Everything("restorer"), x)
    assert torch.equal(said.restored, Everything("restorer").estimate(x))
    assert said.scores is said.attack_logits is said.class_logits is None


def test_what_cannot_be_evaluated(victims):
    x = make_batch().adv
    with pytest.raises(ValueError, match="Linear has none of the capabilities"):
        answers(nn.Linear(1, 1), x)
    lost = Everything("detector")
    lost.verdict = "distance"
    with pytest.raises(ValueError, match=r"\['size', 'odds'\], got 'distance'"):
        answers(lost, x)
    short = Everything("identifier")
    short.attack_names = KNOWN[:2]
    with pytest.raises(ValueError, match="as many logits, got 3"):
        Evaluator(victims=victims, attack_names=ATTACKS)(short, make_batch())
    for judges in ([], ["a", "c"]):
        with pytest.raises(ValueError, match=r"\['a', 'b'\], got " + str(judges).replace("[", r"\[")):
            Evaluator(victims=victims, attack_names=ATTACKS, judges=judges)


@pytest.mark.parametrize(
    ("can", "name"),
    [("restorer", "restored image"), ("detector", "score odds"), ("identifier", "attack logits"),
     ("labeler", "class logits")],
)  # fmt: skip
def test_nan_is_an_error_and_no_missing_number(victims, can, name):
    """Means leave NaN out, so a defence would gain by it."""
    batch = make_batch()
    batch = replace(batch, adv=batch.adv.index_fill(0, torch.tensor([3]), torch.nan))
    with pytest.raises(ValueError, match=f"Everything answers with NaN \\({name}\\)"):
        evaluate(victims, can, batch=batch)


def test_a_verdict_depends_on_no_other_image_of_the_batch(victims):
    modes = set()

    class Judge(nn.Module):
        def forward(self, x):
            modes.add((torch.is_autocast_enabled("cpu"), torch.backends.cudnn.allow_tf32))
            return victims["a"](x)

    judges = {"a": Judge(), "b": Judge()}
    assert torch.backends.cudnn.allow_tf32  # torch's own choice, under which the last bits differ by batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Evaluator(victims=judges, attack_names=ATTACKS)(Everything("restorer"), make_batch())
        assert torch.is_autocast_enabled("cpu")
    assert modes == {(False, False)}
    assert torch.backends.cudnn.allow_tf32


def test_the_defence_and_its_judges_keep_no_graph(victims):
    defence = Everything("labeler")
    defence.heads = {"label": Double(0, CLASSES).requires_grad_(True)}
    rows, said = Evaluator(victims=victims, attack_names=ATTACKS)(defence, make_batch())
    assert not said.class_logits.requires_grad
    assert isinstance(rows, Samples)
