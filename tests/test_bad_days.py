"""What a full disk or a damaged file costs: never what was there, and no more than is made again by itself."""

import errno
import json

import pytest
import torch

from redlab.metrics import Samples
from redlab.runs import cli, trainer
from redlab.runs import train as training
from redlab.runs.blame import sentence
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import read_checkpoint
from redlab.runs.config import compose, finalise


@pytest.fixture
def train(tiny, no_report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, out="run"):
        return training.train(finalise(compose([*tiny, "mix=attunet", *words])), tmp_path / out)

    return run


def weights(out, name="last"):
    return read_checkpoint(out / "checkpoints" / f"{name}.ckpt")["state_dict"]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# ---- a full disk ----------------------------------------------------------------------------------------------------


# as the system says it, and as torch does
@pytest.mark.parametrize("how", ["OSError", pytest.param("RuntimeError", marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_checkpoint_before(train, tmp_path, monkeypatch, how):
    whole = train("trainer.max_epochs=2", out="whole")
    plain, count = torch.save, [0]

    def full(thing, place):
        if str(place).endswith("ckpt.part"):
            count[0] += 1
            if count[0] > 2:  # best and last of the first epoch are written
                place.write_bytes(b"the beginning of it")
                raise OSError(errno.ENOSPC, "No space left on device") if how == "OSError" else RuntimeError("[enforce")
        return plain(thing, place)

    monkeypatch.setattr(trainer.torch, "save", full)
    with pytest.raises(OSError, match="cannot be written") as raised:
        train("trainer.max_epochs=2")
    said = sentence(raised.value)
    assert str(tmp_path / "run" / "checkpoints") in said
    assert "MiB free; the checkpoint before it is still there" in said
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["best.ckpt", "last.ckpt"]
    monkeypatch.setattr(trainer.torch, "save", plain)
    assert train("trainer.max_epochs=2") == whole
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_costs_no_number_and_no_training(train, tmp_path, monkeypatch, capsys):
    plain = Samples.save

    def full(self, path):
        if path.name == "samples.npz":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, path)

    monkeypatch.setattr(Samples, "save", full)
    with pytest.raises(OSError, match="No space left") as raised:
        train()
    assert str(tmp_path / "run") in sentence(raised.value)
    assert "the same words test again without training" in sentence(raised.value)
    said = capsys.readouterr().out
    assert "Accuracy" in said
    assert "rfgsm" in said
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    monkeypatch.setattr(Samples, "save", plain)
    numbers = train()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == numbers
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before


# ---- a damaged file -------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: max(path.stat().st_size // 2, 1)])


@pytest.mark.slow
def test_a_damaged_file_of_a_bank_is_made_again(train, tmp_path, capsys):
    words = ["bank=auto", f"bank_root={tmp_path}/banks"]
    whole = train(*words, out="whole")
    (folder,) = (path for path in (tmp_path / "banks" / "digits").iterdir() if path.is_dir())
    files = sorted(folder.glob("*.safetensors"))
    before = {path: path.read_bytes() for path in files}
    cut(files[0])
    files[1].write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{files[0].name} is damaged: bank=auto makes it again"):
        train(f"bank={folder}", out="asked")
    capsys.readouterr()
    assert train(*words, out="again") == whole
    said = "".join(capsys.readouterr().out.split())
    assert all(f"{path.name}isdamaged,andmadeagain" in said for path in files[:2])
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.slow
def test_a_damaged_victim_that_was_trained_here_is_trained_again(train, tmp_path, capsys):
    words = [f"victim_root={tmp_path}/victims"]
    whole = train(*words, out="whole")
    (file,) = (tmp_path / "victims").rglob("*.ckpt")
    cut(file)
    capsys.readouterr()
    assert train(*words, out="again") == whole
    assert "itistrainedagain" in "".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_damaged_numbers_are_measured_again(train, tmp_path):
    whole, path = train(), tmp_path / "run" / "metrics.json"
    cut(path)
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    assert train() == whole
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    assert json.loads(path.read_text()) == whole


def test_a_sentence_of_an_error_that_knows_no_file(capsys):
    def full(argv):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert cli._guarded(full, []) == 1
    assert "No space left on device" in capsys.readouterr().err
