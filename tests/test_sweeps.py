"""Sweeps: named jobs, one table of all, a failure that stops nobody, and going on with what is left."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from redlab.runs import cli, sweeps
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import read_checkpoint
from redlab.runs.config import compose, conf_dir
from redlab.runs.stopping import Stopped
from redlab.runs.summary import summarise
from redlab.runs.sweeps import DONE, FAILED, Asked, Job

TRAIN = str(Path(__file__).parents[1] / "train.py")


@pytest.fixture
def trained(monkeypatch):
    """Stands for training: notes each job, and leaves a number; what is in `fails` raises instead, by seed."""

    class Stand:
        def __init__(self):
            self.jobs, self.fails = [], {}

        def __call__(self, cfg, out):
            self.jobs.append((cfg.seed, cfg.choices.method, out.name))
            if error := self.fails.get(cfg.seed):
                raise error
            (out / "metrics.json").write_text(json.dumps({"test/d": 10 + cfg.seed}))

    stand = Stand()
    monkeypatch.setattr("redlab.runs.train.train", stand)
    monkeypatch.setattr("redlab.runs.checkpoints.best_score", lambda out: float(out.name[-1]) / 10)
    return stand


def rows_of(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "words",
    [
        ["seed=0,1", "method=do,ds", "data=digits"],
        ["a=range(0,4)", "+b.c=choice(1,x)", "victim=[lenet,vgg11],[lenet]"],
        ["eps=8/255,16/255", "x={a:1,b:2}", "name='a b',c"],
    ],
)
def test_the_grid_is_hydras(words):
    theirs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert sweeps.grid_of(words) == [list(job) for batch in theirs for job in batch]


def test_jobs_are_named_after_what_differs_and_stand_in_one_table(call, trained, tmp_path):
    code, said, err = call(cli.train, "-m", "method=do,ds", "seed=1,2", "data=digits", "hydra.sweep.dir=sweep")
    assert (code, err) == (0, "")
    names = ["0_method-do_seed-1", "1_method-do_seed-2", "2_method-ds_seed-1", "3_method-ds_seed-2"]
    assert trained.jobs == [(1, "do", names[0]), (2, "do", names[1]), (1, "ds", names[2]), (2, "ds", names[3])]
    assert [said.index(f"Job {i + 1} of 4: {name[2:]}") for i, name in enumerate(names)]
    rows = rows_of(tmp_path / "sweep")
    assert [(r["method"], r["seed"], r["ended"], r["score"], r["test/d"]) for r in rows] == [
        ("do", "1", "done", "0.1", "11"),
        ("do", "2", "done", "0.2", "12"),
        ("ds", "1", "done", "0.1", "11"),
        ("ds", "2", "done", "0.2", "12"),
    ]
    assert "data" not in rows[0]  # the same in all
    assert "4 of 4 jobs are done" in said
    assert "To go on" not in said
    assert "15.0 % ± 7.1" in said  # of 0.1 and 0.2
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "15.0 % ± 7.1" in page
    assert page.count("<img") == 1


def test_a_sweep_with_a_failing_job_goes_on_with_what_is_left(call, trained, tmp_path):
    trained.fails = {1: ConfigError("seed 1 is bad.")}
    code, said, err = call(cli.train, "-m", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert code == 1
    assert [seed for seed, *_ in trained.jobs] == [0, 1, 2]  # the others run all the same
    assert err.splitlines() == [
        f"error: {tmp_path / 'sweep' / '1_seed-1'}: seed 1 is bad.",
        "error: 1 of the jobs failed, see above.",
    ]
    assert [(r["ended"], r["error"]) for r in rows_of(tmp_path / "sweep")] == [
        ("done", ""),
        ("failed", "seed 1 is bad."),
        ("done", ""),
    ]
    assert "To go on with the other 1: redlab train -m resume=sweep" in said

    trained.fails, trained.jobs = {}, []
    code, said, err = call(cli.train, "-m", "resume=sweep")
    assert (code, err) == (0, "")
    assert [name for *_, name in trained.jobs] == ["0_seed-0", "1_seed-1", "2_seed-2"]  # in the same folders
    assert {r["ended"] for r in rows_of(tmp_path / "sweep")} == {"done"}
    assert "3 of 3 jobs are done" in said

    trained.fails = {0: ConfigError("seed 0 is bad now.")}
    assert call(cli.train, "-m", "resume=sweep")[0] == 1
    assert [r["test/d"] for r in rows_of(tmp_path / "sweep")] == ["", "11", "12"]  # none of a time before


def test_a_sweep_that_is_stopped_says_what_is_left(call, trained, tmp_path):
    trained.fails = {1: Stopped("Stopped at step 3.", signal.SIGINT)}
    code, said, err = call(cli.train, "-m", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert code == 128 + signal.SIGINT
    assert [seed for seed, *_ in trained.jobs] == [0, 1]
    assert err == "Stopped at step 3.\n"
    assert [r["ended"] for r in rows_of(tmp_path / "sweep")] == ["done", "stopped"]
    assert "1 of 3 jobs are done" in said
    assert "To go on with the other 2: redlab train -m resume=sweep" in said


@pytest.mark.slow
def test_what_is_typed_on_a_resume_counts(call, trained, tmp_path):
    call(cli.train, "-m", "method=do,ds", "seed=0", "hydra.sweep.dir=sweep")
    trained.jobs = []
    assert call(cli.train, "-m", "resume=sweep", "seed=5,6")[0] == 0
    assert [(seed, method) for seed, method, _ in trained.jobs] == [(5, "do"), (6, "do"), (5, "ds"), (6, "ds")]
    assert call(cli.train, "-m", "resume=sweep", "seed=5,6", "method=ds")[0] == 0
    assert [row["folder"] for row in rows_of(tmp_path / "sweep")] == ["0_seed-5", "1_seed-6"]  # none of before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["resume=sweep"], "resume=sweep is a sweep: say -m resume=sweep"),
        (["-m", "resume=nowhere"], "no sweep in that folder (sweep.yaml is missing)"),
        (["-m", "resume=damaged"], "damaged/sweep.yaml cannot be read"),
    ],
)
def test_a_wrong_resume_is_one_sentence(call, tmp_path, words, says):
    sweeps.begin(tmp_path / "sweep", ["seed=0,1"], total=2)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "sweep.yaml").write_text("words: [seed=0,1\n")
    code, _, err = call(cli.train, *words)
    assert (code, err.count("\n")) == (1, 1)
    assert says in err


@pytest.mark.parametrize(
    "word",
    [
        "victims.small_cnn._target_=os.getcwd,os.getlogin",
        "data.root=x,${oc.env:HOME}",
        pytest.param("--config-dir=/tmp", marks=pytest.mark.slow),
        "hydra.launcher.setup=[reboot]",
        pytest.param("hydra/launcher=submitit_slurm", marks=pytest.mark.slow),
        pytest.param("hydra.sweeper.n_trials=choice(1,2)", marks=pytest.mark.slow),
    ],
)
def test_a_file_of_a_sweep_may_say_no_more_than_that_of_a_run(call, trained, tmp_path, word):
    sweeps.begin(tmp_path / "sweep", ["seed=0,1", word], total=2)
    code, _, err = call(cli.train, "-m", "resume=sweep")
    assert (code, err.count("\n")) == (1, 1), err
    assert "sweep.yaml" in err
    assert trained.jobs == []


def test_words_of_a_sweep_agent_of_wandb(call, trained):
    assert call(cli.train, "--seed=3", "--method=ds", "hydra.run.dir=run3")[0] == 0
    assert trained.jobs == [(3, "ds", "run3")]


@pytest.mark.parametrize(
    "words",
    [
        ["sweep=joblib", "hydra.launcher.n_jobs=3", "seed=0,1"],
        ["sweep=optuna", "hydra.sweeper.n_trials=3", "method.optimizer.lr=tag(log,interval(1e-3,1e-2))"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.slow
def test_a_dry_run_of_a_sweep_starts_nothing(call, trained, tmp_path, words, monkeypatch):
    seen = []
    monkeypatch.setattr("redlab.runs.train.dry_run", lambda cfg, out: seen.append((cfg.seed, cfg.method.optimizer.lr)))
    assert call(cli.train, "-m", *words, "method=do", "--dry-run")[::2] == (0, "")
    assert seen in ([(0, 2e-3), (1, 2e-3)], [(0, 1e-3)])  # of an interval its lower end
    assert trained.jobs == []
    assert not list(tmp_path.iterdir())


def test_a_table_over_seeds(tmp_path, capsys):
    """Mean and standard deviation, by hand; a search has its best first."""
    jobs = [
        Job(i, f"{i}", (f"lr={lr}", f"seed={seed}"), DONE, score=score)
        for i, (lr, seed, score) in enumerate([("1", 0, 0.2), ("1", 1, 0.4), ("2", 0, 0.5), ("2", 1, 0.9)])
    ]
    jobs.append(Job(4, "4", ("lr=3", "seed=0"), FAILED, "Something."))
    for left in ("2", "4"):  # the others ended without a report
        (tmp_path / left).mkdir()
        (tmp_path / left / "report.html").touch()
    summarise(tmp_path, jobs, Asked([], None, "train"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [line for line in lines if line[:1] in (["1"], ["2"])]
    assert found == [["2", "2", "70.0", "%", "±", "28.3"], ["1", "2", "30.0", "%", "±", "14.1"]]
    page = (tmp_path / "sweep.html").read_text()
    assert "Something." in page
    assert re.findall(r"<a href='(.*?)'>(.*?)</a>", page) == [("2/report.html", "2")]
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_records_that_are_damaged_are_left_out(tmp_path):
    with sweeps.noted(begun(tmp_path), Job(0, "a", ("seed=0",), FAILED)) as score:
        score.append(0.5)
    (tmp_path / ".jobs" / "1.json").write_text("{")
    (tmp_path / ".jobs" / "2.json").write_text('{"number": 2}')
    (job,) = sweeps.jobs_of(tmp_path)
    assert (job.ended, job.score, job.words) == (DONE, 0.5, ("seed=0",))


def begun(folder):
    sweeps.begin(folder, ["seed=0,1"], total=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (conf_dir() / "sweep").glob("*.yaml")))
def test_how_jobs_are_started_is_no_part_of_them(name):
    assert compose([f"sweep={name}"]) == compose()
    assert "sweep" not in compose([f"sweep={name}"]).choices


# ---- with real jobs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluations_are_swept(call, finished_run, tmp_path, no_report):
    run, numbers = finished_run
    words = ["-m", f"run={run},{run / 'checkpoints' / 'last.ckpt'}", "data.limit_test=8,16", "out=all"]
    code, said, err = call(cli.evaluate, *words)
    assert (code, err) == (0, ""), err
    rows = rows_of(tmp_path / "all")
    assert [float(row["test/count/fgsm"]) for row in rows] == [8, 16, 8, 16]
    assert float(rows[1]["test/pa_adv"]) == numbers["test/pa_adv"]
    assert "4 of 4 jobs are done" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").glob("*/metrics.json")}
    assert len(before) == 4
    next(iter(before)).parent.joinpath("metrics.json").unlink()
    (tmp_path / "all" / ".jobs" / f"{next(iter(before)).parent.name[0]}.json").unlink()
    assert call(cli.evaluate, *words)[0] == 0  # only what is left
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if before[path] != after[path]] == [next(iter(before))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["sweep=joblib", "seed=0,1"],
        ["sweep=submitit", "seed=0,1"],
        ["sweep=optuna", "hydra.sweeper.n_trials=2", "method.optimizer.lr=interval(1e-4,1e-2)"],
    ],
    ids=lambda words: words[0],
)
def test_two_processes_in_each_job_of_a_launcher(words, tiny, clean_env, tmp_path):
    """One folder per job, two ranks that have one suggestion, every image once, and a number for each."""
    words = [*tiny, "mix=attunet", "trainer=ddp", "trainer.devices=2", "hydra.sweep.dir=sweep", *words]
    said = subprocess.run(
        [sys.executable, TRAIN, "-m", *words], env=clean_env, cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    rows = rows_of(tmp_path / "sweep")
    assert len(rows) == 2
    for row in rows:
        out = tmp_path / "sweep" / row["folder"]
        assert float(row["test/count/fgsm"]) == 16
        checkpoint = read_checkpoint(out / "checkpoints" / "best.ckpt")
        assert checkpoint["global_step"] == 4  # batches of 16 over both ranks
        assert checkpoint["redlab"]["config"]["trainer"]["devices"] == 2
        lr = OmegaConf.load(out / "config.yaml").method.optimizer.lr
        assert {group["lr"] for state in checkpoint["optimizer_states"] for group in state["param_groups"]} == {lr}
    assert len({row.get("seed", row.get("method.optimizer.lr")) for row in rows}) == 2
    assert not (tmp_path / "outputs").exists()
