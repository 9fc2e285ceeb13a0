"""What wandb is told, read back from the file of an offline run."""

import csv
import json
import struct
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader
from wandb.proto import wandb_internal_pb2

from faults.kill import METHODS as ALL
from redlab.methods import Method
from redlab.runs import monitors
from redlab.runs import train as training
from redlab.runs.config import compose, finalise
from redlab.runs.dashboard import FRONT, Dashboard
from redlab.runs.loggers import make_loggers

PLAIN = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "data.limit_train=64", "data.limit_val=24"]
PLAIN += ["data.limit_test=16", "data.batch_size=32", "trainer.max_epochs=2", "victim_training.max_epochs=1"]
PLAIN += ["victim_training.limit_train=96", "logger=wandb"]
BLOCK = 32768  # of the file's format, a log of records that a block may cut


def records(data):
    place, whole = 7, b""  # behind the head
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if place + 7 + length > len(data):
            return  # the last one is still being written
        whole, place = whole + data[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # the whole of a record, or its end
            yield whole
            whole = b""


def read_back(out):
    """History, summary, config, files and the place of a run, out of its file, which wandb's own process writes."""
    limit = time.monotonic() + 60
    while "exit" not in (found := _read(out)):
        assert time.monotonic() < limit, "the file has no end"
        time.sleep(0.1)
    return found


def _read(out):
    (path,) = out.glob("wandb/offline-run-*/run-*.wandb")
    found = {"history": [], "summary": {}, "config": {}, "files": [], "metrics": []}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found["history"].append(plain(record.history.item))
        elif kind == "summary":
            found["summary"] |= plain(record.summary.update)
        elif kind == "run":
            found["config"] |= plain(record.run.config.update)
            found |= {"group": record.run.run_group, "job": record.run.job_type, "tags": list(record.run.tags)}
            found |= {"id": record.run.run_id, "name": record.run.display_name}
        elif kind == "config":
            found["config"] |= plain(record.config.update)
        elif kind == "files":
            found["files"] += [file.path for file in record.files.files]
        elif kind == "metric":
            found["metrics"].append((record.metric.name or record.metric.glob_name, record.metric.step_metric))
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def plain(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def scalars(found):
    """The keys of curves and single numbers; not wandb's own, nor the parts of pictures and tables."""
    keys = {key for row in found["history"] for key, value in row.items() if isinstance(value, (int, float))}
    media = {key.rpartition("/")[0] for row in found["history"] for key in row if key.endswith("/_type")}
    own = {key for key in keys if key.startswith("_") or key == "trainer/global_step"}
    return {key for key in keys - own if key.rpartition("/")[0] not in media}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def run(tmp_path, victim_root, no_report, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def go(method, *words, out="run"):
        given = [*PLAIN, f"method={method}", *ALL[method], f"victim_root={victim_root}", *words]
        numbers = training.train(finalise(compose(given)), tmp_path / out)
        return tmp_path / out, numbers

    return go


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_what_is_promised_is_there(run, method):
    out, numbers = run(method)
    found, config = read_back(out), OmegaConf.to_container(OmegaConf.load(out / "config.yaml"))
    keys = scalars(found)
    assert len(keys) <= 40, sorted(keys)
    assert {"epoch", "train/loss", "speed/images_per_second", "speed/crafting_share"} <= keys
    assert any(key.startswith("lr-") for key in keys)
    assert any(key.startswith("train/grad_norm") for key in keys)
    assert {key for key in numbers if key.removeprefix("test/") in FRONT} <= keys
    assert all(0 <= row["speed/crafting_share"] <= 1 for row in found["history"] if "speed/crafting_share" in row)
    # the summary is that of the test of the best checkpoint
    assert {key: found["summary"][key] for key in numbers if key.removeprefix("test/") in FRONT} == {
        key: value for key, value in numbers.items() if key.removeprefix("test/") in FRONT
    }
    assert found["summary"]["headline"] == numbers["test/worst_accuracy"]
    assert any(key.startswith("best/") for key in found["summary"])
    # everything else stands in tables
    assert found["summary"]["numbers/nrows"] == len(numbers)
    assert found["summary"]["rows/nrows"] > 0
    assert any(file.startswith("media/table/rows") for file in found["files"])
    # the config once, as resolved
    assert {key: found["config"][key] for key in config if key not in ("name", "init")} == {
        key: value for key, value in config.items() if key not in ("name", "init")
    }
    assert {key for key in found["config"] if not key.startswith("_wandb")} == {*config, "commit"}
    assert found["tags"] == list(dict.fromkeys([method, "digits", config["choices"]["mix"]]))
    assert (found["job"], found["name"], found["exit"]) == ("train", "run", 0)
    assert found["id"] == (out / "wandb_id.txt").read_text()
    assert ("val/*", "epoch") in found["metrics"]
    pictures = [file for file in found["files"] if "val_images" in file]
    restores = {"cdd_red", "do", "ds", "redrl", "attunet_gan", "hgd", "add_defense", "ape_gan"}
    assert len(pictures) == (2 if method in restores else 0)
    said = {key.partition("/")[0] for key in found["summary"] if key.endswith("_table/_type")}
    assert ("confusion_table/_type" in found["summary"]) == method.startswith("redrl"), said
    assert any("roc/" in key for key in found["summary"]) == method.startswith(("redrl", "gred"))


@pytest.mark.slow
def test_an_evaluation_stands_beside_what_it_judges(run, tmp_path):
    out, _ = run("cdd_red")
    training.evaluate(out, ["logger=wandb", "data.limit_test=8"], tmp_path / "judged")
    found = read_back(tmp_path / "judged")
    assert (found["job"], found["group"]) == ("evaluate", (out / "wandb_id.txt").read_text())
    assert found["config"]["judges_run"] == (out / "wandb_id.txt").read_text()
    assert found["config"]["judges_checkpoint"] == "best.ckpt"
    assert found["id"] != found["group"]


@pytest.mark.slow
def test_a_run_that_fails_says_so(run, monkeypatch):
    monkeypatch.setattr("redlab.methods.CDDRED.training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("cdd_red")


def test_jobs_of_a_sweep_stand_together(tmp_path):
    (tmp_path / "my_sweep" / "0_seed-0").mkdir(parents=True)
    (tmp_path / "my_sweep" / "sweep.yaml").write_text("")
    (logger,) = make_loggers(finalise(compose(["logger=wandb"])), tmp_path / "my_sweep" / "0_seed-0")
    assert logger._wandb_init["group"] == "my_sweep"
    (logger,) = make_loggers(
        finalise(compose(["logger=wandb", "logger.wandb.group=mine"])), tmp_path / "my_sweep" / "0_seed-0"
    )
    assert logger._wandb_init["group"] == "mine"


def test_without_a_key_it_stays_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(type(wandb.api), "api_key", None, raising=False)
    logger = Dashboard(offline=False, save_dir=str(tmp_path))
    assert logger._offline
    monkeypatch.setattr(type(wandb.api), "api_key", "key", raising=False)
    assert not Dashboard(offline=False, save_dir=str(tmp_path))._offline
    assert isinstance(logger, WandbLogger)


def test_the_front_row_is_what_is_asked_for():
    board = Dashboard(monitor="val/psnr")
    assert all(map(board.in_front, ["train/anything", "lr-Adam", "epoch", "val/d", "test/auroc", "val/psnr"]))
    assert not any(map(board.in_front, ["val/cosine", "test/psnr", "val/d/pgd", "test/d/pgd/lenet"]))


def test_the_pace_of_an_epoch(monkeypatch):
    """Three steps of 1 s that are crafted for 3 s each: by hand, on two ranks, without the validation between."""
    clock, logged = [0.0], {}
    monkeypatch.setattr(monitors.time, "perf_counter", lambda: clock[0])
    trainer = SimpleNamespace(world_size=2)
    module = SimpleNamespace(log_dict=lambda found, **_: logged.update(found))
    pace = monitors.Pace()
    pace.on_train_epoch_start(trainer, module)
    for step in range(3):
        clock[0] += 3
        pace.on_train_batch_start(trainer, module, range(8), step)
        clock[0] += 1
        pace.on_train_batch_end(trainer, module, None, range(8), step)
        clock[0] += 100 * (step == 1)
        pace.on_validation_end(trainer, module)
    pace.on_train_epoch_end(trainer, module)
    assert logged == {"speed/images_per_second": 2 * 24 / 12, "speed/crafting_share": 0.75}


@pytest.mark.parametrize("players", [1, 2])
def test_only_steps_that_a_logger_writes_are_logged(players, tmp_path, monkeypatch):
    """Lightning's ``log`` is called in every third step alone, and the file is the same as where it always is.

    The norm of the gradients is that of the step in whose row it stands: by hand, from the loss of that step.
    """

    class Toy(Method):
        validation_step = None

        def __init__(self, every):
            several = {"a": partial(torch.optim.SGD, lr=0.1), "b": partial(torch.optim.SGD, lr=0.2)}
            super().__init__(optimizer=several if players == 2 else several["a"])
            self.a, self.b, self.every, self.steps = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), every, 0
            self.players = {"a": [self.a], "b": [self.b]} if players == 2 else {}

        def on_train_epoch_end(self):  # whatever is not of a step is always logged
            super().on_train_epoch_end()
            self.log("end", float(self.steps))

        @property
        def logs_now(self):
            return self.every or super().logs_now

        def training_step(self, batch, batch_idx):
            self.steps += 1
            loss = self.steps * self.a.weight.sum() + (self.b.weight.sum() if players == 1 else 0)
            self.log_dict({"train/loss": loss, "train/step": float(self.steps)})
            if players == 1:
                return loss
            self.play("a", loss)
            return self.play("b", self.b.weight.sum())

    def fit(every, folder):
        calls = []
        log = LightningModule.log
        monkeypatch.setattr(
            LightningModule, "log", lambda self, name, *a, **k: (calls.append(name), log(self, name, *a, **k))[1]
        )
        torch.manual_seed(0)
        logger = CSVLogger(folder)
        options = {"logger": logger, "log_every_n_steps": 3, "max_epochs": 2, "enable_checkpointing": False}
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
        trainer = Trainer(callbacks=[monitors.Pace()], default_root_dir=folder, **options, **quiet)
        trainer.fit(Toy(every), DataLoader(torch.zeros(5), batch_size=1))
        assert trainer.callback_metrics["end"] == 10
        monkeypatch.setattr(LightningModule, "log", log)
        with (Path(logger.log_dir) / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        kept = [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows if row["train/loss"]]
        return calls.count("train/loss"), kept

    few, rows = fit(False, tmp_path / "few")
    many, other = fit(True, tmp_path / "many")
    assert (few, many) == (3, 10)
    assert rows == other
    assert [float(row["train/step"]) for row in rows] == [3, 6, 9]
    key = "train/grad_norm_a" if players == 2 else "train/grad_norm"
    for row in rows:  # the gradient of s * a (+ b) is s (and 1)
        assert float(row[key]) == pytest.approx((float(row["train/step"]) ** 2 + (players == 1)) ** 0.5)
