"""What every test gets: a clean process, and the means to make tiny runs."""

import copy
import csv
import functools
import os
import sys
import time

# Before torch is imported: ranks that a test forks hang if this process has a pool of OpenMP threads.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import torch.distributed as dist
from hydra.core.global_hydra import GlobalHydra

from redlab.runs import config

RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "GROUP_RANK", "LOCAL_WORLD_SIZE", "PL_", "SLURM_")


@functools.cache
def _composed(places, words, config_name, compose=config.compose):
    return compose(words, config_name)


def _compose_once(overrides=(), config_name="train"):
    """The same words give the same config: composing them anew every time would take a third of all tests' time."""
    hydra = GlobalHydra.instance()
    places = str(hydra.config_loader().get_search_path() if hydra.is_initialized() else config.conf_dir())
    return copy.deepcopy(_composed(places, tuple(overrides), config_name))


config.compose = _compose_once  # before anybody imports it by name


@pytest.fixture(autouse=True)
def _clean_process():
    """No test leaves draws, environment variables, a process group or an initialised Hydra to the next.

    Filters of warnings are put back by pytest itself.
    """
    torch.manual_seed(0)
    before = dict(os.environ)
    yield
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    GlobalHydra.instance().clear()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def victim_root(tmp_path_factory):
    """One cache of trained victims for the whole session."""
    return tmp_path_factory.mktemp("victims")


@pytest.fixture(scope="session")
def tiny(victim_root):
    """Overrides for a run of seconds: 4 steps of 16 images."""
    return [
        "data.limit_train=64",
        "data.limit_val=16",
        "data.limit_test=16",
        "data.batch_size=16",
        "method.depth=3",
        "method.width=4",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "trainer.log_every_n_steps=1",
        "victim_training.max_epochs=1",
        "victim_training.limit_train=64",
        "victim_training.limit_val=16",
        "victim_training.batch_size=16",
        f"victim_root={victim_root}",
    ]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny):
    """A finished run of CDD-RED, with its report, made by the command: its folder, and the numbers that it returned.

    Tests must not write into it.
    """
    from redlab.runs import cli
    from redlab.runs import train as training

    folder = tmp_path_factory.mktemp("finished") / "run"
    returned, original = [], training.train

    def train(cfg, out):
        returned.append(original(cfg, out))
        return returned[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(training, "train", train)
        patch.setenv("HYDRA_FULL_ERROR", "1")  # which the command sets: so it is taken back
        patch.setattr(sys, "argv", ["train.py", *tiny, f"hydra.run.dir={folder}"])
        GlobalHydra.instance().clear()
        assert cli.train() == 0
        GlobalHydra.instance().clear()
    return folder, *returned


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command in this process and an empty folder; gives exit code, and what was printed and said of errors."""
    monkeypatch.chdir(tmp_path)

    def run(command, *words):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *map(str, words)])
        capsys.readouterr()
        try:
            code = command()
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return code, " ".join(said.out.split()), said.err

    return run


@pytest.fixture
def clean_env():
    """The environment for a process started by a test: one thread, no rank of a job that pytest may run in."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith((*RANK_VARIABLES, "MASTER_", "TORCHELASTIC_"))}
    return keep | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONWARNINGS": ""}


def steps_done(out):
    """How many steps the log of a run shows. Its last line may be half written, or the whole file be written anew."""
    try:
        lines = (out / "csv" / "version_0" / "metrics.csv").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return max((int(row["step"]) + 1 for row in rows if row.get("train/loss")), default=0)


@pytest.fixture
def wait_for_step():
    """Waits until the log of a run, flushed at every step, shows so many steps; gives how many it shows by then.

    What is claimed of a run that is stopped after that must hold wherever the signal finds it: later at any rate.
    """

    def wait(out, process, step, timeout=600):
        limit = time.monotonic() + timeout
        while (seen := steps_done(out)) < step:
            assert process.poll() is None, "the run ended early"
            assert time.monotonic() < limit, f"step {seen} of {step} after {timeout} s"
            time.sleep(0.02)
        return seen

    return wait


@pytest.fixture
def no_report(monkeypatch):
    """Skips the report, which takes as long as the rest of a tiny run."""
    monkeypatch.setattr("redlab.runs.train.run_report", lambda out, **rest: out / "report.html")
