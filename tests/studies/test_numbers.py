"""Numbers, claims and tables, against cases worked out by hand."""

import math

import pytest

from redlab.studies.numbers import (
    Claim,
    NoNumberError,
    Number,
    average,
    every,
    falling,
    increasing,
    inner_maximum,
    inverted_u,
    largest,
    most,
    rank_correlation,
    slope,
    smallest,
    span,
)
from redlab.studies.paper_numbers import PaperTable, row_name
from redlab.studies.table import Table


def n(*values: float, name: str = "") -> Number:
    return Number(values, name)


def ones(*values: float) -> list[Number]:
    """Numbers of one seed."""
    return [n(value) for value in values]


HOLDS, TIE, FAILS = n(0) < 1, n(0) < 0, n(1) < 0


def test_arithmetic_is_done_seed_by_seed() -> None:
    a, b = n(1, 2), n(10, 30)
    assert (a + b).values == (11, 32)
    assert (b - a).values == (9, 28)
    assert (a * b).values == (10, 60)
    assert (b / a).values == (10, 15)
    assert (2 * a + 1).values == (3, 5)
    assert (1 - a).values == (0, -1)
    assert (1 / a).values == (1, 0.5)
    assert abs(a - b).values == (9, 28)
    assert (a + n(5)).values == (6, 7)  # a constant, as the paper's
    assert math.isnan((a / 0).mean)
    assert (b.mean, b.spread, n(4).spread) == (20, 20, 0)
    with pytest.raises(ValueError, match=r"2 seeds.*3"):
        a + n(1, 2, 3)
    with pytest.raises(ValueError, match="at least one seed"):
        n()


@pytest.mark.parametrize(
    ("claim", "verdict", "margin"),
    [
        (n(1) < n(1.1), "holds", 0.1),
        (n(1.1) > n(1), "holds", 0.1),
        (n(1) < n(1), "tie", 0),
        (n(0.1) + n(0.2) < n(0.3), "tie", 0),  # but for rounding
        (n(1) < n(0.9), "fails", -0.1),
        (n(1) + 15 < n(17), "holds", 1),
        (n(1) + 15 < n(15), "fails", -1),
        (n(17) > 15, "holds", 2),
        (n(1) <= n(1), "holds", 0),
        (n(1) >= n(1.5), "fails", -0.5),
        (n(1).near(n(5.5), by=5), "holds", 0.5),
        (n(1).near(n(6), by=5), "holds", 0),
        (n(6.5).near(n(1), by=5), "fails", -0.5),
        # two seeds: the mean of b is above that of a by 1, their difference is 0 and 2
        (n(1, 1) < n(1, 3), "tie", 1),
        (n(1, 1) > n(1, 3), "tie", -1),
        (n(1, 1) < n(3, 3.5), "holds", 2.25),
        (n(1, 1) <= n(0.5, 1), "holds", -0.25),  # no larger, as far as two seeds can tell
        (n(1, 1) <= n(0.5, 0.6), "fails", -0.45),
        (n(1, 1).near(n(6, 7), by=5), "tie", -0.5),
        (n(1, 1).near(n(7, 7.1), by=5), "fails", -1.05),
    ],
)
def test_verdicts(claim: Claim, verdict: str, margin: float) -> None:
    assert claim.verdict == verdict
    assert claim.margin == pytest.approx(margin)


def test_what_the_seeds_have_in_common_cancels() -> None:
    """Each number moves by 20 over the seeds, their difference by none."""
    claim = n(40, 60) < n(41, 61)
    assert (claim.verdict, claim.margin, claim.spread) == ("holds", 1, 0)
    assert (n(40, 60) < n(61, 41)).verdict == "tie"


def test_a_chained_comparison_cannot_lie() -> None:
    with pytest.raises(TypeError, match=r"\(a < b\) & \(b < c\)"):
        n(3) < n(1) < n(2)  # noqa: B015
    with pytest.raises(TypeError, match="neither true nor false"):
        sorted(ones(3, 1))


def test_joined_claims() -> None:
    assert (HOLDS & TIE).verdict == "tie"
    assert (HOLDS & TIE & FAILS).verdict == "fails"
    assert (HOLDS & HOLDS).verdict == "holds"
    assert len((HOLDS & TIE & FAILS).parts) == 3
    assert (HOLDS & FAILS).margin == -1
    assert "[fails]" in (HOLDS & FAILS).text
    with pytest.raises(ValueError, match="no claim"):
        every([])


def test_most() -> None:
    assert most([HOLDS, HOLDS, FAILS]).verdict == "holds"
    assert most([HOLDS, HOLDS, FAILS, FAILS]).verdict == "fails"
    assert most([HOLDS, TIE, FAILS]).verdict == "tie"
    assert most([HOLDS, HOLDS, HOLDS, FAILS], at_least=3).verdict == "holds"
    assert most([HOLDS, HOLDS, FAILS, FAILS], at_least=3).margin == -1
    assert (most([HOLDS, FAILS], at_least=1) & HOLDS).verdict == "holds"  # what failed inside does not count
    with pytest.raises(ValueError, match=r"1\.\.2.*3"):
        most([HOLDS, FAILS], at_least=3)


def test_shapes_of_a_row() -> None:
    assert increasing(ones(1, 2, 3)).verdict == "holds"
    assert increasing(ones(1, 2, 2)).verdict == "tie"
    assert increasing(ones(1, 3, 2)).verdict == "fails"
    assert increasing(ones(1, 3, 2), slack=1).verdict == "holds"
    assert falling(ones(3, 2, 1)).verdict == "holds"
    assert falling(ones(3, 2, 3)).verdict == "fails"
    assert falling(ones(3, 1, 2.5, 1), slack=2).verdict == "holds"
    assert falling(ones(3, 1, 3.5, 1), slack=2).verdict == "fails"
    assert increasing({"a": n(1), "b": n(2)}).verdict == "holds"
    assert inner_maximum(ones(1, 3, 0, 2)).verdict == "holds"
    assert inner_maximum(ones(1, 2, 3)).verdict == "fails"
    assert inner_maximum(ones(1, 3, 3)).verdict == "tie"
    assert inverted_u(ones(1, 2, 4, 3)).verdict == "holds"
    assert inverted_u(ones(1, 4, 2, 3)).verdict == "fails"
    assert inverted_u(ones(1, 4, 2, 3), slack=1).verdict == "holds"
    with pytest.raises(ValueError, match="three of them, got 2"):
        inverted_u(ones(1, 2))


def test_numbers_made_of_several() -> None:
    row = [n(1, 5), n(4, 2), n(2, 2)]
    assert largest(row).values == (4, 5)
    assert smallest(row).values == (1, 2)
    assert average(row).values == pytest.approx((7 / 3, 3))
    assert span(row).values == (3, 3)
    assert (span(row) < 4).verdict == "holds"
    assert slope([0, 1, 2], [n(1, 0), n(3, 0), n(5, 0)]).values == (2, 0)
    assert rank_correlation(ones(1, 2, 9), ones(10, 20, 21)).values == pytest.approx((1,))
    assert rank_correlation(ones(1, 2, 3), ones(9, 5, 1)).values == pytest.approx((-1,))
    assert rank_correlation(ones(1, 2, 2, 3), ones(1, 3, 2, 4)).mean == pytest.approx(3 / math.sqrt(10))
    assert math.isnan(rank_correlation(ones(1, 1), ones(1, 2)).mean)
    with pytest.raises(ValueError, match="different"):
        slope([1, 1], ones(1, 2))
    with pytest.raises(ValueError, match="3 and 2"):
        rank_correlation(ones(1, 2, 3), ones(1, 2))
    with pytest.raises(ValueError, match=r"same seeds.*\[1, 2\]"):
        largest([n(1), n(1, 2)])


def test_a_claim_about_no_number_is_no_verdict() -> None:
    with pytest.raises(NoNumberError, match="PA = nan"):
        n(math.nan, 1, name="PA") < n(1, 1)  # noqa: B015


def test_texts_have_the_numbers() -> None:
    a, b = n(42.8, name="PA DO"), n(86.64, name="PA DS")
    assert (a + 15 < b).text == "PA DO + 15 = 57.8 < PA DS = 86.64"
    assert a.near(b, by=5).text == "PA DO = 42.8 ~ PA DS = 86.64 (within 5)"
    assert (b - (a - 1)).name == "PA DS - (PA DO - 1)"
    assert (a > 40).text == "PA DO = 42.8 > 40"


def test_table() -> None:
    table = Table.of_seeds([{("d", "DO"): 1, ("d", "DS"): 3}, {("d", "DS"): 5, ("d", "DO"): 2}])
    assert table["d", "DS"] == n(3, 5)
    assert table["d", "DS"].name == "d DS"
    assert (table.rows, table.columns) == (("d",), ("DO", "DS"))
    assert increasing(table.row("d")).verdict == "holds"
    assert list(table.column("DO")) == ["d"]
    assert ("d", "DO") in table
    with pytest.raises(NoNumberError, match="d, CDD: not in the table"):
        table["d", "CDD"]
    with pytest.raises(NoNumberError, match="PA: not in"):
        table.row("PA")
    with pytest.raises(NoNumberError, match="CDD: not in"):
        table.column("CDD")
    with pytest.raises(ValueError, match="'DS'"):
        Table.of_seeds([{("d", "DO"): 1}, {("d", "DO"): 1, ("d", "DS"): 1}])
    with pytest.raises(ValueError, match="at least one seed"):
        Table.of_seeds([])


def test_the_papers_table_has_the_same_addresses() -> None:
    rows = [{"keys": {"metric": "d", "eps": 4, "random_init": True}, "values": {"DO": 5.96}}]
    doubt = {"row": rows[0]["keys"], "column": "DO", "field": "values", "value": 5.96, "printed": "5,96", "reason": "?"}
    paper = PaperTable("p/t", "", ("DO",), tuple(rows), (doubt,), "Table 1")
    assert row_name(rows[0]["keys"]) == "d, 4, random_init=True"
    assert Table.printed(paper)["d, 4, random_init=True", "DO"].values == (5.96,)
    assert list(paper.doubts()) == [("d, 4, random_init=True", "DO")]
    with pytest.raises(NoNumberError, match="not in the paper"):
        Table.printed(paper)["PSNR", "DO"]
