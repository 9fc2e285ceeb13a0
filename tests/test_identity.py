"""Which victims are the same: a network, a recipe and the content of images, whatever their names and folders."""

import copy
import sys
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from redlab.runs import build
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise, leaves
from redlab.runs.identity import victim_identity
from redlab.victims import Victim, state_hash

# all that may change a victim's weights, or the accuracy that is kept with them: leaves, and nodes with all below them
COUNTS = (
    "victims.small_cnn.backbone",
    *(f"victims.small_cnn.{key}" for key in ("mean", "std", "input_size")),
    *(f"victim_training.{key}" for key in ("max_epochs", "seed", "batch_size", "val_size", "limit_train", "limit_val")),
    *(f"victim_training.classifier.{key}" for key in ("_target_", "label_smoothing", "optimizer", "scheduler")),
)


@pytest.fixture(scope="module")
def cfg():
    return finalise(compose())


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, 1]
    return f"{value}_"


def test_every_leaf_of_the_config(cfg):
    plain, before = OmegaConf.to_container(cfg), victim_identity(cfg, "small_cnn", "images")
    known = dict(leaves(plain))
    assert len(known) > 100
    moved = set()
    for key, value in known.items():
        changed = OmegaConf.create(copy.deepcopy(plain))
        OmegaConf.update(changed, key, another(value))
        if victim_identity(changed, "small_cnn", "images") != before:
            moved.add(key)
    assert moved == {key for key in known if any(f"{key}.".startswith(f"{node}.") for node in COUNTS)}
    assert len(moved) >= 20
    assert victim_identity(cfg, "small_cnn", "other images") != before


def test_a_recipe_of_a_victims_own_counts_and_another_victims_does_not():
    first = finalise(compose(["victim=[small_cnn,lenet]"]))
    other = finalise(compose(["victim=[small_cnn,lenet]", "+victims.lenet.training.max_epochs=3"]))
    same = finalise(compose(["victim=[small_cnn,lenet]", "+victims.lenet.training.max_epochs=10"]))
    for name, moves in (("small_cnn", False), ("lenet", True)):
        assert (victim_identity(first, name, "") != victim_identity(other, name, "")) == moves
        assert victim_identity(first, name, "") == victim_identity(same, name, "")


@pytest.mark.parametrize(
    ("name", "written_out", "other"),
    [
        ("vgg11", ["input_size=32"], "input_size=48"),
        ("svhn_cnn", ["input_size=32", "mean=0.5", "std=0.5"], "std=0.4"),
        ("cw_net", ["mean=0.5"], "mean=0"),
        ("resnet20", ["mean=[0.485,0.456,0.406]", "std=[0.229,0.224,0.225]"], "mean=0"),
        ("small_cnn", [], "input_size=48"),
    ],
)
def test_what_stands_with_an_architecture_counts_as_if_it_were_written_out(name, written_out, other):
    def identity(*words):
        said = [f"victims.{name}.{word}" for word in words]
        return victim_identity(finalise(compose(["data=cifar10", f"victim={name}", *said])), name, "images")

    assert identity(*written_out) == identity()
    assert identity(other) != identity()


def test_a_feature_layer_is_not_part_of_what_a_victim_is():
    words = ["victim=lenet", "victims.lenet.feature_layer=features.0"]
    one, other = (finalise(compose(w)) for w in (words, words[:1]))
    assert victim_identity(one, "lenet", "") == victim_identity(other, "lenet", "")


# ---- with images ----------------------------------------------------------------------------------------------------

QUICK = [
    *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.max_epochs=1"),
    "victims.small_cnn.backbone.widths=[4,8]",
    *("victim_training.max_epochs=1", "victim_training.batch_size=8"),
]


def write_folder(root, digits, count=24):
    """The scans of three digits as PNG files, one folder each; their names say nothing of what they show."""
    raw = load_digits()
    for name, digit in zip("abc", digits, strict=True):
        pictures = raw.images[raw.target == digit]
        for part, some in (("train", pictures[:count]), ("test", pictures[count : count + 8])):
            (root / part / name).mkdir(parents=True)
            for i, picture in enumerate(some):
                Image.fromarray((picture / 16 * 255).astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root


def of_folder(root, *words):
    shape = ["data.num_classes=3", "data.channels=1", "data.image_size=8", "data.num_workers=0"]
    return ["data=image_folder", f"data.root={root}", *shape, *words]


def trained(tmp_path, *words):
    """The victim, and the files of all that were trained so far."""
    victim = build.build_victims(finalise(compose([*QUICK, *words, f"victim_root={tmp_path}/victims"])))["small_cnn"]
    return victim, sorted((tmp_path / "victims").rglob("*.ckpt"))


def test_folders_of_one_shape(tmp_path):
    left, right = write_folder(tmp_path / "left", (0, 1, 2), 12), write_folder(tmp_path / "right", (7, 8, 9), 12)
    first, _ = trained(tmp_path, *of_folder(left))
    second, files = trained(tmp_path, *of_folder(right))
    assert len(files) == 2
    assert state_hash(first) != state_hash(second)
    left.rename(tmp_path / "moved")  # the same images elsewhere
    again, files = trained(tmp_path, *of_folder(tmp_path / "moved"))
    assert len(files) == 2
    assert state_hash(again) == state_hash(first)
    picture = right / "train" / "a" / "0.png"
    picture.write_bytes((right / "train" / "b" / "0.png").read_bytes())
    assert len(trained(tmp_path, *of_folder(right))[1]) == 3


@pytest.mark.slow
def test_files_of_one_name(tmp_path):
    for root, digit in (("left", 0), ("right", 9)):
        (tmp_path / root).mkdir()
        for part, count in (("train", 20), ("t10k", 8)):
            images = torch.full((count, 28, 28), 20 * digit, dtype=torch.uint8)
            labels = torch.full((count,), digit, dtype=torch.uint8)
            for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
                (tmp_path / root / f"{part}-{kind}-ubyte").write_bytes(header + bytes(values.flatten().tolist()))
    counts = [len(trained(tmp_path, "data=mnist", f"data.root={tmp_path}/{r}")[1]) for r in ("left", "right", "left")]
    assert counts == [1, 2, 2]


def test_the_loader_of_the_method_makes_no_other_victim(tmp_path):
    words = ["victim_training.limit_train=32", "victim_training.limit_val=16"]
    first, files = trained(tmp_path, *words)
    five = ("batch_size=32", "limit_train=100", "limit_val=50", "val_size=0.2", "eval_batch_size=64")
    again, now = trained(tmp_path, *words, *(f"data.{word}" for word in five))
    assert now == files
    assert state_hash(again) == state_hash(first)
    again, now = trained(tmp_path, *words, "victim_training.batch_size=16")
    assert len(now) == 2
    assert state_hash(again) != state_hash(first)


@pytest.mark.slow
def test_a_victim_knows_the_images_that_it_was_trained_on(tmp_path):
    """Digits 0-2 in one folder and 7-9 in the other: the victim of the one is no victim for the other."""
    words = ["victim_training.max_epochs=20", "victims.small_cnn.backbone.widths=[16,32]"]
    for root, digits in (("left", (0, 1, 2)), ("right", (7, 8, 9))):
        victim, _ = trained(tmp_path, *of_folder(write_folder(tmp_path / root, digits, 120), *words))
        data = build.shared_data(finalise(compose(of_folder(tmp_path / root))))
        data.setup_data()
        raw = next(iter(data._loader("test")))
        with torch.no_grad():
            assert (victim(raw.image / 255).argmax(1) == raw.label).float().mean() > 0.9


@pytest.mark.slow
def test_a_feature_layer_is_of_the_config(tmp_path):
    """It changes no weight, so the victim is found; but what the config asks for is what it gets."""
    words = ["victim_training.limit_train=32", "victim_training.limit_val=16"]
    victim, files = trained(tmp_path, *words, "victims.small_cnn.feature_layer=features.0")
    assert len(files) == 1
    assert victim.feature_layer == "features.0"
    victim, files = trained(tmp_path, *words)
    assert len(files) == 1
    assert victim.feature_layer == "features.4"  # the architecture's own: the last of two convolutions


class Linear(torch.nn.Module):
    """A user's own classifier."""

    def __init__(self, classes):
        super().__init__()
        self.linear = torch.nn.Linear(32 * 32, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.slow
def test_a_users_own_module_is_trained_and_found(tmp_path, monkeypatch):
    module = types.ModuleType("users_victims")
    module.Linear = Linear
    monkeypatch.setitem(sys.modules, "users_victims", module)
    words = [
        *(*QUICK, "~victims.small_cnn", f"victim_root={tmp_path}", "victim_training.limit_train=32"),
        *("+victims.mine.backbone._target_=users_victims.Linear", "+victims.mine.backbone.classes=10"),
    ]
    words = [word for word in words if not word.startswith("victims.small_cnn.")]
    first, again = (build.build_victims(finalise(compose(words)))["mine"] for _ in range(2))
    assert state_hash(first) == state_hash(again)
    assert len(list(tmp_path.rglob("mine-*.ckpt"))) == 1


def test_a_recipe_that_does_not_fit_the_images_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"Victim small_cnn: victim_training.batch_size=500 is more than the 29 "):
        trained(tmp_path, "victim_training.limit_train=29", "victim_training.batch_size=500")


def test_a_victim_that_guesses_is_told(capsys):
    def victim(accuracy, classes):
        return Victim(torch.nn.Identity(), num_classes=classes, name="net", clean_accuracy=accuracy)

    build._warn_of_guessing(victim(0.12, 10))
    said = " ".join(capsys.readouterr().out.split())
    assert "net is right on 12.0%" in said
    assert "10 classes (10.0%)" in said
    for good in (victim(0.3, 10), victim(0.8, 2), victim(0.01, 1000), victim(None, 10)):
        build._warn_of_guessing(good)
        assert not capsys.readouterr().out


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_victim_that_has_diverged_is_not_kept(tmp_path, monkeypatch, value):
    def fit(self, classifier, datamodule):
        next(classifier.parameters()).data.fill_(value)

    monkeypatch.setattr("lightning.Trainer.fit", fit)
    with pytest.raises(ConfigError, match=r"small_cnn has diverged; set a smaller victim_training.classifier"):
        trained(tmp_path)
    assert not list((tmp_path / "victims").rglob("*.ckpt"))
