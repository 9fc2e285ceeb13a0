"""What README and docs promise is true: their code runs, their commands compose, their links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from redlab.runs.config import compose, conf_dir, finalise, override_stored, parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = sorted((ROOT / "docs").glob("add_*.md"))
# known of a run only when it exists; evaluate.py takes them for itself
OF_EVALUATE = {"run", "study", "scale", "seeds", "out", "debug"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(script):
    """(page, words) of every line that calls ``script``, in a bash block or as inline code that spans lines."""
    found = []
    for page in PAGES:
        text = "\n".join(blocks(page, "bash"))
        text += "\n" + "\n".join(
            " ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", page.read_text())
        )
        for line in text.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if script in words and len(words) > words.index(script):
                    found.append(pytest.param(words[words.index(script) + 1 :], id=f"{page.stem}: {part.strip()[:60]}"))
    return found


def test_there_is_something_to_check():
    assert len(commands("train.py")) >= 6
    assert len(commands("evaluate.py")) >= 3
    assert {page.stem for page in GUIDES} == {
        "add_a_method", "add_an_attack", "add_a_victim", "add_a_dataset", "add_a_study"
    }  # fmt: skip


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        # a module of its own, as a dataclass looks up the module that it was made in
        exec(compile(code, f"{page.name}", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("words", commands("train.py"))
def test_train_command_is_valid(words):
    overrides = [w for w in words if w != "-m" and not w.startswith("resume=") and w != "--help"]
    if "-m" in words:  # the first job of the sweep
        overrides = [w if "[" in w else w.split(",")[0] for w in overrides]
    overrides = [w for w in overrides if not w.startswith("hydra.")]
    finalise(compose(overrides))


@pytest.mark.parametrize("words", commands("evaluate.py"))
def test_evaluate_command_is_valid(words):
    given = {w.split("=")[0]: w.split("=", 1)[1] for w in words if "=" in w}
    overrides = [w for w in words if "=" in w and w.split("=")[0] not in OF_EVALUATE]
    parse(overrides)
    if "study" in given:
        if not {"<", "."} & set(given["study"]):
            assert (conf_dir() / "study" / f"{given['study']}.yaml").is_file()
        finalise(compose(overrides))
    elif "run" in given:
        assert override_stored(dict(finalise(compose())), overrides).choices


def test_a_guide_has_a_page_at_most():
    for page in GUIDES:
        assert len(page.read_text().splitlines()) <= 60, page.name


def test_ci_runs_the_readmes_test_command():
    readme = " ".join((ROOT / "README.md").read_text().split())
    command = "uv pip install -e '.[test]' && pytest"
    assert f"`{command}`" in readme
    assert command in (ROOT / ".ci" / "run").read_text()
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
            generated = name.startswith("conf/victim/mine")
            assert generated or any(p.exists() for p in places), f"{page.name}: {name}"


def test_every_option_named_in_the_readme_exists():
    table = (ROOT / "README.md").read_text().split("## What is in it")[1].split("##")[0]
    for link in re.findall(r"\]\((src/[^)]+)\)", table):
        assert (ROOT / link).is_file()


def test_help_and_misspelt_keys_need_not_wait_for_torch(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    code = "import sys, redlab.runs.cli; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
