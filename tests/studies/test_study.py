"""A study from rows to its card."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from redlab.crafting import Component
from redlab.metrics import Samples
from redlab.studies import (
    STUDIES,
    Card,
    Evaluation,
    Number,
    PaperTable,
    Scale,
    Seen,
    Study,
    Table,
    Trained,
    card_figure,
    card_markdown,
    card_tables,
    draw,
    find,
    merge_overrides,
)
from redlab.studies.card import card
from redlab.studies.study import DIAGNOSIS

PAPER = PaperTable(
    name="paper/table",
    title="",
    columns=("A", "B"),
    rows=(
        {"keys": {"metric": "PA"}, "values": {"A": 60.0, "B": 70.0}},
        {"keys": {"metric": "d"}, "values": {"A": 3.0, "B": 4.0}},
    ),
    unreliable=(
        {"row": {"metric": "d"}, "column": "B", "field": "values", "value": 4.0, "printed": "4O", "reason": "a letter"},
    ),
    source="Table 1",
)


def numbers(seen: Any) -> dict[tuple[str, str], float]:
    table = {}
    for name, each in seen.items():
        table["PA", name] = 100 * each.rows.mean("pa")
        table["d", name] = each.rows.mean("d")
        table["rms", name] = each.rows.mean("d") / 2
    return table


def study(**changed: Any) -> Study:
    of: dict[str, Any] = {
        "id": "paper/table",
        "title": "A and B",
        "runs": {"A": ["method=a"], "B": ["method=b", "trainer.max_epochs=5"]},
        "evaluations": {"A": Evaluation(run="A"), "B": Evaluation(run="B")},
        "numbers": numbers,
        "claims": {
            "B has the higher PA": lambda t: t["PA", "A"] < t["PA", "B"],
            "A has the lower rms": lambda t: t["rms", "A"] < t["rms", "B"],
        },
        "paper": PAPER,
        "paper_data": "ImageNet, many images",
        "units": {"PA": "%"},
        "notes": ["A note."],
    }
    return Study(**of | changed)


def seed(pa: tuple[float, float], d: tuple[float, float] = (1, 2)) -> dict[str, Seen]:
    return {name: Seen(rows=Samples({"pa": [p, p], "d": [x, x]})) for name, p, x in zip("AB", pa, d, strict=True)}


def trained(*seeds: int) -> dict[str, list[Trained]]:
    return {
        name: [
            Trained(
                seed=s,
                overrides=[f"method={name}"],
                identity=f"{name}{s}",
                commit="abc",
                versions={"torch": "2"},
                device="a GPU",
            )
            for s in seeds
        ]
        for name in "AB"
    }


def made(seeds: list[dict[str, Seen]], of: Study | None = None, **changed: Any) -> Card:
    of = of or study()
    given: dict[str, Any] = {"scale": "small", "runs": trained(*range(len(seeds))), "data": "digits", "device": "CPU"}
    return card(of, of.table(seeds), **given | {"seconds": 90.0} | changed)


def test_numbers_are_taken_once_per_seed_and_judged_by_their_differences() -> None:
    both = [seed((0.5, 0.6)), seed((0.7, 0.8))]
    assert study().table(both)["PA", "A"].values == pytest.approx((50, 70))
    found = {claim["text"]: claim for claim in made(both).claims}
    claim = found["B has the higher PA"]  # though A's seeds are farther apart than A is from B
    assert (claim["verdict"], claim["paper"]) == ("holds", "holds")
    assert claim["margin"] == pytest.approx(10)
    assert claim["spread"] == pytest.approx(0, abs=1e-9)
    assert claim["numbers"] == "PA A = 60 < PA B = 70"
    assert made([seed((0.5, 0.6)), seed((0.7, 0.69))]).claims[0]["verdict"] == "tie"
    assert made([seed((0.6, 0.5))]).claims[0]["verdict"] == "fails"


def test_a_claim_about_what_the_paper_does_not_print_says_so() -> None:
    claim = made([seed((0.5, 0.6))]).claims[1]
    assert (claim["verdict"], claim["paper"]) == ("holds", "not in the paper")
    assert made([seed((0.5, 0.6))], study(paper=None)).claims[0]["paper"] == "not in the paper"


def test_a_claim_about_a_number_that_is_not_there_is_neither_held_nor_failed() -> None:
    found = made([seed((math.nan, 0.6))])
    assert found.claims[0]["verdict"] == "no number"
    assert found.claims[0]["numbers"] == "PA A = nan"
    assert found.numbers["PA"]["A"] == {"mean": None, "spread": None, "values": [None]}
    assert card_tables(found)[0].rows[0][1] == "–"


def test_what_is_no_claim_is_refused() -> None:
    with pytest.raises(ValueError, match="'wrong' of study paper/table must give a Claim, got False"):
        made([seed((0.5, 0.6))], study(claims={"wrong": lambda t: t["PA", "A"] == t["PA", "B"]}))
    with pytest.raises(TypeError, match="neither true nor false"):
        made([seed((0.5, 0.6))], study(claims={"wrong": lambda t: t["PA", "A"] < t["PA", "B"] < t["d", "A"]}))


def test_card_round_trip(tmp_path: Path) -> None:
    found = made([seed((0.5, 0.6)), seed((math.nan, 0.8))])
    path = found.save(tmp_path / "results" / "card.json")
    assert Card.load(path) == found
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert plain["seeds"] == [0, 1]
    assert plain["runs"]["B"][1] == {
        "seed": 1, "overrides": ["method=B"], "identity": "B1", "commit": "abc", "versions": {"torch": "2"},
        "device": "a GPU",
    }  # fmt: skip
    assert plain["paper"] == {"PA": {"A": 60.0, "B": 70.0}, "d": {"A": 3.0, "B": 4.0}}
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a card"):
        Card.load(path)


def test_tables_put_ours_beside_the_papers() -> None:
    table, conclusions = card_tables(made([seed((0.5, 0.6)), seed((0.7, 0.8))]))
    assert table.columns == ("", "A", "A (paper)", "B", "B (paper)")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["PA [%]"] == ("60.00\u00a0±\u00a010.00", "60.00", "70.00\u00a0±\u00a010.00", "70.00")
    assert rows["d"][3] == "4.00†"
    assert rows["rms"][1] == "–"
    assert table.notes[0] == "Ours: digits. (paper): ImageNet, many images."
    assert "4O" in table.notes[1]
    assert [row[:3] for row in conclusions.rows] == [
        ("B has the higher PA", "holds", "holds"),
        ("A has the lower rms", "holds", "not in the paper"),
    ]


def test_rows_that_only_the_paper_has_are_shown() -> None:
    only_d = study(numbers=lambda seen: {("d", "A"): 1.0}, claims={})
    table, _ = card_tables(made([seed((0.5, 0.6))], only_d))
    assert {row[0]: row[1:] for row in table.rows}["PA [%]"] == ("–", "60.00", "–", "70.00")


def test_markdown_says_where_the_numbers_come_from() -> None:
    text = card_markdown(made([seed((0.6, 0.5))]))
    for words in (
        "| B has the higher PA | fails | holds |",
        "A note.",
        "One seed",
        "`method=B`",
        "seed 0: B0, by commit",
    ):
        assert words in text
    assert "torch 2" in text


def test_figures() -> None:
    found = made([seed((0.5, 0.6))])
    default = card_figure(found)
    assert default is not None
    assert [axes.get_title(loc="left") for axes in default.axes] == ["PA", "d", "", ""]
    assert draw(study(), {}, Table({}), found) is not None
    own = study(figure=lambda seen, table: (seen, table))
    assert draw(own, {"A": 1}, Table({}), found) == ({"A": 1}, Table({}))  # type: ignore[comparison-overlap,dict-item]
    assert card_figure(made([seed((0.5, 0.6))], study(paper=None))) is None


def test_the_runs_of_a_card_are_those_of_the_study() -> None:
    runs = trained(0, 1)
    with pytest.raises(ValueError, match=r"needs the runs A, B.*'A': \[0, 1\]"):
        made([seed((0.5, 0.6))], runs={"A": runs["A"]})
    with pytest.raises(ValueError, match=r"same seeds.*'B': \[0\]"):
        made([seed((0.5, 0.6))], runs=runs | {"B": runs["B"][:1]})


def test_runs_get_the_scale_their_own_words_and_the_users() -> None:
    scale = Scale.of(["data=digits", "trainer.max_epochs=3"])
    assert study().overrides("A", scale) == ["data=digits", "trainer.max_epochs=3", "method=a"]
    assert study().overrides("B", scale, ["data=mnist"]) == ["method=b", "trainer.max_epochs=5", "data=mnist"]
    assert merge_overrides(["a=1", "+b=2"], ["b=3", "c=x=y"], ["a=4"]) == ["b=3", "c=x=y", "a=4"]


def test_the_card_of_a_study_without_runs_names_no_data_and_no_seeds() -> None:
    counted = study(runs={}, evaluations={}, numbers=lambda _: {("a", "b"): 1.0}, claims={}, paper=None, paper_data="")
    found = card(counted, counted.table([{}]), scale="small", runs={}, data="", device="CPU", seconds=0.0)
    text = card_markdown(found)
    assert "scale `small`, nothing trained, CPU" in text
    assert not any(word in text for word in ("seed", "Ours", "Runs"))


def test_an_evaluation_of_the_run_alone_is_its_own_test() -> None:
    assert Evaluation(run="A").own_test
    assert not Evaluation(run="A", attacks={"clean": Component(attack=None)}).own_test


def test_studies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="run 'C'; there are A, B"):
        study(evaluations={"C": Evaluation(run="C")})
    with pytest.raises(ValueError, match="'table1'"):
        study(id="table1")
    with pytest.raises(ValueError, match="no probe"):
        Evaluation(run="A", keep_images=3)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Evaluation(run="A", keep_images=-1)
    with pytest.raises(ValueError, match="each of 0 rows"):
        Seen(rows=Samples({}), pictures={"cam": torch.zeros(2, 1, 4, 4)})
    with pytest.raises(ValueError, match="at least one seed"):
        study().table([])


def test_studies_are_found_by_pattern() -> None:
    assert [of.id for of in find("cdd_red/table1")] == ["cdd_red/table1"]
    assert {of.id for of in find("cdd_red/table*")} > {"cdd_red/table1", "cdd_red/tableA7"}
    assert len(find("*")) == len(STUDIES)
    with pytest.raises(ValueError, match="did you mean 'cdd_red/table1'"):
        find("cdd_red/tabel1")
    assert Number((1.0,)) == Number((1.0,), "of any name")


def cells(attacked: float, *, knows: bool) -> Samples:
    """100 clean images, and as many attacked ones of which a share is still right to the victim."""
    kinds = [(0, 0, 1.0), (1, 0, attacked), *([(1, 1, 0.0)] if knows else [])]
    columns: dict[str, list[float]] = {}
    for attack, knowledge, right in kinds:
        for image in range(100):
            row = {"attack": attack, "knowledge": knowledge, "image": image, "victim": 0, "judge": 0, "setting": 0}
            row |= {"attacked": float(attack), "right_attacked": float(image < 100 * right), "right_clean": 1.0}
            for key, value in (row | {"right": row["right_attacked"]}).items():
                columns.setdefault(key, []).append(value)
    names = {"attack": ("clean", "pgd"), "knowledge": ("victim", "defence"), "victim": ("net",), "judge": ("net",)}
    return Samples(columns, names | {"setting": ("",)})


def test_a_card_has_the_worst_of_each_check(tmp_path: Path) -> None:
    """Of the first seed; where nothing is claimed nobody need know the defence."""
    asked = {"A": Evaluation(run="A"), "B": Evaluation(run="B", overrides=DIAGNOSIS)}
    plain: dict[str, Any] = {"numbers": lambda seen: {("PA", "A"): 1.0}, "claims": {}}
    seen = {"A": Seen(rows=cells(0.0, knows=True)), "B": Seen(rows=cells(0.7, knows=False))}
    found = made([seen], study(evaluations=asked, **plain), seen=seen)
    checks = {check["check"]: check for check in found.checks}
    assert (checks["attacks work on the victim"]["at"], checks["attacks work on the victim"]["verdict"]) == ("B", "red")
    assert checks["an attacker who knows the defence does better"]["at"] == "A"
    assert checks["an attacker who knows the defence does better"]["verdict"] == "green"
    assert "Checks, each where it is worst" in card_markdown(found)
    assert Card.load(found.save(tmp_path / "card.json")) == found
    claimed = made([seen], study(evaluations={n: Evaluation(run=n) for n in "AB"}, **plain), seen=seen)
    assert {c["verdict"] for c in claimed.checks if c["check"].startswith("an attacker who knows")} == {"red"}
    assert made([seed((0.5, 0.6))]).checks == []  # of rows that say nothing of it
