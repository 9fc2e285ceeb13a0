"""One job, one folder; a path is typed in one way; a failure leaves nothing behind."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from redlab.runs import cli, folders
from redlab.runs.check import ConfigError
from redlab.runs.config import parse
from redlab.runs.words import resume_arguments, with_paths

TRAIN = str(Path(__file__).parents[1] / "train.py")
EVALUATE = str(Path(__file__).parents[1] / "evaluate.py")


@pytest.fixture
def process(clean_env, tmp_path):
    """Starts Python in an empty folder, and sees to it that it does not outlive the test."""
    started = []

    def begin(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
        started.append(
            subprocess.Popen([sys.executable, *map(str, words)], env=clean_env, cwd=tmp_path, text=True, **pipes)
        )
        return started[-1]

    yield begin
    for each in started:
        each.kill()
        each.communicate()


# ---- taking a folder ------------------------------------------------------------------------------------------------


def test_a_fresh_folder_goes_to_one_job(process, tmp_path):
    code = "from redlab.runs.folders import fresh; input(); print(fresh('outputs/day/run'))"
    jobs = [process("-c", code) for _ in range(3)]
    got = [job.communicate("go\n", timeout=60)[0].strip() for job in jobs]
    assert sorted(got) == ["outputs/day/run", "outputs/day/run_2", "outputs/day/run_3"]
    assert sorted(p.name for p in (tmp_path / "outputs" / "day").iterdir()) == ["run", "run_2", "run_3"]


HOLD = """
import pathlib, sys
from redlab.runs.folders import taken
with taken(pathlib.Path("run")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_until_its_job_is_dead(process, tmp_path):
    job = process("-c", HOLD)
    assert job.stdout.readline() == "held\n"
    with (
        pytest.raises(ConfigError, match=r"run belongs to a job that is still running; wait"),
        folders.taken(tmp_path / "run"),
    ):
        pytest.fail("two jobs have it")
    assert (tmp_path / "run").is_dir()  # the refused job has not taken away what the other one works in
    job.send_signal(signal.SIGKILL)
    job.wait()
    with folders.taken(tmp_path / "run"), folders.taken(tmp_path / "run"):
        pass


def test_other_ranks_share_the_folder_of_the_first(process, monkeypatch, tmp_path):
    job = process("-c", HOLD)
    assert job.stdout.readline() == "held\n"
    for variables in ({"LOCAL_RANK": "1"}, {"RANK": "3", "LOCAL_RANK": "0"}, {"NODE_RANK": "1"}, {"SLURM_PROCID": "2"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with folders.taken(tmp_path / "run"):
                pass
            assert folders.fresh("outputs/x") == "outputs/x"
    monkeypatch.setenv("RANK", "0")  # of torchrun, whose other ranks come too
    with pytest.raises(ConfigError, match="still running"), folders.taken(tmp_path / "run"):
        pass


def test_a_failure_takes_away_what_it_has_made_and_no_more(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()

    def job(folder, leave):
        with folders.taken(folder):
            (folder / ".hydra").mkdir()
            for name in leave:
                (folder / name).touch()
            raise RuntimeError

    def fail(folder, leave=()):
        with pytest.raises(RuntimeError):
            job(folder, leave)

    fail(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    fail(tmp_path / "c" / "d", ["last.ckpt"])
    assert (tmp_path / "c" / "d" / "last.ckpt").exists()
    fail(mine)
    assert mine.is_dir()
    fail(mine / "new")
    assert not (mine / "new").exists()
    assert mine.is_dir()


def test_a_run_goes_into_no_folder_of_a_running_job(call, process, tmp_path, finished_run):
    job = process("-c", HOLD)
    assert job.stdout.readline() == "held\n"
    for command, *words in (
        (cli.train, "hydra.run.dir=run", "seed=1"),
        (cli.evaluate, f"run={finished_run[0]}", "out=run"),
    ):
        code, _, err = call(command, *words)
        assert code == 1
        assert re.fullmatch(r"error: \S*run belongs to a job that is still running; .*\n", err)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock"}  # nothing of another job's words


@pytest.mark.slow
def test_jobs_of_one_second(process, tiny, tmp_path):
    jobs = {seed: process(TRAIN, *tiny, "method=do", f"seed={seed}") for seed in range(3)}
    for job in jobs.values():
        _, err = job.communicate(timeout=600)
        assert job.returncode == 0, err
    runs = [p.parent for p in tmp_path.glob("outputs/*/*/metrics.json")]
    assert len(runs) == 3
    seeds = []
    for run in runs:
        config = OmegaConf.load(run / "config.yaml")
        seeds.append(config.seed)
        assert f"seed={config.seed}" in OmegaConf.load(run / ".hydra" / "overrides.yaml")
        assert len(list(run.glob("csv/version_*"))) == 1
    assert sorted(seeds) == [0, 1, 2]

    again = [process(EVALUATE, f"run={runs[0]}", "trainer.enable_progress_bar=false") for _ in range(2)]
    for job in again:
        assert job.wait(600) == 0
    assert len(list(tmp_path.glob("outputs/*/*_evaluate*/metrics.json"))) == 2


@pytest.mark.slow
def test_jobs_in_one_folder(process, tiny, tmp_path):
    """One gets it, the others are refused, and what was typed, numbers and checkpoint are of that one."""
    jobs = {seed: process(TRAIN, *tiny, f"seed={seed}", "hydra.run.dir=here") for seed in range(3)}
    ends = {seed: (job.communicate(timeout=600)[1], job.returncode)[::-1] for seed, job in jobs.items()}
    (winner,) = (seed for seed, (code, _) in ends.items() if code == 0)
    for seed, (code, err) in ends.items():
        assert seed == winner or (code == 1 and "still running" in err)
    assert f"seed={winner}" in OmegaConf.load(tmp_path / "here" / ".hydra" / "overrides.yaml")
    assert OmegaConf.load(tmp_path / "here" / "config.yaml").seed == winner


# ---- a failure leaves nothing ---------------------------------------------------------------------------------------


def test_a_failing_configuration_leaves_no_folder(call, tmp_path, tiny):
    for words in (
        ["hydra.run.dir=new/run", "trainer.max_epochs=0"],
        [*tiny, "data=fashion_mnist", "data.root=nowhere"],
        ["-m", "method=cdd_rde,do"],
    ):
        code, _, err = call(cli.train, *words)
        assert (code, err.count("\n")) == (1, 1), err
        assert not list(tmp_path.iterdir()), words


def test_a_failing_evaluation_leaves_no_folder(call, tmp_path, finished_run):
    for words in (["data.batch_sise=3"], ["data=fashion_mnist", "data.root=nowhere"]):
        code, _, err = call(cli.evaluate, f"run={finished_run[0]}", *words)
        assert (code, err.count("\n")) == (1, 1), err
        assert not list(tmp_path.iterdir()), words


def test_an_empty_folder_of_the_users_stays(call, tmp_path):
    (tmp_path / "mine").mkdir()
    code, *_ = call(cli.train, "hydra.run.dir=mine", "trainer.max_epochs=0")
    assert code == 1
    assert (tmp_path / "mine").is_dir()


@pytest.mark.slow
def test_what_was_typed_in_vain_is_not_resumed(call, tmp_path, monkeypatch):
    """The words of an attempt that failed are not those of the run that then went into the folder."""
    monkeypatch.setattr("redlab.runs.train.train", lambda cfg, out: (_ for _ in ()).throw(ValueError("no images")))
    (tmp_path / "run").mkdir()
    call(cli.train, "hydra.run.dir=run", "seed=1")
    call(cli.train, "hydra.run.dir=run", "seed=2")
    assert OmegaConf.load(tmp_path / "run" / ".hydra" / "overrides.yaml") == ["seed=2"]


# ---- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "with space", "a=1,b=2", "it's", "100%", "[x]{y}", "name,", "a/b"])
def test_a_path_is_read_in_one_way(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / ".hydra").mkdir(parents=True)
    (tmp_path / name / ".hydra" / "overrides.yaml").write_text("[]")
    quoted = "'" + name.replace("'", "\\'") + "'"
    for typed in (name, f"./{name}/", f"~/{name}", f"{tmp_path}/{name}", quoted, f'"{name}"'):
        assert folders.path_of(typed).resolve() == tmp_path / name
        for words in ([f"hydra.run.dir={typed}"], [f"resume={typed}"], [f"hydra.sweep.dir={typed}"]):
            (word,) = parse(with_paths(resume_arguments(words)))
            assert Path(word.value()).resolve() == tmp_path / name


@pytest.mark.slow
def test_a_run_in_a_folder_with_a_strange_name(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, seen = tmp_path / "it's [a=1,b=2] {c}", []
    monkeypatch.setattr("redlab.runs.train.train", lambda cfg, out: seen.append((out, cfg.seed)))
    monkeypatch.setattr("redlab.runs.train.evaluate", lambda run, words, out, *_, **__: seen.append((run, out)))
    assert call(cli.train, f"hydra.run.dir=~/{folder.name}", "seed=3")[0] == 0
    assert call(cli.train, f"resume=~/{folder.name}/")[0] == 0
    assert call(cli.evaluate, f"run=~/{folder.name}", f"out=~/{folder.name}")[0] == 0
    assert seen == [(folder, 3), (folder, 3), (folder, folder)]


def test_resume_of_a_file_says_what_to_give(call, finished_run):
    code, _, err = call(cli.train, f"resume={finished_run[0]}/checkpoints/last.ckpt")
    assert code == 1
    assert f"resume={finished_run[0]}" in err.split("give the folder of the run")[1]


def test_a_run_is_resumed_from_any_folder(call, tmp_path, monkeypatch, finished_run):
    """What was relative to the folder where it was started still means the same."""
    seen = []
    monkeypatch.setattr("redlab.runs.train.train", lambda cfg, out: seen.append(cfg))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    words = ["data=mnist", "data.root=images", "victims.small_cnn.weights=net.pt", "hydra.run.dir=run"]
    assert call(cli.train, *words)[0] == 0
    (tmp_path / "there" / "run" / "config.yaml").write_text(OmegaConf.to_yaml(seen[0]))
    monkeypatch.chdir(tmp_path)
    assert call(cli.train, "resume=there/run")[0] == 0
    first, second = (OmegaConf.to_container(cfg) for cfg in seen)
    assert first == second
    assert first["data"]["source"]["root"] == str(tmp_path / "there" / "images")
    assert first["victims"]["small_cnn"]["weights"] == str(tmp_path / "there" / "net.pt")
    assert first["victim_root"] == str(tmp_path / "there" / "outputs" / "victims")


# ---- the objective of a sweep ---------------------------------------------------------------------------------------


def returned(monkeypatch):
    """What Hydra gets from the jobs."""
    values, original = [], cli._job
    monkeypatch.setattr(cli, "_job", lambda *args: values.append(original(*args)) or values[-1])
    return values


def test_the_objective_is_the_validation_of_the_best_checkpoint(call, tmp_path, monkeypatch, finished_run, tiny):
    values = returned(monkeypatch)
    run = Path(shutil.copytree(finished_run[0], tmp_path / "run"))
    assert call(cli.train, f"resume={run}")[0] == 0  # finished: its numbers are read
    logged = (run / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = logged[0].split(",").index("val/pa_benign")  # what CDD-RED monitors
    (best,) = {float(line.split(",")[column]) for line in logged[1:] if line.split(",")[column]}
    assert values == [pytest.approx(best)]
    (run / "checkpoints" / "best.ckpt").unlink()
    assert call(cli.train, f"resume={run}")[0] == 0
    assert values[1:] == [None]  # no number stands for one that is not there


# ---- the installed commands -----------------------------------------------------------------------------------------


def test_redlab_is_both_commands(call, monkeypatch, tmp_path):
    seen = []

    def train(cfg, out):
        seen.append((cfg.seed, list(sys.argv)))

    main = str(tmp_path / "main.py")
    monkeypatch.setattr("redlab.runs.train.train", train)
    code, _, err = call(cli.main, "train", "seed=4", "hydra.run.dir=run")
    assert code == 0, err
    # what Lightning starts the other ranks with
    assert seen == [(4, [main, "train", "seed=4", "hydra.run.dir='run'"])]

    def evaluate(run, words, out, allow, dry, trust):
        seen.append((run, words, list(sys.argv)))

    monkeypatch.setattr("redlab.runs.train.evaluate", evaluate)
    code, _, err = call(cli.main, "evaluate", "run=run", "seed=1")
    assert code == 0, err
    assert seen[-1] == (Path("run"), ["seed=1"], ["main.py", "evaluate", "run=run", "seed=1"])


@pytest.mark.slow
def test_redlab_starts_the_jobs_of_a_sweep(call, monkeypatch, tmp_path):
    seen, main = [], str(tmp_path / "main.py")
    monkeypatch.setattr("redlab.runs.train.train", lambda cfg, out: seen.append((cfg.seed, list(sys.argv))))
    code, _, err = call(cli.main, "train", "-m", "seed=5,6", "hydra.sweep.dir=sweep")
    assert code == 0, err
    assert [words for _, words in seen] == [[main, "train", f"seed={seed}", "hydra.mode=RUN"] for seed in (5, 6)]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 0, "redlab evaluate"),
        (["--help"], 0, "redlab train"),
        (["evaluate", "--help"], 0, "study="),
        (["trian"], 1, "no command 'trian'. Did you mean 'train'?"),
        (["seed=1"], 1, "no command 'seed=1'. See redlab --help"),
    ],
)
def test_words_of_redlab(call, words, code, says):
    got, out, err = call(cli.main, *words)
    assert got == code
    assert says in out + err


@pytest.mark.slow
@pytest.mark.parametrize("as_module", [True, False])
def test_redlab_starts_its_ranks(process, tiny, tmp_path, as_module):
    """The second rank is the same command, whether it is a module or a file such as pip makes."""
    script = tmp_path / "bin" / "redlab"
    script.parent.mkdir()
    script.write_text("import sys\nfrom redlab.runs.cli import main\nsys.exit(main())\n")
    command = ["-m", "redlab"] if as_module else [script]
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "mix=attunet"]
    job = process(*command, "train", *tiny, *ddp, "hydra.run.dir=run")
    out, err = job.communicate(timeout=600)
    assert job.returncode == 0, out + err
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["test/count/fgsm"] == 16
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "run"}
    job = process(*command, "evaluate", "run=run")
    out, err = job.communicate(timeout=600)
    assert job.returncode == 0, out + err
    (again,) = tmp_path.glob("outputs/*/*")
    assert json.loads((again / "metrics.json").read_text()) == numbers
