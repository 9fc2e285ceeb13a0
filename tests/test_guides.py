"""The guides under docs/, followed step by step with what they print, in a copy of the project."""

import re
import shutil
import subprocess
import sys

import pytest

from printed import ROOT, blocks, commands, files

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project, in which a guide is followed."""
    folder = tmp_path / "checkout"
    for name in ("src", "conf", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "train.py", "evaluate.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def put(path, old, new):
    """Changes a file in one place."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def export(checkout, package, module, name):
    """As ``__init__.py`` exports its neighbours."""
    file = checkout / "src" / "redlab" / package / "__init__.py"
    put(file, "\n__all__ = [", f"from redlab.{package}.{module} import {name}\n\n__all__ = [\n    {name!r},")


def add_to_conf(checkout, path, text):
    """Writes a YAML file, and counts it where the files of conf/ are counted."""
    (checkout / path).write_text(text)
    test = checkout / "tests" / "test_config.py"
    for pattern, more in ((r"len\(FILES\) == (\d+)", 1), (r"in FILES\) <= (\d+)", len(text.splitlines()))):
        said = re.search(pattern, test.read_text())
        put(test, said[0], said[0].replace(said[1], str(int(said[1]) + more)))


def follow_attack(checkout, page):
    (checkout / "src/redlab/attacks/random_signs.py").write_text(blocks(page, "python")[0])
    export(checkout, "attacks", "random_signs", "RandomSigns")
    (line,) = blocks(page, "py")
    suite = checkout / "tests/attacks/test_contract.py"
    put(suite, "\nATTACKS = [", f"\nfrom redlab.attacks import RandomSigns\n\nATTACKS = [\n    {line.strip()},")
    table = checkout / "docs" / "attacks.md"
    put(
        table,
        "\n| `Square` |",
        "\n| `RandomSigns` | `random_signs` | ours | linf | scores | yes | `queries` f |\n| `Square` |",
    )
    return ["tests/attacks/test_contract.py", "-k", "random-signs or random_signs"], 50


def follow_method(checkout, page):
    (checkout / "src/redlab/methods/smoother.py").write_text(blocks(page, "python")[0])
    export(checkout, "methods", "smoother", "Smoother")
    (line,) = blocks(page, "py")
    suite = checkout / "tests/methods/test_method_contract.py"
    put(suite, "\nMETHODS = {", "\nfrom redlab.methods import Smoother\n\nMETHODS = {")
    (printed,) = re.findall(r"^ +\*\*entry\(.*\n", suite.read_text(), re.M)
    put(suite, printed, f"    {line}")  # it would be there twice
    put(checkout / "tests/test_config.py", "\nCOMPOSED = {", "\nCOMPOSED = {\n    'smoother': ['method=smoother'],")
    return ["tests/methods", "-k", "smoother or Smoother or all_methods or left_out"], 9


def follow_data(checkout, page):
    _, function = blocks(page, "python")[0].split("\n\n\n")
    with (checkout / "src/redlab/data/sources.py").open("a") as file:
        file.write("\n\n" + function)
    export(checkout, "data", "sources", "stripes")
    put(checkout / "tests/test_config.py", "\nCOMPOSED = {", "\nCOMPOSED = {\n    'stripes': ['data=stripes'],")
    return ["tests/data/test_data_module.py", "-k", "shipped"], 2


FOLLOWED = {"add_an_attack": follow_attack, "add_a_method": follow_method, "add_a_dataset": follow_data}
CHOICES = {
    "add_an_attack": ["attack@mix.components.pgd.attack=random_signs", "method.depth=3"],
    "add_a_method": ["method=smoother"],
    "add_a_dataset": ["data=stripes", "method.depth=3"],
}


def test_the_guides_followed_to_the_letter(checkout, tiny, clean_env):
    """The suites that a page demands pass with what it prints, and a run with it ends well. All in one copy, since what
    holds for the whole project takes as long as the rest."""
    env = clean_env | {"PYTHONPATH": str(checkout / "src")}

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=checkout, env=env, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    for name, follow in FOLLOWED.items():
        page = ROOT / "docs" / f"{name}.md"
        suite, least = follow(checkout, page)
        for path, text in files(page):
            add_to_conf(checkout, path, text)
        said = run("-m", "pytest", "-n", "0", "-q", *suite)
        assert int(re.search(r"(\d+) passed", said)[1]) >= least, name
    assert f"python train.py {CHOICES['add_a_dataset'][0]}" in commands(page)
    rules = ["tests/test_layers.py", "tests/test_config.py", "-k", "layers or every_option or size_of_conf or harmless"]
    run("-m", "pytest", "-n", "0", "-q", *rules)
    run("-m", "mypy", *(f"src/redlab/{package}" for package in ("attacks", "methods", "data")))
    small = [word for word in tiny if not word.startswith(("method.", "victim_root"))]
    for name, choice in CHOICES.items():
        run("train.py", *choice, *small, f"hydra.run.dir=run_{name}")
        assert (checkout / f"run_{name}" / "metrics.json").is_file()
