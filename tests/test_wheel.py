"""What an installed redlab has: its YAML and its data files come along, from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("redlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_contents(installed):
    shipped = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    assert "redlab/studies/tables.json" in shipped
    for kind, root, into in (("*.py", ROOT / "src", ""), ("*.yaml", ROOT / "conf", "redlab/conf/")):
        sources = {into + str(p.relative_to(root)) for p in root.rglob(kind) if "local" not in p.parts}
        assert sources
        assert sources <= shipped
    strange = [name for name in shipped if name.startswith(("tests", "docs", "outputs", "redlab/conf/local"))]
    assert not strange


def test_composes_from_another_folder(installed, tmp_path):
    code = (
        "from redlab.runs.config import compose, conf_dir, finalise\n"
        "cfg = finalise(compose(['method=ds', 'data=fashion_mnist', 'victim=[lenet,vgg11]', 'mix=cdd_red_known']))\n"
        "print(conf_dir(), cfg.method.lambda_benign, cfg.victims.vgg11.backbone.image_size)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "redlab" / "conf"), "0.1", "28"]


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "redlab"],
        ["-c", "from importlib.metadata import entry_points as e; e(group='console_scripts')['redlab'].load()()"],
    ],
)
def test_commands(installed, tmp_path, command):
    """The command that pip makes, and the module: from any folder, with the configs of the package."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}

    def call(*words):
        done = subprocess.run(
            [sys.executable, *command, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        return " ".join(done.stdout.split()) + done.stderr

    assert "redlab evaluate" in call("--help")
    assert "seed: 3" in call("train", "--cfg", "job", "seed=3")
    assert "study=<paper>/<table>" in call("evaluate", "--help")
    assert "Did you mean 'evaluate'?" in call("evalute")
    assert not list(tmp_path.iterdir())
