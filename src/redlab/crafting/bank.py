"""An attack bank: what a mix crafts, kept in files and replayed instead of crafted again.

    <folder>/manifest.json              what it was made of, and what is in it
    <folder>/<part>-00000.safetensors   rows of some images: attacked images, ids, what succeeded

A part is an epoch of training, the validation images, or one cell of the test. Images are float32, or uint8 where the
mix stores them on a grid of 8 bits, which loses nothing. Nothing in the files is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from redlab.batch import AttackBatch, RawBatch

FORMAT = 1
IMAGES = 1024
"""About how many images share a file: what a build that is cut off may lose."""

KEPT = ("adv", "attack", "setting", "victim", "knowledge", "target", "index", "valid", "attacked", "fooled")
"""Fields of a batch that a bank keeps; clean images and labels are those of the data set."""


@dataclass(frozen=True)
class Part:
    """What is crafted in one go.

    Attributes:
        name: "train-0" (the epoch), "val", or "test-<attack>-<setting>-<victim>" (ids of the cell).
        chunks: number of files.
        images: in each file but the last.
        craft: place of a chunk -> its rows, on the CPU.
    """

    name: str
    chunks: int
    images: int
    craft: Callable[[int], AttackBatch]


def build(
    folder: Path, made_of: Mapping[str, Any], parts: Sequence[Part], *, tick: Callable[[str], object] = lambda _: None
) -> Bank:
    """Crafts what is not there yet. One that was cut off goes on with the next file.

    Args:
        folder: of the bank.
        made_of: what the images depend on, as plain values; see `Bank.check`.
        parts: what to craft.
        tick: called after every file, whether made or found, with the name of its part.

    Raises:
        ValueError: the folder holds a bank of something else, or a part that was begun with files of another size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    before = Bank(folder) if manifest.exists() else None
    if before is not None:
        before.check(made_of)
    # a part that is whole stays, whatever the batches that it was crafted in
    todo = [part for part in parts if before is None or not before.is_whole(part.name)]
    for part in todo:
        begun = before is not None and before.begun(part.name)
        if begun and begun != part.images:
            raise ValueError(
                f"{part.name} of the bank {folder} was begun with {begun} images in a file, not {part.images}: go on "
                "with the batch sizes of then (bank_batch_size), or delete the folder"
            )
    chunks, images = ({}, {}) if before is None else (before.parts, before.images)
    said: dict[str, Any] = {"format": FORMAT, "made_of": made_of}
    said["parts"] = chunks | {part.name: part.chunks for part in todo}
    said["images"] = images | {part.name: part.images for part in todo}
    _write(manifest, json.dumps(said, indent=2) + "\n")
    for part in parts:
        for chunk in range(part.chunks):
            if part not in todo:
                tick(part.name)
                continue
            path = _file(folder, part.name, chunk)
            if not path.exists():
                batch = part.craft(chunk)
                tensors = {
                    name: getattr(batch, name).cpu().clone(memory_format=torch.contiguous_format) for name in KEPT
                }
                if made_of.get("quantize") == 8:
                    tensors["adv"] = (tensors["adv"] * 255).round().to(torch.uint8)
                unfinished = path.with_suffix(".part")
                save_file(tensors, unfinished)
                os.replace(unfinished, path)
            tick(part.name)
    return Bank(folder)


def _file(folder: Path, part: str, chunk: int) -> Path:
    return folder / f"{part}-{chunk:05}.safetensors"


def _write(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


class Bank:
    """A bank on disk. A part is read when it is first asked for, and stays in memory.

    Attributes:
        folder: where it is.
        made_of: what its images depend on.
        parts: name -> number of files.
        images: name -> how many images are in each file of a part but the last.
        epochs: how many epochs of training it holds.

    Args:
        folder: where it is.

    Raises:
        ValueError: there is none, or its manifest cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            said = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.made_of: dict[str, Any] = dict(said["made_of"])
            self.parts: dict[str, int] = {str(name): int(chunks) for name, chunks in said["parts"].items()}
            self.images: dict[str, int] = {str(name): int(many) for name, many in said.get("images", {}).items()}
            known = said["format"] == FORMAT
        except FileNotFoundError as error:
            raise ValueError(f"{folder} is no attack bank: there is no manifest.json in it") from error
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder}/manifest.json cannot be read as that of an attack bank") from error
        if not known:
            raise ValueError(f"{folder} is an attack bank of another version of redlab; build it again")
        self.epochs = int(self.made_of.get("epochs", 1))
        self._read: dict[str, tuple[dict[str, Tensor], int]] = {}

    def check(self, made_of: Mapping[str, Any]) -> None:
        """Whether the bank holds what would be crafted.

        Args:
            made_of: what the images would depend on.

        Raises:
            ValueError: it was made of something else; the message names the first difference.
        """
        wanted = json.loads(json.dumps(made_of))  # lists for tuples, as in the file
        for key in dict.fromkeys([*self.made_of, *wanted]):
            if wanted.get(key) != self.made_of.get(key):
                ours, theirs = _first_difference(wanted.get(key), self.made_of.get(key), key)
                raise ValueError(f"the bank {self.folder} was made with {theirs}, not {ours}: build another one")

    def missing(self) -> int:
        """How many files of it are still to be made."""
        return sum(not _file(self.folder, part, i).exists() for part, n in self.parts.items() for i in range(n))

    def damaged(self) -> list[Path]:
        """Files that are there and cut short, or no such files at all; only their heads are read."""
        found = []
        for path in (_file(self.folder, part, i) for part, n in self.parts.items() for i in range(n)):
            try:
                if path.exists():
                    with safe_open(path, "pt") as file:
                        if not set(KEPT) <= set(file.keys()):
                            found.append(path)
            except (OSError, SafetensorError):
                found.append(path)
        return found

    def is_whole(self, part: str) -> bool:
        """Whether all files of a part are there."""
        return part in self.parts and all(_file(self.folder, part, i).exists() for i in range(self.parts[part]))

    def begun(self, part: str) -> int:
        """How many images are in a file of a part; 0 where no file is there, or nobody has noted it."""
        found = any(_file(self.folder, part, i).exists() for i in range(self.parts.get(part, 0)))
        return self.images.get(part, 0) if found else 0

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def rows(self, part: str, raw: RawBatch, clean: Tensor) -> AttackBatch:
        """What was crafted of the images of a batch.

        Args:
            part: name of a part.
            raw: of B images.
            clean: (B, C, H, W) float32, the same images as a method sees them.

        Returns:
            The rows, those of an image side by side, on the device of ``clean``.

        Raises:
            ValueError: the bank has no such part or image, or a file of it is missing or damaged.
        """
        tensors, copies = self._part(part)
        index, images = raw.index.cpu(), tensors["index"][::copies].contiguous()
        first = torch.searchsorted(images, index).clamp(max=len(images) - 1)
        if bool((unknown := images[first] != index).any()):
            raise ValueError(f"the bank {self.folder} has no image {int(index[unknown][0])} in its part {part}")
        places = (first[:, None] * copies + torch.arange(copies)).flatten()
        found = {name: values[places].to(clean.device) for name, values in tensors.items()}
        source = torch.arange(len(raw.index), device=clean.device).repeat_interleave(copies)
        adv = found.pop("adv")
        return AttackBatch(
            clean=clean[source],
            adv=adv.float() / 255 if adv.dtype == torch.uint8 else adv,
            label=raw.label[source],
            **(found | {"valid": found["valid"] & raw.valid[source]}),
        )

    def _part(self, part: str) -> tuple[dict[str, Tensor], int]:
        """The rows of a part in the order of their images, and how many there are of each image."""
        if part not in self.parts:
            raise ValueError(f"the bank {self.folder} has no part {part}; it has {', '.join(self.parts)}")
        if part not in self._read:
            files = [_file(self.folder, part, chunk) for chunk in range(self.parts[part])]
            try:
                pieces = [load_file(path) for path in files]
                rows = {name: torch.cat([piece[name] for piece in pieces]) for name in KEPT}
            except (OSError, SafetensorError, KeyError, RuntimeError) as error:
                raise ValueError(
                    f"a file of {part} in the bank {self.folder} is missing or damaged: build it again (bank=build), "
                    "which makes what is not there or cannot be read"
                ) from error
            order = rows["index"].argsort(stable=True)
            rows = {name: values[order] for name, values in rows.items()}
            images = len(torch.unique(rows["index"]))
            self._read[part] = rows, len(order) // max(images, 1)
        return self._read[part]


def _first_difference(ours: Any, theirs: Any, key: str) -> tuple[str, str]:
    """Where two nested plain values differ, each as ``key=value``."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in dict.fromkeys([*theirs, *ours]):
            if ours.get(name) != theirs.get(name):
                return _first_difference(ours.get(name), theirs.get(name), f"{key}.{name}")
    return f"{key}={ours}", f"{key}={theirs}"
