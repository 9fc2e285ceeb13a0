import json
from importlib import resources

import pytest

from redlab.studies import paper_table

ALL = json.loads(resources.files("redlab.studies").joinpath("tables.json").read_text(encoding="utf-8"))


def test_a_row_is_found_by_its_keys() -> None:
    table = paper_table("cdd_red", "table2_auto")
    assert table.row(metric="PA_adv") == {"DO": 85.53, "DS": 83.30, "CDD-RED": 88.39}
    assert table.source == "Table 2, rows AutoAttack"


def test_doubts_belong_to_their_cell() -> None:
    table = paper_table("cdd_red", "table1")
    metric = "d(f(x'), f(x'_RED))"
    assert "7821" in str(table.doubt("CDD-RED", metric=metric))
    assert table.doubt("DO", metric=metric) is None
    assert table.doubt("CDD-RED", metric="PA_adv") is None


def test_a_doubt_about_a_printed_change_is_none_about_the_value() -> None:
    table = paper_table("cdd_red", "tableA5")
    assert any(cell["field"] == "delta" for cell in table.unreliable)
    assert table.doubt("f=R-Res50", metric="PA_adv") is None


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cdd_red/table9.*cdd_red/table1"):
        paper_table("cdd_red", "table9")
    with pytest.raises(ValueError, match="0 rows"):
        paper_table("cdd_red", "table1").row(metric="PSNR")
    with pytest.raises(ValueError, match="5 rows"):
        paper_table("cdd_red", "table1").row()


@pytest.mark.parametrize(("paper", "name"), [(p, t) for p, tables in ALL.items() for t in tables])
def test_every_table_is_consistent(paper: str, name: str) -> None:
    table = paper_table(paper, name)
    assert table.rows
    for row in table.rows:
        assert set(row["values"]) <= set(table.columns)
        assert all(isinstance(value, int | float) for value in row["values"].values())
    for cell in table.unreliable:  # a doubt that points nowhere would never be shown
        found = [row for row in table.rows if all(row["keys"].get(k) == v for k, v in cell["row"].items())]
        assert found
        assert "column" not in cell or any(
            cell["value"] == row.get(cell["field"], {}).get(cell["column"]) for row in found
        )
