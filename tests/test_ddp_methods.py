"""Every method on two processes: the images that one process crafts, each once, and after 20 steps the same weights."""

import json
import subprocess
import sys

import pytest
import torch

from faults.kill import METHODS
from redlab.metrics import Samples

pytestmark = pytest.mark.slow

PROBE = """
import os, sys
from pathlib import Path
import torch
from redlab.methods.base import Method
from redlab.runs import cli

def on_train_end(self):
    parameters = {name: value for name, value in self.named_parameters()}
    torch.save([parameters, self.batches], Path(os.environ["PROBE"]) / f"{self.global_rank}.pt")

def on_train_batch_start(self, batch, batch_idx):
    if self.batches == 0:
        fields = {name: value for name, value in vars(batch).items() if value is not None}
        torch.save(fields, Path(os.environ["PROBE"]) / f"batch_{self.global_rank}.pt")

if os.environ.get("PROBE"):
    Method.on_train_end, Method.on_train_batch_start = on_train_end, on_train_batch_start
sys.exit(cli.train())
"""
SIZE = ["data.limit_train=160", "data.limit_val=16", "data.limit_test=15", "data.batch_size=16", "trainer.max_epochs=2"]
SIZE += [
    "victim_training.max_epochs=1",
    "victim_training.limit_train=96",
    "victim_training.limit_val=16",
    "logger=none",
]
SIZE += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "bank=null", "seed=3"]


@pytest.mark.parametrize("method", METHODS)
def test_ranks_stay_together(method, clean_env, tmp_path, victim_root):
    script = tmp_path / "train.py"
    script.write_text(PROBE)

    def run(name, *words):
        (seen := tmp_path / name).mkdir()
        command = [sys.executable, str(script), f"method={method}", *SIZE, *METHODS[method], *words]
        command += [f"victim_root={victim_root}", f"hydra.run.dir={tmp_path}/run_{name}"]
        env = clean_env | {"PROBE": str(seen)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        return seen, tmp_path / f"run_{name}"

    (two, out), (one, alone) = run("two", "trainer=ddp", "trainer.devices=2"), run("one", "trainer.max_epochs=1")
    (first, batches), (second, _) = (torch.load(two / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert batches == 20
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    whole = torch.load(one / "batch_0.pt", weights_only=True)
    parts = [torch.load(two / f"batch_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for field in ("index", "attack", "victim", "setting", "target", "label"):
        assert torch.equal(torch.cat([part[field] for part in parts]), whole[field]), field
    torch.testing.assert_close(torch.cat([part["adv"] for part in parts]), whole["adv"], rtol=0, atol=1e-5)
    rows, same = (Samples.load(folder / "samples.npz") for folder in (out, alone))
    assert all(torch.equal(rows[name], same[name]) for name in ("image", "attack", "victim", "knowledge", "label"))
    keys = list(zip(*(rows[name].tolist() for name in ("image", "attack", "victim", "knowledge")), strict=True))
    assert len(set(keys)) == len(keys)  # each image once in each cell
    counts = [json.loads((folder / "metrics.json").read_text())["test/count"] for folder in (out, alone)]
    assert counts[0] == counts[1]
