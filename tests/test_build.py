"""What a method is handed, what it starts from, and the frozen networks of its own."""

import sys
import types
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import redlab
from redlab.methods import Method
from redlab.runs import build, checkpoints, dry, loading, trust
from redlab.runs import train as training
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, finalise
from redlab.victims import Victim, state_hash

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3}


class Perceptual(Method):
    """Restores so that features stay: those of a helper."""

    frozen = ("features",)

    def __init__(self, *, helpers: Mapping[str, nn.Module], channels, image_size, num_classes, optimizer, width=4):
        super().__init__(optimizer=optimizer)
        self.save_hyperparameters("width")
        self.sizes = channels, image_size, num_classes
        self.features = helpers["features"]
        self.net = nn.Conv2d(channels, channels, 3, padding=1)

    def restore(self, x):
        return (x - self.net(x)).clamp(0, 1)

    def training_step(self, batch, batch_idx):
        restored = batch.adv - self.net(batch.adv)
        loss = (self.features.features(restored) - self.features.features(batch.clean)).square().mean()
        self.log("train/loss", loss)
        return loss


class Other(Method):
    """Another class, which shares a part with CDD-RED."""

    def __init__(self, *, optimizer, denoiser, judge):
        super().__init__(optimizer=optimizer)
        self.denoiser, self.judge = denoiser, judge


@pytest.fixture(autouse=True)
def users_methods(monkeypatch):
    module = types.ModuleType("users_methods")
    module.Perceptual = Perceptual
    monkeypatch.setitem(sys.modules, "users_methods", module)


def configured(tiny, *words, helpers="lenet", **method):
    """A run of `Perceptual`; ``helpers`` is a victim's YAML, or a whole node."""
    more = [f"+victim@method.helpers.features={helpers}"] if isinstance(helpers, str) else []
    cfg = compose([*(w for w in tiny if not w.startswith("method.")), "mix=attunet", *more, *words])
    OmegaConf.set_struct(cfg, False)
    node = cfg.method.get("helpers") if isinstance(helpers, str) else helpers
    cfg.method = {"_target_": "users_methods.Perceptual", "optimizer": ADAM, "helpers": node, **method}
    return finalise(cfg)


# ---- by signature ---------------------------------------------------------------------------------------------------


def test_a_method_is_handed_what_it_names_and_nothing_else(tiny):
    cfg, asked, node = finalise(compose(tiny)), [], OmegaConf.create({"_target_": "users_methods.take", "width": 5})

    def take(channels, attack_names, width=3):
        return channels, attack_names, width

    def offer(name):
        asked.append(name)
        return name

    module = sys.modules["users_methods"]
    module.take, module.quiet = take, lambda: "nothing"
    offers = {name: partial(offer, name) for name in ("channels", "attack_names", "victims")}
    assert build.make_method(node, offers) == ("channels", "attack_names", 5)
    assert asked == ["channels", "attack_names"]
    node.channels = 7  # what the YAML says comes first
    assert build.make_method(node, offers) == (7, "attack_names", 5)
    assert asked[2:] == ["attack_names"]
    assert build.make_method(OmegaConf.create({"_target_": "users_methods.quiet"}), offers) == "nothing"
    offered = build.offers(cfg, {}, {}, ["clean", "pgd"])
    assert [offered[name]() for name in ("num_classes", "channels", "image_size")] == [10, 1, 32]
    assert offered["attack_names"]() == ["clean", "pgd"]


def test_a_victim_is_trained_on_no_held_out_image(tiny):
    """And on all others; who uses those that are held out has none that it was trained on."""
    cfg = finalise(compose([*tiny, "data.hold_out=300", "data.use=held_out"]))
    data = build.shared_data(cfg)
    own = build.victim_data(cfg, "small_cnn", {}, data)
    data.setup_data()
    mine, theirs = (set(torch.cat([d.indices["train"], d.indices["val"]]).tolist()) for d in (data, own))
    assert not mine & theirs
    whole = build.victim_data(finalise(compose([*tiny])), "small_cnn", {}, data)
    assert whole._choice.use == "all"
    assert own._choice.use == "seen"


# ---- helpers --------------------------------------------------------------------------------------------------------


def test_a_helper_is_built_like_a_victim_and_attacked_by_nobody(tiny, no_report, tmp_path):
    cfg = configured(tiny)
    plan, _ = dry.rehearse(cfg)
    assert "to be trained" in plan["helper features"] or "found" in plan["helper features"]
    found = training.train(cfg, tmp_path / "run")
    assert {key.split("/")[-1] for key in found if key.startswith("test/count/fgsm/")} == {"small_cnn"}
    file = tmp_path / "run" / "checkpoints" / "best.ckpt"
    saved = checkpoints.read_checkpoint(file)
    assert not any(key.startswith("features.") for key in saved["state_dict"])
    assert saved["redlab"]["helpers"]["features"]["state_dict"]
    with pytest.raises(ConfigError, match=r"users_methods.Perceptual, which redlab does not offer"):
        redlab.load(file)
    method = redlab.load(file, allow=["users_methods.Perceptual"])
    assert isinstance(method.features, Victim)
    assert (
        state_hash(method.features) == saved["redlab"]["helpers"]["features"]["sha256"] == saved["frozen"]["features"]
    )
    assert method.sizes == (1, 32, 10)
    assert set(method.run.victims) == {"small_cnn"}
    assert training.evaluate(tmp_path / "run", [], tmp_path / "again", ["users_methods.Perceptual"]) == found


@pytest.mark.slow
def test_the_file_of_a_run_is_enough_for_its_helpers(tiny, no_report, tmp_path):
    """Nothing else of the machine that it was trained on is there any more."""
    training.train(configured(tiny, f"victim_root={tmp_path}/victims"), tmp_path / "run")
    (tmp_path / "victims").rename(tmp_path / "elsewhere")
    redlab.load(tmp_path / "run", allow=["users_methods.Perceptual"])
    assert not (tmp_path / "victims").exists()


def test_a_helper_may_be_a_victim(tiny):
    method, data = build.build(configured(tiny, helpers={"features": "small_cnn"}))
    assert method.features is data.victims["small_cnn"]
    with pytest.raises(ConfigError, match=r"method.helpers.features=vgg is not one of the victims: small_cnn"):
        configured(tiny, helpers={"features": "vgg"})


@pytest.mark.parametrize("method", ["do", "redrl", "add_defense", "gred"])
def test_on_a_cpu_weights_lie_channels_last(tiny, method):
    words = [w for w in tiny if not w.startswith("method.")]
    made, _ = build.build(finalise(compose([*words, f"method={method}", "mix=attunet", "init=null"])))
    told = [p for p in made.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2:].numel() > 1]
    assert told
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in told)


def test_a_wrong_helper_is_found_before_training(tiny):
    with pytest.raises(ConfigError, match=r"Unknown key 'method.helpers.features.widht'"):
        configured(tiny, "+method.helpers.features.widht=3")
    cfg = compose([*tiny, "+victim@method.helpers.features=lenet"])
    with pytest.raises(ConfigError, match=r"Unknown key 'method.helpers'"):  # CDD-RED names none
        finalise(cfg)
    with pytest.raises(ConfigError, match=r"there is no weights file .*/nowhere.ckpt"):
        dry.rehearse(configured(tiny, "method.helpers.features.weights=nowhere.ckpt"))


def test_a_file_gives_helpers_no_paths(tiny):
    """Words of a run folder are held to what those of victims are held to."""
    with pytest.raises(ConfigError, match="the argument name="):
        trust.stored_words("file", ["method.helpers.features.backbone.name=hf-hub:a/b"])


# ---- init -----------------------------------------------------------------------------------------------------------


def trained(finished_run):
    return checkpoints.read_checkpoint(finished_run[0] / "checkpoints" / "best.ckpt")


def test_ds_starts_from_the_weights_of_another_run(finished_run, tiny, no_report, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(finished_run[0].parent)
    cfg = finalise(compose([*tiny, "method=ds", "mix=attunet", "init=run", "method.optimizer.lr=0"]))
    assert cfg.init == str(finished_run[0])
    training.train(cfg, tmp_path)
    assert "Starting from denoiser of the CDDRED" in " ".join(capsys.readouterr().out.split())
    before, after = trained(finished_run)["state_dict"], checkpoints.read_checkpoint(tmp_path / "checkpoints/last.ckpt")
    for key in (key for key in before if key.endswith("weight")):  # the rate is 0
        assert torch.equal(after["state_dict"][key], before[key]), key
    assert after["redlab"]["config"]["init"] == str(finished_run[0])
    assert after["epoch"] == 0
    with pytest.raises(ConfigError, match=r"was started with init=.*run, not None"):
        training.train(finalise(compose([*tiny, "method=ds", "mix=attunet", "method.optimizer.lr=0"])), tmp_path)
    with pytest.raises(ConfigError, match="init=x: a checkpoint has its own weights"):
        training.evaluate(tmp_path, ["init=x"], tmp_path / "out", dry=True)


@pytest.mark.slow
def test_a_resumed_run_does_not_start_again(finished_run, tiny, no_report, tmp_path, capsys):
    words = [*tiny, "mix=attunet", f"init={finished_run[0]}"]
    training.train(finalise(compose(words)), tmp_path)
    capsys.readouterr()
    training.train(finalise(compose([*words, "trainer.max_epochs=2"])), tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "Resuming from" in said
    assert "Starting from" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init=nowhere"], "init=.*/nowhere: there is no such checkpoint or folder of a run"),
        (["init={run}", "method.width=6"], r"denoiser.* is \(4, .*\) there and \(6, .*\) here"),
        (["init={run}", "method.depth=4"], r"\(1, .*\) there and \(4, .*\) here"),
    ],
)
def test_what_it_cannot_start_from_is_found_before_training(finished_run, tiny, words, message):
    words = [word.format(run=finished_run[0]) for word in words]
    with pytest.raises(ConfigError, match=message):
        dry.rehearse(finalise(compose([*tiny, *words])))


def test_another_class_takes_the_parts_that_fit(finished_run):
    denoiser = redlab.load(finished_run[0]).denoiser
    new = type(denoiser)(1, 3, 4, 0.1)
    module = Other(optimizer=None, denoiser=new, judge=nn.Linear(2, 2))
    said = loading.start_from(module, finished_run[0])
    assert said.startswith("denoiser of the CDDRED in ")
    assert state_hash(module.denoiser) == state_hash(denoiser)
    with pytest.raises(ConfigError, match="holds a CDDRED, no part of which fits this Other"):
        loading.start_from(Other(optimizer=None, denoiser=nn.Linear(2, 2), judge=nn.Linear(2, 2)), finished_run[0])
