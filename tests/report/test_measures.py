"""What is told of rows: the right numbers in the right cells, and nothing of what a defence cannot do."""

import pytest
from report_rows import made_up

from redlab.metrics import Samples, auroc, cell_mean, numbers, tpr_at_fpr, worst
from redlab.report.measures import accuracies, headline, tables
from redlab.report.tables import number, percent


def told(rows):
    return {table.title: table for table in tables(rows)}


def cells(table):
    """Line -> header -> cell."""
    return {line: dict(zip(table.columns[1:], row, strict=True)) for line, *row in table.rows}


def test_a_line_for_each_attacker_the_worst_first():
    rows = made_up("restorer", settings={"pgd": ("eps 4", "eps 8")})
    table = told(rows)["Accuracy"]
    found = cells(table)
    assert list(found) == [
        "every attacker", "all attacks", "fgsm", "pgd eps 4", "pgd eps 8", "pgd (adaptive)", "no attack",
    ]  # fmt: skip
    assert table.columns == ("attack", "clean", "attacked", "restored")
    told_by_victim = rows.where(attacked=1, knowledge="victim")
    assert found["all attacks"]["restored"] == percent(told_by_victim.mean("right"))
    assert found["pgd eps 8"]["attacked"] == percent(rows.where(setting="eps 8").mean("right_attacked"))
    assert found["pgd (adaptive)"]["restored"] == percent(rows.where(knowledge="defence").mean("right"))
    assert found["no attack"] == {
        "clean": percent(rows.where(attacked=0).mean("right_clean")),
        "attacked": "–",  # nothing is
        "restored": percent(rows.where(attacked=0).mean("right")),
    }
    assert found["every attacker"] == {"clean": "–", "attacked": "–", "restored": percent(worst(rows).mean("right"))}
    assert table.notes[0] == "adaptive: the attacker knows the defence."
    assert not [note for note in told(made_up("restorer", adaptive=()))["Accuracy"].notes if "adaptive" in note]


def test_the_answer_of_the_whole_defence_has_its_own_column_where_it_is_another():
    assert list(accuracies(made_up("restorer"))) == ["clean", "attacked", "restored"]
    assert list(accuracies(made_up("labeler"))) == ["clean", "attacked", "defended"]
    both = made_up("restorer", "labeler")
    found = accuracies(both)
    assert list(found) == ["clean", "attacked", "restored", "defended"]
    fgsm = both.where(attack="fgsm")
    assert (found["restored"]["fgsm"], found["defended"]["fgsm"]) == (fgsm.mean("right_restored"), fgsm.mean("right"))
    assert "every attacker" not in found["restored"]


@pytest.mark.parametrize(
    ("can", "titles"),
    [
        (("restorer",), ["Accuracy", "Restoration", "Prediction alignment"]),
        (("labeler",), ["Accuracy"]),
        (("detector",), ["Accuracy", "Detection"]),
        (("detector", "identifier"), ["Accuracy", "Detection", "Identification"]),
    ],
    ids=lambda value: "+".join(value),
)
def test_no_table_of_what_a_defence_cannot_do(can, titles):
    assert [table.title for table in tables(made_up(*can))] == titles


def test_nothing_is_told_of_no_rows():
    assert tables(Samples({})) == headline(Samples({})) == []


def test_restoration_is_a_mean_over_images_and_alignment_one_over_cells():
    rows = made_up("restorer", victims=("a", "b"))
    rows = rows.take((rows["victim"] == 0) | (rows["image"] < 3))  # cells of two sizes
    attacked = rows.where(attacked=1, knowledge="victim")
    assert cell_mean(attacked, "pa_adv") != pytest.approx(attacked.mean("pa_adv"))
    found = told(rows)
    assert cells(found["Prediction alignment"])["all attacks"]["PA adv"] == percent(cell_mean(attacked, "pa_adv"))
    assert cells(found["Restoration"])["all attacks"]["d(x, restored)"] == number(attacked.mean("d"))


def test_detection_sets_every_attacker_against_the_clean_images():
    rows = made_up("detector", n=60)
    clean, pgd = rows.where(attacked=0), rows.where(attack="pgd")
    found = cells(told(rows)["Detection"])
    for line, knowledge in (("pgd", "victim"), ("pgd (adaptive)", "defence")):
        both = Samples.cat([clean, pgd.where(knowledge=knowledge)])
        alarms = percent(pgd.where(knowledge=knowledge).mean("alarm"))
        assert found[line] == {
            "AUROC": number(auroc(both, "odds")),
            "TPR at 1 % FPR": percent(tpr_at_fpr(both, "odds")),
            "alarms": alarms,
        }
    assert found["no attack"] == {"AUROC": "–", "TPR at 1 % FPR": "–", "alarms": percent(clean.mean("alarm"))}
    two = told(made_up("detector", scores=("odds", "size")))["Detection"]
    assert two.columns[1:] == ("AUROC", "TPR at 1 % FPR", "AUROC size", "TPR at 1 % FPR size", "alarms")


def test_a_control_is_no_attack_and_no_clean_image():
    rows = made_up("detector", controls=("noise",), n=40)
    noise, clean, pgd = rows.where(attack="noise"), rows.clean, rows.where(attack="pgd", knowledge="victim")
    assert rows.attacks == ("clean", "fgsm", "pgd", "noise")
    found = cells(told(rows)["Detection"])
    assert list(found)[-2:] == ["noise (control)", "no attack"]
    assert found["noise (control)"] == {"AUROC": "–", "TPR at 1 % FPR": "–", "alarms": percent(noise.mean("alarm"))}
    assert found["no attack"]["alarms"] == percent(clean.mean("alarm"))
    assert found["pgd"]["AUROC"] == number(auroc(Samples.cat([pgd, clean]), "odds"))
    assert cells(told(rows)["Accuracy"])["noise (control)"]["attacked"] == percent(noise.mean("right_attacked"))
    assert "control: the image is changed, not attacked." in told(rows)["Accuracy"].notes
    assert headline(rows)[-1].value == clean.mean("right_clean")
    values = numbers(rows)
    assert values["auroc/pgd"] == auroc(Samples.cat([pgd, clean]), "odds")
    assert values["clean_accuracy"] == clean.mean("right_clean")
    assert values["alarm_rate/noise"] == noise.mean("alarm")
    assert "auroc/noise" not in values


def test_identification_says_which_attacks_were_not_trained_on():
    rows = made_up("identifier", adaptive=(), known=("pgd", "cw"))
    table = told(rows)["Identification"]
    found = cells(table)
    assert found["fgsm"]["identified"] == "unseen"
    assert found["pgd"]["identified"] == percent(rows.where(attack="pgd").mean("identified"))
    counts = {name: len(rows.where(attack="fgsm", said=name)) for name in ("clean", "pgd", "cw")}
    most = max(counts, key=lambda name: counts[name])
    most = "no attack" if most == "clean" else most
    assert found["fgsm"]["most often taken for"] == f"{most} ({percent(max(counts.values()) / 12)})"
    assert any(note.startswith("unseen: ") for note in table.notes)
    everything = told(made_up("identifier"))["Identification"]
    assert not any(note.startswith("unseen: ") for note in everything.notes)


def test_each_network_has_a_column_where_there_are_several():
    rows = made_up("restorer", victims=("lenet", "vgg"))
    table = told(rows)["Accuracy per network, restored"]
    assert table.columns == ("attack", "lenet", "vgg")
    assert cells(table)["pgd"]["vgg"] == percent(
        rows.where(attack="pgd", knowledge="victim", judge="vgg").mean("right")
    )


def test_the_headline_is_the_worst_case_with_the_mean_beside_it():
    rows = made_up("restorer")
    tiles = {tile.text: tile.value for tile in headline(rows)}
    attacked = rows.where(attacked=1)
    assert list(tiles.items()) == [
        ("restored, under every attacker", worst(rows).mean("right")),
        ("restored, mean over attacks", attacked.where(knowledge="victim").mean("right")),
        ("restored, attacker knows the defence", attacked.where(knowledge="defence").mean("right")),
        ("attacked, no defence", attacked.where(knowledge="victim").mean("right_attacked")),
        ("no attack, restored", rows.where(attacked=0).mean("right")),
        ("no attack, no defence", rows.where(attacked=0).mean("right_clean")),
    ]


def test_the_headline_says_what_was_not_measured():
    first, _, adaptive, *_ = headline(made_up("detector", adaptive=()))
    assert first.text == "defended, under every attacker, none of whom knows the defence"
    assert adaptive == ("defended, attacker knows the defence", None, "defended")
    assert [tile.text for tile in headline(made_up("labeler", attacks=(), adaptive=()))] == [
        "no attack, defended",
        "no attack, no defence",
    ]
