import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from redlab.studies import Card, Predicate, Relation, Study, card_figure, card_markdown, card_tables, paper_table
from redlab.studies.cdd_red import PREDICATES, RUNS, table1
from redlab.studies.study import Number, merge_overrides

TITLES = {
    "test/d": "d(x, x_RED)",
    "test/logit_d_benign": "d(f(x), f(x_RED))",
    "test/logit_d_adv": "d(f(x'), f(x'_RED))",
    "test/pa_benign": "PA_benign",
    "test/pa_adv": "PA_adv",
}
METHODS = {"method=do": "DO", "method=ds": "DS", "method=cdd_red": "CDD-RED"}
SCALES = {"small": ["data=fashion_mnist", "trainer.max_epochs=3"], "smoke": ["data=digits"]}


def printed_metrics(column: str) -> dict[str, float]:
    """Flat metrics of a run that gives exactly the paper's numbers."""
    table = paper_table("cdd_red", "table1")
    raw = {key: table.row(metric=title)[column] for key, title in TITLES.items()}
    raw = {key: value / 100 if "pa_" in key else value for key, value in raw.items()}
    return raw | {
        "test/d_attack": 2.0,
        "test/attacked_accuracy": 0.05,
        "test/restored_accuracy": 0.8,
        "test/adaptive_restored_accuracy/aware_pgd": 0.125,
        "test/d/pgd": 4.0,
        "test/d/pgd/lenet": float("nan"),
        "test/psnr/pgd": 30.0,
    }


class Runner:
    """Stands in for training; ``change(column, seed, metrics)`` alters the paper's numbers."""

    def __init__(self, change: Any = None) -> None:
        self.change = change
        self.calls: list[list[str]] = []

    def __call__(self, overrides: list[str]) -> Mapping[str, float]:
        self.calls.append(overrides)
        column = next(METHODS[o] for o in overrides if o in METHODS)
        seed = int(next(o for o in overrides if o.startswith("seed="))[5:])
        metrics = printed_metrics(column)
        return metrics if self.change is None else self.change(column, seed, metrics)


def run(change: Any = None, seeds: tuple[int, ...] = (0,), runner: Runner | None = None, **kwargs: Any) -> Card:
    return table1(SCALES).run(
        runner or Runner(change), seeds=seeds, data="fashion_mnist", device="cpu", values_per_image=784, **kwargs
    )


def verdicts(card: Card) -> dict[str, str]:
    return {p["name"]: p["verdict"] for p in card.predicates}


def test_every_predicate_holds_on_the_papers_own_numbers() -> None:
    card = run()
    assert set(verdicts(card)) == {"d", "pa_benign", "pa_adv", "logit_d_benign", "logit_d_adv"}
    assert set(verdicts(card).values()) == {"holds"}
    assert all(p["holds"] and p["paper_holds"] for p in card.predicates)


@pytest.mark.parametrize(
    ("key", "column", "value", "broken"),
    [
        ("test/d", "CDD-RED", 9.0, "d"),  # below DO
        ("test/d", "CDD-RED", 20.0, "d"),  # above DS
        ("test/pa_benign", "DO", 0.75, "pa_benign"),  # gap of less than 15 points
        ("test/pa_benign", "CDD-RED", 0.80, "pa_benign"),  # not about equal to DS
        ("test/pa_benign", "CDD-RED", 0.95, "pa_benign"),  # nor when better by that much
        ("test/pa_adv", "DS", 0.81, "pa_adv"),
        ("test/pa_adv", "DO", 0.81, "pa_adv"),
        ("test/logit_d_benign", "DS", 36.0, "logit_d_benign"),
        ("test/logit_d_benign", "DO", 37.0, "logit_d_benign"),
        ("test/logit_d_adv", "CDD-RED", 116.0, "logit_d_adv"),
        ("test/logit_d_adv", "DS", 100.0, "logit_d_adv"),
    ],
)
def test_one_changed_number_breaks_its_predicate_alone(key: str, column: str, value: float, broken: str) -> None:
    card = run(lambda c, _, metrics: metrics | ({key: value} if c == column else {}))
    assert verdicts(card) == {p.name: "fails" if p.name == broken else "holds" for p in PREDICATES}
    entry = next(p for p in card.predicates if p["name"] == broken)
    assert entry["paper_holds"]
    assert not entry["holds"]
    assert any(r["margin"] < 0 and r["verdict"] == "fails" for r in entry["relations"])


def two_seeds(column: str, seed: int, metrics: dict[str, float]) -> dict[str, float]:
    """CDD-RED's PA_adv is 1 point above DS's on average, but its seeds differ by 3 points."""
    pa = {"DO": 0.60, "DS": 0.70, "CDD-RED": (0.695, 0.725)[seed]}[column]
    return metrics | {"test/pa_adv": pa}


def test_a_difference_within_the_seed_spread_is_a_tie() -> None:
    card = run(two_seeds, seeds=(0, 1))
    assert verdicts(card)["pa_adv"] == "tie"
    number = card.numbers["PA_adv"]["CDD-RED"]
    assert number["mean"] == pytest.approx(71)
    assert number["spread"] == pytest.approx(3)
    assert number["values"] == pytest.approx([69.5, 72.5])
    (relation,) = [r for p in card.predicates if p["name"] == "pa_adv" for r in p["relations"] if r["verdict"] == "tie"]
    assert relation["margin"] == pytest.approx(1)
    assert relation["spread"] == pytest.approx(3)
    assert "±" in card_markdown(card)


@pytest.mark.parametrize(
    ("sign", "by", "right", "spread", "verdict"),
    [
        ("<", 0, 1.1, 0.0, "holds"),
        ("<", 0, 1.1, 0.2, "tie"),
        ("<", 0, 1.0, 0.0, "tie"),
        ("<", 0, 0.9, 0.2, "tie"),
        ("<", 0, 0.9, 0.0, "fails"),
        ("<", 15, 17.0, 0.0, "holds"),
        ("<", 15, 17.0, 2.0, "tie"),
        ("<", 15, 15.0, 0.0, "fails"),
        ("<=", 0, 1.0, 0.0, "holds"),
        ("<=", 0, 0.9, 0.2, "holds"),
        ("<=", 0, 0.9, 0.05, "fails"),
        ("~", 5, 5.5, 0.0, "holds"),
        ("~", 5, -3.5, 0.0, "holds"),
        ("~", 5, 6.0, 0.0, "holds"),
        ("~", 5, 6.5, 1.0, "tie"),
        ("~", 5, 6.5, 0.0, "fails"),
        ("~", 5, -6.5, 0.0, "fails"),
    ],
)
def test_relations(sign: str, by: float, right: float, spread: float, verdict: str) -> None:
    numbers = {"m": {"A": Number(1.0), "B": Number(right, spread)}}
    assert Relation("m", "A", sign, "B", by).judge(numbers)["verdict"] == verdict


def test_a_failed_relation_outweighs_a_tie() -> None:
    numbers = {"m": {"A": Number(1.0), "B": Number(1.0), "C": Number(0.0)}}
    tie, fail = Relation("m", "A", "<", "B"), Relation("m", "A", "<", "C")
    assert Predicate("p", "", (tie,)).judge(numbers)["verdict"] == "tie"
    assert Predicate("p", "", (tie, fail)).judge(numbers)["verdict"] == "fails"


def test_unknown_sign_is_refused() -> None:
    with pytest.raises(ValueError, match=">="):
        Relation("m", "A", ">=", "B")


def test_runs_get_the_scale_the_method_the_users_words_and_the_seed() -> None:
    runner, plain = Runner(), "method.aug_mode=none"
    card = run(runner=runner, seeds=(3, 5), scale="small", overrides=["data=mnist"])
    assert runner.calls == [
        ["trainer.max_epochs=3", *words, "data=mnist", f"seed={seed}"]
        for words in (["method=do", plain], ["method=ds", plain], ["method=cdd_red"])
        for seed in (3, 5)
    ]
    assert card.runs["DO"] == ["trainer.max_epochs=3", "method=do", "method.aug_mode=none", "data=mnist"]
    assert card.seeds == [3, 5]


def test_merge_overrides_keeps_the_last_value_of_a_key() -> None:
    assert merge_overrides(["a=1", "+b=2"], ["b=3", "c=x=y"], ["a=4"]) == ["b=3", "c=x=y", "a=4"]


def test_unknown_scale_seedless_run_and_missing_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'huge'.*small, smoke"):
        run(scale="huge")
    with pytest.raises(ValueError, match="seed"):
        run(seeds=())
    with pytest.raises(ValueError, match="DS gave test/d = nan"):
        run(lambda c, _, metrics: metrics | ({"test/d": float("nan")} if c == "DS" else {}))
    with pytest.raises(ValueError, match="adaptive_restored_accuracy/aware_pgd = None"):
        run(lambda c, _, metrics: {k: v for k, v in metrics.items() if "adaptive" not in k})


def test_card_round_trip(tmp_path: Path) -> None:
    card = run(two_seeds, seeds=(0, 1))
    path = card.save(tmp_path / "results" / "card.json")
    assert Card.load(path) == card
    plain = json.loads(path.read_text(encoding="utf-8"))
    wanted = {"study", "scale", "data", "device", "seeds", "commit", "versions", "runs", "numbers", "paper", "seconds"}
    assert wanted <= set(plain)
    assert plain["paper"]["d(x, x_RED)"] == {"DO": 9.32, "DS": 19.19, "CDD-RED": 13.04}
    assert plain["cells"]["DO"] == {"test/d/pgd": 4.0}  # measured keys only, and no NaN in JSON
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a card"):
        Card.load(path)


def test_numbers_have_their_units_and_stay_with_their_data() -> None:
    card = run()
    assert card.numbers["PA_benign"]["DO"]["mean"] == pytest.approx(42.80)
    assert card.numbers["rms(x_RED - x)"]["DO"]["mean"] == pytest.approx(9.32 / 28 * 255)
    assert card.numbers["accuracy, restored, PGD that knows the defence"]["DS"]["mean"] == pytest.approx(12.5)
    numbers, conclusions = card_tables(card)
    assert numbers.columns == ("measure", "DO", "DO (paper)", "DS", "DS (paper)", "CDD-RED", "CDD-RED (paper)")
    rows = {row[0]: row[1:] for row in numbers.rows}
    assert rows["accuracy, restored, PGD that knows the defence [%]"] == ("12.50", "–") * 3  # not in the paper
    assert rows["PA_benign [%]"][1::2] == ("42.80", "86.64", "85.71")
    assert rows["rms(x_RED - x) [1/255]"][1] == "–"
    assert "fashion_mnist" in numbers.notes[0]
    assert "ImageNet" in numbers.notes[0]
    assert {row[1] for row in conclusions.rows} == {"holds"}


def test_unreliable_numbers_of_the_paper_are_marked() -> None:
    card = run()
    (doubt,) = card.paper_doubts
    assert (doubt["measure"], doubt["column"]) == ("d(f(x'), f(x'_RED))", "CDD-RED")
    text = card_markdown(card)
    assert "78.21†" in text
    assert "7821" in text
    assert text.count("†") == 2  # the cell and its note


def test_markdown_says_what_failed_and_what_to_know() -> None:
    card = run(lambda c, _, metrics: metrics | ({"test/d": 1.0} if c == "DS" else {}))
    text = card_markdown(card)
    assert "| d: DO < CDD-RED < DS | fails | holds |" in text
    assert "[fails]" in text
    assert "CW" in text
    assert "One seed" in text
    assert "method=cdd_red" in text


def test_figure_has_two_panels_per_measure_of_the_paper() -> None:
    figure = card_figure(run())
    assert len(figure.axes) == 10
    assert [axes.get_title(loc="left") for axes in figure.axes[:5]] == list(dict.fromkeys(TITLES[k] for k in TITLES))


def test_every_predicate_names_columns_and_measures_that_exist() -> None:
    study: Study = table1(SCALES)
    measures = {m.title for m in study.measures if m.in_paper}
    for predicate in study.predicates:
        for relation in predicate.relations:
            assert relation.measure in measures
            assert {relation.left, relation.right} <= set(RUNS)
