"""What docs/add_a_study.md prints."""

import sys

import pytest

from printed import ROOT, imported
from redlab.studies import Study, numbers

PAGE = ROOT / "docs" / "add_a_study.md"


def test_the_printed_study_is_judged_on_its_rows_and_on_the_papers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "printed_add_a_study_0", raising=False)  # another test may have imported it
    page = imported(PAGE)
    assert isinstance(page.study, Study)
    assert page.study.table(page.seeds)["PA_adv", "CDD-RED"].values == pytest.approx((78, 82))
    assert capsys.readouterr().out.splitlines() == [
        "holds | PA_adv: CDD-RED > DO | PA_adv DO = 70 < PA_adv CDD-RED = 80",
        "the paper | holds | PA_adv: CDD-RED > DO",
    ]


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    named = ("every", "most", "increasing", "falling", "inverted_u", "span", "slope", "rank_correlation")
    assert all(f"`{name}`" in text and callable(getattr(numbers, name)) for name in named)
    assert len(text.splitlines()) < 90
