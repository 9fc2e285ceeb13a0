import torch

from redlab.batch import AttackBatch
from redlab.report.run_report import _shown


def cell(attack: int, victim: int, index: list[int]) -> AttackBatch:
    n = len(index)
    x, ids = torch.zeros(n, 1, 4, 4), torch.zeros(n, dtype=torch.int64)
    return AttackBatch(
        x, x, ids, ids + attack, ids, ids + victim, ids, ids - 1, torch.tensor(index), ids == 0, ids == 0
    )


def answers(text: str) -> torch.Tensor:
    """A letter per row: r(epaired), f(ailed), u(nsuccessful attack), m(isread when clean already)."""
    kinds = {"r": (1, 0, 1), "f": (1, 0, 0), "u": (1, 1, 1), "m": (0, 0, 0)}
    return torch.tensor([kinds[letter] for letter in text]).T.bool()


def test_each_attack_shows_a_success_and_a_failure_of_different_images_and_victims() -> None:
    batch = AttackBatch.cat([cell(a, v, [0, 1, 2, 3]) for a in (1, 2, 5) for v in (0, 1)])
    rows = _shown(batch, answers("rfrf" * 6))
    kinds = ["rfrf"[row % 4] for row in rows]
    assert kinds == ["r", "f"] * 3
    assert batch.attack[rows].tolist() == [1, 1, 2, 2, 5, 5]
    for a in (0, 2, 4):
        assert set(batch.victim[rows][a : a + 2].tolist()) == {0, 1}
    assert len(set(batch.index[rows].tolist())) == 4  # all that there are


def test_a_single_attack_shows_four_and_what_is_missing_is_filled_up() -> None:
    assert sorted(_shown(cell(1, 0, [5, 6, 7, 8, 9]), answers("mrurr"))) == [0, 1, 3, 4]
    assert _shown(cell(1, 0, [5, 6, 7, 8, 9]), answers("mufrr")) == [3, 2, 4, 0]
    assert _shown(cell(1, 0, [5]), answers("m")) == [0]


def test_many_attacks_show_two_each() -> None:
    batch = AttackBatch.cat([cell(a, 0, list(range(a, a + 3))) for a in range(1, 9)])
    rows = _shown(batch, answers("frr" * 8))
    assert batch.attack[rows].tolist() == [a for a in range(1, 9) for _ in range(2)]
    assert ["frr"[row % 3] for row in rows] == ["r", "f"] * 8
