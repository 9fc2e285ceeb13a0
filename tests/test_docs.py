"""What README and docs promise is true: their code runs, their commands too, their links lead somewhere."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import nn

from printed import PAGES, ROOT, blocks, commands, files, imported
from redlab.runs import cli, config
from redlab.runs.config import compose, conf_dir, finalise, override_stored, parse
from redlab.runs.sweeps import values_of
from redlab.studies import find

GUIDES = sorted((ROOT / "docs").glob("add_*.md"))
# known of a run only when it exists; evaluate.py takes them for itself
OF_EVALUATE = {"run", "study", "scale", "seeds", "out", "debug", "allow", "trust"}

PARTS = [(page, part.strip()) for page in PAGES for line in commands(page) for part in line.split("&&")]
# what a printed command begins with -> why it does not run here
NOT_HERE = {
    "pip install": "asks a package index; .ci/run installs in this way",
    "uv pip install": "asks a package index; .ci/run installs in this way",
    "pytest": "these tests themselves; .ci/run has every group of them",
    "make": "tests, lint and types; .ci/run has the commands of the Makefile",
    "srun": "needs a SLURM cluster",
    "python train.py trainer=ddp trainer.devices=8": "needs eight devices",
    "python evaluate.py run=...": "a pattern; README has one that runs",
    "python train.py -m method=do,ds seed": "README has one that runs",
    "python train.py -m sweep=": "two processes of a launcher; test_sweeps.py has each, but for SLURM",
    "python train.py -m resume=": "needs a sweep; see test_sweeps.py",
    "python evaluate.py -m run=": "needs two runs; see test_sweeps.py",
    "python train.py resume=...": "a pattern; README has one that runs",
    "python evaluate.py study=<paper>/<table>": "a pattern; README has one that runs",
    "python train.py data=cifar10": "needs CIFAR-10; tests/victims/test_cifar_weights.py loads such files",
    "redlab train": "the name of a command, which is python train.py",
    "redlab evaluate": "likewise",
    "redlab export run=<folder>": "a pattern; the page has one that runs",
    "python -m redlab.runs.demo": "test_demo.py makes a small one",
    "python train.py data=stripes": "needs the data set of its page, see test_guides.py",
}
# what is put behind a printed command so that it takes seconds
SHORT = {
    "python evaluate.py run=": "",  # as short as the run
    "python evaluate.py study=": "scale=smoke data.limit_train=64 data.limit_test=16 data.batch_size=16",
    "python benchmarks/attacks.py": "--attacks fgsm --images 4 --repeats 1",
    "python train.py resume=": "trainer.max_epochs=2",  # the run has one
    "python -m redlab": "",  # says what the commands are
    "python train.py method=cdd_red data=fashion_mnist": "TINY method.width=4 victim_training.limit_train=2000",
    "redlab diagnose": "",
    "redlab export": "",
    "python train.py method=classifier": "TINY",
    "python train.py": "TINY method.width=4",
}
NEEDS_DATA = ("data=fashion_mnist", "benchmarks/")


def words_of(part):
    return shlex.split(part, comments=True)


def calls(script):
    """What stands behind a script's name, for each time that it is printed."""
    found = [(page, part, words_of(part)) for page, part in PARTS]
    return [
        pytest.param(words[words.index(script) + 1 :], id=f"{page.stem}: {part[:60]}")
        for page, part, words in found
        if script in words and not part.startswith("python train.py data=stripes")  # see NOT_HERE
    ]


def runnable():
    found = {part: page for page, part in PARTS if not part.startswith(tuple(NOT_HERE))}
    return [
        pytest.param(
            part,
            id=f"{page.stem}: {part[:60]}",
            marks=pytest.mark.realdata if any(word in part for word in NEEDS_DATA) else pytest.mark.slow,
        )
        for part, page in found.items()
    ]


def test_there_is_something_to_check():
    assert len(calls("train.py")) >= 9
    assert len(calls("evaluate.py")) >= 4
    assert len(list(runnable())) >= 10
    assert {page.stem for page in GUIDES} == {
        "add_a_method", "add_an_attack", "add_a_victim", "add_a_dataset", "add_a_study"
    }  # fmt: skip
    for begin in [*NOT_HERE, *SHORT]:
        assert any(part.startswith(begin) for _, part in PARTS), f"nobody prints {begin}"


# ---- code and YAML --------------------------------------------------------------------------------------------------

MODULES = [(page, place) for page in PAGES for place in range(len(blocks(page, "python")))]
each_module = pytest.mark.parametrize(("page", "place"), MODULES, ids=lambda value: getattr(value, "stem", value))


@each_module
def test_python_runs(page, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert imported(page, place)


@each_module
def test_python_is_as_clean_as_the_package(page, place):
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(ROOT / "src" / "redlab" / "new.py"), "-"]
    code = blocks(page, "python")[place]
    ignored = [] if code.startswith('"""') else ["--ignore", "D100"]  # for a notebook, not a file
    done = subprocess.run([*command, *ignored], input=code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


class MyNet(nn.Module):
    """The network of the victims' page."""

    def __init__(self, num_classes):
        super().__init__()


YAMLS = [(page, path, text) for page in PAGES for path, text in files(page)]


@pytest.mark.parametrize(("page", "path", "text"), YAMLS, ids=[path for _, path, _ in YAMLS])
def test_yaml_composes_and_names_what_there_is(page, path, text, tmp_path, monkeypatch):
    """Each in a copy of conf/, with what its own page prints where the page says to export it."""
    _, group, name = Path(path).with_suffix("").parts
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / path).write_text(text)
    monkeypatch.setattr(config, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.setitem(sys.modules, "my_package", sys.modules[__name__])
    for place in range(len(blocks(page, "python"))):
        for thing, value in vars(imported(page, place)).items():
            if getattr(value, "__module__", "") == f"printed_{page.stem}_{place}":
                package = {"attack": "attacks", "method": "methods"}.get(group, group)
                monkeypatch.setattr(f"redlab.{package}.{thing}", value, raising=False)
    words = ["attack@mix.components.pgd.attack=" + name] if group == "attack" else [f"{group}={name}"]
    final = finalise(compose(words))
    assert final.mix.components.pgd.attack._target_.endswith("RandomSigns") == (group == "attack")
    assert group == "attack" or final.choices[group] == name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_without_a_path_fits_into_a_mix(page):
    whole = {text for _, text in files(page)}
    for text in blocks(page, "yaml"):
        if text not in whole:
            (components,) = OmegaConf.create(text).values()
            cfg = compose()
            for name, component in components.items():
                OmegaConf.update(cfg, f"mix.components.{name}", component, force_add=True)
            assert set(components) <= set(finalise(cfg).mix.components)


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", calls("train.py"))
def test_train_command_is_valid(words):
    overrides = [w for w in words if w not in ("-m", "--dry-run") and not w.startswith(("resume=", "allow="))]
    if "-m" in words:  # the first job of the sweep
        overrides = [values_of(w)[0] for w in overrides]
    overrides = [w for w in overrides if not w.startswith("hydra.")]
    finalise(compose(overrides))


SWEEPS = [
    c for c in calls("train.py") if "-m" in c.values[0] and not re.search("resume=|sweep=", " ".join(c.values[0]))
]


@pytest.mark.parametrize("words", [SWEEPS[-1], pytest.param(*SWEEPS[0].values, marks=pytest.mark.slow)])
def test_a_printed_sweep_begins_in_a_folder_of_its_own(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    seen = []

    def job(cfg, *_):
        seen.append((cfg.seed, Path(HydraConfig.get().runtime.output_dir).relative_to(tmp_path)))
        return 0.0

    monkeypatch.setattr(cli, "_job", job)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert cli.train() == 0
    folders = [folder for _, folder in seen]
    assert {seed for seed, _ in seen} == {0, 1, 2}
    assert len(set(folders)) == len(folders)
    (sweep,) = {folder.parent for folder in folders}
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_sweep", str(sweep))


@pytest.mark.parametrize("words", calls("evaluate.py"))
def test_evaluate_command_is_valid(words):
    given = {w.split("=")[0]: w.split("=", 1)[1] for w in words if "=" in w}
    overrides = [w for w in words if "=" in w and w.split("=")[0] not in OF_EVALUATE]
    if "-m" in words:
        overrides = [values_of(w)[0] for w in overrides]
    parse(overrides)
    if "study" in given:
        if not {"<", "."} & set(given["study"]):
            assert find(given["study"])
        finalise(compose(overrides))
    elif "run" in given:
        assert override_stored(dict(finalise(compose())), overrides).choices


@pytest.fixture(scope="module")
def desk(finished_run, tmp_path_factory):
    """A folder with what the printed commands take for granted: the scripts, a run, its checkpoint, some pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("desk")
    for name in ("train.py", "evaluate.py", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    run = folder / "outputs" / "2026-01-31" / "12-00-00_cdd_red_digits"
    shutil.copytree(finished_run[0], run)
    shutil.copy(run / "checkpoints" / "best.ckpt", folder / "best.ckpt")
    for part, count in (("train", 8), ("test", 2)):
        for kind in range(5):
            (folder / "pictures" / part / f"kind{kind}").mkdir(parents=True)
            for i in range(count):
                image = Image.effect_noise((70, 60), 10 + 40 * kind).convert("RGB")
                image.save(folder / "pictures" / part / f"kind{kind}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("printed", runnable())
def test_a_printed_command_runs(printed, desk, tiny, clean_env):
    short = next(more for begin, more in SHORT.items() if printed.startswith(begin))
    short = short.replace("TINY", shlex.join(w for w in tiny if not w.startswith("method.")))
    command = " ".join([shlex.join(words_of(printed)), short])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = clean_env | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    before = set(desk.glob("outputs/*/*_sweep/*/metrics.json"))
    said = desk / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=desk, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        assert process.wait(600) == 0, said.read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):  # no rank of it outlives the test
            os.killpg(process.pid, signal.SIGKILL)
    assert "error:" not in said.read_text()
    jobs = torch.tensor([len(word.split(",")) for word in words_of(printed) if "=" in word]).prod()
    made = set(desk.glob("outputs/*/*_sweep/*/metrics.json")) - before
    assert len(made) == (jobs if "train.py -m " in printed else 0)


def test_a_guide_has_a_page_at_most():
    """With the code of a whole example, that is, and its files."""
    for page in GUIDES:
        text = page.read_text()
        assert len(text.splitlines()) <= 90, page.name
        assert len(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).splitlines()) <= 40, page.name


def test_ci_runs_the_readmes_test_command():
    readme = " ".join((ROOT / "README.md").read_text().split())
    command = "uv pip install -e '.[test]' && pytest"
    assert f"`{command}`" in readme
    ci = (ROOT / ".ci" / "run").read_text()
    assert command in ci
    assert "--resolution lowest-direct -e '.[test]'\n\"$lowest/bin/python\" -m pytest\n" in ci
    assert "pip install -e . && python train.py" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_paths_named_in_the_docs_exist():
    """`src/...`, `conf/...`, `tests/...`, `redlab/...` in code font, where they are whole names."""
    for page in PAGES:
        for name in re.findall(r"`((?:src|conf|tests|redlab|docs)/[\w./]+?)/?`", page.read_text()):
            places = [ROOT / name, ROOT / "src" / name]
            generated = [path for path, _ in files(page)]
            assert name in generated or any(p.exists() for p in places), f"{page.name}: {name}"


def test_every_option_named_in_the_readme_exists():
    table = (ROOT / "README.md").read_text().split("## What is in it")[1].split("##")[0]
    for link in re.findall(r"\]\((src/[^)]+)\)", table):
        assert (ROOT / link).is_file()


def test_help_and_misspelt_keys_need_not_wait_for_torch(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    code = "import sys, redlab.runs.cli; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
