"""redlab in a notebook: everything from ``import redlab``, and a trained method with all that it was made with."""

import subprocess
import sys

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import redlab
from redlab.batch import AttackBatch, estimate
from redlab.methods import Method
from redlab.victims import state_hash

QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}
WORKERS = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture
def method(finished_run):
    return redlab.load(finished_run[0])


def images(n=4, **options):
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(0), **options)


def test_dir_shows_what_there_is_and_all_of_it_is_there():
    parts = {"attacks", "data", "methods", "metrics", "studies", "victims"}
    calls = {"AttackMix", "Component", "diagnose", "evaluate", "load", "save_pretrained"}
    assert {*parts, *calls, "__version__"} == set(dir(redlab)) == set(redlab.__all__)
    for name in dir(redlab):
        assert getattr(redlab, name) is not None
    assert redlab.AttackMix({"pgd": redlab.Component(attack=redlab.attacks.PGD())}).names == ("clean", "pgd")
    assert redlab.data.digits is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = redlab.nothing


def test_importing_redlab_imports_nothing_large():
    code = "import sys, redlab; dir(redlab); print({'torch', 'lightning', 'hydra'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"


# ---- what is loaded -------------------------------------------------------------------------------------------------


def test_a_loaded_method_knows_its_run(method):
    run = method.run
    assert run.config["method"]["_target_"] == "redlab.methods.CDDRED"
    assert run.config["victims"].keys() == run.victims.keys() == {"small_cnn"}
    assert isinstance(run.mix, redlab.AttackMix)
    assert run.mix.names[0] == "clean"
    assert run.data.mix is run.mix
    assert method.classifier is run.victims["small_cnn"]
    x, y = images(), torch.arange(4)
    assert redlab.attacks.FGSM(eps=0.1)(run.victims["small_cnn"], x, y).shape == x.shape


def test_the_run_is_no_part_of_the_method(method, finished_run):
    saved = torch.load(finished_run[0] / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert {key for key in method.state_dict() if not key.startswith("classifier.")} == saved.keys()
    assert {name for name, _ in method.named_children()} == {"classifier", "denoiser"}
    assert Method.run is None


# ---- restore --------------------------------------------------------------------------------------------------------


def test_restored_images_can_be_attacked(method):
    with torch.no_grad():
        for layer in method.denoiser.net:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.mul_(3)  # so that the network leaves [0, 1] widely
    x, victim = images(), method.run.victims["small_cnn"]
    raw, restored = method.estimate(x).detach(), method.restore(x)
    assert float(raw.amin()) < 0
    assert float(raw.amax()) > 1
    assert torch.equal(restored, raw.clamp(0, 1))
    assert restored.dtype == torch.float32
    again = redlab.attacks.PGD(norm="linf", eps=8 / 255, steps=2)(victim, restored, torch.arange(4))
    assert again.shape == x.shape
    restored.numpy()  # as a plot does


def test_a_gradient_is_there_for_who_asks(method):
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(method.restore(x).sum(), x)
    assert float(gradient.abs().sum()) > 0


def test_evaluation_and_attackers_go_through_the_estimate(method):
    """Clamping would hide the gradient of an attacker who knows the defence, and change the paper's distances."""
    x, victim = images(), method.run.victims["small_cnn"]
    defended = redlab.attacks.Defended(method, victim)
    with torch.no_grad():
        assert torch.equal(estimate(method, x), method.denoiser(x))
        assert torch.equal(defended(x), victim(method.denoiser(x)))
        only = type("Only", (), {"restore": staticmethod(lambda z: z / 2)})()
        assert torch.equal(estimate(only, x), x / 2)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (images().mul(255).byte(), r"uint8.*divide by 255"),
        (images().mul(255), r"in \[0, 1\].*divide by 255"),
        (images() - 0.5, r"in \[0, 1\], got values from -0"),
        (images().masked_fill(images() < 0.1, float("nan")), r"in \[0, 1\], got values from nan"),
        (images()[0], r"\(1, 32, 32\)"),
        (images().long(), "int64"),
    ],
)
def test_what_is_no_image_is_refused(method, x, says):
    with pytest.raises(ValueError, match=says):
        method.restore(x)


def test_double_images_and_no_images(method):
    assert method.restore(images().double()).dtype == torch.float32
    assert method.restore(images(0)).shape == (0, 1, 32, 32)


@pytest.mark.gpu
def test_images_on_another_device_than_the_method(method):
    expected = method.restore(images())
    method.cuda()
    torch.testing.assert_close(method.restore(images()), expected, atol=1e-4, rtol=0)
    assert method.restore(images().cuda()).device.type == "cuda"


# ---- predict --------------------------------------------------------------------------------------------------------


@WORKERS
def test_predict_walks_the_cells_of_the_test(method):
    data, before = method.run.data, state_hash(method)
    cells = L.Trainer(**QUIET).predict(method, datamodule=data)
    assert len(cells) == len(data.mix.attack_names)  # clean, attacked, and by who knows the defence
    for number, batches in enumerate(cells):
        assert sum(len(said["restored"]) for said in batches) == len(data.indices["test"])
        for said in batches:
            assert set(AttackBatch.__dataclass_fields__) <= said.keys()
            assert torch.equal(said["restored"], method.restore(said["adv"]))
            assert (said["attack"] != 0).all() == (number > 0)
    assert state_hash(method) == before


@WORKERS
def test_predict_takes_plain_images(method):
    x, trainer = images(6), L.Trainer(**QUIET)
    for data in (DataLoader(x, batch_size=4), DataLoader(TensorDataset(x, torch.arange(6)), batch_size=4)):
        said = trainer.predict(method, data)
        assert torch.equal(torch.cat([part["restored"] for part in said]), method.restore(x))
        assert said[0].keys() == {"restored"}


@WORKERS
def test_predict_asks_for_what_a_method_can(method):
    class Other(Method):
        def __init__(self):
            super().__init__(optimizer=torch.optim.Adam)

        def adversarial_scores(self, x):
            return {"mean": x.mean((1, 2, 3))}

        def attack_logits(self, x):
            return x.flatten(1)[:, :3]

    said = L.Trainer(**QUIET).predict(Other(), DataLoader(images(), batch_size=4))[0]
    assert {k: tuple(v.shape) for k, v in said.items()} == {"score_mean": (4,), "attack_logits": (4, 3)}


@WORKERS
def test_predict_of_a_classifier(method):
    net = redlab.victims.ImageClassifier(redlab.victims.architectures.lenet(10, 1, 32), num_classes=10)
    classifier = redlab.methods.Classifier(network=net, optimizer=torch.optim.Adam)
    said = L.Trainer(**QUIET).predict(classifier, DataLoader(images(), batch_size=4))[0]
    assert said["class_logits"].shape == (4, 10)
    mix = redlab.AttackMix({"fgsm": redlab.Component(attack=redlab.attacks.FGSM(eps=0.1), knowledge="defence")})
    data = redlab.data.AttackDataModule(redlab.data.digits, mix=mix, victims={"lenet": classifier}, limit_test=8)
    data.attach(classifier)
    clean, attacked, _ = L.Trainer(**QUIET).predict(classifier, datamodule=data)  # the last by who knows the defence
    assert clean[0]["class_logits"].shape == attacked[0]["class_logits"].shape == (8, 10)
