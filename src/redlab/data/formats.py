"""Strict readers of the files in which the data sets are distributed. No reader executes anything found in a file."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_UBYTE = 0x08
_CIFAR_RECORD = 1 + 3 * 32 * 32


def read_idx(path: Path, ndim: int) -> Tensor:
    """Reads one IDX file of unsigned bytes, gzipped (``.gz``) or plain.

    The format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer,
    then the values, the last dimension running fastest.

    Args:
        path: the file.
        ndim: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8, of the dimensions given in the file.

    Raises:
        ValueError: the file is truncated, corrupted or holds something else; the message names file and fault.
    """
    data = _read_bytes(path)
    header = 4 + 4 * ndim
    if len(data) < 4:
        raise ValueError(f"{path}: truncated IDX file: {len(data)} bytes are too few for a header")
    if data[:2] != b"\x00\x00":
        raise ValueError(f"{path}: not an IDX file: it starts with {data[:4].hex()}, not with two zero bytes")
    if data[2] != _UBYTE:
        raise ValueError(f"{path}: IDX type code 0x{data[2]:02x}, but images and labels are 0x{_UBYTE:02x} (bytes)")
    if data[3] != ndim:
        raise ValueError(f"{path}: {data[3]} dimensions, expected {ndim}")
    if len(data) < header:
        raise ValueError(f"{path}: truncated IDX file: {len(data)} bytes, the header alone takes {header}")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4)]
    size = int(np.prod(shape, dtype=np.int64))
    if len(data) - header != size:
        fault = "truncated IDX file" if len(data) - header < size else "trailing bytes in IDX file"
        raise ValueError(f"{path}: {fault}: the header promises {size} values, {len(data) - header} follow")
    if size == 0:
        raise ValueError(f"{path}: empty IDX file, dimensions {shape}")
    return _tensor(np.frombuffer(data, np.uint8, offset=header).reshape(shape))


def read_cifar10_binary(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Reads CIFAR-10's binary version: records of one label byte and 3x32x32 colour bytes, plane by plane.

    Args:
        paths: the files, read one after another.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        ValueError: a file is not a whole number of records, or holds a label above 9.
    """
    parts = []
    for path in paths:
        data = _read_bytes(path)
        if len(data) == 0 or len(data) % _CIFAR_RECORD:
            raise ValueError(f"{path}: {len(data)} bytes are not a whole number of {_CIFAR_RECORD}-byte records")
        records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
        if records[:, 0].max() > 9:
            raise ValueError(f"{path}: label {records[:, 0].max()}, but CIFAR-10 has classes 0..9")
        parts.append(records)
    records = np.concatenate(parts)
    return _tensor(records[:, 1:].reshape(-1, 3, 32, 32)), _tensor(records[:, 0].astype(np.int64))


def read_svhn_mat(path: Path) -> tuple[Tensor, Tensor]:
    """Reads one of SVHN's cropped-digit MATLAB files: ``X`` (32, 32, 3, N) bytes and ``y`` (N, 1), where 10 means 0.

    Args:
        path: the file.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64 in 0..9.

    Raises:
        ValueError: the file is truncated, corrupted or holds something else.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy raises many types on damaged files, MatReadError and zlib.error among them
        raise ValueError(f"{path}: not a readable MATLAB file: {error}") from error
    missing = {"X", "y"} - content.keys()
    if missing:
        raise ValueError(f"{path}: the MATLAB file lacks the variables {sorted(missing)}")
    images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, N)")
    if len(labels) != images.shape[3] or len(labels) == 0:
        raise ValueError(f"{path}: {images.shape[3]} images, but {len(labels)} labels")
    if labels.min() < 1 or labels.max() > 10:
        raise ValueError(f"{path}: labels {labels.min()}..{labels.max()}, expected 1..10")
    return _tensor(images.transpose(3, 2, 0, 1)), _tensor(labels % 10)


def _read_bytes(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except EOFError as error:
        raise ValueError(f"{path}: truncated gzip file: {error}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: corrupted gzip file: {error}") from error


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())  # a copy: contiguous, and writable unlike the bytes of a file
