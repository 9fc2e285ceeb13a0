"""A trained method as a folder that can be handed on: weights as safetensors, what it is as JSON, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from redlab.metrics import Samples
from redlab.report.checks import of_rows, table_of
from redlab.report.measures import tables
from redlab.report.tables import markdown, percent
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import RECORD, WEIGHTS, find_checkpoint, flat_tensors, read_checkpoint
from redlab.runs.config import compose

_CARD = """\
---
library_name: redlab
tags: [adversarial-examples, {capability}]
---
# {method} on {data}

```python
import redlab

method = redlab.load("{folder}")
```

## What it is

{what}

## Its numbers

{numbers}

## Its limits

{limits}
"""


def save_pretrained(run: str | Path, folder: str | Path) -> Path:
    """Writes a trained method as a folder that ``redlab.load``, ``evaluate.py run=`` and ``init=`` take.

    In it are ``model.safetensors`` (the method, its victims and helpers; no state of an optimiser), ``redlab.json``
    (config and origin), ``calibration.json`` where the run has one, and ``README.md``, a model card: what it was
    trained on and by which commit, its numbers, its limits. No file is executed when it is read.

    Args:
        run: the folder or the checkpoint.
        folder: to write; must not be there, or be empty.

    Returns:
        ``folder``.

    Raises:
        ConfigError: the checkpoint cannot be read, or there is something in the folder.
    """
    path, folder = find_checkpoint(Path(run)), Path(folder)
    checkpoint = read_checkpoint(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already; give another folder, so that nothing is written over.")
    record = dict(checkpoint["redlab"])
    tensors = {f"state_dict.{key}": value for key, value in checkpoint["state_dict"].items()}
    for group in ("victims", "helpers"):
        networks = record.get(group) or {}
        tensors |= flat_tensors(group, networks)
        record[group] = {n: {k: v for k, v in entry.items() if k != "state_dict"} for n, entry in networks.items()}
    # where somebody keeps victims and banks is nobody else's business
    record["config"] = {**record["config"], **{key: compose()[key] for key in ("victim_root", "bank_root")}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(_apart(tensors)))  # save_file would let nobody else read it
    said = {"format": 1, "frozen": checkpoint.get("frozen", {}), "epoch": checkpoint["epoch"], "redlab": record}
    (folder / RECORD).write_text(json.dumps(said, indent=1) + "\n")
    beside = folder_of(path)
    if (beside / CALIBRATION).is_file():
        (folder / CALIBRATION).write_text((beside / CALIBRATION).read_text())
    (folder / "README.md").write_text(card(record, _rows(beside), checkpoint["epoch"] + 1, folder.name))
    return folder


CALIBRATION = "calibration.json"
"""Where the threshold of a diagnosis is kept, beside the numbers of a run."""


def folder_of(checkpoint: Path) -> Path:
    """The folder of a run, of its checkpoint; the folder that it lies in, of any other file."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses memory that two tensors share."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _rows(folder: Path) -> Samples:
    """What the run was tested on; no rows where that is not there."""
    try:
        return Samples.load(folder / "samples.npz")
    except ValueError:
        return Samples({})


def card(record: Mapping[str, Any], rows: Samples, epochs: int, folder: str) -> str:
    """The model card of a checkpoint's record, as Markdown.

    Args:
        record: what `RunRecord` wrote.
        rows: of the test; may be empty.
        epochs: how long it was trained.
        folder: its name.
    """
    config = record["config"]
    data, choices = config["data"], config.get("choices", {})
    origin = record.get("trained_with") or [{}]
    victims = ", ".join(
        f"{name} (clean accuracy {percent(entry['clean_accuracy'])})" if entry.get("clean_accuracy") else name
        for name, entry in record["victims"].items()
    )
    what = {
        "class": f"`{config['method']['_target_'].rpartition('.')[2]}` (`method={choices.get('method')}`)",
        "images": f"{data['name']}, {data['channels']} x {data['image_size']} x {data['image_size']}, in [0, 1]",
        "victims": victims or "none",
        "attacks": f"{', '.join(record['attacks'])} (`mix={choices.get('mix')}`)",
        "trained": f"{epochs} epochs, seed {config['seed']}",
        "by": "; ".join(
            f"commit {o.get('commit') or 'unknown'}, {o.get('device')}, torch {(o.get('versions') or {}).get('torch')}"
            for o in origin
        ),
    }
    limits = [
        f"Trained and tested on {data['name']}, the attacks and victims above; of others these numbers say nothing.",
        "An attacker who knows the defence does better than one who does not: see the numbers of adaptive attackers.",
        "It takes images of the size above. Resizing, JPEG and the like change what an attack has left in them.",
    ]
    if not len(rows) or not len(rows.where(knowledge="defence")):
        limits.append("No attacker who knows the defence was tested here, so that nothing is known of its robustness.")
    shown = [*tables(rows), table_of(of_rows(rows))] if len(rows) else []
    return _CARD.format(
        method=choices.get("method"),
        data=data["name"],
        folder=folder,
        capability=choices.get("method"),
        what="\n".join(f"- {title}: {text}" for title, text in what.items()),
        numbers="\n".join(map(markdown, shown)) or "It was not tested, or its rows are not there.",
        limits="\n".join(f"- {text}" for text in limits),
    )
