"""Two processes on the CPU, started as a user starts them."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from redlab.runs import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the ranks under /proc"),
]

TRAIN = str(Path(__file__).parents[1] / "train.py")
DDP = ["trainer=ddp", "trainer.devices=2", "mix=attunet"]
STANDINS = Path(__file__).parent / "methods"
STEPS = 64  # of an epoch
LONG = ["data.limit_train=1024", "trainer.max_epochs=1000", "+logger.csv.flush_logs_every_n_steps=1"]


def descendants(pid):
    """Process ids of all that a process has started, and what they have."""
    try:
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(p for child in children for p in descendants(child))]


def rank(pid):
    """The rank that torchrun gave to a process, None for other processes."""
    words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((int(w.removeprefix("RANK=")) for w in words if w.startswith("RANK=")), None)


@pytest.fixture
def start(clean_env, tmp_path):
    """Starts a command in an empty folder, and sees to it that nothing of it outlives the test."""
    started = []

    def begin(*words, **env):
        log = (tmp_path / "said.txt").open("a")
        process = subprocess.Popen(
            [sys.executable, *words], env=clean_env | env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            for pid in [*descendants(process.pid), process.pid]:  # torchrun puts its ranks into sessions of their own
                os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def end(tmp_path):
    """Waits for a process; gives what it has printed, in one line."""

    def wait(process, timeout=600):
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s:\n{(tmp_path / 'said.txt').read_text()}")
        return " ".join((tmp_path / "said.txt").read_text().split())

    return wait


def test_a_sweep_of_two_processes_each(start, end, tiny, tmp_path):
    """Two by two jobs: one folder for each, the right words in it, and nobody else's."""
    process = start(TRAIN, "-m", *tiny, *DDP, "seed=0,1", "method.width=4,6", "hydra.sweep.dir=sweep")
    said = end(process)
    assert process.returncode == 0, said
    grid = {f"{2 * j + i}_width-{w}_seed-{i}": (i, w) for i in (0, 1) for j, w in enumerate((4, 6))}
    folders = {p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()}
    assert folders == {".jobs", *grid}
    assert not (tmp_path / "outputs").exists()
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        assert {row["folder"] for row in csv.DictReader(file)} == grid.keys()
    for name, (seed, width) in grid.items():
        out = tmp_path / "sweep" / name
        cfg = OmegaConf.load(out / "config.yaml")
        assert (cfg.seed, cfg.method.width) == (seed, width)
        best = checkpoints.read_checkpoint(out / "checkpoints" / "best.ckpt")
        assert (best["redlab"]["config"]["seed"], best["redlab"]["config"]["method"]["width"]) == (seed, width)
        assert best["global_step"] == 4  # batches of 16 over both ranks
        numbers = json.loads((out / "metrics.json").read_text())
        assert numbers["test/count/fgsm"] == 16  # every image once
        assert (out / "report.html").is_file()


def test_srun_starts_the_ranks_and_a_job_that_is_queued_again_goes_on(start, end, tiny, tmp_path):
    """Two processes with the variables that ``srun`` sets; the same job again finds its folder, finished."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "redlab"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}
    with socket.socket() as free:
        free.bind(("", 0))
        slurm["MASTER_PORT"] = str(free.getsockname()[1])
    words = [*tiny, "mix=attunet", "trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=2"]

    def srun():
        ranks = [start(TRAIN, *words, **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in (0, 1)]
        said = [end(rank) for rank in ranks][-1]
        assert [rank.returncode for rank in ranks] == [0, 0], said
        return said

    srun()
    assert [path.name for path in (tmp_path / "outputs" / "slurm").iterdir()] == ["7_cdd_red_digits"]
    out = tmp_path / "outputs" / "slurm" / "7_cdd_red_digits"
    assert checkpoints.read_checkpoint(out / "checkpoints" / "best.ckpt")["global_step"] == 4  # 16 images over both
    assert json.loads((out / "metrics.json").read_text())["test/count/fgsm"] == 16  # every image once
    assert "is finished already" in srun()


def test_jobs_of_an_array_that_start_together_have_a_folder_each(start, end, tiny, tmp_path):
    """Four at once, whose folders are named by the second; each trains the victim that is missing, or waits for it."""
    shared = [word for word in tiny if not word.startswith("victim_root=")]
    jobs = [
        start(TRAIN, *shared, "mix=attunet", f"seed={i}", "victim_training.seed=0", SLURM_ARRAY_TASK_ID=f"{i}")
        for i in range(4)
    ]
    said = [end(job) for job in jobs][-1]
    assert [job.returncode for job in jobs] == [0] * 4, said
    folders = [path.parent for path in (tmp_path / "outputs").rglob("metrics.json")]
    assert sorted(OmegaConf.load(out / "config.yaml").seed for out in folders) == [0, 1, 2, 3]
    assert all((out / "report.html").is_file() for out in folders)


def test_players_in_two_processes_are_those_in_one(start, end, tiny, clean_env, tmp_path):
    """In a pass of one player the other is without a gradient; the steps are on the mean over both processes."""
    clean_env["PYTHONPATH"] = os.pathsep.join([clean_env.get("PYTHONPATH", ""), str(STANDINS)])
    plain = [f"optim@method.optimizer.{player}=sgd" for player in ("generator", "critic")]
    words = [*(word for word in tiny if not word.startswith("method.")), "mix=attunet", "method=adversarial", *plain]
    for devices in (1, 2):
        process = start(
            TRAIN, f"--config-dir={STANDINS / 'conf'}", *words, f"trainer.devices={devices}", f"hydra.run.dir={devices}"
        )
        said = end(process)
        assert process.returncode == 0, said
    one, two = (checkpoints.read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("1", "2"))
    assert one["global_step"] == two["global_step"] == 8  # four batches of two players
    for key, value in one["state_dict"].items():
        # sums in another order; without the exchange of gradients they differ by far more
        torch.testing.assert_close(two["state_dict"][key], value, rtol=0, atol=5e-5)


def test_sigterm_to_one_rank_stops_both(start, end, wait_for_step, tiny, tmp_path):
    out = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(*torchrun, TRAIN, *tiny, *DDP, *LONG, f"hydra.run.dir={out}")
    done = wait_for_step(out, process, STEPS + 16)
    ranks = {rank(pid): pid for pid in descendants(process.pid) if rank(pid) is not None}
    assert ranks.keys() == {0, 1}
    os.kill(ranks[1], signal.SIGTERM)
    said = end(process)
    assert process.returncode != 0, said
    assert f"resume={out}" in said
    # more than the checkpoint of the first epoch had: nothing that was done is lost
    assert checkpoints.read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] >= done > STEPS
    assert not (out / "metrics.json").exists()


def test_sigterm_to_the_first_of_lightnings_processes(start, end, wait_for_step, tiny, tmp_path):
    """Lightning has started the other rank here; the exit code is that of a stopped run."""
    out = tmp_path / "run"
    process = start(TRAIN, *tiny, *DDP, *LONG, f"hydra.run.dir={out}")
    done = wait_for_step(out, process, STEPS + 16)
    others = descendants(process.pid)
    assert others
    process.send_signal(signal.SIGTERM)
    said = end(process)
    assert process.returncode == 143, said
    assert f"resume={out}" in said
    assert checkpoints.read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] >= done > STEPS
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_ends_the_others(start, end, wait_for_step, tiny, tmp_path, dead):
    """Within a minute, and the checkpoint of the last epoch is there for a resume."""
    out = tmp_path / "run"
    process = start(TRAIN, *tiny, *DDP, *LONG, f"hydra.run.dir={out}")
    wait_for_step(out, process, STEPS + 16)
    others = descendants(process.pid)
    assert others
    began = time.monotonic()
    os.kill(others[0] if dead else process.pid, signal.SIGKILL)
    said = end(process)
    assert process.returncode != 0, said
    while any(Path(f"/proc/{pid}").exists() for pid in others) and time.monotonic() - began < 60:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in others), said
    assert time.monotonic() - began < 60
    assert checkpoints.read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"] >= STEPS
    assert not (out / "metrics.json").exists()
