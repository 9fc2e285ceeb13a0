"""The Trainer of a run: what redlab needs, and what a user adds under ``trainer``."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelSummary, ProgressBar, RichModelSummary
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch import nn

from redlab.methods import Method
from redlab.runs.check import ConfigError
from redlab.runs.config import as_plain
from redlab.runs.console import progress

_PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


class WholeFiles(TorchCheckpointIO):
    """Writes beside the checkpoint that is there, which stays until the new one is whole.

    Lightning's own goes by a temporary folder, from which a file may have to be copied: a process that is killed then
    leaves a part of it in the place of the old one. It also needs the memory for a second copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes the file.

        Raises:
            OSError: it cannot be written, such as on a full disk.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, part)
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch says a full disk by the latter
            with suppress(OSError):
                part.unlink(missing_ok=True)
            code = getattr(error, "errno", None) or errno.EIO
            free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
            old = "; the checkpoint before it is still there, and resume= goes on from it" if path.is_file() else ""
            raise OSError(code, f"cannot be written, with {free:.0f} MiB free{old}", str(path)) from error


def make_trainer(
    cfg: DictConfig,
    out: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    *,
    method: Method | None = None,
    testing: bool = False,
) -> L.Trainer:
    """The Trainer, with ``trainer.callbacks`` beside those of redlab, and a profile that is kept in the run's folder.

    Clipping is handed to a method with several players, which Lightning would refuse to do for it.

    Args:
        cfg: a finalised config.
        out: folder of the run.
        callbacks: redlab's own.
        loggers: of the run.
        method: what is trained, where it is known already.
        testing: nothing is trained, so that no checkpoint is to be written.
    """
    theirs = _callbacks(cfg)
    if testing:
        theirs = [callback for callback in theirs if not isinstance(callback, Checkpoint)]
    bars = [] if any(isinstance(callback, ProgressBar) for callback in theirs) else progress(cfg)
    described = any(isinstance(callback, ModelSummary) for callback in theirs)
    # Lightning's own would go to a log that nobody reads
    summary = [RichModelSummary()] if cfg.trainer.enable_model_summary and not described else []
    rest = {key: value for key, value in as_plain(cfg.trainer).items() if key not in ("callbacks", "profiler")}
    on_gpu = rest["accelerator"] != "cpu" and torch.cuda.is_available()
    rest["sync_batchnorm"] = on_gpu and bool(rest.get("sync_batchnorm"))  # torch has it for GPUs only
    if testing:
        rest["enable_checkpointing"] = False
    if method is not None and not method.automatic_optimization:
        _check_players(cfg)
        method.clip = rest.pop("gradient_clip_val", None)
        method.clip_algorithm = rest.pop("gradient_clip_algorithm", None) or "norm"
    # as a partial, since Hydra would copy objects that are handed to it
    trainer: L.Trainer = instantiate(rest, _partial_=True, _convert_="all")(
        callbacks=[*callbacks, *theirs, *bars, *summary],
        logger=list(loggers) or False,
        default_root_dir=str(out),
        profiler=_profiler(cfg, out),
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFiles()
    if method is not None and method.unused_parameters and isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    return trainer


def compile_networks(method: Method) -> None:
    """Has torch compile each network of a method that is trained, in place: names and weights stay as they are.

    Not the frozen ones nor the victims: attacks and input gradients differentiate them twice, which torch cannot do of
    what it has compiled.
    """
    for name, child in method.named_children():
        if name not in method.frozen:
            for network in child.values() if isinstance(child, nn.ModuleDict) else [child]:
                network.compile()


def _check_players(cfg: DictConfig) -> None:
    """What Lightning counts in steps of optimisers has no meaning where a batch has several.

    Raises:
        ConfigError: such a number is set.
    """
    several = f"method={cfg.choices.method} has several players, each with steps of its own"
    if cfg.trainer.get("accumulate_grad_batches") not in (None, 1):
        raise ConfigError(
            f"trainer.accumulate_grad_batches={cfg.trainer.accumulate_grad_batches} cannot be: {several}; set a larger "
            "data.batch_size instead."
        )
    for key in ("max_steps", "min_steps"):
        if cfg.trainer.get(key) not in (None, -1):
            raise ConfigError(
                f"trainer.{key}={cfg.trainer[key]} cannot be: {several}; set trainer.max_epochs or "
                "trainer.limit_train_batches instead."
            )


def _callbacks(cfg: DictConfig) -> list[Callback]:
    nodes = cfg.trainer.get("callbacks") or []
    return [instantiate(node, _convert_="all") for node in ([nodes] if isinstance(nodes, DictConfig) else nodes)]


def _profiler(cfg: DictConfig, out: Path) -> Profiler | str | None:
    """``trainer.profiler``, by name or as a node; Lightning adds the stage to the name of its file."""
    node, place = cfg.trainer.get("profiler"), {"dirpath": str(out), "filename": "profile"}
    if isinstance(node, DictConfig):
        given = {key: value for key, value in place.items() if key not in node}
        made: Profiler = instantiate(node, _partial_=True, _convert_="all")(**given)
        return made
    if node in _PROFILERS:
        made = _PROFILERS[node](**place)
        return made
    return None if node is None else str(node)  # Lightning knows what else there is
