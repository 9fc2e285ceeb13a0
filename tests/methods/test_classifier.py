"""Training a classifier, its checkpoints, and victims loaded from files."""

import functools
import inspect
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from redlab.batch import CLEAN, AttackBatch
from redlab.evaluation import Evaluator
from redlab.methods import Classifier, NotFiniteError
from redlab.victims import ImageClassifier, Victim, architectures, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Lightning 2.6 with torch 2.15
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Digits(L.LightningDataModule):
    """32 digits; ``attacked`` of the rows of every batch are inverted images that count as attack 1."""

    def __init__(self, attacked=0, invalid=0):
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        self.images = torch.from_numpy(images[:32] / 16).float().view(-1, 1, 8, 8)
        self.labels = torch.from_numpy(labels[:32].astype(np.int64))
        self.attacked, self.invalid = attacked, invalid

    def loader(self):
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=16)

    train_dataloader = val_dataloader = test_dataloader = loader

    def setup(self, stage):
        model = self.trainer.lightning_module
        model.evaluator = Evaluator(victims={"self": model}, attack_names=("clean", "inverted"))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        n = len(y)
        attack = (torch.arange(n) < self.attacked).long()
        adv = torch.where(attack.view(-1, 1, 1, 1) == CLEAN, x, 1 - x)
        valid = torch.arange(n) < n - self.invalid
        zero = torch.zeros_like(y)
        return AttackBatch(x, adv, y, attack, zero, zero, zero, zero - 1, torch.arange(n), valid, attack > 0)


def small():
    return architectures.small_cnn(10, 1, 12, widths=(16, 32))


def classifier(**settings):
    around = {"num_classes": 10, "mean": [0.3], "std": [0.4], "input_size": 12, "feature_layer": "features.4"}
    network = ImageClassifier(small(), name="tiny", **around)
    return Classifier(network=network, data_name="digits", **{"optimizer": ADAM, **settings})


def trainer(epochs=1, sanity=2):
    return L.Trainer(
        max_epochs=epochs,
        num_sanity_val_steps=sanity,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    L.seed_everything(0, verbose=False)
    model, run = classifier(), trainer(15)
    run.fit(model, datamodule=Digits())
    path = tmp_path_factory.mktemp("victim") / "checkpoints" / "best.ckpt"
    run.save_checkpoint(path)
    return model, run, path


@pytest.fixture
def saved(trained, tmp_path):
    """Writes the trained checkpoint with changes to a new file."""
    content = torch.load(trained[2], weights_only=True)

    def write(name="changed.ckpt", **description):
        content["redlab_victim"] |= description
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def test_overfits_32_digits(trained):
    model, run, _ = trained
    assert model.clean_accuracy == run.callback_metrics["val/clean_accuracy"] == 1.0


def test_accuracies_are_of_valid_rows_and_of_the_defended_answer(trained):
    model, data = trained[0], Digits(attacked=5, invalid=2)
    run = trainer()
    run.test(model, datamodule=data, verbose=False)
    with torch.no_grad():
        right = model.eval()(1 - data.images).argmax(1) == data.labels
    expected = torch.cat([right[:5], right[16:21]]).float().mean().item()
    assert model.numbers["test/attacked_accuracy"] == pytest.approx(expected)
    assert model.numbers["test/defended_accuracy"] == pytest.approx(expected)
    assert model.numbers["test/clean_accuracy"] == 1.0
    assert run.callback_metrics["test/attacked_accuracy"] == pytest.approx(expected)


def test_what_it_can_and_by_what_it_is_chosen():
    assert classifier().capabilities == {"labeler"}
    assert classifier().monitor == "val/clean_accuracy"


def test_the_loss_is_on_the_attacked_images_of_valid_rows():
    model = classifier(label_smoothing=0.2).eval()
    model.log = lambda *args, **kwargs: None
    data = Digits(attacked=3, invalid=6)
    batch = data.on_after_batch_transfer((data.images[:16], data.labels[:16]), 0)
    x, y = batch.adv[:10], batch.label[:10]
    # label smoothing: 0.8 on the label and 0.2 spread over the 10 classes
    wanted = 0.8 * nn.functional.one_hot(y, 10) + 0.2 / 10
    expected = -(wanted * model(x).log_softmax(1)).sum(1).mean()
    assert torch.allclose(model.training_step(batch, 0), expected)
    assert not torch.equal(batch.adv[:3], batch.clean[:3])


def test_checkpoint_loads_without_code_and_gives_equal_logits(trained):
    model, _, path = trained
    torch.load(path, weights_only=True)
    victim, x = load(path), torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(victim(x), model.eval()(x))
    assert isinstance(victim, Victim)
    assert not any(p.requires_grad for p in victim.parameters())
    assert (victim.name, victim.feature_layer, victim.input_size) == ("tiny", "features.4", 12)
    assert (victim.num_classes, victim.clean_accuracy) == (10, 1.0)
    assert torch.load(path, weights_only=True)["redlab_victim"]["data"] == "digits"


def test_a_run_folder_serves_as_well_and_the_random_state_is_left_alone(trained):
    before = torch.get_rng_state()
    with torch.inference_mode():
        victim = load(trained[2].parents[1])
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    torch.autograd.grad(victim(x).sum(), x)


def test_hyper_parameters_are_scalars(trained):
    assert all(isinstance(v, (str, int, float, type(None))) for v in trained[0].hparams.values())


def test_training_goes_on_from_a_checkpoint(trained):
    model = classifier()
    run = trainer(16)
    run.fit(model, datamodule=Digits(), ckpt_path=trained[2])
    assert run.current_epoch == 16
    assert model.clean_accuracy == 1.0


def test_schedulers_step_per_epoch():
    halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    run = trainer(3)
    run.fit(classifier(scheduler=halving), datamodule=Digits())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 8)  # six batches, three epochs


def test_plateau_schedulers_watch_the_validation_accuracy():
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0, threshold=10.0)
    run = trainer(2)
    run.fit(classifier(scheduler=plateau), datamodule=Digits())
    assert run.optimizers[0].param_groups[0]["lr"] < 1e-2


def test_asked_values_take_the_place_of_the_files(trained):
    victim = load(trained[2], name="other", feature_layer="features.0", num_classes=10)
    assert (victim.name, victim.feature_layer, victim.input_size) == ("other", "features.0", 12)


def test_a_module_of_the_user(tmp_path):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = Classifier(network=ImageClassifier(backbone, num_classes=10), optimizer=ADAM)
    run = trainer()
    run.fit(model, datamodule=Digits())
    run.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"torch.nn.modules.container.Sequential.*backbone="):
        load(tmp_path / "own.ckpt")
    x = torch.rand(3, 1, 8, 8)
    for given in (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    ):
        assert torch.equal(load(tmp_path / "own.ckpt", given)(x), model.eval()(x))


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model", "module."])
def test_state_dicts(tmp_path, wrapped):
    torch.manual_seed(0)
    net = small()
    state = net.state_dict()
    content = {"module." + k: v for k, v in state.items()} if wrapped == "module." else {wrapped: state}
    torch.save(state if wrapped == "" else content, tmp_path / "net.pt")
    victim = load(tmp_path / "net.pt", small(), num_classes=10, mean=0.5, input_size=12)
    x = torch.rand(3, 1, 12, 12)
    torch.testing.assert_close(victim(x), net.eval()(x - 0.5))


def test_safetensors(tmp_path):
    net = small()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    x = torch.rand(3, 1, 12, 12)
    torch.testing.assert_close(load(tmp_path / "net.safetensors", small(), num_classes=10)(x), net.eval()(x))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut.safetensors is truncated"):
        load(tmp_path / "cut.safetensors", small(), num_classes=10)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_weights_without_counts_of_batches(tmp_path, shortcut):
    """As the public weights of the residual networks for CIFAR-10 are: a frozen network does not ask for them."""
    net = architectures.cifar_resnet(10, 3, 8, depth=8, shortcut=shortcut)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "net.safetensors")
    fresh = architectures.cifar_resnet(10, 3, 8, depth=8, shortcut=shortcut)
    victim = load(tmp_path / "net.safetensors", fresh, num_classes=10)
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(victim(x), net.eval()((x - victim.mean) / victim.std))
    assert victim.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    save_file({k: v for k, v in state.items() if k != "layer1.0.bn1.running_mean"}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"it lacks layer1.0.bn1.running_mean \(1 in all\)"):
        load(tmp_path / "net.safetensors", fresh, num_classes=10)


def test_weights_of_the_other_shortcut_do_not_fit(tmp_path):
    projected, plain = (architectures.cifar_resnet(10, 3, 8, depth=8, shortcut=kind) for kind in "BA")
    for net, other, said in ((projected, plain, "has the unknown"), (plain, projected, "lacks")):
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        with pytest.raises(ValueError, match=rf"{said} layer2.0.shortcut"):
            load(tmp_path / "net.safetensors", other, num_classes=10)


def test_a_checkpoint_rebuilds_a_residual_network_and_names_no_other_kind(tmp_path):
    net = architectures.cifar_resnet(10, 1, 8, depth=8, shortcut="B")
    model, run = Classifier(network=ImageClassifier(net, num_classes=10), optimizer=ADAM), trainer()
    run.fit(model, datamodule=Digits())
    run.save_checkpoint(tmp_path / "best.ckpt")
    victim = load(tmp_path / "best.ckpt")
    assert victim.backbone.redlab_arch["kwargs"]["shortcut"] == "B"
    assert victim.feature_layer == "layer3"
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(victim(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    for change, said in (({"shortcut": "C"}, "shortcut='C'"), ({"depth": 6 * 10**9 + 2}, "6000000002")):
        said_of_it = net.redlab_arch | {"kwargs": net.redlab_arch["kwargs"] | change}
        content["redlab_victim"]["architecture"] = said_of_it
        torch.save(content, tmp_path / "changed.ckpt")
        with pytest.raises(ValueError, match=said):
            load(tmp_path / "changed.ckpt")


def test_a_checkpoint_of_an_architecture_that_there_is_no_more(saved):
    """``resnet110`` had projections as shortcuts; the networks of this name have none."""
    kwargs = {"num_classes": 10, "channels": 1, "image_size": 12}
    with pytest.raises(ValueError, match=r"'resnet110', which .* does not have: it must be one of .*cifar_resnet"):
        load(saved(architecture={"name": "resnet110", "kwargs": kwargs}))


def test_files_that_are_no_weights(trained, tmp_path):
    whole = trained[2].read_bytes()
    for name, content, said in [
        ("empty.ckpt", b"", "empty.ckpt is empty"),
        ("cut.ckpt", whole[: len(whole) // 2], "cut.ckpt is truncated"),
        ("start.ckpt", whole[:20], "start.ckpt is truncated"),
        ("text.pt", b"hello, this is a letter", "text.pt is truncated, or no file of weights"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no weights file .*nowhere.ckpt"):
        load(tmp_path / "nowhere.ckpt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load(tmp_path / "list.pt", small(), num_classes=10)


class Harmful:
    """Unpickles by calling a function."""

    def __reduce__(self):
        return (pytest.fail, ("code in a file was executed",))


def test_nothing_in_a_file_is_executed(tmp_path, saved):
    torch.save({"redlab_victim": Harmful()}, tmp_path / "harmful.ckpt")
    with pytest.raises(ValueError, match="no file of weights"):
        load(tmp_path / "harmful.ckpt")
    for name in ("os.system", "require", "torchvision", "_vgg", None, ["lenet"]):
        with pytest.raises(ValueError, match="does not have"):
            load(saved(architecture={"name": name, "kwargs": {}}))


def test_a_checkpoint_names_no_other_file_or_site(saved):
    for kwargs in (
        {"name": "hf-hub:a/b"},
        {"name": "resnet18", "checkpoint_path": "/a/b"},
        {"name": "resnet18", "pretrained_cfg": {"url": "http://a/b"}},
        {"name": "resnet18", "pretrained_cfg": [{"file": "/a/b"}]},
    ):
        with pytest.raises(ValueError, match="a/b"):
            load(saved(architecture={"name": "timm_model", "kwargs": kwargs}))


def test_the_sizes_in_a_checkpoint_cost_no_memory(monkeypatch, saved):
    """A network is made when its shapes are known to be those of the weights in the file."""
    made, build = [], architectures.small_cnn

    def recorded(num_classes, channels, image_size, *, widths):
        made.append(torch.empty(0).device.type)
        return build(num_classes, channels, image_size, widths=widths)

    with monkeypatch.context() as patch:
        patch.setattr(architectures, "small_cnn", recorded)
        kwargs = {"num_classes": 10, "channels": 1, "image_size": 12, "widths": [16, 64]}
        with pytest.raises(ValueError, match=r"\(32, 16, 3, 3\) in the file, \(64, 16, 3, 3\) in the network"):
            load(saved(architecture={"name": "small_cnn", "kwargs": kwargs}))
    assert made == ["meta"]
    for widths in ([16, 10**9], [16, 10**18], [16, 10**30], [16, -1], [], 5):
        with pytest.raises(ValueError, match=r"in the network|does not take") as caught:
            load(saved(architecture={"name": "small_cnn", "kwargs": kwargs | {"widths": widths}}))
        assert "\n" not in str(caught.value)


def test_checkpoints_that_do_not_fit(trained, tmp_path, saved):
    path = trained[2]
    with pytest.raises(ValueError, match="10 classes apart, not 7"):
        load(path, num_classes=7)
    with pytest.raises(ValueError, match=r"head.weight is \(10, 288\) in the file, \(7, 288\) in the network"):
        load(path, architectures.small_cnn(7, 1, 12, widths=(16, 32)))
    with pytest.raises(ValueError, match=r"does not fit the Sequential: it lacks .* and has the unknown"):
        load(path, architectures.lenet(10, 1, 12))
    torch.save({"state_dict": {"net.a": torch.zeros(1)}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is not a checkpoint of method=classifier"):
        load(tmp_path / "other.ckpt")
    torch.save(small().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="pass num_classes="):
        load(tmp_path / "net.pt", small())
    torch.save({**small().state_dict(), "head.bias": 3}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"no tensor at head.bias"):
        load(tmp_path / "net.pt", small(), num_classes=10)
    with pytest.raises(ValueError, match="small_cnn does not take"):
        load(saved(architecture={"name": "small_cnn", "kwargs": {"depth": 3}}))
    with pytest.raises(ValueError, match="fetaures"):
        load(saved(architecture=trained[0].net.backbone.redlab_arch, feature_layer="fetaures"))
    torch.save({"redlab_victim": {"num_classes": 3}, "state_dict": {}}, tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match="lacks 'mean'"):
        load(tmp_path / "half.ckpt")


def test_pretrained_weights_are_not_fetched_for_a_checkpoint(monkeypatch, saved):
    asked = []
    monkeypatch.setattr(architectures, "torchvision_model", lambda **kwargs: asked.append(kwargs) or small())
    load(saved(architecture={"name": "torchvision_model", "kwargs": {"name": "resnet50", "weights": "DEFAULT"}}))
    assert asked  # first for its shapes, then in earnest
    assert all(given == {"name": "resnet50", "weights": None} for given in asked)


def test_another_methods_checkpoint_cannot_be_resumed():
    with pytest.raises(ValueError, match="not a checkpoint of method=classifier"):
        classifier().on_load_checkpoint({"state_dict": {}})


def test_label_smoothing_is_checked():
    with pytest.raises(ValueError, match=r"1.5"):
        classifier(label_smoothing=1.5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_yaml_makes_a_classifier_and_repeats_the_defaults(optimizer):
    conf = str(Path(__file__).parents[2] / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        cfg = compose("method/classifier", [f"optim@method.optimizer={optimizer}"])
    cfg = OmegaConf.merge({"data": {"name": "toy"}}, cfg).method
    defaults = {k: p.default for k, p in inspect.signature(Classifier).parameters.items()}
    assert set(cfg) == {"_target_", "optimizer", "scheduler", "label_smoothing", "data_name"}
    assert cfg.label_smoothing == defaults["label_smoothing"]
    assert cfg.scheduler is defaults["scheduler"] is None
    model = instantiate(cfg, network=ImageClassifier(small(), num_classes=10), _convert_="all")
    assert model.data_name == "toy"
    assert type(model.configure_optimizers()).__name__.lower() == optimizer


def test_a_loss_that_is_not_finite_stops_the_training():
    model, data = classifier(), Digits()
    data.images[20, 0, 0, 0] = torch.nan  # in the second batch
    before = [p.clone() for p in model.net.parameters()]
    with pytest.raises(NotFiniteError, match="not finite at step 1: nan"):
        trainer(sanity=0).fit(model, datamodule=data)
    after = list(model.net.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # the step before was made
