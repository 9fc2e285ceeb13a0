"""What makes a victim, a run and an evaluation the same: what may change a number, whatever names and folders say."""

import copy
import inspect
import sys
import types
from fnmatch import fnmatchcase

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from printed import ROOT, imported
from redlab.data import AttackDataModule
from redlab.runs import build, identity
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, conf_dir, finalise, leaves
from redlab.runs.identity import Content, evaluation_identity, file_identity, run_identity, victim_identity
from redlab.victims import Victim, state_hash

# ---- every leaf -----------------------------------------------------------------------------------------------------

V, R, E = "victim", "run", "evaluation"
# Which identities each leaf of the config moves. The first pattern that fits counts; a leaf that none fits is refused.
MOVES = (
    ("seed", {R, E}),
    ("only", {}),  # what it leaves is the mix
    ("init", {R}),
    ("bank", {R}),
    ("judges", {R, E}),
    ("bank_epochs", {}),  # of a config without a bank
    (("bank_batch_size", "bank_root"), {}),
    (("name", "debug", "compile", "victim_root", "save_victims", "choices.*", "logger.*"), {}),
    # all that a method or a mix says, but no name of a data set, and no path of images
    ("method.data_name", {}),
    ("method.*", {R}),
    ("mix.*.guides.source.*", {}),
    ("mix.*", {R, E}),
    # images count by content
    (("data._target_", "data.source.*", "data.root", "data.download", "data.name", "data.check_images"), {}),
    # and these are those of the images, or the run stops; where a network or a method takes them, it counts there
    (("data.num_classes", "data.channels", "data.image_size", "data.mean", "data.std"), {}),
    (("data.batch_size", "data.val_size", "data.limit_train", "data.limit_val"), {R}),
    ("data.hold_out", {V, R, E}),
    ("data.use", {R}),
    ("data.limit_test", {R, E}),
    ("data.test_on", {R, E}),
    ("data.shuffle_attacks", {R}),
    (("data.num_workers", "data.eval_batch_size"), {}),
    (("data.source", "data.mix", "data.victims", "data.seed"), {}),  # redlab hands these over itself
    # victims
    (
        ("victims.*.backbone.*", "victims.*.mean", "victims.*.std", "victims.*.input_size", "victims.*.weights"),
        {V, R, E},
    ),
    ("victims.*.feature_layer", {R, E}),
    ("victim_training.classifier.data_name", {}),
    (("victim_training.classifier.optimizer.*", "victim_training.classifier.scheduler*"), {V, R, E}),
    (("victim_training.classifier._target_", "victim_training.classifier.label_smoothing"), {V, R, E}),
    (tuple(f"victim_training.{key}" for key in ("max_epochs", "seed", "batch_size", "val_size")), {V, R, E}),
    (("victim_training.limit_train", "victim_training.limit_val"), {V, R, E}),
    # how long, how exactly, and which checkpoint is the best
    (tuple(f"trainer.{end}_{unit}" for end in ("min", "max") for unit in ("epochs", "steps")), {R}),
    (("trainer.max_time", "trainer.limit_train_batches", "trainer.limit_val_batches"), {R}),
    (("trainer.limit_test_batches", "trainer.precision"), {R, E}),
    (("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"), {R}),
    (("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.callbacks", "trainer.plugins"), {R}),
    (("trainer.devices", "trainer.num_nodes", "trainer.sync_batchnorm"), {R}),
    # where and by which kernels, whose numbers differ by rounding; what is shown
    (("trainer._target_", "trainer.accelerator", "trainer.strategy", "trainer.benchmark", "trainer.deterministic"), {}),
    (("trainer.inference_mode", "trainer.num_sanity_val_steps", "trainer.reload_dataloaders_every_n_epochs"), {}),
    (("trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary"), {}),
    (("trainer.profiler", "trainer.detect_anomaly", "trainer.enable_autolog_hparams"), {}),
    # refused by redlab (tests/test_settings.py)
    (("trainer.logger", "trainer.default_root_dir", "trainer.limit_predict_batches", "trainer.model_registry"), {}),
    (("trainer.enable_checkpointing", "trainer.barebones", "trainer.use_distributed_sampler"), {}),
    (("trainer.fast_dev_run", "trainer.overfit_batches"), {}),
)


def moves(key):
    for patterns, which in MOVES:
        if any(fnmatchcase(key, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)):
            return set(which)
    pytest.fail(f"say in MOVES what {key} changes, and see to it in redlab/runs/identity.py")


FOLDER = ["data=image_folder", "data.root=/pictures", "data.num_classes=3"]
# a config, and what is otherwise than in MOVES
CASES = {
    "the default": ([], {}),
    "several victims": (["method=do", "data=cifar10", "victim=[resnet18,lenet]", "mix=gred", "trainer=ddp"], {}),
    "guides": (["data=fashion_mnist", "mix=cdd_red_unseen", "victim=vgg11"], {}),
    "victims of others": (
        [*FOLDER, "method=ds", "mix=redrl", "victim=torchvision_resnet18", "trainer=deterministic", "logger=wandb"],
        {"victim_training.*": set(), "data.hold_out": {R}},
    ),
    # which trains the victim itself: by no recipe but that of the method
    "a classifier": (
        ["method=classifier", "mix=adversarial_training"],
        {"victim_training.*": {V}, "victims.*.weights": {V}, "method._target_": {R, E}, "data.hold_out": {V, R}},
    ),
}
CONTENT = Content("images", "test images")


@pytest.fixture
def same_images(monkeypatch):
    """Every folder holds the images of the data set."""
    monkeypatch.setattr(identity, "_training_images", lambda source: CONTENT.train)


def identities(cfg, content=CONTENT, run="a run"):
    victims = build.victim_identities(cfg, content)
    return {
        V: [victim_identity(cfg, str(name), content.train) for name in cfg.victims],
        R: run_identity(cfg, content, victims),
        E: evaluation_identity(run, cfg, content, victims),
    }


def moved(before, after):
    return {which for which in before if before[which] != after[which]}


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, 1]
    return f"{value}_"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "the default" else pytest.mark.slow) for case in CASES]
)
def test_every_leaf_of_the_config(case, same_images, tmp_path):
    words, otherwise = CASES[case]
    cfg = finalise(compose(words))
    for node, taker in (("trainer", L.Trainer), ("data", AttackDataModule)):  # also what no YAML lists
        for key in inspect.signature(taker).parameters:
            if key not in cfg[node]:
                cfg[node][key] = None
    (tmp_path / "file").write_text("weights, or a checkpoint")
    OmegaConf.update(cfg, "init", None, force_add=True)
    known, before = dict(leaves(OmegaConf.to_container(cfg))), identities(cfg)
    assert len(known) > 100
    seen = set()
    for key, value in known.items():
        own = [which for pattern, which in otherwise.items() if fnmatchcase(key, pattern)]
        expected = (own[0] if moves(key) else set()) if own else moves(key)
        is_file = key == "init" or (fnmatchcase(key, "victims.*.weights") and ".backbone." not in key)
        other = str(tmp_path / "file") if is_file else "auto" if key == "bank" else another(value)
        OmegaConf.update(cfg, key, other)
        assert moved(before, identities(cfg)) == expected, key
        OmegaConf.update(cfg, key, value)
        seen |= {(key, which) for which in expected}
    assert identities(cfg) == before
    assert {which for _, which in seen} == {V, R, E}
    assert len(seen) > 60


DATA = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml"))


@pytest.mark.parametrize(
    "data", [pytest.param(data, marks=() if data == "image_folder" else pytest.mark.slow) for data in DATA]
)
def test_every_leaf_of_every_option_is_listed(data):
    """Of data sets one by one; victims, trainers and loggers are few keys each, so that these come together."""
    groups = ("victim", "trainer", "logger")
    others = {group: sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) for group in groups}
    place = DATA.index(data)
    trainer = others["trainer"][place % len(others["trainer"])]
    loggers = [name for name in others["logger"] if name != "none"]
    words = [f"data={data}", f"victim=[{','.join(others['victim'])}]", f"trainer={trainer}"]
    cfg = compose([*words, f"logger=[{','.join(loggers)}]"])
    for key, _ in leaves(OmegaConf.to_container(cfg, resolve=False)):
        moves(key)


@pytest.mark.slow
def test_the_example_of_the_documentation():
    example = imported(ROOT / "docs" / "identity.md")
    assert example.same is example.another is True


# ---- what no single leaf shows --------------------------------------------------------------------------------------


@pytest.fixture
def cfg():
    return finalise(compose(["victim=[small_cnn,lenet]"]))


def test_content_counts_where_it_is_seen(cfg):
    before = identities(cfg)
    assert moved(before, identities(cfg, Content("other images", CONTENT.test))) == {V, R, E}  # by its victims
    assert moved(before, identities(cfg, Content(CONTENT.train, "other images"))) == {R, E}
    assert moved(before, identities(cfg, run="another run")) == {E}
    victims = build.victim_identities(cfg, CONTENT)
    # by a restorer trained on other images, on victims from elsewhere
    other = Content("other images", CONTENT.test)
    assert evaluation_identity("a run", cfg, other, victims) == before[E]
    assert run_identity(cfg, other, victims) != before[R]


def test_validation_images_are_some_of_the_training_images(cfg):
    """So that an evaluation on them depends on what chooses them, and on no test image."""
    cfg.data.test_on = "val"
    before, victims = identities(cfg), build.victim_identities(cfg, CONTENT)
    assert evaluation_identity("a run", cfg, Content("other", CONTENT.test), victims) != before[E]
    assert moved(before, identities(cfg, Content(CONTENT.train, "other test images"))) == {R}
    for key, value in (("val_size", 0.2), ("limit_val", 5)):
        other = copy.deepcopy(cfg)
        other.data[key] = value
        assert moved(before, identities(other)) == {R, E}, key
    held, used = copy.deepcopy(cfg), copy.deepcopy(cfg)
    held.data.hold_out = used.data.hold_out = 100
    used.data.use = "held_out"
    assert E in moved(identities(held), identities(used))


@pytest.mark.parametrize("node", ["victims", "mix.components"])
def test_a_place_is_an_id(cfg, node):
    """The first victim is the classifier of CDD-RED, and attacks are dealt in their order."""
    turned = copy.deepcopy(cfg)
    OmegaConf.update(turned, node, dict(reversed(OmegaConf.select(cfg, node).items())), merge=False)
    assert turned == cfg  # for a dictionary, order is nothing
    before, after = identities(cfg), identities(turned)
    assert moved(before, after) - {V} == {R, E}
    assert sorted(before[V]) == sorted(after[V])


def test_evaluation_batches_count_where_batches_are_counted(cfg):
    for key, which in (("limit_val_batches", {R}), ("limit_test_batches", {R, E})):
        limited = copy.deepcopy(cfg)
        limited.trainer[key] = 2
        before = identities(limited)
        limited.data.eval_batch_size = 4
        assert moved(before, identities(limited)) == which


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"devices": 4}, {"devices": 2, "num_nodes": 2}, True),
        ({"devices": 2}, {"devices": [0, 3]}, True),
        ({"devices": 1}, {"devices": "auto", "accelerator": "cpu"}, True),
        ({"devices": 1}, {"devices": 2}, False),
        ({"devices": "0,1"}, {"devices": "0,1", "num_nodes": 2}, False),
    ],
)
def test_processes_count_wherever_they_are(cfg, one, other, same):
    """Each has batch statistics of its own, and its own share of a batch to augment."""
    found = []
    for said in (one, other):
        cfg.trainer.merge_with({"devices": 1, "num_nodes": 1, "accelerator": "auto"} | said)
        found.append(identities(cfg))
    assert moved(*found) == (set() if same else {R})


@pytest.mark.parametrize("key", ["victims.small_cnn.weights", "init"])
def test_a_file_is_its_content(cfg, tmp_path, key):
    def after(text, place):
        file = tmp_path / place / "checkpoints" / "best.ckpt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        found = []
        for path in (file, tmp_path / place):  # a run folder stands for its best checkpoint
            OmegaConf.update(cfg, key, str(path), force_add=True)
            found.append(identities(cfg))
        assert found[0] == found[1]
        return found[0]

    first = after("weights", "here")
    assert after("weights", "there") == first
    assert moved(first, after("other weights", "here")) == ({R} if key == "init" else {V, R, E})
    OmegaConf.update(cfg, key, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"There is no file .*nowhere"):
        identities(cfg)


def test_a_recipe_does_not_count_where_weights_come_from_a_file(cfg, tmp_path):
    (tmp_path / "file").write_text("weights")
    for name in cfg.victims:
        cfg.victims[name].weights = str(tmp_path / "file")
    before = identities(cfg)
    cfg.victim_training.max_epochs += 1
    assert identities(cfg) == before
    assert identities(cfg, Content("other images", CONTENT.test))[V] == before[V]


def test_a_run_folder_without_a_best_checkpoint_is_its_last(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("weights")
    assert file_identity(tmp_path) == file_identity(tmp_path / "checkpoints" / "last.ckpt")


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


@pytest.mark.slow
def test_guides_are_their_content(tmp_path):
    """Images that an attack reads, wherever they lie: those of the data set, or of another."""
    same = [write_folder(tmp_path / name, (0, 1, 2), 4) for name in ("left", "right")]
    other = write_folder(tmp_path / "other", (7, 8, 9), 4)
    found = []
    for images, guides in ((same[0], same[0]), (same[1], same[0]), (same[0], other)):
        cfg = finalise(compose(of_folder(images, "mix=cdd_red_unseen", "victim=torchvision_resnet18")))
        cfg.mix.components.feature.attack.guides.source.root = str(guides)
        found.append(identities(cfg, build.content(cfg, build.shared_data(cfg))))
    assert found[0] == found[1]
    assert moved(found[0], found[2]) == {R, E}


def of_folder(root, *words):
    shape = ["data.num_classes=3", "data.channels=1", "data.image_size=8", "data.num_workers=0"]
    return ["data=image_folder", f"data.root={root}", *shape, *words]


def trained(tmp_path, *words):
    """The victim, and the files of all that were trained so far."""
    victim = build.build_victims(finalise(compose([*QUICK, *words, f"victim_root={tmp_path}/victims"])))["small_cnn"]
    return victim, sorted((tmp_path / "victims").rglob("*.ckpt"))


def test_folders_are_their_content(tmp_path):
    def found(root):
        cfg = finalise(compose(of_folder(root)))
        return identities(cfg, build.content(cfg, build.shared_data(cfg)))

    first = found(write_folder(tmp_path / "left", (0, 1, 2), 4))
    assert found(write_folder(tmp_path / "right", (0, 1, 2), 4)) == first
    assert moved(first, found(write_folder(tmp_path / "other", (7, 8, 9), 4))) == {V, R, E}
    picture = tmp_path / "right" / "test" / "a" / "4.png"
    picture.write_bytes((tmp_path / "right" / "test" / "b" / "4.png").read_bytes())
    assert moved(first, found(tmp_path / "right")) == {R, E}


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
