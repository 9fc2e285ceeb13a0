"""What a user sets for the Trainer or the loggers acts, beside what redlab needs itself."""

import csv
import json
import shutil
import sys
import types

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from faults.kill import METHODS as ALL
from redlab.runs import checkpoints, loggers, trainer
from redlab.runs import train as training
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise

CALLBACKS = "lightning.pytorch.callbacks"


class Watch(Callback):
    """Counts the batches that it sees."""

    seen: dict[str, int] = {}  # noqa: RUF012  # of the class: the instance is made from the config

    def __init__(self, word):
        self.word = word

    def on_train_batch_end(self, *args):
        self.seen[self.word] = self.seen.get(self.word, 0) + 1

    def on_test_batch_end(self, *args):
        self.seen["test"] = self.seen.get("test", 0) + 1


@pytest.fixture
def watch(monkeypatch):
    """The batches that callbacks of a user's module have seen."""
    module = types.ModuleType("users_callbacks")
    module.Watch = Watch
    monkeypatch.setitem(sys.modules, "users_callbacks", module)
    monkeypatch.setattr(Watch, "seen", {})
    return Watch.seen


@pytest.fixture
def run(tiny, no_report, tmp_path):
    """Trains with some words, gives the folder."""

    def train(*words, out="run"):
        training.train(finalise(compose([*tiny, "mix=attunet", *words])), tmp_path / out)
        return tmp_path / out

    return train


@pytest.mark.slow
def test_callbacks_loggers_and_a_profile_act_together(run, watch, tmp_path, monkeypatch):
    """In one run, for its cost: what they leave does not overlap."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kept = f"{{_target_: {CALLBACKS}.ModelCheckpoint, filename: mine, save_weights_only: true, every_n_epochs: 1}}"
    out = run(
        f"+trainer.callbacks=[{{_target_: users_callbacks.Watch, word: mine}},{kept}]",
        "+trainer.profiler=simple",
        "logger=[csv,wandb]",
    )
    assert watch == {"mine": 4, "test": watch["test"]}
    assert watch["test"] > 0
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}  # ours, beside the user's
    assert list(out.rglob("mine.ckpt"))
    for stage in ("fit", "test"):
        assert "on_after_batch_transfer" in (out / f"{stage}-profile.txt").read_text()
    assert "train/loss" in (out / "csv" / "version_0" / "metrics.csv").read_text()
    assert (out / "wandb_id.txt").read_text() in str(*out.glob("wandb/offline-run-*"))
    assert not list(tmp_path.glob("lightning_logs"))
    watch.clear()
    assert training.evaluate(out, [], tmp_path / "again") == json.loads((out / "metrics.json").read_text())
    assert not watch  # a callback belongs to the training: a file may not name what is called
    typed = ["+trainer.callbacks=[{_target_: users_callbacks.Watch, word: mine}]"]
    training.evaluate(out, typed, tmp_path / "typed")
    assert watch.keys() == {"test"}
    assert not list((tmp_path / "again").rglob("*.ckpt"))


def test_what_a_user_adds_to_the_trainer(watch, tmp_path):
    words = ["+trainer.callbacks=[{_target_: users_callbacks.Watch, word: mine}]", "+trainer.profiler=simple"]
    cfg = finalise(compose([*words, "trainer.enable_progress_bar=false", "trainer.enable_model_summary=true"]))
    made = trainer.make_trainer(cfg, tmp_path, [checkpoints.RunRecord(cfg, {}, {})], [])
    names = {type(callback).__name__ for callback in made.callbacks}
    assert {"Watch", "RunRecord", "RichModelSummary"} <= names  # Lightning's own summary is in a log that nobody sees
    assert str(made.profiler.dirpath) == str(tmp_path)


@pytest.mark.slow
def test_a_profiler_as_a_node(run, tmp_path):
    node = "{_target_: lightning.pytorch.profilers.AdvancedProfiler, line_count_restriction: 5}"
    out = run(f"+trainer.profiler={node}", "trainer.limit_train_batches=1")
    assert "training_step" in (out / "fit-profile.txt").read_text()
    node = "{_target_: lightning.pytorch.profilers.SimpleProfiler, filename: mine}"
    assert (run(f"+trainer.profiler={node}", "trainer.limit_train_batches=1", out="other") / "fit-mine.txt").is_file()


def steps(out):
    """Steps and epochs of the last checkpoint."""
    last = checkpoints.read_checkpoint(out / "checkpoints" / "last.ckpt")
    return last["global_step"], last["epoch"] + 1


def logged(out, key):
    rows = csv.DictReader((out / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    return [(int(row["epoch"]), int(row["step"])) for row in rows if row.get(key)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "ends", "validated"),
    [
        (["+trainer.max_steps=6"], (6, 2), None),
        (["trainer.max_epochs=null", "+trainer.max_steps=6"], (6, 2), None),
        (["+trainer.max_time={hours: 9}"], (12, 3), None),
        (["+trainer.accumulate_grad_batches=2"], (6, 3), None),
        (["+trainer.check_val_every_n_epoch=2"], (12, 3), [(1, 7)]),
        (["+trainer.val_check_interval=0.5"], (12, 3), [(e, 4 * e + s) for e in range(3) for s in (1, 3)]),
        (["+trainer.reload_dataloaders_every_n_epochs=1"], (12, 3), [(e, 4 * e + 3) for e in range(3)]),
        (["trainer.limit_train_batches=3"], (9, 3), [(e, 3 * e + 2) for e in range(3)]),
        (["+trainer.detect_anomaly=true"], (12, 3), None),
        (["+trainer.min_epochs=3", "trainer.enable_model_summary=true"], (12, 3), None),
        (["+trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.1"], (12, 3), None),
        (
            [f"+trainer.callbacks={{_target_: {CALLBACKS}.EarlyStopping, monitor: val/d, mode: max, patience: 1, "
             "min_delta: 1e9}"],
            (8, 2),
            [(0, 3), (1, 7)],
        ),
    ],
)  # fmt: skip
def test_an_argument_of_the_trainer_acts(run, words, ends, validated):
    out = run("trainer.max_epochs=3", *words)
    assert steps(out) == ends
    if validated is not None:
        assert logged(out, "val/d") == validated
    assert (out / "metrics.json").is_file()


@pytest.mark.slow
def test_a_time_that_is_over_at_once(run):
    with pytest.raises(ConfigError, match=r"trainer.max_time, or another limit, ended the run before an epoch"):
        run("+trainer.max_time={seconds: 0}")


@pytest.mark.slow
def test_a_bar_of_the_users_takes_the_place_of_ours(tmp_path):
    bar = f"+trainer.callbacks=[{{_target_: {CALLBACKS}.TQDMProgressBar}}]"
    made = trainer.make_trainer(finalise(compose([bar])), tmp_path, [], [])
    assert type(made.progress_bar_callback).__name__ == "TQDMProgressBar"


def test_tensorboard_that_is_not_there_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    cfg = finalise(compose(["logger=[csv,tensorboard]", "victim_training.max_epochs=1"]))
    with pytest.raises(ImportError, match=r"needs the package tensorboard: pip install 'redlab\[tensorboard\]'"):
        training.train(cfg, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tensorboard_writes_beside_the_others(run, tmp_path):
    out = run("logger=[csv,tensorboard]")
    assert list(out.glob("tensorboard/version_0/events.out.*"))
    assert "train/loss" in (out / "csv" / "version_0" / "metrics.csv").read_text()


def test_a_users_own_logger_gets_what_it_takes(tmp_path):
    node = "{_target_: lightning.pytorch.loggers.CSVLogger, flush_logs_every_n_steps: 1}"
    made = loggers.make_loggers(finalise(compose([f"+logger.mine={node}"])), tmp_path)
    assert [logger.save_dir for logger in made] == [str(tmp_path)] * 2


@pytest.mark.slow
def test_a_report_without_curves_says_so(tiny, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(training, "run_report", lambda out, **rest: said.append(rest["summary"]) or out)
    training.train(finalise(compose([*tiny, "mix=attunet", "logger=none"])), tmp_path / "run")
    assert said[0].endswith("No curves: they are those of logger=csv.")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("method", ["cdd_red", "gred"])
def test_a_compiled_run_is_the_run(method, victim_root, no_report, tmp_path):
    """The same weights up to rounding, under the same names; by SGD, since Adam makes steps of gradients that are 0."""
    given = [
        f"method={method}",
        *ALL[method],
        "optim@method.optimizer=sgd",
        "data.limit_train=64",
        "data.limit_test=16",
    ]
    given += ["data.batch_size=32", "trainer.max_epochs=1", "trainer.accelerator=cpu", f"victim_root={victim_root}"]
    given += ["trainer.enable_progress_bar=false", "victim_training.max_epochs=1", "victim_training.limit_train=96"]
    left = []
    for switch in ("false", "true"):
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        training.train(finalise(compose([*given, f"compile={switch}"])), tmp_path / switch)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > before) == (switch == "true")
        left.append(checkpoints.read_checkpoint(tmp_path / switch / "checkpoints" / "last.ckpt")["state_dict"])
    assert left[0].keys() == left[1].keys()
    for key, value in left[0].items():
        torch.testing.assert_close(left[1][key], value, rtol=1e-3, atol=1e-4)
