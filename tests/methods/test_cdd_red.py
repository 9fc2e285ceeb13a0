import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import StepLR

from redlab.batch import Restorer
from redlab.methods import CDDRED, NotFiniteError
from redlab.rng import generator
from redlab.victims import state_hash

# Lightning's advice about speed, its note that frozen networks are in eval mode (which is what they are for), its note
# that a checkpoint was written by a callback absent from the test, and its own use of a deprecated name of torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]


def train(module, batch, steps):
    """Training by hand, without a Trainer."""
    module.log = module.log_dict = lambda *args, **kwargs: None
    optimizer = module.configure_optimizers()
    for step in range(steps):
        module.training_step(batch, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_after_two_steps(module, batch):
    """All weights in one vector. Adam's first step forgets the scale of the loss, its second does not."""
    train(module, batch, 2)
    return torch.cat([p.detach().flatten() for p in module.denoiser.parameters()])


def outputs(module):
    return module.eval().restore(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5)))


def test_estimates_with_the_denoiser_unclamped(method):
    module = method()
    assert isinstance(module, Restorer)
    x = torch.full((1, 1, 8, 8), 7.0)
    assert torch.equal(module.eval().estimate(x), module.denoiser(x))
    assert bool((module.estimate(x) > 1).any())
    assert torch.equal(method(started=False).estimate(x), x)


def test_invalid_rows_do_not_train(method, pairs):
    valid = torch.arange(12) < 7
    padded = weights_after_two_steps(method(), pairs(12, valid=valid))
    assert torch.equal(padded, weights_after_two_steps(method(), pairs(12)[valid]))
    assert not torch.equal(padded, weights_after_two_steps(method(), pairs(12)))


def test_fit_checkpoint_and_test(method, datamodule, trainer, tmp_path):
    data = datamodule(adaptive=(False, True))
    module = method(data.victims, scheduler=partial(StepLR, step_size=1, gamma=0.1))
    classifier = state_hash(data.victims["a"])
    best = ModelCheckpoint(tmp_path / "best", "best", monitor=module.monitor, mode=module.monitor_mode)
    trainer(max_epochs=1, callbacks=[best]).fit(module, data)
    assert state_hash(data.victims["a"]) == classifier
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)  # stepped after the epoch
    logged = module.trainer.callback_metrics
    assert {"train/loss", "val/pa_benign", "val/restored_accuracy", "val/pa_adv/fgsm/b"} <= logged.keys()

    checkpoint = torch.load(best.best_model_path, weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"denoiser"}
    assert checkpoint["hyper_parameters"]["augment"] == ["crop_pad", "cutmix"]
    assert checkpoint["hyper_parameters"]["classifier"] == "a"

    untrained = method(data.victims)
    assert not torch.equal(outputs(untrained), outputs(module))
    trainer().test(untrained, data, ckpt_path=best.best_model_path, verbose=False)
    assert torch.equal(outputs(untrained), outputs(module))
    numbers = untrained.numbers
    # both cells hold the same pairs here
    worst = {f"test/worst_accuracy{tail}" for tail in ("", "/a", "/b")}
    assert numbers["test/worst_accuracy"] <= numbers["test/restored_accuracy"]
    numbers = {key: value for key, value in numbers.items() if key not in worst}
    names = {key.removeprefix("test/") for key in numbers if "adaptive_" not in key}
    assert {f"test/{name}" for name in names} | {f"test/adaptive_{name}" for name in names} == numbers.keys()
    assert all(numbers[f"test/{name}"] == numbers[f"test/adaptive_{name}"] for name in names)
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["test/count/fgsm"] == 4


def test_results_are_those_of_the_crafting_victim(method, datamodule, trainer):
    data = datamodule(valid=torch.arange(8) != 3)
    module = method(data.victims)
    trainer().test(module, data, verbose=False)
    pairs, numbers = data.pairs, module.eval().numbers
    for v, (name, victim) in enumerate(data.victims.items()):
        rows = pairs[(pairs.victim == v) & (pairs.attack == 1) & pairs.valid]
        classes = victim(module.estimate(rows.adv)).argmax(1)
        again = victim(rows.adv - module.estimate(rows.adv) + rows.clean).argmax(1)
        assert numbers[f"test/count/fgsm/{name}"] == len(rows)
        assert numbers[f"test/restored_accuracy/fgsm/{name}"] == pytest.approx(
            float((classes == rows.label).float().mean())
        )
        same = (again == victim(rows.adv).argmax(1)).float().mean()
        assert numbers[f"test/pa_adv/fgsm/{name}"] == pytest.approx(float(same))


def test_examples(method, datamodule, trainer):
    data = datamodule(n=40, batch_size=5, adaptive=(False, True), valid=torch.arange(40) > 1)
    module = method(data.victims)
    for _ in range(2):  # a second test starts over
        trainer().test(module, data, verbose=False)
        assert len(module.examples) == 1  # of the cell whose attack knows nothing of the method
    pairs, said = module.examples[0]
    assert bool((pairs.valid & (pairs.attack == 1)).all())
    with torch.no_grad():
        assert torch.allclose(said["restored"], module.eval().estimate(pairs.adv), atol=1e-6)


def test_a_different_guide_is_refused(method, datamodule, trainer, tmp_path):
    data = datamodule()
    training = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    training.fit(method(data.victims), data)
    training.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="'classifier' differs"):
        CDDRED.load_from_checkpoint(tmp_path / "a.ckpt", victims=data.victims, optimizer=None, classifier="b")


def test_draws_go_on_after_a_resume(method, datamodule, trainer, tmp_path, monkeypatch):
    keys = []

    def recorded(*key):
        keys.append(key)
        return generator(*key)

    monkeypatch.setattr("redlab.methods.cdd_red.generator", recorded)
    data = datamodule()
    whole = method(data.victims)
    trainer(max_epochs=2).fit(whole, data)
    assert len(set(keys)) == 4
    uninterrupted, keys[:] = list(keys), []

    first = trainer(max_epochs=1)
    first.fit(method(data.victims), data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = method(data.victims)
    trainer(max_epochs=2).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    assert keys == uninterrupted
    assert torch.equal(outputs(resumed), outputs(whole))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(method, datamodule, trainer, bad):
    data = datamodule()
    data.pairs.adv[0] = bad
    module = method(data.victims)
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(NotFiniteError, match="not finite at step 0"):
        trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, data)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_hyperparameters_are_plain_also_from_yaml(method):
    module = method(augment=OmegaConf.create(["cutmix"]))
    assert type(module.hparams["augment"]) is list
    assert not {"victims", "optimizer", "scheduler"} & module.hparams.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "c"}, r"classifier must be one of \['a', 'b'\], got 'c'"),
        ({"augment": ["flip"]}, r"augment .* got \['flip'\]"),
        ({"aug_mode": "both"}, "aug_mode .* got 'both'"),
        ({"keep": "some"}, "keep .* got 'some'"),
        ({"aug_group": 0}, "aug_group .* got 0"),
        ({"lambda_adv": -1.0}, "loss weights .*-1.0"),
        ({"lambda_adv": math.nan}, "loss weights .*nan"),
        ({"reconstruction": 0, "lambda_benign": 0, "lambda_adv": 0}, "not all zero"),
    ],
    ids=str,
)
def test_bad_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_no_victim(method):
    with pytest.raises(ValueError, match="classifier must be one of"):
        CDDRED(victims={}, optimizer=SimpleNamespace())
