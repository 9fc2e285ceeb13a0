"""A run from end to end: what it writes, what it counts, how it fails."""

import json
import math
import re
import sys
import types

import pytest
import torch
from torch import nn

from printed import ROOT, imported
from redlab import victims
from redlab.methods import CDDRED, NotFiniteError
from redlab.metrics import Samples, numbers, worst
from redlab.runs import build, checkpoints, lab, loading
from redlab.runs import train as training
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise
from redlab.studies import Card


def train(overrides, out):
    return training.train(finalise(compose(overrides)), out)


def classifier(tiny, *more):
    return [*(w for w in tiny if not w.startswith("method.")), "method=classifier", *more]


@pytest.fixture
def trained(finished_run):
    """The default run, but tiny, with its report."""
    return finished_run


def test_files(trained):
    out, _ = trained
    for name in ("config.yaml", "metrics.json", "report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (out / name).stat().st_size > 0
    figures = {p.stem: p.read_bytes()[:4] for p in (out / "figures").glob("*.png")}
    assert figures.keys() == {"restoration", "accuracy", "training"}
    assert set(figures.values()) == {b"\x89PNG"}
    assert not list(out.rglob("*.part"))
    report = (out / "report.html").read_text()
    assert report.count("data:image/png") == 3
    assert 'src="http' not in report
    assert len(list(out.rglob("metrics.csv"))) == 1


def test_the_numbers_are_those_of_the_rows_that_are_saved(trained):
    out, found = trained
    rows = Samples.load(out / "samples.npz")
    assert {f"test/{key}": value for key, value in numbers(rows).items()} == json.loads(
        (out / "metrics.json").read_text()
    )
    assert found["test/count"] == len(rows.where(knowledge="victim", attacked=1)) > 0
    assert found["test/worst_accuracy"] == worst(rows).mean("right")
    more = imported(ROOT / "docs" / "measures.md").of_a_run(out)
    assert more["worst of those who know the defence"] >= found["test/worst_accuracy"]
    assert more["clean on small_cnn"] == found["test/defended_accuracy/clean/small_cnn"]


def test_the_saved_config_is_resolved(trained):
    text = (trained[0] / "config.yaml").read_text()
    assert "${" not in text
    assert "limit_train: 64" in text


def test_a_run_says_in_a_few_lines_what_it_is(capsys, tmp_path):
    """Not the whole config, which has a hundred lines and is in the folder."""
    words = ["method=ds", "victim=[small_cnn,lenet]", "mix=attunet", "seed=3"]
    training._show_config(finalise(compose(words)), tmp_path / ("deep" * 30) / "run")
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert len(lines) <= 8
    for word in (
        "ds",
        "digits",
        "small_cnn, lenet",
        "attunet",
        "fgsm, rfgsm",
        "seed 3",
        " cuda" if torch.cuda.is_available() else " cpu",
    ):
        assert word in said
    assert any(line.endswith(str(tmp_path / ("deep" * 30) / "run")) for line in lines)  # whole, to be copied


def test_numbers(trained):
    out, found = trained
    stored = json.loads((out / "metrics.json").read_text())
    assert stored == found
    assert all(isinstance(value, float) and math.isfinite(value) for value in stored.values())
    for name in ("clean_accuracy", "attacked_accuracy", "restored_accuracy"):
        for key in (f"test/{name}", f"test/{name}/fgsm", f"test/{name}/pgd", f"test/adaptive_{name}/aware_pgd"):
            assert 0 <= stored[key] <= 1
    assert stored["test/adaptive_restored_accuracy"] == stored["test/adaptive_restored_accuracy/aware_pgd"] <= 1
    assert stored["test/restored_accuracy"] == pytest.approx(
        (stored["test/restored_accuracy/fgsm"] + stored["test/restored_accuracy/pgd"]) / 2
    )
    # 16 images, two attacks, one victim; clean images are counted apart
    counts = {k.removeprefix("test/"): v for k, v in stored.items() if "count" in k and "small_cnn" not in k}
    assert counts == {
        "count": 32,
        "count/clean": 16,
        "count/fgsm": 16,
        "count/pgd": 16,
        "adaptive_count": 16,
        "adaptive_count/aware_pgd": 16,
    }


def test_clean_accuracy_is_the_victims(trained):
    out, found = trained
    method = loading.load(out)
    _, data = build.build(finalise(compose(["data.limit_test=16"])), checkpoints.read_checkpoint(
        out / "checkpoints" / "best.ckpt")["redlab"]["victims"])  # fmt: skip
    data.setup_data()
    raw = next(iter(data._loader("test")))
    with torch.no_grad():
        right = (method.classifier(raw.image.float() / 255).argmax(1) == raw.label).float().mean()
    assert found["test/clean_accuracy"] == pytest.approx(float(right))


def test_the_same_run_gives_the_same_numbers(trained, tiny, no_report, tmp_path):
    assert train([*tiny, "logger=none", "trainer.num_sanity_val_steps=0"], tmp_path) == trained[1]
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.slow
def test_another_seed_gives_other_numbers(trained, tiny, no_report, tmp_path):
    other = train([*tiny, "logger=none", "seed=1"], tmp_path)
    assert other != trained[1]
    assert other["test/clean_accuracy"] == trained[1]["test/clean_accuracy"]  # same victim, same test images


@pytest.mark.parametrize("mix", ["clean", pytest.param("adversarial_training", marks=pytest.mark.slow)])
def test_classifier(tiny, tmp_path, mix):
    out = tmp_path / "run"
    found = train(classifier(tiny, f"mix={mix}", "victim=lenet"), out)
    assert {"test/clean_accuracy", "test/defended_accuracy"} <= found.keys()
    assert ("test/adaptive_attacked_accuracy/pgd" in found) == (mix != "clean")  # PGD on the classifier itself
    assert (out / "report.html").is_file()
    victim = victims.load(out / "checkpoints" / "best.ckpt")
    saved = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert victim.name == "lenet"
    assert victim.clean_accuracy is not None
    assert 0 <= victim.clean_accuracy <= 1
    assert victim.clean_accuracy in [float(v) for v in _tensors(saved["callbacks"])]
    again = training.evaluate(out, [], tmp_path / "again")
    assert again == found


def _tensors(callbacks):
    return [state["best_model_score"] for state in callbacks.values() if state.get("best_model_score") is not None]


@pytest.mark.slow
def test_a_trained_classifier_is_a_victim(tiny, no_report, tmp_path):
    train(classifier(tiny, "mix=clean", "victim=lenet"), tmp_path / "lenet")
    file = tmp_path / "lenet" / "checkpoints" / "best.ckpt"
    found = train([*tiny, "mix=attunet", "victim=lenet", f"victims.lenet.weights={file}"], tmp_path / "run")
    assert found["test/clean_accuracy"] == json.loads((tmp_path / "lenet" / "metrics.json").read_text())[
        "test/clean_accuracy"
    ]  # fmt: skip


def test_a_loss_that_is_not_finite_stops_the_run(tiny, no_report, tmp_path, monkeypatch):
    original = CDDRED.training_step

    def training_step(self, batch, batch_idx):
        return original(self, batch, batch_idx) * (math.nan if self.global_step == 5 else 1)

    monkeypatch.setattr(CDDRED, "training_step", training_step)
    with pytest.raises(NotFiniteError, match="not finite at step 5"):
        train([*tiny, "mix=attunet", "trainer.max_epochs=2"], tmp_path)
    last = checkpoints.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


class Shallow(nn.Module):
    """A user's own classifier."""

    def __init__(self, classes, pixels=32 * 32):
        super().__init__()
        self.linear = nn.Linear(pixels, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.slow
def test_a_users_own_module_as_victim(tiny, no_report, tmp_path, monkeypatch):
    module = types.ModuleType("users_victims")
    module.Shallow = Shallow
    monkeypatch.setitem(sys.modules, "users_victims", module)
    torch.save(Shallow(10).state_dict(), tmp_path / "shallow.pt")
    own = [
        "mix=attunet",
        "+victims.mine.backbone._target_=users_victims.Shallow",
        "+victims.mine.backbone.classes=10",
        f"+victims.mine.weights={tmp_path}/shallow.pt",
    ]
    found = train([*tiny, *own], tmp_path / "run")
    assert found["test/count/fgsm/mine"] == 16
    (tmp_path / "shallow.pt").unlink()  # the checkpoint holds it
    assert training.evaluate(tmp_path / "run", [], tmp_path / "again", ["users_victims.Shallow"]) == found


SMOKE = ["trainer.enable_progress_bar=false", "data.limit_train=64", "data.limit_test=8", "data.batch_size=32"]
SMOKE += ["victim=small_cnn", "method.width=4", "method.depth=3", "logger=none"]


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch, no_report):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow  # trains six methods
def test_a_study_trains_each_run_once_per_seed(in_a_folder, monkeypatch):
    done, really = [], lab.train
    monkeypatch.setattr(lab, "train", lambda cfg, out: done.append(out) or really(cfg, out))
    (card,) = lab.studies("cdd_red/table1", "smoke", [0, 1], SMOKE, in_a_folder / "results")
    assert len(set(done)) == 6
    path = in_a_folder / "results" / "cdd_red" / "table1_digits_smoke.json"
    assert Card.load(path) == card
    assert card.seeds == [0, 1]
    assert {len({run["identity"] for run in runs}) for runs in card.runs.values()} == {2}
    assert card.runs["DO"][0]["versions"].keys() > {"redlab", "torch"}
    assert "CDD-RED" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    next(done[0].glob("samples.npz")).write_bytes(b"PK")  # damaged rows are measured again
    (again,) = lab.studies("cdd_red/table1", "smoke", [0, 1], SMOKE, in_a_folder / "results")
    assert len(done) == 6
    assert again.numbers == card.numbers


def test_an_unknown_study_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"no study 'cdd_red/tabel1'; did you mean 'cdd_red/table1'"):
        lab.studies("cdd_red/tabel1", "smoke", [0], [], tmp_path)


def test_of_several_studies_one_that_fails_stops_no_other(in_a_folder, monkeypatch, capsys):
    def make(self, seeds, out):
        if self.study.id == "cdd_red/table1":
            raise RuntimeError("out of memory")
        claims = [{"verdict": verdict} for verdict in ("holds", "tie", "holds")]
        return types.SimpleNamespace(study=self.study.id, claims=claims)

    monkeypatch.setattr(lab.Lab, "make", make)
    monkeypatch.setattr(lab, "rehearse", lambda cfg: ({}, None))
    with pytest.raises(ConfigError, match=r"1 of 4 studies failed: cdd_red/table1"):
        lab.studies("cdd_red/table*[179]", "smoke", [0], [], in_a_folder)
    said = " ".join(capsys.readouterr().out.split())
    assert "RuntimeError: out of memory" in said
    assert re.search(r"cdd_red/tableA7 2 1 0 0", said)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_runs_do_not_merge(tiny, no_report, tmp_path, monkeypatch, mode):
    import wandb

    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    ids = []
    for name in ("a", "b"):
        train([*tiny, "mix=attunet", "logger=wandb"], tmp_path / name)
        assert wandb.run is None
        ids.append((tmp_path / name / "wandb_id.txt").read_text())
        assert (tmp_path / name / "metrics.json").is_file()
    assert ids[0] != ids[1]
    train([*tiny, "mix=attunet", "logger=wandb", "trainer.max_epochs=2"], tmp_path / "a")
    assert (tmp_path / "a" / "wandb_id.txt").read_text() == ids[0]
    if mode == "offline":
        assert {p.name.rsplit("-", 1)[1] for p in tmp_path.rglob("offline-run-*")} == set(ids)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mix.components.pgd.attack.steps=-3"], "pgd.attack.steps must be finite and in [1, inf], got -3"),
        (["mix.components.pgd.attack.eps=8"], "pgd.attack.eps=8 has no effect, since pgd.params.eps draws it"),
        (["mix.components.pgd.params.eps.uniform=[4,8]"], "did you mean 4/255?"),
        (
            ["mix=redrl", "mix.components.patch.settings=[{eps: 4/255, size: 4}, {eps: 4/255, size: 64}]"],
            "64",
        ),
        (["mix.components.pgd.target=10"], "pgd.target=10 does not exist: there are 10 classes"),
        (["mix=gred", "mix.components.deepfool_u.target=random"], "DeepFool is untargeted"),
    ],
)
def test_a_mix_that_does_not_fit_is_found_before_a_victim_is_trained(words, message, tiny, monkeypatch):
    def train_victim(*_):
        raise AssertionError("a victim was trained")

    monkeypatch.setattr(build, "_train_victim", train_victim)
    with pytest.raises(Exception, match=re.escape(message)):
        build.build(finalise(compose([*tiny, *words, "victim_root=nowhere"])))


def test_a_victim_by_a_name_that_breaks_keys(tiny):
    cfg = finalise(compose(tiny))
    cfg.victims = {"cnn 8/255": cfg.victims.small_cnn}
    with pytest.raises(ValueError, match=r"the name of a victim must be without '/', .* got 'cnn 8/255'"):
        build.build(cfg)


def test_validation_images_of_which_none_counts(tiny, no_report, tmp_path):
    """A mix that keeps what fooled alone, and an attack that fools nobody: there is no best checkpoint to be known."""
    weak = ["mix=digits", "mix.only_fooled=true", "mix.components.fgsm.params.eps={uniform: [0.0,0.0001]}"]
    with pytest.raises(ConfigError, match=r"No validation image counts for val/pa_benign.*mix.only_fooled=false"):
        train([*tiny, *weak, "~mix.components.pgd"], tmp_path)
