"""Image files in one folder per class: which files count, what their content is, and whether all can be read."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from rich import get_console
from rich.progress import track
from torch import Tensor

from redlab.batch import Key, RawBatch
from redlab.data.images import SUFFIXES, fitted, read_image
from redlab.data.loader import raw_batch

_T = TypeVar("_T")
_LAYOUT = "lay your images out as <root>/<class>/*.png"
_NOT_CLASSES = ("__MACOSX", "@eaDir")  # what macOS leaves in archives, and file servers in folders
_AT_ONCE = 32
_NAMED = 3
_WHOLE = 1 << 30
_END = 4096
_passed: set[str] = set()  # states of folders whose images were all readable


class FolderSource:
    """Image files in one folder per class, decoded when asked for.

    Files of a class may lie in folders of their own. Hidden folders and files (``.ipynb_checkpoints``, ``._1.png``),
    ``__MACOSX`` and files that are not named like images are left out. ``read_image`` says how a file becomes pixels;
    then the shorter side is resized to ``image_size`` (bilinear, antialiased) and the centre is cut out.

    Args:
        root: folder of the class folders; classes are sorted by name.
        image_size: height and width of the images handed out.
        channels: 3, or 1 for grey.

    Attributes:
        samples: path and label of every image.

    Raises:
        FileNotFoundError: there is no such folder, or no class in it, or a class without images.
        ValueError: ``image_size`` or ``channels`` makes no sense.
    """

    def __init__(self, root: str | Path, *, image_size: int, channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        self.root, self.image_size, self.channels = Path(root).expanduser(), image_size, channels
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder: {_LAYOUT}.")
        self.classes = tuple(
            sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and _counts(entry.name))
        )
        if not self.classes:
            raise FileNotFoundError(f"{root} holds no class folder: {_LAYOUT}.")
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            paths = image_files(self.root / name)
            if not paths:
                raise FileNotFoundError(
                    f"{self.root / name} is a class without images: put some into it, or remove it."
                )
            self.samples += [(path, label) for path in paths]
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[Key]) -> RawBatch:
        """See ``ImageSource``.

        Raises:
            ValueError: a file cannot be read; the message names it.
        """
        images = torch.stack([self._decode(self.samples[key.index][0]) for key in keys])
        return raw_batch(images, torch.tensor([self.samples[key.index][1] for key in keys]), keys)

    def fingerprint(self) -> str:
        """See ``ImageSource``. Depends on the bytes of the files and their paths below ``root``, not on ``root``.

        Up to 1 GiB, every file counts whole. Of a larger folder, only path, size and the first and last 4 KiB of every
        file do. What this misses is a change in the middle of a file that leaves its size alone: pixels of an
        uncompressed image, or a few bits of a JPEG. (The end of a PNG has a checksum of all of its pixels.)
        """
        if self._fingerprint is None:
            paths = [path for path, _ in self.samples]
            names = [os.fsencode(Path(path).relative_to(self.root).as_posix()) for path in paths]
            sizes = [os.path.getsize(path) for path in paths]
            whole = sum(sizes) <= _WHOLE
            contents = _in_threads(lambda path: _digest(path, whole), paths)
            digest = hashlib.sha256(repr(("folder 1", self.classes, self.channels, self.image_size, whole)).encode())
            for row in sorted(zip(names, sizes, contents, strict=True)):
                digest.update(repr(row).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _decode(self, path: str) -> Tensor:
        return fitted(self._read(path), self.image_size)

    def _read(self, path: str, verify: bool = False) -> Image.Image:
        image = read_image(path, channels=self.channels, verify=verify)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and self.image_size**2 * max(image.size) > limit * min(image.size):
            raise ValueError(
                f"{path}: {image.width}x{image.height} is too elongated to be resized to {self.image_size} pixels "
                "across: crop it"
            )
        return image

    def _fault(self, path: str) -> str | None:
        try:
            self._read(path, verify=True)
        except ValueError as error:
            return str(error)
        return None

    def _state(self) -> str:
        """What tells in this process that the files are those that were looked at before."""
        digest = hashlib.sha256(f"{self.channels} {self.image_size}".encode())
        for path, _ in self.samples:
            try:
                found = os.stat(path)
            except OSError:  # a link that leads nowhere; reading it will tell
                continue
            digest.update(repr((path, found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()


def check_images(folders: Sequence[FolderSource], *, progress: bool = True) -> None:
    """Reads every image once, so that a damaged one is found before a training that would meet it hours later.

    Folders that were looked at before by this process, and have not changed since, are not read again.

    Args:
        folders: whose images to read.
        progress: show a bar.

    Raises:
        ValueError: images cannot be read; the message says how many, and names the first of them.
    """
    states = {folder: folder._state() for folder in folders}
    todo = [(folder, path) for folder in folders if states[folder] not in _passed for path, _ in folder.samples]
    progress = progress and (get_console().is_interactive or get_console().is_jupyter)
    look = closing(_in_threads(lambda item: item[0]._fault(item[1]), todo))
    with look as found, warnings.catch_warnings():
        # Pillow's warnings name no file; what matters among them becomes a fault
        warnings.filterwarnings("ignore", module=r"PIL\.")
        # not disable=True, with which older versions of rich still leave an empty line
        shown = track(found, "Looking at the images", total=len(todo), transient=True) if progress else found
        faults = [fault for fault in shown if fault]
    if faults:
        named = "; ".join([*faults[:_NAMED], *(["..."] if faults[_NAMED:] else [])])
        raise ValueError(f"{len(faults)} of {len(todo)} image files cannot be used; mend or remove them: {named}")
    _passed.update(states.values())


def _counts(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_CLASSES


def image_files(folder: Path) -> list[str]:
    """The image files below a folder, links followed, in the order of torchvision's ``ImageFolder``."""
    found = []
    for place, inner, names in os.walk(folder, followlinks=True):
        # a link to a folder that it lies in leads to nothing new
        above = {os.path.realpath(parent) for parent in [Path(place), *Path(place).parents]}
        inner[:] = [name for name in inner if _counts(name) and os.path.realpath(Path(place, name)) not in above]
        images = [name for name in names if _counts(name) and os.path.splitext(name)[1].lower() in SUFFIXES]
        found.append((place, sorted(images)))
    return [os.path.join(place, name) for place, names in sorted(found) for name in names]


def _digest(path: str, whole: bool) -> bytes:
    with open(path, "rb") as file:
        data = file.read(-1 if whole else _END)
        if not whole and file.seek(0, os.SEEK_END) > _END:
            file.seek(-_END, os.SEEK_END)
            data += file.read()
    return hashlib.sha256(data).digest()


def _in_threads(function: Callable[..., _T], items: Sequence[object]) -> Generator[_T, None, None]:
    """Results in the order of the items. Threads serve, since reading, decoding and hashing let go of Python's lock."""
    pool = ThreadPoolExecutor()
    try:
        parts = [items[first : first + _AT_ONCE] for first in range(0, len(items), _AT_ONCE)]
        for results in pool.map(lambda part: [function(item) for item in part], parts):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for a million files
