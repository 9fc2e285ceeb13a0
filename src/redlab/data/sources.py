"""Where images come from: one function per data set, each returning its official training and test parts.

A source keeps images as bytes; the data module turns them into float32 in [0, 1] on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from redlab.batch import ImageSource, Key, RawBatch
from redlab.data.folder import FolderSource
from redlab.data.formats import read_cifar10_binary, read_idx, read_svhn_mat
from redlab.data.loader import raw_batch
from redlab.rng import generator

__all__ = ["Splits", "TensorSource"]
__all__ += ["cifar10", "digits", "fashion_mnist", "image_folder", "mnist", "svhn"]

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as printed at https://www.cs.toronto.edu/~kriz/cifar.html
_DOWNLOAD = "set data.download=true"
_DIGITS_SIZE = 32
_DIGITS_TEST = 0.2


class Splits(NamedTuple):
    """The official parts of a data set."""

    train: ImageSource
    test: ImageSource


class TensorSource:
    """Images that fit into memory.

    Args:
        images: (N, C, H, H) uint8.
        labels: (N,) int64.
        classes: names of the classes.

    Raises:
        ValueError: shapes, types or labels do not fit.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        if images.ndim != 4 or images.shape[2] != images.shape[3] or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (N, C, H, H), got {images.dtype} {tuple(images.shape)}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images, but labels of shape {tuple(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(f"labels {int(labels.min())}..{int(labels.max())}, but {len(classes)} classes")
        self.images, self.labels, self.classes = images, labels.long(), tuple(classes)
        self.channels, self.image_size = images.shape[1], images.shape[3]
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> RawBatch:
        """See `ImageSource`."""
        rows = torch.tensor([key.index for key in keys])
        return raw_batch(self.images[rows], self.labels[rows], keys)

    def fingerprint(self) -> str:
        """See `ImageSource`; every pixel counts."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(("tensor 1", self.classes, tuple(self.images.shape))).encode())
            for tensor in (self.images, self.labels):
                digest.update(tensor.cpu().contiguous().numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def digits() -> Splits:
    """The 1,797 handwritten digits that ship with scikit-learn: real 8x8 scans, shown at 32x32 (bilinear).

    There is no official test part. A fifth is set aside by a constant of this function, never by a run's seed, so that
    every run is tested on the same images.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float()[:, None] / 16
    large = F.interpolate(small, size=(_DIGITS_SIZE, _DIGITS_SIZE), mode="bilinear", align_corners=False)
    images, labels = (large * 255).round().to(torch.uint8), torch.from_numpy(raw.target).long()
    order = torch.randperm(len(labels), generator=generator("digits"))
    count = int(_DIGITS_TEST * len(labels))
    test, train = order[:count].sort().values, order[count:].sort().values
    return Splits(*(TensorSource(images[rows], labels[rows], _DIGITS) for rows in (train, test)))


def fashion_mnist(root: str | Path, *, download: bool = False) -> Splits:
    """Fashion-MNIST: 60,000 + 10,000 grey 28x28 pictures of clothes.

    Args:
        root: folder of the four IDX files, gzipped or plain, or the root of torchvision's copy.
        download: fetch them with torchvision if they are not there.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    return _idx(root, "FashionMNIST", _CLOTHES, download, "`apt-get install dataset-fashion-mnist` or " + _DOWNLOAD)


def mnist(root: str | Path, *, download: bool = False) -> Splits:
    """MNIST: 60,000 + 10,000 grey 28x28 handwritten digits. Arguments and errors as for `fashion_mnist`."""
    return _idx(root, "MNIST", _DIGITS, download, _DOWNLOAD)


def cifar10(root: str | Path, *, download: bool = False) -> Splits:
    """CIFAR-10: 50,000 + 10,000 colour 32x32 pictures.

    The binary version is preferred, since its files hold nothing but bytes. The Python version holds pickles; it is
    read by torchvision, which compares every file with its known checksum before it opens one.

    Args:
        root: folder that holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py``.
        download: fetch the binary version if neither is there.

    Raises:
        FileNotFoundError: neither version is there.
        ValueError: a file is damaged.
    """
    root = Path(root).expanduser()
    binary, pickled = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if download and not binary.is_dir() and not pickled.is_dir():
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(_CIFAR10_URL, str(root), md5=_CIFAR10_MD5)
    if binary.is_dir():
        names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        paths = {part: [_find("CIFAR-10", _DOWNLOAD, binary / name) for name in names[part]] for part in names}
        return Splits(*(TensorSource(*read_cifar10_binary(paths[part]), _CIFAR10) for part in ("train", "test")))
    if not pickled.is_dir():
        raise _missing("CIFAR-10", _DOWNLOAD, binary, pickled)
    return Splits(*(_pickled_cifar10(root, train) for train in (True, False)))


def svhn(root: str | Path, *, download: bool = False) -> Splits:
    """SVHN, cropped digits: 73,257 + 26,032 colour 32x32 house numbers.

    Args:
        root: folder of ``train_32x32.mat`` and ``test_32x32.mat``.
        download: fetch them with torchvision if they are not there.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    root, parts = Path(root).expanduser(), []
    for split in ("train", "test"):
        path = root / f"{split}_32x32.mat"
        if download and not path.is_file():
            from torchvision.datasets import SVHN

            SVHN(str(root), split=split, download=True)
        path = _find("SVHN", _DOWNLOAD, path)
        parts.append(TensorSource(*read_svhn_mat(path), _DIGITS))
    return Splits(*parts)


def image_folder(root: str | Path, *, image_size: int, channels: int = 3, test: str | None = None) -> Splits:
    """Your own images: ``<root>/train/<class>/*.png`` and the same under ``test`` (or ``val`` if there is no test).

    Args:
        root: folder of the parts.
        image_size: height and width to which images are brought, see `FolderSource`.
        channels: 3, or 1 for grey.
        test: name of the folder to test on, if neither rule fits.

    Raises:
        FileNotFoundError: a folder is missing or has no images.
        ValueError: the two parts do not have the same classes.
    """
    root = Path(root).expanduser()
    candidates = [root / name for name in ([test] if test else ["test", "val"])]
    hint = "lay your images out as <root>/train/<class>/*.png and <root>/test/<class>/*.png"
    folders = [_find("image folder", hint, root / "train"), _find("image folder", hint, *candidates)]
    train, held_out = (FolderSource(folder, image_size=image_size, channels=channels) for folder in folders)
    if train.classes != held_out.classes:
        odd = sorted(set(train.classes) ^ set(held_out.classes))
        named = f"{odd[:5]}{'...' if odd[5:] else ''}"
        raise ValueError(
            f"{folders[0]} and {folders[1]} differ in the classes {named}: give both the same class folders"
        )
    return Splits(train, held_out)


def _idx(root: str | Path, name: str, classes: Sequence[str], download: bool, hint: str) -> Splits:
    root = Path(root).expanduser()
    folders = (root, root / name / "raw")

    def candidates(prefix: str, kind: str) -> list[Path]:
        return [folder / f"{prefix}-{kind}-ubyte{end}" for folder in folders for end in (".gz", "")]

    if download and not any(path.is_file() for path in candidates("train", "images-idx3")):
        import torchvision.datasets as tv

        getattr(tv, name)(str(root), download=True)
    parts = []
    for prefix in ("train", "t10k"):
        image_file = _find(name, hint, *candidates(prefix, "images-idx3"))
        label_file = _find(name, hint, *candidates(prefix, "labels-idx1"))
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise ValueError(f"{image_file} holds {len(images)} images, but {label_file} {len(labels)} labels")
        if int(labels.max()) >= len(classes):
            raise ValueError(f"{label_file}: label {int(labels.max())}, but {name} has {len(classes)} classes")
        parts.append(TensorSource(images[:, None], labels, classes))
    return Splits(*parts)


def _pickled_cifar10(root: Path, train: bool) -> TensorSource:
    from torchvision.datasets import CIFAR10

    try:
        part = CIFAR10(str(root), train=train)
    except RuntimeError as error:
        raise ValueError(f"{root / CIFAR10.base_folder}: a file is missing or fails its checksum") from error
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return TensorSource(images, torch.tensor(part.targets), _CIFAR10)


def _find(what: str, hint: str, *paths: Path) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise _missing(what, hint, *paths)


def _missing(what: str, hint: str, *paths: Path) -> FileNotFoundError:
    where = " or ".join(str(path) for path in paths)
    return FileNotFoundError(f"{what} not found: looked for {where}. Point data.root at it, or {hint}.")
