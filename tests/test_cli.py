"""The two commands as a user types them: every mistake is one sentence and exit code 1, and costs nothing."""

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from redlab.runs import cli

FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def slow(*values):
    """A case that repeats at the command line what another case, or tests/test_config.py, shows at less cost."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def is_one_sentence(self, *words):
        assert self.code == 1
        assert "Traceback" not in self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert len(lines[0]) > len("error: ") + 10
        for word in words:
            assert str(word) in lines[0]


@pytest.fixture
def call(call):
    """As everywhere, with what tells whether a mistake was one sentence."""
    return lambda command, *words: Result(*call(command, *words))


@pytest.fixture
def finished(finished_run):
    """The folder of a finished run of CDD-RED; tests must not write into it."""
    return finished_run[0]


@pytest.fixture
def previous(finished, tmp_path):
    """A copy of that folder, which a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "previous"))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def damage(path, how):
    path.write_bytes({"empty": b"", "truncated": path.read_bytes()[: path.stat().st_size // 2]}[how])


# ---- what is typed wrongly ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trainer.max_epoch=3", ["trainer.max_epoch", "Did you mean 'trainer.max_epochs'?"]),
        slow("metod=do", ["metod", "Did you mean 'method'?"]),
        ("method=cdd_rde", ["method=cdd_rde", "Did you mean 'cdd_red'?", "Options: add_defense, ape_gan, attunet_gan"]),
        ("data=digit", ["data=digit", "Did you mean 'digits'?", "fashion_mnist"]),
        ("optim@method.optimizer=sdg", ["Did you mean 'sgd'?"]),
        ("method.optimizer.lr=abc", ["method.optimizer.lr must be a number", "'abc'"]),
        slow("method._target_=redlab.Nothing", ["method._target_=redlab.Nothing cannot be imported"]),
        ("method.width=[1,", ["method.width=[1,"]),
        ("max_epochs", ["max_epochs", "key=value"]),
        slow("data=image_folder", ["has no value: give it as data."]),
    ],
)
def test_a_mistake_in_train(call, tmp_path, word, says):
    call(cli.train, word).is_one_sentence(*says)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mix=clean"], ["run=", "study="]),
        (["run=a", "study=b"], ["run=", "study="]),
        (["run=nowhere"], ["nowhere: no such checkpoint"]),
        (["study=cdd_red/table9"], ["cdd_red/table9", "cdd_red/tableA9"]),
        (["study=cdd_red/table1", "scale=tiny"], ["'tiny'", "smoke, small, small_cifar, paper"]),
        (["study=cdd_red/table1", "scale=smoke", "trainer.max_epoch=1"], ["Did you mean 'trainer.max_epochs'?"]),
    ],
)
def test_a_mistake_in_evaluate(call, words, says):
    call(cli.evaluate, *words).is_one_sentence(*says)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.batch_sise=8", "Did you mean 'data.batch_size'?"),
        ("data=digit", "Did you mean 'digits'?"),
        ("method=do", "keeps its own method"),
        ("method.optimizer.lr=abc", "must be a number"),
    ],
)
def test_a_mistake_in_the_evaluation_of_a_run(call, finished, tmp_path, word, says):
    before = contents(finished)
    call(cli.evaluate, f"run={finished}", word).is_one_sentence(says)
    assert contents(finished) == before
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_of_an_evaluation_or_a_resume_writes_nothing(call, finished, tmp_path):
    before = contents(finished)
    result = call(cli.evaluate, f"run={finished}", "mix=attunet", "--dry-run")
    assert result.code == 0, result.err
    for words in ("attunet: clean, fgsm, rfgsm", "in the checkpoint", "best.ckpt"):
        assert words in result.out
    call(cli.evaluate, f"run={finished}", "mix.deal=stratfied", "--dry-run").is_one_sentence(
        "mix.deal", "'stratified'?"
    )
    result = call(cli.train, f"resume={finished}", "trainer.max_epochs=2", "--dry-run")
    assert result.code == 0, result.err
    assert "last.ckpt" in "".join(result.out.split())
    call(cli.train, f"resume={finished}", "method.width=8", "--dry-run").is_one_sentence(
        "was trained with method.width=4"
    )
    assert contents(finished) == before
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(call):
    with pytest.raises(ValueError, match="max_epochs"):
        call(cli.train, "trainer.max_epochs=ten", "debug=true")
    with pytest.raises(ValueError, match="nowhere"):
        call(cli.evaluate, "run=nowhere", "debug=true")


# ---- what is missing or damaged -------------------------------------------------------------------------------------


def test_missing_data_folder(call, tmp_path, tiny):
    words = [*tiny, "data=fashion_mnist", "data.root=nowhere"]
    call(cli.train, *words).is_one_sentence("FashionMNIST not found", "nowhere", "data.root")


def test_truncated_idx_file(call, tmp_path, tiny):
    root = tmp_path / "fashion"
    root.mkdir()
    for name in FASHION_FILES:
        sizes = (20, 28, 28) if "images" in name else (20,)
        header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
        (root / name).write_bytes(header + bytes(torch.tensor(sizes).prod().item()))
    damage(root / FASHION_FILES[0], "truncated")
    words = [*tiny, "data=fashion_mnist", f"data.root={root}"]
    call(cli.train, *words).is_one_sentence(FASHION_FILES[0], "truncated")


def test_victim_with_another_number_of_classes(call, tmp_path, tiny):
    from redlab.victims import architectures
    from redlab.victims.loading import CHECKPOINT_KEY

    net = architectures.small_cnn(num_classes=7, channels=1, image_size=32)
    said = {"architecture": net.redlab_arch, "num_classes": 7, "mean": [0.0], "std": [1.0], "input_size": None}
    said |= {"feature_layer": None, "name": "seven", "clean_accuracy": 0.5}
    state = {f"net.backbone.{k}": v for k, v in net.state_dict().items()}
    torch.save({CHECKPOINT_KEY: said, "state_dict": state}, tmp_path / "seven.ckpt")
    words = [*tiny, "victims.small_cnn.weights=seven.ckpt"]
    call(cli.train, *words).is_one_sentence("seven.ckpt tells 7 classes apart, not 10")


@pytest.mark.slow
def test_folder_with_another_number_of_classes(call, tmp_path, tiny):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("ant", "bee"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("L", (32, 32), 40 * i).save(folder / f"{i}.png")
    words = [*tiny, "data=image_folder", "data.root=images", "data.num_classes=3"]
    words += ["data.channels=1", "data.image_size=32", "data.num_workers=0"]
    call(cli.train, *words).is_one_sentence("data.num_classes is 3", "has 2")


def test_damaged_victim(call, tmp_path, finished, tiny):
    shutil.copy(finished / "checkpoints" / "best.ckpt", tmp_path / "victim.ckpt")
    damage(tmp_path / "victim.ckpt", "truncated")
    words = [*tiny, "victims.small_cnn.weights=victim.ckpt"]
    call(cli.train, *words).is_one_sentence("victim.ckpt", "truncated")


@pytest.mark.parametrize("how", ["empty", "truncated"])
def test_evaluation_of_a_damaged_checkpoint(call, previous, tmp_path, how):
    damage(previous / "checkpoints" / "best.ckpt", how)
    before = contents(previous)
    call(cli.evaluate, f"run={previous}").is_one_sentence("best.ckpt", how)
    assert contents(previous) == before


def test_evaluation_of_a_checkpoint_of_another_program(call, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    call(cli.evaluate, "run=other.ckpt").is_one_sentence("other.ckpt was not written by a redlab run")
    (tmp_path / "empty").mkdir()
    call(cli.evaluate, "run=empty").is_one_sentence("empty has no checkpoints/best.ckpt or last.ckpt")


def test_checkpoint_of_another_method(call, previous):
    """A folder that holds a run of CDD-RED is no place for a classifier; the run in it stays whole."""
    before = contents(previous)
    words = ["method=classifier", "mix=clean", "trainer.max_epochs=1", "data.limit_train=64"]
    result = call(cli.train, *words, f"hydra.run.dir={previous}")
    result.is_one_sentence("holds a CDDRED, not a Classifier")
    assert contents(previous) == before


def test_resume_as_another_method_of_the_same_class(call, previous):
    """Also where the folder is not named by resume; tests/test_checkpoints.py looks at single hyper-parameters."""
    before = contents(previous)
    says = "was trained with method.lambda_benign=0.025, not 0.0"
    call(cli.train, f"resume={previous}", "trainer.max_epochs=2", "method=do").is_one_sentence(says)
    words = [*OmegaConf.load(previous / ".hydra" / "overrides.yaml"), "method=do"]
    call(cli.train, *words, f"hydra.run.dir={previous}").is_one_sentence(says)
    assert contents(previous) == before


@pytest.mark.parametrize(
    "word", [slow("method.width=ten"), slow("data.num_classes=11"), "victims.small_cnn.weights=nowhere.pt"]
)
def test_a_failed_resume_loses_nothing(call, previous, word):
    before = contents(previous)
    call(cli.train, f"resume={previous}", *{"trainer.max_epochs=2", word}).is_one_sentence()
    assert contents(previous) == before


def test_a_failed_evaluation_into_an_old_folder_loses_nothing(call, finished, previous):
    shutil.rmtree(previous / "checkpoints")  # now it is like the folder of an evaluation
    before = contents(previous)
    result = call(cli.evaluate, f"run={finished}", f"out={previous}", "data=fashion_mnist", "data.root=nowhere")
    result.is_one_sentence("nowhere")
    assert contents(previous) == before


def test_an_evaluation_does_not_go_into_a_trained_run(call, previous):
    before = contents(previous)
    for run in (previous, previous / "checkpoints" / "best.ckpt"):
        call(cli.evaluate, f"run={run}", f"out={previous}").is_one_sentence("holds a trained run", previous)
    assert contents(previous) == before


def test_resume_of_no_run(call, tmp_path):
    call(cli.train, f"resume={tmp_path}").is_one_sentence("no run in that folder")


def test_resume_falls_back_to_the_best_checkpoint(call, previous, no_report):
    last = previous / "checkpoints" / "last.ckpt"
    damage(last, "truncated")
    # more epochs and another log are no other method
    result = call(cli.train, f"resume={previous}", "trainer.max_epochs=2", "trainer.log_every_n_steps=2", "logger=none")
    assert result.code == 0, result.err
    said = "".join(result.out.split())  # the console breaks long lines anywhere
    assert "last.ckptcannotbereadasacheckpoint" in said
    assert re.search(r"Resumingfrom\S*best\.ckpt", said)
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_resume_with_nothing_but_damaged_checkpoints(call, previous):
    for name in ("last", "best"):
        damage(previous / "checkpoints" / f"{name}.ckpt", "truncated")
    before = contents(previous)
    call(cli.train, f"resume={previous}").is_one_sentence("checkpoints can be resumed")
    assert contents(previous) == before


def test_unwritable_output_folder(call, tmp_path, finished, tiny):
    (tmp_path / "file").write_text("in the way")
    call(cli.train, *tiny, "hydra.run.dir=file/x").is_one_sentence("file/x")
    call(cli.evaluate, f"run={finished}", "out=file/x").is_one_sentence("file/x")
    assert (tmp_path / "file").read_text() == "in the way"


# ---- what works -----------------------------------------------------------------------------------------------------


def test_train_leaves_what_the_readme_says(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*")}
    wanted = {"metrics.json", "report.html", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert wanted | {".hydra/overrides.yaml", "figures", "csv"} <= names
    metrics = json.loads((finished / "metrics.json").read_text())
    for key in ("clean_accuracy", "attacked_accuracy", "restored_accuracy", "adaptive_restored_accuracy"):
        assert 0 <= metrics[f"test/{key}"] <= 1
        attack = "aware_pgd" if key.startswith("adaptive") else "pgd"
        assert key == "clean_accuracy" or 0 <= metrics[f"test/{key}/{attack}"] <= 1
    config = OmegaConf.load(finished / "config.yaml")
    assert "${" not in (finished / "config.yaml").read_text()
    assert config.method.width == 4
    assert config.mix.components.fgsm.params.eps.uniform == [24 / 255, 64 / 255]


@pytest.mark.slow
def test_evaluate_gives_the_numbers_of_the_run(call, finished):
    before = contents(finished)
    # a checkpoint alone is enough: not the folder around it, and not the victims' cache
    shutil.copy(finished / "checkpoints" / "best.ckpt", "alone.ckpt")
    result = call(cli.evaluate, "run=alone.ckpt", "out=again", "victim_root=elsewhere")
    assert result.code == 0, result.err
    assert json.loads(Path("again/metrics.json").read_text()) == json.loads((finished / "metrics.json").read_text())
    assert not Path("elsewhere").exists()
    assert contents(finished) == before


@pytest.mark.slow  # tests/test_checkpoints.py looks at the same in one process
def test_evaluate_with_another_mix_and_victim(call, finished, victim_root):
    words = ["mix=attunet", "victim=lenet", "mix.components.fgsm.params.eps.shuffled=[8,16]"]
    result = call(cli.evaluate, f"run={finished}", "out=other", f"victim_root={victim_root}", *words)
    assert result.code == 0, result.err
    metrics = json.loads(Path("other/metrics.json").read_text())
    assert "test/restored_accuracy/rfgsm/lenet" in metrics
    assert not any("small_cnn" in key or "/pgd" in key for key in metrics)


def test_help_of_evaluate(call):
    for words in ([], ["--help"], ["-h"]):
        result = call(cli.evaluate, *words)
        assert result.code == 0
        assert "run=" in result.out
        assert "study=" in result.out


def test_help_of_train(call):
    result = call(cli.train, "--help")
    assert result.code == 0
    for word in ("method: add_defense, ape_gan, attunet_gan", "fashion_mnist", "resume=", "max_epochs", "-m "):
        assert word in result.out


def test_a_console_that_knows_only_ascii_stops_nothing(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert cli._guarded(lambda argv: print("2/4 • 0:00:01"), []) == 0
    assert raw.getvalue() == b"2/4 ? 0:00:01\n"
