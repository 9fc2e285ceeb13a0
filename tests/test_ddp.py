"""Two processes on the CPU, started as a user starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from redlab import run

pytestmark = pytest.mark.slow

TRAIN = str(Path(__file__).parents[1] / "train.py")
DDP = ["trainer=ddp", "trainer.devices=2", "mix=attunet"]


@pytest.fixture
def start(clean_env, tmp_path):
    """Starts a command in an empty folder, and sees to it that nothing of it outlives the test."""
    started = []

    def begin(*words):
        process = subprocess.Popen(
            [sys.executable, *words],
            env=clean_env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def end(process, timeout=240):
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {timeout} s:\n{process.communicate()[0]}")


def test_a_sweep_of_two_processes_each(start, tiny, tmp_path):
    """One folder per job, the right seeds in them, and nobody else's."""
    process = start(TRAIN, "-m", *tiny, *DDP, "seed=0,1", "hydra.sweep.dir=sweep")
    said = end(process)
    assert process.returncode == 0, said
    assert {p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()} == {"0", "1"}
    assert not (tmp_path / "outputs").exists()
    for seed in (0, 1):
        out = tmp_path / "sweep" / str(seed)
        assert OmegaConf.load(out / "config.yaml").seed == seed
        best = run.read_checkpoint(out / "checkpoints" / "best.ckpt")
        assert best["redlab"]["config"]["seed"] == seed
        assert best["global_step"] == 4  # batches of 16 over both ranks
        numbers = json.loads((out / "metrics.json").read_text())
        assert numbers["test/count/fgsm"] == 16  # every image once
        assert (out / "report.html").is_file()


def workers(launcher):
    """rank -> process id, of the processes that torchrun has started."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = dict(
            word.split("=", 1) for word in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in word
        )
        if "RANK" in variables:
            found[int(variables["RANK"])] = int(child)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the ranks under /proc")
def test_sigterm_to_one_rank_stops_both(start, tiny, tmp_path):
    out = tmp_path / "run"
    long = ["data.limit_train=512", "trainer.max_epochs=200", f"hydra.run.dir={out}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(*torchrun, TRAIN, *tiny, *DDP, *long)
    last = out / "checkpoints" / "last.ckpt"
    limit = time.monotonic() + 150
    while not last.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "no checkpoint in time"
        time.sleep(0.05)
    ranks = workers(process.pid)
    assert ranks.keys() == {0, 1}
    os.kill(ranks[1], signal.SIGTERM)
    said = end(process, timeout=60)
    assert process.returncode != 0, said
    assert f"resume={out}" in " ".join(said.split()), said
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert run.read_checkpoint(last)["global_step"] % 32  # in the middle of an epoch
    assert not (out / "metrics.json").exists()


def test_sigterm_to_the_first_of_lightnings_processes(start, tiny, tmp_path):
    """Lightning has started the other rank here; the exit code is that of a stopped run."""
    out = tmp_path / "run"
    process = start(TRAIN, *tiny, *DDP, "data.limit_train=512", "trainer.max_epochs=200", f"hydra.run.dir={out}")
    last = out / "checkpoints" / "last.ckpt"
    limit = time.monotonic() + 150
    while not last.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "no checkpoint in time"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = end(process, timeout=60)
    assert process.returncode == 143, said
    assert f"resume={out}" in " ".join(said.split())
    assert run.read_checkpoint(last)["global_step"] % 32
