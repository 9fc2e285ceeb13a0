"""What comes out of a file names nothing but what redlab offers; the user's own words stay free."""

import copy
import functools
import os
import re
import shutil
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import redlab
from redlab.runs import cli, trust
from redlab.runs import train as training
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, conf_dir, finalise, override_stored

CONF = conf_dir()
VICTIMS = sorted(path.stem for path in (CONF / "victim").glob("*.yaml"))
BACKBONE, METHOD = "victims.small_cnn.backbone", "method"
ARCHITECTURES = "redlab.victims.architectures"


@pytest.fixture(scope="module")
def good(finished_run):
    """What the checkpoint of a finished run holds, its config apart."""
    return torch.load(finished_run[0] / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.fixture
def tampered(good, tmp_path):
    """A checkpoint of a run with some keys of its config set."""

    def write(changes):
        cfg = OmegaConf.create(good["redlab"]["config"])
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        config = OmegaConf.to_container(cfg, resolve=False)
        path = tmp_path / "tampered.ckpt"
        torch.save(good | {"redlab": good["redlab"] | {"config": config}}, path)
        return path

    return write


def writes(path):
    """A node of a config that writes a file when it is instantiated."""
    return {
        "_target_": "pathlib.Path.write_text",
        "self": {"_target_": "pathlib.Path", "_args_": [str(path)]},
        "data": "owned",
    }


@pytest.fixture(scope="module")
def default():
    return OmegaConf.to_container(finalise(compose()))


@pytest.fixture
def config(default):
    return copy.deepcopy(default)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user, with a method; importing it leaves a mark."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_module.py").write_text(
        "from pathlib import Path\n\nfrom redlab.methods import CDDRED\n\n\n"
        "class MyMethod(CDDRED):\n    pass\n\n\nPath(__file__).with_name('imported').touch()\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("my_module", None)


def changed(config, **changes):
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        functools.reduce(dict.__getitem__, parents, config)[leaf] = value
    return config


# ---- a checkpoint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["load", "evaluate"])
@pytest.mark.parametrize("key", [BACKBONE, "method.optimizer", "mix.components.pgd.attack", "data.source"])
def test_a_checkpoint_cannot_write_a_file(tampered, tmp_path, way, key):
    mark = tmp_path / "owned"
    path = tampered({key: writes(mark)})
    with pytest.raises(ConfigError, match=rf"tampered.ckpt names {key}._target_=pathlib.Path.write_text"):
        redlab.load(path) if way == "load" else training.evaluate(path, [], tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "torch.load",
        "urllib.request.urlopen",
        "hydra.utils.call",
        "hydra.utils.instantiate",
        "hydra.utils.get_method",
        "redlab.extras.require",
        "redlab.load",
        "redlab.victims.load",
        "redlab.runs.train.train",
        "redlab.runs.checkpoints.os.system",
        "redlab.studies.Card.load",
        "redlab.data.sources.torch.hub.load",
        "redlab.crafting.deal.math.sqrt",
        "redlab.attacks.PGD.__call__",
        "redlab.methods.CDDRED.load_from_checkpoint",
        "redlab.victims.architectures.require",
        "redlab.victims.architectures.torchvision.models.get_model",
        "torch.optim.sys.modules",
        "torch.optim.Adam.load_state_dict",
        "torch.optim.lr_scheduler.warnings.warn",
        "lightning.pytorch.Trainer.fit",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.WandbLogger",
        "my_module.MyMethod",
        " redlab.attacks.PGD",
        ["redlab.attacks.PGD"],
        5,
    ],
    ids=str,
)
def test_targets_that_are_refused(config, target, own_module, tmp_path):
    for place in (BACKBONE, "method", "mix.components.pgd.attack", "trainer", "seed", "victims.small_cnn.training"):
        node = changed(config, **{place: {"a": [{"b": ({"_target_": target},)}]}})
        if place == "trainer":
            node["trainer"] = config["trainer"] | {"devices": [{"_target_": target}]}
        with pytest.raises(ConfigError, match="which redlab does not offer"):
            trust.stored_config(tmp_path, node)
    assert "my_module" not in sys.modules
    assert not (own_module / "imported").exists()


def test_names_of_redlab_and_torch_are_offered():
    for name in ("torch.optim.SGD", "torch.optim.AdamW", "torch.optim.lr_scheduler.CosineAnnealingLR"):
        assert name in trust.offered()
    assert "torch.optim.lr_scheduler.ReduceLROnPlateau" in trust.offered()
    assert {"redlab.attacks.PGD", "redlab.attacks.pgd.PGD", f"{ARCHITECTURES}.lenet"} <= trust.offered()
    assert not [name for name in trust.offered() if name.startswith(("redlab.runs", "redlab.extras", "redlab.studies"))]


def test_every_yaml_names_what_is_offered():
    """But for loggers, which an evaluation chooses for itself, studies, which are in no run, and what Hydra makes."""
    found = 0
    for path in CONF.rglob("*.yaml"):
        if path.relative_to(CONF).parts[0] not in ("logger", "study", "local"):
            names = re.findall(r"_target_: *([\w.]+)", re.split(r"^hydra:", path.read_text(), flags=re.M)[0])
            assert {name for name in names if name != "null"} <= trust.offered(), path
            found += len(names)
    assert found > 60


def test_a_config_as_runs_write_it_passes_unchanged(tmp_path):
    words = ["data=cifar10", f"victim=[{','.join(VICTIMS)}]", "mix=redrl", "trainer=ddp", "logger=none"]
    plain = OmegaConf.to_container(finalise(compose(words)))
    given = copy.deepcopy(plain)
    read = trust.stored_config(tmp_path, plain)
    assert plain == given
    assert finalise(OmegaConf.create(read)).logger.csv._target_.endswith("CSVLogger")
    for part in read.keys() - {"logger", "choices"}:
        assert read[part] == plain[part]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.name", "${oc.env:HOME}", "data.name=.*interpolation"),
        ("data.root", ["x", {"y": "a${now:%Y}"}], r"data.root\[1\].y=.*interpolation"),
        (f"{BACKBONE}._args_", [10, 1, 8], "_args_"),
        (BACKBONE, {"_target_": f"{ARCHITECTURES}.timm_model", "name": "hf-hub:them/net"}, "name='hf-hub:them/net'"),
        (BACKBONE, {"_target_": f"{ARCHITECTURES}.timm_model", "name": "a", "checkpoint_path": "b"}, "checkpoint_path"),
        (
            BACKBONE,
            {"_target_": f"{ARCHITECTURES}.timm_model", "name": "a", "pretrained_cfg": {"url": "b"}},
            "pretrained_cfg",
        ),
        (
            BACKBONE,
            {"_target_": f"{ARCHITECTURES}.torchvision_model", "name": "vgg11", "weights": "/etc/passwd"},
            "weights='/etc/passwd'",
        ),
        (BACKBONE, {"_target_": f"{ARCHITECTURES}.cifar_resnet", "shortcut": "/etc/passwd"}, "shortcut='/etc/passwd'"),
        (BACKBONE, {"_target_": "redlab.victims.cifar_resnet.cifar_resnet", "shortcut": "/a"}, "shortcut='/a'"),
        ("choices.data", "../../../tmp/theirs", "choices.data"),
        ("choices.victim", ["small_cnn", "/tmp/theirs"], "choices.victim"),
    ],
)
def test_what_else_a_file_may_not_say(config, tmp_path, key, value, says):
    with pytest.raises(ConfigError, match=says):
        trust.stored_config(tmp_path, changed(config, **{key: value}))


def test_values_must_be_plain(config, tmp_path):
    config["method"]["width"] = torch.zeros(2)
    with pytest.raises(ConfigError, match=r"a Tensor as method.width"):
        trust.stored_config(tmp_path, config)
    for nothing in (None, "method: {}", [], {"trainer": 1}):
        with pytest.raises(ConfigError, match="holds no config"):
            trust.stored_config(tmp_path, nothing)


def test_a_file_downloads_nothing_and_logs_nowhere(tmp_path):
    words = ["data=mnist", "data.download=true", "mix=gred", "logger=wandb", "logger.wandb.offline=false"]
    plain = OmegaConf.to_container(finalise(compose([*words, "+trainer.profiler=simple"])))
    assert plain["data"]["source"]["download"] is True
    read = trust.stored_config(tmp_path, plain)
    assert read["data"]["download"] is read["data"]["source"]["download"] is False
    assert list(read["logger"]) == ["csv"]
    assert "profiler" not in read["trainer"]
    # what the user types is the user's own, and reaches the source
    cfg = override_stored(read, ["data.download=true", "data.root=here", "logger=wandb"])
    assert cfg.data.source.download is True
    assert cfg.data.source.root == os.path.abspath("here")
    assert list(cfg.logger) == ["wandb"]


# ---- the user's own classes -----------------------------------------------------------------------------------------


def test_the_users_own_method(tampered, own_module, tmp_path, monkeypatch, capsys, no_report):
    path = tampered({"method._target_": "my_module.MyMethod"})
    with pytest.raises(ConfigError, match=r"method._target_=my_module.MyMethod") as caught:
        redlab.load(path)
    assert not (own_module / "imported").exists()
    remedy = re.search(r"type (allow=\S+), or redlab.load\(..., allow=(\[.*?\])\)", str(caught.value))
    assert remedy is not None
    assert remedy.groups() == ("allow=[my_module.MyMethod]", '["my_module.MyMethod"]')
    assert type(redlab.load(path, allow=["my_module.MyMethod"])).__name__ == "MyMethod"
    with pytest.raises(ConfigError):
        redlab.load(path, allow=["my_module"])
    for words, code in (([], 1), ([remedy[1]], 0)):
        GlobalHydra.instance().clear()
        argv = ["evaluate.py", f"run={path}", f"out={tmp_path}/out", "data.limit_test=8", *words]
        monkeypatch.setattr(sys, "argv", argv)
        assert cli.evaluate() == code, capsys.readouterr().err
        assert (tmp_path / "out" / "metrics.json").exists() == (code == 0)


def test_a_checkpoint_that_is_older_than_a_key_of_the_data(config, tmp_path):
    old = copy.deepcopy(config)
    for key in ("test_on", "shuffle_attacks"):
        del old["data"][key]
    read = trust.stored_config(tmp_path, old)
    assert override_stored(read, []).data == override_stored(trust.stored_config(tmp_path, config), []).data
    assert override_stored(read, ["data.test_on=val"]).data.test_on == "val"


def test_what_the_user_types_is_free(config, own_module, tmp_path):
    cfg = override_stored(trust.stored_config(tmp_path, config), ["method._target_=my_module.MyMethod"])
    assert cfg.method._target_ == "my_module.MyMethod"


# ---- a run folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "--experimental-rerun=/tmp/a.pickle",
        "--config-dir=/tmp/theirs",
        "-m",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra/launcher=theirs",
        "+hydra.callbacks.a._target_=os.system",
        "optim@hydra.sweeper=adam",
        "data=../../tmp/theirs",
        "data=/tmp/theirs",
        "+optim@method.other=../theirs",
        "victim=[small_cnn,../theirs]",
        "data={root:x}",
        "data.root=${oc.env:HOME}",
        "data.root='${oc.env:HOME}/x'",
        "method._target_=os.system",
        "method._target_=my_module.MyMethod",
        "+method.a.b=[{c:{_target_:os.system}}]",
        f"+{BACKBONE}._args_=[10]",
        f"+{BACKBONE}.name='hf-hub:them/net'",
        f"{BACKBONE}={{_target_:{ARCHITECTURES}.timm_model,name:'hf-hub:them/net'}}",
        "data.source={_target_:redlab.data.mnist,root:x,download:true}",
        "+logger.settings.base_url='http://them'",
        5,
    ],
    ids=str,
)
def test_words_of_a_folder_that_are_refused(word, own_module, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        trust.stored_words(tmp_path, ["seed=1", word])
    assert not (own_module / "imported").exists()


def test_words_are_looked_at_together(tmp_path):
    words = [f"+method.net._target_={ARCHITECTURES}.timm_model", "+method.net.name='hf-hub:them/net'"]
    with pytest.raises(ConfigError, match=r"method.net"):
        trust.stored_words(tmp_path, words)


def test_ordinary_words_of_a_folder(tmp_path):
    words = [
        *("seed=1", "victim_root=../victims", "data=fashion_mnist", "victim=[small_cnn,lenet]", "data.root=../my data"),
        *(
            "~mix.components.cw",
            "~experiment",
            "optim@method.optimizer=sgd",
            "method.optimizer._target_=torch.optim.SGD",
        ),
        *("+experiment=mine/a.b", "logger=wandb", "logger.offline=false", "method.augment=[cutmix]", "name=null"),
    ]
    assert trust.stored_words(tmp_path, [*words, "data.download=true"]) == words
    own = "method._target_=my_module.MyMethod"
    assert trust.stored_words(tmp_path, [own], ["my_module.MyMethod"]) == [own]


def test_a_run_folder_cannot_write_a_file(finished_run, tmp_path, monkeypatch, capsys, no_report):
    """By the command, and what the user types anew is not held against the file."""
    folder, mark = shutil.copytree(finished_run[0], tmp_path / "run"), tmp_path / "owned"
    stored = folder / ".hydra" / "overrides.yaml"
    path = f"{{_target_:pathlib.Path,_args_:['{mark}']}}"
    word = f"++data.source={{_target_:pathlib.Path.write_text,self:{path},data:owned}}"
    stored.write_text(OmegaConf.to_yaml([*OmegaConf.load(stored), word, "+data.typo=1", "trainer.max_epochs=2"]))

    def resume(*words):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["train.py", f"resume={folder}", *words])
        return cli.train(), capsys.readouterr().err

    code, said = resume()
    assert code == 1
    assert "data.source._target_=pathlib.Path.write_text, which redlab does not offer" in said
    assert not mark.exists()
    # typed anew, the word is the user's: it is the misspelt key that ends this one
    code, said = resume("++data.source={_target_:redlab.data.digits}")
    assert "data.typo" in said
    code, said = resume("allow=[pathlib.Path.write_text,pathlib.Path]", "seed=7")
    assert "data.typo" in said


class Harmful:
    """Unpickles by calling a function."""

    def __reduce__(self):
        return (pytest.fail, ("code in a file was executed",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the callback of the best is gone
def test_no_checkpoint_of_a_run_folder_is_executed(finished_run, tmp_path, monkeypatch, capsys, no_report):
    """The last one is resumed, the best one tested, which this training does not better."""
    folder = shutil.copytree(finished_run[0], tmp_path / "run")
    torch.save({"redlab": Harmful()}, folder / "checkpoints" / "best.ckpt")
    GlobalHydra.instance().clear()
    monkeypatch.setattr("redlab.runs.checkpoints.RunCheckpoint.check_monitor_top_k", lambda *_: False)  # none is better
    words = [f"resume={folder}", "trainer.max_epochs=2", "logger=none"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert cli.train() == 1
    assert "best.ckpt cannot be read as a checkpoint" in capsys.readouterr().err


def test_allow_goes_with_a_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "allow=[my_module.MyMethod]"])
    assert cli.train() == 1
    assert "goes with resume=" in capsys.readouterr().err


def test_the_paths_of_a_run_folder_are_values(tmp_path, monkeypatch, capsys):
    """A path that a file has from the environment could carry a secret into a message or a folder's name."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    (tmp_path / "config.yaml").write_text("victim_root: ${oc.env:SECRET}\n")
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={tmp_path}"])
    assert cli.train() == 1
    said = capsys.readouterr().err
    assert "config.yaml holds victim_root=${oc.env:SECRET}: an interpolation" in said
    assert "s3cret" not in said


def test_what_a_run_folder_may_add_to_its_loggers(tmp_path):
    word = "+logger.csv.flush_logs_every_n_steps=1"
    assert trust.stored_words(tmp_path, [word]) == [word]
    with pytest.raises(ConfigError, match="which a file may not say"):
        trust.stored_words(tmp_path, ["+logger.wandb.entity=them"])
