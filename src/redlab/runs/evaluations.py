"""Tests that are not done twice: what came of each attack is kept by the identity of all that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from redlab.batch import AttackBatch
from redlab.crafting.describe import described
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.methods.examples import Said
from redlab.metrics import Samples
from redlab.provenance import source
from redlab.runs.build import content
from redlab.runs.console import console, saying_where
from redlab.runs.identity import evaluation_identity, file_identity
from redlab.victims import state_hash

KEPT = Path("outputs/evaluations")
"""Where they are kept of a checkpoint that lies in no run folder; a run folder has ``evaluations`` of its own."""


def run_test(cfg: DictConfig, trainer: L.Trainer, method: Method, data: AttackDataModule, checkpoint: Path) -> None:
    """Tests a method as ``trainer.test`` does; of attacks that it was tested with before, what was kept is taken.

    ``method.samples``, ``results``, ``examples`` and ``pictures`` are those of the whole test.

    Args:
        cfg: the finalised config of the evaluation.
        trainer: for the test.
        method: with the weights of ``checkpoint``, and the evaluator of ``data``.
        data: whose test it is.
        checkpoint: where the method comes from.
    """
    data.setup_data()
    names = [name for name in data.mix.attack_names if any(c.attack == _id(data, name) for c in data.test_cells)]
    folder = checkpoint.parents[1] / "evaluations" if checkpoint.parent.name == "checkpoints" else KEPT
    files = {name: folder / asked(cfg, method, data, checkpoint, name) for name in names}
    # what callbacks and profilers do is asked for each time, and might change a number
    watched = bool(cfg.trainer.get("callbacks") or cfg.trainer.get("profiler"))
    known = {} if watched else {name: found for name, path in files.items() if (found := _read(path)) is not None}
    if known:
        console.print(f"Tested before: {', '.join(known)}.")
    data.skip, method.known = frozenset(known), [rows for rows, *_ in known.values()]
    try:
        if len(known) < len(names):
            with saying_where(trainer):
                trainer.test(method, datamodule=data, verbose=False)
            if not watched:
                try:
                    _keep(method, {name: path for name, path in files.items() if name not in known})
                except (OSError, SafetensorError) as error:  # of no use to who has waited for the test
                    console.print(f"[yellow]The rows could not be kept in {folder}: {error}[/]")
        else:
            method.on_test_start()
            method.finish_test()
            for logger in trainer.loggers:
                logger.log_metrics(method.numbers)
    finally:
        data.skip, method.known = frozenset(), []
    for _, examples, pictures, pictured in known.values():
        method.examples += examples
        if pictures:
            method.pictures, method.pictured = (
                _joined(method.pictures, pictures),
                Samples.cat([method.pictured, pictured]),
            )


def asked(cfg: DictConfig, method: Method, data: AttackDataModule, checkpoint: Path, name: str) -> str:
    """What the rows of one attack depend on, as a hash.

    Args:
        cfg: as for `run_test`, like the others.
        method: see there.
        data: see there.
        checkpoint: see there.
        name: of the attack.
    """
    mix, evaluator = data.mix, method.evaluator
    component = (mix.components | mix.adaptive).get(name)
    options = ("quantize", "rounding", "only_fooled", "only_right", "seed")
    images = hashlib.sha256(data.indices["test"].numpy().tobytes()).hexdigest()
    return evaluation_identity(
        file_identity(checkpoint),
        cfg,
        content(cfg, data),
        {victim: state_hash(net) for victim, net in data.victims.items()},
        {
            "attack": name,
            "adaptive": name in mix.adaptive,
            "component": described(component),
            "options": {option: getattr(mix, option) for option in options},
            "images": images,
            "judges": evaluator and described(evaluator.judges),
            "probe": evaluator and described(evaluator.probe),
            "keep_images": evaluator and evaluator.keep_images,
            "source": source(),
        },
    )[:20]


def _id(data: AttackDataModule, name: str) -> int:
    return data.mix.attack_names.index(name)


Found = tuple[Samples, list[tuple[AttackBatch, Said]], dict[str, Tensor], Samples]


@rank_zero_only
def _keep(method: Method, files: Mapping[str, Path]) -> None:
    """Writes what a test gave of these attacks; the rows last, which say that all is there."""
    rows, pictured = method.samples or Samples({}), method.pictured
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        code = rows.names["attack"].index(name) if "attack" in rows.names else -1
        tensors: dict[str, Tensor] = {}
        mine = [(batch, said) for batch, said in method.examples if int(batch.attack[0]) == code]
        for i, (batch, said) in enumerate(mine):
            tensors |= {f"{i}.batch.{f.name}": v for f in fields(batch) if (v := getattr(batch, f.name)) is not None}
            tensors |= {f"{i}.said.{key}": values for key, values in said.items()}
        if len(pictured):
            places = (pictured["attack"] == code).nonzero()[:, 0]
            tensors |= {f"pictures.{key}": values[places] for key, values in method.pictures.items()}
            pictured.take(places).save(path.with_suffix(".pictured.npz"))
        unshared = {key: v.clone(memory_format=torch.contiguous_format) for key, v in tensors.items()}
        save_file(unshared, path.with_suffix(".safetensors"))
        rows.where(attack=name).save(path.with_suffix(".npz"))


def _read(path: Path) -> Found | None:
    """What was kept; None where nothing was, or it is damaged."""
    if not path.with_suffix(".npz").is_file():
        return None
    try:
        rows = Samples.load(path.with_suffix(".npz"))
        tensors = load_file(path.with_suffix(".safetensors"))
        pictures = {k.removeprefix("pictures."): v for k, v in tensors.items() if k.startswith("pictures.")}
        pictured = Samples.load(path.with_suffix(".pictured.npz")) if pictures else Samples({})
        examples = []
        for i in range(sum(key.endswith(".batch.clean") for key in tensors)):
            parts = {k: v for k, v in tensors.items() if k.startswith(f"{i}.")}
            batch = {k.split(".", 2)[2]: v for k, v in parts.items() if k.startswith(f"{i}.batch.")}
            said = {k.split(".", 2)[2]: v for k, v in parts.items() if k.startswith(f"{i}.said.")}
            examples.append((AttackBatch(**batch), said))
    except (ValueError, OSError, SafetensorError, TypeError):
        console.print(f"[yellow]{path}.npz, or a file beside it, is damaged: tested again.[/]")
        return None
    return rows, examples, pictures, pictured


def _joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([first[name], values]) if name in first else values for name, values in second.items()}
