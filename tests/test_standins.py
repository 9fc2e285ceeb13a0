"""A method of each capability, from the command line to its report, resumed and on two processes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from redlab.metrics import Samples

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONF = ROOT / "tests" / "methods" / "conf"
SMALL = ["+mix.components.clean={_target_:redlab.crafting.Component,attack:null}", "data.limit_train=192"]
SMALL += ["data.limit_val=48", "data.limit_test=24", "data.batch_size=48", "victim_training.max_epochs=2", "seed=3"]
SMALL += ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"]
# a number that only this capability has, the best checkpoint's, and a figure
SAYS = {
    "detector": ("test/auroc", "val/auroc", "roc"),
    "identifier": ("test/identified/pgd", "val/identified", "confusion"),
    "labeler": ("test/defended_accuracy/pgd", "val/defended_accuracy", None),
    "adversarial": ("test/restored_accuracy/pgd", "val/restored_accuracy", "restoration"),
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs train.py in one folder, whose victim serves all."""
    here = tmp_path_factory.mktemp("standins")
    places = os.pathsep.join([str(ROOT / "src"), str(CONF.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": places, "CUDA_VISIBLE_DEVICES": ""}

    def call(*words):
        line = [sys.executable, str(ROOT / "train.py"), f"--config-dir={CONF}", *words]
        done = subprocess.run(line, cwd=here, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call, here


@pytest.mark.parametrize("name", SAYS)
def test_from_the_command_line_to_the_report(command, name):
    call, here = command
    number, monitor, figure = SAYS[name]
    words, folder = [f"method={name}", *SMALL], here / name
    said = call(*words, "trainer.max_epochs=2", f"hydra.run.dir={folder}")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert number in metrics
    assert 0 <= metrics["test/worst_accuracy"] <= min(metrics["test/defended_accuracy"], 1)
    rows = Samples.load(folder / "samples.npz")
    assert rows.where(knowledge="defence").attacks == ("aware_pgd",)
    assert len(rows.where(attack="aware_pgd")) == 24
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    kept = [state["monitor"] for key, state in best["callbacks"].items() if key.startswith("RunCheckpoint")]
    assert monitor in kept
    assert "train/loss" in (folder / "csv" / "version_0" / "metrics.csv").read_text()
    page = (folder / "report.html").read_text()
    assert "aware_pgd" in page
    assert page.count("data:image/png") >= 2
    assert figure is None or (folder / "figures" / f"{figure}.png").is_file()
    assert "right" in said or "%" in said

    # cut off after the first epoch, it ends bit for bit the same
    call(*words, "trainer.max_epochs=1", f"hydra.run.dir={here / 'cut'}")
    call(*words, "trainer.max_epochs=2", f"hydra.run.dir={here / 'cut'}")
    whole, resumed = (
        torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for place in (folder, here / "cut")
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert json.loads((here / "cut" / "metrics.json").read_text()) == metrics
    shutil.rmtree(here / "cut")


@pytest.mark.parametrize("name", SAYS)
def test_on_two_processes(command, name):
    call, here = command
    folder = here / f"{name}_two"
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    call(f"method={name}", *SMALL, *ranks, f"hydra.run.dir={folder}")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/count"] == 48
    assert len(Samples.load(folder / "samples.npz")) == 24 * 4
    assert re.search("aware_pgd", (folder / "report.html").read_text())
