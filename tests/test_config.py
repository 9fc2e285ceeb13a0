"""Every YAML composes and makes what it names, and every mistake that can be seen early is seen early."""

import copy
import inspect
import re
from collections import UserDict
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import nn

from redlab.crafting import AttackMix, Component
from redlab.data import AttackDataModule
from redlab.methods import Classifier
from redlab.runs import build, loggers
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, conf_dir, finalise, override_stored, parse
from redlab.victims import Victim

CONF = conf_dir()
FILES = sorted(path for path in CONF.rglob("*.yaml") if "local" not in path.parts)
VICTIMS = sorted(path.stem for path in (CONF / "victim").glob("*.yaml"))
OURS = [name for name in VICTIMS if not name.startswith(("torchvision_", "timm_"))]

# each option of each group appears at least once; a new option joins one of these lines, or brings one
COMPOSED = {
    "digits_cdd_red": ["victim=small_cnn"],
    "digits_do": ["method=do", "trainer=deterministic", "logger=none"],
    "digits_ds": ["method=ds", "trainer=ddp", "logger=wandb"],
    "fashion_mnist": ["data=fashion_mnist", "victim=[small_cnn,lenet,fashion_cnn]", "mix=cdd_red_known"],
    "mnist": ["data=mnist", "victim=lenet", "mix=attunet", "logger=[csv,tensorboard]"],
    "svhn": ["data=svhn", "method=classifier", "mix=clean", "victim=svhn_cnn", "optim@method.optimizer=sgd"],
    "image_folder": ["data=image_folder", "data.root=nowhere", "data.num_classes=7", "method=do"],
    "gred": ["data=cifar10", "method=gred", "mix=gred"],
    "digits_gred": ["method=gred", "mix=gred", "only=pgd_u"],
    "digits_gred_rectifier": ["method=gred_rectifier", "mix=gred", "only=[pgd_u,cw_t]"],
    "redrl": ["data=cifar10", "method=redrl", "mix=redrl"],
    "redrl_32": ["data=mnist", "method=redrl_delta", "mix=redrl_32"],
    "digits_redrl": ["method=redrl", "mix=redrl_digits"],
    "digits_redrl_delta": ["method=redrl_delta", "mix=redrl_digits"],
    "digits_redrl_image": ["method=redrl_image", "mix=redrl_digits"],
    "redrl_open": ["data=cifar10", "mix=redrl_open"],
    "leaderboard": ["data=mnist", "mix=leaderboard"],
    "leaderboard_test": ["data=mnist", "mix=leaderboard_test"],
    "fashion_mnist_redrl": ["data=fashion_mnist", "method=redrl", "mix=redrl_32"],
    "cifar10_first4000_redrl": ["data=cifar10_first4000", "method=redrl", "mix=redrl_32"],
    "cdd_red_unseen": ["data=cifar10", "mix=cdd_red_unseen"],
    "add_defense": ["data=fashion_mnist", "method=add_defense", "mix=add_defense_known"],
    "add_defense_test": ["data=fashion_mnist", "method=ape_gan", "mix=add_defense_test"],
    "digits_add_defense": ["method=add_defense", "mix=add_defense_known_ddn"],
    "add_defense_known_cw": ["data=cifar10", "mix=add_defense_known_cw"],
    "add_defense_known_fgsm": ["data=mnist", "mix=add_defense_known_fgsm"],
    "digits_attunet_gan": ["method=attunet_gan", "mix=attunet"],
    "attunet_gan_post": ["data=cifar10", "method=attunet_gan_post", "mix=attunet", "trainer=ddp_cpu"],
    "hgd": ["data=cifar10", "method=hgd", "mix=attunet_test", "trainer=gpu"],
    "hardened": ["data=mnist", "method=hardened", "mix=occlusion_training", "trainer=cpu"],
    "restored_classifier": ["data=mnist", "method=restored_classifier", "mix=add_defense_known_masks"],
    "add_defense_spatial": ["data=mnist", "mix=add_defense_spatial", "trainer=slurm"],
    "add_defense_known_spatial": ["data=mnist", "mix=add_defense_known_spatial"],
    "add_defense_masks": ["data=mnist", "mix=add_defense_masks"],
    "add_defense_budgets": ["data=mnist", "mix=add_defense_budgets"],
    "add_defense_bpda": ["data=mnist", "mix=add_defense_bpda"],
    "add_defense_auto": ["data=mnist", "mix=add_defense_auto"],
    "cifar10": ["data=cifar10", "method=classifier", "mix=adversarial_training", f"victim=[{','.join(VICTIMS)}]"],
}


class Configs(UserDict):
    """Finalised when they are first asked for, since several processes share the tests."""

    def __getitem__(self, name):
        if isinstance(words := super().__getitem__(name), list):
            self[name] = words = finalise(compose(words))
        return words


@pytest.fixture(scope="module")
def configs():
    return Configs(COMPOSED)


@pytest.fixture(scope="module")
def base():
    return OmegaConf.to_container(compose(), resolve=False)


@pytest.fixture
def changed(base):
    """The default config with some values set, finalised."""

    def change(**values):
        cfg = OmegaConf.create(copy.deepcopy(base))
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        return finalise(cfg)

    return change


def options(group):
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def words_of(path):
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


# ---- every option ---------------------------------------------------------------------------------------------------


def test_every_option_of_every_group_is_composed():
    seen = {}
    for cfg in map(compose, COMPOSED.values()):
        for group, choice in cfg.choices.items():
            seen.setdefault(group, set()).update([choice] if isinstance(choice, str) else choice)
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "local"}
    # attacks and components are chosen inside mixes, optimisers inside methods, and what is common to the options of a
    # group inside them; studies and launchers of sweeps have tests of their own
    assert groups - {"attack", "base", "component", "optim", "study", "sweep"} == seen.keys() - {"local"}
    for group in groups & seen.keys():
        assert seen[group] == options(group), group


@pytest.mark.parametrize("name", COMPOSED)
def test_a_finalised_config_is_plain(configs, name):
    text = OmegaConf.to_yaml(configs[name])
    assert "${" not in text
    assert "???" not in text
    assert not re.search(r"\d/\d+$", text, re.MULTILINE)


def test_only_leaves_some_attacks_of_the_mix_and_clean_images(configs):
    assert list(configs["digits_gred"].mix.components) == ["clean", "pgd_u"]
    assert list(configs["digits_gred_rectifier"].mix.components) == ["clean", "pgd_u", "cw_t"]
    stored = OmegaConf.to_container(configs["digits_gred"])
    assert stored["only"] is None
    again = override_stored(stored, ["mix=gred"])
    assert len(again.mix.components) == 9
    assert list(override_stored(stored, ["mix=gred", "only=ddn_t"]).mix.components) == ["clean", "ddn_t"]
    with pytest.raises(ConfigError, match=r"only=pgd: the mix has no such attack; it has .*pgd_u.* Did you mean 'pgd_"):
        finalise(compose(["mix=gred", "only=pgd"]))


def test_the_experiment_that_fits_is_found_by_name(configs):
    assert configs["digits_cdd_red"].choices.experiment == "digits_cdd_red"
    assert configs["digits_cdd_red"].method.depth == 8
    assert configs["digits_cdd_red"].method.aug_mode == "sample"
    assert configs["digits_do"].method.aug_mode == configs["digits_ds"].method.aug_mode == "none"
    assert configs["digits_do"].method.depth == 8
    assert "experiment" not in configs["fashion_mnist"].choices
    assert configs["fashion_mnist"].method.depth == 17
    assert compose(["~experiment"]).method.depth == 17


def test_an_experiment_sets_sizes_only(configs):
    """Deviations from a method's own YAML are in experiments, and change no loss and no seed."""
    allowed = {"depth", "width", "bn_momentum", "aug_mode", "aug_group", "optimizer", "scheduler"}
    allowed |= {"helpers", "blocks", "recogniser_width", "stem", "width_divisor", "duplicates"}
    for path in (CONF / "experiment").glob("*.yaml"):
        words = words_of(path)
        assert path.read_text().startswith("# @package _global_\n")
        assert words.keys() <= {"defaults", "method", "data", "trainer", "bank"}
        assert words.get("method", {}).keys() <= allowed


def test_struct_mode_stays_on():
    cfg = compose()
    assert OmegaConf.is_struct(cfg)
    with pytest.raises(Exception, match="not in struct"):
        cfg.method.typo = 1


# ---- every _target_ -------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


@pytest.mark.parametrize("name", ["digits_cdd_red", "digits_do", "digits_ds", "fashion_mnist"])
def test_methods(configs, name):
    cfg = configs[name]
    method = instantiate(cfg.method, _partial_=True, _convert_="all")(victims={"small": Small()})
    optimizers, schedulers = method.configure_optimizers()
    assert [type(o) for o in optimizers] == [torch.optim.Adam]
    assert optimizers[0].defaults["lr"] == cfg.method.optimizer.lr
    assert schedulers[0]["scheduler"].step_size == cfg.method.scheduler.step_size
    x = torch.rand(2, cfg.data.channels, 16, 16)
    assert method.eval().restore(x).shape == x.shape


def test_classifier(configs):
    method, data = build.build(configs["svhn"])
    assert isinstance(method, Classifier)
    optimizer = method.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 1e-3  # of the method: how it is trained stands above which optimiser does it
    assert optimizer.defaults["momentum"] == 0.9
    assert data.victims == {"svhn_cnn": method}
    assert method(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "name",  # timm takes seconds to import
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith("timm_") else n for n in VICTIMS],
)
def test_victims(configs, name):
    """With the shapes alone: no weight is drawn, none is downloaded."""
    spec = OmegaConf.to_container(configs["cifar10"].victims[name])
    backbone = spec.pop("backbone")
    weights, size = spec.pop("weights"), 96 if name.endswith(("inception_v3", "alexnet")) else 32
    if name in OURS:
        assert weights is None  # trained here
    else:
        assert weights == "builtin"
        assert backbone["_target_"].endswith(("torchvision_model", "timm_model"))
        switch = "weights" if "weights" in backbone else "pretrained"
        assert backbone[switch] in ("DEFAULT", True)
        backbone[switch] = {"DEFAULT": None, True: False}[backbone[switch]]
    assert spec.pop("training") == {}
    with torch.device("meta"):
        net = Victim(instantiate(backbone), num_classes=10, **spec)
        assert net(torch.zeros(2, 3, size, size)).shape == (2, 10)
        assert net.features(torch.zeros(2, 3, size, size)).shape[0] == 2


@pytest.mark.parametrize("name", COMPOSED)
def test_data_and_mix(configs, name, monkeypatch, tmp_path):
    """Nothing is read before it is needed."""
    monkeypatch.chdir(tmp_path)
    cfg = configs[name]
    mix = instantiate(cfg.mix, seed=cfg.seed)
    assert mix.names == ("clean", *(n for n in cfg.mix.components if n != "clean"))
    data = instantiate(cfg.data, _partial_=True)(mix=mix, victims={n: Small() for n in cfg.victims}, seed=cfg.seed)
    assert isinstance(data, AttackDataModule)
    assert data.name == cfg.data.name == cfg.choices.data
    assert len(cfg.data.mean) == len(cfg.data.std) == cfg.data.channels
    assert not list(tmp_path.iterdir())


def test_the_embedded_data_are_as_declared(configs):
    data = instantiate(configs["digits_cdd_red"].data, _partial_=True)(
        mix=AttackMix({"clean": Component(attack=None)}), victims={}
    )
    pixels = data.splits.train.images.float() / 255
    assert [round(float(pixels.mean()), 3)] == pytest.approx(configs["digits_cdd_red"].data.mean, abs=0.002)
    assert [round(float(pixels.std()), 3)] == pytest.approx(configs["digits_cdd_red"].data.std, abs=0.002)


@pytest.mark.parametrize("name", ["digits_cdd_red", "digits_do", "digits_ds"])
def test_trainers(configs, name, tmp_path):
    quiet = {"accelerator": "cpu", "enable_checkpointing": False, "logger": False, "default_root_dir": str(tmp_path)}
    try:
        trainer = instantiate(configs[name].trainer, **quiet, enable_progress_bar=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert isinstance(trainer, L.Trainer)
    assert trainer.max_epochs == 14
    assert trainer.world_size == configs[name].trainer.devices
    assert not configs[name].trainer.use_distributed_sampler
    assert not configs[name].trainer.inference_mode


@pytest.mark.parametrize("name", ["digits_cdd_red", "digits_do", "digits_ds"])
def test_loggers(configs, name, tmp_path):
    made = loggers.make_loggers(configs[name], tmp_path)
    assert [logger.save_dir for logger in made] == [str(tmp_path)] * (name != "digits_do")
    assert {logger.name for logger in made} <= {"csv", "redlab"}


@pytest.mark.parametrize("name", sorted(options("optim")))
def test_optimisers(name):
    optimizer = instantiate(OmegaConf.load(CONF / "optim" / f"{name}.yaml"))([nn.Parameter(torch.zeros(1))])
    assert type(optimizer).__name__.lower() == name


def targets(node):
    if isinstance(node, dict):
        if node.get("_target_"):
            yield node
        for value in node.values():
            yield from targets(value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONF)))
def test_a_target_knows_its_arguments(path):
    for node in targets(words_of(path)):
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        unknown = {key for key in node if not key.startswith("_")} - {"defaults"} - parameters.keys()
        assert not unknown or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


# ---- the files themselves -------------------------------------------------------------------------------------------


def test_the_size_of_conf_is_known():
    """It grows on purpose, not by drift."""
    assert len(FILES) == 149
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= 2520


def test_a_victim_and_a_data_set_say_only_what_differs():
    lines = {
        path: len(path.read_text().splitlines()) for group in ("victim", "data") for path in (CONF / group).iterdir()
    }
    small = [path for path in lines if path.parent.name == "victim" and path.stem in OURS]
    assert {lines[path] for path in small} == {3}
    assert max(lines.values()) <= 17
    for key, value in words_of(CONF / "base" / "data.yaml").items():
        said = {path.stem: words_of(path)[key] for path in (CONF / "data").iterdir() if key in words_of(path)}
        if key != "source":
            assert said == ({"image_folder": 2} if key == "num_workers" else {}), value


def test_every_key_of_every_victim_can_be_set():
    values = {"mean": [0.1], "std": [0.2], "input_size": 99, "feature_layer": "x", "weights": "y.pt"}
    words = [f"victims.{name}.{key}={value}" for name in VICTIMS for key, value in values.items()]
    more = [f"+victims.{name}.training.max_epochs=3" for name in VICTIMS]
    cfg = compose([f"victim=[{','.join(VICTIMS)}]", *words, *more])
    for name in VICTIMS:
        spec = OmegaConf.to_container(cfg.victims[name], resolve=True)
        backbone = spec.pop("backbone")
        assert spec == values | {"training": {"max_epochs": 3}}
        assert backbone.keys() >= {"_target_", "num_classes", "channels"}
        assert ("image_size" in backbone) == (name in OURS)
    own = {"small_cnn.widths": [8], "svhn_cnn.dropout": 0, "cw_net.width": 3, "cw_net_wide.hidden": 5}
    own |= {"vgg19.batch_norm": False, "vgg13.width_divisor": 8, "resnet56.depth": 14, "resnet20.shortcut": "B"}
    own |= {"torchvision_vgg19.name": "vgg11", "torchvision_inception_v3.init_weights": True, "timm_resnet50.name": "a"}
    words = [f"victims.{key.replace('.', '.backbone.')}={value}" for key, value in own.items()]
    cfg = compose([f"victim=[{','.join(VICTIMS)}]", *words])
    for key, value in own.items():
        assert OmegaConf.select(cfg, f"victims.{key.replace('.', '.backbone.')}") == value


@pytest.mark.parametrize("name", sorted(options("data")))
def test_every_key_of_every_data_set_can_be_set(name):
    values = {"batch_size": 5, "eval_batch_size": 6, "val_size": 7, "num_workers": 1, "num_classes": 3, "channels": 1}
    values |= {"limit_train": 8, "limit_val": 9, "limit_test": 10, "image_size": 11, "mean": [0.1], "std": [0.2]}
    values |= {} if name == "digits" else {"root": "there"}
    values |= {} if name in ("digits", "image_folder", "cifar10_first4000") else {"download": True}
    data = compose([f"data={name}", *(f"data.{key}={value}" for key, value in values.items())]).data
    assert {key: data[key] for key in values} == values
    source = {key: data.source[key] for key in data.source if not key.startswith("_")}
    follows = {"root", "download", "image_size", "channels"}
    assert {key: value for key, value in source.items() if key in follows} == {
        key: values[key] for key in source.keys() & follows
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONF)))
def test_a_file_is_simple_and_harmless(path):
    text = path.read_text()
    for reference in re.findall(r"\$\{([^}]*)", text):
        assert not reference.startswith("..."), "an interpolation climbs one parent at most"
    assert not re.search(r"/home/|/root/|/Users/|/tmp/|/work/|~/|[A-Z]:\\", text), "a personal path"
    assert not re.search(r"https?://|s3://|gs://", text), "an address"
    assert not re.search(r"api_?key|token|password|secret|entity", text, re.IGNORECASE), "a secret"
    assert not re.search(r"^\s*download: true", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 120


def test_defaults_need_no_network_and_no_account(configs):
    cfg = configs["digits_cdd_red"]
    assert [logger._target_.rsplit(".")[-1] for logger in cfg.logger.values()] == ["CSVLogger"]
    assert configs["digits_ds"].logger.wandb.offline is True
    assert configs["digits_ds"].logger.wandb.log_model is False
    assert [v.weights for v in cfg.victims.values()] == [None]
    for path in (CONF / "data").iterdir():
        assert not words_of(path).get("download", False), path


def test_seed_zero_is_a_seed(changed):
    assert changed(seed=0).method.seed == 0
    assert changed(seed=3).method.seed == 3


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("method.optimizer.lr", "abc", "method.optimizer.lr must be a number, got 'abc'"),
        ("method.depth", 3.5, "method.depth must be a whole number, got 3.5"),
        ("method.aug_group", 1.5, "method.aug_group must be a whole number, got 1.5"),
        ("trainer.max_epochs", "ten", "trainer.max_epochs must be a number, got 'ten'"),
        ("trainer.max_epochs", True, "trainer.max_epochs must be a number, got True"),
        ("trainer.enable_progress_bar", "on", "must be true or false, got 'on'"),
        ("trainer.enable_progress_bar", 1, "must be true or false, got 1"),
        ("method.augment", "cutmix", "method.augment must be a list, got 'cutmix'"),
        ("data.mean", 0.5, "data.mean must be a list, got 0.5"),
        ("data.batch_size", [64], r"data.batch_size must be a number, got \[64\]"),
        ("data.name", ["digits"], "data.name must be a single value"),
        ("mix.components.fgsm.params.eps.uniform", 3, "must be a list, got 3"),
        ("mix.components.pgd.attack.eps", "8/255/2", "must be a number, got '8/255/2'"),
        ("mix.components.pgd.attack.eps", "8/0", "'8/0' divides by zero"),
        ("mix.components.fgsm.params.eps.uniform", ["1/255", "1/0.0"], "'1/0.0' divides by zero"),
        ("trainer.max_epochs", 0, "trainer.max_epochs must be at least 1, got 0"),
        ("trainer.fast_dev_run", True, "fast_dev_run"),
        ("trainer.overfit_batches", 1, "overfit_batches"),
        ("method.classifier", "vgg11", "method.classifier=vgg11 is not one of the victims: small_cnn"),
        ("mix.components.pgd.victims", ["lenet"], "mix.components.pgd.victims names 'lenet'"),
        ("method.typo", 1, "Unknown key 'method.typo'"),
        ("method.widht", 1, "Unknown key 'method.widht' in the config. Did you mean 'width'?"),
        ("mix.components.pgd.attack.step", 1, "Did you mean 'steps'?"),
        ("victims.small_cnn.typo", 1, "Unknown key 'victims.small_cnn.typo'"),
        ("victims.small_cnn.feature_layr", "x", "Did you mean 'feature_layer'?"),
        ("victim_training.max_epoch", 1, "Did you mean 'max_epochs'?"),
        ("victim_training.max_epochs", 0, "victim_training.max_epochs must be a whole number of at least 1, got 0"),
        ("victim_training.batch_size", 0, "victim_training.batch_size must be a whole number of at least 1, got 0"),
        ("victim_training.limit_train", 0, "victim_training.limit_train must be a number of images, or null for all"),
        ("victim_training.val_size", -1, "victim_training.val_size must be a share or number of images, got -1"),
        ("victim_training.seed", -1, "victim_training.seed must be a whole number from 0 to 4294967295, got -1"),
        ("victims.small_cnn.training.max_epochs", 0, "victims.small_cnn.training.max_epochs must be a whole number"),
        ("victims.small_cnn.training.max_epoch", 3, "Unknown key 'victims.small_cnn.training.max_epoch'"),
        ("victims.small_cnn.training.classifier.optimizer.lr", "x", "training.classifier.optimizer.lr must be a num"),
        ("victims.small_cnn.training.classifier.optimizer.lrr", 1, "Did you mean 'lr'?"),
        ("trainer.logger", True, "trainer.logger has no effect here: choose loggers with logger=csv"),
        ("trainer.default_root_dir", "x", "trainer.default_root_dir has no effect here: hydra.run.dir=..."),
        ("trainer.limit_predict_batches", 1, "trainer.limit_predict_batches has no effect here"),
        ("trainer.model_registry", "x", "trainer.model_registry has no effect here"),
        ("trainer.enable_checkpointing", False, "trainer.enable_checkpointing=false cannot be"),
        ("trainer.barebones", True, "trainer.barebones=true cannot be"),
        ("trainer.use_distributed_sampler", True, "trainer.use_distributed_sampler=true cannot be"),
        ("trainer.callbacks", ["x"], r"trainer.callbacks takes nodes such as \[{_target_: my.Callback}\], got 'x'"),
        ("data.seed", 1, "data.seed has no effect here: it is seed=..."),
        ("data.victims", {}, "data.victims has no effect here"),
        ("mix.seed", 1, "mix.seed has no effect here: it is seed=..."),
        ("method.victims", {}, "method.victims has no effect here"),
        ("logger.csv.save_dir", "x", "logger.csv.save_dir has no effect here: hydra.run.dir=..."),
        ("logger.csv.name", "x", "logger.csv.name has no effect here"),
        ("logger.csv.version", 3, "logger.csv.version has no effect here"),
        ("victim_training.classifier.mean", 0.5, "victim_training.classifier.mean has no effect here: set it at vict"),
        ("method._target_", "redlab.methods.Nothing", "method._target_=redlab.methods.Nothing cannot be imported"),
        ("data.num_classes", "???", "data.num_classes has no value: give it as data.num_classes=..."),
        ("data.num_classes", "${nothing}", "nothing"),
    ],
)
def test_a_wrong_value(changed, key, value, says):
    with pytest.raises(ConfigError, match=says):
        changed(**{key: value})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["method.optimizer=sgd"], "method.optimizer must be a group of settings, got 'sgd'"),
        (["lr=1"], "Unknown key 'lr' in the config. Did you mean 'method.optimizer.lr'?"),
        (["data=image_folder", "data.roott=x"], "Did you mean 'data.root'?"),
        (["data.batch_sise=3"], "Did you mean 'data.batch_size'?"),
        (["victims.small_cnn.weigths=x"], "Did you mean 'victims.small_cnn.weights'?"),
        (["victims.small_cnn.training.max_epochs=3"], "add it with +victims.small_cnn.training.max_epochs=3"),
        (["victim=resnet20", "victims.resnet20.backbone.dept=32"], "Did you mean 'victims.resnet20.backbone.depth'?"),
        (["victim=resnet20", "victims.resnet20.backbone.shortcut=C"], "shortcut must be 'A' or 'B', got 'C'"),
        (["attack=pgd"], "Unknown key 'attack'"),
        (["+tpyo=1"], "Unknown key 'tpyo'"),
        (["experiment=digit_do"], "experiment=digit_do: no such option. Did you mean 'digits_do'?"),
        (["victim=[lenet,vgg12]"], "victim=vgg12: no such option"),
        (["logger=null"], "not null"),
        (["seed=1,2"], "seed=1,2"),
        (["logger=wandb", "logger.wandb.log_model=true"], "wandb uploads online only"),
        (["logger=wandb", "logger.offline=false"], "Did you mean 'logger.wandb.offline'?"),
        (["method=classifier"], "add mix=clean, or mix=adversarial_training"),
        (["~victim"], "no victims"),
        (["victim=[lenet,small_cnn,lenet]"], "names lenet twice"),
        (["logger=[csv,csv]"], "names csv twice"),
        (["logger=[csv,none]"], "logger=[csv,none]: none stands alone"),
        (["logger=wandb", "+logger.wandb.id=x"], "logger.wandb.id has no effect here"),
        (["logger=[csv,wandb]", "+logger.wandb.name=x"], "logger.wandb.name has no effect here: it is name=..."),
        (["method=classifier", "mix=clean", "+method.std=2"], "method.std has no effect here: set it at victims."),
    ],
)
def test_a_wrong_word(words, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        finalise(compose(words))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1, "auto", [0], "0,1"])
def test_devices_are_what_lightning_takes(changed, value):
    assert changed(**{"trainer.devices": value}).trainer.devices == value


def test_fractions(changed):
    cfg = changed(
        **{
            "mix.components.pgd.attack.eps": "8/255",
            "mix.components.fgsm.params.eps.uniform": ["0/255", " 1.5 / 255"],
            "method.optimizer.lr": "-1/4",
            "name": "a/b",
        }
    )
    assert cfg.mix.components.pgd.attack.eps == 8 / 255
    assert cfg.mix.components.fgsm.params.eps.uniform == [0.0, 1.5 / 255]
    assert cfg.method.optimizer.lr == -0.25
    assert cfg.name == "a/b"


def test_choices_are_kept():
    cfg = finalise(compose(["victim=[lenet,vgg11]", "data=svhn"]))
    assert cfg.choices.victim == ["lenet", "vgg11"]
    assert cfg.choices.data == "svhn"
    assert list(cfg.victims) == ["lenet", "vgg11"]
    assert "hydra" not in cfg


def test_parse_refuses_several_values():
    assert [o.value() for o in parse(["a=1", "b=[1,2]", "c='x y'"])] == [1, [1, 2], "x y"]
    for word in ("a=1,2", "a=range(1,3)"):
        with pytest.raises(ConfigError, match="one value"):
            parse([word])
    with pytest.raises(ConfigError, match="a=="):
        parse(["a=={"])


# ---- overrides of what a checkpoint holds ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    words = ["seed=5", "mix.components.pgd.attack.steps=3", "victims.small_cnn.weights=mine.pt", "data.limit_test=7"]
    return OmegaConf.to_container(finalise(compose(words)))


def test_without_overrides_it_is_what_was_trained(stored):
    assert override_stored(stored, []) == OmegaConf.create(stored)


def test_a_value(stored):
    before = copy.deepcopy(stored)
    cfg = override_stored(stored, ["data.batch_size=3", "mix.components.pgd.attack.eps=2/255", "+data.download=false"])
    assert cfg.data.batch_size == 3
    assert cfg.mix.components.pgd.attack.eps == 2 / 255
    assert cfg.mix.components.pgd.attack.steps == 3
    assert cfg.seed == cfg.method.seed == 5
    assert stored == before


def test_a_group_is_composed_afresh(stored):
    cfg = override_stored(stored, ["mix=attunet", "mix.components.fgsm.weight=2"])
    assert list(cfg.mix.components) == ["fgsm", "rfgsm"]
    assert cfg.mix.components.fgsm.weight == 2
    assert cfg.choices.mix == "attunet"
    assert cfg.data == OmegaConf.create(stored).data
    assert cfg.victims.small_cnn.weights == str(Path("mine.pt").absolute())


def test_another_folder_of_data_reaches_the_source():
    """In a checkpoint, what one key takes from another is resolved."""
    there = OmegaConf.to_container(finalise(compose(["data=mnist", "data.root=first"])))
    assert override_stored(there, []).data.source.root == str(Path("first").absolute())
    cfg = override_stored(there, ["data.root='~/second'", "data.download=true"])
    assert cfg.data.root == cfg.data.source.root == str(Path.home() / "second")
    assert cfg.data.source.download is True


def test_other_victims(stored):
    cfg = override_stored(stored, ["victim=[lenet,vgg11]"])
    assert list(cfg.victims) == ["lenet", "vgg11"]
    assert cfg.choices.victim == ["lenet", "vgg11"]
    assert cfg.victims.lenet.backbone.image_size == 32
    again = override_stored(OmegaConf.to_container(cfg), ["data=fashion_mnist"])  # a list of choices is composed again
    assert list(again.victims) == ["lenet", "vgg11"]


def test_other_data_change_what_refers_to_them(stored):
    cfg = override_stored(
        stored, ["data=image_folder", "data.num_classes=7", "data.root=pictures", "data.image_size=48"]
    )
    backbone = cfg.victims.small_cnn.backbone
    assert (backbone.num_classes, backbone.channels, backbone.image_size) == (7, 3, 48)
    assert cfg.data.source.root == str(Path("pictures").absolute())
    assert (cfg.data.mean, cfg.data.limit_test) == ([0.485, 0.456, 0.406], None)
    assert cfg.victims.small_cnn.weights is None  # that file is of a network for other images
    assert cfg.method.channels == 1  # of what was trained
    assert cfg.method.depth == 8


def test_a_trained_method_keeps_its_guide(stored):
    guided = {**stored, "method": {**stored["method"], "classifier": "small_cnn"}}
    assert override_stored(guided, ["victim=lenet"]).method.classifier == "small_cnn"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.batch_sise=3", "Unknown key 'data.batch_sise' in the config. Did you mean 'data.batch_size'?"),
        ("mix=attunett", "mix=attunett: no such option. Did you mean 'attunet'?"),
        ("data=image_folder", "has no value: give it as"),
        ("method=do", "method=do: a checkpoint keeps its own method; train a new one instead."),
        ("experiment=digits_do", "a checkpoint keeps its own experiment"),
        ("victim_training=standard", "a checkpoint keeps its own victim_training"),
        ("attack=pgd", "Unknown key 'attack'"),
        ("~mix", "~mix: nothing can be taken out"),
        ("~data.name", "~data.name: nothing can be taken out"),
        ("seed=1,2", "one value"),
        ("trainer.max_epochs=ten", "must be a number"),
        ("+method.typo=1", "Unknown key 'method.typo'"),
    ],
)
def test_a_wrong_override(stored, word, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        override_stored(stored, [word])
