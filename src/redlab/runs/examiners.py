"""Trained runs that are asked about images nobody has labelled, each with the threshold of its score."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redlab.batch import is_oracle
from redlab.diagnosis import FALSE_ALARMS, Diagnosis, Examiner, examine
from redlab.report.tables import percent
from redlab.runs.check import ConfigError, trains_victim
from redlab.runs.checkpoints import find_checkpoint
from redlab.runs.console import console
from redlab.runs.loading import load
from redlab.runs.pretrained import CALIBRATION, folder_of
from redlab.victims import state_hash

_CLEAN = 1000  # validation images for a threshold, at most


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Runs that can be asked together.

    Attributes:
        examiners: one for each run.
        classes: names of the classes.
        channels: of the images that they take.
        size: height and width of these.
        said: a line on each run.
    """

    examiners: Sequence[Examiner]
    classes: Sequence[str]
    channels: int
    size: int
    said: Sequence[str]

    def __call__(self, x: Tensor, *, looks: bool = False) -> Diagnosis:
        """What they say of (B, C, H, W) images in [0, 1].

        Raises:
            ValueError: the images are something else.
        """
        shape = (self.channels, self.size, self.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != shape:
            raise ValueError(f"images must be (B, {', '.join(map(str, shape))}) for these runs, got {tuple(x.shape)}")
        place = next(self.examiners[0].method.parameters()).device
        found = examine(self.examiners, x.to(place, torch.float32), looks=looks)
        return dataclasses.replace(found, images=x, findings={n: _on_cpu(f) for n, f in found.findings.items()})


def diagnose(
    x: Tensor, run: str | Path | Sequence[str | Path], *, allow: Sequence[str] = (), false_alarms: float = FALSE_ALARMS
) -> Diagnosis:
    """What trained runs say of images that nobody has labelled; for notebooks.

    Example: ``redlab.diagnose(x, "outputs/...").attacked``.

    Args:
        x: (B, C, H, W) in [0, 1], of the size that the runs were trained on.
        run: one folder or checkpoint, or several; of each question the first that can answer it is heard.
        allow: see ``redlab.load``.
        false_alarms: share of clean images that may count as attacked.

    Raises:
        ConfigError: a run cannot be read or asked, or they are of images of other sizes.
        ValueError: the images are not what the runs take.
    """
    return asked([run] if isinstance(run, (str, Path)) else run, allow=allow, false_alarms=false_alarms)(x)


def asked(
    runs: Sequence[str | Path],
    *,
    allow: Sequence[str] = (),
    false_alarms: float = FALSE_ALARMS,
) -> Asked:
    """Loads runs, each with its threshold; arguments and errors are those of `diagnose`.

    Args:
        runs: folders or checkpoints.
        allow: see ``redlab.load``.
        false_alarms: share of clean images that may count as attacked.
    """
    if not runs:
        raise ConfigError("run= names no run to ask; give one, such as run=outputs/<date>/<time>.")
    examiners: list[Examiner] = []
    said, sizes, classes = [], [], None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    for run in map(Path, runs):
        path = find_checkpoint(run)
        method = load(path, allow=allow)
        if is_oracle(method):
            raise ConfigError(f"run={run} sees the clean image beside the attacked one: nothing can be asked of it.")
        if trains_victim(method.run.config):
            raise ConfigError(f"run={run} trains a classifier, which says nothing of an attack; give a defence.")
        method.to(device)
        called = folder_of(path).name
        while any(each.name == called for each in examiners):
            called += "'"
        victims = {n: victim.to(device) for n, victim in method.run.victims.items()}
        examiner = Examiner(name=called, method=method, victims=victims)
        examiner = _with_threshold(examiner, path, false_alarms)
        data = method.run.config["data"]
        examiners.append(examiner)
        sizes.append((data["channels"], data["image_size"]))
        classes = classes or method.run.classes
        said.append(_line(examiner, method.run.config))
    if len(set(sizes)) > 1:
        raise ConfigError(f"The runs take images of other sizes each (channels, size): {sizes}; ask them one by one.")
    (channels, size), first = sizes[0], examiners[0].method.run.config["data"]
    if not isinstance(classes, list) or len(classes) != first["num_classes"]:  # of a checkpoint that does not say
        classes = [str(number) for number in range(first["num_classes"])]
    names = [str(name) for name in classes]
    return Asked(examiners=examiners, classes=names, channels=channels, size=size, said=said)


def _line(examiner: Examiner, config: Mapping[str, Any]) -> str:
    choices, data = config.get("choices", {}), config["data"]["name"]
    line = f"{examiner.name}: {choices.get('method')}, trained on {data}, protects {', '.join(examiner.victims)}."
    if examiner.clean:
        few = "" if examiner.clean >= 100 else ", which are few for a threshold"
        return (
            f"{line} Threshold {examiner.threshold:.3g}: {percent(examiner.false_alarms)} of {examiner.clean} clean "
            f"validation images are above it{few}."
        )
    return (
        f"{line} Threshold {examiner.threshold:.3g}, the method's own: the clean images that it would be set by are "
        "not here, so that nothing is known of false alarms."
    )


def _with_threshold(examiner: Examiner, path: Path, false_alarms: float) -> Examiner:
    """By the clean validation images of the run: those of now, or what an earlier diagnosis has kept of them."""
    kept = folder_of(path) / CALIBRATION
    weights = state_hash(examiner.method)
    if kept.is_file():
        try:
            found = json.loads(kept.read_text())
            if found["weights"] == weights and found["asked"] == false_alarms:
                facts = {key: found[key] for key in ("threshold", "clean", "false_alarms")}
                return dataclasses.replace(examiner, **facts)
        except (ValueError, KeyError, TypeError, OSError):
            console.print(f"[yellow]{kept} cannot be read: calibrated again.[/]")
    try:
        images, _ = examiner.method.run.data.clean_images(_CLEAN)
    except (OSError, ValueError, ImportError):  # the data set is not on this machine
        return examiner
    if not len(images):
        return examiner
    console.print(f"Calibrating {examiner.name} on {len(images)} clean validation images", highlight=False)
    examiner = examiner.calibrated(images.to(examiner.method.device), false_alarms)
    facts = {"threshold": examiner.threshold, "clean": examiner.clean, "false_alarms": examiner.false_alarms}
    with suppress(OSError):  # a folder of somebody else: it is calibrated again next time
        kept.write_text(json.dumps({"weights": weights, "asked": false_alarms} | facts, indent=1) + "\n")
    return examiner


def _on_cpu(found: Any) -> Any:
    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.cpu()
        return {name: part.cpu() for name, part in value.items()} if isinstance(value, Mapping) else value

    return dataclasses.replace(found, **{f.name: move(getattr(found, f.name)) for f in dataclasses.fields(found)})
