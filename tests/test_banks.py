"""``bank=...``: what a run trains and is tested on is what the mix would have crafted, and it is crafted once."""

import json

import pytest
import torch
from safetensors.torch import load_file

from redlab.crafting.bank import KEPT
from redlab.data import AttackDataModule
from redlab.metrics import Samples
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise
from redlab.runs.train import evaluate, train
from redlab.victims import Victim

SMALL = ["data.limit_train=96", "data.limit_val=32", "data.limit_test=24", "data.batch_size=32", "method.width=4"]
SMALL += ["method.depth=3", "trainer.enable_progress_bar=false", "logger=none", "victim_training.max_epochs=1"]
SMALL += ["victim_training.limit_train=256", "victim_training.limit_val=32"]


@pytest.fixture
def run(tmp_path, victim_root, no_report, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def go(name, *words, epochs=2):
        given = [*SMALL, f"trainer.max_epochs={epochs}", f"victim_root={victim_root}", f"bank_root={tmp_path}/banks"]
        return train(finalise(compose([*given, *words])), tmp_path / name)

    return go


@pytest.fixture
def asked(monkeypatch):
    """How many images victims were asked about."""
    count, plain = [0], Victim.forward

    def counted(self, x):
        count[0] += len(x)
        return plain(self, x)

    monkeypatch.setattr(Victim, "forward", counted)
    return count


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_bank_of_all_epochs_changes_no_bit_and_asks_the_victim_less(run, asked, tmp_path):
    plain, crafting = run("plain"), asked[0]
    asked[0] = 0
    assert run("built", "bank=build", "bank_epochs=2") == {}
    assert not (tmp_path / "built" / "checkpoints").exists()
    (folder,) = (path for path in (tmp_path / "banks" / "digits").iterdir() if path.is_dir())
    assert sorted({path.name.rsplit("-", 1)[0] for path in folder.glob("*.safetensors")}) == [
        *("test-1-0-0", "test-2-0-0", "train-0", "train-1", "val")
    ]
    asked[0] = 0
    banked = run("banked", f"bank={folder}")
    assert banked == plain
    left, right = weights(tmp_path / "plain"), weights(tmp_path / "banked")
    assert all(torch.equal(left[name], right[name]) for name in left)
    first, second = (Samples.load(tmp_path / name / "samples.npz") for name in ("plain", "banked"))
    assert all(torch.equal(first[column], second[column]) for column in first.columns)
    assert asked[0] < 0.7 * crafting  # what is left are the method's loss, the measures, and who attacks the defence


def test_how_many_are_crafted_together_changes_the_last_bits_alone(run, tmp_path, monkeypatch):
    together, plain_craft = [], AttackDataModule.craft

    def counted(self, raw, **words):
        if len(self.mix.names) > 1:  # not while a victim is trained
            together.append(len(raw.index))
        return plain_craft(self, raw, **words)

    monkeypatch.setattr(AttackDataModule, "craft", counted)

    def built(name, *words):
        run(name, "bank=build", f"bank_root={tmp_path}/{name}", *words)
        (folder,) = (path for path in (tmp_path / name / "digits").iterdir() if path.is_dir())
        return folder.name, {path.name: load_file(path) for path in folder.glob("*.safetensors")}

    name, plain = built("plain")
    assert set(together) == {32, 24}  # of training and validation, and of the test
    together.clear()
    same, larger = built("larger", "bank_batch_size=4096")
    assert set(together) == {96, 32, 24}
    assert name == same
    assert plain.keys() == larger.keys()
    for part, rows in plain.items():
        for column in KEPT:
            equal = (rows[column] == larger[part][column]).double().mean()
            assert equal > 0.98 if column in ("adv", "fooled") else equal == 1


@pytest.mark.slow
def test_a_bank_is_used_and_gone_on_with_by_its_own_files(run, tmp_path, asked, monkeypatch):
    monkeypatch.setattr("redlab.data.banking.IMAGES", 64)
    run("built", "bank=build")  # train-0 in files of 64 and 32 images
    (folder,) = (path for path in (tmp_path / "banks" / "digits").iterdir() if path.is_dir())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert [name for name in files if name.startswith("train")] == [f"train-0-0000{i}.safetensors" for i in (0, 1)]
    asked[0] = 0
    run("whole", "bank=build", "bank_batch_size=96")  # in one file, if it had to be crafted
    assert asked[0] == 0
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    assert run("first", "bank=auto", epochs=1) == run("second", "bank=auto", "bank_batch_size=96", epochs=1)
    (folder / "train-0-00000.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"train-0 of the bank .* was begun with 64 images in a file, not 96"):
        run("refused", "bank=build", "bank_batch_size=96")
    run("mended", "bank=build")
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    with pytest.raises(ConfigError, match="bank_batch_size must be at least 1, got 0"):
        run("refused", "bank=build", "bank_batch_size=0")


@pytest.mark.slow
def test_one_epoch_is_seen_again_in_every_epoch(run, tmp_path):
    run("two"), run("same", "bank=auto")
    saved = torch.load(tmp_path / "same" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["redlab"]["counted"]["bank_epochs"] == 1
    two, same = weights(tmp_path / "two"), saved["state_dict"]
    assert not all(torch.equal(two[name], same[name]) for name in two)


def test_another_mix_victim_or_image_is_refused(run, tmp_path):
    run("built", "bank=build")
    (folder,) = (path for path in (tmp_path / "banks" / "digits").iterdir() if path.is_dir())
    for word, said in (
        (
            "mix.components.pgd.attack.steps=3",
            "mix.components.pgd.attack.steps=10, not mix.components.pgd.attack.steps=3",
        ),
        ("victim=lenet", "made with victims.small_cnn="),
        ("data.limit_train=95", "images.train="),
        ("seed=1", "mix.seed=0, not"),
    ):
        with pytest.raises(ConfigError, match=said):
            run("refused", f"bank={folder}", word)
    next(folder.glob("train*")).unlink()
    with pytest.raises(ConfigError, match="still lacks 1 files"):
        run("refused", f"bank={folder}")
    with pytest.raises(ConfigError, match="no attack bank"):
        run("refused", f"bank={tmp_path}")
    with pytest.raises(ConfigError, match="no bank holds that"):
        run("refused", "bank=auto", "mix.components.pgd.knowledge=defence")


@pytest.mark.slow
def test_an_evaluation_takes_the_same_bank(run, asked, tmp_path):
    assert run("plain", epochs=1) == run("run", "bank=auto", epochs=1)
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert evaluate(tmp_path / "run", ["bank=auto", f"bank_root={tmp_path}/banks"], tmp_path / "again") == numbers
    assert evaluate(tmp_path / "run", [], tmp_path / "crafted") == numbers
