"""What is printed of an identifier's rows: shares of attacks, weighted totals, attacks that it does not know."""

import itertools
import math

import pytest
import torch

from redlab.metrics import Samples, identified_per_attack, identified_total, numbers, unknown_auroc
from redlab.studies import paper_table

ATTACKS, ANSWERS = ("clean", "pgd", "square"), ("clean", "pgd")
WEIGHTS = {"Clean": 1, "PGD": 12, "DeepFool": 4, "CW-L2": 8, "CW-Linf": 12, "Patch": 24}
"""How many images of each class the paper has, over 61."""


def rows(attack, sure):
    """Images of attacks, with the probability of "pgd"."""
    attack, sure = torch.tensor(attack), torch.tensor(sure, dtype=torch.float64)
    said = (sure > 0.5).long()
    right = torch.where(attack == 2, torch.nan, (said == attack).double())
    columns = {"attack": attack, "attacked": attack > 0, "said": said, "identified": right}
    columns |= {"p_clean": 1 - sure, "p_pgd": sure}
    columns |= dict.fromkeys(("knowledge", "victim"), torch.zeros_like(attack))
    return Samples(columns, {"attack": ATTACKS, "said": ANSWERS, "knowledge": ("victim", "defence"), "victim": ("a",)})


def test_shares_and_totals():
    some = rows([0, 0, 1, 1, 1, 1, 2], [0.1, 0.8, 0.9, 0.9, 0.9, 0.2, 0.6])
    assert identified_per_attack(some) == {"clean": 0.5, "pgd": 0.75}
    assert identified_total(some, {"clean": 1, "pgd": 3}) == pytest.approx((0.5 + 3 * 0.75) / 4)
    with pytest.raises(ValueError, match="no rows of square"):
        identified_total(some, {"clean": 1, "square": 1})
    with pytest.raises(ValueError, match="not those of an identifier"):
        identified_per_attack(Samples({"attack": [0]}, {"attack": ATTACKS}))


@pytest.mark.parametrize("table", ["table3_cifar", "table3_tiny", "table5_cifar", "table5_tiny"])
def test_the_totals_of_the_paper(table):
    """All twelve, as far as its numbers, which are cut off after one digit, can say; the mean of classes is others."""
    paper = paper_table("redrl", table)
    plain = []
    for column in paper.columns:
        shares = {row["keys"]["class"]: row["values"][column] for row in paper.rows}
        total = shares.pop("Total")
        found = sum(WEIGHTS[name] * value for name, value in shares.items()) / 61
        assert -0.1 <= total - found <= 0.1 + 0.015, column  # the worst is 0.013 too much
        plain.append(abs(total - sum(shares.values()) / 6))
    assert max(plain) > 0.2


def test_doubt_finds_unknown_attacks():
    """Against pairs counted one by one; half a point for a tie."""
    some = rows([0, 1, 1, 0, 2, 2, 2], [0.1, 0.8, 0.95, 0.45, 0.6, 0.8, 0.02])
    doubt = [1 - max(p, 1 - p) for p in some["p_pgd"].tolist()]
    unknown, known = doubt[4:], doubt[:4]
    pairs = [(u > k) + 0.5 * (u == k) for u, k in itertools.product(unknown, known)]
    assert unknown_auroc(some) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert numbers(some)["unknown_auroc"] == unknown_auroc(some)
    knows = some.with_columns(knowledge=(some["attack"] == 2).long(), p_pgd=1 - some["p_clean"])
    assert "unknown_auroc" not in numbers(knows)  # of attackers who know the victim alone


def test_there_must_be_both_kinds():
    for attack in ([0, 1], [2, 2]):
        some = rows(attack, [0.1, 0.9])
        assert math.isnan(unknown_auroc(some))
        assert "unknown_auroc" not in numbers(some)
    with pytest.raises(ValueError, match="not those of an identifier"):
        unknown_auroc(Samples({"attack": [0]}, {"attack": ATTACKS}))
