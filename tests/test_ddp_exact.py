"""Two processes are one run: the same weights on both, the images that one process crafts, an exact resume."""

import json
import os
import signal
import subprocess
import sys

import lightning as L
import pytest
import torch

from redlab.batch import AttackBatch
from redlab.metrics import Samples
from redlab.runs import build, checkpoints, loading
from redlab.runs.config import compose, finalise

pytestmark = pytest.mark.slow

# train.py, but every rank leaves its first batch and its last weights in a folder, and one may be told to stop.
PROBE = """
import os, signal, sys
from pathlib import Path
import torch
from redlab.runs import cli
from redlab.methods import CDDRED

seen, stop = Path(os.environ["PROBE"]), os.environ.get("PROBE_STOP")

def training_step(self, batch, batch_idx, original=CDDRED.training_step):
    if self.global_step == 0:
        torch.save(vars(batch), seen / f"batch_{self.global_rank}.pt")
    if stop == f"{self.global_rank}@{self.global_step}":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, batch, batch_idx)

def on_train_end(self):
    torch.save(self.denoiser.state_dict(), seen / f"weights_{self.global_rank}.pt")

def on_test_end(self):
    torch.save([pairs.index for pairs, _ in self.examples], seen / f"examples_{self.global_rank}.pt")

CDDRED.training_step, CDDRED.on_train_end, CDDRED.on_test_end = training_step, on_train_end, on_test_end
sys.exit(cli.train())
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "train.py"
    path.write_text(PROBE)
    return str(path)


@pytest.fixture
def words(tiny):
    """Three epochs of four steps, with a schedule that shows a step too many; the 15 test images do not divide by 2."""
    return [
        *tiny,
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=3",
        "data.limit_test=15",
        "method.scheduler.step_size=1",
        "method.scheduler.gamma=0.5",
    ]


@pytest.fixture
def call(clean_env):
    """Runs a command in a process group of its own, so that no rank outlives the test."""

    def command(*words, timeout=600, **env):
        process = subprocess.Popen(
            [sys.executable, *words],
            env=clean_env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, said

    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture
def whole(folder, probe, words, call):
    """The folder of an uninterrupted run on two processes; what its ranks left is in ``seen`` beside it."""
    if not (folder / "run").exists():
        (folder / "seen").mkdir()
        code, said = call(probe, *words, f"hydra.run.dir={folder}/run", PROBE=f"{folder}/seen")
        assert code == 0, said
    return folder / "run"


def tensors(path):
    return torch.load(path, weights_only=True)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def checkpoint(out, name="last"):
    return checkpoints.read_checkpoint(out / "checkpoints" / f"{name}.ckpt")


def test_two_processes_are_one_run(whole, words):
    seen = whole.parent / "seen"
    assert {p.name for p in whole.parent.iterdir()} == {"run", "seen"}
    assert [p.name for p in (whole / "csv").iterdir()] == ["version_0"]

    ranks = [tensors(seen / f"weights_{rank}.pt") for rank in (0, 1)]
    trained = [{k: v for k, v in w.items() if "running" not in k} for w in ranks]  # each rank counts its own images
    assert equal(*trained)
    assert equal(checkpoint(whole)["state_dict"], {f"denoiser.{k}": v for k, v in ranks[0].items()})

    numbers = json.loads((whole / "metrics.json").read_text())
    assert numbers["test/count"] == 2 * 15  # the duplicate that fills up the second rank does not count
    assert numbers["test/count/clean"] == 15

    _, data = build.build(finalise(compose([*words, "trainer=default"])))
    data.setup_data()
    alone = data.craft(next(iter(data.train_dataloader())), stage="train")
    batches = [AttackBatch(**tensors(seen / f"batch_{rank}.pt")) for rank in (0, 1)]
    assert [len(batch) for batch in batches] == [8, 8]
    both = AttackBatch.cat(batches)
    for name in ("clean", "label", "attack", "victim", "index"):
        assert torch.equal(getattr(both, name), getattr(alone, name)), name
    torch.testing.assert_close(both.adv, alone.adv, rtol=0, atol=1e-6)

    # and the rows and the report are those of one process
    best = checkpoint(whole, "best")
    method, data = build.build(finalise(compose([*words, "trainer=default"])), best["redlab"]["victims"])
    loading.load_weights(method, whole, best)
    L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    ).test(method, data, verbose=False)  # fmt: skip
    rows, alone = Samples.load(whole / "samples.npz"), method.samples
    assert rows.names == alone.names
    assert rows.columns.keys() == alone.columns.keys()
    for name, values in rows.columns.items():
        assert torch.equal(values.double().nan_to_num(-1), alone[name].double().nan_to_num(-1)), name
    shown = [pairs.index for pairs, _ in method.examples]
    assert [len(index) for index in shown] == [len(index) for index in tensors(seen / "examples_0.pt")]
    for rank in (0, 1):
        assert all(map(torch.equal, tensors(seen / f"examples_{rank}.pt"), shown))


def test_a_stop_of_one_rank_and_a_resume_change_nothing(whole, probe, words, call, tmp_path):
    """Started by torchrun, which tells one rank alone; resumed by Lightning's launcher."""
    out = tmp_path / "run"
    code, said = call(*TORCHRUN, probe, *words, f"hydra.run.dir={out}", PROBE=str(tmp_path), PROBE_STOP="1@5")
    assert code != 0, said
    assert f"resume={out}" in " ".join(said.split())
    assert checkpoint(out)["global_step"] == 6
    assert not (out / "metrics.json").exists()

    code, said = call(probe, f"resume={out}", PROBE=str(tmp_path))
    assert code == 0, said
    for name in ("last", "best"):
        assert equal(checkpoint(out, name)["state_dict"], checkpoint(whole, name)["state_dict"])
        assert checkpoint(out, name)["global_step"] == checkpoint(whole, name)["global_step"]
    assert (out / "metrics.json").read_text() == (whole / "metrics.json").read_text()
