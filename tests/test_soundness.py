"""The checks of a defence's numbers: an honest one passes, planted frauds do not."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

import redlab
from redlab.attacks import PGD
from redlab.batch import Key
from redlab.crafting import Component
from redlab.metrics import Samples
from redlab.report.checks import by_chance, graded, of_rows, table_of
from redlab.runs import soundness
from redlab.runs.diagnose import DEMO
from redlab.soundness import Examination

EPS = 24 / 255


@pytest.fixture(scope="module")
def demo():
    return redlab.load(DEMO)


@pytest.fixture(scope="module")
def images(demo):
    """(test, held): 24 images of each."""
    data = demo.run.data
    data.setup_data()

    def some(source, rows):
        raw = source.__getitems__([Key(int(i), 0, True) for i in rows[:24]])
        return raw.image.float() / 255, raw.label

    return some(data.splits.test, data.indices["test"]), some(data.splits.train, data.indices["val"])


class Restorer(nn.Module):
    def restore(self, x):
        return self.estimate(x)


class Blur(Restorer):
    """Honest, and no great help."""

    def estimate(self, x):
        return F.avg_pool2d(x, 3, stride=1, padding=1)


class Masks(Restorer):
    """Rounds to five levels: there is no gradient at all."""

    def estimate(self, x):
        return torch.round(x * 4) / 4


class Draws(Restorer):
    """Adds noise anew at every call."""

    def estimate(self, x):
        return (x + 0.4 * torch.randn_like(x)).clamp(0, 1)


class Remembers(Restorer):
    """Gives back the nearest of the test images, which it has seen."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def estimate(self, x):
        distance = torch.cdist(x.flatten(1), self.seen.flatten(1))
        # a soft choice, so that there is a gradient to be had
        return (F.softmax(-20 * distance, dim=1) @ self.seen.flatten(1)).view_as(x)


class ReadsTheFile(nn.Module):
    """Calls attacked what is not on the grid of 8 bits, as files are and attacks in memory are not."""

    attack_names = ("clean", "pgd")

    def attack_logits(self, x):
        off = (255 * x - (255 * x).round()).abs().amax((1, 2, 3))
        return torch.stack([torch.full_like(off, 0.01), off], dim=1) * 100


def verdicts(defence, demo, images, held=True, **more):
    test, other = images
    examined = Examination(
        defence=defence, victims=demo.run.victims, test=test, held=other if held else None, eps=EPS, **more
    )
    return {check.name: check for check in examined.checks()}


@pytest.mark.slow
def test_an_honest_defence_has_no_red_check(demo, images):
    """Its numbers are bad, and say so; of 24 images 40 steps leave two more than 200 find."""
    enough = {"enough": Component(attack=PGD(eps=EPS, step_size=EPS / 10, steps=200), knowledge="defence")}
    found = verdicts(Blur(), demo, images, attackers=enough)
    assert {name: check.found for name, check in found.items() if check.verdict == "red"} == {}
    assert len(found) == 14
    assert found["unbounded, nothing is left"].found == "0.0 %"
    assert found["five runs give the same answer"] == ("five runs give the same answer", "yes", "green")
    assert found["a planted example is found"].verdict == "green"
    assert found["gradients agree with finite differences"].verdict == "green"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fraud", "named"),
    [
        (Masks(), {"gradients agree with finite differences", "the exact gradient is the best one"}),
        (Draws(), {"five runs give the same answer", "a fixed seed protects as fresh ones do"}),
        (ReadsTheFile(), {"8 bits change nothing"}),
        (None, {"images held out are restored as well"}),
    ],
    ids=["masks", "draws", "reads the file", "remembers"],
)
def test_a_fraud_turns_a_named_check_red(demo, images, fraud, named):
    fraud = Remembers(images[0][0]) if fraud is None else fraud
    found = verdicts(fraud, demo, images)
    assert named <= {name for name, check in found.items() if check.verdict == "red"}, found


class DrawsElsewhere(Restorer):
    """From a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def estimate(self, x):
        return (x + 0.4 * torch.randn(x.shape, generator=self.generator)).clamp(0, 1)


class DrawsLittle(Restorer):
    """Far too little to change an answer."""

    def estimate(self, x):
        return (x + 0.002 * torch.randn_like(x)).clamp(0, 1)


@pytest.mark.parametrize(
    ("defence", "verdict"), [(Draws(), "red"), (DrawsLittle(), "green"), (DrawsElsewhere(), "amber")]
)
def test_what_comes_from_draws_alone_is_found_by_fixing_them(demo, images, defence, verdict):
    examined = Examination(defence=defence, victims=demo.run.victims, test=images[0], eps=EPS)
    state = torch.get_rng_state()
    (check,) = examined._fixed(1.0 if verdict == "red" else 0.0)
    assert check.verdict == verdict, check
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_an_attack_of_too_few_steps_is_red(demo, images):
    weak = {
        "weak": Component(attack=PGD(eps=EPS, step_size=EPS / 40, steps=2, random_start=False), knowledge="defence")
    }
    assert verdicts(Blur(), demo, images, held=False, attackers=weak)["more steps change nothing"].verdict == "red"
    enough = {"enough": Component(attack=PGD(eps=EPS, step_size=EPS / 10, steps=40), knowledge="defence")}
    assert verdicts(Blur(), demo, images, held=False, attackers=enough)["more steps change nothing"].verdict == "green"


# ---- of rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        # always the same: right on all of one kind, also where noise is of this kind
        ({"clean": 0, "fgsm": 0, "pgd": 0, "noise": 0}, "green"),
        ({"clean": 1, "fgsm": 1, "pgd": 1, "noise": 1}, "green"),
        ({"clean": 0, "fgsm": 1, "pgd": 0, "noise": 0}, "red"),
        ({"clean": 0, "fgsm": 1, "pgd": 2, "noise": 0}, "red"),
    ],
)
def test_who_learns_attacks_that_are_told_by_lot_is_red(said, verdict):
    names, many = ("clean", "fgsm", "pgd", "noise"), {"clean": 10, "fgsm": 100, "pgd": 30, "noise": 50}
    attack = torch.tensor([i for i, name in enumerate(names) for _ in range(many[name])])
    answer, truth = torch.tensor([said[name] for name in names])[attack], attack.where(attack < 3, 0)
    columns = {"attack": attack, "said": answer, "identified": (truth == answer).double()}
    columns |= {"attacked": (truth > 0).double(), "knowledge": torch.zeros(len(truth), dtype=torch.int64)}
    found = Samples(columns, {"attack": names, "said": names, "knowledge": ("victim", "defence")})
    (check,) = by_chance(found)
    assert check.verdict == verdict
    assert check.found.endswith("by chance 33.3 %")
    assert by_chance(Samples({})) == []
    (check,) = by_chance(Samples({"attack": truth}, {"attack": names}))
    assert (check.verdict, "names no attack" in check.found) == ("amber", True)


def rows(cells, alarm=None):
    """(attack, setting, knowledge, right_attacked, right) of cells of 100 images."""
    columns = {name: [] for name in ("attack", "setting", "knowledge", "right_attacked", "right", "image", "attacked")}
    attacks = ["clean", *dict.fromkeys(a for a, *_ in cells if a != "clean")]
    settings = ["", *dict.fromkeys(s for _, s, *_ in cells if s)]
    for attack, setting, knowledge, attacked, right in cells:
        for image in range(100):
            columns["attack"].append(attacks.index(attack))
            columns["setting"].append(settings.index(setting))
            columns["knowledge"].append(knowledge)
            columns["right_attacked"].append(float(image < 100 * attacked))
            columns["right"].append(float(image < 100 * right))
            columns["image"].append(image)
            columns["attacked"].append(float(attack != "clean"))
    tensors = {name: torch.tensor(values) for name, values in columns.items()}
    zeros = torch.zeros(len(tensors["image"]), dtype=torch.int64)
    tensors |= {"victim": zeros, "judge": zeros, "right_clean": torch.ones(len(zeros), dtype=torch.float64)}
    if alarm is not None:
        tensors["alarm"] = (tensors["image"] < 100 * alarm).double()
    names = {"attack": tuple(attacks), "setting": tuple(settings), "knowledge": ("victim", "defence")}
    return Samples(tensors, names | {"victim": ("net",), "judge": ("net",)})


CLEAN = ("clean", "", 0, 1.0, 0.99)


@pytest.mark.parametrize(
    ("cells", "alarm", "name", "verdict"),
    [
        ([CLEAN, ("pgd", "", 0, 0.0, 0.9), ("aware", "", 1, 0.0, 0.1)], None, "attacks work on the victim", "green"),
        ([CLEAN, ("pgd", "", 0, 0.6, 0.9), ("aware", "", 1, 0.0, 0.1)], None, "attacks work on the victim", "red"),
        ([CLEAN, ("pgd", "", 0, 0.0, 0.9)], None, "an attacker who knows the defence does better", "red"),
        (
            [CLEAN, ("pgd", "", 0, 0.0, 0.3), ("aware", "", 1, 0.0, 0.9)],
            None,
            "an attacker who knows the defence does better",
            "red",
        ),
        (
            [CLEAN, ("pgd", "", 0, 0.0, 0.9), ("aware", "", 1, 0.0, 0.1)],
            None,
            "an attacker who knows the defence does better",
            "green",
        ),
        ([("clean", "", 0, 1.0, 0.7), ("pgd", "", 0, 0.0, 0.9)], None, "clean images stay right", "red"),
        ([CLEAN, ("pgd", "", 0, 0.0, 0.9)], 0.5, "few false alarms", "red"),
        ([CLEAN, ("pgd", "", 0, 0.0, 0.9)], 0.01, "few false alarms", "green"),
        (
            [CLEAN, ("pgd", "eps=8/255", 0, 0.1, 0.9), ("pgd", "eps=16/255", 0, 0.6, 0.9)],
            None,
            "pgd grows with its budget",
            "red",
        ),
        (
            [CLEAN, ("pgd", "eps=16/255", 0, 0.1, 0.9), ("pgd", "eps=8/255", 0, 0.6, 0.9)],
            None,
            "pgd grows with its budget",
            "green",
        ),
        ([CLEAN, ("pgd", "", 0, 0.0, 0.9)], None, "enough images", "amber"),
    ],
)
def test_what_rows_tell(cells, alarm, name, verdict):
    found = {check.name: check for check in of_rows(rows(cells, alarm))}
    assert found[name].verdict == verdict, found[name]


def test_rows_that_tell_nothing():
    assert of_rows(Samples({})) == []
    names = {check.name for check in of_rows(rows([CLEAN, ("cw", "c=1", 0, 0.0, 0.5), ("cw", "c=2", 0, 0.0, 0.5)]))}
    assert "cw grows with its budget" not in names


def test_the_table():
    table = table_of(of_rows(rows([CLEAN, ("pgd", "", 0, 0.0, 0.9)])))
    assert table.columns == ("check", "found", "verdict")
    assert {row[2] for row in table.rows} <= {"green", "amber", "red"}
    assert [graded(value, 0.1, 0.2) for value in (0.1, 0.15, 0.2, 0.21)] == ["green", "amber", "amber", "red"]


@pytest.mark.parametrize(("test_on", "held"), [("test", True), ("val", False)])
def test_images_are_held_out_only_where_they_are_not_tested(demo, monkeypatch, test_on, held):
    asked = {}

    class Asked:
        def __init__(self, **given):
            asked.update(given)

        def checks(self, show):
            return []

    monkeypatch.setattr(soundness, "Examination", Asked)
    data = redlab.load(DEMO).run.data
    data.test_on = test_on
    data.setup_data()
    assert soundness.examined(OmegaConf.create(demo.run.config), demo, data) == []
    assert (asked["held"] is not None) == held
    assert asked["eps"] == data.mix.adaptive_eps


@pytest.mark.slow
def test_attacks_told_by_lot_are_checked_in_the_report(call, tiny, tmp_path):
    from redlab.runs.cli import evaluate, train

    words = [word for word in tiny if not word.startswith("method.")]
    words += ["method=redrl_image", "mix=attunet", "data.shuffle_attacks=true", "hydra.run.dir=out", "bank=null"]
    code, _, error = call(train, *words)
    assert code == 0, error
    page = (tmp_path / "out" / "report.html").read_text()
    assert "attacks told by lot are not learnt" in page
    assert "attacks anew for more" in page  # which trust=full would do
    more = ["trainer.enable_progress_bar=false", "data.limit_test=4"]
    code, said, error = call(evaluate, "run=out", "data=digits", "out=again", *more)  # a group that is composed afresh
    assert code == 0, error
    assert "attacks told by lot are not learnt" in said


def test_how_a_run_was_told_is_no_matter_of_its_evaluation(call):
    """Else an honest identifier would be called one that has learnt from nothing."""
    from redlab.runs.cli import evaluate

    code, _, error = call(evaluate, f"run={DEMO}", "data.shuffle_attacks=true", "out=out")
    assert (code, "data.shuffle_attacks is a matter of the training" in error) == (1, True)


@pytest.mark.slow
def test_trust_full_is_in_the_report(call, tmp_path):
    """Of a run that others made; what was measured is what stands in the page."""
    from redlab.runs.cli import evaluate

    words = ["bank=null", "only=pgd", "data.limit_test=16", "data.limit_val=16", "trainer.enable_progress_bar=false"]
    code, said, error = call(evaluate, f"run={DEMO}", "trust=full", "out=out", *words)
    assert code == 0, error
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Can these numbers be believed?" in page
    for name in ("unbounded, nothing is left", "a planted example is found", "8 bits change nothing"):
        assert name in page
    assert "attacks anew for more" not in page
    assert "Checking gradients" in said
    code, _, error = call(evaluate, "study=gred/fig3", "trust=full")
    assert (code, "goes with run=" in error) == (1, True)
    code, _, error = call(evaluate, f"run={DEMO}", "trust=half", "out=other")
    assert (code, "trust=half must be full" in error) == (1, True)
