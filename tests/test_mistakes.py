"""What can be known from a config is refused before anything is trained, written or launched.

Each mistake ends in one sentence with key, value and a way out; where the way out can be typed, it is, and works.
"""

import copy
import functools
import re
import sys

import lightning as L
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

import redlab.data
from redlab.runs import cli, lab
from redlab.runs import train as training
from redlab.runs.blame import sentence
from redlab.runs.check import ConfigError
from redlab.runs.config import compose, conf_dir, finalise, override_stored, parse
from redlab.runs.dry import rehearse

# how a sentence says what to do: a range, the words that are known, the default, or something to type
WAY_OUT = re.compile(
    r"must (not )?(be|name|have|leave)|has to be|at least|[Dd]id you mean '|the default is|leaves? (it|its) |near names"
    r"|\b(give|choose|use|add|set) |Options: \w|pip install|Point data.root"
)
NOT_FOR_USERS = re.compile(r"Traceback|TypeError|AttributeError|object has no|not supported between|[Ff]ull_key")


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    """The embedded digits, which every case looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redlab.data, "digits", functools.cache(redlab.data.digits))
        yield


@pytest.fixture(autouse=True)
def _nothing_happens(tmp_path, monkeypatch):
    """An empty folder, which stays empty; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    for step in ("fit", "validate", "test"):
        monkeypatch.setattr(L.Trainer, step, lambda *args, **kwargs: pytest.fail("something was started"))
    state = torch.get_rng_state()
    yield
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), state)


GROUPS = {path.name for path in conf_dir().iterdir()}


def composed(words):
    """As ``compose``, but values that the YAML has are set without Hydra, which is slower."""
    groups = [w for w in words if w.split("=", 1)[0] in GROUPS]
    values = [w for w in words if w not in groups]
    cfg = compose(groups)
    if any(w[0] != "+" and OmegaConf.select(cfg, w.split("=", 1)[0], default="no") == "no" for w in values):
        return compose(words)
    for override in parse(values):
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    return cfg


def check(words):
    return rehearse(finalise(composed(words)))[0]


def refused(function, words):
    """The sentence that a user reads."""
    with pytest.raises((ValueError, OSError)) as caught:
        function(words)
    return sentence(caught.value, words)


def is_a_good_sentence(said, word, says):
    """Names key and value of the word that is wrong, and what to do."""
    assert "\n" not in said
    assert len(re.sub(r"/\S+/", "", said)) < 400, said  # folders have names of any length
    key, _, value = word.lstrip("+~").partition("=")
    assert key.rsplit(".", 1)[-1] in said, said
    assert said.startswith("Unknown key") or value.startswith("[") or value.lower() in said.lower(), said
    assert says in said, said
    assert WAY_OUT.search(said), said
    assert not NOT_FOR_USERS.search(said), said


# the words, of which the last is wrong, and what the sentence must hold besides its key and value
MISTAKES = [
    # ---- the method
    (["method.aug_mode=always"], "must be one of ('concat', 'sample', 'none')"),
    (["method.depth=0"], "method.depth must be at least 2, got 0"),
    (["method.aug_group=abc"], "must be a number, got 'abc'"),
    (["method.augment=[]"], "method.augment must name at least one"),
    (["method.lambda_adv=nan"], "method.lambda_adv must be a finite number, got nan"),
    (["method.classifier=lenet"], "small_cnn"),
    (["method.depth=null"], "method.depth must be a whole number, got null"),
    (["method.optimizer.lr=-1"], "Invalid learning rate: -1; the default is 0.002"),
    (["method.optimizer=null"], ""),
    (["method.scheduler.gamma=-1"], "gives a learning rate of -0.002 in epoch 7; the default is 0.1"),
    (["mix=clean"], "method=cdd_red learns from attacked images"),
    # ---- the mix
    (["mix.deal=stratfied"], "Did you mean 'stratified'?"),
    (["mix.components.pgd.weight=-1"], "pgd.weight must be 0 or at least 0.001"),
    (["mix.components.pgd.victims=[lenet]"], "'lenet'"),
    (["mix.components.pgd.target=10"], "mix.components.pgd.target=10 does not exist: there are 10 classes"),
    (["mix.components.pgd.against=self"], "Did you mean 'mix.components.pgd."),
    (["mix.components.pgd.gradient=bpda"], "has no effect where knowledge=victim"),
    (["+mix.adaptive={}"], "adaptive={} leaves out every attacker who knows the defence"),
    (["+mix.components.pgd.params.epps.uniform=[0,1]"], "did you mean 'eps'?"),
    (["mix.components.pgd.attack.steps=-3"], "mix.components.pgd.attack.steps must be"),
    (["mix.components.pgd=null"], "mix.components.pgd must be a group of settings, got null"),
    # ---- the data
    (["data.batch_size=0"], "batch_size must be at least 1, got 0"),
    (["data.batch_size=1.5"], "data.batch_size must be a whole number, got 1.5"),
    (["data.batch_size=100000"], "1294"),
    (["data.limit_test=abc"], "data.limit_test must be a whole number, got 'abc'"),
    (["data.val_size=1.5"], "val_size must be a share below 1 or a whole number of images, got 1.5"),
    (["data.num_classes=1"], "has 10"),
    (["data.mean=0.5"], "must be a list"),
    (["data=fashion_mnist", "data.root=nowhere"], "Point data.root at it"),
    # ---- the victims
    (["victim=torchvision_resnet18"], "images of 3 channels, got 1: choose"),
    (["victim=[]"], "give at least one of"),
    (["victim=null"], "must be one of"),
    (["victim=lenett"], "Did you mean 'lenet'?"),
    (["victims.small_cnn.input_size=16"], "set victims.small_cnn.input_size to 32, or to null"),
    (["victims.small_cnn.feature_layer=features.9999"], "near names"),
    (["victims.small_cnn.backbone.widths=[]"], "widths must be a list of positive numbers"),
    (["victims.small_cnn.weights=nofile"], "/nofile; the default is null"),
    (["victims.small_cnn=null"], "victims.small_cnn must be a group of settings, got null"),
    (["+victims.small_cnn.training.max_epoch=3"], "Did you mean 'max_epochs'?"),
    (["+victims.small_cnn.training.max_epochs=0"], "must be a whole number of at least 1, got 0"),
    (["victim_training.max_epochs=0"], "must be a whole number of at least 1, got 0"),
    (["victim_training.batch_size=2000"], "set victim_training.batch_size=1294"),
    (["victim_training.seed=-1"], "must be a whole number from 0 to 4294967295, got -1"),
    (["victim_training.classifier.optimizer.lr=-1"], "Invalid learning rate: -1; the default is 0.001"),
    # ---- the Trainer
    (["trainer.precision=15"], "trainer.precision must be"),
    (["trainer.precision=16-mixd"], "Did you mean '16-mixed'?"),
    (["trainer.devices=0"], "the default is 1"),
    (["trainer.strategy=dpd"], "Did you mean 'ddp'?"),
    (["trainer.max_epochs=0"], "trainer.max_epochs must be at least 1, got 0"),
    (["trainer.limit_train_batches=0"], "must be null or above 0"),
    (["trainer.limit_val_batches=0.001"], "must leave one of 1 batches"),
    (["trainer.log_every_n_steps=0"], "must be at least 1, got 0"),
    (["trainer.gradient_clip_val=-1"], "must be at least 0, got -1"),
    (["trainer.deterministic=wran"], "Did you mean 'warn'?"),
    (["+trainer.profiler=simpel"], "Did you mean 'simple'?"),
    (["+trainer.accumulate_grad_batches=0"], "must be at least 1"),
    (["trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=1"], "is not a multiple of the 2 processes"),
    # ---- what stands at the top
    (["seed=-1"], "from 0 to 4294967295"),
    (["seed=null"], "must be a whole number"),
    (["logger=null"], "logger=none"),
    (["~logger"], "The config has no logger"),
    (["experiment=null"], "~experiment"),
    (["name=${nope}"], "refers to the key 'nope', which there is not: give a value"),
    (["name=${oc.env:NO_SUCH_VARIABLE}"], "give a value"),
    (["hydra/launcher=ray"], "pip install hydra-ray-launcher"),
]  # fmt: skip
# more of the same kinds
REPEATED = [
    (["method.aug_group=true"], "must be a number, got True"),
    (["method.reconstruction=inf"], "method.reconstruction must be a finite number, got inf"),
    (["method.depth=[3]"], "must be a number"),
    (["method.optimizer.lr=true"], "must be a number"),
    (["method.scheduler.gamma=abc"], "must be a number"),
    (["data.batch_size=abc"], "must be a number"),
    (["data.batch_size=true"], "must be a number"),
    (["data.batch_size=[64]"], "must be a number"),
    (["data.batch_size=null"], "data.batch_size must be a whole number, got null"),
    (["trainer.max_epochs=[3]"], "must be a number"),
    (["trainer.max_epochs=1.5"], "trainer.max_epochs must be a whole number, got 1.5"),
    (["seed=abc"], "must be a number"),
    (["seed=1.5"], "must be a whole number"),
    (["seed=4294967296"], "from 0 to 4294967295"),
    (["+victims.small_cnn.training.max_epochs=abc"], "must be a whole number of at least 1, got 'abc'"),
    (["victim_training.max_epochs=1.5"], "must be a whole number of at least 1, got 1.5"),
    (["trainer.devices=abc"], "the default is 1"),
    (["name=${nope:1}"], "give a value"),
    (["data.num_workers=-1"], ""),
    (["trainer.accelerator=tpu"], "the default is auto"),
    (["victims.small_cnn.input_size=64"], "cannot take an image of 1 x 32 x 32"),
    (["mix.components.pgd.knowledge=everyone"], "must be 'victim' or 'defence'"),
    (["trainer.enable_progress_bar=on"], "must be true or false"),
    (["data.limit_train=10"], "10"),
    (["method.lambda_adv=-1"], "loss weights must not be negative"),
    (["+method.optimizer.betas=[2,3]"], "leave it out"),
    (["attack@mix.components.pgd.attack=feature", "mix.components.pgd.attack.layer=features.8"], "backbone.features.8"),
    (["+trainer.val_check_interval=21"], "must be at most 20, the steps of an epoch"),
    (["+mix.components.pgd.victims=small_cnn"], "must be a list, such as [small_cnn]"),
    (["method.aug_mode=samples"], "Did you mean 'sample'?"),
    (["method.keep=joined"], "Did you mean 'joint'?"),
    (["method.width=0"], "method.width must be at least 1, got 0"),
    (["method.channels=3"], "1 x 32 x 32"),
    (["method.bn_momentum=2"], "method.bn_momentum must be in [0, 1], got 2"),
    (["method.aug_group=0"], "method.aug_group must be at least 1, got 0"),
    (["method.augment=[cutmix,cutmix]"], "method.augment must not name one"),
    (["method.augment=[cutmxi]"], "crop_pad"),
    (["method.optimizer.weight_decay=-1"], "Invalid weight_decay value: -1; the default is 0.0001"),
    (["method.scheduler.step_size=0"], "by zero; the default is 7"),
    (["method=classifier", "mix=clean", "method.label_smoothing=2"], "label_smoothing must be in [0, 1], got 2"),
    (["method=classifier"], "add mix=clean"),
    (["mix.components.fgsm.weight=0", "mix.components.pgd.weight=0"], "each at weight 0: choose a mix"),
    (["mix.quantize=99"], "quantize must be a number of bits from 1 to 16"),
    (["mix.components.pgd.target=random_"], "Did you mean 'random'?"),
    (["mix.components.pgd.gradient=exct"], "Did you mean 'exact'?"),
    (["mix.components.pgd.params.eps.uniform=[2,1]"], "must be [lowest, highest]"),
    (["mix.components.pgd.attack.norm=l3"], "norm"),
    (["mix.components.pgd.attack=null"], "pgd"),
    (["data.limit_train=0"], "limit_train must be at least 1"),
    (["data.limit_val=-1"], "limit_val must be at least 1"),
    (["data.val_size=100000"], "of 1438 images"),
    (["data.val_size=-0.1"], "val_size must be"),
    (["data.num_classes=11"], "has 10"),
    (["data.image_size=28"], "has 32"),
    (["data.channels=3"], "has 1"),
    (["victims.small_cnn.backbone.widths=[2,2,2,2,2,2]"], "leave nothing of 32 pixels; the default is [16, 32, 64]"),
    (["victims.small_cnn.mean=[0.1,0.2]"], "the default is null"),
    (["victims.small_cnn.std=0"], "std must be positive"),
    (["victim_training.classifier.label_smoothing=2"], "label_smoothing must be in [0, 1], got 2"),
    (["trainer.devices=-3"], "the default is 1"),
    (["trainer.accelerator=cup"], "Did you mean 'cpu'?"),
    (["trainer.limit_train_batches=-1"], "has to be in [0.0, 1.0] or an int; the default is null"),
    (["trainer.num_nodes=0"], "must be a positive integer"),
    (["~trainer"], "The config has no trainer"),
    (["trainer.max_epoch=3"], "Did you mean 'trainer.max_epochs'?"),
    (["hydra/sweeper=nevergrad"], "pip install hydra-nevergrad-sweeper"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "says"), [("data.seed=1", "it is seed=..."), ("trainer.logger=csv", "choose loggers with logger=csv")]
)
def test_nobody_is_told_to_add_what_redlab_sets_itself(word, says):
    said = refused(check, [word])
    assert says in said
    assert "add it" not in said


def table(rows, repeated=()):
    """Cases, of which the repeated ones are slow tests."""
    cases = [*((row, ()) for row in rows), *((row, pytest.mark.slow) for row in repeated)]
    return [
        pytest.param(*row, marks=marks, id=row[0] if isinstance(row[0], str) else " ".join(row[0]))
        for row, marks in cases
    ]


@pytest.mark.parametrize(("words", "says"), table(MISTAKES, REPEATED))
def test_a_mistake(words, says):
    is_a_good_sentence(refused(check, words), words[-1], says)


# what is wrong, what the sentence says to type, and the words that come of it
WAYS_OUT = [
    (["+trainer.fast_dev_run=true"], "trainer.limit_train_batches=2 trainer.max_epochs=1", None),
    (["method.optimizer.lr=-1"], "0.002", ["method.optimizer.lr=0.002"]),
    (["trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=1"], "data.batch_size=2",
     ["trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=2"]),
    (["trainer.accumulate_grad_batches=2"], "+trainer.accumulate_grad_batches=2", None),
]  # fmt: skip
MORE_WAYS_OUT = [
    (["mix=clean"], "mix=digits", None),
    (["victims.small_cnn.input_size=16"], "32", ["victims.small_cnn.input_size=32"]),
    (["+trainer.overfit_batches=1"], "data.limit_train=64", None),
    (["method.optimizer.betas=[0.8,0.9]"], "+method.optimizer.betas=[0.8,0.9]", None),
    (["mix=clean"], "method=classifier", ["mix=clean", "method=classifier"]),
    (["method=classifier"], "mix=clean", ["method=classifier", "mix=clean"]),
    (["method=classifier"], "mix=adversarial_training", ["method=classifier", "mix=adversarial_training"]),
    (["logger=null"], "logger=none", None),
    (["experiment=null"], "~experiment", None),
    (["victims.small_cnn.input_size=16"], "null", ["victims.small_cnn.input_size=null"]),
    (
        ["data.limit_val=1", "mix=adversarial_training"],
        "data.val_size=0",
        ["data.limit_val=1", "mix=adversarial_training", "data.val_size=0"],
    ),
]


@pytest.mark.parametrize(("words", "typed", "then"), table(WAYS_OUT, MORE_WAYS_OUT))
def test_a_way_out_works(words, typed, then):
    said = refused(check, words)
    assert typed in said
    assert check(typed.split() if then is None else then)


def test_what_is_right_stays_right():
    """Values at the edge of what is refused."""
    check(["trainer.devices=auto", "trainer.accelerator=cpu", "seed=4294967295", "trainer.gradient_clip_val=0"])
    check(["victims.small_cnn.weights=null", "data.limit_train=64", "data.val_size=2", "trainer.limit_val_batches=1.0"])
    check(["method.aug_mode=none", "method.augment=[]", "trainer.deterministic=warn", "trainer.precision=bf16-mixed"])
    assert not torch.are_deterministic_algorithms_enabled()


# ---- data that are there --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of ten coloured images of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    for part, number in (("train", 4), ("test", 1)):
        for label in ("ant", "bee"):
            (root / part / label).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(root / part / label / f"{i}.png")
    words = ["data=image_folder", f"data.root={root}", "data.num_classes=2", "data.image_size=32", "data.num_workers=0"]
    return [*words, "data.batch_size=4", "data.val_size=2", "victim_training.batch_size=4"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.val_size=8", "of 8 images"),
        pytest.param("data.channels=2", "must be 1 or 3, got 2", marks=pytest.mark.slow),
        pytest.param("data.image_size=4", "small_cnn leave nothing of 4 pixels", marks=pytest.mark.slow),
        pytest.param("victim=torchvision_resnet18", "1000 classes apart, not 2: choose", marks=pytest.mark.slow),
    ],
)
def test_a_folder_of_images(pictures, word, says):
    key = word.split("=")[0]
    said = refused(check, [w for w in pictures if not w.startswith(f"{key}=")] + [word])
    is_a_good_sentence(said, word, says)


def test_a_folder_of_images_as_it_is(pictures):
    plan = check(pictures)
    assert plan["data"] == "image_folder: 6 train, 2 val, 2 test"
    assert plan["method"] == "cdd_red, 20 epochs of 1 steps"


@pytest.mark.slow
def test_images_that_are_larger_than_the_least_size_of_a_network(pictures):
    assert check([*pictures, "data.image_size=64", "victim=vgg16"])["victim vgg16"].startswith("to be trained")


def test_images_that_are_still_to_be_downloaded():
    missing = ["data=mnist", "data.root=nowhere", "data.download=true"]
    for plan in (check(missing), evaluate(missing)):
        assert plan["data"] == "mnist: to be downloaded"
        assert plan["victim small_cnn"] == "to be trained or found, 10 epochs"


# ---- where a run begins ---------------------------------------------------------------------------------------------


def test_a_run_that_is_refused_has_written_nothing(tmp_path):
    cfg = finalise(composed(["method.depth=0"]))
    with pytest.raises(ConfigError, match="depth must be at least 2, got 0"):
        training.train(cfg, tmp_path / "run")


def test_a_file_in_the_place_of_the_victims(tmp_path_factory):
    file = tmp_path_factory.mktemp("elsewhere") / "victims"
    file.write_text("")
    said = refused(check, [f"victim_root={file}"])
    is_a_good_sentence(said, f"victim_root={file}", "must be a folder")


@pytest.mark.slow  # composes the runs of all columns
def test_a_study_that_is_refused_has_trained_nothing(tmp_path):
    with pytest.raises(ConfigError, match="the schedule gives a learning rate of -"):
        lab.studies("cdd_red/table1", "smoke", [0], ["method.scheduler.gamma=-1", "trainer.max_epochs=8"], tmp_path)
    assert lab.studies("cdd_red/table1", "smoke", [0], [], tmp_path, dry=True) == []


@functools.cache
def stored():
    return OmegaConf.to_container(finalise(composed(["data.limit_test=8"])))


def evaluate(words):
    cfg, record = override_stored(copy.deepcopy(stored()), words), {"config": stored(), "victims": {}}
    return rehearse(cfg, record=record, trained=finalise(OmegaConf.create(stored())))[0]


IN_AN_EVALUATION = [
    ("mix.deal=stratfied", "Did you mean 'stratified'?"),
    ("seed=-1", "from 0 to"),
    ("trainer.accumulate_grad_batches=2", "add it with +trainer.accumulate_grad_batches=2"),
    ("victims.small_cnn.input_size=16", "set victims.small_cnn.input_size to 32, or to null"),
    ("data.name=${nope}", "give a value"),
]
REPEATED_IN_AN_EVALUATION = [
    ("data.eval_batch_size=0", "eval_batch_size must be at least 1"),
    ("data.limit_test=0", "limit_test must be at least 1"),
    ("trainer.precision=15", "must be"),
    ("victim=torchvision_resnet18", "images of 3 channels, got 1: choose"),
    ("victim=lenett", "Did you mean 'lenet'?"),
    ("mix.components.pgd.target=10", "there are 10 classes"),
]


@pytest.mark.parametrize(("word", "says"), table(IN_AN_EVALUATION, REPEATED_IN_AN_EVALUATION))
def test_an_evaluation(word, says):
    is_a_good_sentence(refused(evaluate, [word]), word, says)


def test_an_evaluation_on_images_that_the_method_cannot_take(pictures):
    said = refused(evaluate, pictures)
    is_a_good_sentence(said, "data=image_folder", "choose data with images of 1 x 32 x 32")


def test_an_evaluation_that_is_right():
    assert "epochs" not in evaluate(["mix=clean"])["method"]
    assert evaluate(["victim=lenet"])["victim lenet"] == "to be trained, 10 epochs"


# ---- --dry-run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command in this process: exit code, and what it printed."""

    def run(command, *words):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *words])
        return command(), *capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_dry_run_launches_nothing(call):
    code, out, err = call(cli.train, "hydra/launcher=basic", "-m", "seed=0", "--dry-run")
    assert (code, err, out.count("All is well")) == (0, "", 1)
    code, _, err = call(cli.train, "hydra/launcher=ray", "-m", "seed=0", "--dry-run")
    assert code == 1
    assert "pip install hydra-ray-launcher" in err


def test_a_dry_run_says_what_would_be_run(call):
    code, out, err = call(cli.main, "train", "method=do", "--dry-run", "trainer.max_epochs=2")
    assert (code, err) == (0, "")
    for words in ("do, 2 epochs of 20 steps", "digits: 1294 train, 144 val, 359 test", "fgsm, pgd", "to be trained"):
        assert words in out


def test_a_dry_run_knows_that_an_oracle_is_attacked_by_nobody(call):
    for method, cells in (("redrl_image", 15), ("redrl_delta", 14)):
        code, out, err = call(cli.main, "train", f"method={method}", "mix=redrl_digits", "--dry-run")
        assert (code, err) == (0, "")
        assert f"{cells} cells of attack and victim" in out


@pytest.mark.slow  # composes three jobs
def test_a_dry_run_of_a_sweep_checks_every_job(call):
    code, out, err = call(cli.train, "method.depth=3,0,4", "-m", "--dry-run")
    assert code == 1
    assert out.count("All is well") == 2
    first, last = err.splitlines()
    assert first == "error: the job method.depth=0: method.depth must be at least 2, got 0."
    assert last.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run=nowhere"], "run=nowhere: no such checkpoint or folder of a run; give"),
        (["run=x.ckpt", "scale=small"], "scale=small goes with study=..., not with run=...: leave it out"),
        (["study=cdd_red/table1", "seeds=[-1]"], "seeds must be whole numbers from 0"),
        (["study=cdd_red/table1", "seeds=[1,1]"], "seeds=[1, 1] names a seed twice"),
        (["study=cdd_red/table1", "seeds=[]"], "seeds must be whole numbers"),
        (["study=cdd_red/table1", "scale=smal"], "it has smoke, small, small_cifar, paper"),
        (["study=cdd_red/tabel1"], "cdd_red/table1"),
    ],
)
def test_evaluate_as_it_is_typed(call, words, says):
    code, _, err = call(cli.evaluate, *words, "--dry-run")
    assert code == 1
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    [
        f"{group}={path.stem}"
        for group in ("victim", "mix", "method", "trainer", "logger")
        for path in sorted((conf_dir() / group).glob("*.yaml"))
        if not path.stem.startswith(("torchvision_", "timm_"))  # for colour images
    ],
)
def test_no_option_is_a_mistake(word):
    needs = {"method=classifier": ["mix=clean"], "mix=clean": ["method=classifier"]}
    needs |= {"mix=adversarial_training": ["method=classifier"], "method=gred": ["mix=gred"]}  # which has clean images
    assert check([word, *needs.get(word, ()), "trainer.accelerator=cpu"])
