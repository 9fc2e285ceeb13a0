"""Damaged files, each in five ways: one sentence with its name and nothing lost, or made again and said."""

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file

from redlab.runs import cli
from redlab.runs.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow


class Bomb:
    """Unpickles by making a file."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: max(path.stat().st_size * 2 // 3, 1)]),
    "text": lambda path: path.write_text("{'a': [1, 2\n"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"state_dict": Bomb()})),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
TRAIN = ["bank=auto", "bank_root=banks", "victim_root=victims"]
# what is damaged -> the command that meets it; whether it refuses (R), makes the thing again and says so (M), or
# one of both, since not all of the file is needed (E)
FILES = {
    "run/checkpoints/best.ckpt": (cli.evaluate, ["run=run", "out=new", "data.limit_test=8"], "R"),
    "run/checkpoints/last.ckpt": (cli.train, ["resume=run"], "M"),
    "run/metrics.json": (cli.train, ["resume=run"], "M"),
    "run/.hydra/overrides.yaml": (cli.train, ["resume=run"], "R"),
    "run/config.yaml": (cli.train, ["resume=run"], "E"),
    "run/evaluations/*.npz": (cli.evaluate, ["run=run", "out=new"], "M"),
    "run/evaluations/*.safetensors": (cli.evaluate, ["run=run", "out=new"], "M"),
    "victims/digits/*.ckpt": (cli.train, [*TRAIN, "hydra.run.dir=new"], "M"),
    "banks/digits/*/val-*.safetensors": (cli.train, [*TRAIN, "hydra.run.dir=new"], "M"),
    "banks/digits/*/manifest.json": (cli.train, [*TRAIN, "hydra.run.dir=new"], "R"),
    "mine.ckpt": (cli.train, ["victims.small_cnn.weights=mine.ckpt", "hydra.run.dir=new"], "R"),
    "mine.safetensors": (cli.train, ["victims.small_cnn.weights=mine.safetensors", "hydra.run.dir=new"], "R"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A run with its victim and its bank, and a user's own victims."""
    here = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr("redlab.runs.train.run_report", lambda out, **rest: out / "report.html")
        patch.setattr(sys, "argv", ["train.py", *words(tiny), *TRAIN, "hydra.run.dir=run"])
        GlobalHydra.instance().clear()
        assert cli.train() == 0
    (victim,) = (here / "victims" / "digits").glob("*.ckpt")
    shutil.copy(victim, here / "mine.ckpt")
    state = torch.load(victim, weights_only=True)["state_dict"]
    save_file(
        {name.removeprefix("network."): value.clone() for name, value in state.items()}, here / "mine.safetensors"
    )
    return here


def words(tiny):
    return [word for word in tiny if not word.startswith("victim_root=")]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file(place, tiny, tmp_path, monkeypatch, capsys, no_report, name, how):
    here = tmp_path / "here"
    shutil.copytree(place, here)
    monkeypatch.chdir(here)
    path = min(Path().glob(name))
    DAMAGES[how](path)
    command, given, expected = FILES[name]
    own = [] if any(word.startswith(("run=", "resume=")) for word in given) else words(tiny)
    before = {each: each.read_bytes() for each in (here / "run").rglob("*") if each.is_file()}
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *own, *given])
    capsys.readouterr()
    code = command()
    said = capsys.readouterr()
    either = expected == "E" or how == "folder"
    assert code in (0, 1) if either else code == (expected == "R"), said
    if code == 1:
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("error: ")
        assert path.name.partition(".")[0] in said.err or how == "folder"
        assert not Path("new").exists()
        assert {each: each.read_bytes() for each in before} == before  # nothing is lost
    elif not either:
        assert path.name.partition(".")[0] in "".join((said.out + said.err).split()), said.out
        assert (Path("new") / "metrics.json").is_file() or (Path("run") / "metrics.json").is_file()
    assert not Path("exploded").exists()
    assert read_checkpoint(Path("run/checkpoints/best.ckpt" if "best" not in name else "run/checkpoints/last.ckpt"))
