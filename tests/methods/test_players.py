"""Several players: whose gradients a step uses, clipping, schedules, the count of batches, resume, refusals."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from omegaconf import OmegaConf
from standins import Adversarial, Detector
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from redlab.methods import Method, NotFiniteError
from redlab.runs import check, checkpoints, dry, stopping
from redlab.runs import train as training
from redlab.runs.config import compose, finalise
from redlab.runs.trainer import make_trainer
from test_resume import assert_same_end

# see test_cdd_red.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]

SGD = partial(torch.optim.SGD, lr=1.0)
HALVING = partial(StepLR, step_size=1, gamma=0.5)


def adversarial(optimizer=None, **options):
    torch.manual_seed(0)
    optimizer = optimizer or {"generator": SGD, "critic": SGD}
    return Adversarial(**{"channels": 1, "attack_names": ("clean", "fgsm"), "optimizer": optimizer, **options})


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


class Turns(Adversarial):
    """Only one player plays; what gradients the other has is looked at."""

    turn, clipped = "generator", None

    def training_step(self, batch, batch_idx):
        restored = self.estimate(batch.adv)
        both = (restored - batch.clean).square().sum() + self.critic(restored).square().sum()
        self.play(self.turn, both, clip=self.clipped)


@pytest.mark.parametrize(("turn", "other"), [("generator", "critic"), ("critic", "generator")])
def test_a_step_is_of_one_player_alone(datamodule, trainer, turn, other):
    module = Turns(channels=1, attack_names=("clean", "fgsm"), optimizer={"generator": SGD, "critic": SGD})
    module.turn, module.clipped = turn, 1e-3
    before = {name: weights(module.players[name][0]) for name in module.players}
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule())
    after = {name: weights(module.players[name][0]) for name in module.players}
    assert not torch.equal(after[turn], before[turn])
    assert torch.equal(after[other], before[other])
    assert all(p.grad is None for p in module.players[other][0].parameters())
    assert all(p.requires_grad for p in module.parameters())
    # a step of SGD with rate 1 is the gradient, whose norm would be far larger
    assert float((after[turn] - before[turn]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_an_unknown_player(datamodule, trainer):
    module = Turns(channels=1, attack_names=("clean", "fgsm"), optimizer={"generator": SGD, "critic": SGD})
    module.turn = "judge"
    with pytest.raises(ValueError, match=r"player must be one of \['generator', 'critic'\], got 'judge'"):
        trainer(max_epochs=1).fit(module, datamodule())


def test_schedules_step_once_per_epoch(datamodule, trainer):
    module = adversarial(scheduler={"generator": HALVING, "critic": None}, optimizer=adam())
    run = trainer(max_epochs=3)
    run.fit(module, datamodule())
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == [pytest.approx(1e-3 / 8), 1e-3]


@pytest.mark.parametrize(("turn", "rates"), [("generator", [0.25, 1.0]), ("critic", [1.0, 0.25])])
def test_the_schedule_of_a_player_that_never_plays_stands_still(datamodule, trainer, turn, rates):
    both = {"generator": SGD, "critic": SGD}
    schedules = dict.fromkeys(both, HALVING)
    module = Turns(channels=1, attack_names=("clean", "fgsm"), optimizer=both, scheduler=schedules)
    module.turn, module.clipped = turn, 1e-3
    run = trainer(max_epochs=2)  # torch warns where a schedule is ahead of its optimiser, and warnings are errors here
    run.fit(module, datamodule())
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == rates


def test_plateau_schedules_watch_the_monitor(datamodule, trainer):
    plateau = partial(ReduceLROnPlateau, mode="max", patience=0, threshold=10.0)
    module = adversarial(scheduler={"critic": plateau}, optimizer=adam())
    run = trainer(max_epochs=2)
    run.fit(module, datamodule())
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == [1e-3, pytest.approx(1e-4)]


def adam(lr=1e-3):
    return dict.fromkeys(("generator", "critic"), partial(torch.optim.Adam, lr=lr))


@pytest.mark.parametrize("players", [1, 2])
def test_batches_are_counted_alike(datamodule, trainer, tmp_path, monkeypatch, players):
    seen, kind = [], Adversarial if players == 2 else Detector
    original = kind.training_step

    def training_step(self, batch, batch_idx):
        seen.append(self.batches)
        return original(self, batch, batch_idx)

    def module():
        return adversarial(adam()) if players == 2 else Detector(channels=1, optimizer=SGD)

    monkeypatch.setattr(kind, "training_step", training_step)
    assert module().batches == 0
    first, data = trainer(max_epochs=1), datamodule(n=12)
    first.fit(module(), data)
    first.save_checkpoint(tmp_path / "a.ckpt")
    assert first.global_step == 3 * players
    second = module()
    trainer(max_epochs=2).fit(second, data, ckpt_path=tmp_path / "a.ckpt")
    assert seen == list(range(6))
    assert second.batches == 6


def test_a_loss_that_is_not_finite_stops_before_the_step(datamodule, trainer):
    data, module = datamodule(), adversarial(adam())
    data.pairs.adv[0] = torch.nan
    before = weights(module)
    with pytest.raises(NotFiniteError, match="not finite at step 0"):
        trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, data)
    assert torch.equal(weights(module), before)


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("16-mixed", marks=pytest.mark.gpu)])
def test_clipping_in_other_precisions(datamodule, trainer, precision):
    """Gradients that are scaled for 16 bits are clipped as what they are."""
    module = Turns(channels=1, attack_names=("clean", "fgsm"), optimizer={"generator": SGD, "critic": SGD})
    module.clipped = 1e-3
    before = weights(module.generator)
    accelerator = {"accelerator": "gpu"} if precision == "16-mixed" else {}
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, precision=precision, **accelerator).fit(
        module, datamodule()
    )
    assert float((weights(module.generator.cpu()) - before).norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": SGD}, r"optimizer must be one for each of the players .*, got one for all"),
        ({"optimizer": {"generator": SGD}}, r"optimizer must be one for each .*, got \['generator'\]"),
        ({"scheduler": HALVING}, r"scheduler must be given by the names of players .*, got one for all"),
        ({"scheduler": {"judge": HALVING}}, r"scheduler must be .* got \['judge'\]"),
    ],
)
def test_names_that_are_not_those_of_the_players(options, message):
    with pytest.raises(ValueError, match=message):
        adversarial(**options).configure_optimizers()


def test_every_parameter_has_one_player():
    module = adversarial()
    module.players = {"generator": [module.generator, module.critic], "critic": [module.critic]}
    with pytest.raises(ValueError, match="the players 'generator' and 'critic' share parameters"):
        module.configure_optimizers()
    module.players = {"generator": [module.generator[0]], "critic": [module.critic]}
    with pytest.raises(ValueError, match=r"no player trains generator.2.weight \(2 such in all\)"):
        module.configure_optimizers()


def test_facts_of_an_instance():
    module = adversarial()
    assert module.capabilities == {"restorer", "detector", "identifier"}
    assert (module.monitor, module.monitor_mode) == ("val/restored_accuracy", "max")
    assert module.unused_parameters
    assert not module.automatic_optimization
    detector = Detector(channels=1, optimizer=SGD)
    assert (detector.capabilities, detector.monitor) == ({"detector"}, "val/auroc")
    assert not detector.unused_parameters
    assert detector.automatic_optimization
    assert repr(detector) == "Detector(detector; 209 parameters; channels=1)"
    assert not {"monitor", "monitor_mode"} & vars(Method).keys()
    assert repr(Method(optimizer=SGD)) == "Method(no capability; 0 parameters)"
    assert issubclass(Method, LightningModule)


# ---- in a run -------------------------------------------------------------------------------------------------------


PLAYERS = ("generator", "critic")


def configured(tiny, *words, **method):
    """The config of a tiny run of the method of two players."""
    cfg = compose([*(w for w in tiny if not w.startswith("method.")), "mix=attunet", *words])
    optimizer = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3}
    schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1, "gamma": 0.5}
    OmegaConf.set_struct(cfg, False)
    cfg.method = {
        "_target_": "standins.Adversarial",
        "channels": "${data.channels}",
        "optimizer": dict.fromkeys(PLAYERS, optimizer),
        "scheduler": {"generator": schedule},
        **method,
    }
    return finalise(cfg)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tiny, no_report, tmp_path, monkeypatch):
    cfg, whole, stopped = configured(tiny, "trainer.max_epochs=2"), tmp_path / "whole", tmp_path / "stopped"
    numbers = training.train(cfg, whole)
    assert {"test/restored_accuracy", "test/auroc", "test/identified"} <= numbers.keys()
    original, done = Adversarial.training_step, []

    def training_step(self, batch, batch_idx):
        if self.batches == 5 and not done:
            done.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Adversarial, "training_step", training_step)
    with pytest.raises(stopping.Stopped):
        training.train(cfg, stopped)
    half = checkpoints.read_checkpoint(stopped / "checkpoints" / "last.ckpt")
    assert half["global_step"] == 12  # of two players in six batches
    training.train(cfg, stopped)
    assert_same_end(stopped, whole)
    last = checkpoints.read_checkpoint(stopped / "checkpoints" / "last.ckpt")
    assert [o["param_groups"][0]["lr"] for o in last["optimizer_states"]] == [pytest.approx(1e-3 / 4), 1e-3]


def test_clipping_of_the_trainer_acts_on_every_play(tiny, tmp_path):
    cfg, module = configured(tiny, "trainer.gradient_clip_val=1e-3"), adversarial()
    trainer = make_trainer(cfg, tmp_path, [], [], method=module)
    assert (module.clip, module.clip_algorithm) == (1e-3, "norm")
    assert trainer.gradient_clip_val is None
    by_value = configured(tiny, "trainer.gradient_clip_val=0.5", "+trainer.gradient_clip_algorithm=value")
    make_trainer(by_value, tmp_path, [], [], method=module)
    assert (module.clip, module.clip_algorithm) == (0.5, "value")


def test_the_clip_of_the_method_is_used_where_play_names_none(datamodule, trainer):
    module = Turns(channels=1, attack_names=("clean", "fgsm"), optimizer={"generator": SGD, "critic": SGD})
    module.clip, module.clip_algorithm = 1e-4, "value"
    before = weights(module.generator)
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule())
    assert float((weights(module.generator) - before).abs().max()) == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+trainer.accumulate_grad_batches=2", "accumulate_grad_batches=2 cannot be: .*; set a larger data.batch_size"),
        ("+trainer.max_steps=7", "trainer.max_steps=7 cannot be: .*several players.*; set trainer.max_epochs"),
    ],
)
def test_what_counts_steps_of_optimisers_is_refused(tiny, word, message):
    with pytest.raises(check.ConfigError, match=message):
        make_trainer(configured(tiny, word), Path(), [], [], method=adversarial())


def test_a_run_of_several_players_is_rehearsed(tiny):
    plan, _ = dry.rehearse(configured(tiny))
    assert "1 epochs of 4 steps" in plan["method"]
    with pytest.raises(check.ConfigError, match=r"max_steps=7 cannot be"):
        dry.rehearse(configured(tiny, "+trainer.max_steps=7"))


def test_a_detector_needs_clean_images(tiny):
    said = "none of the 16 validation images clean, against which val/"
    cfg = configured(tiny)
    cfg.method = {"_target_": "standins.Detector", "channels": 1, "optimizer": cfg.method.optimizer.critic}
    with pytest.raises(check.ConfigError, match=f"{said}auroc"):
        dry.rehearse(cfg)
    gred = compose([*(word for word in tiny if not word.startswith("method.")), "method=gred", "mix=digits"])
    with pytest.raises(check.ConfigError, match=f"{said}detection_accuracy"):
        dry.rehearse(finalise(gred))


def test_several_processes_are_told_of_unused_parameters(tiny, tmp_path):
    ddp = configured(tiny, "trainer=ddp", "trainer.accelerator=cpu")
    assert make_trainer(ddp, tmp_path, [], [], method=adversarial()).strategy._ddp_kwargs == {
        "find_unused_parameters": True
    }
    one = Detector(channels=1, optimizer=SGD)
    assert make_trainer(ddp, tmp_path, [], [], method=one).strategy._ddp_kwargs == {}
