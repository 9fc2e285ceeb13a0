"""What every method shares: players with optimisers and schedules, frozen networks, evaluation by capability."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from redlab.batch import (
    AttackBatch,
    Restorer,
    able,
    attack_logits,
    attacked_images,
    capabilities,
    check_images,
    estimate,
)
from redlab.evaluation import Evaluator, gathered, probed
from redlab.methods.examples import Examples, Said
from redlab.metrics import Samples, numbers
from redlab.victims import state_hash

OptimizerPartial = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerPartial = Callable[[Optimizer], LRScheduler]

MONITORS = {"restorer": "val/restored_accuracy", "detector": "val/auroc"}
MONITORS |= {"identifier": "val/identified", "labeler": "val/defended_accuracy"}
"""Which number picks the best checkpoint of a method, by the first of these capabilities that it has."""


def chosen(what: str, name: str | None, victims: Mapping[str, nn.Module]) -> str:
    """The victim that a method's option names; None: the first one.

    Args:
        what: the option, for the message.
        name: its value.
        victims: by name.

    Raises:
        ValueError: there is no such victim.
    """
    name = next(iter(victims), "") if name is None else name
    if name not in victims:
        raise ValueError(f"{what} must be one of {list(victims)}, got {name!r}")
    return name


class NotFiniteError(ValueError):
    """The training loss is NaN or infinite."""


class Method(LightningModule):
    """Base of the methods: a method adds its networks, its ``training_step`` and its capabilities.

    Validation and test measure what the method can do (``redlab.evaluation``). Numbers are logged as ``val/<number>``
    and ``test/<number>``, see ``redlab.metrics.numbers``.

    A method with one optimiser returns its loss from ``training_step``. One whose networks play against each other sets
    ``players`` when it has made them, takes an optimiser for each by name, and calls ``play`` in ``training_step``.

    Attributes:
        capabilities: what it can do, out of ``redlab.batch.CAPABILITIES``; all that it has the method for, unless an
            option of the method narrows it.
        monitor: key that picks the best checkpoint; by default of the first capability, see ``MONITORS``.
        monitor_mode: "max" or "min".
        players: name -> the modules that its optimiser trains; empty where one optimiser trains all.
        unused_parameters: whether some parameters are without a gradient in some backward pass, which several
            processes must know of; so it is with several players.
        clip: largest norm of the gradients of a player, where ``play`` is not told another; None for no limit. Of a
            run it is ``trainer.gradient_clip_val``.
        clip_algorithm: "norm", or "value" for each gradient alone.
        frozen: names of helper networks that training never changes. They stay in eval mode and out of checkpoints,
            which hold their sha256 instead.
        evaluator: what measures it; the data module hands it over (``AttackDataModule.attach``).
        numbers: ``test/...`` numbers of the last test.
        samples: the rows of the last test, of all processes.
        examples: after a test, a few pairs of every cell with an attack on the victim, and what was said of them, on
            the CPU; see ``Examples``.
        pictures: after a test with a probe, name -> (K, C, H, W), what it showed of the K rows in ``pictured``.
        known: rows of attacks that need not be tested again, which count in the next test.
        run: of a method from ``redlab.load``, what it was made with: ``config``, ``victims``, ``mix`` and ``data``.

    Args:
        optimizer: parameters -> optimiser; with several players one for each, by name.
        scheduler: optimiser -> learning-rate schedule, stepped once per epoch; None for a constant rate. With several
            players by name, a player that is not named keeps its rate. ``ReduceLROnPlateau`` watches ``monitor``.
    """

    frozen: Sequence[str] = ()
    run: Any = None

    def __init__(
        self,
        *,
        optimizer: OptimizerPartial | Mapping[str, OptimizerPartial],
        scheduler: SchedulerPartial | Mapping[str, SchedulerPartial | None] | None = None,
    ) -> None:
        super().__init__()
        self.optimizer_partial = optimizer
        self.scheduler_partial = scheduler
        self.capabilities = able(self)
        self.monitor = next((key for name, key in MONITORS.items() if name in self.capabilities), "")
        self.monitor_mode = "max"
        self.players: Mapping[str, Sequence[nn.Module]] = {}
        self.automatic_optimization = not isinstance(optimizer, Mapping)
        self.unused_parameters = isinstance(optimizer, Mapping)
        self.clip: float | None = None
        self.clip_algorithm = "norm"
        self._clip_now: float | None = None
        self._played: set[str] = set()
        self.evaluator: Evaluator | None = None
        self.numbers: dict[str, float] = {}
        self.samples: Samples | None = None
        self.examples: list[tuple[AttackBatch, Said]] = []
        self.pictures: dict[str, Tensor] = {}
        self.pictured = Samples({})
        self.known: list[Samples] = []
        self._rows: list[Samples] = []
        self._kept: dict[int, Examples] = {}

    def __repr__(self) -> str:
        """What it is in a line: what it can do, how many numbers it learns, and which options are not the defaults."""
        known = inspect.signature(type(self)).parameters
        options = {k: v for k, v in self.hparams.items() if k not in known or v != known[k].default}
        said = ", ".join(f"{key}={value!r}" for key, value in options.items())
        count = sum(p.numel() for p in self.parameters() if p.requires_grad)
        can = ", ".join(sorted(self.capabilities)) or "no capability"
        return f"{type(self).__name__}({'; '.join(filter(None, [can, f'{count:,} parameters', said]))})"

    # ---- training ---------------------------------------------------------------------------------------------------

    @property
    def batches(self) -> int:
        """How many training batches are done, also those of the runs that this one resumes; 0 outside of training.

        The same for one player and for several, unlike ``global_step``, which counts steps of optimisers. What a
        method draws is keyed by it.
        """
        if self._trainer is None:
            return 0
        total: Any = self._trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    @property
    def logs_now(self) -> bool:
        """Whether loggers write the numbers of this step, by ``trainer.log_every_n_steps``; the bar shows these too."""
        return self._trainer is None or self._trainer._logger_connector.should_update_logs

    def log(self, name: str, value: Any, *args: Any, **how: Any) -> None:
        """As Lightning's, which takes a millisecond; what no logger would write of a training step is left out."""
        if self._current_fx_name != "training_step" or how.get("on_epoch") or self.logs_now:
            super().log(name, value, *args, **how)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser over all that is trained, or one for each player.

        Raises:
            ValueError: optimisers and players differ in their names, or a parameter is not of exactly one player.
        """
        if not self.players and self.automatic_optimization:
            make, schedule = cast(OptimizerPartial, self.optimizer_partial), self.scheduler_partial
            optimizer = make(self.parameter_groups([p for p in self.parameters() if p.requires_grad]))
            if schedule is None:
                return optimizer
            config: Any = {"scheduler": cast(SchedulerPartial, schedule)(optimizer), "monitor": self.monitor}
            return [optimizer], [config]
        partials, schedulers = self.optimizer_partial, {} if self.scheduler_partial is None else self.scheduler_partial
        if not isinstance(partials, Mapping) or partials.keys() != self.players.keys():
            given = list(partials) if isinstance(partials, Mapping) else "one for all"
            raise ValueError(f"optimizer must be one for each of the players {list(self.players)}, got {given}")
        if not isinstance(schedulers, Mapping) or schedulers.keys() - self.players.keys():
            given = list(schedulers) if isinstance(schedulers, Mapping) else "one for all"
            raise ValueError(f"scheduler must be given by the names of players {list(self.players)}, got {given}")
        owner: dict[int, str] = {}
        optimizers, schedules = [], []
        for player, modules in self.players.items():
            mine = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
            if shared := [owner[key] for key in mine if key in owner]:
                raise ValueError(f"the players {shared[0]!r} and {player!r} share parameters")
            owner |= dict.fromkeys(mine, player)
            optimizers.append(partials[player](self.parameter_groups(list(mine.values()))))
            if (make_schedule := schedulers.get(player)) is not None:
                schedules.append(make_schedule(optimizers[-1]))
        if idle := [name for name, p in self.named_parameters() if p.requires_grad and id(p) not in owner]:
            raise ValueError(f"no player trains {idle[0]} ({len(idle)} such in all)")
        return optimizers, schedules

    def parameter_groups(self, parameters: Sequence[nn.Parameter]) -> Iterable[Any]:
        """What an optimiser is made of: the parameters, or groups of them with options of their own."""
        return parameters

    def play(self, player: str, loss: Tensor, clip: float | None = None) -> None:
        """One step of a player against a loss; the others gather no gradient from it.

        Args:
            player: one of ``players``.
            loss: scalar.
            clip: largest norm of its gradients; None: as ``clip`` of the method says.

        Raises:
            ValueError: there is no such player.
            NotFiniteError: the loss is NaN or infinite.
        """
        if player not in self.players:
            raise ValueError(f"player must be one of {list(self.players)}, got {player!r}")
        found = self.optimizers()
        optimizer = found[list(self.players).index(player)] if isinstance(found, list) else found
        self._clip_now = self.clip if clip is None else clip
        alone = self.trainer.world_size == 1  # what the others would gather need not be computed, but DDP waits for it
        own = {"inputs": [p for group in optimizer.param_groups for p in group["params"]]} if alone else {}
        with nullcontext() if alone else self.toggled_optimizer(optimizer):
            optimizer.zero_grad()
            self.manual_backward(loss, **own)
            optimizer.step()
        self._played.add(player)

    def on_before_backward(self, loss: Tensor) -> None:
        """Stops before a bad loss reaches the weights.

        Raises:
            NotFiniteError: the loss is NaN or infinite.
        """
        if not bool(torch.isfinite(loss).all()):
            raise NotFiniteError(f"the loss is not finite at step {self.batches}: {loss.detach().tolist()}")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the gradients of a player: here, since with 16-bit floats they are scaled until now."""
        if self._clip_now:
            self.clip_gradients(optimizer, self._clip_now, self.clip_algorithm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Steps the schedules of players at the end of an epoch, before it is validated, as Lightning does for one."""
        if not self.automatic_optimization and batch_idx + 1 >= self.trainer.num_training_batches:
            for schedule in self._schedules():
                if not isinstance(schedule, ReduceLROnPlateau):
                    schedule.step()

    def on_train_epoch_end(self) -> None:
        """Steps those that watch a number of the validation."""
        if not self.automatic_optimization:
            for schedule in self._schedules():
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(self.trainer.callback_metrics[self.monitor])

    def _schedules(self) -> list[Any]:
        """Of players that play: one whose loss has no weight makes no step, and its schedule must not run ahead."""
        playing = [o for o, player in zip(self.trainer.optimizers, self.players, strict=True) if player in self._played]
        return [c.scheduler for c in self.trainer.lr_scheduler_configs if c.scheduler.optimizer in playing]

    # ---- frozen networks --------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; frozen networks stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen networks out and records their hashes."""
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not self._is_frozen(k)}
        checkpoint["frozen"] = {name: state_hash(getattr(self, name)) for name in self.frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts frozen networks back in, so that loading stays strict.

        Raises:
            ValueError: a frozen network is not the one that the checkpoint was trained with.
        """
        recorded = checkpoint.get("frozen", {})
        for name in self.frozen:
            present = state_hash(getattr(self, name))
            if recorded.get(name) != present:
                raise ValueError(f"{name!r} differs from the checkpoint's: sha256 {present}, not {recorded.get(name)}")
        checkpoint["state_dict"].update({k: v for k, v in self.state_dict().items() if self._is_frozen(k)})

    def _is_frozen(self, key: str) -> bool:
        return key.split(".", 1)[0] in self.frozen

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def _evaluated(self, batch: AttackBatch) -> tuple[AttackBatch, Said]:
        """Measures the valid images of a batch and keeps the rows; gives the pairs and what was said, on the CPU."""
        if self.evaluator is None:
            raise ValueError("nobody has said by what to evaluate: data.attach(method), of the data module, does")
        rows, answers = self.evaluator(self, batch)
        probe = self.evaluator.probe
        if probe is not None and len(rows) and self.trainer.testing:
            rows, pictures = probed(rows, batch, probe(self, self.evaluator.victims, batch, answers))
            self._show(rows, pictures)
        self._rows.append(rows)
        one_judge = rows.where(judge=rows.values("judge")[:1]) if self.evaluator.judges and len(rows) else rows
        said = dict(one_judge.columns)
        if answers.restored is not None:
            said["restored"] = answers.restored[batch.valid].cpu()
        if answers.class_logits is not None:
            said["answer"] = answers.class_logits[batch.valid].argmax(1).cpu()
        return batch[batch.valid].map(Tensor.cpu), said

    def _show(self, rows: Samples, pictures: Mapping[str, Tensor]) -> None:
        """Keeps pictures of the first images of each cell."""
        cell = {name: rows.values(name)[0] for name in ("attack", "setting", "victim", "knowledge")}
        shown = len(self.pictured.where(**cell)) if len(self.pictured) else 0
        if (more := max(self.evaluator.keep_images - shown, 0) if self.evaluator else 0) and pictures:
            places = torch.arange(min(more, len(rows)))
            self.pictured = Samples.cat([self.pictured, rows.take(places)])
            for name, images in pictures.items():
                before = [self.pictures[name]] if name in self.pictures else []
                self.pictures[name] = torch.cat([*before, images[places]])

    def on_validation_epoch_start(self) -> None:
        """Begins with no rows."""
        self._rows = []

    def validation_step(self, batch: AttackBatch, batch_idx: int) -> None:
        """Evaluates a batch."""
        self._evaluated(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the numbers of all rows as ``val/...``."""
        self._log({f"val/{key}": value for key, value in numbers(gathered(self._rows)).items()})

    def on_test_start(self) -> None:
        """Forgets the last test."""
        self.numbers, self.samples, self.examples, self._rows, self._kept = {}, None, [], [], {}
        self.pictures, self.pictured = {}, Samples({})

    def test_step(self, batch: AttackBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates a batch of one cell."""
        kept = self._kept.setdefault(dataloader_idx, Examples(dataloader_idx))
        pairs, said = self._evaluated(batch)
        if len(pairs):
            kept.add(pairs, said)

    def on_test_epoch_end(self) -> None:
        """Gathers rows and examples of all processes, and logs the numbers as ``test/...``."""
        if self.trainer.world_size > 1:
            everywhere: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(everywhere, self._kept)
            for cell, kept in self._kept.items():
                kept.join([process[cell] for process in everywhere])
        self.examples = [pairs for _, kept in sorted(self._kept.items()) for pairs in kept.pairs()]
        self.finish_test()
        self._log(self.numbers)

    def finish_test(self) -> None:
        """Joins the rows of the test with those that are known, and reduces them to numbers."""
        self.samples = Samples.cat([gathered(self._rows), *self.known]).sorted()
        self.numbers = {f"test/{key}": value for key, value in numbers(self.samples).items()}

    def _log(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():  # already the same on all ranks: sync_dist only says so
            self.log(key, value, prog_bar=key == self.monitor, sync_dist=True, batch_size=1)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """What the method says of a batch, for ``trainer.predict``.

        Args:
            batch: of the data module, whose loaders are the cells of the test; or images (B, C, H, W) in [0, 1], alone
                or first in a list, as any loader yields them.
            batch_idx: of the batch.
            dataloader_idx: of the loader.

        Returns:
            By capability ``restored`` (B, C, H, W), ``score_<name>`` (B,), ``attack_logits`` (B, A), ``class_logits``
            (B, K); of a batch of the data module also everything in it, by the names of ``AttackBatch``.
        """
        x, said = attacked_images(batch)
        can, method = capabilities(self), cast(Any, self)
        if "restorer" in can:
            said["restored"] = method.restore(x)
        if "detector" in can:
            said |= {f"score_{name}": score for name, score in method.adversarial_scores(x).items()}
        if "identifier" in can:
            said["attack_logits"] = attack_logits(self, x, said.get("clean"))
        if "labeler" in can:
            said["class_logits"] = method.class_logits(x)
        return said

    def clamped_estimate(self, x: Tensor) -> Tensor:
        """``estimate(x)`` as images, for a method's ``restore``: (B, C, H, W) float32 in [0, 1] on the device of ``x``.

        It carries a gradient if ``x`` does; training goes through ``estimate``. ``check_images`` refuses other input.
        """
        check_images(x)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            answer = estimate(cast(Restorer, self), x.to(self.device, torch.float32))
            return answer.float().clamp(0, 1).to(x.device)
