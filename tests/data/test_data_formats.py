import gzip
import struct

import numpy as np
import pytest
import torch
from scipy.io import savemat

from redlab.data.formats import read_cifar10_binary, read_idx, read_svhn_mat


def idx(array, code=0x08):
    head = bytes([0, 0, code, array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28))


@pytest.mark.parametrize("name", ["images.gz", "images"])
def test_idx_round_trip(tmp_path, name):
    data = idx(IMAGES)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    read = read_idx(tmp_path / name, 3)
    assert read.dtype == torch.uint8
    assert (read.numpy() == IMAGES).all()
    read += 1  # writable, which bytes of a file are not


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda d: d[:-1], r"truncated IDX file: the header promises 2352 values, 2351 follow"),
        (lambda d: d + b"\0", r"trailing bytes in IDX file"),
        (lambda d: d[:3], r"3 bytes are too few"),
        (lambda d: d[:9], r"the header alone takes 16"),
        (lambda d: b"\x89PNG" + d[4:], r"not an IDX file: it starts with 89504e47"),
        (lambda d: d[:2] + b"\x0d" + d[3:], r"type code 0x0d"),
        (lambda d: d[:3] + b"\x01" + d[4:], r"1 dimensions, expected 3"),
        (lambda d: idx(np.zeros((0, 28, 28))), r"empty IDX file, dimensions \[0, 28, 28\]"),
    ],
)
def test_idx_faults_are_named(tmp_path, fault, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(fault(idx(IMAGES)))
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte: .*{message}"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda d: d[:-100], "truncated gzip"),
        (lambda d: d[:500] + bytes(50) + d[550:], "corrupted gzip"),
        (lambda d: d + b"junk", "corrupted gzip"),
        (lambda d: b"plain", "corrupted gzip"),
        (lambda d: b"", "truncated IDX file: 0 bytes"),
    ],
)
def test_gzip_faults_are_named(tmp_path, fault, message):
    path = tmp_path / "images.gz"
    path.write_bytes(fault(gzip.compress(idx(IMAGES))))
    with pytest.raises(ValueError, match=rf"images\.gz: {message}"):
        read_idx(path, 3)


def test_cifar10_binary(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    labels = np.array([3, 0, 9, 5], np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(4, -1)], axis=1)
    (tmp_path / "a.bin").write_bytes(records[:3].tobytes())
    (tmp_path / "b.bin").write_bytes(records[3:].tobytes())
    images, found = read_cifar10_binary([tmp_path / "a.bin", tmp_path / "b.bin"])
    assert (images.numpy() == pixels).all()
    assert found.tolist() == [3, 0, 9, 5]

    (tmp_path / "short.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(ValueError, match=r"short\.bin: 12291 bytes are not a whole number"):
        read_cifar10_binary([tmp_path / "short.bin"])
    records[1, 0] = 10
    (tmp_path / "label.bin").write_bytes(records.tobytes())
    with pytest.raises(ValueError, match=r"label\.bin: label 10"):
        read_cifar10_binary([tmp_path / "label.bin"])


def test_svhn(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3, 5)).astype(np.uint8)
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[1], [10], [9], [2], [10]], np.uint8)}, do_compression=True)
    images, labels = read_svhn_mat(path)
    assert images.shape == (5, 3, 32, 32)
    assert images[4, 2, 7, 30] == pixels[7, 30, 2, 4]  # row, column and colour stay what they are
    assert labels.tolist() == [1, 0, 9, 2, 0]  # 10 is the digit 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, r"lacks the variables \['y'\]"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))}, "X is float64"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((3, 1))}, "2 images, but 3 labels"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros((2, 1))}, r"labels 0\.\.0"),
    ],
)
def test_svhn_with_other_content(tmp_path, content, message):
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(ValueError, match=rf"x\.mat: .*{message}"):
        read_svhn_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("keep", [0, 50, 140, 400])
def test_svhn_truncated(tmp_path, keep):
    path = tmp_path / "x.mat"
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1))})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.mat: "):
        read_svhn_mat(path)
