"""A run that is killed and resumed ends with the very bits of a run that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from redlab.methods import CDDRED
from redlab.runs import checkpoints, stopping
from redlab.runs import train as training
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise
from redlab.victims import architectures

TRAIN = Path(__file__).parents[1] / "train.py"
# A schedule that bites in every epoch, so that a step too many or too few shows in the weights.
TWO_EPOCHS = ["mix=attunet", "trainer.max_epochs=2", "method.scheduler.step_size=1", "method.scheduler.gamma=0.5"]


def same(left, right):
    """Whether two trees of tensors and plain values are equal to the last bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def assert_same_end(left, right):
    """Both checkpoints, schedule and numbers of two run folders agree."""
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (left, right))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert same(a[part], b[part]), f"{part} of {name}"
    assert numbers(left) == numbers(right)


def numbers(out):
    return json.loads((out / "metrics.json").read_text())


def train(overrides, out):
    return training.train(finalise(compose(overrides)), out)


def signal_at(monkeypatch, step, sent=lambda: os.kill(os.getpid(), signal.SIGTERM), target=CDDRED):
    """Calls ``sent`` once, when training is in the middle of step number ``step``."""
    original, done = target.training_step, []

    def training_step(self, batch, batch_idx):
        if self.global_step == step and not done:
            done.append(step)
            sent()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(target, "training_step", training_step)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Killed(Exception):
    """Stands for SIGKILL: nothing of the run is executed after it but what an exception allows."""


def kill():
    raise Killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory, victim_root):
    """A run of two epochs that nobody interrupts."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def uninterrupted(whole, tiny, no_report):
    if not (whole / "metrics.json").exists():
        train([*tiny, *TWO_EPOCHS], whole)
    return whole


# step 3 is the last of the first epoch, step 7 the last of all
@pytest.mark.parametrize("step", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 2, 3, 4, 5, 6, 7))])
def test_sigterm_and_resume(uninterrupted, tiny, no_report, tmp_path, monkeypatch, step):
    signal_at(monkeypatch, step)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped, match=f"resume={tmp_path}"):
        train([*tiny, *TWO_EPOCHS], tmp_path)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "metrics.json").exists()
    checkpoints.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    logs = {path: path.read_bytes() for path in tmp_path.rglob("metrics.csv")}
    train([*tiny, *TWO_EPOCHS], tmp_path)
    assert_same_end(tmp_path, uninterrupted)
    # the log of the first session is still there, beside that of the second
    assert step == 0 or any(b"train/loss" in text for text in logs.values())
    assert all(path.read_bytes() == text for path, text in logs.items())
    assert len(list(tmp_path.rglob("metrics.csv"))) == len(logs) + 1


def test_ctrl_c_stops_after_the_batch_and_a_second_one_at_once(uninterrupted, tiny, no_report, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    signal_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(stopping.Stopped, match=f"step 2.*resume={tmp_path}") as stopped:
        train([*tiny, *TWO_EPOCHS], tmp_path)
    assert stopped.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    train([*tiny, *TWO_EPOCHS], tmp_path)
    assert_same_end(tmp_path, uninterrupted)
    signal_at(monkeypatch, 1, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises((KeyboardInterrupt, SystemExit)):  # the latter is what Lightning makes of it
        train([*tiny, *TWO_EPOCHS], tmp_path / "other")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of SLURM whose `scontrol` only writes down what it is asked."""
    asked = tmp_path / "asked.txt"
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho $@ $(ls {tmp_path}/run/checkpoints/) >> {asked}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return asked


def test_sigusr1_saves_and_has_the_job_queued_again(uninterrupted, tiny, no_report, tmp_path, monkeypatch, slurm):
    signal_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(stopping.Stopped) as stopped:
        train([*tiny, *TWO_EPOCHS], tmp_path / "run")
    assert stopped.value.signum == signal.SIGUSR1
    assert slurm.read_text() == "requeue 17 last.ckpt\n"  # once, when all was written
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))  # Lightning's, which would win over last.ckpt
    train([*tiny, *TWO_EPOCHS], tmp_path / "run")
    assert_same_end(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    ("variables", "asks"),
    [
        ({"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 16_3"),
        ({"SLURM_PROCID": "1"}, None),  # another rank than the first
        ({"SLURM_JOB_ID": None}, None),  # no SLURM
    ],
)
def test_who_asks_for_another_time(variables, asks, slurm, monkeypatch):
    """Also before the first batch, where a stop is at once."""
    for key, value in variables.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key)
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(stopping.Stopped, match="same words"), stopping.handing_over(stopping.StopOnSignal()):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert (slurm.read_text().strip() if slurm.exists() else None) == asks


def test_a_job_that_cannot_be_queued_again_says_so(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", "nowhere")
    with pytest.raises(stopping.Stopped), stopping.handing_over(stopping.StopOnSignal()):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert "Job 17 could not be queued again" in capsys.readouterr().err


@pytest.mark.slow
def test_sigusr2_is_handed_over_when_all_is_saved(tiny, no_report, tmp_path, monkeypatch):
    """As submitit has it, whose handler queues the job again and ends the process."""
    seen = []

    def theirs(signum, frame):
        seen.append((signum, checkpoints.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]))
        sys.exit(-1)

    before = signal.signal(signal.SIGUSR2, theirs)
    try:
        signal_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(SystemExit):
            train([*tiny, *TWO_EPOCHS], tmp_path)
        assert seen == [(signal.SIGUSR2, 2)]
        assert signal.getsignal(signal.SIGUSR2) is theirs
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("step", [6, *(pytest.param(s, marks=pytest.mark.slow) for s in (4, 5, 7))])
def test_kill_and_resume(uninterrupted, tiny, no_report, tmp_path, monkeypatch, step):
    signal_at(monkeypatch, step, kill)
    with pytest.raises(Killed):
        train([*tiny, *TWO_EPOCHS], tmp_path)
    assert checkpoints.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4
    train([*tiny, *TWO_EPOCHS], tmp_path)
    assert_same_end(tmp_path, uninterrupted)


def test_resume_of_a_finished_run_does_nothing(uninterrupted, tiny, capsys):
    """Nor where something else is asked that changes no number."""
    files = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}
    capsys.readouterr()
    other = ["name=another", "logger=none", "data.eval_batch_size=7", "trainer.benchmark=true", "save_victims=false"]
    for words in ([], other):
        assert train([*tiny, *TWO_EPOCHS, *words], uninterrupted) == numbers(uninterrupted)
        assert "is finished already, after 2 epochs" in " ".join(capsys.readouterr().out.split())
    assert files == {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mix=digits"], r"mix.components=\['fgsm', 'rfgsm'\], not \['fgsm', 'pgd'\]"),
        (["victim_training.seed=1"], r"victims.small_cnn.training.seed=0, not 1"),
        (["trainer.max_epochs=1"], r"has begun 2 epochs, trainer.max_epochs=1 asks for fewer"),
        slow(["data.limit_test=8"], "data.limit_test=16, not 8"),
        slow(["trainer.max_epochs=3", "trainer.gradient_clip_val=1"], r"trainer.gradient_clip_val=None, not 1"),
        slow(["+trainer.max_steps=5"], r"has begun 8 steps, trainer.max_steps=5 asks for fewer"),
    ],
)
def test_a_finished_run_is_none_of_another_question(uninterrupted, tiny, words, says):
    """Neither are its numbers given for an answer, nor is it trained on."""
    files = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=rf"last.ckpt .*{says}; train that in another folder"):
        train([*tiny, *TWO_EPOCHS, *words], uninterrupted)
    assert files == {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_goes_on_with_the_files_that_it_began_with(tiny, no_report, tmp_path):
    """Of one name and other content they are others; a file that is gone is in the checkpoint."""
    weights, out = tmp_path / "lenet.pt", tmp_path / "run"
    words = [*tiny, "victim=lenet", "mix=attunet", f"victims.lenet.weights={weights}"]
    torch.manual_seed(1)
    torch.save(architectures.lenet(10, 1, 32).state_dict(), weights)
    before = train(words, out)
    weights.rename(tmp_path / "moved.pt")
    assert train(words, out) == before
    assert train([*words[:-1], f"victims.lenet.weights={tmp_path}/moved.pt"], out) == before
    torch.manual_seed(2)
    torch.save(architectures.lenet(10, 1, 32).state_dict(), weights)
    for epochs in (1, 2):
        with pytest.raises(ConfigError, match=r"other content of victims.lenet \(\w{10}, not \w{10}\)"):
            train([*words, f"trainer.max_epochs={epochs}"], out)
    with pytest.raises(ConfigError, match=r"victims.lenet.weights=\S*lenet.pt, not None"):
        train(words[:-1], out)


@pytest.mark.slow
def test_a_finished_run_can_be_extended(uninterrupted, tiny, no_report, tmp_path):
    train([*tiny, *TWO_EPOCHS, "trainer.max_epochs=1"], tmp_path)
    assert numbers(tmp_path)
    train([*tiny, *TWO_EPOCHS], tmp_path)
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_sigterm_during_the_test(uninterrupted, tiny, no_report, tmp_path, monkeypatch):
    original, sent = CDDRED.test_step, []

    def test_step(self, *args, **kwargs):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CDDRED, "test_step", test_step)
    with pytest.raises(stopping.Stopped, match="resume="):
        train([*tiny, *TWO_EPOCHS], tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    train([*tiny, *TWO_EPOCHS], tmp_path)
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_damaged_last_falls_back_to_best(uninterrupted, tiny, no_report, tmp_path, monkeypatch, capsys):
    signal_at(monkeypatch, 6, kill)
    with pytest.raises(Killed):
        train([*tiny, *TWO_EPOCHS], tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    train([*tiny, *TWO_EPOCHS], tmp_path)
    assert "last.ckpt" in capsys.readouterr().out
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_moved_folder_remembers_its_best(tiny, no_report, tmp_path, monkeypatch):
    """The second epoch is worse here, so that a forgotten score would show as another best.ckpt."""
    worse = [*tiny, *TWO_EPOCHS, "method.scheduler.gamma=1e6"]
    whole, first, moved = tmp_path / "whole", tmp_path / "first", tmp_path / "moved"
    train(worse, whole)
    best = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    signal_at(monkeypatch, 5)
    with pytest.raises(stopping.Stopped):
        train(worse, first)
    first.rename(moved)
    train(worse, moved)
    assert_same_end(moved, whole)
    assert best["epoch"] == 0


# ---- real processes -------------------------------------------------------------------------------------------------


STEPS = 32  # of an epoch of 256 images


@pytest.fixture
def start(clean_env):
    """Starts train.py, and sees to it that it does not outlive the test."""
    started = []

    def begin(*words):
        command = [sys.executable, str(TRAIN), *words]
        started.append(
            subprocess.Popen(command, env=clean_env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def end(process):
    return process.communicate(timeout=600)[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_resumes(start, wait_for_step, tiny, no_report, tmp_path, how):
    """Wherever the signal finds it: how long the run is to be is only said when it has stopped."""
    words = [*tiny, "data.limit_train=256", "data.limit_val=32", "data.batch_size=8"]
    words = [*words, "method.scheduler.step_size=1", "method.scheduler.gamma=0.5"]
    out = tmp_path / "run"
    process = start(*words, "trainer.max_epochs=1000", "+logger.csv.flush_logs_every_n_steps=1", f"hydra.run.dir={out}")
    done = wait_for_step(out, process, STEPS + 16)
    process.send_signal(how)
    said = end(process)
    step = checkpoints.read_checkpoint(out / "checkpoints" / "last.ckpt")["global_step"]
    assert not (out / "metrics.json").exists()
    if how != signal.SIGKILL:
        assert process.returncode == 128 + how, said
        assert ("Stopping after this batch; Ctrl-C again" in said) == (how == signal.SIGINT)
        assert f"resume={out}" in " ".join(said.split())
        assert step >= done > STEPS  # nothing that was done is lost
    else:
        assert process.returncode == -signal.SIGKILL
        assert step >= STEPS
        assert step % STEPS == 0  # the end of an epoch

    epochs = f"trainer.max_epochs={step // STEPS + 2}"
    process = start(f"resume={out}", epochs)
    said = end(process)
    assert process.returncode == 0, said
    assert "Resuming from" in said
    train([*words, epochs], tmp_path / "whole")
    assert_same_end(out, tmp_path / "whole")
